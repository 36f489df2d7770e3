package vtep

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

// How a path MTU was learned.
const (
	LearnedRoute = "route" // it is that of the route
	LearnedProbe = "probe" // the VTEP has acknowledged a datagram of this size
)

// StateNotProbed is the state of a candidate where path probes are off.
const StateNotProbed = "not probed"

// PathStatus is how one remote VTEP is reached.
type PathStatus struct {
	Peer        netip.Addr // names it: see Node
	Remote      netip.Addr // datagrams go there
	Local       netip.Addr // and have this outer source
	Device      string     // underlay device towards it
	UnderlayMTU mtu.UnderlayMTU
	PathMTU     mtu.PathMTU
	Learned     string     // LearnedRoute or LearnedProbe
	LearnedAt   time.Time  // or confirmed for the last time; zero when that is not known
	Settled     bool       // no other path MTU is being searched for
	Since       time.Time  // when Remote was chosen; zero when that is not known
	Overhead    []mtu.Term // from the outside inwards
	OverlayMTU  mtu.OverlayMTU
	MSSv4       mtu.MSS // of TCP over IPv4 in the overlay
	MSSv6       mtu.MSS // of TCP over IPv6 in the overlay
	BlackHoles  uint64  // times that a proven path turned out to have become narrower, unannounced
	Moves       uint64  // times that another candidate was chosen after the first
	Candidates  []CandidateStatus
	Networks    []string // in which it takes part; none for a stated node that shares no network with this host
	Problem     string   // why it cannot be reached now; "" when nothing is known against it
}

// CandidateStatus is one underlay address of a remote VTEP.
type CandidateStatus struct {
	Remote  netip.Addr
	Local   netip.Addr    // what goes there has this outer source; invalid without a route
	Origin  string        // "stated", or "observed": its probes came from there
	State   string        // "reachable", "unanswered", "lost", "no route" or StateNotProbed
	RTT     time.Duration // there and back, the least of the last few; 0 = not known
	PathMTU mtu.PathMTU
	SeenAs  netip.Addr // the address from which the peer sees our probes come; invalid = not known
	Chosen  bool
	Why     string // why it is not chosen, or what is wrong with it
}

// Paths returns how each remote VTEP is reached that is probed or takes part in a network, sorted by name.
func (v *VTEP) Paths() []PathStatus {
	peers := v.Peers()
	out := make([]PathStatus, 0, len(peers))
	for i := range peers {
		out = append(out, pathOf(&peers[i]))
		out[i].Settled = v.prober == nil
	}
	for _, s := range v.probed() {
		i, listed := slices.BinarySearchFunc(out, s.Peer, func(p PathStatus, a netip.Addr) int { return p.Peer.Compare(a) })
		if !listed {
			out = slices.Insert(out, i, pathOf(&PeerStatus{
				Address: s.Peer, Remote: s.Remote, Local: s.Local, Device: s.Device, UnderlayMTU: s.Underlay, PathMTU: s.Path,
				Learned: s.Learned.String(), Candidates: candidatesOf(&s),
			}))
		}
		p := &out[i]
		p.Settled, p.LearnedAt, p.Since, p.BlackHoles, p.Moves = s.Settled, s.LearnedAt, s.Since, s.BlackHoles, s.Moves
	}
	return out
}

// pathOf completes what is known of a peer.
func pathOf(s *PeerStatus) PathStatus {
	family := mtu.FamilyOf(s.Remote)
	p := PathStatus{
		Peer: s.Address, Remote: s.Remote, Local: s.Local, Device: s.Device, UnderlayMTU: s.UnderlayMTU, PathMTU: s.PathMTU,
		Learned: cmp.Or(s.Learned, LearnedRoute), Overhead: mtu.Terms(family, 0),
		Candidates: s.Candidates, Networks: s.Networks, Problem: s.Problem,
	}
	m, err := mtu.OverlayOf(s.PathMTU, family)
	if err != nil {
		p.Problem = cmp.Or(p.Problem, err.Error())
		return p
	}
	p.OverlayMTU, p.MSSv4, p.MSSv6 = m, mtu.MSSOf(m, mtu.IPv4), mtu.MSSOf(m, mtu.IPv6)
	return p
}

// probed returns what the prober knows, sorted by name.
func (v *VTEP) probed() []pathmtu.PeerStatus {
	if v.prober == nil {
		return nil
	}
	return v.prober.Status()
}

func candidatesOf(s *pathmtu.PeerStatus) []CandidateStatus {
	out := make([]CandidateStatus, 0, len(s.Candidates))
	for _, c := range s.Candidates {
		out = append(out, CandidateStatus{
			Remote: c.Remote, Local: c.Local, Origin: c.Origin.String(), State: c.State.String(), RTT: c.RTT,
			PathMTU: c.Path, SeenAs: c.SeenAs, Chosen: c.Chosen, Why: c.Why,
		})
	}
	return out
}

// ProbeCounters returns what path probes have counted; zero where they are off.
func (v *VTEP) ProbeCounters() pathmtu.Counters {
	if v.prober == nil {
		return pathmtu.Counters{}
	}
	return v.prober.Counters()
}
