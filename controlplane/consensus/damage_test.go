package consensus

import (
	"bytes"
	"errors"
	"fmt"
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
