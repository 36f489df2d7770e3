//go:build !race

package gossip_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

// Keys are replaced node by node, each step at its own time on each node, and nobody loses anybody.
func TestKeyRotation(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 5, nil)
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		before, after := testKey(1), testKey(2)
		for _, step := range [][][]byte{{before, after}, {after, before}, {after}} {
			for _, n := range c.nodes {
				if err := n.SetKeys(step); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
			}
		}
		if err := c.nodes[0].Broadcast([]byte("under the new key")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute) // push/pull has come round by then
		for i, n := range c.nodes {
			if s := n.Stats(); s.RejectedKey != 0 {
				t.Errorf("node %d rejected %d for their key", i, s.RejectedKey)
			}
			for j := range c.nodes {
				if got := n.eventsOf(idOf(j)); i != j && len(got) != 1 {
					t.Errorf("node %d: events of node %d: %v, want alive alone", i, j, got)
				}
			}
			if i > 0 && n.count("under the new key") != 1 {
				t.Errorf("node %d did not get a message under the new key", i)
			}
		}
		// Without the middle step nodes do lose each other, or this test would show nothing.
		if err := c.nodes[0].SetKeys([][]byte{before}); err != nil {
			t.Fatal(err)
		}
		within(t, time.Minute, "a node with the old key alone is lost", func() bool {
			return c.nodes[1].in(gossip.Alive) == 4 && c.nodes[0].in(gossip.Alive) == 1
		})
	})
}

func TestStrangersStayOut(t *testing.T) {
	for name, change := range map[string]func(c *gossip.Config){
		"wrong key":     func(c *gossip.Config) { c.Keys = [][]byte{testKey(9)} },
		"wrong cluster": func(c *gossip.Config) { c.Cluster = otherCluster },
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				c := newCluster(t, 3, nil)
				c.join()
				within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
				s := c.add(3, addrOf(3), func(_ int, cfg *gossip.Config) {
					change(cfg)
					cfg.Rejoin = func() []netip.AddrPort { return []netip.AddrPort{addrOf(0), addrOf(1)} }
				})
				if n, err := s.Join([]netip.AddrPort{addrOf(0)}); n != 0 || err == nil {
					t.Errorf("joining reached %d, error %v, want 0 and an error", n, err)
				}
				if n, err := c.nodes[0].Join([]netip.AddrPort{s.addr}); n != 0 || err == nil {
					t.Errorf("joining the stranger reached %d, error %v, want 0 and an error", n, err)
				}
				if err := s.Broadcast([]byte("let me in")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute)
				rejected := uint64(0)
				for i, n := range c.nodes[:3] {
					if got := n.in(gossip.Alive); got != 3 || n.received() != 0 || len(n.eventsOf(s.id)) != 0 {
						t.Errorf("node %d has %d members, %d messages, and events %v", i, got, n.received(), n.eventsOf(s.id))
					}
					st := n.Stats()
					if name == "wrong key" {
						rejected += st.RejectedKey
					} else {
						rejected += st.RejectedCluster
					}
				}
				if s.in(gossip.Alive) != 1 {
					t.Errorf("the stranger has %d members, want itself", s.in(gossip.Alive))
				}
				if rejected == 0 {
					t.Error("nothing was counted as rejected")
				}
			})
		})
	}
}

// Everything that was ever sent is sent again, twice, to everybody, from somebody else. Nobody goes, nobody who
// has left comes back, and messages are delivered once.
func TestReplayIsHarmless(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 4, nil)
		var mu sync.Mutex
		var recorded []gossiptest.Packet
		c.net.Tap(func(p gossiptest.Packet) {
			mu.Lock()
			defer mu.Unlock()
			recorded = append(recorded, p)
		})
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		for i := range 10 {
			if err := c.nodes[0].Broadcast(message(i, 200)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Second)
		if err := c.nodes[3].Leave(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		c.nodes[3].stop()
		time.Sleep(30 * time.Second)
		c.net.Tap(nil)
		rest := c.nodes[:3]
		for range 2 {
			for _, p := range recorded {
				for _, to := range rest {
					if err := c.net.Inject(gossiptest.Packet{From: addrOf(77), To: to.addr, Payload: p.Payload}); err != nil {
						t.Fatal(err)
					}
				}
			}
			time.Sleep(time.Minute)
		}
		for i, n := range rest {
			if got := n.in(gossip.Alive); got != 3 {
				t.Errorf("node %d has %d members, want 3: %v", i, got, n.Members())
			}
			for m := range 10 {
				if got := n.count(string(message(m, 200))); got > 1 {
					t.Errorf("node %d got message %d %d times", i, m, got)
				}
			}
		}
	})
}

// Whatever comes in that is not sealed, or is sealed and cut, is counted and does nothing.
func TestGarbage(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 2, nil)
		var mu sync.Mutex
		var sample []byte
		c.net.Tap(func(p gossiptest.Packet) {
			mu.Lock()
			defer mu.Unlock()
			if p.To == addrOf(1) && len(p.Payload) > len(sample) {
				sample = p.Payload
			}
		})
		c.join()
		within(t, 10*time.Second, "both know each other", func() bool { return full(c.nodes) })
		time.Sleep(10 * time.Second)
		c.net.Tap(nil)
		before := c.nodes[1].Stats()
		sent := uint64(0)
		inject := func(b []byte) {
			if err := c.net.Inject(gossiptest.Packet{From: addrOf(9), To: addrOf(1), Payload: b}); err != nil {
				t.Fatal(err)
			}
			sent++
			time.Sleep(time.Millisecond)
		}
		for n := range len(sample) {
			inject(sample[:n])
			flipped := append([]byte(nil), sample...)
			flipped[n] ^= 1
			inject(flipped)
		}
		inject(append(sample[:len(sample):len(sample)], 0))
		after := c.nodes[1].Stats()
		rejected := after.RejectedCluster + after.RejectedKey + after.RejectedMalformed -
			before.RejectedCluster - before.RejectedKey - before.RejectedMalformed
		if rejected != sent {
			t.Errorf("%d of %d forged packets were rejected", rejected, sent)
		}
	})
}
