package wire

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
)

// protocol is the net.Listener of one protocol.
type protocol struct {
	name  string
	addr  net.Addr
	queue chan *tls.Conn
	done  chan struct{} // closed by Close

	mu     sync.Mutex
	closed bool
}

func newProtocol(name string, addr net.Addr, backlog int) *protocol {
	return &protocol{name: name, addr: addr, queue: make(chan *tls.Conn, backlog), done: make(chan struct{})}
}

// Accept waits for the next connection.
func (p *protocol) Accept() (net.Conn, error) {
	select {
	case t := <-p.queue:
		return t, nil
	case <-p.done:
		return nil, fmt.Errorf("accept connections of protocol %q: %w", p.name, net.ErrClosed)
	}
}

// hand puts a connection into the queue. It never waits: a protocol that is not served must not hold up the others.
func (p *protocol) hand(t *tls.Conn) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("protocol %q is not served any more", p.name)
	}
	select {
	case p.queue <- t:
		return nil
	default:
		return fmt.Errorf("%d connections of protocol %q wait already, and no more are allowed", cap(p.queue), p.name)
	}
}

// Close ends Accept and closes the connections that wait for it.
func (p *protocol) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	close(p.done)
	for {
		select {
		case t := <-p.queue:
			_ = t.NetConn().Close() // at once: a farewell may have to wait for the other end
		default:
			return nil
		}
	}
}

// Addr returns where the port is.
func (p *protocol) Addr() net.Addr { return p.addr }
