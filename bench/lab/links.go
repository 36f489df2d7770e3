package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

const (
	hostLink   = "eth0" // a host's end of its veth
	bridgeName = "br0"  // in the router namespace of a bridged lab
)

// hostSettings make addresses usable at once and keep the wire free of chatter that no test asked for.
// They come before the first link, which takes "default" over.
func hostSettings() [][2]string {
	return [][2]string{
		{"ipv4/ip_forward", "0"},
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv6/conf/default/dad_transmits", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
		{"ipv6/conf/default/router_solicitations", "0"},
		{"ipv6/conf/default/disable_ipv6", "0"},
	}
}

func routerSettings() [][2]string {
	return append(hostSettings(), [][2]string{
		{"ipv4/ip_forward", "1"},
		{"ipv6/conf/all/forwarding", "1"},
		// The ICMP errors of a router must not be lost to a rate limit, or path MTU tests would depend on luck.
		{"ipv4/icmp_ratelimit", "0"},
		{"ipv6/icmp/ratelimit", "0"},
		// Translating between two hosts of one subnet, it must not tell them of a shorter way.
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"},
	}...)
}

// connect makes the veth between a host and the router, with addresses and routes.
func (l *Lab) connect(h *Host) error {
	spec := h.spec
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: spec.Name, MTU: int(spec.MTU)},
		PeerName:      hostLink,
		PeerNamespace: netlink.NsFd(int(h.handle)),
		PeerMTU:       uint32(spec.MTU),
	}
	if err := l.router.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link between %s and the router: %w", spec.Name, err)
	}
	if l.scenario.Topology == Bridged {
		bridge, err := l.router.nl.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find the bridge of the router: %w", err)
		}
		if err := l.router.nl.LinkSetMaster(veth, bridge); err != nil {
			return fmt.Errorf("put the link of %s on the bridge: %w", spec.Name, err)
		}
	}
	if err := setOffloads(&h.Namespace, hostLink, spec.Offloads); err != nil {
		return err
	}
	if err := setOffloads(l.router, spec.Name, spec.Offloads); err != nil {
		return err
	}
	if err := l.router.up(spec.Name); err != nil {
		return err
	}
	if err := h.up(hostLink); err != nil {
		return err
	}
	for _, p := range spec.Underlay {
		if err := h.addAddress(hostLink, p); err != nil {
			return err
		}
		link := spec.Name
		if l.scenario.Topology == Bridged {
			if !l.scenario.translates() {
				continue
			}
			link = bridgeName
		}
		via, err := routerAddress(p)
		if err != nil {
			return err
		}
		if err := l.router.addAddress(link, via); err != nil && !errors.Is(err, unix.EEXIST) { // the others share it
			return err
		}
		if err := h.nl.RouteAdd(&netlink.Route{Gw: via.Addr().AsSlice()}); err != nil {
			return fmt.Errorf("route %s by way of %v: %w", spec.Name, via.Addr(), err)
		}
	}
	return nil
}

// join makes the veth between the two hosts of the direct topology.
func (l *Lab) join() error {
	a, b := l.hosts[0], l.hosts[1]
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: hostLink, MTU: int(a.spec.MTU)},
		PeerName:      hostLink,
		PeerNamespace: netlink.NsFd(int(b.handle)),
		PeerMTU:       uint32(b.spec.MTU),
	}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link between %s and %s: %w", a.name, b.name, err)
	}
	for _, h := range l.hosts {
		if err := setOffloads(&h.Namespace, hostLink, h.spec.Offloads); err != nil {
			return err
		}
	}
	for _, h := range l.hosts {
		if err := h.up(hostLink); err != nil {
			return err
		}
		for _, p := range h.spec.Underlay {
			if err := h.addAddress(hostLink, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeBridge makes the bridge that joins the hosts of a bridged lab. Its MTU is that of the widest
// link: left alone it would follow the narrowest.
func (l *Lab) makeBridge() error {
	var widest mtu.UnderlayMTU
	for _, h := range l.scenario.Hosts {
		widest = max(widest, h.MTU)
	}
	// No snooping: without a querier its only effect is to lose multicast at the start.
	snooping := false
	b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName, MTU: int(widest)}, MulticastSnooping: &snooping}
	if err := l.router.nl.LinkAdd(b); err != nil {
		return fmt.Errorf("make the bridge of the router: %w", err)
	}
	return l.router.up(bridgeName)
}

func (n *Namespace) up(link string) error {
	dev, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.LinkSetUp(dev)
	}
	if err != nil {
		return fmt.Errorf("bring up %s of %s: %w", link, n.name, err)
	}
	return nil
}

// addAddress gives an address to a device without duplicate address detection, so that it works at once.
func (n *Namespace) addAddress(link string, p netip.Prefix) error {
	dev, err := n.nl.LinkByName(link)
	if err == nil {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		err = n.nl.AddrAdd(dev, a)
	}
	if err != nil {
		return fmt.Errorf("give %v to %s of %s: %w", p, link, n.name, err)
	}
	return nil
}

func (n *Namespace) setMTU(link string, size int) error {
	dev, err := n.nl.LinkByName(link)
	if err == nil {
		err = n.nl.LinkSetMTU(dev, size)
	}
	if err != nil {
		return fmt.Errorf("set the MTU of %s of %s to %d: %w", link, n.name, size, err)
	}
	return nil
}

// MTU is the MTU of a device in the namespace, in bytes of the IP packet.
func (n *Namespace) MTU(link string) (int, error) {
	dev, err := n.nl.LinkByName(link)
	if err != nil {
		return 0, fmt.Errorf("look at %s of %s: %w", link, n.name, err)
	}
	return dev.Attrs().MTU, nil
}

// awaitUp waits until a device has carrier and its IPv6 addresses may be used: both come some time after
// the request, from the kernel's own workers.
func (n *Namespace) awaitUp(ctx context.Context, link string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		dev, err := n.nl.LinkByName(link)
		if err != nil {
			return fmt.Errorf("look at %s of %s: %w", link, n.name, err)
		}
		addrs, err := n.nl.AddrList(dev, unix.AF_INET6)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list the addresses of %s of %s: %w", link, n.name, err)
		}
		// A vxlan device or a TAP has no carrier of its own: its state stays unknown.
		state := dev.Attrs().OperState
		ready := err == nil && (state == netlink.OperUp || state == netlink.OperUnknown)
		for _, a := range addrs {
			ready = ready && a.Flags&unix.IFA_F_TENTATIVE == 0
		}
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s of %s, which is %v: %w", link, n.name, state, ctx.Err())
		case <-tick.C:
		}
	}
}

// OffloadGroups are names for sets of kernel features that belong together; HostSpec.Offloads and
// SetOffloads take them as well as the kernel's own names (those that ethtool -k shows).
func OffloadGroups() map[string][]string {
	return map[string][]string{
		"tunnel":   {"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"},
		"checksum": {"tx-checksum-ip-generic"},
		"tso":      {"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation"},
		"uso":      {"tx-udp-segmentation"},
		"gso":      {"tx-generic-segmentation"},
		"gro":      {"rx-gro"},
	}
}

// setOffloads turns features of a device on and off and makes sure that the kernel did it.
func setOffloads(n *Namespace, link string, want map[string]bool) error {
	if len(want) == 0 {
		return nil
	}
	features := make(map[string]bool)
	groups := OffloadGroups()
	for name, on := range want {
		if members, ok := groups[name]; ok {
			for _, m := range members {
				features[m] = on
			}
		}
	}
	for name, on := range want { // a single feature outranks its group
		if _, ok := groups[name]; !ok {
			features[name] = on
		}
	}
	err := n.Do(func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer tool.Close()
		if err := tool.Change(link, features); err != nil {
			return err
		}
		got, err := tool.Features(link)
		if err != nil {
			return err
		}
		for name, on := range features {
			if got[name] != on {
				return fmt.Errorf("%s stays %v: another feature or the device forces it", name, got[name])
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set the offloads of %s of %s: %w", link, n.name, err)
	}
	return nil
}

// SetOffloads turns offloads of both ends of a host's link on and off, as HostSpec.Offloads does.
func (l *Lab) SetOffloads(host string, want map[string]bool) error {
	return l.bothEnds(host, func(n *Namespace, link string) error { return setOffloads(n, link, want) })
}

// SetHopMTU changes the MTU of the hop between the hosts, which is that of RouterSpec.MTU; 0 takes it away.
func (l *Lab) SetHopMTU(size mtu.UnderlayMTU) error {
	if l.scenario.Topology != Routed {
		return errors.New("set the MTU of the hop between the hosts: only routed hosts have one")
	}
	return l.narrow(size)
}

// narrow has the router forward no larger packets than this to any host: by a route to each of its addresses, whose MTU is
// locked so that forwarding heeds it.
func (l *Lab) narrow(size mtu.UnderlayMTU) error {
	for _, h := range l.hosts {
		for _, p := range h.spec.Underlay {
			dev, err := l.router.nl.LinkByName(h.name)
			if err != nil {
				return fmt.Errorf("find the link of %s in the router: %w", h.name, err)
			}
			a := p.Addr()
			route := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
			if size == 0 {
				if err = l.router.nl.RouteDel(route); errors.Is(err, unix.ESRCH) { // there was none
					err = nil
				}
			} else {
				route.MTU, route.MTULock = int(size), true
				err = l.router.nl.RouteReplace(route)
			}
			if err != nil {
				return fmt.Errorf("let the router forward %d bytes to %v: %w", size, a, err)
			}
		}
	}
	return nil
}

// SetLinkMTU changes the MTU of both ends of a host's link.
func (l *Lab) SetLinkMTU(host string, size mtu.UnderlayMTU) error {
	return l.bothEnds(host, func(n *Namespace, link string) error { return n.setMTU(link, int(size)) })
}

// bothEnds does something to both ends of a host's link.
func (l *Lab) bothEnds(host string, do func(n *Namespace, link string) error) error {
	h, err := l.find(host)
	if err != nil {
		return err
	}
	if l.router != nil {
		return errors.Join(do(&h.Namespace, hostLink), do(l.router, host))
	}
	var errs []error
	for _, end := range l.hosts {
		errs = append(errs, do(&end.Namespace, hostLink))
	}
	return errors.Join(errs...)
}
