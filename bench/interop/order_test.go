package interop

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
)

// TestOrder sends eight UDP flows at once through the queues of four workers and looks that each arrives in order and whole.
func TestOrder(t *testing.T) {
	sc := scenario(lab.IPv4, lab.Overlayd, lab.Overlayd, lab.Kernel)
	for i := range sc.Hosts {
		sc.Hosts[i].Overlayd.Queues = 4
	}
	l := up(t, sc)
	for _, h := range []string{"h1", "h2"} {
		if n := networksOf(t, l.Host(h).Socket()); n[0].Queues != 32 {
			t.Fatalf("%s has %d queues, want 8 of each of 4 workers", h, n[0].Queues)
		}
	}
	// What the veths do to the order is no matter of the overlay.
	spaces := []*lab.Namespace{l.Router()}
	for _, h := range l.Hosts() {
		spaces = append(spaces, &h.Namespace)
	}
	for _, n := range spaces {
		become(t, n, steering)
	}
	for _, p := range [][2]string{{"h1", "h2"}, {"h2", "h1"}, {"h1", "h3"}, {"h3", "h2"}} {
		t.Run(p[0]+" to "+p[1], func(t *testing.T) {
			from, to := l.Host(p[0]), l.Host(p[1])
			settle(t, from, to)
			w := watch(t, l, false)
			parallel(t, from, to)
			w.end(t)
			if from.Kind(network) != lab.Overlayd {
				return
			}
			used := make(map[uint16]bool)
			for f, port := range w.ports {
				if f.protocol == 17 && f.sender == underlay(from) {
					used[port] = true
				}
			}
			if len(used) < 3 { // of 16; that eight flows fall on two has a chance of one in a million
				t.Errorf("all flows went out from %d source ports", len(used))
			}
		})
	}
}

// settle makes from find the MAC of to. While it looks, the sender's own kernel holds packets back, drops those
// that are too many, and lets new ones overtake those that it held.
func settle(t *testing.T, from, to *lab.Host) {
	t.Helper()
	for _, a := range to.Overlays(network) {
		if r, err := load.Ping(within(t), load.PingConfig{From: from, To: a}); err != nil || r.Received != 1 {
			t.Fatalf("ping %v: %+v, %v", a, r, err)
		}
	}
}

// become runs this program as one of the parts of actAs, and waits for its end.
func become(t *testing.T, n *lab.Namespace, part string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), actAsEnv+"="+part)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err = n.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s in %s: %v\n%s", part, n.Name(), err, out.String())
	}
}

// parallel runs the flows of one direction. They are run again where they lost some to a full backlog, as one CPU has it when it
// stands still for a moment while all that is received is steered to it.
func parallel(t *testing.T, from, to *lab.Host) {
	t.Helper()
	const attempts = 3
	for attempt := 1; ; attempt++ {
		before := backlogDrops(t)
		missing, short := flowsAtOnce(t, from, to)
		full := backlogDrops(t) - before
		if len(short) == 0 {
			return
		}
		const train = 8 // datagrams that may be in what is dropped as one
		if attempt == attempts || missing > train*uint64(full) {
			t.Errorf("attempt %d, while the kernel dropped %d frames of whatever namespace: %s", attempt, full, strings.Join(short, "; "))
			return
		}
		t.Logf("once more: the kernel dropped %d frames of whatever namespace: %s", full, strings.Join(short, "; "))
	}
}

// flowsAtOnce returns how many datagrams did not arrive, and which flows lost more than they may.
func flowsAtOnce(t *testing.T, from, to *lab.Host) (missing uint64, short []string) {
	t.Helper()
	const flows, count, rate = 8, 4000, 4000
	var wg sync.WaitGroup
	var results [flows]load.UDPResult
	var errs [flows]error
	for i := range flows {
		address := to.Overlays(network)[i%2]
		ctx := within(t)
		wg.Go(func() {
			results[i], errs[i] = load.UDP(ctx, load.UDPConfig{
				From: from, To: to, Address: address, Size: 200 + 150*i, Count: count, Rate: rate,
			})
		})
	}
	wg.Wait()
	for i, r := range results {
		if errs[i] != nil || r.Reordered+r.Duplicate+r.Corrupt > 0 {
			t.Errorf("flow %d: %+v, %v", i, r, errs[i])
		}
		missing += r.Lost
		if r.Received < count*99/100 { // what a busy machine may cost
			short = append(short, fmt.Sprintf("flow %d: %d of %d arrived: %+v", i, r.Received, count, r))
		}
	}
	return missing, short
}
