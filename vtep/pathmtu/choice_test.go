package pathmtu

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/probe"
)

func secretKeys(t testing.TB, letters string) probe.Keys {
	t.Helper()
	var secrets [][]byte
	for _, l := range letters {
		secrets = append(secrets, []byte(strings.Repeat(string(l), probe.KeyLen)))
	}
	keys, err := probe.NewKeys(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// floating is two hosts with an internal and a floating address each, which know each other's both.
func floating(t testing.TB, seed uint64, internal, outside path) (w *world, x, y *host, links [4]*path) {
	w = newWorld(t, seed)
	links[0], links[1] = w.join(addrA, addrB, internal)
	// A host sends from its internal address to the floating one of the other, and a NAT puts its floating one there.
	there, back := outside, outside
	there.seenAs, back.seenAs = floatA, floatB
	links[2], links[3] = &there, &back
	w.paths[pair{addrA, floatB}], w.paths[pair{addrB, floatA}] = links[2], links[3]
	x, y = w.host(1500, addrA), w.host(1500, addrB)
	w.hosts[floatA], w.hosts[floatB] = x, y
	w.inside[floatA], w.inside[floatB] = addrA, addrB
	keys := secretKeys(t, "k")
	x.prober.SetKeys(keys, addrA)
	y.prober.SetKeys(keys, addrB)
	x.setPeers(peerAt(addrB, floatB))
	y.setPeers(peerAt(addrA, floatA))
	return w, x, y, links
}

func (h *host) uses(peer, remote addrOf) func() bool {
	return func() bool {
		c := h.told[peer]
		return c.Remote == remote && c.State == StateReachable
	}
}

// The internal path is used, another one within five seconds when it is cut, and it again when it is back.
func TestMove(t *testing.T) {
	var slowest time.Duration
	for seed := range uint64(200) {
		loss := float64(seed%2) * 0.01
		delay := []time.Duration{100 * time.Microsecond, 10 * ms, 50 * ms}[seed%3]
		w, x, y, links := floating(t, seed, path{mtu: 1500, delay: delay, loss: loss}, path{mtu: 1400, delay: delay + delay/8, loss: loss})
		x.stream[addrB], y.stream[addrA] = true, true
		exactly(t, w, x, y, addrA, addrB, 1500, 3*time.Second)
		w.run(10*time.Second + time.Duration(seed)*29*ms)
		if !x.uses(addrB, addrB)() || !y.uses(addrA, addrA)() {
			t.Fatalf("seed %d: not the internal path but %+v and %+v", seed, x.told[addrB], y.told[addrA])
		}
		before := x.prober.Counters().Moves
		links[0].cut, links[1].cut = true, true
		took, ok := w.runUntil(5*time.Second, func() bool { return x.uses(addrB, floatB)() && y.uses(addrA, floatA)() })
		if !ok {
			t.Fatalf("seed %d: not moved after %v: %+v", seed, took, x.told[addrB])
		}
		slowest = max(slowest, took)
		if _, ok := w.runUntil(2*time.Second, func() bool { return x.settledAt(addrB, 1400)() && y.settledAt(addrA, 1400)() }); !ok {
			t.Fatalf("seed %d: moved to a path of 1400, which is %+v", seed, x.told[addrB])
		}
		w.run(30 * time.Second)
		links[0].cut, links[1].cut = false, false
		if took, ok := w.runUntil(15*time.Second, func() bool { return x.uses(addrB, addrB)() && y.uses(addrA, addrA)() }); !ok {
			t.Fatalf("seed %d: not back after %v: %+v", seed, took, x.prober.Status()[0])
		}
		w.run(time.Minute)
		if n := x.prober.Counters().Moves - before; n != 2 {
			t.Fatalf("seed %d: moved %d times, want there and back", seed, n)
		}
	}
	t.Logf("the slowest move took %v", slowest)
}

// What decides: grade, round-trip time, size, order.
func TestPreference(t *testing.T) {
	for _, c := range []struct {
		name            string
		first, second   path
		wantSecond      bool
		why             string
		swap            bool
		refuse, restore bool
	}{
		{name: "alike", first: path{mtu: 1500, delay: 10 * ms}, second: path{mtu: 1500, delay: 10 * ms}, why: "not preferred"},
		{name: "a little slower", first: path{mtu: 1500, delay: 12 * ms}, second: path{mtu: 1500, delay: 10 * ms}, why: "not preferred"},
		{name: "much slower", first: path{mtu: 1500, delay: 20 * ms}, second: path{mtu: 1400, delay: 10 * ms}, wantSecond: true, why: "slower"},
		{name: "slower by less than counts", first: path{mtu: 1500, delay: 500 * time.Microsecond}, second: path{mtu: 1500, delay: 100 * time.Microsecond}, why: "not preferred"},
		{name: "narrower", first: path{mtu: 1400, delay: 10 * ms}, second: path{mtu: 1500, delay: 10 * ms}, wantSecond: true, why: "narrower"},
		{name: "dead", first: path{cut: true}, second: path{mtu: 1300, delay: 90 * ms}, wantSecond: true, why: "never answered"},
		{name: "hardly passable", first: path{mtu: 400, delay: ms}, second: path{mtu: 1300, delay: 50 * ms}, wantSecond: true, why: "do not get through"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, x, _, _ := floating(t, 1, c.first, c.second)
			want, other := addrB, floatB
			if c.wantSecond {
				want, other = floatB, addrB
			}
			w.run(30 * time.Second)
			s := x.prober.Status()[0]
			if s.Remote != want || s.Local != addrA || !slices.Equal(s.Accept, []addrOf{addrB, floatB}) {
				t.Fatalf("status %+v", s)
			}
			for _, cand := range s.Candidates {
				if cand.Chosen != (cand.Remote == want) || cand.Remote == other && !strings.Contains(cand.Why, c.why) {
					t.Errorf("candidate %+v, want why %q", cand, c.why)
				}
			}
			moves := x.prober.Counters().Moves
			x.stream[addrB] = true
			w.run(5 * time.Minute)
			if n := x.prober.Counters().Moves - moves; n != 0 {
				t.Errorf("%d moves with nothing changed", n)
			}
		})
	}
}

// Two paths whose times there and back vary by about as much as counts do not take turns.
func TestHysteresis(t *testing.T) {
	w, x, _, _ := floating(t, 1, path{mtu: 1500, delay: 11 * ms, jitter: 6 * ms}, path{mtu: 1500, delay: 10 * ms, jitter: 2 * ms})
	x.stream[addrB] = true
	w.run(30 * time.Minute)
	if n := x.prober.Counters().Moves; n > 6 {
		t.Errorf("%d moves in half an hour", n)
	}
}

// A host that was busy when it first measured a path does not hold that against the path for long.
func TestBusyAtFirst(t *testing.T) {
	w, x, _, links := floating(t, 1, path{mtu: 1500, delay: 40 * ms}, path{mtu: 1500, delay: 5 * ms})
	x.stream[addrB] = true
	w.run(2 * time.Second)
	if !x.uses(addrB, floatB)() {
		t.Fatalf("choice %+v", x.told[addrB])
	}
	links[0].delay, links[1].delay = ms, ms
	if took, ok := w.runUntil(10*time.Second, x.uses(addrB, addrB)); !ok {
		t.Errorf("after %v: %+v", took, x.prober.Status()[0])
	}
	// What only sometimes takes long is as good as it is the rest of the time.
	links[0].jitter, links[1].jitter = 8*ms, 8*ms
	w.run(10 * time.Minute)
	if n := x.prober.Counters().Moves; n != 1 || !x.uses(addrB, addrB)() {
		t.Errorf("%d moves, choice %+v", n, x.told[addrB])
	}
}

// The peer is behind a NAT whose address nobody has stated: it is observed, tried and used.
func TestObserved(t *testing.T) {
	w := newWorld(t, 1)
	there, back := w.join(addrA, floatB, path{mtu: 1450, delay: 10 * ms})
	delete(w.paths, pair{floatB, addrA})
	back.seenAs = floatB
	w.paths[pair{addrB, addrA}] = back
	x, y := w.host(1500, addrA), w.host(1500, addrB)
	w.hosts[floatB], w.inside[floatB] = y, addrB
	x.ways = func(remote addrOf) (Route, error) {
		return Route{Local: addrA, Device: "eth0", MTU: 1500}, nil
	}
	keys := secretKeys(t, "k")
	x.prober.SetKeys(keys, addrA)
	y.prober.SetKeys(keys, addrB)
	x.setPeers(peerAt(addrB))
	w.run(2 * time.Second)
	y.setPeers(peerAt(addrA))
	took, ok := w.runUntil(3*time.Second, func() bool { return x.uses(addrB, floatB)() && x.settledAt(addrB, 1450)() })
	if !ok {
		t.Fatalf("after %v %+v", took, x.prober.Status())
	}
	c := x.told[addrB]
	if !slices.Equal(c.Accept, []addrOf{addrB, floatB}) {
		t.Errorf("accepts %v", c.Accept)
	}
	s := x.prober.Status()[0]
	if len(s.Candidates) != 2 || s.Candidates[1].Origin != OriginObserved || !s.Candidates[1].Chosen || s.Candidates[1].SeenAs != addrA {
		t.Errorf("status %+v", s)
	}
	// Silent for a minute, it is forgotten.
	there.cut, back.cut = true, true
	w.run(2 * time.Minute)
	if s := x.prober.Status()[0]; len(s.Candidates) != 1 || s.Remote != addrB {
		t.Errorf("status after silence %+v", s)
	}
	if c := x.told[addrB]; !slices.Equal(c.Accept, []addrOf{addrB}) {
		t.Errorf("accepts %v", c.Accept)
	}
}

// Without a route there is no candidate, and routes that come back are used.
func TestNoRoute(t *testing.T) {
	w, x, _, links := floating(t, 1, path{mtu: 1500, delay: ms}, path{mtu: 1400, delay: ms})
	w.run(time.Second)
	ways := x.ways
	x.ways = func(remote addrOf) (Route, error) {
		if remote == addrB {
			return Route{}, errors.New("unplugged")
		}
		return ways(remote)
	}
	x.prober.RoutesChanged()
	x.wake()
	if !x.uses(addrB, floatB)() {
		t.Fatalf("without a route %+v", x.told[addrB])
	}
	if n := x.prober.Counters().Moves; n != 1 {
		t.Errorf("%d moves", n)
	}
	if why := x.prober.Status()[0].Candidates[0].Why; !strings.Contains(why, "unplugged") {
		t.Errorf("why %q", why)
	}
	x.ways = func(addrOf) (Route, error) { return Route{}, errors.New("all unplugged") }
	x.prober.RoutesChanged()
	x.wake()
	if c := x.told[addrB]; c.State != StateNoRoute || c.Path != 1400 {
		t.Errorf("without any route %+v", c)
	}
	x.ways = ways
	x.stream[addrB] = true
	if took, ok := w.runUntil(20*time.Second, x.uses(addrB, addrB)); !ok {
		t.Errorf("after %v %+v", took, x.prober.Status()[0])
	}
	// When nobody answers any more, it is the route that decides.
	for _, l := range links {
		l.cut = true
	}
	w.run(time.Minute)
	n := x.prober.Counters().Moves
	x.ways = func(remote addrOf) (Route, error) {
		if remote == x.told[addrB].Remote {
			return Route{}, errors.New("unplugged")
		}
		return ways(remote)
	}
	was := x.told[addrB].Remote
	x.prober.RoutesChanged()
	x.wake()
	if c := x.told[addrB]; c.Remote == was || x.prober.Counters().Moves != n+1 {
		t.Errorf("%d moves, choice %+v", x.prober.Counters().Moves-n, c)
	}
}

// Peers and candidates can be replaced at any time; what is known of the others stays.
func TestSetPeers(t *testing.T) {
	w, x, _, _ := floating(t, 1, path{mtu: 1500, delay: ms}, path{mtu: 1400, delay: ms})
	w.run(time.Second)
	sent := x.prober.Counters().ProbesSent
	x.setPeers(peerAt(addrB, floatB), Peer{}, peerAt(addrB), Peer{Address: addrA6, Candidates: []addrOf{{}}})
	if n := x.prober.Counters().ProbesSent; n != sent {
		t.Errorf("%d probes for peers that were known", n-sent)
	}
	if got := x.prober.Status(); len(got) != 2 || got[0].Peer != addrB || got[1].Peer != addrA6 || got[1].State != StateNoRoute {
		t.Errorf("status %+v", got)
	}
	x.setPeers(Peer{Address: floatB})
	w.run(time.Second)
	if c := x.told[floatB]; c.Remote != floatB || c.State == StateReachable {
		t.Errorf("choice %+v: the peer goes by another name there", c)
	}
	if why := x.prober.Status()[0].Candidates[0].Why; !strings.Contains(why, "another node") {
		t.Errorf("why %q", why)
	}
	x.setPeers(peerAt(addrB, floatB))
	x.setPeers(Peer{Address: addrB, Candidates: []addrOf{floatB}})
	w.run(time.Second)
	if s := x.prober.Status()[0]; len(s.Candidates) != 2 || s.Candidates[0].Remote != floatB {
		t.Errorf("status %+v", s)
	}
	x.prober.RoutesChanged()
	w.run(20 * time.Second)
	w.runUntil(20*time.Second, func() bool {
		return x.prober.Counters().ProbesSent > x.prober.Counters().ProbesAcked+x.prober.Counters().ProbesLost
	})
	x.setPeers()
	if w.run(time.Second); x.prober.Counters().Ignored[IgnoreStale] == 0 {
		t.Error("the acknowledgement of one that is no longer a peer was taken")
	}
	sent = x.prober.Counters().ProbesSent
	w.run(time.Minute)
	if n := x.prober.Counters().ProbesSent; n != sent || len(x.prober.Status()) != 0 {
		t.Errorf("%d probes without peers", n-sent)
	}
}

// Many peers that are stated at once are not probed all at once.
func TestManyPeers(t *testing.T) {
	w := newWorld(t, 1)
	x := w.host(1500, addrA)
	var peers []Peer
	addr := addrB
	for range 400 {
		w.join(addrA, addr, path{mtu: 1400, delay: 5 * ms})
		peers = append(peers, peerAt(addr))
		y := w.host(1500, addr)
		y.setPeers(peerAt(addrA))
		addr = addr.Next()
	}
	x.sent = 0
	x.setPeers(peers...)
	if x.sent > 150_000 {
		t.Errorf("%d bytes at once", x.sent)
	}
	w.run(3 * time.Second)
	for _, p := range peers {
		if !x.settledAt(p.Address, 1400)() {
			t.Fatalf("peer %v: %+v", p.Address, x.told[p.Address])
		}
	}
}

// A better path that comes and goes is not used before it has stayed.
func TestFlapping(t *testing.T) {
	for _, c := range []struct{ up, down time.Duration }{{2500 * ms, 10 * time.Second}, {1700 * ms, 1500 * ms}, {300 * ms, 700 * ms}} {
		w, x, _, links := floating(t, 1, path{mtu: 1500, delay: ms}, path{mtu: 1400, delay: ms})
		x.stream[addrB] = true
		links[0].cut, links[1].cut = true, true
		w.run(5 * time.Second)
		if !x.uses(addrB, floatB)() {
			t.Fatalf("choice %+v", x.told[addrB])
		}
		seen := 0
		for range 100 {
			links[0].cut, links[1].cut = false, false
			w.runUntil(c.up, func() bool {
				if x.prober.Status()[0].Candidates[0].State == StateReachable {
					seen++
				}
				return false
			})
			links[0].cut, links[1].cut = true, true
			w.run(c.down)
		}
		if n := x.prober.Counters().Moves; n != 0 || seen == 0 && c.up > time.Second {
			t.Errorf("up %v, down %v: %d moves", c.up, c.down, n)
		}
		links[0].cut, links[1].cut = false, false
		if took, ok := w.runUntil(10*time.Second, x.uses(addrB, addrB)); !ok {
			t.Errorf("up %v, down %v: not back after %v: %+v", c.up, c.down, took, x.prober.Status()[0])
		}
	}
}

// When the chosen path is cut just as another comes back, that one is found as fast.
func TestLastResort(t *testing.T) {
	var slowest time.Duration
	for phase := range 30 {
		w, x, _, links := floating(t, 1, path{mtu: 1500, delay: ms}, path{mtu: 1400, delay: ms})
		x.stream[addrB] = true
		links[2].cut, links[3].cut = true, true
		w.run(40*time.Second + time.Duration(phase)*170*ms)
		links[0].cut, links[1].cut = true, true
		links[2].cut, links[3].cut = false, false
		took, ok := w.runUntil(3*time.Second, x.uses(addrB, floatB))
		if !ok {
			t.Fatalf("phase %d: not moved after %v: %+v", phase, took, x.prober.Status())
		}
		slowest = max(slowest, took)
	}
	t.Logf("the slowest took %v", slowest)
}
