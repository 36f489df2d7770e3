package underlay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/inject"
)

// Destination is a peer as the kernel wants it.
type Destination struct {
	Endpoint *Endpoint // from which it is reached; nil if it cannot be
	// Whole is the way of superframes that are sent uncut, with the same addresses and ports; nil if there is
	// none, and then there must be no such sends.
	Whole   *inject.Path
	name    [nameLen]byte
	nameLen uint32
}

// NewDestination describes the peer at a, reached from e, which has an address of the same family.
func NewDestination(e *Endpoint, a netip.Addr, port uint16) Destination {
	d := Destination{Endpoint: e}
	binary.BigEndian.PutUint16(d.name[2:], port)
	if a.Is4() {
		binary.NativeEndian.PutUint16(d.name[:], unix.AF_INET)
		b := a.As4()
		copy(d.name[4:], b[:])
		d.nameLen = unix.SizeofSockaddrInet4
	} else {
		binary.NativeEndian.PutUint16(d.name[:], unix.AF_INET6)
		b := a.As16()
		copy(d.name[8:], b[:])
		d.nameLen = unix.SizeofSockaddrInet6
	}
	return d
}

// Reporter is told what became of each send; *forward.Egress is one. A send of several datagrams may be
// reported in parts.
type Reporter interface {
	Report(s *forward.Send, frames, bytes int, outcome forward.DropReason)
}

// message is what stands behind one entry of Sender.msgs.
type message struct {
	send   *forward.Send
	frames int
	bytes  int
}

const (
	senderIovecs = 4096
	sendControl  = 64
)

// Sender hands sends to the kernel. It belongs to one goroutine and allocates nothing once made.
type Sender struct {
	msgs []unix.Mmsghdr
	meta [maxBatch]message
	iov  []unix.Iovec
	ctl  []byte
	n    int // messages filled
	niov int // iovecs used
	from *Endpoint
	fd   int
	redo []*forward.Send // to be sent once more, without segmentation
	wait bool            // whether a full socket is still waited for
	// whole writes what is sent uncut
	whole inject.Writer
}

// NewSender makes a Sender.
func NewSender() *Sender {
	return &Sender{
		msgs: make([]unix.Mmsghdr, maxBatch),
		iov:  make([]unix.Iovec, senderIovecs),
		ctl:  make([]byte, maxBatch*sendControl),
		redo: make([]*forward.Send, 0, maxBatch),
	}
}

// Send hands every send to the kernel, in order for each source, and reports each. pieces are those that
// the sends refer to, and the caller keeps hold of them meanwhile, as Egress.Pieces does; dest is indexed by VTEPID. It
// waits for room in a full socket, but once it has done so in vain it does not for the rest.
func (s *Sender) Send(sends []forward.Send, pieces [][]byte, dest []Destination, to Reporter) {
	s.wait = true
	for i := range sends {
		s.add(&sends[i], pieces, dest, to)
	}
	s.flush(to)
	// Their endpoints have learned by now that they cannot segment, so that nothing is added here.
	for _, snd := range s.redo {
		s.add(snd, pieces, dest, to)
	}
	s.flush(to)
	s.redo = s.redo[:0]
}

// add fills in the messages of one send.
func (s *Sender) add(snd *forward.Send, pieces [][]byte, dest []Destination, to Reporter) {
	if int(snd.VTEP) >= len(dest) || dest[snd.VTEP].Endpoint == nil {
		to.Report(snd, snd.Frames, snd.Bytes, forward.SendUnreachable)
		return
	}
	d := &dest[snd.VTEP]
	e := d.Endpoint
	if snd.Whole {
		s.inject(snd, d, pieces[snd.First], to)
		return
	}
	fd := e.sources[snd.Bucket&(len(e.sources)-1)]
	if fd != s.fd || e != s.from {
		s.flush(to)
		s.fd, s.from = fd, e
	}
	parts := pieces[snd.First:snd.End]
	if snd.Frames == 1 || e.gso.Load() {
		s.message(snd, d, parts, snd.Frames, snd.Bytes, to)
		return
	}
	for len(parts) > 0 {
		one := parts[:snd.PerDatagram]
		parts = parts[snd.PerDatagram:]
		bytes := -header.VXLANLen
		for _, p := range one {
			bytes += len(p)
		}
		s.message(snd, d, one, 1, bytes, to)
	}
}

// inject sends a superframe uncut, after everything that was to go before it.
func (s *Sender) inject(snd *forward.Send, d *Destination, datagram []byte, to Reporter) {
	s.flush(to)
	errno := unix.EINVAL
	if d.Whole != nil {
		source := d.Endpoint.ports[snd.Bucket&(len(d.Endpoint.ports)-1)]
		errno = s.whole.Write(d.Whole, source, snd.TOS, &snd.Offload, datagram)
		if errno == unix.EAGAIN && s.wait {
			d.Whole.Device().Wait(sendWait)
			errno = s.whole.Write(d.Whole, source, snd.TOS, &snd.Offload, datagram)
			s.wait = errno != unix.EAGAIN
		}
	}
	o := forward.NotDropped
	if errno != 0 {
		if o = outcome(errno); o == forward.SendFailed {
			d.Endpoint.logFailure(errno)
		}
	}
	to.Report(snd, snd.Frames, snd.Bytes, o)
}

// message fills in one message.
func (s *Sender) message(snd *forward.Send, d *Destination, parts [][]byte, frames, bytes int, to Reporter) {
	if s.n == d.Endpoint.batch || s.niov+len(parts) > len(s.iov) {
		s.flush(to)
	}
	h := &s.msgs[s.n].Hdr
	h.Name, h.Namelen = &d.name[0], d.nameLen
	first := s.niov
	h.Iov = &s.iov[first]
	s.gather(parts)
	h.SetIovlen(s.niov - first)
	ctl := s.ctl[s.n*sendControl : s.n*sendControl : (s.n+1)*sendControl]
	if frames > 1 {
		ctl = appendControl(ctl, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(ctl[unix.CmsgLen(0):], uint16(snd.Size))
	}
	if snd.TOS != 0 {
		level, typ := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
		if d.nameLen == unix.SizeofSockaddrInet6 {
			level, typ = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
		}
		at := len(ctl)
		ctl = appendControl(ctl, level, typ, 4)
		binary.NativeEndian.PutUint32(ctl[at+unix.CmsgLen(0):], uint32(snd.TOS))
	}
	h.Control = nil
	if len(ctl) > 0 {
		h.Control = &ctl[0]
	}
	h.SetControllen(len(ctl))
	s.meta[s.n] = message{send: snd, frames: frames, bytes: bytes}
	s.n++
}

// gather appends an iovec for each run of parts that lie behind one another in memory.
func (s *Sender) gather(parts [][]byte) {
	run, end := -1, uintptr(0) // which iovec may go on, and where it ends
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		start := uintptr(unsafe.Pointer(&p[0]))
		if run >= 0 && start == end {
			s.iov[run].SetLen(int(s.iov[run].Len) + len(p))
		} else {
			run = s.niov
			s.niov++
			s.iov[run].Base = &p[0]
			s.iov[run].SetLen(len(p))
		}
		end = start + uintptr(len(p))
	}
}

// appendControl appends the header of a control message and room for size bytes of data.
func appendControl(b []byte, level, typ int32, size int) []byte {
	at := len(b)
	b = b[:at+unix.CmsgSpace(size)]
	clear(b[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	return b
}

// flush sends what is filled in.
func (s *Sender) flush(to Reporter) {
	n := s.n
	s.n, s.niov = 0, 0
	tried := false
	for i := 0; i < n; {
		r, errno := s.sendmmsg(i, n)
		if errno == 0 {
			for range r {
				m := &s.meta[i]
				to.Report(m.send, m.frames, m.bytes, forward.NotDropped)
				i++
			}
			tried = false
			continue
		}
		m := &s.meta[i]
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EIO && m.frames > 1:
			s.from.noGSO()
			s.redo = append(s.redo, m.send)
		case !tried && mayBeEcho(errno):
			// It may be the echo of an earlier datagram: an ICMP error that the kernel hands to the next send,
			// which it then does not do.
			s.from.drainErrors(s.fd)
			tried = true
			continue
		default:
			o := outcome(errno)
			if o == forward.SendFailed {
				s.from.logFailure(errno)
			}
			to.Report(m.send, m.frames, m.bytes, o)
		}
		tried = false
		i++
	}
}

// sendmmsg hands over messages i to n, and returns how many the kernel took.
func (s *Sender) sendmmsg(i, n int) (int, unix.Errno) {
	// Everything that the kernel reads stays reachable: msgs and iov hold typed pointers. Of parts that gather has joined, iov
	// holds the first alone, and the caller's pieces the others. The call does not block, so that the scheduler need not know:
	// see package poll.
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msgs[i])), uintptr(n-i), unix.MSG_DONTWAIT, 0, 0)
	if errno != unix.EAGAIN || !s.wait {
		return int(r), errno
	}
	// This one blocks, up to sendWait, and the others of this process go on meanwhile.
	r, _, errno = unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msgs[i])), 1, 0, 0, 0)
	s.wait = errno != unix.EAGAIN
	return int(r), errno
}

// mayBeEcho reports whether errno can have come with an ICMP message, rather than from this send.
func mayBeEcho(errno unix.Errno) bool {
	switch errno {
	case unix.ENOBUFS, unix.EAGAIN, unix.ENOMEM, unix.EPERM, unix.EINVAL:
		return false
	}
	return true
}

// outcome names the reason for an error of a send.
func outcome(errno unix.Errno) forward.DropReason {
	switch errno {
	case unix.ENOBUFS, unix.EAGAIN, unix.ENOMEM:
		return forward.SendNoBuffer
	case unix.EPERM, unix.EACCES:
		return forward.SendDenied
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.ENODEV:
		return forward.SendUnreachable
	case unix.EMSGSIZE:
		return forward.SendTooBig
	}
	return forward.SendFailed
}

// noGSO turns segmentation off for good: the device said that it cannot (EIO).
func (e *Endpoint) noGSO() {
	if e.gso.CompareAndSwap(true, false) {
		e.log.Warn("UDP segmentation offload is off from now on: the underlay device refused it; throughput will be lower",
			"address", e.Local, "error", unix.EIO)
	}
}

// logFailure tells the log of an error that has no drop reason of its own, the first time.
func (e *Endpoint) logFailure(errno unix.Errno) {
	e.failed.Do(func() {
		e.log.Warn("the kernel refused to send a datagram; further ones are only counted, as "+forward.SendFailed.String(),
			"address", e.Local, "error", errno)
	})
}
