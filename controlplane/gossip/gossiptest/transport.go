package gossiptest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// socketBuffer is how many packets wait for a node that is busy. More are lost, as with a socket.
const socketBuffer = 4096

var errShutdown = errors.New("the transport is shut down")

// Transport is one node's access to a Network.
type Transport struct {
	net  *Network
	addr netip.AddrPort

	packets chan *memberlist.Packet
	streams chan net.Conn
	close   sync.Once
	done    chan struct{}

	packetsSent, packetsReceived, bytesSent, bytesReceived, lost atomic.Uint64
	streamsDialled, streamBytesSent, streamBytesReceived         atomic.Uint64
}

var _ memberlist.Transport = (*Transport)(nil)

// Counts returns what has passed so far.
func (t *Transport) Counts() Counts {
	return Counts{
		PacketsSent: t.packetsSent.Load(), PacketsReceived: t.packetsReceived.Load(),
		BytesSent: t.bytesSent.Load(), BytesReceived: t.bytesReceived.Load(),
		StreamsDialled: t.streamsDialled.Load(), Lost: t.lost.Load(),
		StreamBytesSent: t.streamBytesSent.Load(), StreamBytesReceived: t.streamBytesReceived.Load(),
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

// WriteTo implements memberlist.Transport. Like a socket it does not tell that a packet got lost.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("sending a packet: %w", err)
	}
	select {
	case <-t.done:
		return time.Time{}, errShutdown
	default:
	}
	t.packetsSent.Add(1)
	t.bytesSent.Add(uint64(len(b)))
	if !t.net.send(t.addr, to, append([]byte(nil), b...)) {
		t.lost.Add(1)
	}
	return time.Now(), nil
}

func (t *Transport) deliver(from netip.AddrPort, b []byte) {
	select {
	case <-t.done:
		return
	default:
	}
	select {
	case t.packets <- &memberlist.Packet{Buf: b, From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}:
		t.packetsReceived.Add(1)
		t.bytesReceived.Add(uint64(len(b)))
	default:
	}
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout implements memberlist.Transport. Where nothing gets through it takes the whole timeout.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dialling: %w", err)
	}
	t.streamsDialled.Add(1)
	peer, latency := t.net.reach(t.addr, to)
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	failed := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	if peer == nil {
		select {
		case <-limit.C:
			return failed(os.ErrDeadlineExceeded)
		case <-t.done:
			return failed(errShutdown)
		}
	}
	time.Sleep(2 * latency)
	here, there := net.Pipe()
	select {
	case peer.streams <- &conn{Conn: there, local: peer, remote: t}:
		return &conn{Conn: here, local: t, remote: peer}, nil
	case <-limit.C:
		err = os.ErrDeadlineExceeded
	case <-peer.done:
		err = errors.New("connection refused")
	case <-t.done:
		err = errShutdown
	}
	return failed(errors.Join(err, here.Close(), there.Close()))
}

// Shutdown implements memberlist.Transport.
func (t *Transport) Shutdown() error {
	t.close.Do(func() {
		close(t.done)
		t.net.mu.Lock()
		defer t.net.mu.Unlock()
		delete(t.net.transports, t.addr)
	})
	return nil
}

// conn is one end of a stream.
type conn struct {
	net.Conn
	local, remote *Transport
}

// Write sends b after the latency of the path. What cannot get through vanishes, and the other end waits.
func (c *conn) Write(b []byte) (int, error) {
	n := c.local.net
	n.mu.Lock()
	ok, d := n.passes(c.local.addr, c.remote.addr), n.delay()
	n.mu.Unlock()
	c.local.streamBytesSent.Add(uint64(len(b)))
	time.Sleep(d)
	if !ok {
		return len(b), nil
	}
	written, err := c.Conn.Write(b)
	c.remote.streamBytesReceived.Add(uint64(written))
	return written, err
}

// LocalAddr returns the address of the transport that this end belongs to.
func (c *conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local.addr) }

// RemoteAddr returns the address of the other transport.
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote.addr) }
