package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// routerName is the name of the router among the namespaces of a lab.
const routerName = "router"

// Names become parts of interface names (15 bytes), paths and namespace names.
var (
	scenarioNames = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`)
	hostNames     = regexp.MustCompile(`^[a-z][a-z0-9-]{0,13}$`)
	networkNames  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,12}$`)
)

// complete fills in the defaults and checks the whole.
func (sc *Scenario) complete() error {
	if !scenarioNames.MatchString(sc.Name) {
		return fmt.Errorf("name %q: use small letters, digits and hyphens, at most 40", sc.Name)
	}
	if sc.Topology == "" {
		sc.Topology = Routed
	}
	if sc.Router.DropICMP == "" {
		sc.Router.DropICMP = DropNone
	}
	switch {
	case !slices.Contains([]Topology{Routed, Bridged, Direct}, sc.Topology):
		return fmt.Errorf("topology %q is none of %s, %s, %s", sc.Topology, Routed, Bridged, Direct)
	case !slices.Contains([]ICMPFilter{DropNone, DropTooBig, DropAll}, sc.Router.DropICMP):
		return fmt.Errorf("router.drop_icmp %q is none of %s, %s, %s", sc.Router.DropICMP, DropNone, DropTooBig, DropAll)
	case sc.Topology != Routed && sc.Router.DropICMP != DropNone:
		return fmt.Errorf("router.drop_icmp: nothing sends ICMP between hosts that are %s; remove it or use the routed topology", sc.Topology)
	case sc.Topology != Routed && sc.Router.MTU != 0:
		return fmt.Errorf("router.mtu: hosts that are %s have no hop between them; remove it or use the routed topology", sc.Topology)
	case sc.Router.MTU != 0 && (sc.Router.MTU < 576 || sc.Router.MTU > 65535):
		return fmt.Errorf("router.mtu: %d is not between 576 and 65535", sc.Router.MTU)
	case len(sc.Hosts) == 0:
		return errors.New("hosts: there is none")
	case sc.Topology == Direct && len(sc.Hosts) != 2:
		return fmt.Errorf("hosts: one veth joins two of them, not %d; use the routed or bridged topology", len(sc.Hosts))
	}
	sc.Hosts = slices.Clone(sc.Hosts)
	sc.Networks = slices.Clone(sc.Networks)
	if err := sc.completeHosts(); err != nil {
		return err
	}
	if err := sc.checkCluster(); err != nil {
		return err
	}
	for i := range sc.Networks {
		if err := sc.completeNetwork(i); err != nil {
			return fmt.Errorf("networks[%d] (%s): %w", i, sc.Networks[i].Name, err)
		}
	}
	return sc.checkStory()
}

func (sc *Scenario) completeHosts() error {
	for i := range sc.Hosts {
		h := &sc.Hosts[i]
		if err := sc.completeHost(h); err != nil {
			return fmt.Errorf("hosts[%d] (%s): %w", i, h.Name, err)
		}
		for j := range i {
			if err := sc.disjoint(h, &sc.Hosts[j]); err != nil {
				return fmt.Errorf("hosts[%d] (%s): %w", i, h.Name, err)
			}
		}
	}
	return nil
}

func (sc *Scenario) completeHost(h *HostSpec) error {
	if h.MTU == 0 {
		h.MTU = 1500
	}
	switch {
	case !hostNames.MatchString(h.Name):
		return errors.New("name: use small letters, digits and hyphens, at most 14, a letter first")
	case h.Name == routerName || h.Name == bridgeName || h.Name == "lo":
		return fmt.Errorf("name: %s is taken by the lab itself", h.Name)
	case len(h.Underlay) == 0 || len(h.Underlay) > 2:
		return errors.New("underlay: give one address, or one of each family")
	case len(h.Underlay) == 2 && h.Underlay[0].Addr().Is4() == h.Underlay[1].Addr().Is4():
		return errors.New("underlay: two addresses of one family")
	case h.MTU < 576 || h.MTU > 65535:
		return fmt.Errorf("mtu: %d is not between 576 and 65535", h.MTU)
	case h.Loss > 1e6:
		return fmt.Errorf("loss: %s is more than all", h.Loss)
	case sc.Topology == Direct && h.Loss > 0:
		return errors.New("loss: it is the router that loses, and directly joined hosts have none; use the routed or bridged topology")
	case h.Floating.IsValid() && sc.Topology != Bridged:
		return fmt.Errorf("floating: the router translates for hosts on one subnet, and these are %s; use the bridged topology", sc.Topology)
	case h.Floating.IsValid() && (!h.Floating.Is4() || !h.underlay(IPv4).IsValid()):
		return errors.New("floating: give an IPv4 address, to a host that has another one on its link")
	case h.Overlayd.Queues < 0:
		return fmt.Errorf("overlayd.queues: %d is negative", h.Overlayd.Queues)
	case h.Overlayd.BusyPoll < 0:
		return fmt.Errorf("overlayd.busy_poll: %d is negative", h.Overlayd.BusyPoll)
	case !slices.Contains([]string{"", "auto", "on", "off"}, h.Overlayd.Checksum):
		return fmt.Errorf("overlayd.checksum: %q is none of auto, on, off", h.Overlayd.Checksum)
	}
	for _, p := range h.Underlay {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("underlay: %s is not an address with a prefix length such as 192.0.2.1/24", p)
		}
		if p.Addr().Is6() && (h.MTU < 1280 || sc.Router.MTU != 0 && sc.Router.MTU < 1280) {
			return fmt.Errorf("mtu: less than 1280 here or at the router, which is the least that IPv6 runs on (RFC 8200, section 5)")
		}
		if sc.Topology == Routed || sc.translates() {
			if _, err := routerAddress(p); err != nil {
				return fmt.Errorf("underlay: %w", err)
			}
		}
	}
	return nil
}

// disjoint checks that two hosts can be joined in this topology.
func (sc *Scenario) disjoint(a, b *HostSpec) error {
	if a.Name == b.Name {
		return fmt.Errorf("name: used twice")
	}
	if sc.Topology == Direct && (a.MTU != b.MTU || !maps.Equal(a.Offloads, b.Offloads)) {
		return fmt.Errorf("mtu and offloads: directly joined hosts share a link; give %s the same", b.Name)
	}
	if a.Floating.IsValid() && a.Floating == b.Floating {
		return fmt.Errorf("floating: %s is that of %s, too", a.Floating, b.Name)
	}
	for _, p := range a.Underlay {
		for _, q := range b.Underlay {
			switch {
			case p.Addr() == q.Addr():
				return fmt.Errorf("underlay: %s is the address of %s, too", p.Addr(), b.Name)
			case sc.Topology == Routed && p.Overlaps(q):
				return fmt.Errorf("underlay: %s overlaps the subnet of %s; routed hosts need a subnet each", p, b.Name)
			case sc.Topology != Routed && p.Addr().Is4() == q.Addr().Is4() && p.Masked() != q.Masked():
				return fmt.Errorf("underlay: %s is not in the subnet of %s; %s hosts share one", p, b.Name, sc.Topology)
			}
		}
	}
	return nil
}

func (sc *Scenario) completeNetwork(i int) error {
	n := &sc.Networks[i]
	if !networkNames.MatchString(n.Name) {
		return errors.New("name: use small letters, digits and hyphens, at most 13, a letter first")
	}
	chosen := n.VNI == 0 && n.ofCluster() // by the cluster
	if _, err := addr.NewVNI(uint64(n.VNI)); err != nil && !chosen {
		return fmt.Errorf("vni: %w", err)
	}
	for j, o := range sc.Networks[:i] {
		if o.Name == n.Name || o.VNI == n.VNI && !chosen {
			return fmt.Errorf("name or vni is used by networks[%d], too", j)
		}
	}
	if len(n.Subnets) == 0 {
		return errors.New("subnets: give at least one")
	}
	for _, p := range n.Subnets {
		if !p.IsValid() || p.Masked() != p {
			return fmt.Errorf("subnets: %s is not a subnet: its host bits must be zero", p)
		}
		stations := max(len(sc.Hosts), len(n.Endpoints))
		last, err := overlayAddress(p, stations-1)
		if err == nil && p.Addr().Is4() && last.Addr() == lastAddress(p) {
			err = errFull
		}
		if err != nil {
			return fmt.Errorf("subnets: %s has no room for %d addresses", p, stations)
		}
	}
	check := sc.checkMembers
	if n.ofCluster() {
		check = sc.checkEndpoints
	}
	if err := check(n); err != nil {
		return err
	}
	return sc.checkWidth(n)
}

// checkMembers checks a network that is stated by hand, and settles its family.
func (sc *Scenario) checkMembers(n *NetworkSpec) error {
	if len(n.Members) == 0 {
		return errors.New("members: there is none, and there are no endpoints")
	}
	for _, name := range slices.Sorted(maps.Keys(n.Members)) {
		if k := n.Members[name]; k != Overlayd && k != Kernel {
			return fmt.Errorf("members: %s: %q is neither %s nor %s", name, k, Overlayd, Kernel)
		}
		switch h := sc.host(name); {
		case h == nil:
			return fmt.Errorf("members: %s is not one of the hosts", name)
		case h.Cluster != "":
			return fmt.Errorf("members: %s is in the cluster: give the network endpoints in place of members", name)
		}
	}
	return sc.chooseFamily(n)
}

// checkWidth makes sure that the links are wide enough for IPv6 inside, if there is to be any.
func (sc *Scenario) checkWidth(n *NetworkSpec) error {
	size, err := sc.kernelMTU(n)
	if err != nil {
		return err
	}
	for _, p := range n.Subnets {
		if p.Addr().Is6() && !size.CarriesIPv6() {
			return fmt.Errorf("subnets: %s: IPv6 needs an MTU of %d and there are only %d: widen the links or take the subnet out", p, mtu.MinIPv6, size)
		}
	}
	return nil
}

// chooseFamily settles which underlay addresses of the members a network uses.
func (sc *Scenario) chooseFamily(n *NetworkSpec) error {
	lacks := func(f Family) string {
		for _, h := range sc.Hosts {
			if _, in := n.Members[h.Name]; in && !h.underlay(f).IsValid() {
				return h.Name
			}
		}
		return ""
	}
	switch {
	case n.Underlay != "" && n.Underlay != IPv4 && n.Underlay != IPv6:
		return fmt.Errorf("underlay: %q is neither %s nor %s", n.Underlay, IPv4, IPv6)
	case n.Underlay != "":
		if who := lacks(n.Underlay); who != "" {
			return fmt.Errorf("underlay: %s has no address of the family %s", who, n.Underlay)
		}
	case lacks(IPv4) == "":
		n.Underlay = IPv4
	case lacks(IPv6) == "":
		n.Underlay = IPv6
	default:
		return errors.New("members: they have no address family in common")
	}
	return nil
}

// translates reports whether the router does.
func (sc *Scenario) translates() bool {
	return slices.ContainsFunc(sc.Hosts, func(h HostSpec) bool { return h.Floating.IsValid() })
}

func (sc *Scenario) host(name string) *HostSpec {
	for i := range sc.Hosts {
		if sc.Hosts[i].Name == name {
			return &sc.Hosts[i]
		}
	}
	return nil
}

// needsOverlayd reports whether any host runs it.
func (sc *Scenario) needsOverlayd() bool {
	return slices.ContainsFunc(sc.Hosts, func(h HostSpec) bool { return sc.runsOverlayd(h.Name) })
}

func (sc *Scenario) runsOverlayd(host string) bool {
	if h := sc.host(host); h != nil && h.Cluster != "" {
		return true
	}
	return slices.ContainsFunc(sc.Networks, func(n NetworkSpec) bool { return n.Members[host] == Overlayd })
}

// underlay returns the host's address of a family; invalid when it has none.
func (h *HostSpec) underlay(f Family) netip.Addr {
	for _, p := range h.Underlay {
		if p.Addr().Is4() == (f == IPv4) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// peers returns the underlay addresses of the other members, in the order of the hosts.
func (sc *Scenario) peers(n *NetworkSpec, host string) []netip.Addr {
	var out []netip.Addr
	for _, h := range sc.Hosts {
		if _, in := n.Members[h.Name]; in && h.Name != host {
			out = append(out, h.underlay(n.Underlay))
		}
	}
	return out
}

// kernelMTU is what an operator would have to set by hand on a kernel vxlan device: what fits through the
// narrowest link of any member.
func (sc *Scenario) kernelMTU(n *NetworkSpec) (mtu.OverlayMTU, error) {
	if n.MTU != 0 {
		return n.MTU, nil
	}
	return mtu.OverlayOf(mtu.PathMTU(sc.narrowest(n)), sc.outer(n))
}

// narrowest is what every path between hosts on a network carries.
func (sc *Scenario) narrowest(n *NetworkSpec) mtu.UnderlayMTU {
	least := sc.Router.MTU
	for i := range sc.Hosts {
		if h := &sc.Hosts[i]; n.reaches(h) && (least == 0 || h.MTU < least) {
			least = h.MTU
		}
	}
	return least
}

// outer is the family of the outer header of a network.
func (sc *Scenario) outer(n *NetworkSpec) mtu.Family {
	if n.ofCluster() {
		return sc.clusterFamily().outer()
	}
	return n.Underlay.outer()
}

var errFull = errors.New("the subnet is full")

// overlayAddress is the address of host number i, counted from 0, in a subnet: the (i+1)th.
func overlayAddress(subnet netip.Prefix, i int) (netip.Prefix, error) {
	a := subnet.Addr()
	for range i + 1 {
		a = a.Next()
	}
	if !subnet.Contains(a) {
		return netip.Prefix{}, errFull
	}
	return netip.PrefixFrom(a, subnet.Bits()), nil
}

// lastAddress is the highest address of a subnet, the broadcast address in IPv4.
func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b) // the length is that of an address
	return a
}

// routerAddress is the address of the router on the link of a host: the highest that a host can have.
func routerAddress(host netip.Prefix) (netip.Prefix, error) {
	a := lastAddress(host)
	if a.Is4() {
		a = a.Prev()
	}
	if !host.Contains(a) || a == host.Addr() || a == host.Masked().Addr() {
		return netip.Prefix{}, fmt.Errorf("%s leaves no address for the router, which takes the highest: use a wider subnet or a lower address", host)
	}
	return netip.PrefixFrom(a, host.Bits()), nil
}
