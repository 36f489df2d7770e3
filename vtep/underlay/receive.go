package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
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
	nameLen      = unix.SizeofSockaddrInet6
)

// Receiver is one socket on the VXLAN port.
type Receiver struct {
	file  *os.File
	fd    int
	raw   syscall.RawConn
	batch int
	fill  func(fd uintptr) bool // r.drain, bound once

	mem  []byte
	msgs []unix.Mmsghdr
	iov  []unix.Iovec
	name []byte
	ctl  []byte
	n    int
	errn unix.Errno
}

func newReceiver(fd int, c Config) (*Receiver, error) {
	file := os.NewFile(uintptr(fd), "udp")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("polling the socket: %w", err), file.Close())
	}
	r := &Receiver{file: file, fd: fd, raw: raw, batch: 1}
	if c.Batch {
		r.batch = maxBatch
	}
	n := r.batch
	r.mem = make([]byte, n*bufferStride)
	r.msgs = make([]unix.Mmsghdr, n)
	r.iov = make([]unix.Iovec, n)
	r.name = make([]byte, n*nameLen)
	r.ctl = make([]byte, n*controlLen)
	for i := range n {
		r.iov[i].Base = &r.mem[i*bufferStride]
		r.iov[i].SetLen(bufferLen)
		h := &r.msgs[i].Hdr
		h.Iov = &r.iov[i]
		h.SetIovlen(1)
		h.Name = &r.name[i*nameLen]
		h.Control = &r.ctl[i*controlLen]
	}
	r.fill = r.drain
	return r, nil
}

// Receive fills batch with what the kernel has and returns how many buffers it filled: at least one. It
// blocks while there is nothing. The error wraps os.ErrDeadlineExceeded after Interrupt.
func (r *Receiver) Receive(batch []forward.Received) (int, error) {
	r.n, r.errn = min(len(batch), r.batch), 0
	if err := r.raw.Read(r.fill); err != nil {
		return 0, err
	}
	if r.errn != 0 {
		return 0, r.errn
	}
	for i := range r.n {
		r.decode(i, &batch[i])
	}
	return r.n, nil
}

// drain receives once. It reports false, so that the poller waits, if there was nothing.
func (r *Receiver) drain(uintptr) bool {
	for i := range r.n {
		h := &r.msgs[i].Hdr
		h.Namelen = nameLen
		h.SetControllen(controlLen)
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(r.fd), uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			r.n = int(n)
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		r.errn = errno
		return true
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
