package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/header"
)

const (
	// queueBytes is how much may wait for the handler before the kernel leaves packets out. It counts memory,
	// not bytes on a wire: a small packet takes some hundred bytes, one of 1,500 takes 2,304.
	queueBytes = 64 << 20
	// wake is how often the reader looks whether it is still wanted.
	wake = 50 * time.Millisecond
	// maxPacket is the largest superframe: a full IP packet behind Ethernet and tags, rounded up. Larger ones
	// (BIG TCP) have to be asked for and are reported as an error.
	maxPacket = 1<<16 + 256
)

// Namespace runs a function on a thread that is in a network namespace. A socket that the function opens
// stays in that namespace.
type Namespace interface {
	Do(func() error) error
}

// Packet is one packet as it crossed the interface. It belongs to the capture and is valid until the handler
// returns; the handler may write to Data.
type Packet struct {
	Data    []byte           // from the Ethernet header on
	Offload header.VirtioNet // what is left to do: NEEDS_CSUM, and the kind and size of segments
	Sent    bool             // this host sent it; otherwise it was received
}

// Direction says which packets a Capture takes, as seen from the namespace.
type Direction uint8

// The directions. On a link whose ends are both captured, Received at each is every packet once.
const (
	Both Direction = iota
	Received
)

// Capture is a running capture.
type Capture struct {
	fd      int
	handler func(*Packet)
	stop    atomic.Bool
	done    chan struct{}
	err     error // of the reader, once done is closed

	mu    sync.Mutex // guards what follows: reading the kernel's counters resets them
	stats Stats
}

// Stats says how much of the traffic was seen.
type Stats struct {
	Packets uint64 // crossed the interface
	Missed  uint64 // of these, left out because the handler was too slow
}

// Open starts a capture of all packets of a device, of any protocol. handler is called on the capture's
// goroutine. The device must exist; it is no error if it goes away, nothing comes then.
func Open(ns Namespace, device string, d Direction, handler func(*Packet)) (*Capture, error) {
	c := &Capture{fd: -1, handler: handler, done: make(chan struct{})}
	if err := ns.Do(func() error { return c.open(device, d) }); err != nil {
		if c.fd >= 0 {
			err = errors.Join(err, unix.Close(c.fd))
		}
		return nil, fmt.Errorf("capture on %s: %w", device, err)
	}
	go c.read()
	return c, nil
}

// open makes the socket; it runs in the namespace.
func (c *Capture) open(device string, d Direction) error {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	// Without a protocol nothing is received before everything is set and the socket is bound.
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(wake))
	err = errors.Join(
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueBytes),
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	if d == Received {
		err = errors.Join(err, unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	}
	if err != nil {
		return fmt.Errorf("set up a packet socket: %w", err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)) // network order
	if err := unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}); err != nil {
		return fmt.Errorf("bind a packet socket: %w", err)
	}
	return nil
}

// read is the reader.
func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, header.VirtioNetLen+maxPacket)
	var p Packet
	for {
		flags := 0
		if c.stop.Load() {
			flags = unix.MSG_DONTWAIT // what is there already is still wanted
		}
		n, from, err := unix.Recvfrom(c.fd, buf, flags|unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if flags != 0 {
				return
			}
			continue
		case errors.Is(err, unix.ENETDOWN):
			continue // told once when the device goes down or away
		case err == nil && (n > len(buf) || n < header.VirtioNetLen):
			err = fmt.Errorf("a packet of %d bytes", n-header.VirtioNetLen)
		}
		if err != nil {
			c.err = fmt.Errorf("capture: read a packet: %w", err)
			return
		}
		p.Offload.Decode(buf[:header.VirtioNetLen])
		p.Data = buf[header.VirtioNetLen:n]
		ll, ok := from.(*unix.SockaddrLinklayer)
		p.Sent = ok && ll.Pkttype == unix.PACKET_OUTGOING
		c.handler(&p)
	}
}

// Stats returns what was seen until now.
func (c *Capture) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count()
	return c.stats
}

// count adds the kernel's counters, which start again from zero each time.
func (c *Capture) count() {
	if c.fd < 0 {
		return
	}
	var s unix.TpacketStats
	size := uint32(unsafe.Sizeof(s))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(c.fd), unix.SOL_PACKET, unix.PACKET_STATISTICS,
		uintptr(unsafe.Pointer(&s)), uintptr(unsafe.Pointer(&size)), 0)
	if errno == 0 {
		c.stats.Packets += uint64(s.Packets)
		c.stats.Missed += uint64(s.Drops)
	}
}

// Stop ends the capture, after the handler has had all that came before. It returns the error that ended the
// reader before its time, if there was one. A second Stop does nothing.
func (c *Capture) Stop() error {
	c.stop.Store(true)
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return c.err
	}
	c.count()
	err := unix.Close(c.fd)
	c.fd = -1
	return errors.Join(c.err, err)
}
