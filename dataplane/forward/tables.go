package forward

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
)

// view is one immutable state of Tables.
type view struct {
	networks map[addr.VNI]*Network
	removals uint64                    // how many networks have been removed
	vteps    []VTEP                    // indexed by fdb.VTEPID
	byAddr   map[netip.Addr]fdb.VTEPID // by all addresses that datagrams of a VTEP come from, its name first of all
}

// Tables holds what all workers of a daemon share: its networks and the VTEPs that they name. Readers take
// one atomic load; every change publishes a new view.
type Tables struct {
	mu      sync.Mutex // serialises writers
	view    atomic.Pointer[view]
	changed func()
}

// NewTables returns empty tables.
func NewTables() *Tables {
	t := new(Tables)
	t.view.Store(&view{networks: map[addr.VNI]*Network{}, byAddr: map[netip.Addr]fdb.VTEPID{}})
	return t
}

// OnChange has f called after every change of the networks and VTEPs, which readers see by then. It is called once, before
// the tables are used. f is called under the lock of the writers: it must neither block nor change the tables.
func (t *Tables) OnChange(f func()) { t.changed = f }

// publish lets the readers see v.
func (t *Tables) publish(v *view) {
	t.view.Store(v)
	if t.changed != nil {
		t.changed()
	}
}

// AddNetwork makes n known to the workers. Its VNI must be free.
func (t *Tables) AddNetwork(n *Network) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	if other, ok := old.networks[n.VNI]; ok {
		return fmt.Errorf("adding network %s: network %s already has VNI %v: choose another", n.Name, other.Name, n.VNI)
	}
	next := *old
	next.networks = maps.Clone(old.networks)
	next.networks[n.VNI] = n
	t.publish(&next)
	return nil
}

// RemoveNetwork makes the workers forget the network with this VNI, and reports whether there was one. Datagrams for
// it are those of an unknown VNI from the next batch on; what a worker has in hand is still delivered and counted.
// Each Ingress lets go of the network's memory at its next batch; an Egress of it is the caller's to end.
func (t *Tables) RemoveNetwork(vni addr.VNI) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	if _, ok := old.networks[vni]; !ok {
		return false
	}
	next := *old
	next.networks = maps.Clone(old.networks)
	delete(next.networks, vni)
	next.removals++
	t.publish(&next)
	return true
}

// Networks returns all networks in no order.
func (t *Tables) Networks() []*Network {
	return slices.Collect(maps.Values(t.view.Load().networks))
}
