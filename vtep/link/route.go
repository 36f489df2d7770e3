//go:build linux

package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is how the kernel sends packets to one address.
type Route struct {
	Src    netip.Addr // the source address that the kernel would choose
	Device string     // outgoing device
	Index  int        // its interface index
	// MTU is that of the device, or of the route where one is set there and is smaller.
	// What the kernel has learned from ICMP messages is not in it: anybody may have sent those.
	MTU mtu.UnderlayMTU
}

// RouteTo asks the kernel for its route to dst. The error names dst and wraps the kernel's answer, such as
// ENETUNREACH.
func RouteTo(dst netip.Addr) (Route, error) { return RouteFrom(netip.Addr{}, dst) }

// RouteFrom is RouteTo for packets whose source address is src; the zero Addr leaves the choice to the kernel.
func RouteFrom(src, dst netip.Addr) (Route, error) {
	dst = dst.Unmap()
	if !dst.IsValid() || dst.IsUnspecified() || dst.IsMulticast() {
		return Route{}, fmt.Errorf("find the route to %v: not the address of one host: state the peer's unicast address", dst)
	}
	fail := func(err error) (Route, error) {
		return Route{}, fmt.Errorf("find the route to %v: %w%s", dst, err, routeHint(err))
	}
	var opts netlink.RouteGetOptions
	if src.IsValid() {
		opts.SrcAddr = src.AsSlice()
	}
	if zone := dst.Zone(); zone != "" {
		l, err := linkByName(zone)
		if err != nil {
			return fail(err)
		}
		opts.OifIndex = l.Attrs().Index
	}
	routes, err := netlink.RouteGetWithOptions(dst.AsSlice(), &opts)
	if err != nil {
		return fail(err)
	}
	if len(routes) == 0 {
		return fail(unix.ENETUNREACH)
	}
	r := routes[0]
	l, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return fail(fmt.Errorf("look up its device, index %d: %w", r.LinkIndex, err))
	}
	if !src.IsValid() {
		var ok bool
		if src, ok = netip.AddrFromSlice(r.Src); !ok {
			return fail(fmt.Errorf("device %q has no %v address to send from", l.Attrs().Name, mtu.FamilyOf(dst)))
		}
	}
	out := Route{Src: src.Unmap(), Device: l.Attrs().Name, Index: r.LinkIndex, MTU: mtu.UnderlayMTU(l.Attrs().MTU)}
	if r.MTU > 0 {
		if stated := statedMTU(dst, opts); stated > 0 {
			out.MTU = min(out.MTU, stated)
		}
	}
	return out, nil
}

// statedMTU returns the MTU that the table of routes has for dst, or 0 if it has none. What the kernel has learned is not
// in the table. A kernel that cannot be asked is taken not to have any.
func statedMTU(dst netip.Addr, opts netlink.RouteGetOptions) mtu.UnderlayMTU {
	opts.FIBMatch = true
	routes, err := netlink.RouteGetWithOptions(dst.AsSlice(), &opts)
	if err != nil || len(routes) == 0 {
		return 0
	}
	return mtu.UnderlayMTU(routes[0].MTU)
}

// routeHint says what the operator can do about the kernel's refusal to name a route.
func routeHint(err error) string {
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return ": add a route to it, or correct the address"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		// Routes of the types prohibit and blackhole answer with these.
		return ": a route or rule forbids it: see `ip route get`"
	default:
		return ""
	}
}

// HasAddress reports whether a is an address of this host, and of which of its devices. When the kernel cannot
// be asked, it says no.
func HasAddress(a netip.Addr) (device string, ok bool) {
	a = a.Unmap()
	if !a.IsValid() {
		return "", false
	}
	family := netlink.FAMILY_V6
	if a.Is4() {
		family = netlink.FAMILY_V4
	}
	// An interrupted dump may lack what came meanwhile, not what was there before.
	addrs, err := netlink.AddrList(nil, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return "", false
	}
	for _, have := range addrs {
		ip, _ := netip.AddrFromSlice(have.IP)
		// All of 127.0.0.0/8 is this host, by the one address of the loopback device.
		whole := a.Is4() && a.IsLoopback() && ip.Unmap().IsLoopback()
		if ip.Unmap() != a.WithZone("") && !whole {
			continue
		}
		l, err := netlink.LinkByIndex(have.LinkIndex)
		if err != nil {
			continue // gone, and the address with it
		}
		if zone := a.Zone(); zone != "" && zone != l.Attrs().Name {
			continue // a link-local address of another device
		}
		return l.Attrs().Name, true
	}
	return "", false
}
