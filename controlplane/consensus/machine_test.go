package consensus

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

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
