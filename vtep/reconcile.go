package vtep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/vtep/link"
)

// The tables are compared with what was stated every reconcileEvery. Where there is so much that this takes long, it is done
// less often, so that it costs a twentieth of a core, but never less often than every reconcileMost. Whoever has no networks
// does nothing.
const (
	reconcileEvery = 2 * time.Second
	reconcileMost  = 4 * time.Second
	reconcileShare = 20
	// reconcilePause is how long further changes are waited for, so that what belongs together is one.
	reconcilePause = 50 * time.Millisecond
)

// To look into a sandbox costs some milliseconds and wakes several threads. So that is done when the kernel says that
// something has changed there: after reconcilePause, or when the tables are due if there was a look just before. Whether it has
// its name is looked at then, too. All else waits for lookEvery, as a safety net; longer where that would cost more than a
// 500th of a core, but no longer than lookMost.
const (
	lookEvery = 30 * time.Second
	lookMost  = 5 * time.Minute
	lookShare = 500
)

// attention is when a network is to be looked at in the kernel. But for stirred, it is guarded by VTEP.change.
type attention struct {
	stirred  atomic.Bool    // something has changed there
	watching *link.Watching // nil: nobody would tell
	named    bool           // the sandbox had its name at the last look
	due      time.Time      // when it is looked at, whatever has been told
	again    backoff        // when it is, because something could not be put right
	trouble  string         // what that was, as the log has been told; written with VTEP.mu held as well
}

// reconcile is the goroutine that keeps everything as it was stated.
func (v *VTEP) reconcile(ctx context.Context) {
	defer v.unwatch()
	wait, looked := time.Duration(0), false
	for {
		var tick <-chan time.Time
		if len(v.all()) > 0 {
			tick = time.After(wait)
		}
		stirred := v.stirred
		if looked && tick != nil {
			stirred = nil // it waits for the tick, so that whoever goes on changing things does not keep us busy
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		case <-stirred:
			select {
			case <-ctx.Done():
				return
			case <-time.After(reconcilePause):
			}
		}
		begin := time.Now()
		v.watchSandboxes()
		// What cannot be put right is told for each network.
		_, looked, _ = v.turn(begin, false)
		v.tellSilent()
		wait = untilNext(begin, time.Now())
	}
}

// untilNext returns how long to wait after a turn. Usually it ends when the clock shows a whole multiple of reconcileEvery:
// then other parts of this process do what they do again and again, and it wakes once for all.
func untilNext(begin, now time.Time) time.Duration {
	if least := reconcileShare * now.Sub(begin); least > reconcileEvery {
		return min(least, reconcileMost)
	}
	return reconcileEvery - now.Sub(now.Truncate(reconcileEvery))
}

// stir has a network looked at soon. It never blocks.
func (v *VTEP) stir(n *network) {
	n.attention.stirred.Store(true)
	select {
	case v.stirred <- struct{}{}:
	default:
	}
}

// watchSandboxes begins to watch the sandboxes that are not watched yet. What has changed there before is found by the
// look that is due then.
func (v *VTEP) watchSandboxes() {
	v.change.Lock()
	defer v.change.Unlock()
	for _, n := range v.networks {
		a := &n.attention
		if n.sandbox == nil || a.watching != nil {
			continue
		}
		var err error
		topic := watchTopic(n)
		if a.watching, err = n.sandbox.Watch(v.log, func() { v.stir(n) }); err == nil {
			delete(v.told, topic)
			a.due = time.Time{}
		} else if v.tell(topic, err.Error()) {
			v.log.Warn("the kernel does not tell of changes in a sandbox, so that it is looked into all the time", "network", n.cfg.Name, "error", err)
		}
	}
}

// unwatch ends watching the sandboxes.
func (v *VTEP) unwatch() {
	v.change.Lock()
	defer v.change.Unlock()
	for _, n := range v.networks {
		n.unwatch()
	}
}

// unwatch ends watching the sandbox. v.change is held, and the watch does not take it.
func (n *network) unwatch() {
	if w := n.attention.watching; w != nil {
		n.attention.watching = nil
		w.Close()
	}
}

func watchTopic(n *network) string { return "watch of " + n.cfg.Name }

// toBeLooked reports whether a network is to be looked at in the kernel. v.change is held.
func (v *VTEP) toBeLooked(n *network, now time.Time) bool {
	a := &n.attention
	switch {
	case v.toBeHooked(n, now):
		return true
	case n.sandbox == nil:
		return false
	}
	return a.stirred.Load() || a.watching == nil || n.lost.Load() || !now.Before(a.due) || a.again.due(now) || a.named && !n.sandbox.Named()
}

// Reconcile compares the tables of every network with what was stated, and what there is in its sandbox: the TAP, the
// bridge, the containers' interfaces as far as they are there. It puts right what is otherwise, and returns how many
// things that were. While Run runs this need not be called: it compares the tables every two seconds, or every four where
// there is much to compare, and looks into a sandbox when something has changed there.
func (v *VTEP) Reconcile() (healed int, err error) {
	healed, _, err = v.turn(time.Now(), true)
	return healed, err
}

// turn is Reconcile that looks into those sandboxes only of which it is time, unless all is set. It reports whether it looked
// into any.
func (v *VTEP) turn(now time.Time, all bool) (healed int, looked bool, err error) {
	var errs []error
	for _, n := range v.all() {
		k := n.stations.heal(n.fwd)
		settings, did, err := v.lookInto(n, now, all)
		looked = looked || did
		if err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", n.cfg.Name, err))
		}
		if j := k + len(settings); j > 0 {
			n.healed.Add(uint64(j))
			healed += j
			v.log.Warn("what was otherwise than stated has been put right", "network", n.cfg.Name, "entries", k, "settings", strings.Join(settings, ", "))
		}
	}
	v.rehookUnderlay(now)
	return healed + v.healDestinations(), looked, errors.Join(errs...)
}

// lookInto has what a network has in the kernel healed if it is time, or in any case, and says when it will be the next time.
func (v *VTEP) lookInto(n *network, now time.Time, anyway bool) (healed []string, looked bool, err error) {
	v.change.Lock()
	defer v.change.Unlock()
	if !slices.Contains(v.networks, n) || !anyway && !v.toBeLooked(n, now) {
		return nil, false, nil
	}
	begin, a := time.Now(), &n.attention
	a.stirred.Store(false) // what changes from here on is for the next look
	healed, err = v.healKernel(n, now)
	if n.sandbox == nil {
		return healed, true, err
	}
	a.named = n.sandbox.Named()
	share := lookShare * time.Since(begin) * time.Duration(len(v.networks)) // the others take as long
	a.due = now.Add(min(max(lookEvery, share), lookMost))
	stale := false
	for _, at := range n.attached {
		stale = stale || at.stale
	}
	if err != nil || stale {
		a.again.failed(now)
	} else {
		a.again = backoff{}
	}
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	if err != nil && trouble != a.trouble {
		v.log.Warn("something is not as it was stated, and could not be put right; trying on", "network", n.cfg.Name, "error", err)
	}
	v.mu.Lock()
	a.trouble = trouble
	v.mu.Unlock()
	return healed, true, err
}

// backoff says when something that has failed is tried again: after reconcileEvery, then after twice as long each time, up
// to lookEvery. The zero backoff is of something that has not failed.
type backoff struct {
	at   time.Time
	wait time.Duration
}

func (b *backoff) failed(now time.Time) {
	b.wait = min(max(2*b.wait, reconcileEvery), lookEvery)
	b.at = now.Add(b.wait)
}

func (b *backoff) due(now time.Time) bool { return b.wait > 0 && !now.Before(b.at) }

// healKernel puts right what a network has in the kernel. It returns what it put right, a few words each. v.change is held.
func (v *VTEP) healKernel(n *network, now time.Time) (healed []string, err error) {
	if n.sandbox == nil {
		if v.toBeHooked(n, now) {
			v.attachTAP(n, n.port.Load(), now)
		}
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
	if v.toBeHooked(n, now) {
		v.attachTAP(n, n.port.Load(), now)
	} else if remade, err := v.healRelay(n, now); err != nil {
		return healed, err
	} else if remade {
		healed = append(healed, "relay to the sandbox")
	}
	changed, guardErr := v.guard(n)
	if changed {
		healed = append(healed, "rules at the ports")
	}
	v.countGuarded(n)
	repaired, err := n.sandbox.Repair(v.layout(n))
	healed = append(healed, repaired...)
	var missing link.Missing
	if errors.As(err, &missing) {
		err = nil
		if slices.Contains(missing, n.cfg.Device) {
			n.lost.Store(true) // the worker has not come to it; the next turn makes it anew
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
	return healed, errors.Join(err, guardErr)
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
	err = v.up(n, "")
	if err == nil {
		err = v.onWorkers(func(w *worker) error { return w.serve(n) })
	}
	if err != nil {
		n.lost.Store(true) // nobody reads the new one
	}
	return err
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
