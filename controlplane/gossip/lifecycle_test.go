//go:build !race

package gossip_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

func TestLeaveIsNotDeath(t *testing.T) {
	for _, size := range []int{2, 3, 12} {
		virtual(t, func(t *testing.T) {
			c := newCluster(t, size, nil)
			c.join()
			within(t, 30*time.Second, "all know each other", func() bool { return full(c.nodes) })
			time.Sleep(10 * time.Second)
			leaver, begin := c.nodes[1], time.Now()
			if err := leaver.Leave(5 * time.Second); err != nil {
				t.Fatal(err)
			}
			// It is told several times: in two rounds, or in four if there is one other node only.
			if took := time.Since(begin); took > 420*time.Millisecond || size > 2 && took > 120*time.Millisecond {
				t.Errorf("%d nodes: the farewell took %v, which is more than the next rounds", size, took)
			}
			leaver.stop()
			time.Sleep(time.Minute)
			for i, n := range c.nodes {
				if i == 1 {
					continue
				}
				if got := n.eventsOf(leaver.id); !slices.Equal(got, []gossip.Kind{gossip.Alive, gossip.Left}) {
					t.Errorf("%d nodes: node %d saw %v, want alive, left", size, i, got)
				}
			}
			if err := leaver.Leave(time.Second); err == nil {
				t.Error("leaving after Close succeeded")
			}
			if err := leaver.Close(); err != nil {
				t.Errorf("closing again: %v", err)
			}
			if _, err := leaver.Join([]netip.AddrPort{addrOf(0)}); err == nil {
				t.Error("joining after Close succeeded")
			}
		})
	}
}

func TestDeathIsReported(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 5, nil)
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		c.nodes[4].stop()
		took := within(t, 45*time.Second, "all know that node 4 is dead", func() bool {
			for _, n := range c.nodes[:4] {
				if !slices.Equal(n.eventsOf(idOf(4)), []gossip.Kind{gossip.Alive, gossip.Suspect, gossip.Dead}) {
					return false
				}
			}
			return true
		})
		t.Logf("after %v", took)
		if s := c.nodes[0].Stats(); s.Members != 4 || s.Suspect != 0 {
			t.Errorf("%d members, %d suspect, want 4 and 0", s.Members, s.Suspect)
		}
		time.Sleep(15 * time.Minute)
		if got := len(c.nodes[0].Members()); got != 4 {
			t.Errorf("after a quarter of an hour %d nodes are listed, want 4: %v", got, c.nodes[0].Members())
		}
	})
}

// A machine that stalls for 8 s in a cluster of three is suspect and comes back. With memberlist's usual
// suspicion it would be dead.
func TestGraceInSmallClusters(t *testing.T) {
	for _, suspicion := range []time.Duration{0, 4 * time.Second} {
		virtual(t, func(t *testing.T) {
			all := []netip.AddrPort{addrOf(0), addrOf(1), addrOf(2)}
			c := newCluster(t, 3, func(_ int, cfg *gossip.Config) {
				cfg.Timing.Suspicion = suspicion
				cfg.Rejoin = func() []netip.AddrPort { return all }
			})
			c.join()
			within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
			time.Sleep(5 * time.Second)
			c.net.Partition([]netip.AddrPort{addrOf(2)})
			time.Sleep(8 * time.Second)
			c.net.Heal()
			time.Sleep(time.Minute)
			died := false
			for i, n := range c.nodes {
				for j := range c.nodes {
					died = died || slices.Contains(n.eventsOf(idOf(j)), gossip.Dead)
				}
				if got := n.in(gossip.Alive); got != 3 {
					t.Errorf("suspicion %v: node %d has %d members after the stall, want 3: %v", suspicion, i, got, n.Members())
				}
			}
			if want := suspicion != 0; died != want {
				t.Errorf("suspicion %v: a node was reported dead: %v, want %v", suspicion, died, want)
			}
			if got := c.nodes[0].eventsOf(idOf(2)); suspicion == 0 && !slices.Equal(got, []gossip.Kind{gossip.Alive, gossip.Suspect, gossip.Alive}) {
				t.Errorf("events of the node that stalled: %v, want alive, suspect, alive", got)
			}
		})
	}
}

// A node dies and comes back under the same ID at another address.
func TestNewAddress(t *testing.T) {
	virtual(t, func(t *testing.T) {
		seldom := func(_ int, cfg *gossip.Config) { cfg.Timing.PushPull = time.Hour } // which would do it too, by chance
		c := newCluster(t, 3, seldom)
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		c.nodes[2].stop()
		managers := []netip.AddrPort{addrOf(0), addrOf(1)}
		back := c.add(2, addrOf(9), func(i int, cfg *gossip.Config) {
			seldom(i, cfg)
			cfg.Rejoin = func() []netip.AddrPort { return managers }
			cfg.RejoinAfter = func() time.Duration { return 10 * time.Second }
		})
		if _, err := back.Join(managers); err != nil {
			t.Logf("joining: %v", err)
		}
		// 13 s until the old one is dead, and 7 s more; then the next round.
		took := within(t, 35*time.Second, "node 2 is a member at its new address", func() bool {
			for _, n := range c.nodes[:2] {
				if n.in(gossip.Alive) != 3 {
					return false
				}
				i := slices.IndexFunc(n.Members(), func(m gossip.Member) bool { return m.NodeID == idOf(2) })
				if m := n.Members()[i]; m.State != gossip.Alive || m.Addr != addrOf(9) {
					return false
				}
			}
			return true
		})
		t.Logf("after %v", took)
	})
}

// What a node sends gets through, what is sent to it does not. Others relay nothing for messages, but it must
// not be a source of disorder: after that all is as before.
func TestOneWayPartition(t *testing.T) {
	virtual(t, func(t *testing.T) {
		managers := []netip.AddrPort{addrOf(0), addrOf(1), addrOf(2)}
		c := newCluster(t, 5, func(_ int, cfg *gossip.Config) { cfg.Rejoin = func() []netip.AddrPort { return managers } })
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		others := []netip.AddrPort{addrOf(0), addrOf(1), addrOf(2), addrOf(3)}
		c.net.CutOneWay(others, []netip.AddrPort{addrOf(4)})
		time.Sleep(3 * time.Minute)
		for i, n := range c.nodes[:4] {
			for j := range 4 {
				if i != j && slices.Contains(n.eventsOf(idOf(j)), gossip.Dead) {
					t.Errorf("node %d reported node %d dead, which was never cut off: %v", i, j, n.eventsOf(idOf(j)))
				}
			}
		}
		c.net.Heal()
		took := within(t, time.Minute, "all know each other again", func() bool { return full(c.nodes) })
		t.Logf("healed after %v", took)
	})
}

// An ID at two addresses: the first one stays, nobody panics, and the log says so.
func TestTwoNodesOneID(t *testing.T) {
	virtual(t, func(t *testing.T) {
		var log logBuffer
		c := newCluster(t, 3, func(_ int, cfg *gossip.Config) { cfg.Log = log.logger() })
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		c.add(2, addrOf(9), nil)
		if _, err := c.nodes[3].Join([]netip.AddrPort{addrOf(0)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		for _, m := range c.nodes[0].Members() {
			if m.NodeID == idOf(2) && m.Addr != addrOf(2) {
				t.Errorf("the address of %s has become %v", m.NodeID, m.Addr)
			}
		}
		if !strings.Contains(log.String(), "Conflicting address") {
			t.Error("the log does not tell of the conflict")
		}
	})
}

// Streams that say nothing, or never end, take no room from members and are ended.
func TestSlowStrangers(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 2, nil)
		stranger, err := c.net.Transport(addrOf(9))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stranger.Shutdown() }()
		for i := range 200 {
			s, err := stranger.DialTimeout(addrOf(0).String(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			if i < 8 {
				go func() { // a byte a second, of a preamble that begins well
					for _, b := range append([]byte{2, 0, 0, 0, 0, 0xc1, 0x05, 0x7e, 0x12}, make([]byte, 100)...) {
						if _, err := s.Write([]byte{b}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
			}
		}
		synctest.Wait()
		if s := c.nodes[0].Stats(); s.RejectedBusy != 200-16 {
			t.Errorf("%d of 200 streams from one address were turned away at once, want 184", s.RejectedBusy)
		}
		start := time.Now()
		if _, err := c.nodes[1].Join([]netip.AddrPort{addrOf(0)}); err != nil || time.Since(start) > time.Second {
			t.Errorf("a member joined in %v with error %v", time.Since(start), err)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s := c.nodes[0].Stats(); s.RejectedMalformed != 16 {
			t.Errorf("%d of the other 16 streams were ended, want all", s.RejectedMalformed)
		}
	})
}

// A closed node calls nobody, and what memberlist leaves behind ends: synctest fails on what does not.
func TestCloseIsQuiet(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 4, nil)
		c.net.SetLink(gossiptest.Link{Latency: 20 * time.Millisecond})
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		for i := range 20 {
			if err := c.nodes[i%4].Broadcast(message(i, 300)); err != nil {
				t.Fatal(err)
			}
		}
		n := c.nodes[2]
		c.net.Partition([]netip.AddrPort{addrOf(0)}) // so that probes, suspicions and dials are under way
		time.Sleep(3 * time.Second)
		start := time.Now()
		n.stop()
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("Close took %v", took)
		}
		before, events := n.received(), len(n.eventsOf(idOf(0)))
		time.Sleep(time.Minute)
		if n.received() != before || len(n.eventsOf(idOf(0))) != events {
			t.Error("a closed node called its owner")
		}
	})
}
