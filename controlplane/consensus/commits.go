package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// commitPause is how long the leader waits after an answer by which something may have been committed: until it is, and in
// case that more comes, which says so along with its entries.
const commitPause = 20 * time.Millisecond

// tellCommits tells followers what was committed when it was. hashicorp/raft says it along with entries, and otherwise, for
// ever, in an empty message to each follower after once to twice Timing.Commit, which is late. What fails, or comes too early,
// is tried again after the next answer, of a heartbeat at the latest. So is what hashicorp/raft could not send.
func (s *session) tellCommits(ctx context.Context) {
	var told sync.WaitGroup
	defer told.Wait()
	for {
		select {
		case <-s.trans.news:
		case <-s.trans.back:
			s.sendAgain()
			continue
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(commitPause):
		case <-ctx.Done():
			return
		}
		s.tellCommit(&told)
	}
}

// sendAgain has hashicorp/raft send what a follower lacks that answers again. After a message that failed it waits for
// Timing.Commit, or for a new entry, of which this is one. Nobody waits for what becomes of it.
func (s *session) sendAgain() {
	if s.isLeader() {
		s.raft.Barrier(s.r.cfg.Timing.Heartbeat) // which bounds the wait for its main loop
	}
}

// tellCommit tells those followers that hold the last entry that was committed, and may not know that it was. The
// others are told when they hold it.
func (s *session) tellCommit(told *sync.WaitGroup) {
	term := s.raft.CurrentTerm()
	if !s.isLeader() || s.raft.CurrentTerm() != term {
		return // the message would be in the name of a term in which another one leads
	}
	index := s.raft.CommitIndex()
	due := s.trans.untold(s.servers(), term, index)
	if len(due) == 0 {
		return
	}
	var last raft.Log
	if err := s.store.entry(index, &last); err != nil {
		return // it is in a snapshot only, or the session ends
	}
	for _, x := range due {
		if !s.trans.beginTelling(x.ID) {
			continue
		}
		told.Go(func() {
			defer s.trans.endTelling(x.ID)
			if err := s.trans.commit(s.r.cfg.ID, x.ID, x.Address, term, &last); err != nil {
				s.r.cfg.Log.Debug("could not tell a manager what was committed; it is told again", "id", x.ID, "error", err)
			}
		})
	}
}

// untold returns those of some servers that hold the log up to an index, and may not know that it is committed.
func (t *transport) untold(servers []Server, term, index uint64) []Server {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Server
	for _, x := range servers {
		if p := t.peers[raft.ServerID(x.ID)]; p.term == term && p.told < index && p.match >= index {
			out = append(out, x)
		}
	}
	return out
}

// beginTelling reports whether nobody tells a server yet: one that does not answer is to hold up one goroutine at most.
func (t *transport) beginTelling(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.telling[id] {
		return false
	}
	t.telling[id] = true
	return true
}

func (t *transport) endTelling(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.telling, id)
}

// commit tells a server that the log is committed up to an entry, which it holds. That entry comes before those that are
// sent, of which there are none: a server that holds another one in its place refuses.
func (t *transport) commit(self, id, to string, term uint64, last *raft.Log) error {
	q := t.request(self, term)
	q.PrevLogEntry, q.PrevLogTerm, q.LeaderCommitIndex = last.Index, last.Term, last.Index
	var a raft.AppendEntriesResponse
	return t.AppendEntries(raft.ServerID(id), raft.ServerAddress(to), q, &a)
}

// forget has all servers told again: one that was called anew may be another process, which does not know what is
// committed of its log.
func (t *transport) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, p := range t.peers {
		p.told = 0
		t.peers[id] = p
	}
}
