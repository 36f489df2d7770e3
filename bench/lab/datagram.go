package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/load"
)

// TooBig sends UDP of so many bytes with its IP header, which may not be cut, until the kernel says that this is too big:
// at once, or when an error has come from the network. It returns the MTU that the kernel then knows of.
func TooBig(ctx context.Context, from load.Namespace, to netip.Addr, size int) (told int, err error) {
	fd, err := dontCut(from, to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	payload := make([]byte, size-udpHeaders(to))
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if to.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	err = await(ctx, "an error from the network", func(context.Context) (bool, error) {
		_, err := unix.Write(fd, payload)
		if errors.Is(err, unix.ECONNREFUSED) { // nobody listens there, and it matters to nobody
			err = nil
		}
		if !errors.Is(err, unix.EMSGSIZE) {
			return false, err
		}
		told, err = unix.GetsockoptInt(fd, level, option)
		return true, err
	})
	return told, err
}

// whole sends UDP of so many bytes with its IP header, which may not be cut, until one has arrived.
func whole(ctx context.Context, from, to station, at netip.Addr, size int) error {
	var rx int
	var port netip.AddrPort
	if err := to.Do(func() (err error) {
		rx, port, err = listenUDP(at)
		return err
	}); err != nil {
		return err
	}
	defer unix.Close(rx)
	fd, err := dontCut(from, at)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(port)); err != nil {
		return err
	}
	sent, got := make([]byte, size-udpHeaders(at)), make([]byte, size)
	return await(ctx, fmt.Sprintf("a packet of %d bytes from %s", size, from.name), func(context.Context) (bool, error) {
		if _, err := unix.Write(fd, sent); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return false, err
		}
		n, _, err := unix.Recvfrom(rx, got, 0) // waits for a while, and then it is EAGAIN
		return err == nil && n == len(sent), nil
	})
}

// udpHeaders is the length of the headers before the payload.
func udpHeaders(a netip.Addr) int {
	if a.Is6() {
		return 40 + 8
	}
	return 20 + 8
}

// sockaddr is an address for system calls.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// dontCut makes a UDP socket whose packets have DF set, connected to the discard port of an address.
func dontCut(from load.Namespace, to netip.Addr) (fd int, err error) {
	err = from.Do(func() error {
		if fd, err = unix.Socket(domain(to), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open a UDP socket: %w", err)
		}
		level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
		if to.Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
		}
		err := unix.SetsockoptInt(fd, level, option, unix.IP_PMTUDISC_DO) // the IPv6 constant is the same number
		if err == nil {
			err = unix.Connect(fd, sockaddr(netip.AddrPortFrom(to, 9)))
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("connect a UDP socket to %v: %w", to, err)
		}
		return nil
	})
	return fd, err
}

// listenUDP opens a socket at an address of this namespace that waits a moment for each datagram.
func listenUDP(at netip.Addr) (fd int, port netip.AddrPort, err error) {
	if fd, err = unix.Socket(domain(at), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, port, fmt.Errorf("open a UDP socket: %w", err)
	}
	err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(at, 0)))
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	}
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		return 0, port, fmt.Errorf("listen for UDP at %v: %w", at, err)
	}
	switch b := bound.(type) {
	case *unix.SockaddrInet4:
		port = netip.AddrPortFrom(at, uint16(b.Port))
	case *unix.SockaddrInet6:
		port = netip.AddrPortFrom(at, uint16(b.Port))
	}
	return fd, port, nil
}
