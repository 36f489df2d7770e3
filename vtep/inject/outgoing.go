package inject

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The names under which devices offer to segment tunnelled packets, without and with an outer UDP checksum
// (ethtool -k).
const (
	featureTunnel     = "tx-udp_tnl-segmentation"
	featureTunnelCsum = "tx-udp_tnl-csum-segmentation"
)

// Survey looks at where datagrams leave the host. What it found out of one device or of the host it does not
// ask again, so it is made anew when something may have changed. It belongs to one goroutine.
type Survey struct {
	tool    *ethtool.Ethtool
	devices map[int]*surveyed
	policy  map[int][]netlink.XfrmPolicy // outbound ones, by family
}

// Way is how datagrams to a peer leave the host.
type Way struct {
	Device    string // name of the underlay device, as far as it is known
	Index     int    // of its interface
	MaxPacket int    // the longest packet, with its Ethernet header, that it takes in one piece
	Tunnels   bool   // it segments tunnelled packets that have no outer checksum
}

// surveyed is what is known of one device.
type surveyed struct {
	way      Way
	features map[string]bool
	err      error // why superframes cannot go out by it whole
}

// NewSurvey makes a Survey, to be closed after use.
func NewSurvey() (*Survey, error) {
	t, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("opening a socket to ask devices for their features: %w", err)
	}
	return &Survey{tool: t, devices: map[int]*surveyed{}, policy: map[int][]netlink.XfrmPolicy{}}, nil
}

// Close frees what the survey holds.
func (s *Survey) Close() { s.tool.Close() }

// Outgoing returns how datagrams leave that are sent from local to peer. The error says why superframes cannot
// be injected there: the device does not segment tunnelled packets, with outer checksums if checksum is set; it is
// not Ethernet; or which device it is depends on more than the addresses.
func (s *Survey) Outgoing(local, peer netip.Addr, checksum bool) (Way, error) {
	way, err := s.Direct(local, peer)
	if err != nil {
		return way, err
	}
	if !way.Tunnels {
		return way, fmt.Errorf("%s does not segment tunnelled packets (%s is off)", way.Device, featureTunnel)
	}
	if checksum && !s.device(way.Index).features[featureTunnelCsum] {
		return way, fmt.Errorf("%s does not segment tunnelled packets (%s is off)", way.Device, featureTunnelCsum)
	}
	return way, nil
}

// Direct returns how datagrams leave that are sent from local to peer. The error says why nothing can be put on the
// device there but by a socket: it is not Ethernet, or which one it is depends on more than the addresses.
func (s *Survey) Direct(local, peer netip.Addr) (Way, error) {
	// The route itself is asked for, not what becomes of it for one packet: see multipath below.
	routes, err := netlink.RouteGetWithOptions(peer.WithZone("").AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.WithZone("").AsSlice(), FIBMatch: true})
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return Way{}, fmt.Errorf("finding the route from %v to %v: %w", local, peer, err)
	}
	r := &routes[0]
	d := s.device(r.LinkIndex)
	switch {
	case len(r.MultiPath) > 0:
		return Way{}, fmt.Errorf("the route to %v has several paths, and a flow must keep to one", peer)
	case r.Type != unix.RTN_UNICAST:
		return Way{}, fmt.Errorf("the route to %v does not lead to another host", peer)
	case r.Encap != nil:
		return d.way, fmt.Errorf("the route to %v encapsulates", peer)
	case d.err != nil:
		return d.way, d.err
	}
	if err := s.protected(peer); err != nil {
		return d.way, err
	}
	return d.way, nil
}

// device asks for what there is to know of a device.
func (s *Survey) device(index int) *surveyed {
	if d := s.devices[index]; d != nil {
		return d
	}
	d := new(surveyed)
	s.devices[index] = d
	if index == 0 {
		return d // a route with several paths
	}
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		d.err = fmt.Errorf("looking up the device with index %d: %w", index, err)
		return d
	}
	d.way = Way{Device: l.Attrs().Name, Index: index, MaxPacket: maxPacket}
	for _, size := range []uint32{l.Attrs().GSOMaxSize, l.Attrs().GSOIPv4MaxSize} {
		if size > 0 { // older kernels have one for both families, or none
			d.way.MaxPacket = min(d.way.MaxPacket, int(size)-1)
		}
	}
	if l.Attrs().EncapType != "ether" {
		d.err = fmt.Errorf("%s is not Ethernet", d.way.Device)
		return d
	}
	if d.features, err = s.tool.Features(d.way.Device); err != nil {
		d.err = fmt.Errorf("asking %s for its features: %w", d.way.Device, err)
	}
	d.way.Tunnels = d.features[featureTunnel]
	return d
}

// protected says that IPsec may want to see what goes to peer, which injections would evade.
func (s *Survey) protected(peer netip.Addr) error {
	family := netlink.FAMILY_V6
	if peer.Is4() {
		family = netlink.FAMILY_V4
	}
	out, known := s.policy[family]
	if !known {
		all, err := netlink.XfrmPolicyList(family)
		switch {
		case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EAFNOSUPPORT):
			// A kernel without IPsec.
		case err != nil:
			return fmt.Errorf("asking for IPsec policies: %w", err)
		}
		for _, p := range all {
			if p.Dir == netlink.XFRM_DIR_OUT {
				out = append(out, p)
			}
		}
		s.policy[family] = out
	}
	for _, p := range out {
		if p.Dst == nil || p.Dst.Contains(peer.WithZone("").AsSlice()) {
			return fmt.Errorf("an IPsec policy covers what goes to %v", peer)
		}
	}
	return nil
}
