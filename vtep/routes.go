package vtep

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/pathmtu"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// fallbackPath is assumed of a peer that no route leads to: Ethernet's MTU. Nothing can be sent to it anyway.
const fallbackPath mtu.PathMTU = 1500

// remote is how one VTEP is reached.
type remote struct {
	local netip.Addr // outer source of what goes there; invalid if that is not known
	// fits is what the interfaces of its networks are to fit: what the path is settled on, or what the route carries.
	fits mtu.PathMTU
	seen bool // there has been a route, so that fits is not a guess
}

// readRoutes looks up the route to every VTEP, and has all that depends on it follow. v.change is held.
func (v *VTEP) readRoutes() {
	ids := make([]fdb.VTEPID, v.tables.VTEPs())
	for i := range ids {
		ids[i] = fdb.VTEPID(i)
	}
	v.look(ids...)
}

// look is readRoutes for some.
func (v *VTEP) look(ids ...fdb.VTEPID) {
	v.reach(ids)
	for _, n := range v.networks {
		v.followMTU(n)
	}
}

// reach finds out how some VTEPs are reached, new ones among them, and what the paths carry. All who send keep to it before
// anybody is told.
func (v *VTEP) reach(ids []fdb.VTEPID) {
	found := make([]PeerStatus, 0, len(ids))
	var moved bool
	for _, id := range ids {
		before, e := v.tables.VTEP(id).Addr, v.endpointTo(id)
		found = append(found, v.readRoute(id))
		moved = moved || int(id) >= len(v.dests) || v.tables.VTEP(id).Addr != before || v.endpointTo(id) != e
	}
	if v.lookForWays(ids) || moved {
		v.publishDestinations()
	}
	v.pairs.catchUp()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range found {
		v.peers[s.Address] = s
	}
}

// readRoute looks up the route to one VTEP and publishes where it is reached.
func (v *VTEP) readRoute(id fdb.VTEPID) PeerStatus {
	for int(id) >= len(v.remotes) {
		v.remotes = append(v.remotes, remote{fits: fallbackPath})
	}
	at, to := v.tables.VTEP(id), &v.remotes[id]
	a := forward.VTEPAddress{Addr: v.assumed(at.Name), Path: at.Path, Accept: v.nodes[at.Name].Candidates}
	c, probed := v.choices[at.Name]
	if probed {
		a.Addr, a.Accept = c.Remote, c.Accept
	}
	s := PeerStatus{Address: at.Name, Remote: a.Addr, Learned: LearnedRoute}
	r, err := v.route(a.Addr)
	s.Device, s.UnderlayMTU, to.local = r.Device, r.MTU, r.Src
	switch {
	case err != nil:
		s.Problem = err.Error()
		if e := v.endpointFor(a.Addr); e != nil {
			to.local = e.Local
		}
	case probed && c.Learned == pathmtu.LearnedProbe:
		s.Learned = LearnedProbe
		a.Path = min(c.Path, mtu.PathMTU(r.MTU))
		to.fits = v.settle(to.fits, &c, mtu.PathMTU(r.MTU))
	case probed && !c.Settled && to.seen:
		// It is asked anew, from another local address for one: what is settled so far holds until it has answered or not.
		a.Path = mtu.PathMTU(r.MTU)
		to.fits = min(to.fits, a.Path)
	default:
		a.Path = mtu.PathMTU(r.MTU)
		to.fits = a.Path
	}
	if err == nil {
		to.seen = true
		v.tellDevice(&r)
	}
	family := mtu.FamilyOf(a.Addr)
	s.Local, s.PathMTU, s.Overhead = to.local, a.Path, mtu.Overhead(family, 0)
	if s.OverlayMTU, err = mtu.OverlayOf(a.Path, family); err != nil && s.Problem == "" {
		s.Problem = err.Error()
	}
	v.tables.SetVTEP(id, a)
	return s
}

// assumed returns where a VTEP is reached of which path probes have said nothing yet, or nothing at all.
func (v *VTEP) assumed(name netip.Addr) netip.Addr {
	if v.endpointFor(name) == nil {
		for _, a := range v.nodes[name].Candidates {
			if v.endpointFor(a) != nil && v.endpointAt(a) == nil {
				return a
			}
		}
	}
	return name
}

// settle returns what interfaces are to fit on a path that is probed, when they fitted old so far. While a path is being
// searched they stay as they are; one on which nobody answers any more counts with its route.
func (v *VTEP) settle(old mtu.PathMTU, c *pathmtu.Choice, route mtu.PathMTU) mtu.PathMTU {
	switch {
	case c.State != pathmtu.StateReachable:
		return route
	case c.Settled:
		return min(c.Path, route)
	}
	return min(old, route)
}

// isOurs reports whether dev is the TAP of a network, among the interfaces of the host.
func (v *VTEP) isOurs(dev string) bool {
	return slices.ContainsFunc(v.all(), func(n *network) bool { return n.cfg.Device == dev && !n.cfg.Sandbox })
}

// overlayMTU returns the MTU of n: what the operator fixed, or what fits the path to every peer.
func (v *VTEP) overlayMTU(n *network) (mtu.OverlayMTU, error) {
	if n.cfg.MTU != 0 {
		return n.cfg.MTU, nil
	}
	var least mtu.OverlayMTU
	for i, p := range n.peers {
		m, err := v.fitting(n.members[i])
		if err != nil {
			return 0, fmt.Errorf("deriving the MTU: the path to %v: %w", p, err)
		}
		if least == 0 || m < least {
			least = m
		}
	}
	if least == 0 {
		return v.mtuWithoutPeers(n)
	}
	return least, nil
}

// fitting returns the MTU that fits the path to a VTEP.
func (v *VTEP) fitting(id fdb.VTEPID) (mtu.OverlayMTU, error) {
	return mtu.OverlayOf(v.remotes[id].fits, mtu.FamilyOf(v.tables.VTEP(id).Addr))
}

// mtuWithoutPeers is what the paths of a network will probably carry once it has peers, so that containers need not be
// told otherwise then: what the underlay device does, and the paths to the nodes that are probed already.
func (v *VTEP) mtuWithoutPeers(n *network) (mtu.OverlayMTU, error) {
	local := v.endpoints[0].Local
	path := fallbackPath
	if n.sandbox == nil {
		return mtu.OverlayOf(path, mtu.FamilyOf(local))
	}
	if dev, ok := link.HasAddress(local); ok && dev != "lo" {
		if m, err := link.MTU(dev); err == nil {
			path = mtu.PathMTU(m)
		}
	}
	least, err := mtu.OverlayOf(path, mtu.FamilyOf(local))
	for _, c := range v.choices {
		if c.Settled && c.Learned == pathmtu.LearnedProbe && c.State == pathmtu.StateReachable {
			if m, err := mtu.OverlayOf(c.Path, mtu.FamilyOf(c.Remote)); err == nil {
				least = min(least, m)
			}
		}
	}
	return least, err
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
	v.warnFixed(n)
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
		if err := n.giveAddresses(""); err != nil {
			return err
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
}

// warnFixed says which paths carry less than an MTU that the operator fixed.
func (v *VTEP) warnFixed(n *network) {
	if n.cfg.MTU == 0 {
		return
	}
	for i, p := range n.peers {
		topic := fixedTopic(n.cfg.Name, p)
		fits, err := v.fitting(n.members[i])
		if err != nil || n.cfg.MTU <= fits {
			delete(v.told, topic)
		} else if v.tell(topic, fmt.Sprint(fits)) {
			v.log.Warn("the fixed MTU is larger than what the path carries: TCP is cut to what fits, senders of other large packets are told, and those that do not listen lose them; lower it or leave mtu out",
				"network", n.cfg.Name, "mtu", n.cfg.MTU, "peer", p, "fits", fits)
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

// moveEndpoints follows a change of this host's addresses when the operator left their choice to us, or of those that
// SetAddresses states. It returns the endpoints that were opened and those that are not used any more.
func (v *VTEP) moveEndpoints() (opened, closed []*underlay.Endpoint, err error) {
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
