//go:build !race

package gossip_test

import (
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/gossip"
)

// A cluster in which nothing happens makes no rounds, which shows in what a message does not wait for: the next round, 50 ms
// in the mean. It goes out at once, and so do those after it in the rounds that follow.
func TestCalmClusterSpreadsAtOnce(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 5, nil)
		c.join()
		within(t, 10*time.Second, "all five know each other", func() bool { return full(c.nodes) })
		for i := range 10 {
			time.Sleep(time.Minute + time.Duration(i)*7*time.Millisecond)
			m := message(i, 100)
			if err := c.nodes[i%5].Broadcast(m); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond) // a path takes 2 at most
			for k, n := range c.nodes {
				if k != i%5 && n.count(string(m)) == 0 {
					t.Errorf("node %d does not have message %d after 5 ms", k, i)
				}
			}
			within(t, 3*time.Second, "it was sent often enough", func() bool {
				return !slices.ContainsFunc(c.nodes, func(n *node) bool { return n.Stats().Queued > 0 })
			})
		}
	})
}

// What memberlist has to say of members wakes a cluster in which nothing happens.
func TestCalmClusterHearsOfMembers(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, 40, nil)
		c.join()
		within(t, time.Minute, "all know each other", func() bool { return full(c.nodes) })
		time.Sleep(time.Minute)
		know := func(of string, states ...gossip.Kind) (n int) {
			for _, x := range c.nodes[:38] {
				if slices.ContainsFunc(x.Members(), func(m gossip.Member) bool { return m.NodeID == of && slices.Contains(states, m.State) }) {
					n++
				}
			}
			return n
		}
		if err := c.nodes[39].Leave(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		c.nodes[39].stop()
		took := within(t, 2*time.Second, "all know that one left", func() bool { return know(idOf(39), gossip.Left) == 38 })
		t.Logf("a farewell is everywhere after %v", took)
		time.Sleep(time.Minute)
		c.nodes[38].stop()
		within(t, time.Minute, "one is suspect", func() bool { return know(idOf(38), gossip.Suspect) > 0 })
		took = within(t, 2*time.Second, "it is suspect everywhere", func() bool { return know(idOf(38), gossip.Suspect, gossip.Dead) == 38 })
		t.Logf("a suspicion is everywhere after %v", took)
		within(t, time.Minute, "it is dead somewhere", func() bool { return know(idOf(38), gossip.Dead) > 0 })
		took = within(t, 2*time.Second, "it is dead everywhere", func() bool { return know(idOf(38), gossip.Dead) == 38 })
		t.Logf("a death is everywhere after %v", took)
	})
}

// While nothing happens all nodes probe when the clock shows a whole second, and are silent between.
func TestCalmClusterProbesTogether(t *testing.T) {
	virtual(t, func(t *testing.T) {
		time.Sleep(370 * time.Millisecond)
		c := newCluster(t, 5, nil)
		c.join()
		within(t, 10*time.Second, "all five know each other", func() bool { return full(c.nodes) })
		time.Sleep(2 * time.Minute) // the exchanges after the start are over
		sent := func() (n uint64) {
			for _, x := range c.nodes {
				n += x.Stats().PacketsSent
			}
			return n
		}
		now := time.Now()
		time.Sleep(now.Truncate(time.Second).Add(1200 * time.Millisecond).Sub(now))
		for range 20 {
			before := sent()
			time.Sleep(700 * time.Millisecond)
			if n := sent() - before; n > 0 {
				t.Errorf("%d packets in the middle of a second", n)
			}
			before = sent()
			time.Sleep(300 * time.Millisecond)
			if n := sent() - before; n != 10 {
				t.Errorf("%d packets around a whole second, want 5 probes and their answers", n)
			}
		}
	})
}
