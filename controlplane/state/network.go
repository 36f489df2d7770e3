package state

import (
	"math"
	"net/netip"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// network is a record of a network. It is never changed, only replaced.
type network struct {
	id      uint64
	msg     *statev1.Network // canonical; not to be handed out
	subnets []subnet
}

// subnet is one prefix of a network, with the gateway in it, if any.
type subnet struct {
	prefix  netip.Prefix
	gateway netip.Addr
}

// netSubnet says whose subnet prefix is.
type netSubnet struct {
	prefix netip.Prefix
	net    *network
}

// segment is what the endpoints of a network add up to.
type segment struct {
	net       *network
	endpoints int
	sum       uint64 // of the digests of the network and its endpoints
}

// notUnicast are the blocks that no subnet may reach into (RFC 6890).
func notUnicast() [8]netip.Prefix {
	return [...]netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{}), 8),                    // this network
		netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8),                 // loopback
		netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254}), 16),           // link-local
		netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4),                 // multicast
		netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4),                 // reserved, broadcast
		netip.PrefixFrom(netip.IPv6Unspecified(), 8),                       // loopback, mapped IPv4
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80}), 10), // link-local
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xff}), 8),           // multicast
	}
}

// parseNetwork checks a network by itself and returns its record. m is not kept. Gateways are as many as subnets.
func parseNetwork(m *statev1.Network) (*network, *refusal) {
	if m == nil {
		return nil, invalid("", "it is missing: give the network")
	}
	id, bad := parseID("id", m.Id)
	if bad != nil {
		return nil, bad
	}
	if bad := checkName("name", m.Name); bad != nil {
		return nil, bad
	}
	if _, err := addr.NewVNI(uint64(m.Vni)); err != nil {
		return nil, invalid("vni", "%v", err)
	}
	if len(m.Subnets) == 0 {
		return nil, invalid("subnets", "there is none: give an IPv4 prefix, an IPv6 prefix or one of each")
	}
	subnets, bad := parseSubnets(m.Subnets)
	if bad != nil {
		return nil, bad
	}
	if bad := parseGateways(m.Gateways, subnets); bad != nil {
		return nil, bad
	}
	if bad := checkMTU(m.Mtu, subnets); bad != nil {
		return nil, bad
	}
	if bad := checkMSS(m.Mss, m.Mtu); bad != nil {
		return nil, bad
	}
	created, bad := checkTime("created", m.Created)
	if bad != nil {
		return nil, bad
	}
	n := &network{id: id, subnets: subnets, msg: &statev1.Network{
		Id: m.Id, Name: m.Name, Vni: m.Vni, Mtu: m.Mtu, Mss: m.Mss, Index: m.Index, Created: created,
	}}
	for _, s := range subnets {
		n.msg.Subnets = append(n.msg.Subnets, s.prefix.String())
		gateway := ""
		if s.gateway.IsValid() {
			gateway = s.gateway.String()
		}
		n.msg.Gateways = append(n.msg.Gateways, gateway)
	}
	return n, nil
}

func parseSubnets(list []string) ([]subnet, *refusal) {
	if len(list) > 2 {
		return nil, invalid("subnets", "%d subnets are too many: give at most one of IPv4 and one of IPv6", len(list))
	}
	var out []subnet
	for i, s := range list {
		field := element("subnets", i)
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, invalid(field, "%s is not a prefix: write it as in 10.42.0.0/24 or 2001:db8:42::/64", show(s))
		}
		if p.Addr().Is4In6() {
			return nil, invalid(field, "%s is an IPv4 prefix in the form of IPv6: write it as in 10.42.0.0/24", show(s))
		}
		if p != p.Masked() {
			return nil, invalid(field, "%v has host bits set: write %v", p, p.Masked())
		}
		if hostBits(p) < 2 {
			return nil, invalid(field, "%v has no room for hosts: choose /%d or a larger one", p, p.Addr().BitLen()-2)
		}
		for _, b := range notUnicast() {
			if p.Overlaps(b) {
				return nil, invalid(field, "%v reaches into %v, whose addresses no host can have: choose unicast addresses", p, b)
			}
		}
		if len(out) > 0 && out[0].prefix.Addr().Is4() == p.Addr().Is4() {
			return nil, invalid(field, "%v is of the same family as %v: give at most one subnet of IPv4 and one of IPv6", p, out[0].prefix)
		}
		out = append(out, subnet{prefix: p})
	}
	return out, nil
}

// parseGateways reads the gateways into their subnets.
func parseGateways(list []string, subnets []subnet) *refusal {
	if len(list) == 0 {
		return nil
	}
	if len(list) != len(subnets) {
		return invalid("gateways", "there are %d for %d subnets: give one for each subnet, empty for none", len(list), len(subnets))
	}
	for i, s := range list {
		if s == "" {
			continue
		}
		field := element("gateways", i)
		a, bad := parseAddr(field, s)
		if bad != nil {
			return bad
		}
		if p := subnets[i].prefix; !p.Contains(a) {
			return invalid(field, "%v is outside of the subnet %v: choose an address of it", a, p)
		}
		if why := subnets[i].reserved(a); why != "" {
			return invalid(field, "%v is %s %v: choose another address of it", a, why, subnets[i].prefix)
		}
		subnets[i].gateway = a
	}
	return nil
}

func checkMTU(n uint32, subnets []subnet) *refusal {
	if n == 0 {
		return nil
	}
	least := mtu.MinIPv4
	for _, s := range subnets {
		if s.prefix.Addr().Is6() {
			least = mtu.MinIPv6
		}
	}
	// The largest IP packet of the underlay leaves this much; IPv4 has the smaller overhead.
	most, err := mtu.OverlayOf(math.MaxUint16, mtu.IPv4)
	if err != nil || int64(n) < int64(least) || int64(n) > int64(most) {
		return invalid("mtu", "%d is out of range: choose from %d to %d for these subnets, or 0 to have it derived from the underlay", n, least, most)
	}
	return nil
}

// checkMSS looks at an MSS that the operator fixes, which has to fit into an MTU that is fixed too.
func checkMSS(n, fixedMTU uint32) *refusal {
	if n == 0 {
		return nil
	}
	if err := mtu.CheckMSS(int64(n), mtu.OverlayMTU(fixedMTU)); err != nil {
		return invalid("mss", "%v", err)
	}
	return nil
}

func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// reserved returns what an address of the subnet is set aside for, as in "it is ... subnet", or "".
func (s subnet) reserved(a netip.Addr) string {
	switch {
	case a == s.prefix.Addr() && a.Is4():
		return "the network address of"
	case a == s.prefix.Addr():
		return "the anycast address of all routers of" // RFC 4291, section 2.6.1
	case a.Is4() && a == lastOf(s.prefix):
		return "the broadcast address of"
	case a == s.gateway:
		return "the gateway of"
	}
	return ""
}

// lastOf returns the last address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	return number4(of4(p.Addr()) | uint32(1<<hostBits(p)-1))
}

// subnetOver returns a subnet of the state that overlaps p. Those of the state do not overlap each other, so it is the
// one that begins last before p, or first in it.
func (c *content) subnetOver(p netip.Prefix) (found netSubnet, ok bool) {
	look := func(s netSubnet) bool {
		if ok = s.prefix.Overlaps(p); ok {
			found = s
		}
		return false
	}
	if c.subnets.DescendLessOrEqual(netSubnet{prefix: p}, look); !ok {
		c.subnets.AscendGreaterOrEqual(netSubnet{prefix: p}, look)
	}
	return found, ok
}

// nodeWithin returns a candidate address of a node that is in p.
func (c *content) nodeWithin(p netip.Prefix) (found nodeAddr, ok bool) {
	c.nodeAddrs.AscendGreaterOrEqual(nodeAddr{addr: p.Addr()}, func(a nodeAddr) bool {
		if ok = p.Contains(a.addr); ok {
			found = a
		}
		return false
	})
	return found, ok
}

// networkConflict says what stands against having n in the state, be it new or in place of the network with its ID.
func (c *content) networkConflict(n *network) *refusal {
	if other := c.netNames[n.msg.Name]; other != nil && other.id != n.id {
		return refuse(statev1.Error_KIND_EXISTS, "name", "there is a network %s already, with the ID %s: choose another name", n.msg.Name, other.msg.Id)
	}
	if other := c.vnis[n.msg.Vni]; other != nil && other.id != n.id {
		return refuse(statev1.Error_KIND_EXISTS, "vni", "VNI %d belongs to network %s: choose another one, or 0 to have one allocated", n.msg.Vni, other.msg.Name)
	}
	for i, s := range n.subnets {
		if other, ok := c.subnetOver(s.prefix); ok && other.net.id != n.id {
			return refuse(statev1.Error_KIND_EXISTS, element("subnets", i), "%v overlaps %v of network %s: choose another one", s.prefix, other.prefix, other.net.msg.Name)
		}
		if a, ok := c.nodeWithin(s.prefix); ok {
			return refuse(statev1.Error_KIND_EXISTS, element("subnets", i), "%v has the underlay address %v of node %s in it, which containers could then not tell from their own: choose another one",
				s.prefix, a.addr, a.node.msg.Name)
		}
	}
	if seg := c.segments[n.id]; seg != nil && !sameShape(seg.net, n) {
		return refuse(statev1.Error_KIND_CONFLICT, "id", "a network keeps its VNI, subnets and gateways: make another network")
	}
	return nil
}

func sameShape(a, b *network) bool {
	if a.msg.Vni != b.msg.Vni || len(a.subnets) != len(b.subnets) {
		return false
	}
	for i := range a.subnets {
		if a.subnets[i] != b.subnets[i] {
			return false
		}
	}
	return true
}

// putNetwork makes n part of the state and returns the record whose place it takes, if any. It has been checked.
func (c *content) putNetwork(n *network) (old *network) {
	seg := c.segments[n.id]
	if seg == nil {
		seg = &segment{}
		c.segments[n.id] = seg
		c.alloc.addNetwork(n)
	} else {
		old = seg.net
		seg.sum -= old.digest()
		delete(c.netNames, old.msg.Name)
	}
	seg.net = n
	seg.sum += n.digest()
	c.networks.ReplaceOrInsert(n)
	c.netNames[n.msg.Name] = n
	c.vnis[n.msg.Vni] = n
	for _, s := range n.subnets {
		c.subnets.ReplaceOrInsert(netSubnet{s.prefix, n})
		c.alloc.noteSubnet(c, s.prefix)
	}
	return old
}

// dropNetwork takes a network without endpoints out of the state.
func (c *content) dropNetwork(n *network) {
	delete(c.segments, n.id)
	c.networks.Delete(n)
	delete(c.netNames, n.msg.Name)
	delete(c.vnis, n.msg.Vni)
	for _, s := range n.subnets {
		c.subnets.Delete(netSubnet{prefix: s.prefix})
		c.alloc.noteSubnet(c, s.prefix)
	}
	c.alloc.dropNetwork(n)
}
