package consensus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// hashicorp/raft has a timer for each follower that sends it a heartbeat every tenth to fifth of its HeartbeatTimeout, by
// which a follower also knows when to miss its leader. Each timer wakes this manager twice. So a leader, which misses
// nobody, is told a timeout longer by slowFactor, and one timer here has all heartbeats sent at the same time, before those
// of hashicorp/raft are due. These are left for when its main loop is busy with the disk.
const (
	slowFactor = 3
	// beatsPerTimeout is how many heartbeats beat sends in Timing.Heartbeat. A follower that misses two of these in a row has
	// still heard from its leader in time. hashicorp/raft itself waits for slowFactor tenths of it at least and for twice that at
	// most: when its heartbeats have to do, a follower can afford to miss none.
	beatsPerTimeout = 4
)

// beats is what decides on the heartbeats of a session.
type beats struct {
	look chan struct{} // capacity 1: it may have changed who leads, who votes, or who answers

	mu      sync.Mutex
	failing map[raft.ServerID]bool // that do not answer: hashicorp/raft waits longer from try to try, up to half of its timeout
	held    int                    // leadership is being handed over, for which hashicorp/raft takes its timeout, too
}

func (b *beats) init() { b.look, b.failing = make(chan struct{}, 1), map[raft.ServerID]bool{} }

// observe passes changes of leadership on to those who watch, and has the session look at what depends on it.
func (s *session) observe(ctx context.Context) {
	// hashicorp/raft tells after it has changed something. What finds no room tells no more than what is in there: that
	// there is something to look at.
	changes := make(chan raft.Observation, 1)
	o := raft.NewObserver(changes, false, s.beats.concerns)
	s.raft.RegisterObserver(o)
	defer s.raft.DeregisterObserver(o)
	for {
		s.r.tell()
		poke(s.r.servers)
		poke(s.beats.look)
		select {
		case <-changes:
		case <-ctx.Done():
			return
		}
	}
}

// concerns takes note of what hashicorp/raft tells, and returns whether there is something to look at.
func (b *beats) concerns(o *raft.Observation) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	had := len(b.failing)
	switch what := o.Data.(type) {
	case raft.LeaderObservation:
		return true
	case raft.RaftState:
		b.failing = map[raft.ServerID]bool{}
		return true
	case raft.PeerObservation:
		delete(b.failing, what.Peer.ID)
		return true
	case raft.FailedHeartbeatObservation:
		b.failing[what.PeerID] = true
	case raft.ResumedHeartbeatObservation:
		delete(b.failing, what.PeerID)
	}
	return len(b.failing) != had
}

// hold has hashicorp/raft be no more patient than Timing says while leadership is handed over.
func (s *session) hold(on bool) {
	s.beats.mu.Lock()
	if on {
		s.beats.held++
	} else {
		s.beats.held--
	}
	s.beats.mu.Unlock()
	s.pace()
}

// pace tells hashicorp/raft the timeout that is right now.
func (s *session) pace() {
	s.beats.mu.Lock()
	defer s.beats.mu.Unlock()
	t := s.r.cfg.Timing
	// Of one that was removed hashicorp/raft may still say that it fails. For a leader whose vote is the only one it sends
	// nothing when beat asks it to.
	failing := slices.ContainsFunc(s.servers(), func(x Server) bool { return s.beats.failing[raft.ServerID(x.ID)] })
	if s.isLeader() && s.hasOtherVoters() && !failing && s.beats.held == 0 {
		t.Heartbeat *= slowFactor
		t.Election *= slowFactor // must not be shorter
	}
	c := s.raft.ReloadableConfig()
	if c.HeartbeatTimeout == t.Heartbeat {
		return
	}
	c.HeartbeatTimeout, c.ElectionTimeout = t.Heartbeat, t.Election
	if err := s.raft.ReloadConfig(c); err != nil {
		s.r.cfg.Log.Warn("cannot change how often heartbeats are sent", "error", err)
	}
}

// beat has heartbeats sent while this node leads other voters, and keeps the pace right.
func (s *session) beat(ctx context.Context) {
	for {
		s.pace()
		var due <-chan time.Time
		if s.isLeader() && s.hasOtherVoters() {
			due = time.After(untilWhole(time.Now(), s.r.cfg.Timing.Heartbeat/beatsPerTimeout))
		}
		select {
		case <-due:
			s.raft.VerifyLeader() // to ask is to send; the answer is of no interest, unless another one leads
		case <-s.beats.look:
		case <-ctx.Done():
			return
		}
	}
}

// untilWhole returns how long it is until the clock shows a whole multiple of d. What is done again and again is done then, by
// whoever does it: this process then wakes once for all of it, and so do those that hear of it.
func untilWhole(now time.Time, d time.Duration) time.Duration { return d - now.Sub(now.Truncate(d)) }
