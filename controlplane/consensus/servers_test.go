package consensus

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestAutopilot(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		var wanted atomic.Bool
		c := newCluster(t, 3, func(cfg *Config) {
			cfg.WantVoter = func(string) bool { return wanted.Load() }
			cfg.StabilizeTime = time.Second
		})
		for _, n := range c.nodes {
			if err := c.open(n); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(c.stop)
		lead, second, third := c.nodes[0], c.nodes[1], c.nodes[2]
		if err := lead.raft.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		c.await("leader", lead.raft.IsLeader)
		votes := func(n *node) bool {
			for _, s := range lead.raft.Servers() {
				if s.ID == n.id {
					return s.Voter
				}
			}
			return false
		}
		if err := lead.raft.AddNonvoter(c.ctx(), second.id, second.address); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if votes(second) {
			t.Error("a non-voter that nobody wants got a vote")
		}
		wanted.Store(true)
		c.await("a vote", func() bool { return votes(second) })

		// One that kept up, and then cannot be reached, gets none, and its clock begins anew when it is back.
		wanted.Store(false)
		if err := lead.raft.AddNonvoter(c.ctx(), third.id, third.address); err != nil {
			t.Fatal(err)
		}
		c.set("k", "v")
		c.await("the state there", func() bool { return third.fsm.get("k") == "v" })
		time.Sleep(3 * time.Second)
		c.net.split([]string{lead.address, second.address}, []string{third.address}, true)
		time.Sleep(time.Second)
		wanted.Store(true)
		time.Sleep(5 * time.Second)
		if votes(third) {
			t.Error("a non-voter out of reach got a vote")
		}
		c.net.split([]string{lead.address, second.address}, []string{third.address}, false)
		healed := time.Now()
		c.await("a vote", func() bool { return votes(third) })
		if took := time.Since(healed); took < time.Second {
			t.Errorf("it got a vote %v after it could be reached, which is too soon", took)
		}

		if err := lead.raft.CanLose(third.id); err != nil {
			t.Errorf("three voters that work can lose one: %v", err)
		}
		wanted.Store(false)
		if err := lead.raft.Demote(c.ctx(), third.id); err != nil {
			t.Fatal(err)
		}
		if votes(third) {
			t.Error("a demoted server votes")
		}
		// A change of address leaves the vote alone.
		if err := lead.raft.AddNonvoter(c.ctx(), second.id, second.address); err != nil || !votes(second) {
			t.Errorf("a server that was added once more lost its vote (%v)", err)
		}
		if err := lead.raft.Remove(c.ctx(), third.id); err != nil || len(lead.raft.Servers()) != 2 {
			t.Errorf("Remove: %v, servers %v", err, lead.raft.Servers())
		}
	})
}

func TestCanLose(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c, n := single(t, nil)
		if err := n.raft.CanLose(n.id); err == nil || !strings.Contains(err.Error(), "only manager") {
			t.Errorf("the only manager: %v", err)
		}
		if err := n.raft.CanLose("unknown"); err != nil {
			t.Errorf("one that has no vote: %v", err)
		}
		c.stop()

		c = newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		var down, up *node
		for _, n := range c.nodes {
			switch {
			case n == lead:
			case down == nil:
				down = n
			default:
				up = n
			}
		}
		c.kill(down)
		time.Sleep(2 * tempo.Election)
		if err := lead.raft.CanLose(up.id); err == nil || !strings.Contains(err.Error(), down.id) {
			t.Errorf("one of two that work, of three: %v", err)
		}
		if err := lead.raft.CanLose(lead.id); err == nil {
			t.Error("the leader, with one other that works: no error")
		}
		if err := lead.raft.CanLose(down.id); err != nil {
			t.Errorf("the one that is down: %v", err)
		}
	})
}

// One that lost its vote for no reason gets it back, however long nobody looked at the servers.
func TestDemotedByMistake(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		time.Sleep(time.Minute)
		for _, n := range c.nodes {
			if n != lead {
				if err := lead.raft.Demote(c.ctx(), n.id); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		c.awaitVoters(3)
	})
}
