package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/link"
)

// narrow is a path that leaves less than is wanted.
type narrow struct {
	leaves mtu.OverlayMTU
	path   string // in words
}

// fits refuses an MTU for a network that the path from this node to another one does not carry, naming the narrowest. What
// cannot be reached now, and what is still searched for, says nothing against it.
func (s *Service) fits(want uint32) error {
	if want == 0 {
		return nil
	}
	var worst *narrow
	for _, n := range s.cp.Tables().Nodes() {
		if p := s.follow.leaves(n); p != nil && uint32(p.leaves) < want && (worst == nil || p.leaves < worst.leaves) {
			worst = p
		}
	}
	if worst == nil {
		return nil
	}
	return api.Errorf(api.Invalid, "mtu", "%d does not fit: %s, and leaves %d; choose that or less, or leave it out to have it derived from what each path carries", want, worst.path, worst.leaves)
}

// Of paths that carry less than one would expect, so many are named.
const mostTight = 3

// tight says which paths from this node carry less than their device sends, or than Ethernet does.
func (s *Service) tight() []string {
	s.follow.mu.Lock()
	v := s.follow.vtep
	s.follow.mu.Unlock()
	if v == nil {
		return nil
	}
	const ethernet = 1500 // bytes, which everybody believes in
	var out []string
	more := 0
	for _, p := range v.Paths() {
		var found string
		switch {
		case p.Problem != "" || !reachable(&p):
			continue
		case p.Learned == vtep.LearnedProbe && p.Settled && int(p.PathMTU) < int(p.UnderlayMTU):
			found = fmt.Sprintf("the path to %v carries packets of %d bytes, of the %d that %s sends", cmp.Or(p.Remote, p.Peer), p.PathMTU, p.UnderlayMTU, p.Device)
		case p.UnderlayMTU < ethernet:
			found = fmt.Sprintf("%s sends packets of at most %d bytes to %v", p.Device, p.UnderlayMTU, cmp.Or(p.Remote, p.Peer))
		default:
			continue
		}
		if len(out) == mostTight {
			more++
			continue
		}
		out = append(out, fmt.Sprintf("%s, which leaves %d to the overlay; interfaces follow by themselves", found, p.OverlayMTU))
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("%d more paths like that: overlayctl mtu shows all", more))
	}
	return out
}

// leaves returns what the path to a node carries, as far as that is known for certain, or nil.
func (f *Follower) leaves(n *statev1.Node) *narrow {
	f.mu.Lock()
	v := f.vtep
	stated, known := f.reached.stated[n.Id]
	f.mu.Unlock()
	if v == nil || !known { // it is this node, or it cannot be reached from here
		return nil
	}
	paths := v.Paths()
	at := slices.IndexFunc(paths, func(p vtep.PathStatus) bool { return p.Peer == stated.Address })
	if at < 0 {
		return routeLeaves(n.Name, stated.Candidates)
	}
	p := &paths[at]
	switch {
	case p.Problem != "" || !reachable(p):
		return nil
	case p.Learned == vtep.LearnedProbe && p.Settled:
		return &narrow{p.OverlayMTU, fmt.Sprintf("the path to node %s at %v was proven to carry packets of %d bytes", n.Name, cmp.Or(p.Remote, p.Peer), p.PathMTU)}
	}
	return deviceLeaves(n.Name, cmp.Or(p.Remote, p.Peer), p.Device, p.UnderlayMTU)
}

// reachable reports whether nothing says that the address in use is dead.
func reachable(p *vtep.PathStatus) bool {
	return !slices.ContainsFunc(p.Candidates, func(c vtep.CandidateStatus) bool { return c.Chosen && (c.State == "lost" || c.State == "no route") })
}

// routeLeaves is what the route to a node leaves that the VTEP does not probe, for there are many nodes. It is that to the
// first of its addresses that has one.
func routeLeaves(name string, candidates []netip.Addr) *narrow {
	for _, to := range candidates {
		if r, err := link.RouteTo(to); err == nil {
			return deviceLeaves(name, to, r.Device, r.MTU)
		}
	}
	return nil
}

func deviceLeaves(name string, to netip.Addr, device string, most mtu.UnderlayMTU) *narrow {
	m, err := mtu.OverlayOf(mtu.PathMTU(most), mtu.FamilyOf(to))
	if err != nil {
		return nil // it is not known, or so small that the log tells of it
	}
	return &narrow{m, fmt.Sprintf("the route to node %s at %v by %s sends packets of at most %d bytes", name, to, device, most)}
}
