package pathmtu

import (
	"fmt"
	"testing"
	"time"
)

// A path that becomes narrower while datagrams flow is found and searched anew within two seconds, whenever
// within the period of probing it happens.
func TestShrink(t *testing.T) {
	var slowest time.Duration
	for seed := range uint64(400) {
		delay := []time.Duration{100 * time.Microsecond, 5 * ms, 25 * ms, 50 * ms}[seed%4]
		w, x, y, there, back := two(t, seed, 1500, addrA, addrB, path{mtu: 1500, delay: delay})
		x.stream[addrB], y.stream[addrA] = true, true
		exactly(t, w, x, y, addrA, addrB, 1500, 3*time.Second)
		w.run(5*time.Second + time.Duration(seed)*7*ms)
		truth := 1280 + int(seed*37%200)
		there.mtu, back.mtu = truth, truth
		began := w.now
		for _, h := range []*host{x, y} {
			h.history = nil
		}
		took, ok := w.runUntil(2*time.Second, func() bool { return x.settledAt(addrB, truth)() && y.settledAt(addrA, truth)() })
		if !ok {
			t.Fatalf("seed %d: after %v %+v and %+v", seed, took, x.told[addrB], y.told[addrA])
		}
		slowest = max(slowest, took)
		for _, h := range []*host{x, y} {
			for _, m := range h.history {
				if m.at.Sub(began) > 2*time.Second || int(m.Path) < 1280 {
					t.Fatalf("seed %d: %v after the change the path is %+v", seed, m.at.Sub(began), m)
				}
			}
			if n := h.prober.Counters().BlackHoles; n != 1 {
				t.Fatalf("seed %d: %d black holes, want 1", seed, n)
			}
		}
		w.run(31 * time.Second)
		if !x.settledAt(addrB, truth)() || !y.settledAt(addrA, truth)() {
			t.Fatalf("seed %d: did not stay", seed)
		}
		// And back: one re-validation, of 10 s with traffic, and a search.
		there.mtu, back.mtu = 1500, 1500
		if took, ok := w.runUntil(11*time.Second, func() bool { return x.settledAt(addrB, 1500)() && y.settledAt(addrA, 1500)() }); !ok {
			t.Fatalf("seed %d: not back after %v: %+v", seed, took, x.told[addrB])
		}
	}
	t.Logf("the slowest took %v", slowest)
}

// With losses it takes a little longer, and is as exact.
func TestShrinkWithLoss(t *testing.T) {
	var slowest time.Duration
	for seed := range uint64(400) {
		w, x, y, there, back := two(t, seed, 1500, addrA, addrB, path{mtu: 1500, delay: 20 * ms, loss: 0.01, jitter: 3 * ms, twice: 0.01})
		x.stream[addrB], y.stream[addrA] = true, true
		exactly(t, w, x, y, addrA, addrB, 1500, 3*time.Second)
		w.run(3*time.Second + time.Duration(seed)*7*ms)
		truth := 1280 + int(seed*37%200)
		there.mtu, back.mtu = truth, truth
		x.history, y.history = nil, nil
		slowest = max(slowest, exactly(t, w, x, y, addrA, addrB, truth, 4*time.Second))
	}
	t.Logf("the slowest took %v", slowest)
}

// A path on which nothing changes stays settled on the truth, whatever it loses by chance.
func TestSteady(t *testing.T) {
	for seed := range uint64(20) {
		w, x, y, _, _ := two(t, seed, 1500, addrA, addrB, path{mtu: 1437, delay: 10 * ms, loss: 0.01, jitter: 5 * ms, twice: 0.01})
		x.stream[addrB], y.stream[addrA] = true, seed%2 == 0
		exactly(t, w, x, y, addrA, addrB, 1437, 3*time.Second)
		x.history, y.history = nil, nil
		w.run(10 * time.Minute)
		for _, h := range []*host{x, y} {
			for _, m := range h.history {
				if m.State != StateReachable || m.Path < 1280 || m.Path > 1437 || m.Settled && m.Path != 1437 {
					t.Fatalf("seed %d: %+v", seed, m)
				}
			}
		}
		if lost := x.prober.Counters().BlackHoles; lost > 1 {
			t.Fatalf("seed %d: %d black holes in ten minutes that were none", seed, lost)
		}
	}
}

// What it costs to watch a settled path, in bytes/s that one host sends, acknowledgements and IP headers
// included, with two candidates.
func TestBudget(t *testing.T) {
	for _, c := range []struct {
		v6            bool
		device, truth int
		loss          float64
	}{
		{false, 1500, 1500, 0}, {false, 1500, 1499, 0}, {false, 1500, 1400, 0}, {false, 1500, 1280, 0},
		{true, 1500, 1500, 0}, {true, 1500, 1499, 0}, {true, 1500, 1281, 0}, {true, 1500, 1280, 0},
		{false, 9000, 9000, 0}, {false, 9000, 8999, 0}, {true, 9000, 8000, 0}, {false, 9000, 1500, 0}, {false, 65535, 65535, 0},
		{false, 1500, 1500, 0.01}, {true, 1500, 1400, 0.01},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			w := newWorld(t, 1)
			a, b := []addrOf{addrA, floatA}, []addrOf{addrB, floatB}
			if c.v6 {
				a, b = []addrOf{addrA6, floatA6}, []addrOf{addrB6, floatB6}
			}
			for i := range a {
				w.join(a[i], b[i], path{mtu: c.truth, delay: 5 * ms, loss: c.loss})
			}
			x, y := w.host(c.device, a...), w.host(c.device, b...)
			x.setPeers(peerAt(b...))
			y.setPeers(peerAt(a...))
			w.run(30 * time.Second)
			for _, traffic := range []bool{true, false} {
				x.stream[b[0]], y.stream[a[0]] = traffic, traffic
				w.run(30 * time.Second)
				x.sent, y.sent = 0, 0
				before := x.prober.Counters().BytesSent
				const period = 1200
				w.run(period * time.Second)
				rate, limit := float64(x.sent)/period, 100.0
				if traffic {
					limit = 2000
				}
				t.Logf("traffic %v: %.0f bytes/s", traffic, rate)
				if rate >= limit || float64(y.sent)/period >= limit {
					t.Errorf("traffic %v: %.0f and %.0f bytes/s, limit %v", traffic, rate, float64(y.sent)/period, limit)
				}
				if counted := x.prober.Counters().BytesSent - before; counted != uint64(x.sent) {
					t.Errorf("%d bytes were counted and %d sent", counted, x.sent)
				}
				if s := x.prober.Status()[0]; int(s.Path) != c.truth || !s.Settled {
					t.Errorf("path %+v", s)
				}
			}
		})
	}
}

// Traffic after idleness makes the path be probed at once.
func TestWakes(t *testing.T) {
	w, x, y, there, back := two(t, 1, 1500, addrA, addrB, path{mtu: 1500, delay: 10 * ms})
	exactly(t, w, x, y, addrA, addrB, 1500, 3*time.Second)
	w.run(2*time.Minute + 20*time.Second)
	there.mtu, back.mtu = 1400, 1400
	w.run(time.Second)
	x.stream[addrB] = true
	if took, ok := w.runUntil(time.Second, x.settledAt(addrB, 1400)); !ok {
		t.Fatalf("after %v of traffic %+v", took, x.told[addrB])
	}
}

// One that discards probes, as the VTEP of the kernel does, is reached with the MTU of the route, and asked
// now and then. When it begins to answer, the path is searched.
func TestUnanswered(t *testing.T) {
	w := newWorld(t, 1)
	w.join(addrA, addrB, path{mtu: 1400, delay: 10 * ms})
	x, y := w.host(1500, addrA), w.host(1500, addrB)
	y.kernel = true
	x.setPeers(peerAt(addrB))
	x.stream[addrB] = true
	w.run(2 * time.Second)
	if c := x.told[addrB]; c.Path != 1500 || c.Learned != LearnedRoute || !c.Settled || c.State != StateUnanswered || c.Local != addrA || c.Device != "eth0" || c.Underlay != 1500 {
		t.Fatalf("choice %+v", c)
	}
	w.run(2 * time.Minute)
	x.sent = 0
	w.run(10 * time.Minute)
	if x.sent != 20*100 {
		t.Errorf("%d bytes in ten minutes, want a small probe each 30 s", x.sent)
	}
	y.kernel = false
	y.setPeers(peerAt(addrA)) // its first probe shows that there is somebody now
	exactly(t, w, x, y, addrA, addrB, 1400, 3*time.Second)
}

// A route whose MTU changes is followed in both directions.
func TestRouteMTU(t *testing.T) {
	w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: 1400, delay: 10 * ms})
	exactly(t, w, x, y, addrA, addrB, 1400, 3*time.Second)
	route := func(size int) {
		x.ways = func(addrOf) (Route, error) {
			return Route{Local: addrA, Device: "eth0", MTU: underlay(size)}, nil
		}
		x.device = size
		x.prober.RoutesChanged()
		x.wake()
	}
	for _, c := range []struct{ route, want int }{{1300, 1300}, {1350, 1350}, {1500, 1400}, {1280, 1280}, {9000, 1400}, {1400, 1400}, {1000, 1000}, {1500, 1400}} {
		route(c.route)
		if took, ok := w.runUntil(time.Second, x.settledAt(addrB, c.want)); !ok {
			t.Fatalf("route of %d: after %v %+v", c.route, took, x.told[addrB])
		}
		w.run(5 * time.Second)
	}
}

// A device that takes less than the route says is found out without three losses.
func TestDeviceRefuses(t *testing.T) {
	w := newWorld(t, 1)
	w.join(addrA, addrB, path{mtu: 9000, delay: 10 * ms})
	x, y := w.host(1500, addrA), w.host(1500, addrB)
	x.device, y.device = 1423, 1423
	x.setPeers(peerAt(addrB))
	y.setPeers(peerAt(addrA))
	exactly(t, w, x, y, addrA, addrB, 1423, time.Second)
	if lost := x.prober.Counters().ProbesLost; lost != 0 {
		t.Errorf("%d probes counted as lost", lost)
	}
	x.stream[addrB] = true
	w.run(3 * time.Second)
	x.device = 1380 // and no word of it from the route
	if took, ok := w.runUntil(1500*ms, x.settledAt(addrB, 1380)); !ok {
		t.Fatalf("after %v %+v", took, x.told[addrB])
	}
}

// Slow links do not make large packets, which take longer, look lost.
func TestSlowLink(t *testing.T) {
	for _, rate := range []float64{32e3, 125e3, 1e6} {
		for truth := 1290; truth <= 1500; truth += 42 {
			w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: truth, delay: 10 * ms, rate: rate})
			exactly(t, w, x, y, addrA, addrB, truth, 6*time.Second)
		}
	}
}

// A path on which not even the smallest size passes is said to be so, and found to have healed.
func TestTooNarrow(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b, least := addrA, addrB, 576
		if v6 {
			a, b, least = addrA6, addrB6, 1280
		}
		w, x, y, there, back := two(t, 1, 1500, a, b, path{mtu: 500, delay: 10 * ms})
		w.run(5 * time.Second)
		s := x.prober.Status()[0]
		if int(s.Path) != least || !s.Settled || s.State != StateReachable || s.Candidates[0].Why == "" {
			t.Fatalf("status %+v", s)
		}
		x.stream[b], y.stream[a] = true, true
		there.mtu, back.mtu = 1400, 1400
		x.history, y.history = nil, nil
		exactly(t, w, x, y, a, b, 1400, 62*time.Second)
	}
}

// Round-trip times above the longest time-out only make it slower.
func TestLongWay(t *testing.T) {
	w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: 1337, delay: 800 * ms})
	t.Logf("it took %v", exactly(t, w, x, y, addrA, addrB, 1337, 9*time.Second))
	x.stream[addrB] = true
	x.history = nil
	w.run(time.Minute)
	if len(x.history) != 0 {
		t.Fatalf("not steady: %+v", x.history)
	}
}

// Far more packets than usual are lost: nothing runs wild, and it is exact in the end.
func TestHeavyLoss(t *testing.T) {
	for seed := range uint64(20) {
		w, x, y, there, back := two(t, seed, 1500, addrA, addrB, path{mtu: 1345, delay: 10 * ms, loss: 0.3})
		w.run(time.Minute)
		if x.sent > 600_000 {
			t.Fatalf("%d bytes in a minute", x.sent)
		}
		there.loss, back.loss = 0, 0
		x.stream[addrB], y.stream[addrA] = true, true
		if took, ok := w.runUntil(15*time.Second, func() bool { return x.settledAt(addrB, 1345)() && y.settledAt(addrA, 1345)() }); !ok {
			t.Fatalf("seed %d: after %v %+v", seed, took, x.told[addrB])
		}
	}
}

// One without peers does not wake, but for what is still under way to those that it had.
func TestSleepsWithoutPeers(t *testing.T) {
	w, x, y, _, _ := two(t, 1, 1500, addrA, addrB, path{mtu: 1500, delay: 10 * ms})
	alone := w.host(1500, floatA)
	sleeps := func(h *host) time.Duration {
		now, next := h.prober.turn()
		return next.Sub(now)
	}
	if d := sleeps(alone); d < time.Hour {
		t.Errorf("without a peer it wakes after %v", d)
	}
	exactly(t, w, x, y, addrA, addrB, 1500, 3*time.Second)
	if d := sleeps(x); d > trafficInterval {
		t.Errorf("with a peer it wakes after %v", d)
	}
	w.paths[pair{addrA, addrB}].cut = true
	x.stream[addrB] = true
	w.run(5 * time.Second)
	x.setPeers()
	lost := x.prober.Counters().ProbesLost
	w.run(2 * outstandingFor)
	if d := sleeps(x); d < time.Hour {
		t.Errorf("without a peer any more it wakes after %v", d)
	}
	if x.prober.Counters().ProbesLost == lost {
		t.Error("probes that were under way are not counted as lost")
	}
	w.run(123 * ms)
	x.setPeers(peerAt(addrB))
	w.paths[pair{addrA, addrB}].cut = false
	exactly(t, w, x, y, addrA, addrB, 1500, 3*time.Second)
	for range 20 {
		w.run(773 * ms)
		if at := x.prober.engine.nextTraffic; !at.Equal(at.Truncate(trafficInterval)) || at.Sub(w.now) > trafficInterval {
			t.Errorf("at %v it looks for traffic at %v, want a whole multiple of %v", w.now, at, trafficInterval)
		}
	}
}
