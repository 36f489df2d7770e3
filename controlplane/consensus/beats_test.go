package consensus

import (
	"context"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
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

// others returns the nodes that do not lead.
func (c *cluster) others() (out []*node) {
	lead := c.awaitLeader()
	for _, n := range c.nodes {
		if n != lead {
			out = append(out, n)
		}
	}
	return out
}

// What a manager missed is sent to it when it answers again, and not when Timing.Commit is over.
func TestMissedEntriesAreSentAgain(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, func(cfg *Config) { cfg.Timing = Timing{Heartbeat: 2 * time.Second, Commit: time.Hour} })
		c.start()
		lead, others := c.awaitLeader(), c.others()
		c.kill(others[0])
		time.Sleep(30 * time.Second)
		c.kill(others[1])
		begin, done := time.Now(), make(chan error, 1)
		go func() { _, _, err := lead.raft.Propose(c.ctx(), encode("k", "v")); done <- err }()
		time.Sleep(500 * time.Millisecond)
		if err := c.open(others[1]); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || time.Since(begin) > 2*time.Second {
			t.Errorf("agreement took %v: %v", time.Since(begin), err)
		}
		if err := c.open(others[0]); err != nil {
			t.Fatal(err)
		}
		c.within(2*time.Second, "the value on the one that was away for longer", func() bool { return others[0].fsm.get("k") == "v" })
	})
}

// A manager that is added before it runs gets the state when it does.
func TestJoiningTakesNoWait(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 2, patient)
		first, second := c.nodes[0], c.nodes[1]
		if err := c.open(first); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.stop)
		if err := first.raft.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		c.set("k", "v")
		if err := first.raft.AddNonvoter(c.ctx(), second.id, second.address); err != nil {
			t.Fatal(err)
		}
		time.Sleep(tempo.Heartbeat / 100) // no heartbeat has failed yet
		if err := c.open(second); err != nil {
			t.Fatal(err)
		}
		c.within(tempo.Heartbeat, "the state on the one that joined", func() bool { return second.fsm.get("k") == "v" })
	})
}

// A follower that has lost its log gets all of it again, and until then it counts as one that holds nothing.
func TestLostLog(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, patient)
		c.start()
		c.set("k", "v")
		time.Sleep(time.Second)
		lead, f := c.awaitLeader(), c.others()[0]
		s := lead.raft.current()
		term := s.raft.CurrentTerm()
		if s.trans.of(f.id, term).match == 0 {
			t.Fatal("nothing is known of what it holds")
		}
		q := s.trans.request(lead.id, term)
		q.PrevLogEntry, q.PrevLogTerm = s.raft.LastIndex()+1000, term // as if it had held that
		var a raft.AppendEntriesResponse
		if err := s.trans.AppendEntries(raft.ServerID(f.id), raft.ServerAddress(f.address), q, &a); err != nil || a.Success {
			t.Fatalf("it has what there never was: %v", err)
		}
		if got := s.trans.of(f.id, term).match; got != 0 {
			t.Errorf("after it refused, it is said to hold %d entries", got)
		}
		c.kill(f)
		if err := os.RemoveAll(f.dir); err != nil {
			t.Fatal(err)
		}
		if err := c.open(f); err != nil {
			t.Fatal(err)
		}
		c.within(5*tempo.Heartbeat, "the state there", func() bool { return f.fsm.get("k") == "v" })
	})
}

// Entries that nobody answers are not sent again and again, on one connection after the other: each try may take long.
func TestTimeoutsAreNotTriedAgain(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead, f := c.awaitLeader(), c.others()[0]
		s := lead.raft.current()
		var all sync.WaitGroup
		for range poolSize { // which leaves as many connections
			all.Go(func() { _, _ = s.trans.heartbeat(lead.id, f.id, f.address, s.raft.CurrentTerm()) })
		}
		all.Wait()
		c.net.split([]string{lead.address}, []string{f.address}, true)
		q := s.trans.request(lead.id, s.raft.CurrentTerm())
		q.Entries = []*raft.Log{{}} // it does not arrive
		var a raft.AppendEntriesResponse
		begin := time.Now()
		err := s.trans.send(raft.ServerID(f.id), raft.ServerAddress(f.address), q, &a)
		if took := time.Since(begin); err == nil || took > 3*s.r.cfg.Timing.rpcTimeout()/2 {
			t.Errorf("it took %v: %v", took, err)
		}
	})
}

// A non-voter hears from a leader that is the only voter as often as it has to.
func TestBeatsOfOneVoter(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		var vote atomic.Bool
		c := newCluster(t, 2, func(cfg *Config) { cfg.WantVoter = func(string) bool { return vote.Load() } })
		for _, n := range c.nodes {
			if err := c.open(n); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(c.stop)
		if err := c.nodes[0].raft.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		lead, other := c.awaitLeader(), c.nodes[1]
		if err := lead.raft.AddNonvoter(c.ctx(), other.id, other.address); err != nil {
			t.Fatal(err)
		}
		s := lead.raft.current()
		longest := func() (d time.Duration) {
			time.Sleep(tempo.Heartbeat)
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
				d = max(d, time.Since(s.trans.of(other.id, s.raft.CurrentTerm()).contact))
			}
			return d
		}
		if d := longest(); d > tempo.Heartbeat/beatsPerTimeout {
			t.Errorf("a non-voter did not hear from its leader for %v", d)
		}
		vote.Store(true)
		c.awaitVoters(2)
		if d := longest(); d > tempo.Heartbeat/beatsPerTimeout {
			t.Errorf("a voter that was promoted did not hear from its leader for %v", d)
		}
		if got := s.raft.ReloadableConfig().HeartbeatTimeout; got != slowFactor*tempo.Heartbeat {
			t.Errorf("the timeout of the leader is %v", got)
		}
	})
}

// Heartbeats go out when the clock shows a whole multiple of what lies between them.
func TestBeatsAreWhole(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		time.Sleep(10 * tempo.Heartbeat)
		apart := tempo.Heartbeat / beatsPerTimeout
		s := lead.raft.current()
		type message struct {
			from string
			at   time.Time
		}
		heard := map[message]bool{}
		for end := time.Now().Add(100 * apart); time.Now().Before(end); time.Sleep(time.Millisecond) {
			for _, n := range c.others() {
				heard[message{n.id, s.trans.of(n.id, s.raft.CurrentTerm()).contact}] = true
			}
		}
		whole := 0
		for m := range heard {
			if m.at.Sub(m.at.Truncate(apart)) < apart/5 {
				whole++
			}
		}
		if whole < 190 || len(heard)-whole > 60 { // now and then there are messages of another kind
			t.Errorf("of %d messages, %d were at a whole multiple of %v", len(heard), whole, apart)
		}
	})
}

// A leader is slow to send by hashicorp/raft's own timers while all answer; followers never are slow to miss it.
func TestPace(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		c.await("a slow leader", c.paced(slowFactor*tempo.Heartbeat))
		first := c.awaitLeader()
		if err := first.raft.TransferLeadership(c.ctx()); err != nil {
			t.Fatal(err)
		}
		c.await("another one, with the first as patient as before", func() bool {
			return !first.raft.IsLeader() && c.paced(slowFactor*tempo.Heartbeat)()
		})
		c.kill(first)
		c.await("a leader that tries again soon", c.paced(tempo.Heartbeat))
		if err := c.open(first); err != nil {
			t.Fatal(err)
		}
		c.await("a slow leader again", c.paced(slowFactor*tempo.Heartbeat))
	})
}

// paced returns whether the leader has a timeout, and all others that of Timing.
func (c *cluster) paced(leader time.Duration) func() bool {
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

// However patient followers are, a leader does not wait for longer than usual before it looks what they lack.
func TestCommitIsCapped(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Timing = Timing{Heartbeat: 20 * time.Second} })
	cfg := c.config(c.nodes[0], &registers{})
	if err := cfg.complete(); err != nil || cfg.Timing.Commit != 2*time.Second {
		t.Errorf("Timing.Commit is %v: %v", cfg.Timing.Commit, err)
	}
}

// Of a manager that was removed because it is dead nobody expects an answer.
func TestPaceAfterARemoval(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 4, nil)
		c.start()
		lead, dead := c.awaitLeader(), c.others()[0]
		c.kill(dead)
		time.Sleep(2 * time.Minute) // it is tried less and less often
		if err := lead.raft.Remove(c.ctx(), dead.id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // hashicorp/raft has given up
		c.await("a slow leader", c.paced(slowFactor*tempo.Heartbeat))
	})
}

// Nobody is missed for as long as nothing happens: not by the leader, and not by its followers. Nor does the log grow, also
// with one that is down.
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
		index := lead.raft.current().raft.LastIndex()
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
		c.kill(c.others()[0])
		time.Sleep(10 * time.Minute)
		if got := lead.raft.current().raft.LastIndex(); got != index {
			t.Errorf("%d entries were made of nothing", got-index)
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
