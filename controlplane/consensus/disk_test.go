package consensus

import (
	"context"
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
)

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
		if virtualTime {
			time.Sleep(time.Minute) // by when nobody looks at the disk
		}
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

// A write that hangs is seen also when another one that was under way has ended.
func TestWritesUnderWay(t *testing.T) {
	s := &store{}
	begin := func() (end func()) {
		began, held, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			_ = s.write("wait", func() error { close(began); <-held; return nil })
		}()
		<-began
		return func() { close(held); <-done }
	}
	before := time.Now()
	first := begin()
	between := time.Now()
	second := begin()
	if at := s.underWay(); at.Before(before) || at.After(between) {
		t.Errorf("two are under way, since %v", at.Sub(before))
	}
	after := time.Now()
	first()
	if at := s.underWay(); at.Before(after) {
		t.Errorf("one is under way, since %v", at)
	}
	second()
	if at := s.underWay(); !at.IsZero() {
		t.Errorf("none is under way, since %v", at)
	}
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
