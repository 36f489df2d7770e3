package consensus

import (
	"context"

	"github.com/hashicorp/raft"
)

// leadership is what this node knows now.
func (r *Raft) leadership() Leadership { return r.current().leadership() }

func (s *session) leadership() Leadership {
	if s == nil {
		return Leadership{State: Stopped}
	}
	l := Leadership{State: Follower}
	switch s.raft.State() {
	case raft.Leader:
		l.State = Leader
	case raft.Candidate:
		l.State = Candidate
	case raft.Shutdown:
		l.State = Stopped
	}
	address, id := s.raft.LeaderWithID()
	l.LeaderID, l.LeaderAddress = string(id), string(address)
	return l
}

// State returns the part that this node plays.
func (r *Raft) State() State { return r.leadership().State }

// IsLeader says whether this node leads, as far as it knows: another one may have been elected already. Only a
// successful Propose or Read proves it.
func (r *Raft) IsLeader() bool { return r.State() == Leader }

// Leader returns the leader that this node knows of; empty strings if none.
func (r *Raft) Leader() (id, address string) {
	l := r.leadership()
	return l.LeaderID, l.LeaderAddress
}

// Watch returns a channel that delivers who leads: first what is known now, then each change. Only the newest is kept for
// a slow reader. The channel is closed when ctx ends or Stop was called.
func (r *Raft) Watch(ctx context.Context) <-chan Leadership {
	c := make(chan Leadership, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	c <- r.session.leadership()
	if r.watchers == nil {
		close(c)
		return c
	}
	r.watchers[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, there := r.watchers[c]; there {
			delete(r.watchers, c)
			close(c)
		}
	})
	return c
}

// tell passes on what is known now, if it has changed.
func (r *Raft) tell() {
	r.mu.Lock() // before the look, so that of two at the same time the later one has the last word
	defer r.mu.Unlock()
	now := r.session.leadership()
	if now == r.told {
		return
	}
	r.told = now
	for c := range r.watchers {
		select {
		case <-c: // overtaken
		default:
		}
		c <- now // there is room: only this function sends, under mu
	}
}

// unwatch ends all channels.
func (r *Raft) unwatch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.watchers {
		close(c)
	}
	r.watchers = nil
}
