package pathmtu

import (
	"net/netip"
	"testing"
	"time"
)

// While datagrams go to a peer that answers nowhere, it is asked every five seconds at each address that is stated of it,
// whether it ever answered there or not, and is reached as soon as it does. That stays within what probes may cost.
func TestSilentPeerIsAskedEverywhere(t *testing.T) {
	const every = 5 * time.Second
	for name, c := range map[string]struct {
		known bool // it answered at its first address, and then no longer
		idle  bool // nothing was sent to it before
	}{
		"never answered": {}, "answered once": {known: true},
		"never answered, idle before": {idle: true}, "answered once, idle before": {known: true, idle: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			x, y := w.host(1500, addrA), w.host(1500, addrB)
			y.setPeers(peerAt(addrA))
			var all []netip.Addr
			links := map[netip.Addr][2]*path{}
			for a := addrB; len(all) < 8; a = a.Next() {
				there, back := w.join(addrA, a, path{mtu: 1400, delay: 10 * ms})
				w.hosts[a] = y
				there.cut, back.cut = true, true
				all, links[a] = append(all, a), [2]*path{there, back}
			}
			cut := func(a netip.Addr, cut bool) { links[a][0].cut, links[a][1].cut = cut, cut }
			cut(addrB, !c.known)
			asked := map[netip.Addr]time.Time{}
			var longest time.Duration
			x.setPeers(Peer{Address: addrB, Candidates: all})
			x.stream[addrB] = !c.idle
			w.run(100 * time.Second)
			cut(addrB, true)
			w.run(time.Minute)
			x.stream[addrB] = true
			w.run(every) // within which each has to be asked
			start, sent := w.now, x.sent
			for _, a := range all {
				asked[a] = start
			}
			w.tap = func(from, to netip.Addr, _ []byte, _ int) {
				if from == addrA {
					longest = max(longest, w.now.Sub(asked[to]))
					asked[to] = w.now
				}
			}
			const period = 2 * time.Minute
			w.run(period)
			for _, a := range all {
				longest = max(longest, w.now.Sub(asked[a]))
			}
			rate := float64(x.sent-sent) / period.Seconds()
			t.Logf("asked after %v at most, %.0f bytes/s", longest, rate)
			if longest > every {
				t.Errorf("asked after %v, want %v at most", longest, every)
			}
			if rate >= 2000 {
				t.Errorf("%.0f bytes/s", rate)
			}
			last := all[len(all)-1]
			cut(last, false)
			if took, ok := w.runUntil(every+time.Second, x.uses(addrB, last)); !ok {
				t.Errorf("not reached at %v within %v: %+v", last, took, x.prober.Status())
			}
		})
	}
}

// Who was never heard, and to whom nothing is sent, is left in peace.
func TestSilentPeerIsLeftInPeace(t *testing.T) {
	w := newWorld(t, 1)
	w.join(addrA, addrB, path{cut: true})
	x := w.host(1500, addrA)
	x.setPeers(peerAt(addrB))
	w.run(2 * time.Minute)
	sent := x.prober.Counters().ProbesSent
	w.run(5 * time.Minute)
	if n := x.prober.Counters().ProbesSent - sent; n > 10 {
		t.Errorf("%d probes in five minutes", n)
	}
}
