package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sys/unix"
)

const (
	// readBuffer is longer than any packet that is sent: what comes truncated was not sent by a node.
	readBuffer    = 4096
	receiveBuffer = 2 << 20 // bytes of socket buffer
	// retry is how long to wait after an error, such as that the process has no descriptor left.
	retry = 100 * time.Millisecond
)

// sockets are the UDP and TCP sockets of a node. memberlist's own transport sends everything from the first of
// its addresses, whatever the family, and takes 64 KiB of fresh memory for each packet.
type sockets struct {
	segment func() int // the largest TCP segment in bytes
	ends    []*end
	packets chan *memberlist.Packet
	streams chan net.Conn

	ctx    context.Context // ends dialling
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// end is what listens on one address.
type end struct {
	addr netip.AddrPort
	udp  *net.UDPConn
	tcp  *net.TCPListener
	said int // segment size that tcp announces
}

var _ memberlist.Transport = (*sockets)(nil)

// listen opens sockets on all addresses. Connections come from the address of their family that is listened
// on. If that is unspecified the kernel chooses: the advertised one need not be an address of this host.
func listen(bind []netip.AddrPort, segment func() int) (*sockets, error) {
	s := &sockets{segment: segment, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, a := range bind {
		e, err := s.open(a)
		if err != nil {
			hint := ""
			if errors.Is(err, unix.EADDRINUSE) {
				hint = "; another program has this port: stop it, or choose another gossip port"
			}
			return nil, errors.Join(fmt.Errorf("listening on %v: %w%s", a, err, hint), s.close())
		}
		s.ends = append(s.ends, e)
	}
	for _, e := range s.ends {
		s.wg.Add(2)
		go s.receive(e)
		go s.accept(e)
	}
	return s, nil
}

func (s *sockets) open(a netip.AddrPort) (*end, error) {
	e := &end{addr: a, said: s.segment()}
	c := net.ListenConfig{Control: s.prepare}
	u, err := c.ListenPacket(s.ctx, network("udp", a.Addr()), a.String())
	if err != nil {
		return nil, err
	}
	e.udp = u.(*net.UDPConn)
	l, err := c.Listen(s.ctx, network("tcp", a.Addr()), a.String())
	if err != nil {
		return nil, errors.Join(err, e.udp.Close())
	}
	e.tcp = l.(*net.TCPListener)
	return e, nil
}

// network returns the network of one family: "udp" alone would take IPv4 on an IPv6 socket too.
func network(name string, a netip.Addr) string {
	if a.Is4() {
		return name + "4"
	}
	return name + "6"
}

// prepare sets the options of a socket before it is bound or connected.
func (s *sockets) prepare(network, _ string, c syscall.RawConn) error {
	var err error
	set := func(fd, level, option, value int, name string) {
		if e := unix.SetsockoptInt(fd, level, option, value); e != nil {
			err = errors.Join(err, fmt.Errorf("setting %s: %w", name, e))
		}
	}
	control := c.Control(func(f uintptr) {
		fd := int(f)
		switch network {
		case "tcp4", "tcp6":
			set(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, s.segment(), "TCP_MAXSEG")
		case "udp4":
			// No DF, and no belief in ICMP: packets have the size of the path already.
			set(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT, "IP_MTU_DISCOVER")
			set(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer, "SO_RCVBUF")
		case "udp6":
			set(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT, "IPV6_MTU_DISCOVER")
			set(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer, "SO_RCVBUF")
		}
	})
	return errors.Join(control, err)
}

// tend makes new connections follow the path's size. A connection takes the listener's when it is made.
func (s *sockets) tend(log *slog.Logger) {
	want := s.segment()
	for _, e := range s.ends {
		if e.said == want {
			continue
		}
		raw, err := e.tcp.SyscallConn()
		if err == nil {
			control := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, want)
			})
			err = errors.Join(err, control)
		}
		if err != nil {
			log.Warn("gossip: cannot set the segment size of incoming connections", "address", e.addr, "bytes", want, "error", err)
			continue
		}
		e.said = want
	}
}

// receive is the goroutine "udp".
func (s *sockets) receive(e *end) {
	defer s.wg.Done()
	buf := make([]byte, readBuffer)
	for {
		n, from, err := e.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if !s.pause() {
				return
			}
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
		select {
		case s.packets <- p:
		case <-s.ctx.Done():
			return
		}
	}
}

// accept is the goroutine "tcp".
func (s *sockets) accept(e *end) {
	defer s.wg.Done()
	for {
		c, err := e.tcp.Accept()
		if err != nil {
			if !s.pause() {
				return
			}
			continue
		}
		select {
		case s.streams <- c:
		case <-s.ctx.Done():
			_ = c.Close() // nothing has been said on it
			return
		}
	}
}

// pause waits, and reports false if the sockets are closed.
func (s *sockets) pause() bool {
	select {
	case <-s.ctx.Done():
		return false
	case <-time.After(retry):
		return true
	}
}

// FinalAdvertiseAddr implements memberlist.Transport. It is not asked: transport is in between.
func (s *sockets) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	return net.ParseIP(ip), port, nil
}

// endTo returns what sends to an address of the family of a.
func (s *sockets) endTo(a netip.Addr) (*end, error) {
	for _, e := range s.ends {
		if e.addr.Addr().Is4() == a.Is4() {
			return e, nil
		}
	}
	return nil, fmt.Errorf("no address of this family to send from to %v: listen on one, or have the node advertise another", a)
}

// WriteTo implements memberlist.Transport.
func (s *sockets) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	e, err := s.endTo(to.Addr())
	if err != nil {
		return time.Time{}, err
	}
	_, err = e.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// DialTimeout implements memberlist.Transport.
func (s *sockets) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	e, err := s.endTo(to.Addr())
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: timeout, Control: s.prepare}
	if from := e.addr.Addr(); !from.IsUnspecified() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return d.DialContext(s.ctx, network("tcp", to.Addr()), to.String())
}

// PacketCh implements memberlist.Transport.
func (s *sockets) PacketCh() <-chan *memberlist.Packet { return s.packets }

// StreamCh implements memberlist.Transport.
func (s *sockets) StreamCh() <-chan net.Conn { return s.streams }

// Shutdown implements memberlist.Transport. It ends dialling too.
func (s *sockets) Shutdown() error {
	err := s.close()
	s.wg.Wait()
	return err
}

func (s *sockets) close() error {
	s.cancel()
	var errs []error
	for _, e := range s.ends {
		errs = append(errs, e.udp.Close(), e.tcp.Close())
	}
	return errors.Join(errs...)
}
