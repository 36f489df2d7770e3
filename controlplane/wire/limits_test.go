package wire

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/identity"
)

// From one source only so many may come without a certificate, and those that have one do not count.
func TestConnectionsOfOneSourceAreBounded(t *testing.T) {
	c := newCluster()
	p := open(t, Config{TLS: c.node(manager).ServerTLS()}, func(l *limits) { l.perSource = 4 })
	p.greet(t, "h2")
	for range 10 { // members: as many as they like
		must(call(t, p, c.node(worker).ClientTLS(identity.Expect{}), "h2"))
	}
	var held []net.Conn
	for i := range 4 { // half of them silent, half joining
		if i%2 == 0 {
			held = append(held, raw(t, p))
		} else {
			held = append(held, must(call(t, p, anonymous(), "h2")))
		}
	}
	p.await(t, "all counted", func(s Stats) bool { return s.Handshakes == 2 && s.Anonymous == 2 })
	for range 3 {
		isClosed(t, raw(t, p))
	}
	p.await(t, "refused", func(s Stats) bool { return s.OverSource == 3 })
	for _, conn := range held {
		if !isOpen(conn) {
			t.Error("one that was there before was closed")
		}
	}
	// Each one that goes makes room.
	for _, conn := range held {
		_ = conn.Close()
	}
	p.await(t, "room", func(s Stats) bool { return s.Handshakes == 0 && s.Anonymous == 0 })
	must(call(t, p, anonymous(), "h2"))
	must(call(t, p, c.node(worker).ClientTLS(identity.Expect{}), "h2"))
}

// Attackers of many sources cannot take all places for good: the oldest gives way, and nodes still get in.
func TestHandshakesAreBounded(t *testing.T) {
	c := newCluster()
	p := open(t, Config{TLS: c.node(manager).ServerTLS()}, func(l *limits) { l.handshakes, l.perSource = 8, 1<<20 })
	p.greet(t, "h2")
	var held []net.Conn
	for i := range 100 {
		held = append(held, raw(t, p))
		p.await(t, "taken", func(s Stats) bool { return s.Accepted == uint64(i+1) })
		if s := p.Stats(); s.Handshakes > 8 || s.Connections > 9 {
			t.Fatalf("%+v", s)
		}
	}
	for _, conn := range held[:92] {
		isClosed(t, conn)
	}
	p.await(t, "the oldest are gone", func(s Stats) bool { return s.Evicted == 92 && s.Handshakes == 8 && s.Connections == 8 })
	for range 20 {
		must(call(t, p, c.node(worker).ClientTLS(identity.Expect{}), "h2"))
	}
	must(call(t, p, anonymous(), "h2"))
}

// The same for those that finish their handshake without a certificate and then stay.
func TestStrangersThatStayAreBounded(t *testing.T) {
	c := newCluster()
	p := open(t, Config{TLS: c.node(manager).ServerTLS()}, func(l *limits) { l.anonymous, l.perSource = 3, 1000 })
	p.greet(t, "h2")
	member := must(call(t, p, c.node(worker).ClientTLS(identity.Expect{}), "h2"))
	var held []net.Conn
	for range 10 {
		held = append(held, must(call(t, p, anonymous(), "h2")))
	}
	for _, conn := range held[:7] {
		isClosed(t, conn)
	}
	p.await(t, "the oldest are gone", func(s Stats) bool { return s.Anonymous == 3 && s.Evicted == 7 && s.Connections == 4 })
	for _, conn := range append(held[7:], member) {
		if !isOpen(conn) {
			t.Error("the wrong one was closed")
		}
	}
}

// Bytes of a handshake that never ends are not kept.
func TestBytesOfAHandshakeAreBounded(t *testing.T) {
	p := open(t, Config{TLS: newCluster().node(manager).ServerTLS()}, nil)
	conn := raw(t, p)
	// A ClientHello that claims 64,000 bytes, in records of 16 KiB.
	hello := make([]byte, 64000)
	hello[0] = 1
	hello[1], hello[2], hello[3] = 0, byte((len(hello)-4)>>8), byte((len(hello)-4)&0xff)
	for len(hello) > 0 {
		n := min(len(hello), 16<<10)
		head := []byte{22, 3, 1, 0, 0}
		binary.BigEndian.PutUint16(head[3:], uint16(n))
		_, _ = conn.Write(append(head, hello[:n]...))
		hello = hello[n:]
	}
	isClosed(t, conn)
	p.await(t, "failed", func(s Stats) bool { return s.Failed == 1 && s.Connections == 0 })
	p.await(t, "said why", func(Stats) bool { return strings.Contains(p.log.String(), errTooLong.Error()) })
}

// However many strangers hold on, each with as much as it may send, the memory they cost is bounded.
func TestMemoryIsBounded(t *testing.T) {
	p := open(t, Config{TLS: newCluster().node(manager).ServerTLS()}, func(l *limits) { l.perSource = 1 << 20 })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 600 {
		conn := raw(t, p)
		head := []byte{22, 3, 1, 0x40, 0, 1, 0, 0xfa, 0} // a record of 16 KiB of a hello of 64,000 bytes
		_, _ = conn.Write(append(head, make([]byte, 16<<10-5)...))
	}
	p.await(t, "all taken", func(s Stats) bool { return s.Accepted == 600 && s.Connections <= 128 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 24<<20 {
		t.Errorf("600 strangers cost %d bytes", grown)
	}
}

// What nobody accepts is closed, and does not hold up another protocol.
func TestProtocolThatNobodyServes(t *testing.T) {
	c := newCluster()
	p := open(t, Config{TLS: c.node(manager).ServerTLS()}, func(l *limits) { l.backlog = 2 })
	p.greet(t, "h2")
	client := c.node(manager).ClientTLS(identity.Expect{})
	for range 5 {
		must(Dial(t.Context(), p.Addr().String(), client, "raft")).NetConn().SetDeadline(time.Now().Add(patience))
	}
	p.await(t, "too many", func(s Stats) bool { return s.Overflow == 3 && s.Connections == 2 })
	must(call(t, p, client, "h2"))
	// Closed at the end, since nobody has accepted them.
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if s := p.Stats(); s.Handshakes != 0 {
		t.Errorf("%+v", s)
	}
}

// The end closes what is in its handshake or waits, and leaves alone what was accepted.
func TestEnd(t *testing.T) {
	c := newCluster()
	p := open(t, Config{TLS: c.node(manager).ServerTLS()}, nil)
	client := c.node(manager).ClientTLS(identity.Expect{})
	accepted := make(chan net.Conn, 1)
	go func() { conn, _ := p.Protocol("h2").Accept(); accepted <- conn }()
	a := must(Dial(t.Context(), p.Addr().String(), client, "h2"))
	defer a.NetConn().Close()
	conn := <-accepted
	defer conn.Close()
	waits := must(Dial(t.Context(), p.Addr().String(), client, "raft"))
	defer waits.NetConn().Close()
	silent := raw(t, p)
	p.await(t, "all there", func(s Stats) bool { return s.Established == 2 && s.Handshakes == 1 })
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	isClosed(t, silent)
	isClosed(t, waits)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	_ = a.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
		t.Errorf("a connection in use: %v", err)
	}
	for _, name := range []string{"h2", "raft", "unknown"} {
		if _, err := p.Protocol(name).Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept of %s: %v", name, err)
		}
	}
	if _, err := net.DialTimeout("tcp", p.Addr().String(), patience); err == nil {
		t.Error("the port is open")
	}
}

func TestListenRefuses(t *testing.T) {
	good := newCluster().node(manager).ServerTLS()
	taken := must(net.Listen("tcp", "127.0.0.1:0"))
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	me := fmt.Sprintf("(process %d) has the port: stop it, or choose another control port", os.Getpid())
	for name, x := range map[string]struct {
		cfg  Config
		want string
		is   error
	}{
		"a taken port":          {Config{Address: loopback(port), TLS: good, Protocols: []string{"h2"}}, me, syscall.EADDRINUSE},
		"a taken port, all":     {Config{Address: netip.AddrPortFrom(netip.Addr{}, port), TLS: good, Protocols: []string{"h2"}}, me, syscall.EADDRINUSE},
		"a taken port, all v4":  {Config{Address: netip.AddrPortFrom(netip.IPv4Unspecified(), port), TLS: good, Protocols: []string{"h2"}}, me, syscall.EADDRINUSE},
		"an address of another": {Config{Address: netip.MustParseAddrPort("192.0.2.77:0"), TLS: good, Protocols: []string{"h2"}}, "no interface of this host", syscall.EADDRNOTAVAIL},
		"no TLS":                {Config{Address: loopback(0), Protocols: []string{"h2"}}, "no TLS", nil},
		"no protocol":           {Config{Address: loopback(0), TLS: good}, "no protocol", nil},
		"an empty protocol":     {Config{Address: loopback(0), TLS: good, Protocols: []string{""}}, "empty", nil},
		"a protocol twice":      {Config{Address: loopback(0), TLS: good, Protocols: []string{"a", "b", "a"}}, "twice", nil},
	} {
		l, err := Listen(x.cfg)
		if err == nil {
			_ = l.Close()
		}
		if !contains(err, x.want) || x.is != nil && !errors.Is(err, x.is) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
}

func TestListenOnAllAddresses(t *testing.T) {
	c := newCluster()
	for name, ip := range map[string]netip.Addr{"none": {}, "::": netip.IPv6Unspecified(), "0.0.0.0": netip.IPv4Unspecified()} {
		l, err := Listen(Config{Address: netip.AddrPortFrom(ip, 0), TLS: c.node(manager).ServerTLS(), Protocols: []string{"h2"}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		for _, host := range []string{"127.0.0.1", "::1"} {
			conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if err == nil {
				_ = conn.Close()
			}
			if want := host == "127.0.0.1" || name != "0.0.0.0"; (err == nil) != want {
				t.Errorf("%s: %s: %v", name, host, err)
			}
		}
		if err := l.Close(); err != nil { // without Run
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// scripted is a net.Listener that returns errors before it goes on as another one.
type scripted struct {
	net.Listener
	mu   sync.Mutex
	errs []error
}

func (s *scripted) Accept() (net.Conn, error) {
	s.mu.Lock()
	if len(s.errs) > 0 {
		err := s.errs[0]
		s.errs = s.errs[1:]
		s.mu.Unlock()
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	s.mu.Unlock()
	return s.Listener.Accept()
}

// A host without file descriptors, or a client that gives up early, does not end the listener; a broken socket does.
func TestAcceptErrors(t *testing.T) {
	c := newCluster()
	ln := &scripted{Listener: must(net.Listen("tcp", "127.0.0.1:0")), errs: []error{syscall.EMFILE, syscall.ECONNABORTED}}
	p := run(t, ln, Config{TLS: c.node(manager).ServerTLS()}, defaultLimits())
	p.greet(t, "h2")
	must(call(t, p, c.node(worker).ClientTLS(identity.Expect{}), "h2"))
	if !strings.Contains(p.log.String(), "too many open files") {
		t.Errorf("the log says %s", p.log)
	}
	broken := &scripted{Listener: must(net.Listen("tcp", "127.0.0.1:0")), errs: []error{syscall.EBADF}}
	l := newListener(broken, Config{TLS: c.node(manager).ServerTLS(), Protocols: []string{"h2"}}, defaultLimits())
	if err := l.Run(t.Context()); !errors.Is(err, syscall.EBADF) {
		t.Errorf("Run: %v", err)
	}
	if _, err := l.Protocol("h2").Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
}

func TestSourceOf(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:7": "2001:db8:1:2::", "[fe80::1%eth0]:7": "fe80::",
	} {
		if got := sourceOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a))); got.String() != want {
			t.Errorf("%s counts as %v, want %s", a, got, want)
		}
	}
}

// The configuration that is handed in is the caller's, and what it verifies is still verified.
func TestConfigIsNotChanged(t *testing.T) {
	c := newCluster()
	cfg := c.node(manager).ServerTLS()
	no := errors.New("no")
	cfg.VerifyConnection = func(tls.ConnectionState) error { return no }
	p := open(t, Config{TLS: cfg}, nil)
	p.greet(t, "h2")
	if _, err := call(t, p, c.node(worker).ClientTLS(identity.Expect{}), "h2"); err == nil {
		t.Error("let in")
	}
	if len(cfg.NextProtos) != 0 || cfg.VerifyConnection(tls.ConnectionState{}) != no {
		t.Error("the configuration was changed")
	}
}
