package main

import (
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/cmd/overlayd/metrics"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

func (n *node) Paths() []*overlaydv1.Path {
	var out []*overlaydv1.Path
	for _, p := range n.tun.Paths() {
		path := &overlaydv1.Path{
			Peer:        p.Peer.String(),
			Remote:      addressText(p.Remote),
			Local:       addressText(p.Local),
			Device:      p.Device,
			UnderlayMtu: uint32(p.UnderlayMTU),
			PathMtu:     uint32(p.PathMTU),
			Learned:     p.Learned,
			Settled:     p.Settled,
			OverlayMtu:  uint32(p.OverlayMTU),
			MssIpv4:     uint32(p.MSSv4),
			MssIpv6:     uint32(p.MSSv6),
			BlackHoles:  p.BlackHoles,
			Moves:       p.Moves,
			Candidates:  candidates(p.Candidates),
			Networks:    p.Networks,
			Problem:     p.Problem,
		}
		if !p.LearnedAt.IsZero() {
			path.LearnedTime = timestamppb.New(p.LearnedAt)
		}
		if !p.Since.IsZero() {
			path.ChosenTime = timestamppb.New(p.Since)
		}
		for _, term := range p.Overhead {
			path.Overhead = append(path.Overhead, &overlaydv1.OverheadTerm{Name: term.Name, Bytes: uint32(term.Bytes)})
		}
		out = append(out, path)
	}
	return out
}

func (n *node) Probes() *overlaydv1.Probes {
	k := n.tun.ProbeCounters()
	out := &overlaydv1.Probes{
		Sent: k.ProbesSent, Acknowledged: k.ProbesAcked, Lost: k.ProbesLost,
		AcknowledgementsSent: k.AcksSent, AcknowledgementsLimited: k.AcksLimited,
		BytesSent: k.BytesSent, SendErrors: k.SendErrors, Overflow: k.QueueLosses,
		HintsAccepted: k.HintsAccepted, BlackHoles: k.BlackHoles, Moves: k.Moves,
		IgnoredByReason: map[string]uint64{}, HintsIgnoredByReason: map[string]uint64{},
	}
	for r := range pathmtu.NumIgnores {
		if k.Ignored[r] > 0 {
			out.IgnoredByReason[metrics.Label(r)] = k.Ignored[r]
		}
	}
	for r := range pathmtu.NumHintIgnores {
		if k.HintsIgnored[r] > 0 {
			out.HintsIgnoredByReason[metrics.Label(r)] = k.HintsIgnored[r]
		}
	}
	return out
}

func candidates(in []vtep.CandidateStatus) []*overlaydv1.Candidate {
	var out []*overlaydv1.Candidate
	for _, c := range in {
		row := &overlaydv1.Candidate{
			Remote: c.Remote.String(), Local: addressText(c.Local), Origin: c.Origin, State: c.State,
			PathMtu: uint32(c.PathMTU), Chosen: c.Chosen, Why: c.Why, SeenAs: addressText(c.SeenAs),
		}
		if c.RTT > 0 {
			row.Rtt = durationpb.New(c.RTT)
		}
		out = append(out, row)
	}
	return out
}

// limits returns the peers whose paths leave no more than the MTU of a network that is derived.
func limits(n *vtep.NetworkStatus, paths []vtep.PathStatus) []string {
	if !n.MTUDerived {
		return nil
	}
	var out []string
	for _, p := range paths {
		if p.Problem == "" && p.OverlayMTU == n.MTU && slices.Contains(p.Networks, n.Name) {
			out = append(out, p.Peer.String())
		}
	}
	return out
}
