package pathmtu

import (
	"fmt"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/probe"
)

const ms = time.Millisecond

// exactly lets a world run until both hosts have settled, and checks that it was in time, on the truth and
// never on less.
func exactly(t *testing.T, w *world, x, y *host, a, b addrOf, truth int, within time.Duration) time.Duration {
	t.Helper()
	took, ok := w.runUntil(within, func() bool { return x.settledAt(b, truth)() && y.settledAt(a, truth)() })
	if !ok {
		t.Fatalf("path of %d: after %v %+v and %+v", truth, took, x.told[b], y.told[a])
	}
	for _, h := range []*host{x, y} {
		for _, m := range h.history {
			if m.Settled && m.Learned == LearnedProbe && int(m.Path) < truth {
				t.Fatalf("path of %d: settled on %d", truth, m.Path)
			}
		}
	}
	return took
}

func TestExact(t *testing.T) {
	sizes := []int{}
	step := 1
	if testing.Short() {
		step = 11
	}
	for size := 1280; size <= 1500; size += step {
		sizes = append(sizes, size)
	}
	var slowest time.Duration
	run := func(t *testing.T, seed uint64, device, truth int, a, b addrOf, p path) {
		p.mtu = truth
		w, x, y, _, _ := two(t, seed, device, a, b, p)
		slowest = max(slowest, exactly(t, w, x, y, a, b, truth, 3*time.Second))
	}
	for i, size := range sizes {
		for _, delay := range []time.Duration{50 * time.Microsecond, 5 * ms, 50 * ms} {
			for _, loss := range []float64{0, 0.01} {
				run(t, uint64(i), 1500, size, addrA, addrB, path{delay: delay, loss: loss})
				run(t, uint64(i), 1500, size, addrA6, addrB6, path{delay: delay, loss: loss})
			}
		}
	}
	for i, size := range []int{577, 600, 1000, 1279, 1501, 1600, 2047, 4000, 8499, 8500, 8501, 8896, 8950, 8999, 9000} {
		for _, loss := range []float64{0, 0.01} {
			run(t, uint64(i), 9000, size, addrA, addrB, path{delay: 50 * ms, loss: loss})
			run(t, uint64(i), 9001, size, addrA, addrB, path{delay: 50 * ms, loss: loss})
		}
	}
	t.Logf("the slowest took %v", slowest)
}

func TestNeverBelow(t *testing.T) {
	seeds := 3000
	if testing.Short() {
		seeds = 300
	}
	var slowest, sum time.Duration
	for seed := range seeds {
		truth := 1280 + seed%221
		w, x, y, _, _ := two(t, uint64(seed), 1500, addrA, addrB, path{
			mtu: truth, delay: time.Duration(seed%51) * ms, loss: 0.01, jitter: time.Duration(seed%3) * 5 * ms, twice: 0.01,
		})
		took := exactly(t, w, x, y, addrA, addrB, truth, 3*time.Second)
		slowest, sum = max(slowest, took), sum+took
	}
	t.Logf("%d searches took %v on average and %v at most", seeds, sum/time.Duration(seeds), slowest)
}

func TestPlain(t *testing.T) {
	for _, size := range []int{1500, 9000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			w, x, y, _, _ := two(t, 1, size, addrA, addrB, path{mtu: size, delay: 10 * ms})
			if took := exactly(t, w, x, y, addrA, addrB, size, time.Second); took > 21*ms {
				t.Fatalf("with nothing in the way it took %v, more than the time there and back", took)
			}
		})
	}
}

// Whoever starts first is done as soon as the other: what was sent before there was anybody is not waited for.
func TestOneStartsFirst(t *testing.T) {
	for _, keys := range []probe.Keys{{}, secretKeys(t, "k")} {
		for _, earlier := range []time.Duration{0, 5 * ms, 50 * ms, 300 * ms, 999 * ms, 1500 * ms, 2500 * ms, 20 * time.Second} {
			w := newWorld(t, 1)
			w.join(addrA, addrB, path{mtu: 1400, delay: 10 * ms})
			x, y := w.host(1500, addrA), w.host(1500, addrB)
			y.kernel = true
			x.prober.SetKeys(keys, addrA)
			x.setPeers(peerAt(addrB))
			w.run(earlier)
			y.kernel = false
			y.prober.SetKeys(keys, addrB)
			y.setPeers(peerAt(addrA))
			if took := exactly(t, w, x, y, addrA, addrB, 1400, 3*time.Second); took > minTimeout+200*ms {
				t.Errorf("%v, %v earlier: it took %v", keys, earlier, took)
			}
		}
	}
}

// With the same keys at last, nodes that could not understand each other do so at once.
func TestKeysComeLater(t *testing.T) {
	for _, last := range []string{"k", "jk"} {
		w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: 1400, delay: 10 * ms})
		x.prober.SetKeys(secretKeys(t, "k"), addrA)
		y.prober.SetKeys(secretKeys(t, "j"), addrB)
		w.run(time.Minute)
		if s := y.told[addrA].State; s != StateUnanswered {
			t.Fatalf("state %v", s)
		}
		y.prober.SetKeys(secretKeys(t, last), addrB)
		y.wake()
		x.prober.SetKeys(secretKeys(t, "kj"), addrA)
		x.wake()
		if took := exactly(t, w, x, y, addrA, addrB, 1400, 5*time.Second); took > minTimeout+300*ms {
			t.Errorf("%q: it took %v", last, took)
		}
	}
}
