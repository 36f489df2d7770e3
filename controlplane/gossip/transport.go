package gossip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	maxIncoming  = 128 // streams at once
	maxPerSource = 16  // of these from one address
)

var errClosed = errors.New("gossip is closed")

// transport lies between memberlist and the network, and sees what goes by in clear. See doc.go.
type transport struct {
	inner   memberlist.Transport
	cluster [8]byte
	keys    *atomic.Pointer[keyring]
	room    func() int // bytes of content that a packet may have now
	sent    func(part []byte)
	got     func(part []byte)
	count   *counters
	routes  routes

	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	wg      sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	conns     map[*stream]struct{}
	incoming  int
	perSource map[netip.Addr]int
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func (t *transport) start() {
	t.packets = make(chan *memberlist.Packet)
	t.streams = make(chan net.Conn)
	t.done = make(chan struct{})
	t.conns = map[*stream]struct{}{}
	t.perSource = map[netip.Addr]int{}
	t.wg.Add(2)
	go t.takePackets()
	go t.takeStreams()
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the advertised address: %w", err)
	}
	return a.AsSlice(), port, nil
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress implements memberlist.NodeAwareTransport. It sends the parts of a packet in as many packets
// as it takes. The checksum goes: the seal is a better one.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	ps := parts(b)
	for _, p := range ps {
		t.sent(p)
	}
	var errs []error
	ring, room, to := t.keys.Load(), t.room(), t.routes.to(a)
	for _, plain := range join(ps, room) {
		if len(plain) > room {
			t.count.oversize.Add(1) // nothing that memberlist sends is so long; perhaps it gets there
		}
		sealed, err := ring.sealPacket(t.cluster, plain)
		if err == nil {
			err = t.write(sealed, to)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 1 {
		return time.Time{}, errs[0] // memberlist looks at its type
	}
	return time.Now(), errors.Join(errs...)
}

// write sends one packet to all addresses of a list. That it does not leave for some is no error, if it does for one.
func (t *transport) write(sealed []byte, to []string) error {
	var failed error
	sent := false
	for _, addr := range to {
		t.count.packetsSent.Add(1)
		t.count.bytesSent.Add(uint64(len(sealed)))
		if _, err := t.inner.WriteTo(sealed, addr); err != nil {
			failed = err
		} else {
			sent = true
		}
	}
	if sent {
		return nil
	}
	return failed
}

// takePackets is the goroutine "packets".
func (t *transport) takePackets() {
	defer t.wg.Done()
	for {
		select {
		case p := <-t.inner.PacketCh():
			plain, err := t.keys.Load().openPacket(t.cluster, p.Buf)
			if err != nil {
				t.count.reject(err)
				continue
			}
			ps := parts(plain)
			if slices.ContainsFunc(ps, func(p []byte) bool { return !packetPart(p) }) {
				t.count.reject(errMalformed)
				continue
			}
			t.routes.note(p.From)
			t.count.packetsReceived.Add(1)
			t.count.bytesReceived.Add(uint64(len(p.Buf)))
			for _, part := range ps {
				t.got(part)
			}
			select {
			case t.packets <- &memberlist.Packet{Buf: plain, From: p.From, Timestamp: p.Timestamp}:
			case <-t.done:
			}
		case <-t.done:
			return
		}
	}
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	c, err := t.routes.dial(a, timeout, t.inner.DialTimeout)
	if err != nil {
		return nil, err
	}
	s := newStream(c, t, true)
	if !t.hold(s, netip.Addr{}) {
		return nil, errors.Join(errClosed, c.Close())
	}
	t.count.streamsDialled.Add(1)
	return s, nil
}

// takeStreams is the goroutine "streams".
func (t *transport) takeStreams() {
	defer t.wg.Done()
	for {
		select {
		case c := <-t.inner.StreamCh():
			s := newStream(c, t, false)
			if !t.hold(s, sourceOf(c)) {
				t.count.rejectedBusy.Add(1)
				_ = c.Close() // nothing has been said on it
				continue
			}
			t.wg.Add(1)
			go t.greet(s)
		case <-t.done:
			return
		}
	}
}

// greet is the goroutine "greeting". memberlist gets a connection only when a key has opened its first record.
func (t *transport) greet(s *stream) {
	defer t.wg.Done()
	err := s.SetDeadline(time.Now().Add(streamTimeout))
	if err == nil {
		err = s.next()
	}
	if err != nil {
		t.count.reject(err)
		_ = s.Close() // it ends either way
		return
	}
	t.count.streamsAccepted.Add(1)
	select {
	case t.streams <- s:
	case <-t.done:
		_ = s.Close() // as Shutdown does
	}
}

// hold notes a connection, so that Shutdown can end it, and arranges for it to be forgotten when it is closed.
// It reports false if there is no room for it or none is to be made any more. source is invalid for one that
// was dialled.
func (t *transport) hold(s *stream, source netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if !s.dialled {
		if t.incoming >= maxIncoming || t.perSource[source] >= maxPerSource {
			return false
		}
		t.incoming++
		t.perSource[source]++
	}
	t.conns[s] = struct{}{}
	s.done = sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.conns, s)
		if s.dialled {
			return
		}
		t.incoming--
		if t.perSource[source]--; t.perSource[source] == 0 {
			delete(t.perSource, source)
		}
	})
	return true
}

// Shutdown implements memberlist.Transport: it ends all that this transport does and joins its goroutines.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	open := make([]*stream, 0, len(t.conns))
	for s := range t.conns {
		open = append(open, s)
	}
	t.mu.Unlock()

	// The inner one first, while its packets and streams are still being taken: it may wait for that.
	err := t.inner.Shutdown()
	close(t.done)
	for _, s := range open {
		_ = s.Close() // whoever uses it finds out by its next read
	}
	t.wg.Wait()
	return err
}

func sourceOf(c net.Conn) netip.Addr {
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		return a.Addr().Unmap()
	}
	return netip.Addr{}
}
