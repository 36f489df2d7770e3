package consensus

import (
	"context"
	"strconv"
	"testing"
	"time"
)

// patient makes a cluster that says nothing by itself but heartbeats.
func patient(cfg *Config) { cfg.Timing.Commit = time.Hour }

// Followers learn at once what was committed, with nothing else being said.
func TestCommitsAreTold(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, patient)
		c.start()
		for _, v := range []string{"1", "2", "3"} {
			c.set("k", v)
			c.within(tempo.Heartbeat/2, "the value on all", func() bool {
				for _, n := range c.nodes {
					if n.fsm.get("k") != v {
						return false
					}
				}
				return true
			})
		}
	})
}

// A follower that was restarted, with connections left that nobody answers, is told what is committed of its log.
func TestCommitsAreToldAgain(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, patient)
		c.start()
		c.set("k", "1")
		for _, n := range c.nodes {
			if n.raft.IsLeader() {
				continue
			}
			time.Sleep(time.Second) // it has the entry, and knows that it is committed
			c.kill(n)
			if err := c.open(n); err != nil {
				t.Fatal(err)
			}
			c.within(5*tempo.Heartbeat, "the value there", func() bool { return n.fsm.get("k") == "1" })
		}
		c.set("k", "2")
		c.within(tempo.Heartbeat, "the next value on all", func() bool {
			for _, n := range c.nodes {
				if n.fsm.get("k") != "2" {
					return false
				}
			}
			return true
		})
	})
}

// Connections that died unnoticed cost a change nothing.
func TestDeadConnections(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, patient)
		c.start()
		lead := c.awaitLeader()
		for i := range 10 {
			time.Sleep(time.Duration(i) * tempo.Heartbeat / 10)
			for _, n := range c.nodes {
				if n != lead {
					c.net.reset(n.address)
				}
			}
			v := strconv.Itoa(i)
			begin := time.Now()
			c.set("k", v)
			if took := time.Since(begin); took > tempo.Heartbeat/2 {
				t.Errorf("agreement took %v", took)
			}
			c.within(2*tempo.Heartbeat, "the value on all", func() bool {
				for _, n := range c.nodes {
					if n.fsm.get("k") != v {
						return false
					}
				}
				return true
			})
		}
	})
}

// Leadership is offered to one that does not take it for no longer than Timing says.
func TestPaceOfAHandover(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		timeout := func() time.Duration { return lead.raft.current().raft.ReloadableConfig().ElectionTimeout }
		c.await("a slow leader", func() bool { return timeout() > tempo.Election })
		for _, n := range c.nodes {
			if n != lead {
				c.net.split([]string{lead.address}, []string{n.address}, true)
			}
		}
		done := make(chan error, 1)
		go func() { done <- lead.raft.TransferLeadership(c.ctx()) }()
		time.Sleep(tempo.Heartbeat / 20) // nothing is missed yet
		if got := timeout(); got != tempo.Election {
			t.Errorf("while leadership is handed over the timeout is %v", got)
		}
		<-done
	})
}

// A leader is slow to send by hashicorp/raft's own timers while all answer; followers never are slow to miss it.
func TestPace(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		paced := func(leader time.Duration) func() bool {
			return func() bool {
				for _, n := range c.nodes {
					if n.raft == nil {
						continue
					}
					want := tempo.Heartbeat
					if n.raft.IsLeader() {
						want = leader
					}
					s := n.raft.current()
					if s == nil || s.raft.ReloadableConfig().HeartbeatTimeout != want {
						return false
					}
				}
				return c.leader() != nil
			}
		}
		c.await("a slow leader", paced(slowFactor*tempo.Heartbeat))
		first := c.awaitLeader()
		if err := first.raft.TransferLeadership(c.ctx()); err != nil {
			t.Fatal(err)
		}
		c.await("another one, with the first as patient as before", func() bool {
			return !first.raft.IsLeader() && paced(slowFactor*tempo.Heartbeat)()
		})
		c.kill(first)
		c.await("a leader that tries again soon", paced(tempo.Heartbeat))
		if err := c.open(first); err != nil {
			t.Fatal(err)
		}
		c.await("a slow leader again", paced(slowFactor*tempo.Heartbeat))
	})
}

// Nobody is missed for as long as nothing happens: not by the leader, and not by its followers.
func TestIdleClusterKeepsItsLeader(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		changes := lead.raft.Watch(ctx)
		<-changes
		select {
		case l := <-changes:
			t.Errorf("after nothing happened: %+v", l)
		case <-time.After(10 * time.Minute):
		}
		term := lead.raft.current().raft.CurrentTerm()
		for _, n := range c.nodes {
			if n != lead && !lead.raft.current().inContact(n.id, term) {
				t.Errorf("%s has not answered lately", n.id)
			}
		}
	})
}

func (c *cluster) within(limit time.Duration, what string, f func() bool) {
	c.t.Helper()
	if !virtualTime {
		limit *= 20 // the machine may be busy
	}
	begin := time.Now()
	c.await(what, f)
	if took := time.Since(begin); took > limit {
		c.t.Errorf("%s took %v", what, took)
	}
}
