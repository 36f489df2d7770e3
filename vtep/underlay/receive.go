package underlay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
)

const (
	// maxBatch is how many buffers one receive fills, and messages one send takes.
	maxBatch = 32
	// bufferLen holds the largest UDP payload.
	bufferLen = 65536
	// bufferStride keeps the beginnings of buffers, which are what small datagrams use, out of each other's
	// cache sets: an odd number of cache lines.
	bufferStride = bufferLen + 576
	controlLen   = 128
	// cacheBudget is how much of one batch stays in the cache of the core until it is written on.
	cacheBudget = 192 << 10
	nameLen     = unix.SizeofSockaddrInet6
)

// Receiver is one socket on the VXLAN port.
type Receiver struct {
	*buffers

	fd    int
	batch int // buffers a receive at most
	next  int // buffers the next receive may fill: see adapt

	drainErrors func() // of a socket that also sends; nil otherwise
}

// buffers is what one receive fills.
type buffers struct {
	mem  []byte
	msgs []unix.Mmsghdr
	iov  []unix.Iovec
	name []byte
	ctl  []byte
}

func newBuffers(n int) *buffers {
	b := &buffers{
		mem:  make([]byte, n*bufferStride),
		msgs: make([]unix.Mmsghdr, n),
		iov:  make([]unix.Iovec, n),
		name: make([]byte, n*nameLen),
		ctl:  make([]byte, n*controlLen),
	}
	for i := range n {
		b.iov[i].Base = &b.mem[i*bufferStride]
		b.iov[i].SetLen(bufferLen)
		h := &b.msgs[i].Hdr
		h.Iov = &b.iov[i]
		h.SetIovlen(1)
		h.Name = &b.name[i*nameLen]
		h.Control = &b.ctl[i*controlLen]
	}
	return b
}

// newReceiver makes a Receiver that fills b, or buffers of its own if b is nil.
func newReceiver(fd int, c Config, b *buffers) *Receiver {
	r := &Receiver{buffers: b, fd: fd, batch: 1, next: 1}
	if c.Batch {
		r.batch = maxBatch
	}
	if b == nil {
		r.buffers = newBuffers(r.batch)
	}
	return r
}

// FD returns the descriptor to wait on: it can be read from when there is a datagram.
func (r *Receiver) FD() int { return r.fd }

// Receive fills batch with what the kernel has and returns how many buffers it filled. It does not block;
// where there is nothing the error is unix.EAGAIN. What is in the batch is valid until the next Receive of any
// receiver of the same reader. Any other error is a unix.Errno too, and may be about a
// single datagram, such as an ICMP message, so that receiving may go on.
func (r *Receiver) Receive(batch []forward.Received) (int, error) {
	n := min(len(batch), r.batch, r.next)
	for i := range n {
		h := &r.msgs[i].Hdr
		h.Namelen = nameLen
		h.SetControllen(controlLen)
	}
	for {
		// The socket does not block, so that the scheduler need not know: see package poll.
		k, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(r.fd), uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			bytes := 0
			for i := range int(k) {
				r.decode(i, &batch[i])
				bytes += len(batch[i].Data)
			}
			r.adapt(int(k), bytes)
			return int(k), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if r.drainErrors != nil {
				// It is what made the socket ready, and would do so for ever.
				r.drainErrors()
			}
		}
		return 0, errno
	}
}

// adapt chooses how many buffers the next receive may fill: many small datagrams, or few trains. A batch
// that outgrows the cache is read from memory again when it is processed.
func (r *Receiver) adapt(n, bytes int) {
	if bytes > cacheBudget {
		r.next = max(1, n*cacheBudget/bytes)
	} else if n == r.next {
		r.next = min(2*r.next, maxBatch)
	}
}

// decode reads the i-th message into out.
func (r *Receiver) decode(i int, out *forward.Received) {
	m := &r.msgs[i]
	at := i * bufferStride
	out.Data = r.mem[at : at+int(m.Len) : at+bufferLen]
	out.Stride, out.TOS = 0, 0
	name := r.name[i*nameLen:]
	// struct sockaddr_in and sockaddr_in6: family in host order, port, then the address.
	out.Port = binary.BigEndian.Uint16(name[2:])
	if binary.NativeEndian.Uint16(name) == unix.AF_INET {
		out.From = netip.AddrFrom4([4]byte(name[4:8]))
	} else {
		out.From = netip.AddrFrom16([16]byte(name[8:24]))
	}
	ctl := r.ctl[i*controlLen : i*controlLen+int(m.Hdr.Controllen)]
	for len(ctl) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&ctl[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(ctl) {
			return
		}
		data := ctl[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			out.Stride = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			out.TOS = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			out.TOS = uint8(binary.NativeEndian.Uint32(data))
		}
		ctl = ctl[min(len(ctl), unix.CmsgSpace(size-unix.CmsgLen(0))):]
	}
}

// overflow returns the kernel's count of datagrams that found the buffer full (SK_MEMINFO_DROPS).
func (r *Receiver) overflow() uint64 {
	const drops = 8
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(r.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[drops])
}
