package consensus

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

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
