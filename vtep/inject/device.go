package inject

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/header"
)

const (
	devTun = "/dev/net/tun"
	// namePattern lets the kernel choose a number, so that several daemons get along on one host.
	namePattern = "overlayd-gso%d"
	// sendBuffer is how many bytes may wait in the queues of the underlay's devices before a write is refused,
	// the memory of the kernel's own structures included: as much as for a socket. It keeps a fast sender from
	// overrunning those queues, which would drop without a word.
	sendBuffer = 4 << 20
	// vnetHeader is the form of the virtio-net header that can describe a tunnel.
	vnetHeader = header.VirtioNetTunnelLen

	// Offload flags of TUNSETOFFLOAD since Linux 6.17 (include/uapi/linux/if_tun.h). A kernel without tunnels in
	// its virtio-net header refuses them, whereas it takes any length of that header.
	offloadTunnel     = 0x080 // TUN_F_UDP_TUNNEL_GSO
	offloadTunnelCsum = 0x100 // TUN_F_UDP_TUNNEL_GSO_CSUM

	offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | offloadTunnel | offloadTunnelCsum

	addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE: no link-local address, and so no solicitations from it
)

// Device is the TAP through which superframes enter the kernel, and the program behind it. It exists as long
// as it is open.
type Device struct {
	Name  string
	Index int // of the interface

	fd     int
	prog   *ebpf.Program
	hook   link.Link
	broken atomic.Bool
	failed func(error)
}

// Open makes the TAP, attaches the program and sends superframes through both, back to itself. The error says
// what this kernel cannot do, or this process may not do; nothing is left behind then.
//
// failed is called once, by the goroutine whose write found out, should the device stop working later on;
// Usable is false from then on.
func Open(failed func(error)) (*Device, error) {
	d := &Device{fd: -1, failed: failed}
	err := d.open()
	if err == nil {
		err = d.probe()
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Device) open() error {
	if err := synchronous(); err != nil {
		return err
	}
	if err := d.openTAP(); err != nil {
		return err
	}
	l, err := netlink.LinkByName(d.Name)
	if err != nil {
		return fmt.Errorf("looking up %s: %w", d.Name, err)
	}
	d.Index = l.Attrs().Index
	if d.prog, err = load(); err != nil {
		return err
	}
	d.hook, err = link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: d.prog, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return fmt.Errorf("attaching the BPF program to %s (tcx): %w", d.Name, err)
	}
	// Nothing but injections is to pass here, so the kernel need not begin to talk. A kernel without IPv6 has
	// nothing to turn off.
	if err := netlink.LinkSetIP6AddrGenMode(l, addrGenModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("turning off automatic addresses of %s: %w", d.Name, err)
	}
	if err := netlink.LinkSetARPOff(l); err != nil {
		return fmt.Errorf("turning off ARP of %s: %w", d.Name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("setting up %s: %w", d.Name, err)
	}
	return nil
}

// openTAP makes the TAP.
func (d *Device) openTAP() error {
	fd, err := unix.Open(devTun, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", devTun, err)
	}
	d.fd = fd
	req, err := unix.NewIfreq(namePattern)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("making a TAP: %w", err)
	}
	d.Name = req.Name()
	for _, o := range []struct {
		what  string
		set   func(fd int, request uint, value int) error
		req   uint
		value int
	}{
		{"setting the length of the virtio-net header", unix.IoctlSetPointerInt, unix.TUNSETVNETHDRSZ, vnetHeader},
		{"setting the byte order of the virtio-net header", unix.IoctlSetPointerInt, unix.TUNSETVNETLE, 1},
		{"limiting the send buffer", unix.IoctlSetPointerInt, unix.TUNSETSNDBUF, sendBuffer},
		{"asking for tunnels in the virtio-net header, which Linux has since 6.17", unix.IoctlSetInt, unix.TUNSETOFFLOAD, offloads},
	} {
		if err := o.set(fd, o.req, o.value); err != nil {
			return fmt.Errorf("%s: %w", o.what, err)
		}
	}
	return nil
}

// Close removes the TAP and the program. No Write may be under way.
func (d *Device) Close() error {
	var errs []error
	if d.hook != nil {
		errs = append(errs, d.hook.Close())
	}
	if d.prog != nil {
		errs = append(errs, d.prog.Close())
	}
	if d.fd >= 0 {
		errs = append(errs, unix.Close(d.fd))
	}
	d.hook, d.prog, d.fd = nil, nil, -1
	return errors.Join(errs...)
}

// Usable reports whether the device still takes superframes.
func (d *Device) Usable() bool { return !d.broken.Load() }

// fail notes that the device does not take superframes any more.
func (d *Device) fail(errno unix.Errno) {
	if !d.broken.CompareAndSwap(false, true) {
		return
	}
	if d.failed != nil {
		d.failed(fmt.Errorf("writing to %s, which may have been set down or deleted: %w", d.Name, errno))
	}
}

// Wait waits until there is room for a superframe after Write returned EAGAIN, but no longer than limit.
func (d *Device) Wait(limit time.Duration) {
	p := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLOUT}}
	// Whatever ends it, the caller tries again and sees.
	_, _ = unix.Poll(p, int(limit.Milliseconds()))
}

// writev writes the parts of iov as one packet.
func (d *Device) writev(iov []unix.Iovec) unix.Errno {
	for {
		// The descriptor does not block, so that the scheduler need not know; what iov points to stays reachable
		// through it.
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(d.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
		switch errno {
		case unix.EINTR:
			continue
		case unix.EIO, unix.EBADFD, unix.ENXIO:
			d.fail(errno)
		}
		return errno
	}
}
