package consensus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Propose has a command applied by all managers and returns what this one's FSM returned for it, with the index of
// its entry. Only the leader can (*NotLeaderError; nothing was changed). ErrUnknownOutcome, which also comes with the
// end of ctx, means that the command may be applied, now or later.
func (r *Raft) Propose(ctx context.Context, command []byte) (result any, index uint64, err error) {
	if len(command) > maxCommand {
		return nil, 0, fmt.Errorf("propose a command of %d bytes: at most %d are allowed", len(command), maxCommand)
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("propose a command: %w", err)
	}
	s, err := r.use()
	if err != nil {
		return nil, 0, err
	}
	if !s.isLeader() {
		return nil, 0, r.notLeader()
	}
	var f raft.ApplyFuture
	err = s.await(ctx, func() error {
		f = s.raft.Apply(command, patience(ctx))
		return f.Error()
	})
	switch {
	case err == nil:
	case s.store.failure() != nil:
		// What could not be written may be on the disk all the same, and be found there by the next session.
		return nil, 0, fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
	default:
		return nil, 0, r.outcome(err)
	}
	if bad, ok := f.Response().(error); ok {
		return nil, 0, bad
	}
	return f.Response(), f.Index(), nil
}

// failure is the first error of the store.
func (s *store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Read makes a read of the FSM linearizable: what read sees holds every command whose Propose had returned, on any manager,
// before Read was called. It calls read, which may be repeated, and returns nil if that was a valid read;
// otherwise what it saw must not be used. Only the leader can (*NotLeaderError).
//
// The steps, and their order, matter. First the FSM has to have caught up with all that earlier leaders committed: a
// barrier, once a leadership. Then comes the read. Then a quorum of voters has to recognise this node as the leader of
// the same term, in answer to messages that were sent after the read: so no other leader can have been elected,
// and have had anything committed, before the read. Verifying first would leave a gap; so would an answer to an older
// message, such as one that lay in a socket buffer while this process was stopped.
func (r *Raft) Read(ctx context.Context, read func()) error {
	s, err := r.use()
	if err != nil {
		return err
	}
	term, err := s.ready(ctx)
	if err != nil {
		return err
	}
	read()
	return s.verifier.verify(ctx, term)
}

// ready waits until the FSM holds all that was committed before this node became the leader, and returns the term.
func (s *session) ready(ctx context.Context) (term uint64, err error) {
	term = s.raft.CurrentTerm()
	if !s.isLeader() {
		return 0, s.r.notLeader()
	}
	s.verifier.mu.Lock()
	done := s.verifier.ready == term
	s.verifier.mu.Unlock()
	if done {
		return term, nil
	}
	err = s.await(ctx, func() error { return s.raft.Barrier(patience(ctx)).Error() })
	if err != nil {
		// A barrier changes nothing, so the outcome is not in doubt.
		if ctx.Err() != nil {
			return 0, fmt.Errorf("wait until this new leader has caught up: %w", context.Cause(ctx))
		}
		return 0, s.r.notLeader()
	}
	if s.raft.CurrentTerm() != term {
		return 0, s.r.notLeader() // the barrier may be one of another term
	}
	s.verifier.mu.Lock()
	s.verifier.ready = max(s.verifier.ready, term)
	s.verifier.mu.Unlock()
	return term, nil
}

// verifier asks the voters whether this node still leads. Reads that wait at the same time share a round.
type verifier struct {
	s *session

	mu      sync.Mutex
	ready   uint64            // the last term in which this node led and its FSM had caught up
	waiting map[uint64]*round // by term: rounds that have not begun
	work    chan struct{}     // has room for one: there is a round that has not begun
}

// round is one question to all voters.
type round struct {
	done chan struct{}
	err  error // read after done is closed
}

func (v *verifier) init(s *session) {
	v.s, v.waiting, v.work = s, map[uint64]*round{}, make(chan struct{}, 1)
}

// verify returns nil if this node was the leader of a term at a moment after the call.
func (v *verifier) verify(ctx context.Context, term uint64) error {
	v.mu.Lock()
	q := v.waiting[term]
	if q == nil {
		q = &round{done: make(chan struct{})}
		v.waiting[term] = q
	}
	v.mu.Unlock()
	select {
	case v.work <- struct{}{}:
	default:
	}
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
		return fmt.Errorf("make sure that this manager still leads: %w", context.Cause(ctx))
	case <-v.s.gone:
		return v.s.r.notLeader()
	}
}

// run begins rounds. Each is on its own, so that a voter that does not answer delays nobody for longer than the others
// take to form a quorum.
func (v *verifier) run(ctx context.Context) {
	var rounds sync.WaitGroup
	defer rounds.Wait()
	for {
		select {
		case <-v.work:
		case <-ctx.Done():
			return
		}
		v.mu.Lock()
		waiting := v.waiting
		v.waiting = map[uint64]*round{}
		v.mu.Unlock()
		for term, q := range waiting {
			q.err = v.ask(ctx, &rounds, term)
			close(q.done)
		}
	}
}

// ask sends a heartbeat of a term, in which this node led, to all voters and returns nil when a quorum recognises it.
func (v *verifier) ask(ctx context.Context, rounds *sync.WaitGroup, term uint64) error {
	s := v.s
	need, have := 0, 0
	var others []Server
	for _, x := range s.servers() {
		if !x.Voter {
			continue
		}
		need++
		if x.ID == s.r.cfg.ID {
			have++
		} else {
			others = append(others, x)
		}
	}
	need = need/2 + 1
	answers := make(chan bool, len(others))
	for _, x := range others {
		rounds.Go(func() {
			ok, err := s.trans.heartbeat(s.r.cfg.ID, x.ID, x.Address, term)
			answers <- ok && err == nil
		})
	}
	limit := time.NewTimer(s.r.cfg.Timing.rpcTimeout())
	defer limit.Stop()
	for left := len(others); have < need; left-- {
		if left == 0 {
			return s.r.notLeader()
		}
		select {
		case ok := <-answers:
			if ok {
				have++
			}
		case <-limit.C:
			return s.r.notLeader()
		case <-ctx.Done():
			return s.r.notLeader()
		}
	}
	return nil
}
