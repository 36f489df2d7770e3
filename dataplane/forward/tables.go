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
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// VTEP is a remote tunnel end point.
type VTEP struct {
	Addr netip.Addr
	Path mtu.PathMTU // what is known to reach it
	// MaxFrame is the largest inner frame, in bytes with its Ethernet header and tags, that fits one datagram
	// to it.
	MaxFrame int

	heard *atomic.Int64
}

// Heard returns when the last datagram came from v, on the clock that is handed to Ingress.Process, or 0.
func (v VTEP) Heard() int64 {
	if v.heard == nil {
		return 0
	}
	return v.heard.Load()
}

// view is one immutable state of Tables.
type view struct {
	networks map[addr.VNI]*Network
	removals uint64 // how many networks have been removed
	vteps    []VTEP // indexed by fdb.VTEPID
	byAddr   map[netip.Addr]fdb.VTEPID
}

// Tables holds what all workers of a daemon share: its networks and the VTEPs that they name. Readers take
// one atomic load; every change publishes a new view.
type Tables struct {
	mu   sync.Mutex // serialises writers
	view atomic.Pointer[view]
}

// NewTables returns empty tables.
func NewTables() *Tables {
	t := new(Tables)
	t.view.Store(&view{networks: map[addr.VNI]*Network{}, byAddr: map[netip.Addr]fdb.VTEPID{}})
	return t
}

// AddVTEP returns the number of the VTEP at a, which it is given when it is named for the first time and
// keeps from then on. A new VTEP has the given path.
func (t *Tables) AddVTEP(a netip.Addr, path mtu.PathMTU) fdb.VTEPID {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	if id, ok := old.byAddr[a]; ok {
		return id
	}
	id := fdb.VTEPID(len(old.vteps))
	next := &view{networks: old.networks, removals: old.removals, byAddr: maps.Clone(old.byAddr)}
	next.byAddr[a] = id
	next.vteps = append(slices.Clone(old.vteps), newVTEP(a, path, new(atomic.Int64)))
	t.view.Store(next)
	return id
}

// SetPath changes the path MTU of a VTEP; frames already decided on are not affected. There is no path to
// fdb.Local.
func (t *Tables) SetPath(id fdb.VTEPID, path mtu.PathMTU) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	if id == fdb.Local || old.vteps[id].Path == path {
		return
	}
	next := *old
	next.vteps = slices.Clone(old.vteps)
	next.vteps[id] = newVTEP(old.vteps[id].Addr, path, old.vteps[id].heard)
	t.view.Store(&next)
}

func newVTEP(a netip.Addr, path mtu.PathMTU, heard *atomic.Int64) VTEP {
	return VTEP{Addr: a, Path: path, MaxFrame: mtu.MaxFrame(path, mtu.FamilyOf(a)), heard: heard}
}

// VTEP returns the VTEP with this number, which must have come from AddVTEP. That of fdb.Local is the zero VTEP,
// which has no address.
func (t *Tables) VTEP(id fdb.VTEPID) VTEP {
	if id == fdb.Local {
		return VTEP{}
	}
	return t.view.Load().vteps[id]
}

// Lookup returns the number of the VTEP at a.
func (t *Tables) Lookup(a netip.Addr) (fdb.VTEPID, bool) {
	id, ok := t.view.Load().byAddr[a]
	return id, ok
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
	t.view.Store(&next)
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
	t.view.Store(&next)
	return true
}

// Networks returns all networks in no order.
func (t *Tables) Networks() []*Network {
	return slices.Collect(maps.Values(t.view.Load().networks))
}

// Network is the forwarding state of one VNI. The exported fields are set before AddNetwork and stay as they
// are; the tables that they point to change at any time.
type Network struct {
	Name        string
	VNI         addr.VNI
	Learning    bool     // learn MAC to VTEP from received frames
	Isolate     bool     // every address is registered, and no frame may claim another; see isolate.go. Nothing is learned
	AllowNested bool     // let VXLAN inside VXLAN pass
	TAP         Offload  // what the TAP takes
	LocalMAC    addr.MAC // of the TAP: no frame from the underlay may bear it as its source
	GatewayMAC  addr.MAC // of the gateway that each host has for its own containers; zero = none. Isolated networks only
	FDB         *fdb.Table
	Neighbors   *fdb.Neighbors
	Counters    *Counters
	Limit       *Limiter // of the frames from the TAP that are flooded; nil: none

	members atomic.Pointer[members]
	mtu     atomic.Int64 // overlay MTU of the TAP
}

// Offload says what a TAP does for those who write to it.
type Offload struct {
	Checksum bool      // takes frames with partial checksums
	Super    gro.Kinds // takes superframes of these kinds
}

// members is the flood list of a network, and who may send to it.
type members struct {
	list []fdb.VTEPID
	has  []bool // indexed by VTEPID
}

// SetMembers publishes the VTEPs that take part in n: broadcast, unknown unicast and multicast frames go
// to each, and only from them frames are accepted. fdb.Local is passed over.
func (n *Network) SetMembers(ids []fdb.VTEPID) {
	m := &members{list: slices.DeleteFunc(slices.Clone(ids), func(id fdb.VTEPID) bool { return id == fdb.Local })}
	for _, id := range m.list {
		if int(id) >= len(m.has) {
			m.has = append(m.has, make([]bool, int(id)+1-len(m.has))...)
		}
		m.has[id] = true
	}
	n.members.Store(m)
}

func (n *Network) flood() []fdb.VTEPID {
	if m := n.members.Load(); m != nil {
		return m.list
	}
	return nil
}

func (n *Network) isMember(id fdb.VTEPID) bool {
	m := n.members.Load()
	return m != nil && int(id) < len(m.has) && m.has[id]
}

// SetMTU publishes the overlay MTU: the inner IP MTU of n's TAP.
func (n *Network) SetMTU(m mtu.OverlayMTU) { n.mtu.Store(int64(m)) }

// MTU returns what SetMTU published.
func (n *Network) MTU() mtu.OverlayMTU { return mtu.OverlayMTU(n.mtu.Load()) }

// VTEPs returns how many VTEPs there are; they are numbered from 0.
func (t *Tables) VTEPs() int { return len(t.view.Load().vteps) }
