package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep"
)

// retryEvery is how often what failed is tried again.
const retryEvery = 5 * time.Second

// VTEP is what a Follower does to a VTEP. *vtep.VTEP is one.
type VTEP interface {
	AddNetwork(vtep.Network) error
	RemoveNetwork(name string) error
	SetPeers(network string, peers []netip.Addr) error
	SetMapping(network string, m addr.Mapping) error
	RemoveMapping(network string, mac addr.MAC) error
	Attach(network string, a vtep.Attachment) (vtep.Attached, error)
	Detach(network, id string) error
	Attachments(network string) []vtep.Attached
	Unclaimed(network string) ([]string, error)
	RemoveOrphans(keep []addr.VNI) (removed []addr.VNI, err error)
}

// Underlay opens and closes the VTEP of a host that has one only while it is in a cluster.
type Underlay interface {
	// Open returns the VTEP, with its end at those of the addresses that this host has.
	Open(addresses []netip.Addr) (VTEP, error)
	Close() error
}

// Follower brings to a VTEP what the control plane knows.
type Follower struct {
	cp       *controlplane.Node
	underlay Underlay
	file     string
	log      *slog.Logger

	mu       sync.Mutex
	caught   *sync.Cond // index rose
	index    uint64
	vtep     VTEP // nil while there is none
	local    []netip.Addr
	nodes    map[string]*statev1.Node
	networks map[string]*network
	attached map[string]*attachment // by ID of the endpoint
}

// network is one of the cluster's.
type network struct {
	state     *statev1.Network
	endpoints map[string]*statev1.Endpoint
	problem   string // why it is not as it should be; "" when nothing is known against it

	up       bool   // the VTEP has it
	vtepName string // its name there
	peers    []netip.Addr
	mappings map[addr.MAC]addr.Mapping // that the VTEP has
}

// NewFollower returns a follower that keeps what is attached in file. Run has to be called.
func NewFollower(cp *controlplane.Node, u Underlay, file string, log *slog.Logger) (*Follower, error) {
	f := &Follower{
		cp: cp, underlay: u, file: file, log: log,
		nodes: map[string]*statev1.Node{}, networks: map[string]*network{},
	}
	f.caught = sync.NewCond(&f.mu)
	var err error
	if f.attached, err = loadAttachments(file); err != nil {
		return nil, err
	}
	return f, nil
}

// Run follows the control plane until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	w := f.cp.Watch()
	defer w.Close()
	for {
		wait, cancel := context.WithTimeout(ctx, retryEvery)
		u, err := w.Next(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			f.take(u)
		}
		f.tidy(ctx)
	}
}

// take makes the VTEP agree with an update.
func (f *Follower) take(u controlplane.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dirty := map[string]bool{}
	if u.Reset {
		f.nodes = map[string]*statev1.Node{}
		for id, n := range f.networks {
			n.endpoints = map[string]*statev1.Endpoint{}
			dirty[id] = true
		}
	}
	there := map[string]bool{}
	for _, d := range u.Deltas {
		f.note(d, dirty, there)
	}
	if u.Reset {
		for id, n := range f.networks {
			if !there[id] {
				n.state = nil
			}
		}
	}
	f.openUnderlay()
	for id := range dirty {
		f.settle(id)
	}
	f.index = u.Index
	f.caught.Broadcast()
}

// note takes one delta into what this follower knows, and marks the networks that it concerns.
func (f *Follower) note(d *statev1.Delta, dirty, there map[string]bool) {
	switch {
	case d.Network != nil:
		n := f.network(d.Network.Id)
		n.state = d.Network
		dirty[d.Network.Id], there[d.Network.Id] = true, true
	case d.RemovedNetwork != "":
		f.network(d.RemovedNetwork).state = nil
		dirty[d.RemovedNetwork] = true
	case d.Node != nil:
		f.nodes[d.Node.Id] = d.Node
		f.mark(d.Node.Id, dirty)
	case d.RemovedNode != "":
		delete(f.nodes, d.RemovedNode)
		f.mark(d.RemovedNode, dirty)
	case d.Endpoint != nil:
		f.network(d.Endpoint.Network).endpoints[d.Endpoint.Id] = d.Endpoint
		dirty[d.Endpoint.Network] = true
	case d.RemovedEndpoint != "":
		for id, n := range f.networks {
			if _, ok := n.endpoints[d.RemovedEndpoint]; ok {
				delete(n.endpoints, d.RemovedEndpoint)
				dirty[id] = true
			}
		}
	}
}

// mark marks the networks on which a node has endpoints.
func (f *Follower) mark(node string, dirty map[string]bool) {
	for id, n := range f.networks {
		for _, e := range n.endpoints {
			if e.Node == node {
				dirty[id] = true
				break
			}
		}
	}
}

func (f *Follower) network(id string) *network {
	n := f.networks[id]
	if n == nil {
		n = &network{endpoints: map[string]*statev1.Endpoint{}, mappings: map[addr.MAC]addr.Mapping{}}
		f.networks[id] = n
	}
	return n
}

// openUnderlay gives this host a VTEP when it has come into a cluster, and takes it away when it has left.
func (f *Follower) openUnderlay() {
	self, _ := f.cp.Self()
	node := f.nodes[self]
	switch {
	case node != nil && f.vtep == nil:
		local := addresses(node)
		v, err := f.underlay.Open(local)
		if err != nil {
			f.log.Error("cannot forward for the cluster yet", "error", err, "retry", retryEvery)
			return
		}
		f.vtep, f.local = v, local
		var keep []addr.VNI
		for _, n := range f.networks {
			if n.state != nil && f.hasAttached(n.state.Id) {
				keep = append(keep, addr.VNI(n.state.Vni))
			}
		}
		if _, err := v.RemoveOrphans(keep); err != nil {
			f.log.Warn("cannot remove what an earlier daemon left", "error", err)
		}
		for id := range f.networks {
			f.settle(id)
		}
	case self == "" && f.vtep != nil:
		for id := range f.networks {
			f.networks[id].state = nil
			f.settle(id)
		}
		if err := f.underlay.Close(); err != nil {
			f.log.Warn("the end of the VTEP was not in order", "error", err)
		}
		f.vtep = nil
	}
}

func addresses(n *statev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, s := range n.Addresses {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// hasAttached reports whether this host has interfaces on a network.
func (f *Follower) hasAttached(network string) bool {
	for _, a := range f.attached {
		if a.Network == network {
			return true
		}
	}
	return false
}

// settle makes the VTEP agree with what is known of one network, as far as it can. What it cannot is tried again.
func (f *Follower) settle(id string) {
	n := f.networks[id]
	f.dropStale(id, n)
	if f.vtep == nil {
		return
	}
	err := f.settleUp(id, n)
	if err != nil {
		if n.problem != err.Error() {
			f.log.Warn("a network is not as it should be", "network", n.name(id), "error", err, "retry", retryEvery)
		}
		n.problem = err.Error()
		return
	}
	n.problem = ""
	if n.state == nil {
		delete(f.networks, id)
	}
}

func (n *network) name(id string) string {
	if n.state != nil {
		return n.state.Name
	}
	return id
}

func (f *Follower) settleUp(id string, n *network) error {
	if n.state == nil || !f.hasAttached(id) {
		return f.down(n)
	}
	peers, mappings := f.wanted(n)
	if !n.up {
		if err := f.vtep.AddNetwork(vtep.Network{
			Name: n.state.Name, VNI: addr.VNI(n.state.Vni), Peers: peers, MTU: mtu.OverlayMTU(n.state.Mtu),
			Mappings: slices.Collect(maps.Values(mappings)), Gateways: gateways(n.state), Sandbox: true, Isolate: true,
		}); err != nil {
			return err
		}
		n.up, n.vtepName, n.peers, n.mappings = true, n.state.Name, peers, mappings
	}
	// New peers come before the mappings that name them, old ones go after.
	if both := union(n.peers, peers); !slices.Equal(both, n.peers) {
		if err := f.vtep.SetPeers(n.vtepName, both); err != nil {
			return err
		}
		n.peers = both
	}
	for mac := range n.mappings {
		if _, ok := mappings[mac]; !ok {
			if err := f.vtep.RemoveMapping(n.vtepName, mac); err != nil {
				return err
			}
			delete(n.mappings, mac)
		}
	}
	for mac, m := range mappings {
		if old, ok := n.mappings[mac]; ok && same(old, m) {
			continue
		}
		if err := f.vtep.SetMapping(n.vtepName, m); err != nil {
			return err
		}
		n.mappings[mac] = m
	}
	if !slices.Equal(n.peers, peers) {
		if err := f.vtep.SetPeers(n.vtepName, peers); err != nil {
			return err
		}
		n.peers = peers
	}
	if err := f.attachAll(id, n); err != nil {
		return err
	}
	return f.dropUnclaimed(n)
}

func (f *Follower) down(n *network) error {
	if !n.up {
		return nil
	}
	if err := f.vtep.RemoveNetwork(n.vtepName); err != nil && !errors.Is(err, vtep.ErrNoNetwork) {
		return err
	}
	n.up, n.peers, n.mappings = false, nil, map[addr.MAC]addr.Mapping{}
	return nil
}

// wanted returns the hosts that have endpoints on a network, without this one, and those endpoints.
func (f *Follower) wanted(n *network) ([]netip.Addr, map[addr.MAC]addr.Mapping) {
	self, _ := f.cp.Self()
	mappings := map[addr.MAC]addr.Mapping{}
	var peers []netip.Addr
	at := map[string]netip.Addr{}
	for _, e := range n.endpoints {
		if e.Node == self || f.nodes[e.Node] == nil || len(e.Mac) != 6 {
			continue
		}
		v, ok := at[e.Node]
		if !ok {
			v = f.reach(f.nodes[e.Node])
			if at[e.Node] = v; v.IsValid() {
				peers = append(peers, v)
			}
		}
		if !v.IsValid() {
			continue // settle has nothing better: the node shares no address family with this one
		}
		m := addr.Mapping{VNI: addr.VNI(n.state.Vni), MAC: addr.MAC(e.Mac), VTEP: v}
		for _, s := range e.Ips {
			if ip, err := netip.ParseAddr(s); err == nil {
				m.IPs = append(m.IPs, ip)
			}
		}
		mappings[m.MAC] = m
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	return peers, mappings
}

// reach returns the address of a node that this host sends to: its preferred one of a family that this host has.
func (f *Follower) reach(n *statev1.Node) netip.Addr {
	for _, a := range addresses(n) {
		if slices.ContainsFunc(f.local, func(l netip.Addr) bool { return l.Is4() == a.Is4() }) {
			return a
		}
	}
	return netip.Addr{}
}

func gateways(n *statev1.Network) []netip.Addr {
	var out []netip.Addr
	for _, s := range n.Gateways {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// union returns the sorted union of two sorted lists.
func union(a, b []netip.Addr) []netip.Addr {
	out := append(slices.Clone(a), b...)
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func same(a, b addr.Mapping) bool {
	return a.VNI == b.VNI && a.MAC == b.MAC && a.VTEP == b.VTEP && slices.Equal(a.IPs, b.IPs)
}

// CatchUp waits until what the control plane's copy holds at the call has reached the VTEP.
func (f *Follower) CatchUp(ctx context.Context) error {
	index := f.cp.Tables().Index()
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.caught.Broadcast()
	})
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.index < index {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for the VTEP to follow the cluster: %w", err)
		}
		f.caught.Wait()
	}
	return nil
}
