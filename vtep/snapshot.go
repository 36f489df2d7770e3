package vtep

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/pathmtu"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// peerErrorAge is how long an ICMP error from a peer is worth reporting.
const peerErrorAge = 30 * time.Second

// Status returns a snapshot of the VTEP as a whole.
func (v *VTEP) Status() Status {
	v.pairs.count()
	v.noteDegraded()
	s := Status{
		Port:            v.cfg.Underlay.Port,
		Features:        v.features.list(),
		DatagramsIn:     v.received.Load(),
		ReceiveOverflow: v.retired.Load(),
	}
	v.mu.RLock()
	s.DatagramsOut = v.sent
	for _, n := range v.networks {
		s.DatagramsOut += n.fwd.Counters.UnderlayOut.Frames.Load() // there is one frame in each
	}
	v.mu.RUnlock()
	v.sendMu.RLock()
	defer v.sendMu.RUnlock()
	for _, e := range v.endpoints {
		s.Addresses = append(s.Addresses, e.Local)
		s.ReceiveOverflow += e.Overflow()
	}
	for r := range forward.NumReasons {
		s.Unattributed[r], _ = v.drops.Get(r)
	}
	return s
}

// Networks returns a snapshot of every network, in the order in which they were added.
func (v *VTEP) Networks() []NetworkStatus {
	v.pairs.count()
	networks := v.all()
	out := make([]NetworkStatus, 0, len(networks))
	for _, n := range networks {
		v.countGuarded(n)
		s := NetworkStatus{
			Name: n.cfg.Name, VNI: n.cfg.VNI, Device: n.cfg.Device, MAC: n.fwd.LocalMAC,
			MTU: n.fwd.MTU(), MTUDerived: n.cfg.MTU == 0, MSS: n.cfg.MSS,
			Addresses: slices.Clone(n.cfg.Addresses), Gateways: slices.Clone(n.cfg.Gateways),
			Learning: n.cfg.Learning, AllowNested: n.cfg.AllowNested, Isolate: n.cfg.Isolate,
			FDBEntries: n.fwd.FDB.Len(), Healed: n.healed.Load(),
			Counters: countersOf(n.fwd.Counters),
			Pairs:    v.pairs.forwarded(n), FastOut: trafficOf(&n.fastOut), FastIn: trafficOf(&n.fastIn),
		}
		if p := n.port.Load(); p != nil {
			s.Backend, s.Queues = p.Backend, len(p.Queues)
		}
		v.mu.RLock()
		s.Peers, s.Attachments, s.Problem = slices.Clone(n.peers), len(n.attached), n.attention.trouble
		v.mu.RUnlock()
		if n.sandbox != nil {
			s.Sandbox = n.sandbox.Name()
		}
		// What a TAP calls dropped on transmit are frames that did not fit its queue to us.
		_ = n.in(func() error {
			_, tx, err := link.Stats(n.cfg.Device)
			s.TAPOverflow = tx
			return err
		})
		out = append(out, s)
	}
	return out
}

// noteDegraded tells the features what was found missing under way.
func (v *VTEP) noteDegraded() {
	v.sendMu.RLock()
	defer v.sendMu.RUnlock()
	for _, e := range v.endpoints {
		if !e.GSO() {
			v.features.missing(FeatureUDPGSO, fmt.Errorf("the device towards the peers of %v refused it: %w", e.Local, unix.EIO))
		}
	}
}

func trafficOf(t *forward.Traffic) Traffic {
	return Traffic{Frames: t.Frames.Load(), Bytes: t.Bytes.Load()}
}

func countersOf(c *forward.Counters) Counters {
	out := Counters{
		TAPIn: trafficOf(&c.TAPIn), TAPOut: trafficOf(&c.TAPOut),
		UnderlayIn: trafficOf(&c.UnderlayIn), UnderlayOut: trafficOf(&c.UnderlayOut),
		Created: c.Created.Load(), Suppressed: c.Suppressed.Load(),
		MSSClamped: c.MSSClamped.Load(), ICMPSent: c.ICMPSent.Load(), ICMPLimited: c.ICMPLimited.Load(),
		Fragmented: c.Fragmented.Load(), Resegmented: c.Resegmented.Load(), Split: c.Split.Load(),
	}
	for r := range forward.NumReasons {
		out.Drops[r], _ = c.Drops.Get(r)
	}
	return out
}

// FDB returns the forwarding database of the named network, sorted by MAC. The error wraps ErrNoNetwork.
func (v *VTEP) FDB(name string) ([]FDBEntry, error) {
	n, err := v.named(name)
	if err != nil {
		return nil, err
	}
	now := uint32(v.now() / 1e9)
	var out []FDBEntry
	for e := range n.fwd.FDB.All() {
		row := FDBEntry{MAC: e.MAC, Static: e.Static, Local: e.VTEP == fdb.Local, IPs: n.stations.of(e.MAC)}
		if row.Local {
			row.VTEP = v.here()
		} else {
			row.VTEP = v.tables.VTEP(e.VTEP).Name
		}
		if !e.Static && now > e.LastSeen {
			row.Age = time.Duration(now-e.LastSeen) * time.Second
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b FDBEntry) int { return bytes.Compare(a.MAC[:], b.MAC[:]) })
	return out, nil
}

// here returns the first underlay address of this host.
func (v *VTEP) here() netip.Addr {
	v.sendMu.RLock()
	defer v.sendMu.RUnlock()
	if len(v.endpoints) == 0 {
		return netip.Addr{}
	}
	return v.endpoints[0].Local
}

// Peers returns what is known of every remote VTEP that takes part in a network, sorted by address.
func (v *VTEP) Peers() []PeerStatus {
	v.pairs.count()
	probed, unprobed := v.probed(), StateNotProbed
	if v.prober != nil {
		unprobed = pathmtu.StateUnanswered.String() // the prober has not come to it
	}
	v.sendMu.RLock()
	errs := map[netip.Addr]underlay.PeerError{}
	for _, e := range v.endpoints {
		for a, pe := range e.PeerErrors() {
			errs[a] = pe
		}
	}
	v.sendMu.RUnlock()
	v.mu.RLock()
	defer v.mu.RUnlock()
	networks := map[netip.Addr][]string{}
	for _, n := range v.networks {
		for _, p := range n.peers {
			networks[p] = append(networks[p], n.cfg.Name)
		}
	}
	var out []PeerStatus
	for a, in := range networks {
		s := v.peers[a]
		s.Networks = in
		s.Candidates = []CandidateStatus{{
			Remote: s.Remote, Local: s.Local, Origin: pathmtu.OriginStated.String(), State: unprobed, PathMTU: s.PathMTU, Chosen: true,
		}}
		if i, ok := slices.BinarySearchFunc(probed, a, func(p pathmtu.PeerStatus, a netip.Addr) int { return p.Peer.Compare(a) }); ok {
			s.Candidates = candidatesOf(&probed[i])
		}
		if id, ok := v.tables.Lookup(a); ok {
			if heard := v.tables.VTEP(id).Heard(); heard != 0 {
				s.Heard = v.start.Add(time.Duration(heard))
			}
		}
		if pe, ok := errs[s.Remote]; ok && s.Problem == "" && time.Since(pe.Time) < peerErrorAge && pe.Time.After(s.Heard) {
			s.Problem = icmpProblem(pe.Err)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.Address.Compare(b.Address) })
	return out
}

// Drops returns one row for every reason that has counted anything, networks in the order in which they were added
// and what belongs to none last.
func (v *VTEP) Drops() []DropCount {
	v.pairs.count()
	var out []DropCount
	add := func(network string, d *forward.Drops) {
		for r := range forward.NumReasons {
			if count, last := d.Get(r); count > 0 {
				out = append(out, DropCount{Network: network, Reason: r, Count: count, Last: v.start.Add(time.Duration(last))})
			}
		}
	}
	for _, n := range v.all() {
		v.countGuarded(n)
		add(n.cfg.Name, &n.fwd.Counters.Drops)
	}
	add("", &v.drops)
	return out
}

// icmpProblem says what an ICMP error that came back for our datagrams means.
func icmpProblem(err unix.Errno) string {
	switch err {
	case unix.ECONNREFUSED:
		return "it answers that nothing listens on the VXLAN port: is overlayd, or another VTEP, running there?"
	case unix.EHOSTUNREACH, unix.ENETUNREACH:
		return "a router on the way says that it cannot be reached: " + err.Error()
	case unix.EMSGSIZE:
		return "a router on the way says that datagrams are too big for the path"
	case unix.EACCES, unix.EPERM:
		return "a firewall on the way refuses the datagrams"
	}
	return "ICMP error for datagrams to it: " + err.Error()
}

// Samples returns the beginnings of recently dropped frames with a Seq above after, oldest first.
func (v *VTEP) Samples(after uint64) []DropSample {
	var out []DropSample
	for _, s := range v.samples.After(after) {
		out = append(out, DropSample{
			Seq: s.Seq, Time: v.start.Add(time.Duration(s.Time)), Network: s.Network, Reason: s.Reason,
			Egress: s.Egress, Outer: s.Outer, Peer: s.Peer, Length: s.Length, Data: slices.Clone(s.Data[:s.Kept]),
		})
	}
	return out
}
