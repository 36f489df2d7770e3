package main

import (
	"cmp"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep"
)

// tables is what a VTEP tells beyond its counters.
type tables interface {
	// FDB is sorted by MAC. The error wraps vtep.ErrNoNetwork.
	FDB(network string) ([]vtep.FDBEntry, error)
	Drops() []vtep.DropCount
	Samples(after uint64) []vtep.DropSample
}

// node shows a VTEP as the api.Node that the local API serves.
type node struct {
	tun     view
	name    string
	version *overlaydv1.Version
	start   time.Time
	// idOf returns the ID of the cluster's network of this name, or "".
	idOf func(name string) string
}

var _ api.Node = (*node)(nil)

func newNode(name string, version *overlaydv1.Version, tun view, idOf func(string) string) *node {
	return &node{tun: tun, name: name, version: version, start: time.Now(), idOf: idOf}
}

func (n *node) Status() *overlaydv1.NodeStatus {
	st := n.tun.Status()
	byReason, _ := dropsOf(&st.Unattributed)
	out := &overlaydv1.NodeStatus{
		Node:      n.name,
		Version:   n.version,
		Pid:       uint32(os.Getpid()),
		StartTime: timestamppb.New(n.start),
		Underlay: &overlaydv1.Underlay{
			Port:            uint32(st.Port),
			Addresses:       texts(st.Addresses),
			DatagramsIn:     st.DatagramsIn,
			DatagramsOut:    st.DatagramsOut,
			ReceiveOverflow: st.ReceiveOverflow,
			DropsByReason:   byReason,
		},
	}
	for _, f := range st.Features {
		out.Features = append(out.Features, &overlaydv1.Feature{Name: f.Name, On: f.On, Reason: f.Reason})
	}
	return out
}

func (n *node) Networks() []*overlaydv1.Network {
	var out []*overlaydv1.Network
	paths := n.tun.Paths()
	for _, s := range n.tun.Networks() {
		k := &s.Counters
		byReason, sum := dropsOf(&k.Drops)
		id := ""
		if s.Sandbox != "" { // those stated by hand have none
			id = n.idOf(s.Name)
		}
		out = append(out, &overlaydv1.Network{
			NetworkId:   id,
			Name:        s.Name,
			Vni:         uint32(s.VNI),
			Device:      s.Device,
			Mac:         s.MAC.String(),
			Backend:     s.Backend,
			Queues:      uint32(s.Queues),
			Mtu:         uint32(s.MTU),
			MtuDerived:  s.MTUDerived,
			MtuLimits:   limits(&s, paths),
			Mss:         uint32(s.MSS),
			Addresses:   texts(s.Addresses),
			Peers:       texts(s.Peers),
			Learning:    s.Learning,
			AllowNested: s.AllowNested,
			FdbEntries:  uint64(s.FDBEntries),
			TapOverflow: s.TAPOverflow,
			Healed:      s.Healed,
			Problem:     s.Problem,

			FastPathPairs: uint64(s.Pairs),
			FastPathOut:   traffic(s.FastOut),
			FastPathIn:    traffic(s.FastIn),
			Counters: &overlaydv1.Counters{
				TapIn:                  traffic(k.TAPIn),
				TapOut:                 traffic(k.TAPOut),
				UnderlayIn:             traffic(k.UnderlayIn),
				UnderlayOut:            traffic(k.UnderlayOut),
				FramesCreated:          k.Created,
				FramesSuppressed:       k.Suppressed,
				FramesDropped:          sum,
				DropsByReason:          byReason,
				MssClamped:             k.MSSClamped,
				IcmpSent:               k.ICMPSent,
				IcmpLimited:            k.ICMPLimited,
				PacketsFragmented:      k.Fragmented,
				SuperframesResegmented: k.Resegmented,
				SegmentsSplit:          k.Split,
			},
		})
	}
	return out
}

func (n *node) Peers() []*overlaydv1.Peer {
	var out []*overlaydv1.Peer
	for _, p := range n.tun.Peers() {
		peer := &overlaydv1.Peer{
			Address:      p.Address.String(),
			LocalAddress: addressText(p.Local),
			Device:       p.Device,
			UnderlayMtu:  uint32(p.UnderlayMTU),
			Overhead:     uint32(p.Overhead),
			OverlayMtu:   uint32(p.OverlayMTU),
			Networks:     p.Networks,
			Problem:      p.Problem,

			RemoteAddress: addressText(p.Remote),
			PathMtu:       uint32(p.PathMTU),
			Candidates:    candidates(p.Candidates),
		}
		if !p.Heard.IsZero() {
			peer.LastHeard = timestamppb.New(p.Heard)
		}
		out = append(out, peer)
	}
	return out
}

func (n *node) FDB(network string, after addr.MAC, limit int) ([]*overlaydv1.FDBEntry, error) {
	entries, err := n.tun.FDB(network)
	if errors.Is(err, vtep.ErrNoNetwork) {
		return nil, api.ErrNoNetwork
	}
	if err != nil {
		return nil, err
	}
	begin, found := slices.BinarySearchFunc(entries, after, func(e vtep.FDBEntry, mac addr.MAC) int {
		return cmp.Compare(e.MAC.Uint64(), mac.Uint64())
	})
	if found {
		begin++
	}
	page := entries[begin:min(begin+limit, len(entries))]
	out := make([]*overlaydv1.FDBEntry, 0, len(page))
	for _, e := range page {
		row := &overlaydv1.FDBEntry{Mac: e.MAC.String(), Vtep: addressText(e.VTEP), Static: e.Static, Ips: texts(e.IPs)}
		if !e.Static {
			row.Age = durationpb.New(e.Age)
		}
		out = append(out, row)
	}
	return out, nil
}

func (n *node) Drops() []*overlaydv1.Drop {
	var out []*overlaydv1.Drop
	for _, d := range n.tun.Drops() {
		if d.Count == 0 {
			continue
		}
		row := &overlaydv1.Drop{Network: d.Network, Reason: d.Reason.String(), Help: d.Reason.Help(), Count: d.Count}
		if !d.Last.IsZero() {
			row.LastTime = timestamppb.New(d.Last)
		}
		out = append(out, row)
	}
	return out
}

func (n *node) Samples(after uint64) []*overlaydv1.DropSample {
	samples := n.tun.Samples(after)
	out := make([]*overlaydv1.DropSample, 0, len(samples))
	for _, s := range samples {
		out = append(out, &overlaydv1.DropSample{
			Seq:     s.Seq,
			Time:    timestamppb.New(s.Time),
			Network: s.Network,
			Reason:  s.Reason.String(),
			Egress:  s.Egress,
			Peer:    addressText(s.Peer),
			Length:  uint32(s.Length),
			Data:    s.Data,
			Outer:   s.Outer,
		})
	}
	return out
}

// dropsOf names the reasons with a count above zero, and adds up all of them.
func dropsOf(counts *[forward.NumReasons]uint64) (byReason map[string]uint64, sum uint64) {
	byReason = make(map[string]uint64)
	for r := forward.NotDropped + 1; r < forward.NumReasons; r++ {
		if counts[r] > 0 {
			byReason[r.String()] = counts[r]
			sum += counts[r]
		}
	}
	return byReason, sum
}

func traffic(t vtep.Traffic) *overlaydv1.Traffic {
	return &overlaydv1.Traffic{Frames: t.Frames, Bytes: t.Bytes}
}

// addressText is "" for an address that is not known.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func texts[T interface{ String() string }](values []T) []string {
	var out []string
	for _, v := range values {
		out = append(out, v.String())
	}
	return out
}
