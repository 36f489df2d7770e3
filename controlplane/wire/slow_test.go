//go:build !race

package wire

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a net.Listener in memory, for virtual time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7789} }

// from is a connection that seems to come from an address.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// Who sends a byte a second to keep its handshake going is through after ten seconds, however many it is.
func TestSlowHandshakesEndInTime(t *testing.T) {
	cfg := newCluster().node(manager).ServerTLS()
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		p := run(t, ln, Config{TLS: cfg}, defaultLimits())
		start := time.Now()
		const clients = 100
		var wg sync.WaitGroup
		for i := range clients {
			here, there := net.Pipe()
			ln.conns <- from{there, &net.TCPAddr{IP: net.IPv4(198, 51, 100, byte(i)), Port: 1}}
			wg.Go(func() {
				defer here.Close()
				hello := append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, make([]byte, 300)...)
				for _, b := range hello {
					if _, err := here.Write([]byte{b}); err != nil {
						break
					}
					time.Sleep(time.Second)
				}
				if took := time.Since(start); took < 10*time.Second || took > 11*time.Second {
					t.Errorf("ended after %v", took)
				}
			})
		}
		synctest.Wait()
		if s := p.Stats(); s.Handshakes != clients {
			t.Errorf("%+v", s)
		}
		wg.Wait()
		synctest.Wait()
		if s := p.Stats(); s.TimedOut != clients || s.Handshakes != 0 || s.Connections != 0 || len(p.sources) != 0 {
			t.Errorf("%+v", s)
		}
		if err := p.stop(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

// After its handshake a connection has all the time that its protocol gives it.
func TestDeadlineEndsWithTheHandshake(t *testing.T) {
	cfg := newCluster().node(manager).ServerTLS()
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		p := run(t, ln, Config{TLS: cfg}, defaultLimits())
		here, there := net.Pipe()
		ln.conns <- from{there, &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 1}}
		client := anonymous()
		client.NextProtos = []string{"h2"}
		c := tls.Client(here, client)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		server, err := p.Protocol("h2").Accept()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		go func() { _, _ = server.Write([]byte{'+'}) }()
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Errorf("the connection ended: %v", err)
		}
		_ = here.Close()
		_ = server.(*tls.Conn).NetConn().Close()
		if s := p.Stats(); s.Connections != 0 || s.Anonymous != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The end does not wait for handshakes.
func TestEndDoesNotWaitForHandshakes(t *testing.T) {
	cfg := newCluster().node(manager).ServerTLS()
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		p := run(t, ln, Config{TLS: cfg}, defaultLimits())
		here, there := net.Pipe()
		defer here.Close()
		ln.conns <- from{there, &net.TCPAddr{IP: net.IPv4(198, 51, 100, 1), Port: 1}}
		synctest.Wait()
		start := time.Now()
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

// However fast they come, only so many handshakes compute at once: one that has given way counts until it has ended.
func TestGoroutinesAreBounded(t *testing.T) {
	cfg := newCluster().node(manager).ServerTLS()
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		busy, goOn := make(chan struct{}, 100), make(chan struct{})
		lim := defaultLimits()
		lim.handshakes = 3
		p := run(t, ln, Config{TLS: cfg, Check: func(tls.ConnectionState) error {
			busy <- struct{}{}
			<-goOn
			return errors.New("no")
		}}, lim)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				here, there := net.Pipe()
				defer here.Close()
				select {
				case ln.conns <- from{there, &net.TCPAddr{IP: net.IPv4(198, 51, 100, byte(i)), Port: 1}}:
				case <-ln.done:
					return
				}
				client := anonymous()
				client.NextProtos = []string{"h2"}
				c := tls.Client(here, client)
				if c.Handshake() == nil {
					_, _ = c.Read(make([]byte, 1))
				}
			})
		}
		synctest.Wait()
		if n := len(busy); n != 3 {
			t.Errorf("%d handshakes compute at once, 3 may", n)
		}
		close(goOn)
		wg.Wait()
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
}
