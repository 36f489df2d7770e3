package vtep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/pathmtu"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// findings holds what path probes have found out and nobody has followed yet. The prober puts it there and goes on: it
// must not wait for whoever changes networks, or it would take its own delay for that of the path.
type findings struct {
	mu   sync.Mutex
	news map[netip.Addr]pathmtu.Choice // the last of each peer
	wake chan struct{}                 // holds one while there is news
}

func (f *findings) put(c pathmtu.Choice) {
	f.mu.Lock()
	f.news[c.Peer] = c
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *findings) take() map[netip.Addr]pathmtu.Choice {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := f.news
	f.news = map[netip.Addr]pathmtu.Choice{}
	return news
}

// openProber makes the prober, unless it is to stay off.
func (v *VTEP) openProber() error {
	if !v.features.on(FeaturePathProbes) {
		return nil
	}
	v.findings = findings{news: map[netip.Addr]pathmtu.Choice{}, wake: make(chan struct{}, 1)}
	var err error
	v.prober, err = pathmtu.New(pathmtu.Config{
		Send: v.sendProbe, Route: v.probeRoute, Traffic: v.trafficTo, Changed: v.findings.put, Log: v.log,
	})
	return err
}

// sendProbe is pathmtu.Config.Send. What the kernel loses for want of room, in its queue or in that of a device, is lost
// on the way like any other.
func (v *VTEP) sendProbe(local, remote netip.Addr, payload []byte) error {
	v.sendMu.RLock()
	defer v.sendMu.RUnlock()
	e := v.endpointAt(local)
	if e == nil {
		return fmt.Errorf("%v is no address of the underlay any more", local)
	}
	err := e.Send(remote, payload)
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return err
}

// probeRoute is pathmtu.Config.Route.
func (v *VTEP) probeRoute(remote netip.Addr) (pathmtu.Route, error) {
	r, err := v.route(remote)
	return pathmtu.Route{Local: r.Src, Device: r.Device, MTU: r.MTU}, err
}

// trafficTo is pathmtu.Config.Traffic.
func (v *VTEP) trafficTo(peer netip.Addr) uint64 {
	if id, ok := v.idOf(peer); ok {
		return v.tables.VTEP(id).Sent()
	}
	return 0
}

// idOf returns the number of the VTEP with this name.
func (v *VTEP) idOf(name netip.Addr) (fdb.VTEPID, bool) {
	id, ok := v.tables.Lookup(name)
	return id, ok && v.tables.VTEP(id).Name == name
}

// route finds out how the host sends to remote. The source is that of the kernel's route if datagrams can be sent from
// there, and otherwise the first local address of the family.
func (v *VTEP) route(remote netip.Addr) (link.Route, error) {
	r, err := link.RouteTo(remote)
	if err != nil {
		return r, err
	}
	v.sendMu.RLock()
	e, own := v.endpointAt(r.Src), v.endpointAt(remote) != nil
	if e == nil {
		e = v.endpointFor(remote)
	}
	v.sendMu.RUnlock()
	switch {
	case e == nil:
		return r, fmt.Errorf("the underlay of this host has no %v address to reach %v from", mtu.FamilyOf(remote), remote)
	case own:
		return r, fmt.Errorf("%v is an address of this host", remote)
	}
	if e.Local != r.Src {
		if from, err := link.RouteFrom(e.Local, remote); err == nil {
			r = from
		}
		r.Src = e.Local
	}
	if v.isOurs(r.Device) {
		return r, fmt.Errorf("the route to %v leads into %s, that is into the overlay itself: give the overlay addresses that no peer has", remote, r.Device)
	}
	return r, nil
}

// received hands a datagram that a worker has found to be a probe to the prober.
func (v *VTEP) receivedProbe(local, remote netip.Addr, payload []byte) {
	if v.prober == nil {
		return
	}
	size := len(payload) + header.UDPLen + header.IPv4MinLen
	if local.Is6() {
		size += header.IPv6Len - header.IPv4MinLen
	}
	v.prober.Receive(local, remote, payload, size)
}

// hint is underlay.Config.Hint.
func (v *VTEP) hint(remote netip.Addr, path int, quoted []byte) {
	if v.prober != nil {
		v.prober.Hint(remote, path, quoted)
	}
}

// searchGrace is how long a search may be under way before what it has proven so far makes packets smaller. Most searches
// are over by then. Those who are told of a size that is not the last one keep to it for ten minutes (RFC 1191, section
// 6.3; RFC 8201, section 4).
const searchGrace = 300 * time.Millisecond

// followPaths is the goroutine that does what follows from what path probes find out.
func (v *VTEP) followPaths(ctx context.Context) {
	held := map[netip.Addr]pathmtu.Choice{}
	var over <-chan time.Time // nil: nothing is held
	for {
		var news map[netip.Addr]pathmtu.Choice
		select {
		case <-ctx.Done():
			return
		case <-over:
			news, held, over = held, map[netip.Addr]pathmtu.Choice{}, nil
		case <-v.findings.wake:
			news = v.findings.take()
			for name, c := range news {
				delete(held, name)
				if v.isDip(&c) {
					held[name] = c
					delete(news, name)
				}
			}
			if len(held) == 0 {
				over = nil
			} else if over == nil {
				over = time.After(searchGrace)
			}
		}
		if len(news) > 0 {
			v.applyFindings(news)
		}
	}
}

// isDip reports whether a choice does nothing but make packets smaller while more is being searched for.
func (v *VTEP) isDip(c *pathmtu.Choice) bool {
	id, ok := v.idOf(c.Peer)
	if !ok || c.Settled || c.Learned != pathmtu.LearnedProbe {
		return false
	}
	now := v.tables.VTEP(id)
	return now.Addr == c.Remote && c.Path < now.Path
}

// applyFindings makes datagrams go where they are to, no larger than is proven, and interfaces follow.
func (v *VTEP) applyFindings(news map[netip.Addr]pathmtu.Choice) {
	v.change.Lock()
	defer v.change.Unlock()
	probed := map[netip.Addr]bool{}
	for _, a := range v.partners() {
		probed[a] = true
	}
	// What was found out of one that is not to be probed any more came too late, and would stay for ever.
	maps.DeleteFunc(news, func(a netip.Addr, _ pathmtu.Choice) bool { return !probed[a] })
	maps.Copy(v.choices, news)
	var ids []fdb.VTEPID
	for name := range news {
		if id, ok := v.idOf(name); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	v.look(ids...)
	for _, c := range news {
		v.tellChoice(&c)
	}
}

// tellChoice tells the log, once, of what is unlike what the host's own devices let expect.
func (v *VTEP) tellChoice(c *pathmtu.Choice) {
	topic := pathTopic(c.Peer)
	switch {
	case !c.Settled || c.State != pathmtu.StateReachable:
	case c.Learned == pathmtu.LearnedProbe && mtu.UnderlayMTU(c.Path) < c.Underlay:
		if v.tell(topic, fmt.Sprint(c.Remote, c.Path)) {
			v.log.Warn("the path to a VTEP carries less than the device towards it; the overlay keeps to what the path carries, and nothing need be done",
				"peer", c.Peer, "address", c.Remote, "device", c.Device, "underlay_mtu", c.Underlay, "path_mtu", c.Path)
		}
	case v.told[topic] != "":
		delete(v.told, topic)
		v.log.Info("the path to a VTEP carries all that the device towards it does",
			"peer", c.Peer, "address", c.Remote, "device", c.Device, "path_mtu", c.Path)
	}
}

// tellSilent tells the log, once, of VTEPs from which frames come, but no answers to path probes.
func (v *VTEP) tellSilent() {
	v.change.Lock()
	defer v.change.Unlock()
	for name, c := range v.choices {
		topic := silenceTopic(name)
		id, ok := v.idOf(name)
		switch {
		case c.State != pathmtu.StateUnanswered:
			delete(v.told, topic)
		case ok && c.Settled && v.tables.VTEP(id).Heard() != 0 && v.tell(topic, "unanswered"):
			v.log.Info("a VTEP does not answer path probes, as those of other makes do not: the MTU of the route is taken for that of the path; if a router on the way carries less, set that MTU for the route to it",
				"peer", name, "device", c.Device, "mtu", c.Path)
		}
	}
}

// Topics of the log: what was said of each last is kept, so that it is said once.
func pathTopic(peer netip.Addr) string    { return "path to " + peer.String() }
func silenceTopic(peer netip.Addr) string { return "silence of " + peer.String() }
func deviceTopic(device string) string    { return "device " + device }
func fixedTopic(network string, peer netip.Addr) string {
	return fmt.Sprintf("fixed MTU of %s to %v", network, peer)
}

// tellDevice tells the log, once, of an underlay device that carries less than is usual.
func (v *VTEP) tellDevice(r *link.Route) {
	topic := deviceTopic(r.Device)
	switch {
	case mtu.PathMTU(r.MTU) >= fallbackPath:
		delete(v.told, topic)
	case v.tell(topic, fmt.Sprint(r.MTU)):
		v.log.Warn("the underlay carries less than the 1500 bytes that are usual; the overlay keeps to what it carries, and nothing need be done",
			"device", r.Device, "underlay_mtu", r.MTU)
	}
}

// tellStart tells the log of the path on whose account a network starts with less than the devices would carry.
func (v *VTEP) tellStart(n *network) {
	if n.cfg.MTU != 0 {
		return
	}
	for i, p := range n.peers {
		path, device := v.remotes[n.members[i]].fits, v.peers[p].UnderlayMTU
		if fits, err := v.fitting(n.members[i]); err == nil && fits == n.fwd.MTU() && path < mtu.PathMTU(device) {
			v.log.Warn("a network starts with what the path to a VTEP carries, which is less than the device towards it does; nothing need be done",
				"network", n.cfg.Name, "mtu", fits, "peer", p, "path_mtu", path, "underlay_mtu", device)
			return
		}
	}
}

// tell reports whether the log is yet to be told this of a topic, and notes that it is. v.change is held.
func (v *VTEP) tell(topic, what string) bool {
	if v.told[topic] == what {
		return false
	}
	v.told[topic] = what
	return true
}

// endpointTo returns the endpoint from which a VTEP is sent to, or nil. v.change is held.
func (v *VTEP) endpointTo(id fdb.VTEPID) *underlay.Endpoint {
	if int(id) < len(v.remotes) {
		if e := v.endpointAt(v.remotes[id].local); e != nil {
			return e
		}
	}
	return v.endpointFor(v.tables.VTEP(id).Addr)
}
