package gossip

import (
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func socketOption(t *testing.T, c syscall.Conn, level, option int) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var v int
	var get error
	if err := raw.Control(func(fd uintptr) { v, get = unix.GetsockoptInt(int(fd), level, option) }); err != nil || get != nil {
		t.Fatal(err, get)
	}
	return v
}

// Where ICMP is filtered, nothing but this keeps a stream from being lost on a narrow path. It must hold in both
// directions, and follow the path.
func TestSegmentsFollowThePath(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var size atomic.Int64
	size.Store(1240)
	s, err := listen([]netip.AddrPort{at}, func() int { return int(size.Load()) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	}()
	if got := socketOption(t, s.ends[0].udp, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER); got != unix.IP_PMTUDISC_OMIT {
		t.Errorf("IP_MTU_DISCOVER is %d, want %d", got, unix.IP_PMTUDISC_OMIT)
	}
	for _, want := range []int{1240, 1000, 1400} {
		size.Store(int64(want))
		s.tend(slog.New(slog.DiscardHandler))
		// A peer that knows nothing of narrow paths.
		plain, err := net.Dial("tcp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		accepted := <-s.streams
		ours, err := s.DialTimeout(at.String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		peer := <-s.streams
		for name, c := range map[string]net.Conn{
			"of the peer that dialled": plain, "accepted": accepted, "dialled": ours, "accepted from ours": peer,
		} {
			// With timestamps, 12 bytes of each segment are not payload.
			if got := socketOption(t, c.(*net.TCPConn), unix.IPPROTO_TCP, unix.TCP_MAXSEG); got != want && got != want-12 {
				t.Errorf("%s: segments of %d bytes, want %d", name, got, want)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSocketsOfOneFamily(t *testing.T) {
	s := &sockets{ends: []*end{{addr: netip.MustParseAddrPort("192.0.2.1:7790")}}}
	if _, err := s.WriteTo(nil, "[2001:db8::1]:7790"); err == nil {
		t.Error("sent to IPv6 from IPv4")
	}
	if _, err := s.DialTimeout("[2001:db8::1]:7790", time.Second); err == nil {
		t.Error("dialled IPv6 from IPv4")
	}
	for _, bad := range []string{"", "192.0.2.1", "host:1"} {
		if _, err := s.WriteTo(nil, bad); err == nil {
			t.Errorf("sent to %q", bad)
		}
	}
}
