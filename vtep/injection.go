package vtep

import (
	"errors"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/vtep/fastpath"
	"github.com/overlayd/overlayd/vtep/inject"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// injection is what the VTEP has for sending superframes uncut. It is guarded by VTEP.change.
type injection struct {
	dev   *inject.Device    // nil: the feature is off
	paths []way             // indexed by VTEPID
	told  map[string]string // by device: what the log has been told of it last
}

// way is how superframes go to one VTEP.
type way struct {
	config inject.PathConfig
	path   *inject.Path  // nil: cut
	direct *fastpath.Way // how the kernel sends packets there by itself; nil: it must not
}

// openInjection finds out whether the kernel takes superframes uncut, if that is wanted and of use.
func (v *VTEP) openInjection() {
	if !v.features.on(FeatureTunnelGSO) {
		return
	}
	for _, f := range []string{FeatureTAPVNet, FeatureTAPTSO} {
		if !v.features.on(f) {
			v.features.missing(FeatureTunnelGSO, errors.New("needs "+f))
			return
		}
	}
	dev, err := inject.Open(func(err error) {
		v.features.missing(FeatureTunnelGSO, err)
		v.log.Warn("superframes are cut here from now on, and throughput will be lower", "error", err)
	})
	if err != nil {
		v.features.missing(FeatureTunnelGSO, err)
		return
	}
	v.injection = injection{dev: dev, told: map[string]string{}}
}

// closeInjection removes the device. No worker may be running.
func (v *VTEP) closeInjection() error {
	dev := v.injection.dev
	v.injection = injection{}
	if dev == nil {
		return nil
	}
	return dev.Close()
}

// lookForWays finds out how superframes go to VTEPs, and reports whether something is not as it was. v.change is
// held.
func (v *VTEP) lookForWays(ids []fdb.VTEPID) (changed bool) {
	in := &v.injection
	if in.dev == nil && v.pairs == nil {
		return false
	}
	s, err := inject.NewSurvey()
	if err != nil {
		v.log.Warn("how superframes can leave the host is not known; staying with what was", "error", err)
		return false
	}
	defer s.Close()
	for _, id := range ids {
		if n := int(id) + 1 - len(in.paths); n > 0 {
			in.paths = append(in.paths, make([]way, n)...)
		}
		next, old := v.lookForWay(s, v.endpointTo(id), v.tables.VTEP(id).Addr), &in.paths[id]
		if (next.path == nil) != (old.path == nil) || next.config != old.config || !sameWay(next.direct, old.direct) {
			*old, changed = next, true
		}
	}
	return changed
}

// lookForWay finds out how superframes go from e to the VTEP at a.
func (v *VTEP) lookForWay(s *inject.Survey, e *underlay.Endpoint, a netip.Addr) way {
	if e == nil {
		return way{}
	}
	w := way{direct: v.lookForDirect(s, e.Local, a)}
	if v.injection.dev == nil || !v.injection.dev.Usable() {
		return w
	}
	checksum := v.cfg.Underlay.Checksum != ChecksumOff || a.Is6()
	out, err := s.Outgoing(e.Local, a, checksum)
	if err != nil {
		v.tellWay(out.Device, err)
		return w
	}
	w.config = inject.PathConfig{
		Local: e.Local, Peer: a, Port: v.cfg.Underlay.Port, TTL: v.cfg.Underlay.TTL, Checksum: checksum,
		Device: out.Index, MaxPacket: out.MaxPacket,
	}
	w.path, err = v.injection.dev.NewPath(w.config)
	v.tellWay(out.Device, err)
	return w
}

// lookForDirect finds out how the kernel sends packets from local to the VTEP at a by itself; nil if it must not. A
// superframe then goes out whole or not that way at all: cut by the kernel, it would cost more than in a train of ours.
func (v *VTEP) lookForDirect(s *inject.Survey, local, a netip.Addr) *fastpath.Way {
	if v.pairs == nil || !local.Is4() || !a.Is4() {
		return nil
	}
	out, err := s.Direct(local, a)
	if err != nil {
		return nil
	}
	w := &fastpath.Way{Device: out.Index, Local: local, Peer: a, TTL: v.cfg.Underlay.TTL}
	if out.Tunnels {
		w.MaxSuper = fastpath.MaxSuper(out.MaxPacket)
	}
	return w
}

// sameWay reports whether both ways are the same but for the source ports, which belong to the endpoint.
func sameWay(a, b *fastpath.Way) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Same(b)
}

// tellWay tells the log how superframes go out by a device, if that has changed. What has no device has no route,
// and that is told elsewhere.
func (v *VTEP) tellWay(device string, err error) {
	news := "whole"
	if err != nil {
		news = err.Error()
	}
	if device == "" || v.injection.told[device] == news {
		return
	}
	v.injection.told[device] = news
	if err != nil {
		v.log.Info("superframes are cut here before they go out", "device", device, "reason", news)
		return
	}
	v.log.Info("superframes go out whole", "device", device)
}

// wayTo returns how superframes go from e to the VTEP with this number, which is at a, or nil if they are to be cut.
// v.change is held.
func (v *VTEP) wayTo(id fdb.VTEPID, e *underlay.Endpoint, a netip.Addr) *inject.Path {
	if int(id) >= len(v.injection.paths) {
		return nil
	}
	// Between a change of either address and the next look at the routes, what is known is of the old one.
	if w := &v.injection.paths[id]; e != nil && w.config.Local == e.Local && w.config.Peer == a {
		return w.path
	}
	return nil
}

// wholeLimits returns how long a superframe may be that goes to each destination uncut, as forward.Egress wants
// to know it.
func wholeLimits(dests []underlay.Destination) []int {
	var out []int
	for id := range dests {
		if p := dests[id].Whole; p != nil {
			out = append(out, make([]int, id+1-len(out))...)
			out[id] = p.MaxDatagram()
		}
	}
	return out
}

// takesWhole is what wholeLimits found, as long as the kernel takes superframes. sendMu is held.
func (v *VTEP) takesWhole() []int {
	if len(v.whole) == 0 || !v.dests[len(v.whole)-1].Whole.Device().Usable() {
		return nil
	}
	return v.whole
}
