package state

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

// endpoint is a record of an endpoint. It is never changed, only replaced. There can be a million, so it is small:
// 96 bytes and the name.
type endpoint struct {
	id, network, node uint64
	generation, index uint64
	leaseSeconds      int64
	ip6               [16]byte // all 0 = none
	name              string
	ip4               uint32 // 0 = none
	leaseNanos        int32
	mac               addr.MAC
	leased            bool // has a lease, with the end above
}

func of4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func number4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// ips returns the addresses, IPv4 first.
func (e *endpoint) ips() []netip.Addr {
	out := make([]netip.Addr, 0, 2)
	if e.ip4 != 0 {
		out = append(out, number4(e.ip4))
	}
	if e.ip6 != [16]byte{} {
		out = append(out, netip.AddrFrom16(e.ip6))
	}
	return out
}

// setIP sets the address of its family.
func (e *endpoint) setIP(a netip.Addr) {
	if a.Is4() {
		e.ip4 = of4(a)
	} else {
		e.ip6 = a.As16()
	}
}

// hasFamily reports whether there is an address of the family of a.
func (e *endpoint) hasFamily(a netip.Addr) bool {
	if a.Is4() {
		return e.ip4 != 0
	}
	return e.ip6 != [16]byte{}
}

func (e *endpoint) setLease(end *timestamppb.Timestamp) {
	e.leased, e.leaseSeconds, e.leaseNanos = end != nil, end.GetSeconds(), end.GetNanos()
}

// message returns the endpoint as a new message.
func (e *endpoint) message() *statev1.Endpoint {
	m := &statev1.Endpoint{
		Id: formatID(e.id), Network: formatID(e.network), Name: e.name, Mac: bytes.Clone(e.mac[:]), Node: formatID(e.node),
		Generation: e.generation, Index: e.index,
	}
	for _, a := range e.ips() {
		m.Ips = append(m.Ips, a.String())
	}
	if e.leased {
		m.LeaseEnd = &timestamppb.Timestamp{Seconds: e.leaseSeconds, Nanos: e.leaseNanos}
	}
	return m
}

// parseEndpoint checks an endpoint by itself and returns its record. m is not kept.
func parseEndpoint(m *statev1.Endpoint) (*endpoint, *refusal) {
	if m == nil {
		return nil, invalid("", "it is missing: give the endpoint")
	}
	e := &endpoint{name: m.Name, generation: m.Generation, index: m.Index}
	var bad *refusal
	if e.id, bad = parseID("id", m.Id); bad != nil {
		return nil, bad
	}
	if e.network, bad = parseID("network", m.Network); bad != nil {
		return nil, bad
	}
	if e.node, bad = parseID("node", m.Node); bad != nil {
		return nil, bad
	}
	if m.Name != "" {
		if bad = checkName("name", m.Name); bad != nil {
			return nil, bad
		}
	}
	if bad = e.parseIPs(m.Ips); bad != nil {
		return nil, bad
	}
	if bad = e.parseMAC(m.Mac); bad != nil {
		return nil, bad
	}
	if m.Generation == 0 {
		return nil, invalid("generation", "it is 0: the first one is 1")
	}
	if m.LeaseEnd != nil {
		end, bad := checkTime("lease_end", m.LeaseEnd)
		if bad != nil {
			return nil, bad
		}
		e.setLease(end)
	}
	return e, nil
}

// parseIPs reads the addresses that are given.
func (e *endpoint) parseIPs(list []string) *refusal {
	if len(list) > 2 {
		return invalid("ips", "%d addresses are too many: give at most one of IPv4 and one of IPv6", len(list))
	}
	for i, s := range list {
		a, bad := parseAddr(element("ips", i), s)
		if bad != nil {
			return bad
		}
		if e.hasFamily(a) {
			return invalid(element("ips", i), "%v is the second address of its family: give at most one of IPv4 and one of IPv6", a)
		}
		e.setIP(a)
	}
	return nil
}

func (e *endpoint) parseMAC(b []byte) *refusal {
	if len(b) != len(e.mac) {
		return invalid("mac", "%d bytes are no MAC address: give 6", len(b))
	}
	e.mac = addr.MAC(b)
	if e.mac.IsZero() || e.mac.IsMulticast() {
		return invalid("mac", "%v is not the address of one interface: choose one whose first byte is even, such as 02:42:0a:2a:00:0a", e.mac)
	}
	return nil
}

// misfit says why the addresses that an endpoint has cannot be those of n. It may have fewer than n has subnets. list
// are its addresses as they were given.
func (e *endpoint) misfit(n *network, list []netip.Addr) *refusal {
	for i, a := range list {
		fits := false
		for _, s := range n.subnets {
			if !s.prefix.Contains(a) {
				continue
			}
			if why := s.reserved(a); why != "" {
				return invalid(element("ips", i), "%v is %s %v, which no endpoint can have: choose another one", a, why, s.prefix)
			}
			fits = true
		}
		if !fits {
			return invalid(element("ips", i), "%v is in no subnet of network %s, which has %v: choose an address of these", a, n.msg.Name, n.msg.Subnets)
		}
	}
	return nil
}

// endpointConflict says what stands against having e in the state, be it new or in place of the endpoint with its ID.
// ips are its addresses in the order in which they were given.
func (c *content) endpointConflict(e *endpoint, ips []netip.Addr) *refusal {
	if e.name != "" {
		if other := c.byName.find(e); other != nil && other.id != e.id {
			return refuse(statev1.Error_KIND_EXISTS, "name", "%s is the name of endpoint %s on this network: choose another one, or remove that endpoint", e.name, formatID(other.id))
		}
	}
	for i, a := range ips {
		by := c.byIP4
		if a.Is6() {
			by = c.byIP6
		}
		if other := by.find(e); other != nil && other.id != e.id {
			return refuse(statev1.Error_KIND_EXISTS, element("ips", i), "%v belongs to endpoint %s on node %s: choose another one, or none to have one allocated", a, other.label(), formatID(other.node))
		}
	}
	if other := c.byMAC.find(e); other != nil && other.id != e.id {
		return refuse(statev1.Error_KIND_EXISTS, "mac", "%v belongs to endpoint %s on this network: choose another one, or none to have one made", e.mac, other.label())
	}
	return nil
}

// label is what an operator knows the endpoint by.
func (e *endpoint) label() string {
	if e.name == "" {
		return formatID(e.id)
	}
	return e.name + " (" + formatID(e.id) + ")"
}

// whole says what is wrong with an endpoint as a record of the state, with all that it refers to.
func (c *content) whole(e *endpoint) *refusal {
	seg := c.segments[e.network]
	if seg == nil {
		return refuse(statev1.Error_KIND_NOT_FOUND, "network", "there is no network %s", formatID(e.network))
	}
	if c.node(e.node) == nil {
		return refuse(statev1.Error_KIND_NOT_FOUND, "node", "there is no node %s", formatID(e.node))
	}
	ips := e.ips()
	if bad := e.misfit(seg.net, ips); bad != nil {
		return bad
	}
	if len(ips) != len(seg.net.subnets) {
		return invalid("ips", "there are %d for the %d subnets of network %s", len(ips), len(seg.net.subnets), seg.net.msg.Name)
	}
	if old := c.byID.find(e); old != nil && (old.network != e.network || old.ip4 != e.ip4 || old.ip6 != e.ip6 || old.mac != e.mac || old.name != e.name) {
		return refuse(statev1.Error_KIND_CONFLICT, "id", "an endpoint keeps its network, name and addresses")
	}
	return c.endpointConflict(e, ips)
}

// putEndpoint makes e part of the state and returns the record whose place it takes, if any. It has been checked.
func (c *content) putEndpoint(e *endpoint) (old *endpoint) {
	if old = c.byID.find(e); old != nil {
		c.dropEndpoint(old)
	}
	c.enter(e)
	seg := c.segments[e.network]
	seg.endpoints++
	seg.sum += e.digest()
	c.alloc.take(e)
	return old
}

// dropEndpoint takes e out of the state.
func (c *content) dropEndpoint(e *endpoint) {
	c.leave(e)
	seg := c.segments[e.network]
	seg.endpoints--
	seg.sum -= e.digest()
	c.alloc.free(e)
}
