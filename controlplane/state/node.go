package state

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

const (
	// MaxManagers is how many managers a cluster may have. Every change waits for more than half of them.
	MaxManagers = 7

	maxAddresses = 16   // of a node
	maxKey       = 1024 // bytes of a node's public key
)

// node is a record of a node. It is never changed, only replaced.
type node struct {
	id    uint64
	msg   *statev1.Node // canonical; not to be handed out
	addrs []netip.Addr
}

// nodeAddr says whose candidate address addr is.
type nodeAddr struct {
	addr netip.Addr
	node *node
}

// parseNode checks a node by itself and returns its record. m is not kept.
func parseNode(m *statev1.Node) (*node, *refusal) {
	if m == nil {
		return nil, invalid("", "it is missing: give the node")
	}
	id, bad := parseID("id", m.Id)
	if bad != nil {
		return nil, bad
	}
	if bad := checkName("name", m.Name); bad != nil {
		return nil, bad
	}
	if m.Role != statev1.Role_ROLE_WORKER && m.Role != statev1.Role_ROLE_MANAGER {
		return nil, invalid("role", "%d is no role: choose worker or manager", m.Role)
	}
	if m.Availability != statev1.Availability_AVAILABILITY_ACTIVE && m.Availability != statev1.Availability_AVAILABILITY_DRAIN {
		return nil, invalid("availability", "%d is no availability: choose active or drain", m.Availability)
	}
	addrs, bad := parseAddresses("addresses", m.Addresses)
	if bad != nil {
		return nil, bad
	}
	for _, p := range []struct {
		field string
		port  uint32
	}{{"control_port", m.ControlPort}, {"gossip_port", m.GossipPort}, {"vxlan_port", m.VxlanPort}} {
		if p.port == 0 || p.port > 65535 {
			return nil, invalid(p.field, "%d is no port: choose from 1 to 65535", p.port)
		}
	}
	if len(m.PublicKey) == 0 || len(m.PublicKey) > maxKey {
		return nil, invalid("public_key", "%d bytes are no public key: give the key of the node's certificate, of at most %d bytes", len(m.PublicKey), maxKey)
	}
	joined, bad := checkTime("joined", m.Joined)
	if bad != nil {
		return nil, bad
	}
	n := &node{id: id, addrs: addrs, msg: &statev1.Node{
		Id: m.Id, Name: m.Name, Role: m.Role, Availability: m.Availability,
		ControlPort: m.ControlPort, GossipPort: m.GossipPort, VxlanPort: m.VxlanPort,
		PublicKey: bytes.Clone(m.PublicKey), Index: m.Index, Joined: joined,
	}}
	for _, a := range addrs {
		n.msg.Addresses = append(n.msg.Addresses, a.String())
	}
	return n, nil
}

// parseAddresses reads the candidate addresses of a node. Loopback addresses are let through: several nodes may run on
// one host, and whether others reach an address is not for the state to know.
func parseAddresses(field string, list []string) ([]netip.Addr, *refusal) {
	if len(list) == 0 {
		return nil, invalid(field, "there is none: give an address at which the other nodes reach this one")
	}
	if len(list) > maxAddresses {
		return nil, invalid(field, "%d addresses are too many: give at most %d", len(list), maxAddresses)
	}
	addrs := make([]netip.Addr, 0, len(list))
	for i, s := range list {
		a, bad := parseAddr(element(field, i), s)
		if bad != nil {
			return nil, bad
		}
		if slices.Contains(addrs, a) {
			return nil, invalid(element(field, i), "%v is there twice: give it once", a)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// nodeConflict says what stands against having n in the state, be it new or in place of the node with its ID.
func (c *content) nodeConflict(n *node) *refusal {
	if other := c.nodeNames[n.msg.Name]; other != nil && other.id != n.id {
		return refuse(statev1.Error_KIND_EXISTS, "name", "the name %s belongs to node %s: choose another one", n.msg.Name, other.msg.Id)
	}
	if other := c.nodeKeys[string(n.msg.PublicKey)]; other != nil && other.id != n.id {
		return refuse(statev1.Error_KIND_EXISTS, "public_key", "the key belongs to node %s (%s): make a new one, as by joining with an empty data directory", other.msg.Name, other.msg.Id)
	}
	for i, a := range n.addrs {
		if taken, ok := c.nodeAddrs.Get(nodeAddr{addr: a}); ok && taken.node.id != n.id {
			return refuse(statev1.Error_KIND_EXISTS, element("addresses", i), "%v belongs to node %s (%s): give this node another address, or remove that node if it is gone",
				a, taken.node.msg.Name, taken.node.msg.Id)
		}
		if in, ok := c.subnetOver(netip.PrefixFrom(a, a.BitLen())); ok {
			return refuse(statev1.Error_KIND_EXISTS, element("addresses", i), "%v is in the subnet %v of network %s, so that containers there could not tell the two apart: use another address, or remove that network",
				a, in.prefix, in.net.msg.Name)
		}
	}
	return nil
}

// putNode makes n part of the state and returns the record whose place it takes, if any. It has been checked.
func (c *content) putNode(n *node) (old *node) {
	if old, _ = c.nodes.Get(n); old != nil {
		c.dropNode(old)
	}
	c.nodes.ReplaceOrInsert(n)
	c.nodeNames[n.msg.Name] = n
	c.nodeKeys[string(n.msg.PublicKey)] = n
	for _, a := range n.addrs {
		c.nodeAddrs.ReplaceOrInsert(nodeAddr{a, n})
		c.alloc.noteAddr(c, a)
	}
	if n.msg.Role == statev1.Role_ROLE_MANAGER {
		c.managers++
	}
	c.nodeSum += n.digest()
	return old
}

// dropNode takes n out of the state.
func (c *content) dropNode(n *node) {
	c.nodes.Delete(n)
	delete(c.nodeNames, n.msg.Name)
	delete(c.nodeKeys, string(n.msg.PublicKey))
	for _, a := range n.addrs {
		c.nodeAddrs.Delete(nodeAddr{addr: a})
		c.alloc.noteAddr(c, a)
	}
	if n.msg.Role == statev1.Role_ROLE_MANAGER {
		c.managers--
	}
	c.nodeSum -= n.digest()
}

func (c *content) node(id uint64) *node {
	n, _ := c.nodes.Get(&node{id: id})
	return n
}
