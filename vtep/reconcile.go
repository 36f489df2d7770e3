package vtep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/vtep/link"
)

// Everything is compared with what was stated every reconcileEvery. Where there is so much that this takes long, it is
// done less often, so that it costs a twentieth of a core, but never less often than every reconcileMost.
const (
	reconcileEvery = 2 * time.Second
	reconcileMost  = 4 * time.Second
	reconcileShare = 20
)

// reconcile is the goroutine that calls Reconcile.
func (v *VTEP) reconcile(ctx context.Context) {
	wait := reconcileEvery
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		begin := time.Now()
		_, err := v.Reconcile()
		v.tellSilent()
		wait = min(max(reconcileEvery, reconcileShare*time.Since(begin)), reconcileMost)
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now != last && err != nil {
			v.log.Warn("something is not as it was stated, and could not be put right; trying on", "error", err)
		}
		last = now
	}
}

// Reconcile compares the tables of every network with what was stated, and what there is in its sandbox: the TAP, the
// bridge, the containers' interfaces as far as they are there. It puts right what is otherwise, and returns how many
// things that were. Run calls it every two seconds, or every four where there is much to compare.
func (v *VTEP) Reconcile() (healed int, err error) {
	var errs []error
	for _, n := range v.all() {
		k := n.stations.heal(n.fwd)
		settings, err := v.healKernel(n)
		if err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", n.cfg.Name, err))
		}
		if j := k + len(settings); j > 0 {
			n.healed.Add(uint64(j))
			healed += j
			v.log.Warn("what was otherwise than stated has been put right", "network", n.cfg.Name, "entries", k, "settings", strings.Join(settings, ", "))
		}
	}
	return healed + v.healDestinations(), errors.Join(errs...)
}

// healKernel is Reconcile for what a network has in the kernel. It returns what it put right, a few words each.
func (v *VTEP) healKernel(n *network) (healed []string, err error) {
	v.change.Lock()
	defer v.change.Unlock()
	if n.sandbox == nil || !slices.Contains(v.networks, n) {
		return nil, nil
	}
	n.fwd.SetMembers(n.members) // costs nothing, and cannot be looked at
	if n.lost.Load() {
		if err := v.replacePort(n); err != nil {
			return nil, err
		}
		healed = append(healed, "the TAP")
	}
	renamed, err := n.sandbox.Rename()
	if err != nil {
		return healed, err
	}
	if renamed {
		healed = append(healed, "name of the sandbox")
	}
	if remade, err := v.healRelay(n); err != nil {
		return healed, err
	} else if remade {
		healed = append(healed, "relay to the sandbox")
	}
	if v.guard(n) {
		healed = append(healed, "rules at the ports")
	}
	v.countGuarded(n)
	repaired, err := n.sandbox.Repair(v.layout(n))
	healed = append(healed, repaired...)
	var missing link.Missing
	if errors.As(err, &missing) {
		err = nil
		if slices.Contains(missing, n.cfg.Device) {
			n.lost.Store(true) // the worker has not come to it
		}
	}
	for id, a := range n.attached {
		switch gone := slices.Contains(missing, link.HostEnd(id)); {
		case gone && a.problem != interfaceGone:
			v.note(n, a, interfaceGone)
		case a.stale:
			v.refit(n, a)
		}
	}
	return healed, err
}

const interfaceGone = "the container's interface is gone, or the container: attach it again, or detach it"

// note replaces what is known against an attachment.
func (v *VTEP) note(n *network, a *attachment, problem string) {
	next := *a
	next.problem = problem
	n.keep(v, &next)
}

// replacePort makes a new TAP where the old one was deleted. v.change is held.
func (v *VTEP) replacePort(n *network) error {
	old := n.port.Swap(nil) // what comes meanwhile counts as dropped, because the TAP is down
	err := v.onWorkers(func(w *worker) error { return w.unplug(n) })
	if old != nil {
		err = errors.Join(err, v.unhookTAP(n, old), old.Close())
	}
	if err != nil {
		return err
	}
	if err := v.openPort(n); err != nil {
		return err
	}
	n.lost.Store(false)
	if err := v.up(n, ""); err != nil {
		return err
	}
	return v.onWorkers(func(w *worker) error { return w.serve(n) })
}

// resize brings the network's MTU to everything in its sandbox and to the containers. v.change is held.
func (v *VTEP) resize(n *network) {
	if err := v.up(n, ""); err != nil {
		v.log.Warn("the sandbox could not follow the MTU; trying on", "network", n.cfg.Name, "error", err)
	}
	for _, a := range n.attached {
		v.refit(n, a)
	}
}

// refit brings a container's end of an attachment to what it ought to be, if the container is still where it was.
func (v *VTEP) refit(n *network, a *attachment) {
	next := *a
	next.stale, next.problem = false, ""
	got, err := func() (link.Connected, error) {
		ns, err := link.OpenNamespace(a.NetNS)
		if err != nil {
			return link.Connected{}, err
		}
		defer ns.Close()
		if ns.ID() != a.ns {
			return link.Connected{}, fmt.Errorf("%s leads to another container now", a.NetNS)
		}
		return n.sandbox.Connect(ns, v.veth(n, a), false)
	}()
	switch {
	case errors.Is(err, link.ErrNotConnected):
		next.problem = interfaceGone
	case err != nil:
		next.stale, next.problem = true, "the container's interface could not be brought up to date: "+err.Error()
	default:
		next.iface, next.mtu, next.problem, next.lowered = got.Interface, n.fwd.MTU(), got.Note, got.Lowered
	}
	n.keep(v, &next)
}

// healDestinations looks whether every VTEP can be sent to.
func (v *VTEP) healDestinations() int {
	v.change.Lock()
	defer v.change.Unlock()
	for id := fdb.VTEPID(0); int(id) < v.tables.VTEPs(); id++ {
		if int(id) >= len(v.dests) || v.dests[id].Endpoint != v.endpointTo(id) {
			v.publishDestinations()
			v.log.Warn("VTEPs were sent to from an address that is not the right one any more, and are not now")
			return 1
		}
	}
	return 0
}
