package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api"
)

// Any address of the Internet has the default route; these are of the documentation (RFC 5737, RFC 3849).
var (
	defaultRoute4 = netip.MustParseAddr("192.0.2.1")
	defaultRoute6 = netip.MustParseAddr("2001:db8::1")
)

// candidates returns the addresses at which the others are to look for this host, in the order in which they are preferred:
// those on its interfaces first, for the way between two of them has nothing in between, and then those that only lead to it,
// such as floating ones, which nothing here can be bound to. If none is stated that it has, those are taken that its routes
// send from: to the first of remotes that is an address, or by default.
func candidates(host Host, advertise, remotes []string) ([]netip.Addr, controlplane.Choice, error) {
	choice := controlplane.Choice{Toward: firstAddress(remotes)}
	var local, elsewhere []netip.Addr
	for _, t := range advertise {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, choice, api.Errorf(api.Invalid, "advertise", "%q is no IP address", t)
		}
		choice.Stated = append(choice.Stated, a)
		if _, ok := host.HasAddress(a); ok {
			local = append(local, a)
		} else {
			elsewhere = append(elsewhere, a)
		}
	}
	if len(local) == 0 {
		choice.Derived = true
		var err error
		if local, err = sources(host, choice.Toward); err != nil {
			if len(advertise) > 0 {
				return nil, choice, api.Errorf(api.Invalid, "advertise", "none of %s is on an interface of this host, and its own cannot be derived: %w: state it too", strings.Join(advertise, ", "), err)
			}
			return nil, choice, api.Errorf(api.Invalid, "advertise", "none is stated, and none can be derived: %w: use --advertise", err)
		}
	}
	return append(local, elsewhere...), choice, nil
}

// renewed returns what the addresses of a node ought to be whose own were derived, and that is known by those of now: what it
// still has of them stays and stays first, since it is named by the first one. What its routes send from is added, and what
// it does not have any more goes.
func renewed(host Host, c controlplane.Choice, now []netip.Addr) ([]netip.Addr, error) {
	own, err := sources(host, c.Toward)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	add := func(list []netip.Addr, is func(netip.Addr) bool) {
		for _, a := range list {
			if is(a) && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	add(now, func(a netip.Addr) bool {
		_, has := host.HasAddress(a)
		return has && !slices.Contains(c.Stated, a)
	})
	add(own, func(a netip.Addr) bool { return usable(a) || a.IsLoopback() })
	if len(out) == 0 {
		return nil, fmt.Errorf("the routes of this host send from %v, which other hosts cannot be told of", own)
	}
	add(c.Stated, netip.Addr.IsValid)
	return out, nil
}

// sources returns the addresses from which this host sends: to an address, or by default if that is invalid, and by default
// in the other family, if it has a route for that.
func sources(host Host, to netip.Addr) ([]netip.Addr, error) {
	first, err := host.SourceTo(to)
	if err != nil {
		return nil, err
	}
	out := []netip.Addr{first}
	if first.IsLoopback() {
		return out, nil
	}
	other := defaultRoute6
	if first.Is6() {
		other = defaultRoute4
	}
	if second, err := host.SourceTo(other); err == nil && usable(second) && !slices.Contains(out, second) {
		out = append(out, second)
	}
	return out, nil
}

// usable reports whether other hosts can be told of an address that nobody stated.
func usable(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsUnspecified()
}

// firstAddress returns the first of remotes, each host:port or host, that is an address and not a name.
func firstAddress(remotes []string) netip.Addr {
	for _, r := range remotes {
		host, _, err := net.SplitHostPort(r)
		if err != nil {
			host = r
		}
		if a, err := netip.ParseAddr(host); err == nil {
			return a
		}
	}
	return netip.Addr{}
}
