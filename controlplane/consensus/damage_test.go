package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// written makes a directory with a log and snapshots and returns what was acknowledged, in order.
func written(t *testing.T, entries int, retention Retention) (c *cluster, n *node, acked []string) {
	t.Helper()
	c, n = single(t, func(cfg *Config) { cfg.Retention = retention })
	for i := range entries {
		v := fmt.Sprintf("value %d %s", i, strings.Repeat("x", 40))
		if _, _, err := n.raft.Propose(c.ctx(), encode(fmt.Sprintf("k%d", i%7), v)); err != nil {
			t.Fatal(err)
		}
		acked = append(acked, v)
	}
	return c, n, acked
}

// outcomeOf opens a damaged directory and says what came of it: an error, or the history that the FSM ended up with.
func outcomeOf(t *testing.T, c *cluster, dir string) ([]string, error) {
	t.Helper()
	n := &node{id: c.nodes[0].id, address: c.nodes[0].address, dir: dir}
	if err := c.open(n); err != nil {
		return nil, err
	}
	defer c.kill(n)
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if err := n.raft.Err(); err != nil {
			return n.fsm.history(), err
		}
		if n.raft.Read(c.ctx(), func() {}) == nil {
			return n.fsm.history(), nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("neither a leader nor an error after a minute")
	return nil, nil
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// judge checks the promise: a directory is refused with the name of the file and a repair, or what is
// started on is a prefix of what was acknowledged.
func judge(t *testing.T, what, file string, acked, got []string, err error) (refused bool) {
	t.Helper()
	if err != nil {
		var d *DamagedError
		if !errors.As(err, &d) {
			t.Errorf("%s: refused without saying that it is damaged: %v", what, err)
		} else if !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "overlayctl") {
			t.Errorf("%s: the error names neither the file nor a repair: %v", what, err)
		}
		return true
	}
	if len(got) > len(acked) || !slices.Equal(got, acked[:len(got)]) {
		t.Errorf("%s: started on a state that never was (%d values, %d were acknowledged)", what, len(got), len(acked))
	} else if len(got) < len(acked) {
		t.Errorf("%s: started although %d acknowledged values are gone", what, len(acked)-len(got))
	}
	return false
}

// Each case changes one place of one file. A changed byte that matters is refused; one that does not (in a page that is
// not in use) changes nothing. raft.db, which bbolt protects by no checksum but that of two meta pages, is
// hit at all kinds of places.
func TestDamagedLog(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c, n, acked := written(t, 120, Retention{})
		c.kill(n)
		whole, err := os.ReadFile(filepath.Join(n.dir, "raft.db"))
		if err != nil {
			t.Fatal(err)
		}
		page := os.Getpagesize()
		type damage struct {
			what   string
			change func(b []byte) []byte
		}
		var all []damage
		flip := func(at int) {
			all = append(all, damage{fmt.Sprintf("byte %d of %d", at, len(whole)), func(b []byte) []byte {
				b[at] ^= 0x55
				return b
			}})
		}
		for p := range len(whole) / page { // headers, and the first elements
			for _, at := range []int{0, 8, 10, 12, 16 + p%16} {
				flip(p*page + at)
			}
		}
		rnd := rand.New(rand.NewPCG(5, 6))
		for range 80 {
			flip(rnd.IntN(len(whole)))
		}
		for _, size := range []int{1, 100, page - 1, page, 2 * page, 2*page + 1, 3 * page, len(whole) / 2, len(whole) - page, len(whole) - 1} {
			all = append(all, damage{fmt.Sprintf("cut to %d of %d bytes", size, len(whole)), func(b []byte) []byte { return b[:size] }})
		}
		for p := range len(whole) / page {
			all = append(all, damage{fmt.Sprintf("page %d zeroed", p), func(b []byte) []byte { clear(b[p*page : (p+1)*page]); return b }})
		}
		refused := 0
		for _, d := range all {
			dir := copyDir(t, n.dir)
			if err := os.WriteFile(filepath.Join(dir, "raft.db"), d.change(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := outcomeOf(t, c, dir)
			if judge(t, d.what, "raft.db", acked, got, err) {
				refused++
			}
			_ = os.RemoveAll(dir)
		}
		t.Logf("%d of %d cases were refused, the others had no effect", refused, len(all))
		if len(all) < 200 || refused < 50 {
			t.Errorf("only %d cases, %d refused: the test shows too little", len(all), refused)
		}
	})
}

func TestDamagedSnapshot(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		// In one directory the log reaches back to the older snapshot, in the other it does not.
		for _, trailing := range []uint64{1 << 20, 1} {
			c, n, acked := written(t, 150, Retention{Threshold: 40, Trailing: trailing, Interval: 50 * time.Millisecond})
			for i := range 120 {
				if i%40 == 0 {
					time.Sleep(200 * time.Millisecond) // time for a snapshot
				}
				v := fmt.Sprintf("more %d", i)
				c.set("k", v)
				acked = append(acked, v)
			}
			time.Sleep(200 * time.Millisecond)
			c.kill(n)
			ids, err := os.ReadDir(filepath.Join(n.dir, snapshotDir))
			if err != nil || len(ids) != keptSnapshots {
				t.Fatalf("snapshots: %v, %v", ids, err)
			}
			newest := ids[len(ids)-1].Name()
			refused, used := 0, 0
			for _, file := range []string{metaName, stateName} {
				name := filepath.Join(snapshotDir, newest, file)
				whole, err := os.ReadFile(filepath.Join(n.dir, name))
				if err != nil {
					t.Fatal(err)
				}
				const places = 30
				for i := range places {
					at := i * len(whole) / places
					dir := copyDir(t, n.dir)
					b := bytes.Clone(whole)
					b[at] ^= 0x01
					if i == places-1 {
						b = b[:at]
					}
					if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
						t.Fatal(err)
					}
					got, err := outcomeOf(t, c, dir)
					if judge(t, fmt.Sprintf("%s, byte %d, trailing %d", name, at, trailing), newest, acked, got, err) {
						refused++
					} else {
						used++
					}
					_ = os.RemoveAll(dir)
				}
			}
			t.Logf("trailing %d: %d refused, %d started on the older snapshot and the log", trailing, refused, used)
			if trailing == 1 && refused < 50 || trailing > 1 && used < 60 {
				t.Errorf("trailing %d: %d refused, %d not", trailing, refused, used)
			}
		}
	})
}

func TestRecoverKeepsWhatCanBeRead(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c, n, acked := written(t, 60, Retention{})
		c.kill(n)
		path := filepath.Join(n.dir, "raft.db")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// One entry somewhere in the middle.
		at := bytes.LastIndex(whole, []byte("value 42 "))
		if at < 0 {
			t.Fatal("no entry is found in the file")
		}
		for p := bytes.Index(whole, []byte("value 42 ")); p >= 0 && p <= at; {
			whole[p] ^= 1
			next := bytes.Index(whole[p:], []byte("value 42 "))
			if next < 0 {
				break
			}
			p += next
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.open(n); err == nil {
			t.Fatal("a damaged entry was accepted")
		}
		if err := Recover(n.dir, Server{ID: n.id, Address: n.address, Voter: true}, &registers{}); err != nil {
			t.Fatal(err)
		}
		if kept, err := os.ReadFile(path + damagedSuffix); err != nil || !bytes.Equal(kept, whole) {
			t.Errorf("the damaged file was not kept: %v", err)
		}
		if err := c.open(n); err != nil {
			t.Fatal(err)
		}
		c.set("after", "1")
		if got := n.fsm.history(); !slices.Equal(got, append(slices.Clone(acked[:42]), "1")) {
			t.Errorf("recovered %d values, want 42 and one more", len(got))
		}
	})
}

func TestRecoverLostQuorum(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, func(cfg *Config) {
			cfg.Retention = Retention{Threshold: 20, Trailing: 5, Interval: 100 * time.Millisecond}
		})
		c.start()
		for i := range 50 {
			c.set(fmt.Sprintf("k%d", i), fmt.Sprint(i))
			time.Sleep(10 * time.Millisecond)
		}
		left := c.awaitLeader()
		term := left.raft.current().raft.CurrentTerm()
		for _, n := range c.nodes {
			c.kill(n)
		}
		c.nodes = []*node{left}
		self := Server{ID: left.id, Address: left.address, Voter: true}
		for range 2 { // it may be called again, as after a power failure
			time.Sleep(time.Second)
			if err := Recover(left.dir, self, &registers{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.open(left); err != nil {
			t.Fatal(err)
		}
		c.set("after", "1")
		for i := range 50 {
			if got := left.fsm.get(fmt.Sprintf("k%d", i)); got != fmt.Sprint(i) {
				t.Errorf("k%d is %q", i, got)
			}
		}
		if s := left.raft.Servers(); len(s) != 1 || s[0] != self {
			t.Errorf("servers after the recovery: %v", s)
		}
		if now := left.raft.current().raft.CurrentTerm(); now <= term {
			t.Errorf("term %d after the recovery, %d before", now, term)
		}
		// Others can join again.
		fresh := &node{id: "00000000000000aa", address: "192.0.2.77:7789", dir: filepath.Join(t.TempDir(), "raft")}
		c.nodes = append(c.nodes, fresh)
		if err := c.open(fresh); err != nil {
			t.Fatal(err)
		}
		if err := left.raft.AddNonvoter(c.ctx(), fresh.id, fresh.address); err != nil {
			t.Fatal(err)
		}
		c.awaitVoters(2)
		c.await("the state on the new one", func() bool { return fresh.fsm.get("after") == "1" && fresh.fsm.get("k3") == "3" })
	})
}

func TestRecoverRefuses(t *testing.T) {
	self := Server{ID: "1", Address: "192.0.2.1:7789", Voter: true}
	for name, err := range map[string]error{
		"no directory":    Recover(filepath.Join(t.TempDir(), "none"), self, &registers{}),
		"empty directory": Recover(t.TempDir(), self, &registers{}),
		"no vote":         Recover(t.TempDir(), Server{ID: "1", Address: "192.0.2.1:7789"}, &registers{}),
		"no address":      Recover(t.TempDir(), Server{ID: "1", Voter: true}, &registers{}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

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

// A snapshot that a newer version wrote is refused, not replaced by an older one from which the log does not reach to
// the present.
func TestSnapshotThatTheFSMRefuses(t *testing.T) {
	skipInRealTime(t)
	inTime(t, func(t *testing.T) {
		for _, behind := range []int{0, 5} { // entries behind the snapshot
			c, n, _ := written(t, 50, Retention{Threshold: 20, Trailing: 1, Interval: 20 * time.Millisecond})
			time.Sleep(time.Second)
			c.set("refuse", "1")
			for i := range 30 {
				c.set("k", fmt.Sprint(i))
			}
			time.Sleep(time.Second)
			for i := range behind {
				c.set("k", fmt.Sprint(i))
			}
			c.kill(n)
			err := c.open(n)
			if err == nil || !strings.Contains(err.Error(), snapshotDir) || !strings.Contains(err.Error(), "version") {
				t.Errorf("with %d entries behind it: %v", behind, err)
			}
		}
	})
}

// A disk that cannot be read gives an error, also where hashicorp/raft would panic.
func TestUnreadableEntry(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c, n := single(t, nil)
		c.set("k", "v")
		s := n.raft.current()
		ended := make(chan struct{})
		s.store.db = unreadable{s.store.db}
		go func() {
			defer close(ended)
			_ = s.store.GetLog(2, new(raft.Log)) // as the main loop does
			t.Error("it came back")
		}()
		<-ended
		if err := <-n.raft.Failed(); !errors.Is(err, syscall.EIO) {
			t.Errorf("reported: %v", err)
		}
	})
}

type unreadable struct{ database }

func (unreadable) GetLog(uint64, *raft.Log) error { return syscall.EIO }
