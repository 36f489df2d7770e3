//go:build linux

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoGSOMaxSize is the error of SetGSOMaxSize where the kernel or the device has no such setting, or not the
// size that was asked for. All else goes on without it.
var ErrNoGSOMaxSize = errors.New("the kernel does not let this device have that gso_max_size")

// errNoDevice means that there is no device of that name or index.
var errNoDevice = errors.New("there is no such device")

// SetUp brings the device up.
func SetUp(dev string) error {
	return change(dev, "bring it up", netlink.LinkSetUp)
}

// SetDown brings the device down.
func SetDown(dev string) error {
	return change(dev, "bring it down", netlink.LinkSetDown)
}

// SetMTU sets the MTU of the device in bytes, its own header not counted.
func SetMTU(dev string, bytes int) error {
	return change(dev, fmt.Sprintf("set its MTU to %d", bytes), func(l netlink.Link) error {
		return netlink.LinkSetMTU(l, bytes)
	})
}

// MTU returns the MTU of the device in bytes.
func MTU(dev string) (bytes int, err error) {
	l, err := linkByName(dev)
	if err != nil {
		return 0, fmt.Errorf("device %q: read its MTU: %w", dev, err)
	}
	return l.Attrs().MTU, nil
}

// SetMAC gives an Ethernet device the address m, which must be that of one station. The device must be down
// unless its driver can change the address live.
func SetMAC(dev string, m addr.MAC) error {
	return change(dev, fmt.Sprintf("set its MAC to %v", m), func(l netlink.Link) error {
		return netlink.LinkSetHardwareAddr(l, m[:])
	})
}

// SetTxQueueLen sets how many frames wait for the reader of a TAP before the kernel drops more.
func SetTxQueueLen(dev string, frames int) error {
	return change(dev, fmt.Sprintf("set its transmit queue to %d frames", frames), func(l netlink.Link) error {
		return netlink.LinkSetTxQLen(l, frames)
	})
}

// AddAddress gives the device an address; p keeps its host bits. That the device has it already is no error.
//
// Duplicate address detection is left out (RFC 4862, section 5.4, leaves the choice to the administrator): addresses
// are assigned centrally, and an overlay whose peers are not up yet would answer "no duplicate" after a second
// in which the address cannot be used.
func AddAddress(dev string, p netip.Prefix) error {
	if !p.IsValid() {
		return fmt.Errorf("device %q: add an address: %v is not an address with a prefix length", dev, p)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return change(dev, fmt.Sprintf("add the address %v", p), func(l netlink.Link) error {
		err := netlink.AddrReplace(l, a)
		if p.Addr().Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)) {
			// What the kernel answers where IPv6 is off, by sysctl or for an MTU below 1280.
			return fmt.Errorf("%w: IPv6 is off on this device: raise its MTU to 1280 or set net.ipv6.conf.%s.disable_ipv6 to 0", err, dev)
		}
		return err
	})
}

// SetGSOMaxSize limits the superframes that the device is handed, over IPv4 and IPv6 alike, to that many bytes,
// their network and transport headers included. The error is ErrNoGSOMaxSize where this cannot be had.
func SetGSOMaxSize(dev string, bytes int) error {
	what := fmt.Sprintf("set its gso_max_size to %d", bytes)
	err := change(dev, what, func(l netlink.Link) error {
		if err := netlink.LinkSetGSOMaxSize(l, bytes); err != nil {
			return err
		}
		// Since Linux 6.3 there is a limit of its own for IPv4. Older kernels pass over what they do not know.
		return netlink.LinkSetGSOIPv4MaxSize(l, bytes)
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("%w: %w", ErrNoGSOMaxSize, err)
	}
	if err != nil {
		return err
	}
	// The kernel says nothing about attributes that it does not know, so what counts is what it has now.
	l, err := linkByName(dev)
	if err != nil {
		return fmt.Errorf("device %q: %s: look whether it was: %w", dev, what, err)
	}
	v6, v4 := l.Attrs().GSOMaxSize, l.Attrs().GSOIPv4MaxSize
	if v6 != uint32(bytes) || v4 != 0 && v4 != uint32(bytes) { // 0: there is one limit for both
		return fmt.Errorf("device %q: %s: %w: it is %d, for IPv4 %d", dev, what, ErrNoGSOMaxSize, v6, v4)
	}
	return nil
}

// Stats returns how many frames the kernel has dropped on the device since it was made: rxDropped of those that
// it took from the device, txDropped of those that it was to give to it. For a TAP the latter are those
// that did not fit its queue and that nobody has read.
func Stats(dev string) (rxDropped, txDropped uint64, err error) {
	l, err := linkByName(dev)
	if err != nil {
		return 0, 0, fmt.Errorf("device %q: read its counters: %w", dev, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return 0, 0, fmt.Errorf("device %q: read its counters: the kernel gives none", dev)
	}
	return s.RxDropped, s.TxDropped, nil
}

// change looks the device up and does something to it. what completes the error.
func change(dev, what string, do func(netlink.Link) error) error {
	l, err := linkByName(dev)
	if err == nil {
		err = do(l)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("device %q: %s: %w: run as root or with CAP_NET_ADMIN", dev, what, err)
	default:
		return fmt.Errorf("device %q: %s: %w", dev, what, err)
	}
}

// linkByName finds a device by its name proper. netlink.LinkByName would take an alternative name, too.
func linkByName(dev string) (netlink.Link, error) {
	l, err := netlink.LinkByName(dev)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing), err == nil && l.Attrs().Name != dev:
		return nil, errNoDevice
	case err != nil:
		return nil, err
	}
	return l, nil
}
