package interop

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/capture"
	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep"
)

// Two networks of the same two daemons. Where one has the greater load, it is the first.
const (
	greedy = "greedy"
	modest = "modest"
)

// All send what they can for as long as window; TCP does so for warmup before that, to find its speed.
const (
	warmup = 300 * time.Millisecond
	window = time.Second
)

// windows is how often a contest is held at most.
const windows = 3

// TestFairness has networks, and the flows of one, compete for what two daemons carry. How much that is depends on the
// machine: only shares are looked at, and what is lost of little.
func TestFairness(t *testing.T) {
	for name, disable := range map[string][]string{"fast path": nil, "slow path": {vtep.FeatureFastPath}} {
		t.Run(name, func(t *testing.T) {
			l := rivals(t, disable)
			c := contest{from: l.Host("h1"), to: l.Host("h2")}
			for _, n := range []string{greedy, modest} {
				pingOnce(t, c.from, c.to.Overlay(n))
			}
			t.Run("TCP in both", c.bothTCP)
			t.Run("UDP in both", c.bothUDP)
			t.Run("little beside TCP", c.littleBesideTCP)
			t.Run("little beside UDP", c.littleBesideUDP)
			t.Run("flows of one network", c.flows)
			if len(disable) > 0 { // the kernel does not stand still when a daemon does
				t.Run("backlog", c.backlog)
			}
			t.Run("counters", func(t *testing.T) { c.byKernel(t, len(disable) == 0) })
		})
	}
}

// rivals makes two hosts that both have both networks. Each has one worker, so that it matters whom that serves next.
func rivals(t *testing.T, disable []string) *lab.Lab {
	t.Helper()
	sc := lab.Scenario{Name: unique("interop-"), About: "Made by a test.", Topology: lab.Direct}
	members := map[string]lab.Kind{}
	for i := range 2 {
		h := lab.HostSpec{
			Name:     fmt.Sprintf("h%d", i+1),
			Underlay: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", i+1))},
			Overlayd: lab.OverlaydSettings{Queues: 1, Disable: disable},
		}
		sc.Hosts = append(sc.Hosts, h)
		members[h.Name] = lab.Overlayd
	}
	for i, name := range []string{greedy, modest} {
		sc.Networks = append(sc.Networks, lab.NetworkSpec{
			Name: name, VNI: vni + uint32(i), Members: members,
			Subnets: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", i))},
		})
	}
	return up(t, sc)
}

// contest is between what one host sends to another.
type contest struct{ from, to *lab.Host }

// competitor is what competes. It returns how much of it the overlay has delivered.
type competitor func(context.Context) (int64, error)

// compete runs competitors at once and returns what each got.
func compete(t *testing.T, all ...competitor) []int64 {
	t.Helper()
	ctx := within(t)
	got, errs := make([]int64, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for i, run := range all {
		wg.Go(func() { got[i], errs[i] = run(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return got
}

// tcp sends by as many connections; what counts is bytes.
func (c contest) tcp(network string, flows int) competitor {
	return func(ctx context.Context) (int64, error) {
		r, err := load.TCP(ctx, load.TCPConfig{
			From: c.from, To: c.to, Address: c.to.Overlay(network), Flows: flows, Warmup: warmup, Duration: window,
		})
		return r.Forward.Bytes, err
	}
}

// many is how many flows it takes to leave no queue of a TAP, and no socket of the underlay, empty.
const many = 64

// flood sends the smallest datagrams by many flows; what counts is how many got as far as the receiver's socket. How many it has
// sent goes into sent.
func (c contest) flood(network string, sent *int64) competitor {
	return func(ctx context.Context) (int64, error) {
		r, err := load.UDP(ctx, load.UDPConfig{
			From: c.from, To: c.to, Address: c.to.Overlay(network), Size: load.MinUDP, Flows: many, Duration: window,
		})
		*sent = int64(r.Sent)
		return int64(r.Received + r.Overflow), err
	}
}

// hold holds a contest, which returns what was wrong in its window, until nothing was. A machine whose CPUs are away for most of
// a window takes from one what it does not take from the others; where the overlay does, it does so in each window.
func (c contest) hold(t *testing.T, once func() (wrong string)) {
	t.Helper()
	var wrong []string
	for range windows {
		w := once()
		if w == "" {
			return
		}
		wrong = append(wrong, w)
	}
	t.Errorf("in each of %d windows, with %s:\n%s", windows, c.losses(t), strings.Join(wrong, "\n"))
}

func (c contest) bothTCP(t *testing.T) {
	c.hold(t, func() string {
		return halves(t, compete(t, c.tcp(greedy, 4), c.tcp(modest, 4)), [2]int64{math.MaxInt64, math.MaxInt64})
	})
}

func (c contest) bothUDP(t *testing.T) {
	c.hold(t, func() string {
		var sent [2]int64
		return halves(t, compete(t, c.flood(greedy, &sent[0]), c.flood(modest, &sent[1])), sent)
	})
}

// halves wants each of two to have got at least a third of what both got, or nearly all that it has sent.
func halves(t *testing.T, got []int64, sent [2]int64) (wrong string) {
	t.Helper()
	sum := got[0] + got[1]
	t.Logf("%.0f %% and %.0f %% of %d", percent(got[0], sum), percent(got[1], sum), sum)
	for i := range got {
		if got[i] < min(sum/3, sent[i]/10*9) {
			wrong = fmt.Sprintf("of two networks with the same load one got less than a third of what both got: %d of %d", got, sent)
		}
	}
	return wrong
}

func percent(part, whole int64) float64 { return 100 * float64(part) / float64(whole) }

// backlog lets a daemon stand still until both networks have frames waiting at their TAPs, one from many flows, which
// are in all queues, and one from a single flow, which are in one. It looks in which order they go out: once the flow is through,
// the other network must not have had more than three times as many, though it waits in eight times as many queues.
func (c contest) backlog(t *testing.T) {
	const each, size = 1024, 18
	crowd := make([]*net.UDPConn, many)
	for i := range crowd {
		crowd[i] = c.dial(t, greedy)
	}
	single := c.dial(t, modest)
	d := departures{frame: header.VXLANLen + header.EthernetLen + header.IPv4MinLen + header.UDPLen + size, single: vni + 1, most: each}
	look, err := capture.Open(c.to, "eth0", capture.Received, d.packet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = look.Stop() }) // the second time it does nothing

	pid := c.from.PID()
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGCONT) }) // also where the test has failed in between
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "overlayd to stand still", func() (bool, string) { return standsStill(t, pid) })
	payload := make([]byte, size)
	for range each / 4 {
		for _, conn := range crowd {
			_, _ = conn.Write(payload) // what a full queue does not take is no matter
		}
	}
	for range each {
		if _, err := single.Write(payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the frames of the single flow to go out", func() (bool, string) {
		ours, others := d.soFar()
		return ours >= each, fmt.Sprintf("%d of %d, beside %d of the others", ours, each, others)
	})
	if err := look.Stop(); err != nil || look.Stats().Missed > 0 {
		t.Fatalf("the capture: %+v, %v", look.Stats(), err)
	}
	_, others := d.soFar()
	t.Logf("beside %d frames of one flow went out %d of the other network's %d flows", each, others, many)
	if others < each/3 || others > 3*each {
		t.Errorf("beside %d frames of a single flow went out %d of the other network", each, others)
	}
}

// standsStill reports whether all threads of a process are stopped, and their states.
func standsStill(t *testing.T, pid int) (still bool, states string) {
	t.Helper()
	for _, s := range threadsOf(t, pid) {
		states += s[0]
	}
	return states != "" && strings.Trim(states, "T") == "", states
}

// threadsOf returns what the kernel says of each thread of a process: the fields of proc_pid_stat(5) from the third on.
func threadsOf(t *testing.T, pid int) (stats [][]string) {
	t.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		name := bytes.LastIndexByte(text, ')') // the second field, which may have blanks and brackets itself
		stats = append(stats, strings.Fields(string(text[name+1:])))
	}
	return stats
}

// dial opens a connection from one host to a socket of the other that nobody reads.
func (c contest) dial(t *testing.T, network string) *net.UDPConn {
	t.Helper()
	var to, from *net.UDPConn
	on(t, c.to, func() (err error) {
		to, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.to.Overlay(network), 0)))
		return err
	})
	t.Cleanup(func() { to.Close() })
	on(t, c.from, func() (err error) {
		from, err = net.DialUDP("udp4", nil, to.LocalAddr().(*net.UDPAddr))
		return err
	})
	t.Cleanup(func() { from.Close() })
	return from
}

// departures counts what goes out, by network, up to the moment when most frames of the single flow have.
type departures struct {
	frame  int // bytes of a frame with its VXLAN header
	single addr.VNI
	most   int

	mu           sync.Mutex
	ours, others int
}

func (d *departures) packet(p *capture.Packet) {
	const headers = header.EthernetLen + header.IPv4MinLen + header.UDPLen // the lab's hosts send no tags and no options
	if len(p.Data) < headers+header.VXLANLen {
		return
	}
	datagrams := p.Data[headers:] // all of one train, and so of one network
	n := len(datagrams) / d.frame
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.ours >= d.most:
	case header.VXLAN(datagrams).VNI() == d.single:
		d.ours += n
	default:
		d.others += n
	}
}

func (d *departures) soFar() (ours, others int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ours, d.others
}

func (c contest) littleBesideTCP(t *testing.T) {
	c.hold(t, func() string { return c.little(t, c.tcp(greedy, 8)) })
}

func (c contest) littleBesideUDP(t *testing.T) {
	var sent [2]int64
	c.hold(t, func() string { return c.little(t, c.flood(greedy, &sent[0]), c.flood(greedy, &sent[1])) })
}

// little has in one network a stream and round trips, at the rate that they ask for, beside the load of the other. They have to
// get all of it, but for what a busy machine may cost.
func (c contest) little(t *testing.T, heavy ...competitor) (wrong string) {
	t.Helper()
	const rate = 2000
	const count = rate * int(window/time.Millisecond) / 1000
	var stream load.UDPResult
	var trips load.Latency
	to := c.to.Overlay(modest)
	compete(t, append(heavy,
		func(ctx context.Context) (n int64, err error) {
			stream, err = load.UDP(ctx, load.UDPConfig{From: c.from, To: c.to, Address: to, Size: 1200, Rate: rate, Count: count})
			return 0, err
		},
		func(ctx context.Context) (n int64, err error) {
			trips, err = load.RoundTrip(ctx, load.RoundTripConfig{
				From: c.from, To: c.to, Address: to, Transport: load.OverUDP, Warmup: 1, Duration: window,
			})
			return 0, err
		})...)
	t.Logf("of %d datagrams %d were lost, of %d round trips %d; half took %v, 99 %% no more than %v",
		stream.Sent, stream.Lost, trips.Count+trips.Lost, trips.Lost, trips.P50, trips.P99)
	if stream.Sent != uint64(count) || stream.Corrupt+stream.Duplicate > 0 {
		t.Errorf("a stream of little beside the load of another network: %+v; %s", stream, c.losses(t))
	}
	if stream.Lost*50 > stream.Sent || trips.Lost > 1 { // each trip has taken half a second of the one that there is
		wrong = fmt.Sprintf("little beside the load of another network: a stream %+v, round trips %+v", stream, trips)
	}
	return wrong
}

// flows has TCP flows in one network, of which none may starve. They are as many as a worker has lanes: one that is served badly
// has some of them in nearly every window.
func (c contest) flows(t *testing.T) {
	const n = 8
	c.hold(t, func() (wrong string) {
		got := compete(t, slices.Repeat([]competitor{c.tcp(modest, 1)}, n)...)
		var sum int64
		for _, b := range got {
			sum += b
		}
		t.Logf("the least of %d flows got %.0f %%, the most %.0f %% of %d", n, percent(slices.Min(got), sum), percent(slices.Max(got), sum), sum)
		if slices.Min(got) < sum/n/4 {
			wrong = fmt.Sprintf("of %d flows one got less than a quarter of the mean: %d", n, got)
		}
		return wrong
	})
}

// byKernel looks that all frames are accounted for, and that the kernel has forwarded some of each network by itself, or none.
func (c contest) byKernel(t *testing.T, some bool) {
	for _, h := range []*lab.Host{c.from, c.to} {
		for _, n := range conserved(t, h.Socket()) {
			if k := n.GetFastPathOut().GetFrames() + n.GetFastPathIn().GetFrames(); (k > 0) != some {
				t.Errorf("%s, network %s: the kernel has forwarded %d frames by itself", h.Name(), n.Name, k)
			}
		}
	}
}

// losses says where frames have been lost until now.
func (c contest) losses(t *testing.T) string {
	t.Helper()
	var out []string
	for _, h := range []*lab.Host{c.from, c.to} {
		for _, n := range networksOf(t, h.Socket()) {
			out = append(out, fmt.Sprintf("%s, network %s: %d at the TAP, drops %v", h.Name(), n.Name, n.TapOverflow, n.GetCounters().GetDropsByReason()))
		}
		u := statusOf(t, h.Socket()).GetUnderlay()
		out = append(out, fmt.Sprintf("%s: %d in front of the underlay sockets", h.Name(), u.ReceiveOverflow))
	}
	return "lost so far: " + strings.Join(out, "; ")
}
