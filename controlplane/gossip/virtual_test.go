//go:build !race

// Under the race detector testing/synctest crashes before Go 1.27. sockets_test.go runs the same code there.

package gossip_test

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

// leftover is how long goroutines of memberlist may outlive Close, see doc.go. synctest stops the time when f
// has ended, and fails on goroutines that are still there.
const leftover = 4*time.Second + 100*time.Millisecond

// virtual runs f in virtual time.
func virtual(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(leftover) }) // runs after all that f registers
		f(t)
	})
}

func TestConverge(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 5, nil)
		c.join()
		took := within(t, 10*time.Second, "all five know each other", func() bool { return full(c.nodes) })
		t.Logf("five nodes know each other after %v", took)
		const messages = 20
		for i := range messages {
			if err := c.nodes[i%5].Broadcast(message(i, 100+i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		took = within(t, 5*time.Second, "every node has every message of others", func() bool {
			for _, n := range c.nodes {
				if n.received() != messages-messages/5 {
					return false
				}
			}
			return true
		})
		t.Logf("%d messages are everywhere after %v", messages, took)
		time.Sleep(10 * time.Second)
		for _, n := range c.nodes {
			for i := range messages {
				if got := n.count(string(message(i, 100+i))); got > 1 {
					t.Errorf("%s got message %d %d times, want once", n.id, i, got)
				}
			}
			if s := n.Stats(); s.Queued != 0 || s.Members != 5 || s.QueueDropped != 0 || s.RejectedMalformed+s.RejectedKey != 0 {
				t.Errorf("%s: %+v", n.id, s)
			}
		}
	})
}

// A burst, as when a host starts many containers, does not make what comes after it wait.
func TestBurst(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 5, nil)
		c.join()
		within(t, 10*time.Second, "all five know each other", func() bool { return full(c.nodes) })
		const messages = 500
		// Whom a packet goes to is left to chance, which one burst in eight has against it, and one in a thousand
		// so that only digests would tell some node of the last message. Out of turn each burst would take 1.7 s.
		best := time.Hour
		for burst := range 6 {
			for i := range messages {
				if err := c.nodes[0].Broadcast(message(burst*messages+i, 250)); err != nil {
					t.Fatal(err)
				}
			}
			last := string(message(burst*messages+messages-1, 250))
			took := time.Duration(0)
			missing := func() bool {
				return slices.ContainsFunc(c.nodes[1:], func(n *node) bool { return n.count(last) == 0 })
			}
			for start := time.Now(); missing() && took < 5*time.Second; took = time.Since(start) {
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("the last of %d messages is everywhere after %v", messages, took)
			best = min(best, took)
			time.Sleep(10 * time.Second) // until no queue has any
		}
		if best > time.Second {
			t.Errorf("the last of %d messages was everywhere after %v at best, want 1 s at most", messages, best)
		}
	})
}

// Without others that spread it a message reaches some of the members, and with a bad signature nobody spreads it.
func TestRefusedMessageIsNotSpread(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 40, nil)
		for _, n := range c.nodes {
			n.refuse = true
		}
		c.join()
		within(t, time.Minute, "all know each other", func() bool { return full(c.nodes) })
		time.Sleep(time.Minute)
		if err := c.nodes[0].Broadcast([]byte("forged")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		reached := 0
		for _, n := range c.nodes {
			reached += n.count("forged")
			if s := n.Stats(); s.Spread != 0 {
				t.Errorf("%s spread %d messages", n.id, s.Spread)
			}
		}
		if reached == 0 || reached > 10 {
			t.Errorf("a message that nobody spreads reached %d nodes, want a few", reached)
		}
	})
}

// What loss keeps from a node, the node hears of. With 10 % that is next to nothing, with half of all packets some.
func TestLossIsRepairedByDigests(t *testing.T) {
	for _, loss := range []float64{0.1, 0.5} {
		virtual(t, func(t *testing.T) {
			c := newCluster(t, 5, nil)
			c.join()
			within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
			c.net.SetLink(gossiptest.Link{Latency: time.Millisecond, Loss: loss})
			const messages = 200
			for i := range messages {
				if err := c.nodes[0].Broadcast(message(i, 250)); err != nil {
					t.Fatal(err)
				}
				c.nodes[0].know(gossip.Digest{Index: uint64(i + 1)})
				time.Sleep(50 * time.Millisecond)
			}
			time.Sleep(10 * time.Second)
			missed := 0
			for _, n := range c.nodes[1:] {
				have := n.received()
				if missed += messages - have; have == messages {
					n.know(gossip.Digest{Index: messages})
				}
				n.forgetBehind()
			}
			t.Logf("%.0f %% loss: %d of %d deliveries were missed", 100*loss, missed, 4*messages)
			if missed == 0 && loss > 0.1 || missed > messages/2 {
				t.Errorf("%d deliveries were missed: this test shows nothing", missed)
			}
			// With half of all packets lost few probes are answered; then push/pull tells.
			time.Sleep(2 * time.Minute)
			for _, n := range c.nodes[1:] {
				if n.received() < messages && len(n.behindWhom()) == 0 {
					t.Errorf("%s has %d of %d messages and has not been told", n.id, n.received(), messages)
				}
			}
			for _, m := range c.nodes[0].Members() {
				if loss <= 0.1 && m.State != gossip.Alive {
					t.Errorf("10 %% loss made %s %v", m.NodeID, m.State)
				}
			}
		})
	}
}

func TestBehind(t *testing.T) {
	for name, tell := range map[string]func(n *node) error{
		"by probes":       func(*node) error { return nil },
		"by announcement": func(n *node) error { return n.Announce() },
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				c := newCluster(t, 5, nil)
				c.join()
				within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
				want := gossip.Digest{Index: 7, Sum: 9}
				c.nodes[2].know(want)
				if err := tell(c.nodes[2]); err != nil {
					t.Fatal(err)
				}
				took := within(t, 15*time.Second, "everybody else is behind node 2", func() bool {
					for i, n := range c.nodes {
						if i != 2 && !slices.Equal(n.behindWhom(), []string{idOf(2)}) {
							return false
						}
					}
					return true
				})
				t.Logf("after %v", took)
				if got := c.nodes[2].behindWhom(); got != nil {
					t.Errorf("node 2 is behind %v, want nobody", got)
				}
				if name == "by announcement" && took > 2*time.Second {
					t.Errorf("an announcement took %v", took)
				}
				n := c.nodes[0]
				n.mu.Lock()
				defer n.mu.Unlock()
				if n.behind[idOf(2)] != want {
					t.Errorf("told %v, want %v", n.behind[idOf(2)], want)
				}
			})
		})
	}
}

func managersOf(c *cluster, k int) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range k {
		out = append(out, c.nodes[i].addr)
	}
	return out
}

// A partition that has lasted until both sides have forgotten each other heals by Rejoin, and only by that.
func TestPartitionHeals(t *testing.T) {
	for _, rejoins := range []bool{true, false} {
		virtual(t, func(t *testing.T) {
			var c *cluster
			var all []netip.AddrPort
			for i := range 3 {
				all = append(all, addrOf(i))
			}
			c = newCluster(t, 5, func(_ int, cfg *gossip.Config) {
				if rejoins {
					cfg.Rejoin = func() []netip.AddrPort { return all }
				}
			})
			c.join()
			within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
			// The managers 0 and 1 are in one part, 2 in the other with two workers.
			c.net.Partition(managersOf(c, 2))
			within(t, time.Minute, "each side has lost the other one", func() bool {
				return c.nodes[0].in(gossip.Alive) == 2 && c.nodes[4].in(gossip.Alive) == 3
			})
			time.Sleep(5 * time.Minute)
			if got := c.nodes[0].eventsOf(idOf(4)); !slices.Equal(got, []gossip.Kind{gossip.Alive, gossip.Suspect, gossip.Dead}) {
				t.Errorf("events of a node on the other side: %v, want alive, suspect, dead", got)
			}
			c.net.Heal()
			if !rejoins {
				time.Sleep(10 * time.Minute)
				if full(c.nodes) {
					t.Error("the partition healed without Rejoin: this test shows nothing")
				}
				return
			}
			took := within(t, time.Minute, "all know each other again", func() bool { return full(c.nodes) })
			t.Logf("healed after %v", took)
			time.Sleep(30 * time.Second)
			for i, n := range c.nodes {
				if s := n.Stats(); s.Heals != 1 || s.Missing != 0 {
					t.Errorf("node %d counts %d heals, %d missing, want 1 and 0", i, s.Heals, s.Missing)
				}
				if got := n.eventsOf(idOf((i + 2) % 5)); got[len(got)-1] != gossip.Alive {
					t.Errorf("node %d: events %v, want alive at last", i, got)
				}
			}
		})
	}
}

// When the halves of a larger cluster meet, and packets get lost, gossip alone leaves some nodes with gaps.
func TestNobodyIsForgottenInAHeal(t *testing.T) {
	virtual(t, func(t *testing.T) {
		managers := []netip.AddrPort{addrOf(0), addrOf(1), addrOf(2)}
		c := newCluster(t, 40, func(_ int, cfg *gossip.Config) {
			cfg.Rejoin = func() []netip.AddrPort { return managers }
			cfg.Timing.PushPull = time.Hour // as seldom as in a cluster that is larger by far
		})
		c.join()
		within(t, 2*time.Minute, "all know each other", func() bool { return full(c.nodes) })
		time.Sleep(2 * time.Minute)
		var half []netip.AddrPort
		for _, n := range c.nodes[20:] {
			half = append(half, n.addr)
		}
		c.net.Partition(append(half, addrOf(2)))
		time.Sleep(2 * time.Minute)
		c.net.SetLink(gossiptest.Link{Latency: time.Millisecond, Loss: 0.3})
		c.net.Heal()
		time.Sleep(time.Minute)
		c.net.SetLink(gossiptest.Link{Latency: time.Millisecond})
		took := within(t, 2*time.Minute, "all know each other again", func() bool { return full(c.nodes) })
		t.Logf("%v after the loss ended", took)
	})
}

// A path of 1,280 bytes that answers nothing to larger packets: with the size of the path all gets through, and with
// the usual one it does not.
func TestBlackhole(t *testing.T) {
	const messages, length = 60, 650 // two in a packet of 1,472, one in a packet of 1,252
	run := func(t *testing.T, size *int) (delivered int, everybody bool) {
		var mu sync.Mutex
		c := newCluster(t, 5, func(_ int, cfg *gossip.Config) {
			cfg.PacketSize = func() int {
				mu.Lock()
				defer mu.Unlock()
				return *size
			}
		})
		c.net.SetLink(gossiptest.Link{Latency: time.Millisecond, MTU: 1280})
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		for i := range messages {
			if err := c.nodes[0].Broadcast(message(i, length)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(30 * time.Second)
		for _, n := range c.nodes[1:] {
			delivered += n.received()
		}
		return delivered, full(c.nodes)
	}
	t.Run("derived", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			size := 1280 - 28
			got, all := run(t, &size)
			t.Logf("%d of %d delivered", got, 4*messages)
			if got < 4*messages*95/100 || !all {
				t.Errorf("%d of %d messages were delivered, all are members: %v", got, 4*messages, all)
			}
		})
	})
	t.Run("fixed", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			size := 1472
			got, _ := run(t, &size)
			t.Logf("%d of %d delivered", got, 4*messages)
			if got > 4*messages*3/4 {
				t.Errorf("%d of %d messages were delivered with packets that are too large: this test shows nothing", got, 4*messages)
			}
		})
	})
}

// The path shrinks while messages are queued: those that still fit arrive, one that does not is dropped and counted.
func TestPathShrinks(t *testing.T) {
	virtual(t, func(t *testing.T) {
		var mu sync.Mutex
		size := 1472
		c := newCluster(t, 3, func(_ int, cfg *gossip.Config) {
			cfg.PacketSize = func() int {
				mu.Lock()
				defer mu.Unlock()
				return size
			}
		})
		c.join()
		within(t, 10*time.Second, "all know each other", func() bool { return full(c.nodes) })
		n := c.nodes[0]
		large, small := message(1, n.MaxMessage()), message(2, 500)
		if err := errors.Join(n.Broadcast(large), n.Broadcast(small)); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		size = 1252
		mu.Unlock()
		c.net.SetLink(gossiptest.Link{MTU: 1280})
		within(t, 5*time.Second, "the small one is everywhere", func() bool {
			return c.nodes[1].count(string(small)) == 1 && c.nodes[2].count(string(small)) == 1
		})
		time.Sleep(10 * time.Second)
		if s := n.Stats(); s.QueueDropped != 1 || s.Queued != 0 || s.Oversize != 0 {
			t.Errorf("dropped %d, queued %d, oversize %d, want 1, 0, 0", s.QueueDropped, s.Queued, s.Oversize)
		}
		if err := n.Broadcast(large); !errors.Is(err, gossip.ErrTooBig) {
			t.Errorf("broadcasting a message for wider paths: %v, want ErrTooBig", err)
		}
	})
}

// No packet is ever larger than the path, even when all have much to say at once.
func TestPacketSize(t *testing.T) {
	virtual(t, func(t *testing.T) {
		for _, size := range []int{548, 1252, 1472} {
			c := newCluster(t, 40, func(_ int, cfg *gossip.Config) { cfg.PacketSize = func() int { return size } })
			var mu sync.Mutex
			largest := 0
			c.net.Tap(func(p gossiptest.Packet) {
				mu.Lock()
				defer mu.Unlock()
				largest = max(largest, len(p.Payload))
			})
			c.join()
			for i := range 100 {
				if err := c.nodes[i%40].Broadcast(message(i, min(20*i+1, c.nodes[0].MaxMessage()))); err != nil {
					t.Fatal(err)
				}
			}
			within(t, 2*time.Minute, "all know each other", func() bool { return full(c.nodes) })
			time.Sleep(5 * time.Second)
			mu.Lock()
			if largest > size || largest < size*9/10 {
				t.Errorf("the largest packet had %d bytes, want at most %d, and not much less", largest, size)
			}
			mu.Unlock()
			c.close()
		}
	})
}

func TestBroadcastRefuses(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 1, nil)
		g := c.nodes[0]
		for _, n := range []int{0, g.MaxMessage() + 1, 64 << 10} {
			if err := g.Broadcast(make([]byte, n)); !errors.Is(err, gossip.ErrTooBig) {
				t.Errorf("%d bytes: %v, want ErrTooBig", n, err)
			}
		}
		var err error
		sent := 0
		for ; err == nil && sent < 1<<20; sent++ {
			err = g.Broadcast(message(sent, 100))
		}
		if !errors.Is(err, gossip.ErrQueueFull) {
			t.Errorf("after %d messages: %v, want ErrQueueFull", sent, err)
		}
		if err := g.Announce(); !errors.Is(err, gossip.ErrQueueFull) {
			t.Errorf("announcing: %v, want ErrQueueFull", err)
		}
		if q := g.Stats().Queued; q > 2000 {
			t.Errorf("%d messages are queued", q)
		}
	})
}
