package wire

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSegments looks at what both ends of a connection agreed on: on loopback it would be 64 KB.
func TestSegments(t *testing.T) {
	c := newCluster().node(manager)
	l, err := Listen(Config{Address: netip.MustParseAddrPort("127.0.0.1:0"), TLS: c.ServerTLS("a"), Protocols: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := (&net.Dialer{}).Dial("tcp", l.Addr().String()) // one that does not limit itself
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := segmentOf(t, conn); got > maxSegment {
		t.Errorf("who connects here sends segments of %d bytes, want at most %d", got, maxSegment)
	}

	free, err := net.Listen("tcp", "127.0.0.1:0") // one that does not limit itself
	if err != nil {
		t.Fatal(err)
	}
	defer free.Close()
	d, err := (&net.Dialer{Control: small}).Dial("tcp", free.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := segmentOf(t, d); got > maxSegment {
		t.Errorf("this end sends segments of %d bytes, want at most %d", got, maxSegment)
	}
}

func segmentOf(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return n
}
