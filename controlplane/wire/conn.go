package wire

import (
	"container/list"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
)

// unlimited is the budget of a connection after its handshake.
const unlimited = -1

var (
	errTooLong = errors.New("the handshake is longer than any of a node")
	errEvicted = errors.New("it took too long while many others wanted to connect")
)

// conn is a TCP connection that is counted until it is closed. Whoever accepts has the *tls.Conn above it.
type conn struct {
	net.Conn
	l      *Listener
	source netip.Addr

	// Of the handshake goroutine alone, until it hands the connection over.
	budget  int  // bytes that it may still receive, or unlimited
	refused bool // by Check

	// Guarded by l.mu.
	tls     *tls.Conn     // set when the handshake is over
	waiting *list.Element // in l.handshakes
	nobody  *list.Element // in l.anonymous
	charged bool          // counted in l.sources
	evicted bool

	once  sync.Once
	close error
}

// Read bounds what a client can make crypto/tls keep: a handshake message may be up to 256 KB.
func (c *conn) Read(b []byte) (int, error) {
	if c.budget == unlimited {
		return c.Conn.Read(b)
	}
	if c.budget == 0 {
		return 0, errTooLong
	}
	n, err := c.Conn.Read(b[:min(len(b), c.budget)])
	c.budget -= n
	return n, err
}

// Close closes the connection and gives back what it occupied.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.close = c.Conn.Close()
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		c.l.release(c)
		delete(c.l.conns, c)
	})
	return c.close
}

// sourceOf is what limits for each source go by: an IPv6 host has a whole /64 to itself.
func sourceOf(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := p.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}

// admit lets a connection begin its handshake. If too many are at it, the oldest one is closed.
func (l *Listener) admit(raw net.Conn) (*conn, error) {
	c := &conn{Conn: raw, l: l, source: sourceOf(raw.RemoteAddr()), budget: l.limits.handshakeBytes}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, net.ErrClosed
	}
	if l.sources[c.source] >= l.limits.perSource {
		l.mu.Unlock()
		return nil, fmt.Errorf("%d connections of the same source have shown no certificate, and no more are allowed", l.limits.perSource)
	}
	var oldest *conn
	if l.handshakes.Len() >= l.limits.handshakes {
		oldest = l.evict(&l.handshakes)
	}
	l.conns[c] = struct{}{}
	l.sources[c.source]++
	c.charged = true
	c.waiting = l.handshakes.PushBack(c)
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
	return c, nil
}

// establish notes that a handshake is over. A connection without a certificate stays on the account of its source, and
// if there are too many of them, the oldest is closed.
func (l *Listener) establish(c *conn, t *tls.Conn, anonymous bool) error {
	l.mu.Lock()
	if c.waiting == nil || l.closed { // closed meanwhile, or about to be
		l.mu.Unlock()
		return net.ErrClosed
	}
	c.tls = t
	l.handshakes.Remove(c.waiting)
	c.waiting = nil
	var oldest *conn
	if anonymous {
		if l.anonymous.Len() >= l.limits.anonymous {
			oldest = l.evict(&l.anonymous)
		}
		c.nobody = l.anonymous.PushBack(c)
	} else {
		l.discharge(c)
	}
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
	return nil
}

// evict takes the oldest connection off a list, for the caller to close. It is called with l.mu held.
func (l *Listener) evict(from *list.List) *conn {
	c := from.Front().Value.(*conn)
	c.evicted = true
	l.counters.evicted.Add(1)
	l.release(c)
	return c
}

// release takes a connection off all accounts. It is called with l.mu held.
func (l *Listener) release(c *conn) {
	if c.waiting != nil {
		l.handshakes.Remove(c.waiting)
		c.waiting = nil
	}
	if c.nobody != nil {
		l.anonymous.Remove(c.nobody)
		c.nobody = nil
	}
	l.discharge(c)
}

// discharge takes a connection off the account of its source. It is called with l.mu held.
func (l *Listener) discharge(c *conn) {
	if !c.charged {
		return
	}
	c.charged = false
	if l.sources[c.source]--; l.sources[c.source] == 0 {
		delete(l.sources, c.source)
	}
}

// failed counts and tells why a handshake came to nothing.
func (l *Listener) failed(c *conn, err error) {
	l.mu.Lock()
	evicted, closed := c.evicted, l.closed
	l.mu.Unlock()
	switch {
	case closed:
	case evicted: // is counted
		l.warn(c.RemoteAddr(), "closed a connection", errEvicted)
	case errors.Is(err, io.EOF) && c.budget == l.limits.handshakeBytes:
		// Who connects and says nothing looks whether the port is open.
		l.log.Debug("a connection ended before its handshake", "remote", c.RemoteAddr())
	case errors.Is(err, os.ErrDeadlineExceeded):
		l.counters.timedOut.Add(1)
		l.warn(c.RemoteAddr(), "closed a connection", fmt.Errorf("its handshake was not over after %v", l.limits.handshakeTime))
	case c.refused:
		l.counters.refused.Add(1)
		l.warn(c.RemoteAddr(), "refused a connection", err)
	default:
		l.counters.failed.Add(1)
		l.warn(c.RemoteAddr(), "refused a connection", err)
	}
}
