package vtep

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/dataplane/probe"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

const (
	// maxCandidates is how many addresses a node may have: each is probed.
	maxCandidates = 16
	// maxIdleNodes is up to how many stated nodes all are probed, whether or not they share a network with this host. With
	// more, the traffic would grow beyond what it is good for: a network starts with the MTU that it will have.
	maxIdleNodes = 64
	// maxDerived bounds the local addresses that are derived from routes.
	maxDerived = 8
)

// Node is a remote host with all the underlay addresses at which it may be reached.
type Node struct {
	// Address names the VTEP: in the peers of networks, in mappings and in every listing.
	Address netip.Addr
	// Candidates are its underlay addresses in order of preference, Address among them; empty = Address alone.
	Candidates []netip.Addr
}

// SetNode states at which addresses a remote host may be reached, in place of what was said of it before. A peer of a
// network of which nothing was said is reached at the address that names it. Which of the addresses is used, path probes
// find out; where they are off, it is the one that names the host, or else the first of a family of which this host has an
// address. The error is a *ConfigError, and then nothing has
// changed.
func (v *VTEP) SetNode(n Node) error {
	n.Candidates = slices.Clone(n.Candidates)
	if len(n.Candidates) == 0 {
		n.Candidates = []netip.Addr{n.Address}
	}
	v.change.Lock()
	defer v.change.Unlock()
	if err := v.checkNode(&n); err != nil {
		return fmt.Errorf("stating the addresses of host %v: %w", n.Address, err)
	}
	if old, ok := v.nodes[n.Address]; ok && slices.Equal(old.Candidates, n.Candidates) {
		return nil
	}
	v.nodes[n.Address] = n
	v.nodeChanged(n.Address)
	return nil
}

func (v *VTEP) checkNode(n *Node) error {
	if err := unicast(n.Address); err != nil {
		return &ConfigError{"address", err}
	}
	if v.endpointAt(n.Address) != nil {
		return &ConfigError{"address", fmt.Errorf("%v is this host's own address: state remote hosts alone", n.Address)}
	}
	if len(n.Candidates) > maxCandidates {
		return &ConfigError{"candidates", fmt.Errorf("there are %d, and at most %d are tried: leave out those that nobody can use", len(n.Candidates), maxCandidates)}
	}
	for i, a := range n.Candidates {
		at := fmt.Sprintf("candidates[%d]", i)
		if err := unicast(a); err != nil {
			return &ConfigError{at, err}
		}
		if slices.Contains(n.Candidates[:i], a) {
			return &ConfigError{at, fmt.Errorf("%v stands there twice: remove one", a)}
		}
	}
	if !slices.Contains(n.Candidates, n.Address) {
		return &ConfigError{"candidates", errors.New("the address that names the host is not among them: add it")}
	}
	return nil
}

// RemoveNode forgets what SetNode said of a host. One of which nothing was said is no error.
func (v *VTEP) RemoveNode(address netip.Addr) {
	v.change.Lock()
	defer v.change.Unlock()
	if _, ok := v.nodes[address]; ok {
		delete(v.nodes, address)
		v.nodeChanged(address)
	}
}

// nodeChanged follows a change of what is stated of a host. v.change is held.
func (v *VTEP) nodeChanged(address netip.Addr) {
	v.lookForSources(address)
	v.followAddresses()
	v.feed()
	if id, ok := v.tables.Lookup(address); ok && v.tables.VTEP(id).Name == address {
		v.look(id)
	}
}

// SetProbeKeys sets the keys, of 32 bytes each, that seal path probes: the first seals, all open. self is the address by
// which other nodes name this one; the zero Addr = the local address of each path. Without keys, which is how a VTEP
// starts, anybody on the path can answer. The error is of a key, and then nothing has changed.
func (v *VTEP) SetProbeKeys(keys [][]byte, self netip.Addr) error {
	k, err := probe.NewKeys(keys)
	if err != nil {
		return fmt.Errorf("setting the keys of path probes: %w", err)
	}
	if v.prober != nil {
		v.prober.SetKeys(k, self)
	}
	return nil
}

// feed tells the prober whom to probe. v.change is held.
func (v *VTEP) feed() {
	if v.prober == nil {
		return
	}
	stated := map[netip.Addr][]netip.Addr{}
	for _, a := range v.partners() {
		candidates := []netip.Addr{a}
		if n, ok := v.nodes[a]; ok {
			// An address that this host has, too, leads to this host.
			candidates = slices.DeleteFunc(slices.Clone(n.Candidates), func(c netip.Addr) bool { return v.endpointAt(c) != nil })
		}
		stated[a] = candidates
	}
	peers := make([]pathmtu.Peer, 0, len(stated))
	for _, a := range slices.SortedFunc(maps.Keys(stated), netip.Addr.Compare) {
		peers = append(peers, pathmtu.Peer{Address: a, Candidates: stated[a]})
	}
	v.prober.SetPeers(peers)
	maps.DeleteFunc(v.choices, func(a netip.Addr, _ pathmtu.Choice) bool {
		if stated[a] != nil {
			return false
		}
		delete(v.told, pathTopic(a))
		delete(v.told, silenceTopic(a))
		return true
	})
}

// partners returns the names of the VTEPs that are probed, some of them repeatedly. v.change is held.
func (v *VTEP) partners() []netip.Addr {
	var out []netip.Addr
	for _, n := range v.networks {
		out = append(out, n.peers...)
	}
	if len(v.nodes) <= maxIdleNodes {
		out = slices.AppendSeq(out, maps.Keys(v.nodes))
	}
	return out
}

// lookForSources finds out which local addresses the routes to the addresses of a stated host have. v.change is held.
func (v *VTEP) lookForSources(address netip.Addr) {
	delete(v.sources, address)
	n, ok := v.nodes[address]
	if !ok || len(v.cfg.Underlay.Addresses) > 0 || v.prober == nil {
		return
	}
	var sources []netip.Addr
	for _, a := range n.Candidates {
		if r, err := link.RouteTo(a); err == nil && r.Device != "lo" && !slices.Contains(sources, r.Src) {
			sources = append(sources, r.Src)
		}
	}
	v.sources[address] = sources
}
