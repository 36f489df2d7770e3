//go:build !race

package controlplane

import (
	"net/netip"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

// run is what happens to the cluster, one thing after the other.
func (s *simulation) run() {
	link := gossiptest.Link{Latency: simLatency, Jitter: simLatency, MTU: 1500}
	s.net.SetLink(link)
	s.form()
	idle := s.idle()

	// One change after the other, and many.
	if p99 := s.changes("change", 30, time.Second, idle); p99 > time.Second {
		s.t.Errorf("a change was at 99 %% of the nodes after %v, want 1 s at most", p99)
	}
	if p99 := s.changes("busy", 200, 50*time.Millisecond, idle); p99 > 2*time.Second {
		s.t.Errorf("at 20 changes a second one was at 99 %% of the nodes after %v, want 2 s at most", p99)
	}
	lossy := link
	lossy.Loss = 0.1
	s.net.SetLink(lossy)
	if p99 := s.changes("loss", 30, time.Second, idle); p99 > 2*time.Second {
		s.t.Errorf("with 10 %% loss a change was at 99 %% of the nodes after %v, want 2 s at most", p99)
	}
	s.net.SetLink(link)
	if n := s.deaths.Load(); n != 0 {
		s.t.Errorf("%d reports of a dead node, and none has died", n)
	}
	s.heal()
	s.die(idle)
}

// form starts the nodes one after the other, and has each join by a manager. They must not all start at one moment: what
// they do ten times a second would be in step, as it is in no real cluster.
func (s *simulation) form() {
	s.t.Helper()
	for i, n := range s.nodes {
		s.connect(n)
		if i > 0 {
			m := s.nodes[i%min(i, simManagers)]
			if _, err := n.gossip.Load().Join([]netip.AddrPort{netip.AddrPortFrom(m.addr, DefaultGossipPort)}); err != nil {
				s.t.Fatal(err)
			}
		}
		time.Sleep(time.Duration(s.draw(int64(20 * time.Millisecond))))
	}
	took := s.within(5*time.Minute, "everybody knows everybody", func() bool { return s.known() == 1 })
	s.results.add("form", "seconds until all know all", 0, took.Seconds())
	s.t.Logf("form    everybody knows everybody %v after the last start", took)
	s.cost("form", "cluster", s.traffic(), 1)
}

// idle returns what a second costs in which nothing happens.
func (s *simulation) idle() simTraffic {
	time.Sleep(time.Minute) // until the first exchanges are over
	const quiet = 60
	before := s.traffic()
	time.Sleep(quiet * time.Second)
	idle := s.traffic().less(before, 1).times(1.0 / quiet)
	s.cost("idle", "second", idle, 1)
	return idle
}

// changes moves k endpoints, one every so often, waits until all nodes know, and returns the time within which 99 % of them
// had a move, over all moves.
func (s *simulation) changes(scenario string, k int, every time.Duration, idle simTraffic) time.Duration {
	s.t.Helper()
	a := s.watch()
	before, start := s.traffic(), time.Now()
	for range k {
		s.move()
		time.Sleep(every)
	}
	s.within(time.Minute, "all changes are everywhere", s.everywhere)
	spent := time.Since(start).Seconds()
	s.cost(scenario, "change", s.traffic().less(before, 1).less(idle, spent), float64(k))
	return s.times(scenario, a, k)
}

// watch begins to note when moves arrive.
func (s *simulation) watch() *arrivals {
	synctest.Wait()
	a := &arrivals{begun: map[move]time.Time{}, seen: map[move][]time.Duration{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrived = a
	return a
}

// times reports how long moves took, and returns the 99th percentile of those to one node.
func (s *simulation) times(scenario string, a *arrivals, moves int) time.Duration {
	s.t.Helper()
	synctest.Wait()
	all := a.all()
	if want := moves * len(s.nodes); len(all) != want {
		s.t.Fatalf("%s: %d arrivals of moves were seen, want %d", scenario, len(all), want)
	}
	last := a.inForce(len(s.nodes))
	for i := range 201 {
		at := all[i*(len(all)-1)/200]
		s.results.add(scenario, "share of nodes that have a change, by ms", float64(at.Microseconds())/1e3, float64(i)/200)
	}
	p50, p99 := all[len(all)/2], all[len(all)*99/100]
	for name, d := range map[string]time.Duration{
		"p50 at a node": p50, "p99 at a node": p99, "p50 at all nodes": last[len(last)/2], "longest at all nodes": last[len(last)-1],
	} {
		s.results.add(scenario, "seconds, "+name, 0, d.Seconds())
	}
	s.t.Logf("%-7s a change is at a node after %v (median), %v (99 %%), at all after %v (median), %v (longest)", scenario,
		p50, p99, last[len(last)/2], last[len(last)-1])
	return p99
}

// heal cuts the cluster in half for two minutes, and looks at how it comes together again.
func (s *simulation) heal() {
	s.t.Helper()
	var half []netip.AddrPort // with the third manager
	cut := map[netip.Addr]bool{}
	for i := simManagers - 1; i < len(s.nodes); i += 2 {
		half = append(half, netip.AddrPortFrom(s.nodes[i].addr, DefaultGossipPort))
		cut[s.nodes[i].addr] = true
	}
	s.net.Partition(half)
	s.setCut(cut)
	time.Sleep(time.Minute)
	a := s.watch()
	const moves = 20
	for range moves {
		s.move()
		time.Sleep(time.Second)
	}
	time.Sleep(40 * time.Second)
	if got, want := s.informed(), len(s.nodes)-len(half); got != want {
		s.t.Errorf("%d nodes know what the managers in one half decided, want the %d of that half", got, want)
	}

	before, healed := s.traffic(), time.Now()
	s.net.Heal()
	s.setCut(nil)
	s.agree()
	informed, known := time.Duration(0), time.Duration(0)
	for informed == 0 || known == 0 {
		since := time.Since(healed)
		share, members := float64(s.informed())/float64(len(s.nodes)), s.known()
		s.results.add("heal", "share of nodes that have all changes, by s", since.Seconds(), share)
		s.results.add("heal", "share of members that are known, by s", since.Seconds(), members)
		if share == 1 && informed == 0 {
			informed = since
		}
		if members == 1 && known == 0 {
			known = since
		}
		if since > 5*time.Minute {
			s.t.Fatalf("5 minutes after the heal %.1f %% of the nodes have all changes, and %.1f %% of the members are known", 100*share, 100*members)
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.results.add("heal", "seconds until all have all changes", 0, informed.Seconds())
	s.results.add("heal", "seconds until all know all", 0, known.Seconds())
	s.t.Logf("heal    all changes are everywhere after %v, everybody knows everybody after %v", informed, known)
	s.cost("heal", "heal", s.traffic().less(before, 1), 1)
	if informed > time.Minute || known > 2*time.Minute {
		s.t.Errorf("changes were everywhere %v after the heal, and members known after %v: want 1 and 2 minutes at most", informed, known)
	}
	synctest.Wait()
	if got, want := len(a.all()), moves*len(s.nodes); got != want {
		s.t.Errorf("%d arrivals of the moves of one half were seen, want %d", got, want)
	}
}

func (s *simulation) setCut(half map[netip.Addr]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = half
}

// die takes one worker in ten away at once, without a farewell, and moves endpoints meanwhile.
func (s *simulation) die(idle simTraffic) {
	s.t.Helper()
	var dead, left []*simNode
	for i, n := range s.nodes {
		if i >= simManagers && i%10 == 0 {
			dead = append(dead, n)
		} else {
			left = append(left, n)
		}
	}
	var stopping sync.WaitGroup
	for _, n := range dead {
		stopping.Go(n.stop)
	}
	stopping.Wait()
	died := time.Now()
	s.nodes = left
	s.changes("die", 10, time.Second, idle)
	s.within(5*time.Minute, "everybody knows who died", func() bool {
		return !slices.ContainsFunc(left, func(n *simNode) bool { return n.gossip.Load().Stats().Members != len(left) })
	})
	took := time.Since(died)
	s.results.add("die", "seconds until all know who died", 0, took.Seconds())
	s.t.Logf("die     everybody knows of all %d dead after %v", len(dead), took)
}
