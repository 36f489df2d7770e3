package wire

import (
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Stats says what a Listener has and had to do.
type Stats struct {
	// Now.
	Handshakes  int // under way
	Connections int // all of them, those in their handshake included
	Anonymous   int // established without a client's certificate

	// Since the start. Accepted connections end as one of the others, or end before their handshake.
	Accepted    uint64
	Established uint64 // handed to their protocol
	Failed      uint64 // the handshake did not succeed
	TimedOut    uint64 // the handshake took too long
	Refused     uint64 // by Config.Check, later ones by Recheck included
	Evicted     uint64 // gave way to younger ones, established ones without a certificate included
	OverSource  uint64 // one source has too many without a certificate
	Overflow    uint64 // nobody took them from their protocol
}

type counters struct {
	accepted, established, failed, timedOut, refused, evicted, overSource, overflow atomic.Uint64
}

// Stats returns what the listener has to do at the moment and had to do.
func (l *Listener) Stats() Stats {
	l.mu.Lock()
	s := Stats{Handshakes: l.handshakes.Len(), Connections: len(l.conns), Anonymous: l.anonymous.Len()}
	l.mu.Unlock()
	c := &l.counters
	s.Accepted, s.Established, s.Failed, s.TimedOut = c.accepted.Load(), c.established.Load(), c.failed.Load(), c.timedOut.Load()
	s.Refused, s.Evicted, s.OverSource, s.Overflow = c.refused.Load(), c.evicted.Load(), c.overSource.Load(), c.overflow.Load()
	return s
}

// noisePause is how far apart warnings are: whoever can connect can cause one, and must not fill the disk by it.
const noisePause = time.Second

// noise thins out warnings.
type noise struct {
	mu   sync.Mutex
	next time.Time
	kept int // not logged since the last one that was
}

// warn logs what a stranger caused, once a second at most, with the number of those left out before.
func (l *Listener) warn(remote net.Addr, what string, err error) {
	l.noise.mu.Lock()
	defer l.noise.mu.Unlock()
	now := time.Now()
	if now.Before(l.noise.next) {
		l.noise.kept++
		return
	}
	args := []any{slog.Any("reason", err)}
	if remote != nil {
		args = append(args, slog.Any("remote", remote))
	}
	if l.noise.kept > 0 {
		args = append(args, slog.Int("like_this_before", l.noise.kept))
	}
	l.noise.next, l.noise.kept = now.Add(noisePause), 0
	l.log.Warn(what, args...)
}
