package underlay

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	receiveBuffer = 4 << 20 // bytes of socket buffer: 50 ms of 1 Gb/s while the reader is elsewhere
	sendBuffer    = 4 << 20
	// sendWait is how long a send may wait for room in the socket's buffer before the datagram counts as
	// dropped; a socket that also receives does not wait. Waiting is what slows TCP down to the device's pace.
	sendWait = 10 * time.Millisecond
	// The dynamic range of RFC 7348, section 5 and RFC 6335.
	firstSource, lastSource = 49152, 65535
	// MaxSegments is how many datagrams may go into one send: the limit before Linux 6.9, which allows 128.
	MaxSegments = 63
)

// Config says how to open an Endpoint.
type Config struct {
	Local     netip.Addr
	Port      uint16 // of VXLAN, here and at the peers
	TTL       int    // TTL or hop limit, 1 to 255
	Checksum  bool   // send outer UDP checksums; without, over IPv4, GSO is off too
	Receivers int    // receiving sockets, over which the kernel spreads flows
	// Readers is how many goroutines read them: receiver i belongs to reader i modulo Readers. The receivers of one
	// reader share the memory into which they receive. 0 = each has a reader of its own.
	Readers int
	Sources int // sending sockets, a power of two; 0 = send from the VXLAN port itself
	GSO     bool
	GRO     bool
	Batch   bool // several datagrams a system call
	Log     *slog.Logger
	// Hint is told of each ICMP or ICMPv6 message that says that a datagram was too big: to whom it was sent, what the
	// path is said to carry, in bytes with the IP header, and the beginning of the UDP payload that the message quotes,
	// as far as it quotes any, valid during the call. Anybody may have sent the message. Hint is called by whoever
	// sends, so that it must not block. nil: nobody is told.
	Hint func(remote netip.Addr, path int, quoted []byte)
}

// Endpoint is one local address of the underlay.
type Endpoint struct {
	Local     netip.Addr
	Receivers []*Receiver
	// Missing tells why something that was asked for is not there, by the names "gso" and "gro".
	Missing map[string]error

	log     *slog.Logger
	port    uint16
	hint    func(remote netip.Addr, path int, quoted []byte)
	batch   int // messages a system call
	sources []int
	ports   []uint16 // of the sources
	owned   []int    // file descriptors to close
	gso     atomic.Bool
	failed  sync.Once // the log has been told of an error without a drop reason of its own

	mu   sync.Mutex
	icmp map[netip.Addr]PeerError
}

// PeerError is the last ICMP error that came back for datagrams to a peer.
type PeerError struct {
	Err  unix.Errno // ECONNREFUSED for port unreachable, and so on
	Time time.Time
}

// Open opens the sockets of an endpoint. The error wraps unix.EADDRINUSE if the port is taken and
// unix.EADDRNOTAVAIL if no interface has the address.
func Open(c Config) (*Endpoint, error) {
	e := &Endpoint{
		Local: c.Local, Missing: map[string]error{}, log: c.Log, port: c.Port, hint: c.Hint, batch: 1,
		icmp: map[netip.Addr]PeerError{},
	}
	if c.Batch {
		e.batch = maxBatch
	}
	if err := e.open(c); err != nil {
		return nil, errors.Join(fmt.Errorf("opening UDP %v: %w", netip.AddrPortFrom(c.Local, c.Port), err), e.Close())
	}
	return e, nil
}

func (e *Endpoint) open(c Config) error {
	if c.Receivers > 1 {
		// With SO_REUSEPORT a second daemon of the same user could share the port unseen. A socket without it
		// finds out.
		fd, err := udpSocket(c)
		if err != nil {
			return err
		}
		if err := errors.Join(bind(fd, c.Local, c.Port), unix.Close(fd)); err != nil {
			return err
		}
	}
	readers := c.Readers
	if readers == 0 {
		readers = c.Receivers
	}
	for i := range c.Receivers {
		fd, err := e.receiver(c)
		if err != nil {
			return err
		}
		e.owned = append(e.owned, fd)
		var shared *buffers
		if i >= readers {
			shared = e.Receivers[i-readers].buffers
		}
		e.Receivers = append(e.Receivers, newReceiver(fd, c, shared))
	}
	e.gso.Store(c.GSO)
	if c.GSO && !c.Checksum && c.Local.Is4() {
		e.gso.Store(false)
		e.Missing["gso"] = errors.New("the outer checksum is off, and the kernel segments only with it")
	}
	if c.Sources == 0 {
		r := e.Receivers[0]
		e.sources, e.ports = []int{r.fd}, []uint16{c.Port}
		r.drainErrors = func() { e.drainErrors(r.fd) }
		return e.sending(r.fd, c)
	}
	for range c.Sources {
		fd, port, err := e.source(c)
		if err != nil {
			return err
		}
		e.sources, e.ports = append(e.sources, fd), append(e.ports, port)
	}
	return nil
}

// receiver opens a socket on the VXLAN port.
func (e *Endpoint) receiver(c Config) (int, error) {
	fd, err := udpSocket(c)
	if err != nil {
		return -1, err
	}
	if c.Receivers > 1 {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	err = errors.Join(err, setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer))
	// A stranger who quotes this port, which everybody knows, must not make the kernel believe in a smaller path: what
	// only receives takes no ICMP messages about sizes. One that sends too is set otherwise afterwards.
	if c.Local.Is4() {
		err = errors.Join(err,
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_INTERFACE))
	} else {
		err = errors.Join(err,
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_INTERFACE),
			// A peer may leave the checksum out (RFC 6935, for tunnels such as this).
			unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1))
	}
	if c.GRO {
		if gro := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); gro != nil {
			e.Missing["gro"] = fmt.Errorf("setting UDP_GRO: %w", gro)
		}
	}
	if err = errors.Join(err, unix.SetNonblock(fd, true)); err == nil {
		err = bind(fd, c.Local, c.Port)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// source opens a socket that only sends, and returns it with its port.
func (e *Endpoint) source(c Config) (int, uint16, error) {
	fd, err := udpSocket(c)
	if err != nil {
		return -1, 0, err
	}
	e.owned = append(e.owned, fd)
	if err := e.sending(fd, c); err != nil {
		return -1, 0, err
	}
	// What strangers send to this port is discarded before it takes memory.
	none := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none[0]}); err != nil {
		return -1, 0, fmt.Errorf("attaching a filter: %w", err)
	}
	const tries = 64
	for range tries {
		port := firstSource + rand.IntN(lastSource-firstSource+1)
		if port == int(c.Port) {
			continue
		}
		err = bind(fd, c.Local, uint16(port))
		if !errors.Is(err, unix.EADDRINUSE) {
			return fd, uint16(port), err
		}
	}
	return -1, 0, fmt.Errorf("finding a free source port from %d to %d in %d tries: %v", firstSource, lastSource, tries, err)
}

// sending sets what a socket that sends needs.
func (e *Endpoint) sending(fd int, c Config) error {
	wait := unix.NsecToTimeval(sendWait.Nanoseconds())
	err := errors.Join(
		setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	if c.Local.Is4() {
		err = errors.Join(err,
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, c.TTL),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		if !c.Checksum {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
		}
	} else {
		err = errors.Join(err,
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, c.TTL),
			// The entropy is in the source port. A flow label too would have to be the same for what does not
			// pass a socket.
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_AUTOFLOWLABEL, 0),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	}
	if err != nil {
		return fmt.Errorf("setting socket options: %w", err)
	}
	if e.gso.Load() {
		// 0 is the default and changes nothing, but a kernel without UDP_SEGMENT refuses it.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0); err != nil {
			e.gso.Store(false)
			e.Missing["gso"] = fmt.Errorf("setting UDP_SEGMENT: %w", err)
		}
	}
	return nil
}

// GSO reports whether sends carry several datagrams.
func (e *Endpoint) GSO() bool { return e.gso.Load() }

// Buckets returns the number of sources.
func (e *Endpoint) Buckets() int { return len(e.sources) }

// Ports returns the ports of the sources.
func (e *Endpoint) Ports() []uint16 { return slices.Clone(e.ports) }

// Source is a socket that only sends. To it come the ICMP errors for what leaves from its port, be it sent by it or not.
type Source struct {
	e  *Endpoint
	fd int
}

// SourceSockets returns the sockets that only send.
func (e *Endpoint) SourceSockets() []Source {
	var out []Source
	for _, fd := range e.sources {
		if len(e.Receivers) == 0 || fd != e.Receivers[0].fd {
			out = append(out, Source{e, fd})
		}
	}
	return out
}

// FD returns the descriptor to wait on: it has an error to report when ICMP errors have come, and nothing to read ever.
func (s Source) FD() int { return s.fd }

// Hear takes note of the ICMP errors that have come. Sends do so too, so that it is of use where none is under way.
func (s Source) Hear() {
	s.e.drainErrors(s.fd)
	// What has no place in the queue must not keep the socket ready.
	_, _ = unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
}

// PeerErrors returns the last ICMP error for each peer that one came back for.
func (e *Endpoint) PeerErrors() map[netip.Addr]PeerError {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[netip.Addr]PeerError, len(e.icmp))
	for a, v := range e.icmp {
		out[a] = v
	}
	return out
}

// Overflow returns how many datagrams the kernel dropped because a receive buffer was full.
func (e *Endpoint) Overflow() uint64 {
	var n uint64
	for _, r := range e.Receivers {
		n += r.overflow()
	}
	return n
}

// Close closes all sockets. No Receive or Send may be under way.
func (e *Endpoint) Close() error {
	var errs []error
	for _, fd := range e.owned {
		errs = append(errs, unix.Close(fd))
	}
	e.Receivers, e.owned = nil, nil
	return errors.Join(errs...)
}

func udpSocket(c Config) (int, error) {
	family := unix.AF_INET
	if c.Local.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return -1, errors.Join(err, unix.Close(fd))
		}
	}
	return fd, nil
}

func bind(fd int, a netip.Addr, port uint16) error { return unix.Bind(fd, socketAddress(a, port)) }

// setBuffer asks for more than net.core.*mem_max first, which needs CAP_NET_ADMIN.
func setBuffer(fd, force, plain, size int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
}
