package wire

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// acceptPause is how long accept waits when the host has run out of something, such as file descriptors.
const acceptPause = 100 * time.Millisecond

// Listener takes connections and hands them to protocols. Make one with Listen; call Run, and Close if Run is not called.
type Listener struct {
	cfg       Config
	limits    limits
	ln        net.Listener
	log       *slog.Logger
	protocols map[string]*protocol
	slots     chan struct{} // one for each handshake goroutine
	handshook sync.WaitGroup
	counters  counters
	noise     noise

	mu         sync.Mutex
	closed     bool
	conns      map[*conn]struct{}
	handshakes list.List // of *conn, the oldest first
	anonymous  list.List // of *conn, the oldest first
	sources    map[netip.Addr]int
}

// Listen takes the port. Connections wait in the kernel until Run.
func Listen(cfg Config) (*Listener, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("listen for other nodes: %w", err)
	}
	network, address := endpoint(cfg.Address)
	ln, err := (&net.ListenConfig{Control: small}).Listen(context.Background(), network, address)
	if err != nil {
		return nil, fmt.Errorf("listen for other nodes on %s, TCP: %w", address, explain(err, cfg.Address))
	}
	return newListener(ln, cfg, defaultLimits()), nil
}

// endpoint is an address as package net takes it.
func endpoint(a netip.AddrPort) (network, address string) {
	switch ip := a.Addr(); {
	case !ip.IsValid(), ip == netip.IPv6Unspecified():
		return "tcp", fmt.Sprintf(":%d", a.Port())
	case ip.Is4():
		return "tcp4", a.String()
	default:
		return "tcp", a.String()
	}
}

// explain adds to an error of the kernel what to do about it.
func explain(err error, a netip.AddrPort) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		owner := portOwner(a)
		if owner == "" {
			owner = "another process"
		}
		return fmt.Errorf("%s has the port: stop it, or choose another control port for this node (%w)", owner, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("no interface of this host has the address: choose another one, or add it to an interface (%w)", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("only root may take a port this low: become root, or choose another control port (%w)", err)
	}
	return err
}

func newListener(ln net.Listener, cfg Config, lim limits) *Listener {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	l := &Listener{
		cfg: cfg, limits: lim, ln: ln, log: cfg.Log,
		protocols: make(map[string]*protocol, len(cfg.Protocols)),
		slots:     make(chan struct{}, lim.handshakes),
		conns:     make(map[*conn]struct{}),
		sources:   make(map[netip.Addr]int),
	}
	for _, name := range cfg.Protocols {
		l.protocols[name] = newProtocol(name, ln.Addr(), lim.backlog)
	}
	return l
}

// Addr returns where it listens.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Protocol returns the connections of one protocol: Accept returns a *tls.Conn whose handshake is over. Closing it
// refuses that protocol from then on and leaves the others alone. Accept's error is net.ErrClosed when nothing will come
// any more, and for a protocol that is not in the configuration from the start.
func (l *Listener) Protocol(name string) net.Listener {
	if p, ok := l.protocols[name]; ok {
		return p
	}
	p := newProtocol(name, l.ln.Addr(), 0)
	_ = p.Close()
	return p
}

// Run takes connections until ctx ends, when it returns nil, or listening fails. It closes the port, ends the handshakes
// that are under way and closes what nobody has accepted; connections that were accepted stay. It may be called once.
func (l *Listener) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { // stop
		defer close(stopped)
		_ = l.Close()
	})
	err := l.accept(ctx)
	if !stop() {
		<-stopped
	}
	_ = l.Close()
	l.handshook.Wait()
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("take connections of other nodes on %v: %w", l.Addr(), err)
}

// Close does what the end of Run's context does, without waiting. It may be called more than once.
func (l *Listener) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	var ending []*conn
	for e := l.handshakes.Front(); e != nil; e = e.Next() {
		ending = append(ending, e.Value.(*conn))
	}
	l.mu.Unlock()
	if !first {
		return nil
	}
	err := l.ln.Close()
	for _, c := range ending {
		_ = c.Close()
	}
	for _, p := range l.protocols {
		_ = p.Close()
	}
	return err
}

func (l *Listener) accept(ctx context.Context) error {
	for {
		raw, err := l.ln.Accept()
		switch {
		case err == nil:
		case isPassing(err):
			// Connections under way go on; new ones wait in the kernel.
			l.warn(nil, "cannot take connections of other nodes at the moment", err)
			select {
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return nil
			}
		default:
			return err
		}
		l.counters.accepted.Add(1)
		c, err := l.admit(raw)
		if err != nil {
			_ = raw.Close()
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			l.counters.overSource.Add(1)
			l.warn(raw.RemoteAddr(), "refused a connection", err)
			continue
		}
		// Were all slots taken, the oldest connection has been closed by now and its goroutine is about to end.
		l.slots <- struct{}{}
		l.handshook.Go(func() { // handshake
			defer func() { <-l.slots }()
			l.handshake(c)
		})
	}
}

// isPassing reports whether accept may succeed later.
func isPassing(err error) bool {
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, // the host's
		syscall.ECONNABORTED, syscall.EPERM, // the client's, a firewall's
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// handshake brings a connection to its protocol or closes it.
func (l *Listener) handshake(c *conn) {
	t := tls.Server(c, l.tlsFor(c))
	p, err := l.negotiate(c, t)
	if err != nil {
		_ = c.Close()
		l.failed(c, err)
		return
	}
	if err := p.hand(t); err != nil {
		_ = c.Close()
		l.counters.overflow.Add(1)
		l.warn(c.RemoteAddr(), "closed a connection", err)
		return
	}
	l.counters.established.Add(1)
}

func (l *Listener) negotiate(c *conn, t *tls.Conn) (*protocol, error) {
	if err := c.SetDeadline(time.Now().Add(l.limits.handshakeTime)); err != nil {
		return nil, err
	}
	if err := t.Handshake(); err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	c.budget = unlimited
	cs := t.ConnectionState()
	if err := l.establish(c, t, len(cs.PeerCertificates) == 0); err != nil {
		return nil, err
	}
	// Once more, now that a Recheck would find it: what changed in between has either been seen by this call, or
	// makes whoever changed it call Recheck.
	if err := l.check(c, cs); err != nil {
		return nil, err
	}
	return l.protocols[cs.NegotiatedProtocol], nil
}

// tlsFor is the configuration for one connection.
func (l *Listener) tlsFor(c *conn) *tls.Config {
	base := l.harden(l.cfg.TLS, c)
	if choose := base.GetConfigForClient; choose != nil {
		base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if err != nil || chosen == nil {
				return nil, err
			}
			return l.harden(chosen, c), nil
		}
	}
	return base
}

// harden adds to a configuration what holds for all connections of this port.
func (l *Listener) harden(cfg *tls.Config, c *conn) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = l.cfg.Protocols
	cfg.SessionTicketsDisabled = true // a session would outlive what Check says
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if verify != nil {
			if err := verify(cs); err != nil {
				return err
			}
		}
		return l.check(c, cs)
	}
	return cfg
}

// check refuses a connection that agreed on no protocol, as crypto/tls lets a client do that names none, or that
// Check does not want.
func (l *Listener) check(c *conn, cs tls.ConnectionState) error {
	var err error
	if _, ok := l.protocols[cs.NegotiatedProtocol]; !ok {
		err = fmt.Errorf("the other end named none of the protocols %q: it is no node, or of a release that this one does not know", l.cfg.Protocols)
	} else if l.cfg.Check != nil {
		err = l.cfg.Check(cs)
	}
	c.refused = err != nil
	return err
}

// Recheck asks Check about every connection that is up, and closes those that it refuses now: a node that was removed
// is not to go on with what it has open. It returns how many.
func (l *Listener) Recheck() int {
	if l.cfg.Check == nil {
		return 0
	}
	l.mu.Lock()
	var up []*conn
	for c := range l.conns {
		if c.tls != nil {
			up = append(up, c)
		}
	}
	l.mu.Unlock()
	n := 0
	for _, c := range up {
		if err := l.cfg.Check(c.tls.ConnectionState()); err != nil {
			_ = c.Close()
			l.counters.refused.Add(1)
			l.log.Info("closed a connection", "remote", c.RemoteAddr(), "reason", err)
			n++
		}
	}
	return n
}
