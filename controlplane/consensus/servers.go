package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// maxBehind is how many entries a non-voter may lack and still count as one that keeps up.
const maxBehind = 256

// Server is a manager as Raft knows it.
type Server struct {
	ID      string
	Address string // host:port
	Voter   bool   // false while it catches up
}

func (s *session) servers() []Server {
	conf := s.raft.GetConfiguration().Configuration() // answers at once
	out := make([]Server, 0, len(conf.Servers))
	for _, x := range conf.Servers {
		out = append(out, Server{ID: string(x.ID), Address: string(x.Address), Voter: x.Suffrage == raft.Voter})
	}
	return out
}

// Servers returns the servers that this node knows of, the last change included even if it is not committed; none if
// this node takes no part.
func (r *Raft) Servers() []Server {
	if s := r.current(); s != nil {
		return s.servers()
	}
	return nil
}

func (s *session) isLeader() bool { return s.raft.State() == raft.Leader }

func (s *session) hasOtherVoters() bool {
	return slices.ContainsFunc(s.servers(), func(x Server) bool { return x.Voter && x.ID != s.r.cfg.ID })
}

// change has the leader change the servers.
func (r *Raft) change(ctx context.Context, what, id string, f func(s *session, id raft.ServerID, wait time.Duration) raft.IndexFuture) error {
	s, err := r.use()
	if err != nil {
		return err
	}
	if !s.isLeader() {
		return r.notLeader()
	}
	err = s.await(ctx, func() error { return f(s, raft.ServerID(id), patience(ctx)).Error() })
	if err := r.outcome(err); err != nil {
		return fmt.Errorf("%s server %s: %w", what, id, err)
	}
	return nil
}

// AddNonvoter adds a server, or changes the address of one; then it keeps its vote. The leader promotes it when it has
// kept up for Config.StabilizeTime. Only the leader can. It waits until the change is committed.
func (r *Raft) AddNonvoter(ctx context.Context, id, address string) error {
	if id == "" {
		return errors.New("add a server: no ID is given")
	}
	if err := checkAddress(address); err != nil {
		return fmt.Errorf("add server %s: %w", id, err)
	}
	return r.change(ctx, "add", id, func(s *session, id raft.ServerID, wait time.Duration) raft.IndexFuture {
		return s.raft.AddNonvoter(id, raft.ServerAddress(address), 0, wait)
	})
}

// Remove removes a server; it is no error if there is none with that ID. Only the leader can. Ask CanLose first: Remove
// does what it is told.
func (r *Raft) Remove(ctx context.Context, id string) error {
	return r.change(ctx, "remove", id, func(s *session, id raft.ServerID, wait time.Duration) raft.IndexFuture {
		return s.raft.RemoveServer(id, 0, wait)
	})
}

// Demote takes the vote from a server. Config.WantVoter has to say so too, or else it is promoted again. Only the
// leader can. Ask CanLose first.
func (r *Raft) Demote(ctx context.Context, id string) error {
	return r.change(ctx, "demote", id, func(s *session, id raft.ServerID, wait time.Duration) raft.IndexFuture {
		return s.raft.DemoteVoter(id, 0, wait)
	})
}

// CanLose returns nil if the managers can still agree when the server with that ID is gone, and otherwise an error that
// says why not. It counts voters that answer now. Only the leader can say.
func (r *Raft) CanLose(id string) error {
	s, err := r.use()
	if err != nil {
		return err
	}
	if !s.isLeader() {
		return r.notLeader()
	}
	term := s.raft.CurrentTerm()
	left, answer, voter := 0, 0, false
	var silent []string
	for _, x := range s.servers() {
		switch {
		case !x.Voter:
		case x.ID == id:
			voter = true
		default:
			left++
			if x.ID == r.cfg.ID || s.inContact(x.ID, term) {
				answer++
			} else {
				silent = append(silent, x.ID)
			}
		}
	}
	switch need := left/2 + 1; {
	case !voter:
		return nil
	case left == 0:
		return fmt.Errorf("%s is the only manager with a vote: promote another node, and wait until it votes", id)
	case answer < need:
		return fmt.Errorf("without %s, %d managers with a vote are left and %d of them have to work, but only %d do (no answer from %v): repair or remove those first", id, left, need, answer, silent)
	}
	return nil
}

// inContact says whether a server answered the leader of a term lately.
func (s *session) inContact(id string, term uint64) bool {
	return time.Since(s.trans.of(id, term).contact) <= s.r.cfg.Timing.Election
}

// TransferLeadership has another manager lead: the one that answers and holds most of the log. Only the leader can.
func (r *Raft) TransferLeadership(ctx context.Context) error {
	s, err := r.use()
	if err != nil {
		return err
	}
	if !s.isLeader() {
		return r.notLeader()
	}
	return s.transfer(ctx)
}

// transfer tries the others in turn. hashicorp/raft would pick one by what it has sent to it, down or not.
func (s *session) transfer(ctx context.Context) error {
	s.hold(true)
	defer s.hold(false)
	term := s.raft.CurrentTerm()
	others := slices.DeleteFunc(s.servers(), func(x Server) bool {
		return !x.Voter || x.ID == s.r.cfg.ID || !s.inContact(x.ID, term)
	})
	if len(others) == 0 {
		return errors.New("hand leadership over: no other manager with a vote answers")
	}
	slices.SortStableFunc(others, func(a, b Server) int {
		return cmp.Compare(s.trans.of(b.ID, term).match, s.trans.of(a.ID, term).match)
	})
	var errs []error
	for _, x := range others {
		err := s.await(ctx, func() error {
			return s.raft.LeadershipTransferToServer(raft.ServerID(x.ID), raft.ServerAddress(x.Address)).Error()
		})
		if err == nil || !s.isLeader() {
			return nil
		}
		errs = append(errs, fmt.Errorf("hand leadership over to %s: %w", x.ID, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// autopilot promotes, while this node leads, non-voters that are wanted and have kept up for long enough. While there are
// none it sleeps.
func (s *session) autopilot(ctx context.Context) {
	var again <-chan time.Time
	var term uint64
	since := map[string]time.Time{} // a non-voter keeps up
	for {
		select {
		case <-s.r.servers:
			poke(s.beats.look)
		case <-again:
		case <-ctx.Done():
			return
		}
		again = nil
		if t := s.raft.CurrentTerm(); t != term || !s.isLeader() {
			term = t
			clear(since)
		}
		if s.isLeader() && s.promote(ctx, term, since) {
			again = time.After(max(s.r.cfg.StabilizeTime/10, time.Millisecond))
		}
	}
}

// promote promotes one non-voter, if one is due, and reports whether there are any.
func (s *session) promote(ctx context.Context, term uint64, since map[string]time.Time) (any bool) {
	cfg := &s.r.cfg
	now := time.Now()
	for _, x := range s.servers() {
		any = any || !x.Voter
		keepsUp := s.inContact(x.ID, term) && s.trans.of(x.ID, term).match+maxBehind >= s.raft.LastIndex()
		if x.Voter || !keepsUp || s.trans.of(x.ID, term).match == 0 {
			delete(since, x.ID)
			continue
		}
		if _, known := since[x.ID]; !known {
			since[x.ID] = now
		}
		if now.Sub(since[x.ID]) < cfg.StabilizeTime || cfg.WantVoter != nil && !cfg.WantVoter(x.ID) {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, cfg.Timing.rpcTimeout())
		err := s.await(bounded, func() error {
			return s.raft.AddVoter(raft.ServerID(x.ID), raft.ServerAddress(x.Address), 0, patience(bounded)).Error()
		})
		cancel()
		if err != nil {
			cfg.Log.Warn("cannot promote a manager yet", "id", x.ID, "error", err)
		} else {
			cfg.Log.Info("a manager has a vote now", "id", x.ID)
		}
		return true // one at a time: the others may count on it now
	}
	return any
}
