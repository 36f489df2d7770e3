package controlplane

import (
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// A node is known by its preferred address, and may be reached at that or at others: the one on the network that it shares
// with its neighbours, say, and a floating one that leads to it from elsewhere. Nobody but who calls can tell which.

// only is the answer of reachedAt for somebody of whom nothing is known.
func only(address string) []string { return []string{address} }

// reachedAt returns all addresses, host:port, of the control port that one of them names, the preferred one first. Of a port
// that is not known there is no other.
func (m *member) reachedAt(address string) []string {
	for _, n := range m.nodes() {
		if all := hostPorts(n, n.ControlPort); slices.Contains(all, address) {
			return all
		}
	}
	m.localMu.Lock()
	defer m.localMu.Unlock()
	var id string
	for _, x := range m.local.Managers {
		if x.Address == address {
			id = x.ID
		}
	}
	var out []string
	for _, x := range m.local.Managers {
		if id != "" && x.ID == id {
			out = append(out, x.Address)
		}
	}
	if len(out) == 0 {
		return only(address)
	}
	return out
}

// addresses returns those of this node: as its copy of the state has them, since they may have changed, or else as they were
// when it became a member. There is one at least.
func (m *member) addresses() []netip.Addr {
	var out []netip.Addr
	for _, s := range m.node.replica.Node(m.local.NodeID).GetAddresses() {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return m.local.Addresses
	}
	return out
}

// nodes returns the nodes that this one knows of: as the managers agreed, if it is one of them, for that may be ahead of its
// copy.
func (m *member) nodes() []*statev1.Node {
	if s := m.seat.Load(); s != nil && s.store.Index() > m.node.replica.Index() {
		return s.store.Nodes()
	}
	return m.node.replica.Nodes()
}

// gossipBind are the addresses on which the gossip listens. A socket of its own is needed for each family.
func (m *member) gossipBind() []netip.AddrPort {
	at := m.listen()
	out := []netip.AddrPort{netip.AddrPortFrom(at, m.local.GossipPort)}
	if at == netip.IPv6Unspecified() {
		out = append(out, netip.AddrPortFrom(netip.IPv4Unspecified(), m.local.GossipPort))
	}
	return out
}

// gossipsAt returns the addresses at which the gossip of a node may be reached, the preferred one first, by its ID or, if that
// is "", by one of them. It returns none for a node that is not known.
func (m *member) gossipsAt(id string, to netip.AddrPort) []netip.AddrPort {
	if id != "" {
		return gossipPorts(m.node.replica.Node(id))
	}
	for _, n := range m.node.replica.Nodes() {
		if all := gossipPorts(n); slices.Contains(all, to) {
			return all
		}
	}
	return nil
}

func gossipPorts(n *statev1.Node) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range hostPorts(n, n.GetGossipPort()) {
		if a, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}
