package consensus

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// sessionStream is the StreamLayer of one session. Closing it closes all its connections, which NetworkTransport does
// not, and leaves Config.Stream open for the next session.
type sessionStream struct {
	stream  StreamLayer
	address address
	timeout time.Duration // of one read inside of a message, and of one write
	conns   chan net.Conn // that were accepted
	closed  chan struct{}
	dialled func() // called for each connection that was made

	handlers sync.WaitGroup // goroutines of NetworkTransport, one an accepted connection; each closes its own in the end

	mu   sync.Mutex
	open map[net.Conn]struct{} // nil once it is closed
}

var _ raft.StreamLayer = (*sessionStream)(nil)

var errNoConnection = errors.New("no connection to the other manager")

func newSessionStream(stream StreamLayer, addr string, timeout time.Duration) *sessionStream {
	return &sessionStream{stream: stream, address: address(addr), timeout: timeout,
		conns: make(chan net.Conn), closed: make(chan struct{}), open: map[net.Conn]struct{}{}}
}

// address is a host:port that is not looked up.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// offer hands an accepted connection to the session and reports whether it took it.
func (s *sessionStream) offer(c net.Conn) bool {
	select {
	case s.conns <- c:
		return true
	case <-s.closed:
		return false
	}
}

// Accept implements net.Listener.
func (s *sessionStream) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return s.track(&inbound{Conn: c, timeout: s.timeout}, c, true)
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Dial implements raft.StreamLayer. NetworkTransport sets deadlines on these connections by itself.
func (s *sessionStream) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, fmt.Errorf("%w: %w", errNoConnection, net.ErrClosed)
	default:
	}
	c, err := s.stream.Dial(to, timeout)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoConnection, err)
	}
	s.dialled()
	return s.track(c, c, false)
}

// Close implements net.Listener.
func (s *sessionStream) Close() error {
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	if open == nil {
		return nil
	}
	close(s.closed)
	for c := range open {
		_ = c.Close()
	}
	return nil
}

// Addr implements net.Listener.
func (s *sessionStream) Addr() net.Addr { return s.address }

// wait waits for the goroutines that handle accepted connections. They may be in the middle of a write to the disk.
func (s *sessionStream) wait() { s.handlers.Wait() }

func (s *sessionStream) track(c, inner net.Conn, accepted bool) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		_ = inner.Close()
		return nil, net.ErrClosed
	}
	s.open[inner] = struct{}{}
	t := &tracked{Conn: c, inner: inner, by: s}
	if accepted {
		s.handlers.Add(1)
		t.handled = s.handlers.Done
	}
	return t, nil
}

// tracked is a connection that its session knows.
type tracked struct {
	net.Conn
	inner   net.Conn
	by      *sessionStream
	handled func() // called by the first Close; nil after it, and for connections that were dialled
}

func (t *tracked) Close() error {
	t.by.mu.Lock()
	delete(t.by.open, t.inner)
	handled := t.handled
	t.handled = nil
	t.by.mu.Unlock()
	if handled != nil {
		handled()
	}
	return t.Conn.Close()
}

// inbound sets the deadlines that NetworkTransport does not set on connections that it accepted. Between messages a
// peer may be silent for as long as it likes. Inside of one it may not: the main loop of Raft itself reads snapshots.
// A message has begun when something was read since the last answer was written. Reads and writes come from one
// goroutine at a time.
type inbound struct {
	net.Conn
	timeout time.Duration
	inside  bool
}

func (c *inbound) Read(b []byte) (int, error) {
	var deadline time.Time
	if c.inside {
		deadline = time.Now().Add(c.timeout)
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.inside = true
	}
	return n, err
}

func (c *inbound) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	c.inside = false
	return c.Conn.Write(b)
}
