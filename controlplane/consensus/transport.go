package consensus

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

var errMuted = errors.New("this node is silent because its disk hangs or has failed")

// transport is NetworkTransport with an eye on what the followers answer. hashicorp/raft does not say how far each is.
type transport struct {
	*raft.NetworkTransport
	stream *sessionStream
	hasty  time.Duration // a message that fails within this was sent on a dead connection, and did not wait for an answer
	muted  atomic.Bool   // no entries and no heartbeats go out, while the disk hangs
	cut    atomic.Bool   // the same, for good, because the session has failed

	mu      sync.Mutex
	peers   map[raft.ServerID]progress
	telling map[string]bool // IDs of servers that are being told what is committed

	news chan struct{} // capacity 1: there may be something to tell
	back chan struct{} // capacity 1: a follower answers again that lacks something, or may
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

// poolSize is how many connections to each other manager stay open: for heartbeats, entries, reads and commits.
const poolSize = 4

// progress is what the leader of a term knows of a follower.
type progress struct {
	term    uint64
	match   uint64    // the follower holds the log up to this index
	told    uint64    // and knows that it is committed up to this one
	missed  bool      // it did not take what it was sent of the log, and nothing since
	contact time.Time // of the last answer that recognised the leader
}

func newTransport(s *sessionStream, timeout time.Duration, resolve func(string) (string, bool), log hclog.Logger) *transport {
	c := &raft.NetworkTransportConfig{
		Stream:  s,
		MaxPool: poolSize,
		// One message at a time: answers to pipelined ones would pass the transport by, and the log is short.
		MaxRPCsInFlight:         1,
		Timeout:                 timeout,
		Logger:                  log,
		MsgpackUseNewTimeFormat: true,
	}
	if resolve != nil {
		c.ServerAddressProvider = resolver(resolve)
	}
	t := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(c), stream: s, hasty: timeout / 10,
		peers: map[raft.ServerID]progress{}, telling: map[string]bool{}, news: make(chan struct{}, 1), back: make(chan struct{}, 1),
	}
	s.dialled = t.forget
	return t
}

type resolver func(string) (string, bool)

var errNotKnown = errors.New("its address is not known")

// ServerAddr implements raft.ServerAddressProvider.
func (f resolver) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if a, ok := f(string(id)); ok {
		return raft.ServerAddress(a), nil
	}
	return "", errNotKnown
}

// AppendEntries implements raft.Transport.
func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	beat := q.PrevLogEntry == 0 && len(q.Entries) == 0
	err := t.send(id, to, q, a)
	switch {
	case err != nil && !beat:
		t.note(id, q.Term, func(p *progress) { p.missed = true })
	case err == nil && a.Term == q.Term:
		t.answered(id, q.Term, func(p *progress) {
			match := q.PrevLogEntry + uint64(len(q.Entries))
			switch {
			case beat && p.missed && a.Success:
				p.missed = false
				poke(t.back)
			case beat:
			case a.Success:
				p.match, p.told, p.missed = max(p.match, match), max(p.told, min(match, q.LeaderCommitIndex)), false
			default:
				p.match, p.missed = 0, true // it may have lost what it held
			}
		})
	}
	return err
}

// send sends a message. What has entries is sent again at once if it fails soon on a connection, and not for want of one: that
// may have died unnoticed, as when the other process was restarted. hashicorp/raft sends it again when the other one answers
// a heartbeat, or Timing.Commit is over.
func (t *transport) send(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	for tries := 1; ; tries++ {
		if t.muted.Load() || t.cut.Load() {
			return errMuted
		}
		begin := time.Now()
		err := t.NetworkTransport.AppendEntries(id, to, q, a)
		// That a deadline passed cannot be told by the error, of which the decoder keeps the text only.
		if err == nil || len(q.Entries) == 0 || tries > poolSize || errors.Is(err, errNoConnection) || time.Since(begin) > t.hasty {
			return err
		}
	}
}

// InstallSnapshot implements raft.Transport.
func (t *transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	if t.muted.Load() || t.cut.Load() {
		return errMuted
	}
	if err := t.NetworkTransport.InstallSnapshot(id, to, q, a, data); err != nil {
		t.note(id, q.Term, func(p *progress) { p.missed = true })
		return err
	}
	if a.Success && a.Term == q.Term {
		t.answered(id, q.Term, func(p *progress) {
			p.match, p.told, p.missed = max(p.match, q.LastLogIndex), max(p.told, q.LastLogIndex), false
		})
	}
	return nil
}

// answered takes an answer that recognised the leader of a term into account, and what it says beyond that.
func (t *transport) answered(id raft.ServerID, term uint64, says func(*progress)) {
	t.note(id, term, func(p *progress) {
		says(p)
		p.contact = time.Now()
		if p.told < p.match {
			poke(t.news)
		}
	})
}

// note changes what is known of a follower in a term, unless there is a later one.
func (t *transport) note(id raft.ServerID, term uint64, change func(*progress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[id]
	if p.term > term {
		return
	}
	if p.term < term {
		p = progress{term: term}
	}
	change(&p)
	t.peers[id] = p
}

// of returns what is known of a follower in a term.
func (t *transport) of(id string, term uint64) progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[raft.ServerID(id)]; p.term == term {
		return p
	}
	return progress{}
}

// request returns what all messages of the leader of a term begin with.
func (t *transport) request(self string, term uint64) *raft.AppendEntriesRequest {
	me := t.EncodePeer(raft.ServerID(self), t.LocalAddr())
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: me},
		Term:      term,
	}
}

// heartbeat asks a server whether it recognises this node as the leader of a term, which it must have been.
func (t *transport) heartbeat(self, id, to string, term uint64) (bool, error) {
	q := t.request(self, term)
	var a raft.AppendEntriesResponse
	if err := t.AppendEntries(raft.ServerID(id), raft.ServerAddress(to), q, &a); err != nil {
		return false, err
	}
	return a.Success && a.Term == term, nil
}

// Close implements raft.WithClose. It may be called more than once.
func (t *transport) Close() error {
	err := t.NetworkTransport.Close()
	return errors.Join(err, t.stream.Close())
}
