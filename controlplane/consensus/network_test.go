package consensus

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// network connects the managers of a test in memory. Its connections behave like TCP: what a partition holds back
// arrives when it heals, unless the connection was reset.
type network struct {
	mu        sync.Mutex
	listeners map[string]*memStream
	blocked   map[[2]string]bool // from, to
	conns     map[*memConn]struct{}
	slow      atomic.Int64 // the longest that anything takes, in ns
}

// delay is how long something takes to arrive.
func (n *network) delay() time.Duration {
	if slow := n.slow.Load(); slow > 0 {
		return time.Duration(rand.Int64N(slow))
	}
	return 0
}

func newNetwork() *network {
	return &network{listeners: map[string]*memStream{}, blocked: map[[2]string]bool{}, conns: map[*memConn]struct{}{}}
}

// block holds back everything from one node to another, or lets it go.
func (n *network) block(from, to string, hold bool) {
	n.mu.Lock()
	n.blocked[[2]string{from, to}] = hold
	var woken []*memConn
	for c := range n.conns {
		woken = append(woken, c)
	}
	n.mu.Unlock()
	for _, c := range woken {
		c.in.wake()
	}
}

func (n *network) holds(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.blocked[[2]string{from, to}]
}

// split separates the nodes in a from those in b.
func (n *network) split(a, b []string, hold bool) {
	for _, x := range a {
		for _, y := range b {
			n.block(x, y, hold)
			n.block(y, x, hold)
		}
	}
}

// reset breaks all connections of a node, as a host does that dies and one that was stopped for long.
func (n *network) reset(address string) {
	n.mu.Lock()
	var broken []*memConn
	for c := range n.conns {
		if c.local == address || c.remote == address {
			broken = append(broken, c)
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
}

// stream makes a node's end of the network.
func (n *network) stream(address string) *memStream {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &memStream{net: n, address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[address] = s
	return s
}

type memStream struct {
	net     *network
	address string
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func (s *memStream) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *memStream) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *memStream) Addr() net.Addr { return address(s.address) }

func (s *memStream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	default:
	}
	if s.net.holds(s.address, string(to)) || s.net.holds(string(to), s.address) {
		select {
		case <-limit.C:
			return nil, os.ErrDeadlineExceeded
		case <-s.closed:
			return nil, net.ErrClosed
		}
	}
	s.net.mu.Lock()
	l := s.net.listeners[string(to)]
	s.net.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	here, there := s.net.pair(s.address, string(to))
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		_ = here.Close()
		return nil, errors.New("connection refused")
	case <-s.closed:
		_ = here.Close()
		return nil, net.ErrClosed
	case <-limit.C:
		_ = here.Close()
		return nil, os.ErrDeadlineExceeded
	}
}

// half is one direction of a connection.
type half struct {
	mu      sync.Mutex
	buf     []byte
	ready   time.Time // when the last of buf arrives
	ended   bool
	changed chan struct{} // closed and replaced at each change
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) end() {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	h.wake()
}

type memConn struct {
	net           *network
	local, remote string
	in, out       *half

	mu       sync.Mutex
	deadline time.Time // of reads; writes never wait
}

func (n *network) pair(a, b string) (*memConn, *memConn) {
	x, y := newHalf(), newHalf()
	here := &memConn{net: n, local: a, remote: b, in: x, out: y}
	there := &memConn{net: n, local: b, remote: a, in: y, out: x}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[here], n.conns[there] = struct{}{}, struct{}{}
	return here, there
}

func (c *memConn) Read(b []byte) (int, error) {
	for {
		held := c.net.holds(c.remote, c.local)
		c.mu.Lock()
		deadline := c.deadline
		c.mu.Unlock()
		c.in.mu.Lock()
		wait := time.Until(c.in.ready)
		if len(c.in.buf) > 0 && !held && wait <= 0 {
			n := copy(b, c.in.buf)
			c.in.buf = c.in.buf[n:]
			c.in.mu.Unlock()
			return n, nil
		}
		if c.in.ended {
			c.in.mu.Unlock()
			return 0, io.EOF
		}
		arrives := len(c.in.buf) > 0 && !held
		changed := c.in.changed
		c.in.mu.Unlock()
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		if left := time.Until(deadline); !deadline.IsZero() && (!arrives || left < wait) {
			arrives, wait = true, left
		}
		if !arrives {
			<-changed
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

func (c *memConn) Write(b []byte) (int, error) {
	c.out.mu.Lock()
	if c.out.ended {
		c.out.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	c.out.buf = append(c.out.buf, b...)
	c.out.ready = time.Now().Add(c.net.delay())
	c.out.mu.Unlock()
	c.out.wake()
	return len(b), nil
}

func (c *memConn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	c.in.end()
	c.out.end()
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	c.in.wake()
	return nil
}

func (c *memConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memConn) LocalAddr() net.Addr              { return address(c.local) }
func (c *memConn) RemoteAddr() net.Addr             { return address(c.remote) }
