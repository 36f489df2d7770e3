package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Namespace runs a function on a thread that is in a network namespace, and returns its error. A socket
// that the function opens stays in that namespace.
type Namespace interface {
	Do(func() error) error
}

// wake is how often a blocked call returns to see whether it is still wanted.
const wake = 50 * time.Millisecond

// socketBuffer is asked for where bursts must not be lost at the generator itself.
const socketBuffer = 8 << 20

// Offsets into the array that SO_MEMINFO fills (include/uapi/linux/sock_diag.h).
const (
	memInfoLen   = 9
	memInfoDrops = 8
)

// openSocket opens a blocking socket in a namespace, whose calls return EAGAIN after wake. prepare, if any,
// runs in the namespace before the socket is returned.
func openSocket(ns Namespace, like netip.Addr, kind, proto int, prepare func(fd int) error) (int, error) {
	family := unix.AF_INET6
	if like.Is4() {
		family = unix.AF_INET
	}
	fd := -1
	err := ns.Do(func() error {
		var err error
		if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto); err != nil {
			return err
		}
		tv := unix.NsecToTimeval(int64(wake))
		err = errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
		if err == nil && prepare != nil {
			err = prepare(fd)
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open a socket for %v: %w", like, err)
	}
	return fd, nil
}

// bindTo binds a socket to a free port of an address, and returns where it is then.
func bindTo(fd int, a netip.Addr) (netip.AddrPort, error) {
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(a, 0))); err != nil {
		return netip.AddrPort{}, fmt.Errorf("bind to %v: %w", a, err)
	}
	return boundTo(fd)
}

func boundTo(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the address of a socket: %w", err)
	}
	return addrPort(sa), nil
}

// bigBuffers makes room for bursts, past the system's limit where this process may.
func bigBuffers(fd int) {
	for force, plain := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, socketBuffer) // capped, never refused
		}
	}
}

// dontFragment makes the kernel refuse (EMSGSIZE) what does not fit the MTU of the device, without regard to
// what it believes about the path.
func dontFragment(fd int, v4 bool) error {
	if v4 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
}

// socketDrops is how many datagrams the kernel has dropped because this socket's buffer was full.
func socketDrops(fd int) uint64 {
	var info [memInfoLen]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[memInfoDrops])
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	default:
		return netip.AddrPort{}
	}
}

// again reports whether a call came back only to see whether it is still wanted.
func again(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
