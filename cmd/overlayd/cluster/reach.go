package cluster

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/vtep"
)

// reached is what a Follower has told its VTEP of where the other nodes are, and how path probes are sealed. A node is named
// by the address that comes first in its list: if that changes, it is stated by its new name before networks use that, and
// the old name goes when they no longer do.
type reached struct {
	stated  map[string]vtep.Node // by ID of the node
	look    map[string]bool      // IDs of nodes of which something has changed
	stale   []netip.Addr         // names that may be nobody's any more
	problem string               // why something could not be stated; "" when nothing is known against it

	keys [][]byte
	self netip.Addr // names this node
}

func newReached() reached {
	return reached{stated: map[string]vtep.Node{}, look: map[string]bool{}}
}

// lookAtAll marks all nodes that are stated: they may be gone.
func (r *reached) lookAtAll() {
	for id := range r.stated {
		r.look[id] = true
	}
}

// stateNodes tells the VTEP of the nodes of which something has changed. What it cannot is tried again.
func (f *Follower) stateNodes() {
	if f.vtep == nil {
		return
	}
	r := &f.reached
	err := f.setKeys()
	for _, id := range slices.Sorted(maps.Keys(r.look)) {
		old, had := r.stated[id]
		n, there := f.place(id)
		switch {
		case had && !there:
			delete(r.stated, id)
			r.stale = append(r.stale, old.Address)
		case there && !(had && old.Address == n.Address && slices.Equal(old.Candidates, n.Candidates)):
			if e := f.vtep.SetNode(n); e != nil {
				err = e
				continue
			}
			r.stated[id] = n
			if had && old.Address != n.Address {
				r.stale = append(r.stale, old.Address)
			}
		}
		delete(r.look, id)
	}
	if err == nil {
		r.problem = ""
	} else if r.problem != err.Error() {
		r.problem = err.Error()
		f.log.Warn("the VTEP does not know where a node is", "error", err, "retry", retryEvery)
	}
}

// forgetNodes takes away the names that nobody has any more. Networks no longer use them.
func (f *Follower) forgetNodes() {
	r := &f.reached
	for _, a := range r.stale {
		// Another node may have it now, such as one that was set up anew on the same host.
		taken := false
		for _, n := range r.stated {
			taken = taken || n.Address == a
		}
		if !taken && f.vtep != nil {
			f.vtep.RemoveNode(a)
		}
	}
	r.stale = nil
}

// leaveNodes makes a VTEP that goes on without the cluster forget what the cluster told it.
func (f *Follower) leaveNodes() {
	for _, id := range slices.Sorted(maps.Keys(f.reached.stated)) {
		f.vtep.RemoveNode(f.reached.stated[id].Address)
	}
	if err := f.vtep.SetProbeKeys(nil, netip.Addr{}); err != nil {
		f.log.Warn("path probes stay sealed with keys of the cluster that this node left", "error", err)
	}
	f.reached = newReached()
}

// setKeys has path probes sealed with keys that the members of the cluster alone have, and in the name of this node.
func (f *Follower) setKeys() error {
	id, _ := f.cp.Self()
	own := f.nodes[id]
	if own == nil {
		return nil // it has left, or has not learned of itself
	}
	var self netip.Addr
	if list := addresses(own); len(list) > 0 {
		self = list[0]
	}
	keys, err := f.cp.ProbeKeys()
	if err != nil || self == f.reached.self && slices.EqualFunc(keys, f.reached.keys, bytes.Equal) {
		return err
	}
	if err := f.vtep.SetProbeKeys(keys, self); err != nil {
		return err
	}
	f.reached.keys, f.reached.self = keys, self
	return nil
}

// place returns where another node is, if it is known and can be reached from this host.
func (f *Follower) place(id string) (vtep.Node, bool) {
	self, _ := f.cp.Self()
	n := f.nodes[id]
	if n == nil || id == self {
		return vtep.Node{}, false
	}
	name := f.reach(n)
	return vtep.Node{Address: name, Candidates: addresses(n)}, name.IsValid()
}

// reach returns the address that names a node, which is the first of its list on every host, so that all mean the same by it;
// invalid if it has none of a family that this host has.
func (f *Follower) reach(n *statev1.Node) netip.Addr {
	list := addresses(n)
	for _, a := range list {
		if slices.ContainsFunc(f.local, func(l netip.Addr) bool { return l.Is4() == a.Is4() }) {
			return list[0]
		}
	}
	return netip.Addr{}
}

// addresses are the candidate underlay addresses of a node, the preferred one first.
func addresses(n *statev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, s := range n.Addresses {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}
