package load

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchLen is how many datagrams one call moves.
const batchLen = 64

// mmsghdr is struct mmsghdr of the kernel.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// batch is room for several datagrams of one size, and the vectors that point at them.
type batch struct {
	bufs [][]byte
	iovs []unix.Iovec
	msgs []mmsghdr
}

func newBatch(size int) *batch {
	b := &batch{bufs: make([][]byte, batchLen), iovs: make([]unix.Iovec, batchLen), msgs: make([]mmsghdr, batchLen)}
	arena := make([]byte, batchLen*size)
	for i := range b.bufs {
		b.bufs[i] = arena[i*size : (i+1)*size : (i+1)*size]
		b.iovs[i].Base = &b.bufs[i][0]
		b.iovs[i].SetLen(size)
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
	}
	return b
}

// send sends the first n datagrams and returns how many the kernel took; the error is about the next one.
func (b *batch) send(fd, n int) (int, error) {
	got, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(n), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}

// receive waits for a datagram and takes those that are there with it, as many as fit. Datagram i is then
// b.bufs[i][:b.msgs[i].len], with MSG_TRUNC in its flags when it was longer.
func (b *batch) receive(fd int) (int, error) {
	got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), batchLen, unix.MSG_WAITFORONE, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(got), nil
}
