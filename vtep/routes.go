package vtep

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// fallbackPath is assumed of a peer that no route leads to: Ethernet's MTU. Nothing can be sent to it anyway.
const fallbackPath mtu.PathMTU = 1500

// readRoutes looks up the route to every VTEP, notes what it finds and sets what each path carries.
func (v *VTEP) readRoutes() {
	ids := make([]fdb.VTEPID, v.tables.VTEPs())
	for i := range ids {
		ids[i] = fdb.VTEPID(i)
	}
	if v.lookAt(ids) {
		v.publishDestinations()
	}
}

// lookAt is readRoutes for some. It reports whether the destinations have to be published anew.
func (v *VTEP) lookAt(ids []fdb.VTEPID) bool {
	found := make([]PeerStatus, 0, len(ids))
	for _, id := range ids {
		found = append(found, v.readRoute(id))
	}
	v.mu.Lock()
	for _, s := range found {
		v.peers[s.Address] = s
	}
	v.mu.Unlock()
	return v.lookForWays(ids)
}

func (v *VTEP) readRoute(id fdb.VTEPID) PeerStatus {
	p, path := v.tables.VTEP(id).Addr, v.tables.VTEP(id).Path
	family := mtu.FamilyOf(p)
	s := PeerStatus{Address: p, Overhead: mtu.Overhead(family, 0)}
	if r, err := link.RouteTo(p); err != nil {
		s.Problem = err.Error()
	} else {
		s.Device, s.UnderlayMTU = r.Device, r.MTU
		if v.isOurs(r.Device) {
			s.Problem = fmt.Sprintf("the route to %v leads into %s, that is into the overlay itself: give the overlay addresses that no peer has", p, r.Device)
		} else {
			path = mtu.PathMTU(r.MTU)
		}
	}
	if e := v.endpointFor(p); e != nil {
		s.Local = e.Local
	}
	overlay, err := mtu.OverlayOf(path, family)
	if err != nil && s.Problem == "" {
		s.Problem = err.Error()
	}
	s.OverlayMTU = overlay
	v.tables.SetPath(id, path)
	return s
}

// isOurs reports whether dev is the TAP of a network, among the interfaces of the host.
func (v *VTEP) isOurs(dev string) bool {
	for _, n := range v.networks {
		if n.cfg.Device == dev && !n.cfg.Sandbox {
			return true
		}
	}
	return false
}

// overlayMTU returns the MTU of n: what the operator fixed, or what fits the path to every peer.
func (v *VTEP) overlayMTU(n *network) (mtu.OverlayMTU, error) {
	if n.cfg.MTU != 0 {
		return n.cfg.MTU, nil
	}
	var least mtu.OverlayMTU
	for i, p := range n.peers {
		m, err := mtu.OverlayOf(v.tables.VTEP(n.members[i]).Path, mtu.FamilyOf(p))
		if err != nil {
			return 0, fmt.Errorf("deriving the MTU: the path to %v: %w", p, err)
		}
		if least == 0 || m < least {
			least = m
		}
	}
	if least == 0 { // a network without peers
		return mtu.OverlayOf(v.pathWithoutPeers(n), mtu.FamilyOf(v.endpoints[0].Local))
	}
	return least, nil
}

// pathWithoutPeers is what the paths of a network will probably carry once it has peers: what the underlay device
// does, so that containers need not be told otherwise then.
func (v *VTEP) pathWithoutPeers(n *network) mtu.PathMTU {
	if n.sandbox == nil {
		return fallbackPath
	}
	dev, ok := link.HasAddress(v.endpoints[0].Local)
	if !ok {
		return fallbackPath
	}
	m, err := link.MTU(dev)
	if err != nil || dev == "lo" {
		return fallbackPath
	}
	return mtu.PathMTU(m)
}

// gsoMaxSize returns the gso_max_size of the interfaces of n, or 0 if that is to stay as it is.
func (v *VTEP) gsoMaxSize(n *network) int {
	if p := n.port.Load(); p == nil || !p.Offload.TSO || !v.features.on(FeatureGSOMaxSize) {
		return 0
	}
	return gsoMaxSize(n.fwd.MTU())
}

// followMTU is applyMTU for a network that goes on with the old MTU if need be.
func (v *VTEP) followMTU(n *network) {
	if err := v.applyMTU(n); err != nil {
		v.log.Warn("the MTU could not follow the underlay; large frames may be dropped", "network", n.cfg.Name, "error", err)
	}
}

// applyMTU brings the TAP of n to the MTU that the paths carry now.
func (v *VTEP) applyMTU(n *network) error {
	m, err := v.overlayMTU(n)
	if err != nil {
		return err
	}
	old := n.fwd.MTU()
	if m == old {
		return nil
	}
	if err := n.in(func() error { return link.SetMTU(n.cfg.Device, int(m)) }); err != nil {
		return err
	}
	n.fwd.SetMTU(m)
	if old != 0 && !old.CarriesIPv6() && m.CarriesIPv6() {
		// The kernel took IPv6 off the device, addresses and all, and brings back only the device.
		for _, p := range n.cfg.Addresses {
			if !p.Addr().Is6() {
				continue
			}
			if err := link.AddAddress(n.cfg.Device, p); err != nil {
				return err
			}
		}
	}
	if size := v.gsoMaxSize(n); size != 0 {
		if err := n.in(func() error { return link.SetGSOMaxSize(n.cfg.Device, size) }); err != nil {
			v.features.missing(FeatureGSOMaxSize, err)
		}
	}
	if n.sandbox != nil && old != 0 {
		v.resize(n)
	}
	v.warnMTU(n, m)
	if old != 0 {
		v.log.Info("the network's MTU follows its underlay", "network", n.cfg.Name, "mtu", m, "was", old)
	}
	return nil
}

// warnMTU says what an MTU will not carry.
func (v *VTEP) warnMTU(n *network, m mtu.OverlayMTU) {
	for _, p := range n.cfg.Addresses {
		if p.Addr().Is6() && !m.CarriesIPv6() {
			v.log.Warn("the MTU is below IPv6's minimum: IPv6 will not work on this network; widen the underlay",
				"network", n.cfg.Name, "mtu", m, "minimum", mtu.MinIPv6)
			break
		}
	}
	if n.cfg.MTU == 0 {
		return
	}
	for i, p := range n.peers {
		if fits, err := mtu.OverlayOf(v.tables.VTEP(n.members[i]).Path, mtu.FamilyOf(p)); err == nil && m > fits {
			v.log.Warn("the fixed MTU is larger than what the path carries: large frames will be dropped; lower it or leave mtu out",
				"network", n.cfg.Name, "mtu", m, "peer", p, "fits", fits)
		}
	}
}

// gsoMaxSize returns the size of TCP superframes for which one superframe, cut and wrapped, fills one send
// and does not spill into a second one.
func gsoMaxSize(m mtu.OverlayMTU) int {
	const (
		maxSend = 65507
		// What the kernel sets aside for headers of lower layers when it sizes a superframe, and a part of one
		// segment more, which it rounds away. More would be a whole segment of TCP over IPv6.
		slack = 512
		// IPv4 and TCP with timestamps: the headers that leave most room for payload in common use.
		headers = 20 + 32
	)
	datagram := header.VXLANLen + header.EthernetLen + int(m)
	segments := min(underlay.MaxSegments, maxSend/datagram)
	return min(65536, segments*(int(m)-headers)+slack)
}

// moveEndpoints follows a change of this host's addresses when the operator left their choice to us. It
// returns the endpoints that were opened and those that are not used any more.
func (v *VTEP) moveEndpoints() (opened, closed []*underlay.Endpoint, err error) {
	if len(v.cfg.Underlay.Addresses) > 0 {
		return nil, nil, nil
	}
	locals, err := v.localAddresses()
	if errors.Is(err, errNoPeers) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	next := make([]*underlay.Endpoint, 0, len(locals))
	for _, a := range locals {
		if e := v.endpointAt(a); e != nil {
			next = append(next, e)
			continue
		}
		e, err := v.openEndpoint(a)
		if err != nil {
			for _, e := range opened {
				_ = e.Close() // what failed to open is the error that matters
			}
			return nil, nil, err
		}
		next = append(next, e)
		opened = append(opened, e)
	}
	if len(opened) == 0 && len(next) == len(v.endpoints) {
		return nil, nil, nil
	}
	v.sendMu.Lock()
	for _, e := range v.endpoints {
		kept := false
		for _, o := range next {
			kept = kept || o == e
		}
		if !kept {
			closed = append(closed, e)
		}
	}
	v.endpoints = next
	v.sendMu.Unlock()
	v.publishDestinations()
	return opened, closed, nil
}

func (v *VTEP) endpointAt(a netip.Addr) *underlay.Endpoint {
	for _, e := range v.endpoints {
		if e.Local == a {
			return e
		}
	}
	return nil
}
