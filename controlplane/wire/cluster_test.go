package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

const (
	worker  = statev1.Role_ROLE_WORKER
	manager = statev1.Role_ROLE_MANAGER

	// patience is for what must happen, on however busy a machine.
	patience = 20 * time.Second
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type cluster struct{ *identity.Authority }

func newCluster() cluster { return cluster{must(identity.NewAuthority(identity.NewID(), time.Now()))} }

func (c cluster) issue(id string, role statev1.Role, now time.Time) *identity.Credentials {
	key := must(identity.NewKey())
	cert := must(c.Issue(must(key.CSR()), id, role, now))
	return must(identity.NewCredentials(key, cert, c.CertificateDER()))
}

func (c cluster) node(role statev1.Role) *identity.Credentials {
	return c.issue(identity.NewID(), role, time.Now())
}

// port is a listener that runs.
type port struct {
	*Listener
	log  *logBuffer
	stop func() error // ends Run and returns what it returned
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *logBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// open runs a listener on the loopback, with limits that change may alter.
func open(t *testing.T, cfg Config, change func(*limits)) *port {
	t.Helper()
	lim := defaultLimits()
	if change != nil {
		change(&lim)
	}
	return run(t, must(net.Listen("tcp", "127.0.0.1:0")), cfg, lim)
}

func run(t *testing.T, ln net.Listener, cfg Config, lim limits) *port {
	t.Helper()
	log := new(logBuffer)
	cfg.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if cfg.Protocols == nil {
		cfg.Protocols = []string{"h2", "raft"}
	}
	l := newListener(ln, cfg, lim)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	p := &port{Listener: l, log: log, stop: sync.OnceValue(func() error { cancel(); return <-ended })}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return p
}

// greet serves a protocol: each connection gets a byte and stays open until the other end closes it.
func (p *port) greet(t *testing.T, name string) {
	var wg sync.WaitGroup
	ln := p.Protocol(name)
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if s := c.(*tls.Conn).ConnectionState(); !s.HandshakeComplete || s.NegotiatedProtocol != name {
					t.Errorf("%s: handshake complete %v, protocol %q", name, s.HandshakeComplete, s.NegotiatedProtocol)
				}
				_, _ = c.Write([]byte{'+'})
				_, _ = io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { _ = p.stop(); wg.Wait() })
}

// call connects and waits for the greeting. The connection is closed at the end of the test.
func call(t *testing.T, p *port, cfg *tls.Config, name string) (*tls.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, p.Addr().String(), cfg, name)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.NetConn().Close() })
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err = io.ReadFull(c, make([]byte, 1))
	return c, err
}

// raw connects and says nothing.
func raw(t *testing.T, p *port) net.Conn {
	t.Helper()
	c := must(net.Dial("tcp", p.Addr().String()))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// isClosed waits until the other end has closed the connection.
func isClosed(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, errDeadline) {
		t.Errorf("%v was not closed", c.LocalAddr())
	}
}

// isOpen reports whether the other end has left the connection alone so far.
func isOpen(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, errDeadline)
}

// await waits until the statistics are as wanted.
func (p *port) await(t *testing.T, what string, ok func(Stats) bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(p.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %+v", what, p.Stats())
		}
	}
}

// anonymous is a client without a certificate.
func anonymous() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func loopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

func contains(err error, want string) bool { return err != nil && strings.Contains(err.Error(), want) }
