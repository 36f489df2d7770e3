package vtep

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/vtep/fastpath"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// hookTAP attaches the programs of the TAP of n, which is open and not up. The network forwards without them, too.
func (v *VTEP) hookTAP(n *network, to *port) {
	p := v.pairs
	if p == nil {
		return
	}
	to.outlet = p.table.NewOutlet()
	v.attachTAP(n, to, time.Now())
}

// attachTAP is hookTAP for a TAP that has a number. It reports whether the programs are attached; if not, reconcile tries again.
func (v *VTEP) attachTAP(n *network, to *port, now time.Time) bool {
	p, topic := v.pairs, hookTopic(n)
	hooks, target, err := p.hooks(n, to.outlet)
	if err != nil {
		for _, h := range hooks {
			err = errors.Join(err, h.Close())
		}
		if n.sandbox != nil {
			err = errors.Join(err, n.sandbox.CloseRelay())
		}
		if v.neverHooked(err) {
			return false
		}
		to.again.failed(now)
		if v.tell(topic, "without") { // whatever the reason is the next time
			v.log.Warn("the kernel forwards nothing of this network by itself, so that it is slower; trying on", "network", n.cfg.Name, "error", err)
		}
		return false
	}
	to.again = backoff{}
	if v.told[topic] != "" {
		delete(v.told, topic)
		v.log.Info("the kernel forwards packets of this network by itself now", "network", n.cfg.Name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	to.hooks, to.target = hooks, target
	p.outlets[to.outlet] = n
	return true
}

// neverHooked reports whether err means that programs can be attached nowhere, and then has the feature be missing: tcx came
// with Linux 6.6, and without it the programs load all the same.
func (v *VTEP) neverHooked(err error) bool {
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return false
	}
	v.features.missing(FeatureFastPath, err)
	if v.tell("fast path", "without") {
		v.log.Warn("the kernel forwards nothing by itself, so that it is slower", "error", err)
	}
	return true
}

// toBeHooked reports whether it is time to attach the programs that could not be attached.
func (v *VTEP) toBeHooked(n *network, now time.Time) bool {
	to := n.port.Load()
	return v.pairs != nil && to != nil && to.again.due(now)
}

func hookTopic(n *network) string { return "fast path of " + n.cfg.Name }

// hooks attaches the programs of a TAP. After an error, it returns those that are attached.
func (p *pairs) hooks(n *network, outlet uint32) (hooks []*fastpath.Hook, target fastpath.Target, err error) {
	add := func(h *fastpath.Hook, failed error) error {
		if failed == nil {
			hooks = append(hooks, h)
		}
		return failed
	}
	var index int
	if err = n.in(func() error { index, err = indexOf(n.cfg.Device); return err }); err != nil {
		return nil, target, err
	}
	if n.sandbox == nil {
		err = add(p.table.AttachTAP(outlet, index, 0))
		return hooks, fastpath.Target{Device: index}, err
	}
	relay, err := n.sandbox.OpenRelay(n.cfg.VNI)
	if err != nil {
		return nil, target, err
	}
	err = n.in(func() error {
		if err := add(p.table.AttachTAP(outlet, index, relay.Inside)); err != nil {
			return err
		}
		return add(fastpath.AttachDownlink(relay.Inside, index))
	})
	if err == nil {
		err = add(fastpath.AttachUplink(relay.Outside))
	}
	return hooks, fastpath.Target{Device: relay.Outside, Relay: true}, err
}

// unhookTAP undoes hookTAP.
func (v *VTEP) unhookTAP(n *network, from *port) error {
	p := v.pairs
	if p == nil || len(from.hooks) == 0 {
		return nil
	}
	p.mu.Lock()
	delete(p.outlets, from.outlet)
	p.mu.Unlock()
	p.sweep(time.Now())
	var errs []error
	for _, h := range from.hooks {
		errs = append(errs, h.Close())
	}
	from.hooks = nil
	if n.sandbox != nil {
		errs = append(errs, n.sandbox.CloseRelay())
	}
	return errors.Join(errs...)
}

// healRelay makes the relay of a sandbox anew if somebody has removed it or set it down, and reports whether it did.
// v.change is held.
func (v *VTEP) healRelay(n *network, now time.Time) (bool, error) {
	to := n.port.Load()
	if v.pairs == nil || to == nil || len(to.hooks) == 0 {
		return false, nil
	}
	if link.Connects(to.target.Device) {
		return false, nil
	}
	err := v.unhookTAP(n, to)
	return v.attachTAP(n, to, now), err
}

// hookUnderlay attaches programs to the devices by which VTEPs are reached, and states our addresses. v.change is held.
func (v *VTEP) hookUnderlay() {
	p := v.pairs
	if p == nil {
		return
	}
	var locals []netip.Addr
	want := map[int]bool{}
	for _, e := range v.endpoints {
		locals = append(locals, e.Local)
	}
	for _, w := range v.direct {
		if w != nil {
			want[w.Device] = true
		}
	}
	if err := p.table.SetLocals(locals); err != nil {
		v.log.Warn("the kernel may unwrap nothing by itself for a new underlay address", "error", err)
	}
	var failed bool
	for index := range want {
		if old := p.inlets[index]; old != nil {
			if old.Attached() {
				continue
			}
			delete(p.inlets, index)
			if err := old.Close(); err != nil {
				v.log.Warn("letting go of a BPF program whose device is gone", "device", index, "error", err)
			}
		}
		topic := fmt.Sprint("fast path by device ", index)
		h, err := p.table.AttachUnderlay(index)
		if err != nil {
			if v.neverHooked(err) {
				continue
			}
			failed = true
			if v.tell(topic, "without") {
				v.log.Warn("what comes in by this device passes userspace, which is slower; trying on", "device", index, "error", err)
			}
			continue
		}
		if v.told[topic] != "" {
			delete(v.told, topic)
			v.log.Info("the kernel takes what comes in by this device by itself now", "device", index)
		}
		p.inlets[index] = h
	}
	if failed {
		v.inletsAgain.failed(time.Now())
	} else {
		v.inletsAgain = backoff{}
	}
	for index, h := range p.inlets {
		if !want[index] {
			delete(p.inlets, index)
			if err := h.Close(); err != nil {
				v.log.Warn("detaching a BPF program from a device that leads to no peer", "device", index, "error", err)
			}
		}
	}
	p.change()
}

// rehookUnderlay tries again to attach the programs that could not be attached to underlay devices, if it is time.
func (v *VTEP) rehookUnderlay(now time.Time) {
	v.change.Lock()
	defer v.change.Unlock()
	if v.inletsAgain.due(now) {
		v.hookUnderlay()
	}
}

// directWays returns how packets leave that the kernel sends to each VTEP, nil for those to which it may not. It is
// indexed by VTEPID. v.change is held.
func (v *VTEP) directWays(dests []underlay.Destination) []*fastpath.Way {
	if v.pairs == nil {
		return nil
	}
	out := make([]*fastpath.Way, len(dests))
	for id := range dests {
		e := dests[id].Endpoint
		if e == nil || id >= len(v.injection.paths) {
			continue
		}
		to := v.tables.VTEP(fdb.VTEPID(id)).Addr
		if w := v.injection.paths[id].direct; w != nil && w.Local == e.Local && w.Peer == to {
			next := *w
			next.Sources = e.Ports()
			out[id] = &next
		}
	}
	return out
}

// indexOf returns the index of an interface in the namespace of the calling thread.
func indexOf(device string) (int, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return 0, fmt.Errorf("looking up %s: %w", device, err)
	}
	return i.Index, nil
}
