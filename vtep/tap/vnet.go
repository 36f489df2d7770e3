package tap

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

const (
	vnetHeader = header.VirtioNetMrgLen
	// readBudget ends a batch: what has been read is worth processing, while it is still in the cache.
	readBudget = 112 << 10
	// readMemory holds a batch.
	readMemory = readBudget + vnetHeader + maxFrame
	// maxPieces is IOV_MAX, less the one for the virtio-net header.
	maxPieces = 1023
)

// vnetQueue is one file of a TAP whose frames carry a virtio-net header.
//
// Frames of a batch lie behind each other in mem, each behind its virtio-net header, and so near to each
// other that a batch stays in the cache.
type vnetQueue struct {
	fd  int
	mem []byte
	hdr [vnetHeader]byte
	iov []unix.Iovec // made by the first Write: most queues are only read
}

func openVNet(c Config) (*Device, error) {
	d := &Device{Name: c.Name, Backend: "vnet", Missing: map[string]error{}}
	var fds []int
	memory := make([][]byte, c.readers())
	for i := range memory {
		memory[i] = make([]byte, readMemory)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if c.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	for i := range max(c.Queues, 1) {
		f := flags
		if i == 0 {
			f |= unix.IFF_TUN_EXCL // the first must make it; the others attach to it
		}
		q, err := d.openQueue(f, memory[i%len(memory)])
		if err != nil && i == 0 && flags&unix.IFF_MULTI_QUEUE != 0 && errors.Is(err, unix.EINVAL) {
			d.Missing["multiqueue"] = err
			flags &^= unix.IFF_MULTI_QUEUE
			q, err = d.openQueue(flags|unix.IFF_TUN_EXCL, memory[0])
		}
		if err != nil && i > 0 {
			d.Missing["multiqueue"] = fmt.Errorf("the kernel gave %d queues of %d: %w", i, c.Queues, err)
			break
		}
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.Queues = append(d.Queues, q)
		d.closers = append(d.closers, func() error { return unix.Close(q.fd) })
		fds = append(fds, q.fd)
		if flags&unix.IFF_MULTI_QUEUE == 0 {
			break
		}
	}
	if err := d.setOffload(c, fds); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if len(fds) > 1 {
		if err := steer(fds[0]); err != nil {
			d.Missing["steering"] = err
		}
	}
	return d, nil
}

// readers returns how many goroutines read the queues.
func (c *Config) readers() int {
	if c.Readers > 0 {
		return c.Readers
	}
	return max(c.Queues, 1)
}

func (d *Device) openQueue(flags uint16, mem []byte) (*vnetQueue, error) {
	fd, err := unix.Open(devTun, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(err)
	}
	req, err := unix.NewIfreq(d.Name)
	if err == nil {
		req.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeader)
	}
	if err == nil {
		// The header is read and written in little endian whatever the host's order is.
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1)
	}
	if err != nil {
		return nil, errors.Join(createError(d.Name, err), unix.Close(fd))
	}
	return &vnetQueue{fd: fd, mem: mem}, nil
}

// setOffload asks for all that c wants and takes what the kernel gives. Checksum offload is always there.
func (d *Device) setOffload(c Config, fds []int) error {
	want := uint(unix.TUN_F_CSUM)
	d.Offload = Offload{Checksum: true}
	try := func(name string, bits uint) bool {
		for _, fd := range fds {
			if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(want|bits)); err != nil {
				d.Missing[name] = fmt.Errorf("the kernel's TUN driver does not offer it: %w", err)
				return false
			}
		}
		want |= bits
		return true
	}
	if !try("checksum", 0) {
		return fmt.Errorf("turning on checksum offload of TAP %s: %w", d.Name, d.Missing["checksum"])
	}
	if c.TSO {
		d.Offload.TSO = try("tso", unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN)
	}
	if c.USO && d.Offload.TSO {
		d.Offload.USO = try("uso", unix.TUN_F_USO4|unix.TUN_F_USO6)
	}
	return nil
}

func (q *vnetQueue) FD() int { return q.fd }

// Read reads until the batch is full or the queue is empty. An error behind frames shows again at the next
// Read.
func (q *vnetQueue) Read(frames []frame.Frame) (int, error) {
	k, off := 0, 0
	for k < len(frames) && off < readBudget {
		// The descriptor does not block, so that the scheduler need not know: see package poll.
		r, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(q.fd), uintptr(unsafe.Pointer(&q.mem[off])), uintptr(len(q.mem)-off))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 && k > 0 {
			return k, nil
		}
		if errno != 0 {
			return 0, errno
		}
		n := int(r)
		if n < vnetHeader {
			return k, fmt.Errorf("a frame of %d bytes is shorter than its virtio-net header: %w", n, unix.EIO)
		}
		f := &frames[k]
		f.Offload.Decode(q.mem[off : off+vnetHeader])
		f.Buf = q.mem[off+vnetHeader-frame.Headroom : off+n : off+n]
		k++
		off += (n + 63) &^ 63
	}
	return k, nil
}

func (q *vnetQueue) Write(offload *header.VirtioNet, pieces [][]byte) error {
	if len(pieces) > maxPieces {
		return unix.EMSGSIZE
	}
	if q.iov == nil {
		q.iov = make([]unix.Iovec, maxPieces+1)
	}
	offload.Encode(q.hdr[:])
	q.iov[0].Base = &q.hdr[0]
	q.iov[0].SetLen(vnetHeader)
	for i, p := range pieces {
		if len(p) == 0 {
			q.iov[i+1] = unix.Iovec{}
			continue
		}
		q.iov[i+1].Base = &p[0]
		q.iov[i+1].SetLen(len(p))
	}
	for {
		// The pieces stay reachable: iov holds typed pointers to them.
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(&q.iov[0])), uintptr(len(pieces)+1))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}
