package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// GroupConfig says whom to address all at once.
type GroupConfig struct {
	From   Namespace
	To     []Namespace
	Group  netip.Addr    // 255.255.255.255, the broadcast address of a subnet, or a multicast group
	Device string        // the interface, of this name in every namespace
	Count  int           // datagrams; 0 = 10
	Drain  time.Duration // how long the last one is waited for; 0 = 2 s
}

// portTries is how often a port is looked for that is free at all receivers.
const portTries = 20

// Group sends datagrams to a broadcast or multicast address and returns how many different ones each
// receiver got.
func Group(ctx context.Context, c GroupConfig) ([]int, error) {
	c.Count, c.Drain = defaulted(c.Count, 10), defaulted(c.Drain, 2*time.Second)
	heard := make([]int, len(c.To))
	fds, port, err := c.listeners()
	for range portTries {
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
		fds, port, err = c.listeners()
	}
	if err != nil {
		return heard, fmt.Errorf("listen to %v on %s: %w", c.Group, c.Device, err)
	}
	defer func() { closeAll(fds) }()
	tx, err := openSocket(c.From, c.Group, unix.SOCK_DGRAM, 0, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, c.Device))
	})
	if err != nil {
		return heard, fmt.Errorf("send to %v on %s: %w", c.Group, c.Device, err)
	}
	fds = append(fds, tx)

	token := rand.Uint64()
	msg := make([]byte, 16)
	binary.BigEndian.PutUint64(msg, token)
	for i := range c.Count {
		binary.BigEndian.PutUint64(msg[8:], uint64(i))
		if err := unix.Sendto(tx, msg, 0, c.sockaddr(port)); err != nil {
			return heard, fmt.Errorf("send to %v on %s: %w", c.Group, c.Device, err)
		}
	}
	deadline := time.Now().Add(c.Drain)
	for i := range c.To {
		if heard[i], err = collect(ctx, fds[i], token, c.Count, deadline); err != nil {
			return heard, fmt.Errorf("receive from %v on %s: %w", c.Group, c.Device, err)
		}
	}
	return heard, nil
}

// listeners opens a socket for each receiver, all on one port. The first is given a free one; in the namespace of
// another somebody may have taken it: EADDRINUSE.
func (c GroupConfig) listeners() (fds []int, port uint16, err error) {
	for _, ns := range c.To {
		fd, err := openSocket(ns, c.Group, unix.SOCK_DGRAM, 0, func(fd int) error {
			bigBuffers(fd)
			at, err := c.listen(fd, port)
			port = at.Port()
			return err
		})
		if err != nil {
			closeAll(fds)
			return nil, 0, err
		}
		fds = append(fds, fd)
	}
	return fds, port, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// listen binds to the port on any address and joins the group if it is one. Runs in the namespace.
func (c GroupConfig) listen(fd int, port uint16) (netip.AddrPort, error) {
	dev, err := net.InterfaceByName(c.Device)
	if err != nil {
		return netip.AddrPort{}, err
	}
	anywhere := netip.IPv6Unspecified()
	if c.Group.Is4() {
		anywhere = netip.IPv4Unspecified()
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(anywhere, port))); err != nil {
		return netip.AddrPort{}, err
	}
	switch {
	case c.Group.IsMulticast() && c.Group.Is4():
		err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
			&unix.IPMreqn{Multiaddr: c.Group.As4(), Ifindex: int32(dev.Index)})
	case c.Group.IsMulticast():
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: c.Group.As16(), Interface: uint32(dev.Index)})
	}
	if err != nil {
		return netip.AddrPort{}, err
	}
	return boundTo(fd)
}

// sockaddr is where to send to; the device is chosen by the socket.
func (c GroupConfig) sockaddr(port uint16) unix.Sockaddr {
	return sockaddr(netip.AddrPortFrom(c.Group, port))
}

// collect reads until it has all or the time is over, and counts those of this run, each once.
func collect(ctx context.Context, fd int, token uint64, want int, deadline time.Time) (int, error) {
	var seen []uint64
	buf := make([]byte, 64)
	for len(seen) < want && ctx.Err() == nil {
		over := time.Now().After(deadline) // before the look: see stream.receive
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case again(err):
			if over {
				return len(seen), nil
			}
		case err != nil:
			return len(seen), err
		case n == 16 && binary.BigEndian.Uint64(buf) == token:
			if seq := binary.BigEndian.Uint64(buf[8:]); !slices.Contains(seen, seq) {
				seen = append(seen, seq)
			}
		}
	}
	return len(seen), ctx.Err()
}
