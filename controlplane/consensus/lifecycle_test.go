package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func encode(k, v string) []byte {
	b, _ := json.Marshal(command{k, v})
	return b
}

// skipInRealTime leaves out, under the race detector, what takes long and shows it nothing new.
func skipInRealTime(t *testing.T) {
	t.Helper()
	if !virtualTime {
		t.Skip("takes too long in real time; it runs without the race detector")
	}
}

// single starts a cluster of one.
func single(t *testing.T, tune func(*Config)) (*cluster, *node) {
	t.Helper()
	c := newCluster(t, 1, tune)
	c.start()
	return c, c.nodes[0]
}

func TestConfigIsChecked(t *testing.T) {
	good := func() Config {
		return Config{ID: "1", Dir: t.TempDir(), Address: "192.0.2.1:7789", Stream: newNetwork().stream("192.0.2.1:7789"), FSM: &registers{}}
	}
	for name, x := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no ID":            {func(c *Config) { c.ID = "" }, "ID"},
		"no directory":     {func(c *Config) { c.Dir = "" }, "directory"},
		"no stream":        {func(c *Config) { c.Stream = nil }, "stream"},
		"no FSM":           {func(c *Config) { c.FSM = nil }, "FSM"},
		"no port":          {func(c *Config) { c.Address = "192.0.2.1" }, "host:port"},
		"port 0":           {func(c *Config) { c.Address = "192.0.2.1:0" }, "lacks"},
		"hasty":            {func(c *Config) { c.Timing.Heartbeat = time.Millisecond }, "Timing.Heartbeat"},
		"lease too long":   {func(c *Config) { c.Timing.Lease = time.Hour }, "Timing.Lease"},
		"election short":   {func(c *Config) { c.Timing.Election = time.Second }, "Timing.Election"},
		"negative commit":  {func(c *Config) { c.Timing.Commit = -1 }, "Timing.Commit"},
		"window too short": {func(c *Config) { c.Disk = Disk{Limit: time.Minute, Window: time.Second} }, "Disk.Window"},
		"stabilize":        {func(c *Config) { c.StabilizeTime = -1 }, "StabilizeTime"},
	} {
		cfg := good()
		x.change(&cfg)
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: error %v does not name %q", name, err, x.want)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c, n := single(t, nil)
		_, err := Open(c.config(&node{id: n.id, address: "192.0.2.9:7789", dir: n.dir}, &registers{}))
		if !errors.Is(err, ErrLocked) {
			t.Errorf("error %v, want ErrLocked", err)
		}
		if err := Recover(n.dir, Server{ID: n.id, Address: n.address, Voter: true}, &registers{}); !errors.Is(err, ErrLocked) {
			t.Errorf("Recover beside a daemon: %v", err)
		}
	})
}

func TestBootstrapOnce(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 1, nil)
		n := c.nodes[0]
		if err := c.open(n); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.stop)
		if has, err := n.raft.HasState(); has || err != nil {
			t.Fatalf("a new directory: state %v, %v", has, err)
		}
		if err := n.raft.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		if err := n.raft.Bootstrap(); !errors.Is(err, ErrHasState) {
			t.Errorf("a second Bootstrap: %v", err)
		}
		c.set("k", "v")
		c.kill(n)
		if err := c.open(n); err != nil {
			t.Fatal(err)
		}
		if has, err := n.raft.HasState(); !has || err != nil {
			t.Errorf("a used directory: state %v, %v", has, err)
		}
		c.await("the state of before", func() bool { return n.fsm.get("k") == "v" })
	})
}

func TestStopHandsLeadershipOver(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		old := c.awaitLeader()
		r := old.raft
		if err := r.Stop(c.ctx()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		c.await("other leader", func() bool { l := c.leader(); return l != nil && l != old })
		if took := time.Since(begin); virtualTime && took >= tempo.Heartbeat/2 {
			t.Errorf("the others had to miss the leader first: that took %v", took)
		}
		if _, _, err := r.Propose(c.ctx(), encode("k", "v")); !errors.Is(err, ErrStopped) {
			t.Errorf("Propose after Stop: %v", err)
		}
		if err := r.Read(c.ctx(), func() {}); !errors.Is(err, ErrStopped) {
			t.Errorf("Read after Stop: %v", err)
		}
		if err := r.Stop(c.ctx()); err != nil {
			t.Errorf("a second Stop: %v", err)
		}
		if s := r.State(); s != Stopped {
			t.Errorf("state %v after Stop", s)
		}
	})
}

func TestFollowerNamesLeader(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		for _, n := range c.nodes {
			if n == lead {
				continue
			}
			c.await("word of the leader", func() bool { id, _ := n.raft.Leader(); return id == lead.id })
			var elsewhere *NotLeaderError
			_, _, err := n.raft.Propose(c.ctx(), encode("k", "v"))
			if !errors.As(err, &elsewhere) || elsewhere.LeaderID != lead.id || elsewhere.LeaderAddress != lead.address {
				t.Errorf("Propose on a follower: %v", err)
			}
			if err := n.raft.Read(c.ctx(), func() {}); !errors.As(err, &elsewhere) {
				t.Errorf("Read on a follower: %v", err)
			}
			if err := n.raft.CanLose(lead.id); !errors.As(err, &elsewhere) {
				t.Errorf("CanLose on a follower: %v", err)
			}
			if err := n.raft.AddNonvoter(c.ctx(), "x", "192.0.2.99:1"); !errors.As(err, &elsewhere) {
				t.Errorf("AddNonvoter on a follower: %v", err)
			}
		}
	})
}

func TestProposalWithoutQuorumIsUnknown(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		for _, n := range c.nodes {
			if n != lead {
				c.net.split([]string{lead.address}, []string{n.address}, true)
			}
		}
		_, _, err := lead.raft.Propose(c.ctx(), encode("k", "v"))
		if !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a proposal that no other manager saw: %v", err)
		}
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if _, _, err := lead.raft.Propose(ended, encode("k", "v")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a proposal that was called off before: %v", err)
		}
		if _, _, err := lead.raft.Propose(c.ctx(), make([]byte, maxCommand+1)); err == nil || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a command that is too large: %v", err)
		}
	})
}

func TestWatch(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		var other *node
		for _, n := range c.nodes {
			if n != lead {
				other = n
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		seen := other.raft.Watch(ctx)
		untilStop := other.raft.Watch(context.Background())
		if first := <-seen; first.State != Follower {
			t.Errorf("first news: %+v", first)
		}
		c.kill(lead)
		limit := time.After(time.Minute)
		for done := false; !done; {
			select {
			case l := <-seen:
				done = l.LeaderID != "" && l.LeaderID != lead.id
			case <-limit:
				t.Fatal("no news of the new leader")
			}
		}
		cancel()
		for range seen { //nolint:revive // until it is closed
		}
		go c.kill(other)
		for range untilStop { //nolint:revive // until it is closed
		}
	})
}

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

// A full disk ends the session with an error that names the file; the others go on; when there is room again, so does
// this one.
func TestFullDisk(t *testing.T) {
	skipInRealTime(t)
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("leads=%v", leads), func(t *testing.T) {
			inTime(t, func(t *testing.T) {
				c := newCluster(t, 3, nil)
				c.start()
				c.set("before", "b")
				var sick *node
				for _, n := range c.nodes {
					if n.raft.IsLeader() == leads {
						sick = n
					}
				}
				failed := sick.raft.Failed()
				sick.fail(func() error { return &os.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC} })
				if leads {
					_, _, err := sick.raft.Propose(c.ctx(), encode("during", "0"))
					if !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, syscall.ENOSPC) {
						t.Errorf("a proposal that cannot be written: %v", err)
					}
				}
				c.await("other leader", func() bool { l := c.leader(); return l != nil && l != sick })
				c.set("during", "d")
				err := <-failed
				if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(sick.dir, "raft.db")) {
					t.Errorf("the failure is reported as: %v", err)
				}
				c.await("the end of the session", func() bool { return sick.raft.State() == Stopped && sick.raft.Err() != nil })
				if _, _, err := sick.raft.Propose(c.ctx(), encode("k", "v")); !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("Propose without a session: %v", err)
				}
				time.Sleep(5 * time.Second)
				c.set("later", "l")
				sick.fail(nil)
				c.await("all of the state on the node that was full", func() bool {
					return sick.fsm.get("before") == "b" && sick.fsm.get("during") == "d" && sick.fsm.get("later") == "l"
				})
				// The FSM lived on, and hashicorp/raft brought it the log from the start again.
				for _, n := range c.nodes {
					if got, want := sick.fsm.history(), n.fsm.history(); !slices.Equal(got, want) {
						t.Errorf("it applied %v, and another node %v", got, want)
					}
				}
			})
		})
	}
}

// While this process could not use the directory, somebody put an older state there.
func TestReopenNoticesAnotherHistory(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c, n := single(t, nil)
		c.set("k", "1")
		old := copyDir(t, n.dir)
		c.set("k", "2")
		n.fail(func() error { return syscall.ENOSPC })
		_, _, _ = n.raft.Propose(c.ctx(), encode("k", "3"))
		if err := <-n.raft.Failed(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		c.await("the end of the session", func() bool { return n.raft.current() == nil })
		time.Sleep(tempo.Heartbeat)
		if err := os.Rename(filepath.Join(old, "raft.db"), filepath.Join(n.dir, "raft.db")); err != nil {
			t.Fatal(err)
		}
		n.fail(nil)
		if err := <-n.raft.Failed(); !strings.Contains(err.Error(), "restart overlayd") {
			t.Errorf("reported: %v", err)
		}
		if got := n.fsm.get("k"); got != "2" || n.raft.State() != Stopped {
			t.Errorf("k is %q, state %v", got, n.raft.State())
		}
	})
}

// The term cannot be written: hashicorp/raft would panic.
func TestTermCannotBeWritten(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		lead := c.awaitLeader()
		for _, n := range c.nodes {
			if n != lead {
				n.fail(func() error { return syscall.EIO })
			}
		}
		c.kill(lead)
		// The first that stands for election fails; then the other has nobody who could vote for it.
		c.await("failure", func() bool {
			for _, n := range c.nodes {
				if n == lead {
					continue
				}
				select {
				case err := <-n.raft.Failed():
					if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), keyTerm) {
						t.Errorf("reported: %v", err)
					}
					return true
				default:
				}
			}
			return false
		})
		for _, n := range c.nodes {
			n.fail(nil)
		}
		c.set("after", "1")
	})
}

// A disk that hangs for good does not keep a leader in office, although its heartbeats do not need the disk.
func TestHungDisk(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, func(cfg *Config) { cfg.Disk = Disk{Limit: 100 * time.Millisecond, Window: time.Second} })
		c.start()
		c.set("before", "1")
		sick := c.awaitLeader()
		var hang atomic.Bool
		hang.Store(true)
		defer hang.Store(false)
		sick.fail(func() error {
			for hang.Load() {
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if _, _, err := sick.raft.Propose(ctx, encode("during", "1")); !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a proposal that hangs: %v", err)
		}
		c.await("other leader", func() bool {
			for _, n := range c.nodes {
				if n != sick && n.raft.IsLeader() {
					return true
				}
			}
			return false
		})
		bounded, cancel2 := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel2()
		if err := sick.raft.Read(bounded, func() {}); err == nil {
			t.Error("a leader whose disk hangs answered a read")
		}
		hang.Store(false)
		sick.fail(nil)
		c.await("the old leader to follow", func() bool { return sick.raft.State() == Follower })
		c.set("after", "1")
		c.await("the state there", func() bool { return sick.fsm.get("after") == "1" })
	})
}

// A disk that is slow, but works, makes the leader hand over.
func TestSlowDisk(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, func(cfg *Config) { cfg.Disk = Disk{Limit: 50 * time.Millisecond, Window: time.Second} })
		c.start()
		sick := c.awaitLeader()
		sick.fail(func() error { time.Sleep(60 * time.Millisecond); return nil })
		end := time.Now().Add(20 * time.Second)
		for sick.raft.IsLeader() && time.Now().Before(end) {
			c.set("k", "v")
		}
		if sick.raft.IsLeader() {
			t.Error("it still leads after 20 s with a slow disk")
		}
		sick.fail(nil)
	})
}

func TestDiskWatch(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	for _, x := range []struct {
		name        string
		writes      [][2]float64
		started     float64
		now         float64
		slow, hangs bool
	}{
		{"nothing written", nil, 0, 100, false, false},
		{"fast", [][2]float64{{1, 1.1}, {5, 5.1}, {12, 12.1}}, 0, 13, false, false},
		{"one slow write", [][2]float64{{1, 3}}, 0, 4, false, false},
		{"slow for the window", [][2]float64{{1, 3}, {4, 6}, {7, 9}, {10, 12}}, 0, 12, true, false},
		{"a fast one in between", [][2]float64{{1, 3}, {4, 6}, {7, 7.1}, {10, 12}}, 0, 12, false, false},
		{"slow long ago", [][2]float64{{1, 3}, {4, 12}}, 0, 60, false, false},
		{"one that does not end", nil, 1, 11.5, true, true},
		{"one that takes long", nil, 1, 5, false, false},
		{"slow, then one that is under way", [][2]float64{{1, 3}, {4, 6}}, 9, 11.5, true, false},
	} {
		d := &diskWatch{limit: time.Second, window: 10 * time.Second}
		for _, w := range x.writes {
			d.wrote(at(w[0]), at(w[1]))
		}
		var started time.Time
		if x.started > 0 {
			started = at(x.started)
		}
		if slow, hangs := d.judge(started, at(x.now)); slow != x.slow || hangs != x.hangs {
			t.Errorf("%s: slow %v, hangs %v", x.name, slow, hangs)
		}
	}
}

// An entry that this version cannot apply stops the node for good, and it makes no snapshot that claims to hold it.
func TestHalt(t *testing.T) {
	inTime(t, func(t *testing.T) {
		for _, bad := range []string{`{"k": newer}`, `{"k": "panic"}`} {
			c, n := single(t, nil)
			c.set("k", "v")
			_, _, err := n.raft.Propose(c.ctx(), []byte(bad))
			if err == nil {
				t.Fatalf("%s was applied", bad)
			}
			failure := <-n.raft.Failed()
			if !strings.Contains(failure.Error(), "apply entry") {
				t.Errorf("reported: %v", failure)
			}
			if virtualTime {
				time.Sleep(time.Minute)
			}
			if n.raft.State() != Stopped || n.fsm.get("k") != "v" {
				t.Errorf("state %v", n.raft.State())
			}
			c.kill(n)
			if err := c.open(n); err != nil {
				t.Fatal(err)
			}
			failure = <-n.raft.Failed() // again, at the same place
			if !strings.Contains(failure.Error(), "apply entry") || n.fsm.get("k") != "v" {
				t.Errorf("after a restart: %v", failure)
			}
		}
	})
}

func TestMachineMakesNoMisleadingSnapshot(t *testing.T) {
	m := &machine{fsm: &registers{}, applied: 80, term: 3}
	m.begin()
	if _, err := m.Snapshot(); err == nil {
		t.Error("a state up to 80 was offered while the log is read again from the start")
	}
}

func TestHaltedMachineMakesNoSnapshot(t *testing.T) {
	m := &machine{fsm: &registers{}}
	m.begin()
	m.Apply(&raft.Log{Index: 1, Term: 1, Data: encode("k", "v")})
	if _, err := m.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if _, bad := m.Apply(&raft.Log{Index: 2, Term: 1, Data: []byte("newer")}).(error); !bad {
		t.Error("an entry that cannot be understood was applied")
	}
	// hashicorp/raft would label it with the index of that entry.
	if _, err := m.Snapshot(); err == nil {
		t.Error("a snapshot without an entry that others have")
	}
	if _, bad := m.Apply(&raft.Log{Index: 3, Term: 1, Data: encode("k", "w")}).(error); !bad || m.fsm.(*registers).get("k") != "v" {
		t.Error("an entry was applied behind one that was not")
	}
}
