package state

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"sync"

	"github.com/google/btree"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

// Tables are the networks, nodes and endpoints of a Store or a Replica, for reading by any number of goroutines. What its
// methods return are copies.
type Tables struct {
	mu sync.RWMutex // of everything in the Store or Replica around it too
	c  *content
}

// content is what every node may know, with what finds it. The trees are copied on write: see freeze.
type content struct {
	clusterID string
	index     uint64 // of the last entry that changed something

	nodes     *btree.BTreeG[*node]
	nodeNames map[string]*node
	nodeKeys  map[string]*node
	nodeAddrs *btree.BTreeG[nodeAddr]
	managers  int
	nodeSum   uint64 // of the digests of the nodes

	networks *btree.BTreeG[*network]
	segments map[uint64]*segment
	netNames map[string]*network
	vnis     map[uint32]*network
	subnets  *btree.BTreeG[netSubnet]

	byID, byNode, byNetwork endpointTree // all endpoints; the latter two by that and then by ID
	byLease                 endpointTree // by the end of their lease; those that have one
	byMAC                   *index       // and network
	byIP4, byIP6            *index       // and network; those that have one
	byName                  *index       // and network; those that have one

	alloc *allocator // nil in a replica, which gives out nothing
}

// degree of the trees: nodes of 31 to 63 entries.
const degree = 32

// endpointTree holds endpoints in an order of its own.
type endpointTree struct{ *btree.BTreeG[*endpoint] }

// newEndpointTree orders by what compare says, which has to tell any two endpoints of the tree apart.
func newEndpointTree(compare func(a, b *endpoint) int) endpointTree {
	return endpointTree{btree.NewG(degree, func(a, b *endpoint) bool { return compare(a, b) < 0 })}
}

// find returns the endpoint that is in e's place in the order, or nil.
func (t endpointTree) find(e *endpoint) *endpoint {
	found, _ := t.Get(e)
	return found
}

func newContent(alloc *allocator) *content {
	byNetwork := func(a, b *endpoint) int { return cmp.Compare(a.network, b.network) }
	byID := func(a, b *endpoint) int { return cmp.Compare(a.id, b.id) }
	return &content{
		nodes:     btree.NewG(degree, func(a, b *node) bool { return a.id < b.id }),
		nodeNames: map[string]*node{},
		nodeKeys:  map[string]*node{},
		nodeAddrs: btree.NewG(degree, func(a, b nodeAddr) bool { return a.addr.Less(b.addr) }),

		networks: btree.NewG(degree, func(a, b *network) bool { return a.id < b.id }),
		segments: map[uint64]*segment{},
		netNames: map[string]*network{},
		vnis:     map[uint32]*network{},
		subnets:  btree.NewG(degree, func(a, b netSubnet) bool { return a.prefix.Addr().Less(b.prefix.Addr()) }),

		byID: newEndpointTree(byID),
		byNode: newEndpointTree(func(a, b *endpoint) int {
			return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.id, b.id))
		}),
		byNetwork: newEndpointTree(func(a, b *endpoint) int { return cmp.Or(byNetwork(a, b), byID(a, b)) }),
		byLease: newEndpointTree(func(a, b *endpoint) int {
			return cmp.Or(cmp.Compare(a.leaseSeconds, b.leaseSeconds), cmp.Compare(a.leaseNanos, b.leaseNanos), byID(a, b))
		}),
		byMAC:  newIndex(func(e *endpoint) addr.MAC { return e.mac }),
		byIP4:  newIndex(func(e *endpoint) uint32 { return e.ip4 }),
		byIP6:  newIndex(func(e *endpoint) [16]byte { return e.ip6 }),
		byName: newIndex(func(e *endpoint) string { return e.name }),
		alloc:  alloc,
	}
}

// share returns a content of its own with the same things in it, without what gives out addresses. Records, which are
// never changed, are in both, and the trees until they are changed. The lock must be held for writing: a tree that is
// cloned is changed, although not in what it holds.
func (c *content) share() *content {
	out := *c
	out.alloc = nil
	out.nodes, out.nodeAddrs = c.nodes.Clone(), c.nodeAddrs.Clone()
	out.nodeNames, out.nodeKeys = maps.Clone(c.nodeNames), maps.Clone(c.nodeKeys)
	out.networks, out.subnets = c.networks.Clone(), c.subnets.Clone()
	out.netNames, out.vnis = maps.Clone(c.netNames), maps.Clone(c.vnis)
	out.segments = make(map[uint64]*segment, len(c.segments))
	for id, seg := range c.segments {
		own := *seg
		out.segments[id] = &own
	}
	out.byID, out.byNode, out.byNetwork, out.byLease = c.byID.clone(), c.byNode.clone(), c.byNetwork.clone(), c.byLease.clone()
	out.byMAC, out.byIP4, out.byIP6, out.byName = c.byMAC.clone(), c.byIP4.clone(), c.byIP6.clone(), c.byName.clone()
	return &out
}

func (t endpointTree) clone() endpointTree { return endpointTree{t.Clone()} }

// newIndex makes an index by what key returns, and the network.
func newIndex[K comparable](key func(*endpoint) K) *index {
	type full struct {
		network uint64
		key     K
	}
	seed := maphash.MakeSeed()
	return &index{
		hash: func(e *endpoint) uint64 { return maphash.Comparable(seed, full{e.network, key(e)}) },
		same: func(a, b *endpoint) bool { return a.network == b.network && key(a) == key(b) },
	}
}

// enter puts e where it can be found.
func (c *content) enter(e *endpoint) {
	c.byID.ReplaceOrInsert(e)
	c.byNode.ReplaceOrInsert(e)
	c.byNetwork.ReplaceOrInsert(e)
	c.byMAC.put(e)
	if e.leased {
		c.byLease.ReplaceOrInsert(e)
	}
	if e.ip4 != 0 {
		c.byIP4.put(e)
	}
	if e.ip6 != [16]byte{} {
		c.byIP6.put(e)
	}
	if e.name != "" {
		c.byName.put(e)
	}
}

// leave takes e out of where enter put it.
func (c *content) leave(e *endpoint) {
	c.byID.Delete(e)
	c.byNode.Delete(e)
	c.byNetwork.Delete(e)
	c.byMAC.remove(e)
	if e.leased {
		c.byLease.Delete(e)
	}
	if e.ip4 != 0 {
		c.byIP4.remove(e)
	}
	if e.ip6 != [16]byte{} {
		c.byIP6.remove(e)
	}
	if e.name != "" {
		c.byName.remove(e)
	}
}

// ClusterID returns the ID of the cluster, or "" before there is one.
func (t *Tables) ClusterID() string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.c.clusterID
}

// Index returns the index of the last entry of the Raft log that changed something that every node may know.
func (t *Tables) Index() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.c.index
}

// Network returns the network with this ID, or nil.
func (t *Tables) Network(id string) *statev1.Network {
	n, ok := idOf(id)
	if !ok {
		return nil
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if seg := t.c.segments[n]; seg != nil {
		return proto.CloneOf(seg.net.msg)
	}
	return nil
}

// NetworkByName returns the network with this name, or nil.
func (t *Tables) NetworkByName(name string) *statev1.Network {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.c.netNames[name]; n != nil {
		return proto.CloneOf(n.msg)
	}
	return nil
}

// Networks returns all networks, sorted by ID.
func (t *Tables) Networks() []*statev1.Network {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*statev1.Network, 0, t.c.networks.Len())
	t.c.networks.Ascend(func(n *network) bool {
		out = append(out, proto.CloneOf(n.msg))
		return true
	})
	return out
}

// Node returns the node with this ID, or nil.
func (t *Tables) Node(id string) *statev1.Node {
	n, ok := idOf(id)
	if !ok {
		return nil
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.c.node(n); n != nil {
		return proto.CloneOf(n.msg)
	}
	return nil
}

// NodeByName returns the node with this name, or nil.
func (t *Tables) NodeByName(name string) *statev1.Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.c.nodeNames[name]; n != nil {
		return proto.CloneOf(n.msg)
	}
	return nil
}

// Nodes returns all nodes, sorted by ID.
func (t *Tables) Nodes() []*statev1.Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*statev1.Node, 0, t.c.nodes.Len())
	t.c.nodes.Ascend(func(n *node) bool {
		out = append(out, proto.CloneOf(n.msg))
		return true
	})
	return out
}

// Endpoint returns the endpoint with this ID, or nil.
func (t *Tables) Endpoint(id string) *statev1.Endpoint {
	n, ok := idOf(id)
	if !ok {
		return nil
	}
	t.mu.RLock()
	e := t.c.byID.find(&endpoint{id: n})
	t.mu.RUnlock()
	if e == nil {
		return nil
	}
	return e.message()
}

// EndpointByName returns the endpoint with this name on the network with this ID, or nil.
func (t *Tables) EndpointByName(networkID, name string) *statev1.Endpoint {
	n, ok := idOf(networkID)
	if !ok || name == "" {
		return nil
	}
	t.mu.RLock()
	e := t.c.byName.find(&endpoint{network: n, name: name})
	t.mu.RUnlock()
	if e == nil {
		return nil
	}
	return e.message()
}

// Endpoints returns the endpoints of a network, of a node, of a network on a node, or all, sorted by ID. The arguments are
// IDs; "" means all. Nobody waits while the messages are made, however many there are.
func (t *Tables) Endpoints(networkID, nodeID string) []*statev1.Endpoint {
	records := t.endpointRecords(networkID, nodeID)
	if records == nil {
		return nil
	}
	out := make([]*statev1.Endpoint, len(records))
	for i, e := range records {
		out[i] = e.message()
	}
	return out
}

func (t *Tables) endpointRecords(networkID, nodeID string) []*endpoint {
	network, onNetwork := idOf(networkID)
	node, onNode := idOf(nodeID)
	if networkID != "" && !onNetwork || nodeID != "" && !onNode {
		return nil
	}
	var out []*endpoint
	t.mu.RLock()
	defer t.mu.RUnlock()
	switch {
	case onNode:
		t.c.onNode(node, func(e *endpoint) bool {
			if !onNetwork || e.network == network {
				out = append(out, e)
			}
			return true
		})
	case onNetwork:
		t.c.byNetwork.AscendGreaterOrEqual(&endpoint{network: network}, func(e *endpoint) bool {
			if e.network != network {
				return false
			}
			out = append(out, e)
			return true
		})
	default:
		out = slices.Grow(out, t.c.byID.Len())
		t.c.byID.Ascend(func(e *endpoint) bool {
			out = append(out, e)
			return true
		})
	}
	return out
}

// onNode visits the endpoints of a node, sorted by ID, until visit returns false.
func (c *content) onNode(node uint64, visit func(*endpoint) bool) {
	c.byNode.AscendGreaterOrEqual(&endpoint{node: node}, func(e *endpoint) bool { return e.node == node && visit(e) })
}
