package consensus

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBackup(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c, n, _ := written(t, 20, Retention{})
		var b bytes.Buffer
		if err := n.raft.Backup(c.ctx(), &b); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(b.String(), "overlayd backup 1\n") {
			t.Errorf("it begins with %q", b.Bytes()[:20])
		}
		want := n.fsm.history()
		backup := b.Bytes()

		// Into another cluster, of three.
		other := newCluster(t, 3, func(cfg *Config) {
			cfg.Check = func(r io.Reader) error { _, err := readRegisters(r); return err }
		})
		other.start()
		other.set("own", "1")
		lead := other.awaitLeader()

		// Nothing damaged gets in.
		for i := range 80 {
			bad := bytes.Clone(backup)
			switch at := i * len(bad) / 80; i % 3 {
			case 0:
				bad[at] ^= 1
			case 1:
				bad = bad[:at]
			case 2:
				bad = append(bad, byte(i))
			}
			if err := lead.raft.Restore(other.ctx(), bytes.NewReader(bad)); err == nil {
				t.Fatalf("case %d: a damaged backup was restored", i)
			}
		}
		if err := lead.raft.Restore(other.ctx(), strings.NewReader("overlayd backup 2\n")); err == nil || !strings.Contains(err.Error(), "format 2") {
			t.Errorf("a newer format: %v", err)
		}
		if lead.fsm.get("own") != "1" || other.awaitLeader() != lead {
			t.Error("a backup that was refused changed something")
		}
		if left, _ := filepath.Glob(filepath.Join(lead.dir, restorePattern)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		// Nor one that the FSM would refuse.
		strange := sealed(t, 99, `{"Data":{"refuse":"1"}}`)
		if err := lead.raft.Restore(other.ctx(), bytes.NewReader(strange)); err == nil {
			t.Error("a state that the FSM does not know was restored")
		}
		for _, f := range other.nodes {
			if f != lead {
				var elsewhere *NotLeaderError
				if err := f.raft.Restore(other.ctx(), bytes.NewReader(backup)); !errors.As(err, &elsewhere) {
					t.Errorf("on a follower: %v", err)
				}
			}
		}

		if err := lead.raft.Restore(other.ctx(), bytes.NewReader(backup)); err != nil {
			t.Fatal(err)
		}
		other.set("after", "restore")
		for _, f := range other.nodes {
			other.await("the restored state", func() bool { return slices.Equal(f.fsm.history(), append(slices.Clone(want), "restore")) })
			if f.fsm.get("own") != "" {
				t.Error("the state of before is still there")
			}
		}
		// It survives.
		for _, f := range other.nodes {
			other.kill(f)
		}
		for _, f := range other.nodes {
			if err := other.open(f); err != nil {
				t.Fatal(err)
			}
		}
		other.set("again", "x")
		for _, f := range other.nodes {
			other.await("the restored state", func() bool { return f.fsm.get("after") == "restore" && f.fsm.get("again") == "x" })
		}
		c.stop()
		other.stop()
	})
}

// sealed makes a backup of a state.
func sealed(t *testing.T, index uint64, state string) []byte {
	t.Helper()
	r := &Raft{machine: &machine{fsm: fixed(state), applied: index, term: 1}}
	var b bytes.Buffer
	if err := r.Backup(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fixed is an FSM with a state that does not change.
type fixed string

func (f fixed) Apply(uint64, []byte) any    { return nil }
func (f fixed) Snapshot() (Snapshot, error) { return f, nil }
func (f fixed) Restore(io.Reader) error     { return nil }
func (f fixed) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write([]byte(f))
	return int64(n), err
}

// Without a Check the FSM itself refuses a backup, when hashicorp/raft has gone too far to go back, and would panic.
func TestRestoreThatTheFSMRefuses(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c, n := single(t, nil)
		c.set("k", "v")
		err := n.raft.Restore(c.ctx(), bytes.NewReader(sealed(t, 99, `{"Data":{"refuse":"1"}}`)))
		if err == nil {
			t.Fatal("no error")
		}
		if failure := <-n.raft.Failed(); !strings.Contains(failure.Error(), "refused") {
			t.Errorf("reported: %v", failure)
		}
		c.kill(n)
		if err := c.open(n); err != nil {
			t.Fatal(err)
		}
		c.set("after", "1")
		if n.fsm.get("k") != "v" {
			t.Error("the state of before is gone")
		}
	})
}

// Stop in the middle of a restore must not make hashicorp/raft panic.
func TestStopDuringRestore(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 1, nil)
		n := c.nodes[0]
		slow := &slowRestore{begun: make(chan struct{}), goOn: make(chan struct{})}
		c.tune = func(cfg *Config) { slow.FSM = cfg.FSM; cfg.FSM = slow }
		c.start()
		c.set("k", "v")
		var b bytes.Buffer
		if err := n.raft.Backup(c.ctx(), &b); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- n.raft.Restore(c.ctx(), bytes.NewReader(b.Bytes())) }()
		<-slow.begun
		stopped := make(chan error, 1)
		go func() { stopped <- n.raft.Stop(c.ctx()) }()
		time.Sleep(time.Second)
		select {
		case <-stopped:
			t.Error("Stop did not wait")
		default:
		}
		close(slow.goOn)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		<-done
	})
}

type slowRestore struct {
	FSM
	begun, goOn chan struct{}
}

func (s *slowRestore) Restore(r io.Reader) error {
	close(s.begun)
	<-s.goOn
	return s.FSM.Restore(r)
}
