//go:build !race

package controlplane

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

// lone is a cluster without gossip, whose messages the test carries itself to the worker.
func lone(t *testing.T) (s *simulation, w *simNode) {
	s = &simulation{t: t, net: gossiptest.NewNetwork(1), random: rand.New(rand.NewPCG(1, 0)), arrived: &arrivals{begun: map[move]time.Time{}, seen: map[move][]time.Duration{}}}
	s.found(simManagers+1, 20)
	for _, n := range s.nodes {
		s.connect(n)
	}
	t.Cleanup(func() { time.Sleep(5 * time.Second) })
	return s, s.nodes[simManagers]
}

// messages makes moves and returns what the leader says of them.
func (s *simulation) messages(moves int) (out [][]byte) {
	s.t.Helper()
	leader := s.nodes[0].seat.Load()
	from := leader.store.Index()
	for range moves {
		s.move()
	}
	batches, _ := leader.store.Since(from)
	for _, b := range batches {
		data, err := proto.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		creds := leader.member.creds.Load()
		signature, err := creds.Sign(data)
		if err != nil {
			s.t.Fatal(err)
		}
		m, err := proto.Marshal(&statev1.SignedBatch{Batch: data, Signer: creds.NodeID(), Signature: signature})
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// What comes out of turn waits for its turn, and nobody is asked.
func TestOutOfTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := lone(t)
		for range 20 {
			messages := s.messages(50)
			rand.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
			for _, m := range messages {
				if !w.deliver(m) {
					t.Error("news is not passed on")
				}
				time.Sleep(turnTime / 100)
			}
			if !s.everywhere() {
				t.Fatal("the worker has all messages, and not all changes")
			}
		}
		time.Sleep(2 * turnTime)
		if n := w.asked.questions.Load(); n != 0 {
			t.Errorf("a manager was asked %d times, and nothing was missing", n)
		}
	})
}

// What is missing is asked for, once it is late, and so is what another node is said to have.
func TestOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, w := lone(t)
		settle := func(what string, questions int64) {
			t.Helper()
			before := w.asked.questions.Load()
			time.Sleep(turnTime - turnTime/10)
			if n := w.asked.questions.Load() - before; n != 0 {
				t.Errorf("%s: a manager was asked before the turn was over", what)
			}
			time.Sleep(turnTime)
			if n := w.asked.questions.Load() - before; n != questions {
				t.Errorf("%s: a manager was asked %d times, want %d", what, n, questions)
			}
			if !s.everywhere() {
				t.Errorf("%s: the worker still lacks something", what)
			}
		}
		for i, m := range s.messages(10) {
			if i != 4 {
				w.deliver(m)
			}
		}
		settle("one of ten is lost", 1)

		s.messages(1)
		index, sum := s.nodes[0].node.replica.Position()
		w.onBehind("", gossip.Digest{Index: index, Sum: sum})
		settle("another node has more", 1)

		// The one that was missing comes, and by then others are.
		late := s.messages(2)
		w.deliver(late[1])
		time.Sleep(turnTime / 2)
		more := s.messages(2)
		w.deliver(more[1])
		w.deliver(late[0])
		time.Sleep(turnTime) // the turn of the first gap is over, that of the second is not
		if n := w.asked.questions.Load(); n != 2 {
			t.Errorf("a manager was asked %d times, want 2", n)
		}
		time.Sleep(turnTime)
		if !s.everywhere() || w.asked.questions.Load() != 3 {
			t.Errorf("the second gap was not closed by asking once")
		}

		// What waits may not go with a copy that is fetched as a whole.
		early := s.messages(2)
		w.deliver(early[1])
		if len(w.early.byPrevious) != 1 {
			t.Errorf("%d batches wait, want 1", len(w.early.byPrevious))
		}
		if err := w.mirror(s.nodes[0].seat.Load().store); err != nil || len(w.early.byPrevious) != 0 {
			t.Errorf("%v, and %d batches wait for a copy that is no more", err, len(w.early.byPrevious))
		}
		time.Sleep(2 * turnTime)
		if n := w.asked.questions.Load(); n != 3 {
			t.Errorf("a manager was asked %d times, want 3", n)
		}

		// An index that nobody has does not keep a node busy.
		w.onBehind("", gossip.Digest{Index: 1 << 40})
		time.Sleep(20 * turnTime)
		if n := w.asked.questions.Load(); n != 4 {
			t.Errorf("a manager was asked %d times, want 4", n)
		}
	})
}

// What can wait is bounded.
func TestEarlyIsBounded(t *testing.T) {
	var e early
	for i := range uint64(maxEarly + 100) {
		e.add(&statev1.Batch{Previous: i + 10, Index: i + 11})
	}
	if n := len(e.byPrevious); n != maxEarly {
		t.Errorf("%d batches wait, want %d", n, maxEarly)
	}
	if b := e.next(10); b.GetIndex() != 11 {
		t.Errorf("the first is %v", b)
	}
	if b := e.next(500_000); b != nil || len(e.byPrevious) != 0 {
		t.Errorf("%v, and %d wait that are old", b, len(e.byPrevious))
	}
}
