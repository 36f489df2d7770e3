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
	SetNode(vtep.Node) error
	RemoveNode(address netip.Addr)
	SetProbeKeys(keys [][]byte, self netip.Addr) error
	Paths() []vtep.PathStatus
}

// Underlay opens and closes the VTEP of a host that has one only while it is in a cluster.
type Underlay interface {
	// Open returns the VTEP, with its end at those of the addresses that this host has.
	Open(addresses []netip.Addr) (VTEP, error)
	// Move puts the end of the open VTEP at other addresses, if it is not the configuration file that says where it is.
	Move(addresses []netip.Addr) error
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
	here     []netip.Addr // this node's addresses, if they are others than the managers may know yet
	noVTEP   string       // why there is none; "" when nothing is known against it
	nodes    map[string]*statev1.Node
	reached  reached
	networks map[string]*network
	at       map[string]*network    // by ID of the endpoint
	attached map[string]*attachment // by ID of the endpoint
	known    chan struct{}          // capacity 1: what the managers know of this node may have changed
}

// network is one of the cluster's.
type network struct {
	state     *statev1.Network
	endpoints map[string]*statev1.Endpoint
	on        map[string]int // number of endpoints by ID of the node
	problem   string         // why it is not as it should be; "" when nothing is known against it

	up        bool   // the VTEP has it
	claimed   bool   // nothing of an earlier daemon is left in it
	vtepName  string // its name there
	peers     []netip.Addr
	mappings  map[string]addr.Mapping // that the VTEP has, by ID of the endpoint
	unsettled map[string]bool         // IDs of the endpoints whose mappings may have to change
}

// NewFollower returns a follower that keeps what is attached in file. Run has to be called.
func NewFollower(cp *controlplane.Node, u Underlay, file string, log *slog.Logger) (*Follower, error) {
	f := &Follower{
		cp: cp, underlay: u, file: file, log: log, reached: newReached(),
		nodes: map[string]*statev1.Node{}, networks: map[string]*network{}, at: map[string]*network{},
		known: make(chan struct{}, 1),
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
	var tidying sync.WaitGroup
	defer tidying.Wait()
	tidying.Go(func() {
		tick := time.NewTicker(retryEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f.tidy(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		u, err := w.Next(ctx)
		if err != nil {
			return nil // ctx has ended
		}
		f.take(u)
	}
}

// take makes the VTEP agree with an update.
func (f *Follower) take(u controlplane.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dirty := map[string]bool{}
	if u.Reset {
		f.nodes, f.at = map[string]*statev1.Node{}, map[string]*network{}
		f.reached.lookAtAll()
		for id, n := range f.networks {
			for e := range n.endpoints {
				n.drop(e)
			}
			dirty[id] = true
		}
		for _, a := range f.attached {
			f.network(a.Network)
			dirty[a.Network] = true // it may be gone, and what was attached with it
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
	f.index = u.Index
	if f.vtep != nil || f.noVTEP == "" || u.Reset { // or else it is tried again now and then
		f.openUnderlay()
	}
	moved := len(f.reached.look) > 0
	f.stateNodes()
	if moved {
		f.sizePackets() // nothing is known of a new node's path
	}
	// Those that are gone come first: others may have their names and VNIs now.
	for _, gone := range []bool{true, false} {
		for id := range dirty {
			if n := f.networks[id]; n != nil && (n.state == nil) == gone {
				f.settle(id)
			}
		}
	}
	f.forgetNodes()
	f.caught.Broadcast()
	f.tellReaddressed(u)
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
		f.nodes[d.Node.Id], f.reached.look[d.Node.Id] = d.Node, true
		f.mark(d.Node.Id, dirty)
	case d.RemovedNode != "":
		delete(f.nodes, d.RemovedNode)
		f.reached.look[d.RemovedNode] = true
		f.mark(d.RemovedNode, dirty)
	case d.Endpoint != nil:
		n := f.network(d.Endpoint.Network)
		n.drop(d.Endpoint.Id)
		n.endpoints[d.Endpoint.Id] = d.Endpoint
		n.on[d.Endpoint.Node]++
		f.at[d.Endpoint.Id] = n
		dirty[d.Endpoint.Network] = true
	case d.RemovedEndpoint != "":
		if n := f.at[d.RemovedEndpoint]; n != nil {
			dirty[n.endpoints[d.RemovedEndpoint].Network] = true
			n.drop(d.RemovedEndpoint)
			delete(f.at, d.RemovedEndpoint)
		}
	}
}

// drop forgets an endpoint, if it is known, and marks its mapping.
func (n *network) drop(id string) {
	if n.up { // or else all are settled when it comes up
		n.unsettled[id] = true
	}
	e := n.endpoints[id]
	if e == nil {
		return
	}
	delete(n.endpoints, id)
	if n.on[e.Node]--; n.on[e.Node] == 0 {
		delete(n.on, e.Node)
	}
}

// mark marks the networks on which a node has endpoints, and these.
func (f *Follower) mark(node string, dirty map[string]bool) {
	for id, n := range f.networks {
		if n.on[node] == 0 {
			continue
		}
		dirty[id] = true
		for _, e := range n.endpoints {
			if n.up && e.Node == node {
				n.unsettled[e.Id] = true
			}
		}
	}
}

func (f *Follower) network(id string) *network {
	n := f.networks[id]
	if n == nil {
		n = &network{
			endpoints: map[string]*statev1.Endpoint{}, on: map[string]int{},
			mappings: map[string]addr.Mapping{}, unsettled: map[string]bool{},
		}
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
		if f.here != nil {
			local = f.here
		}
		v, err := f.underlay.Open(local)
		if err != nil {
			if f.noVTEP != err.Error() {
				f.log.Error("cannot forward for the cluster yet", "error", err, "retry", retryEvery)
			}
			f.noVTEP = err.Error()
			return
		}
		f.vtep, f.local, f.noVTEP = v, local, ""
		f.lookAgain() // it may have become a member since the update that told of its node
		for id := range f.nodes {
			f.reached.look[id] = true
		}
		f.stateNodes()
		var keep []addr.VNI
		for _, a := range f.attached {
			keep = append(keep, addr.VNI(a.VNI)) // also of networks that an old copy does not know
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
		f.leaveNodes()
		f.forgetAttached()
		if err := f.underlay.Close(); err != nil {
			f.log.Warn("the end of the VTEP was not in order", "error", err)
		}
		f.vtep = nil
	}
	if self == "" {
		f.noVTEP, f.here = "", nil
	}
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
	peers := f.peers(n)
	if !n.up {
		mappings := map[string]addr.Mapping{}
		for e := range n.endpoints {
			if m, ok := f.mapping(n, e); ok {
				mappings[e] = m
			}
		}
		if err := f.vtep.AddNetwork(vtep.Network{
			Name: n.state.Name, VNI: addr.VNI(n.state.Vni), Peers: peers, MTU: mtu.OverlayMTU(n.state.Mtu), MSS: mtu.MSS(n.state.Mss),
			Mappings: slices.Collect(maps.Values(mappings)), Gateways: gateways(n.state), Sandbox: true, Isolate: true,
		}); err != nil {
			return err
		}
		n.up, n.claimed, n.vtepName, n.peers, n.mappings = true, false, n.state.Name, peers, mappings
		clear(n.unsettled)
	}
	// New peers come before the mappings that name them, old ones go after.
	if both := union(n.peers, peers); !slices.Equal(both, n.peers) {
		if err := f.vtep.SetPeers(n.vtepName, both); err != nil {
			return err
		}
		n.peers = both
	}
	if err := f.settleMappings(n); err != nil {
		return err
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

// settleMappings states the mappings of those endpoints that are not settled, and of no others: there may be 100,000.
func (f *Follower) settleMappings(n *network) error {
	// What is no more goes first, since another endpoint may have its MAC or IP address now.
	for e := range n.unsettled {
		old, had := n.mappings[e]
		if m, ok := f.mapping(n, e); !had || ok && m.MAC == old.MAC {
			continue
		}
		if err := f.vtep.RemoveMapping(n.vtepName, old.MAC); err != nil {
			return err
		}
		delete(n.mappings, e)
	}
	for e := range n.unsettled {
		old, had := n.mappings[e]
		if m, ok := f.mapping(n, e); ok && !(had && same(old, m)) {
			if err := f.vtep.SetMapping(n.vtepName, m); err != nil {
				return err
			}
			n.mappings[e] = m
		}
		delete(n.unsettled, e)
	}
	return nil
}

func (f *Follower) down(n *network) error {
	if !n.up {
		return nil
	}
	if err := f.vtep.RemoveNetwork(n.vtepName); err != nil && !errors.Is(err, vtep.ErrNoNetwork) {
		return err
	}
	n.up, n.peers, n.mappings = false, nil, map[string]addr.Mapping{}
	clear(n.unsettled)
	return nil
}

// peers returns the other hosts that have endpoints on a network, sorted.
func (f *Follower) peers(n *network) []netip.Addr {
	self, _ := f.cp.Self()
	var peers []netip.Addr
	for id := range n.on {
		if node := f.nodes[id]; id != self && node != nil {
			if a := f.reach(node); a.IsValid() { // or else it shares no address family with this one
				peers = append(peers, a)
			}
		}
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	return peers
}

// mapping returns where an endpoint is, if it is known and on another host that can be reached.
func (f *Follower) mapping(n *network, id string) (addr.Mapping, bool) {
	e := n.endpoints[id]
	if e == nil || len(e.Mac) != 6 {
		return addr.Mapping{}, false
	}
	node := f.nodes[e.Node]
	if self, _ := f.cp.Self(); e.Node == self || node == nil {
		return addr.Mapping{}, false
	}
	m := addr.Mapping{VNI: addr.VNI(n.state.Vni), MAC: addr.MAC(e.Mac), VTEP: f.reach(node)}
	for _, s := range e.Ips {
		if ip, err := netip.ParseAddr(s); err == nil {
			m.IPs = append(m.IPs, ip)
		}
	}
	return m, m.VTEP.IsValid()
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
	behind := func() bool { return f.index < min(index, f.cp.Tables().Index()) } // which may go back, to nothing by leaving
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.caught.Broadcast()
	})
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for behind() {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for the VTEP to follow the cluster: %w", err)
		}
		f.caught.Wait()
	}
	return nil
}
