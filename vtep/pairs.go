package vtep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep/fastpath"
	"github.com/overlayd/overlayd/vtep/underlay"
)

const (
	// pairsEvery is how often what the kernel has forwarded is counted and every pair decided on anew; besides, after every
	// change.
	pairsEvery = time.Second
	// pairsSettle is how often gates are looked at while one is closed.
	pairsSettle = 250 * time.Millisecond
	// pairsPause is how long further changes are waited for, so that a thousand of them are one.
	pairsPause = 2 * time.Millisecond
	// pairIdle is how long a pair without packets is kept.
	pairIdle = 60 * time.Second
	// nominees is how many pairs wait to be decided on. What finds no place is nominated again by its next packets.
	nominees = 256
)

// pairs is what the kernel forwards by itself: see package fastpath. Workers nominate the pairs of stations whose packets
// they see, one goroutine decides on them, by the same tables as the workers, and decides anew when these change.
type pairs struct {
	v         *VTEP
	table     *fastpath.Table
	nominated chan nominee
	changed   chan struct{} // holds one token if the tables have changed

	inlets map[int]*fastpath.Hook // programs on underlay devices, by index; guarded by VTEP.change

	mu      sync.Mutex
	outlets map[uint32]*network // those whose TAP has a program, by its number
	leave   map[fastpath.LeaveKey]*entry
	arrive  map[fastpath.ArriveKey]*entry
	freed   []fastpath.Slot  // of entries that are gone since the last count
	macs    map[addr.MAC]int // of the stations of all entries: how many entries each has
}

// nominee is a pair of stations that talk: one of the two.
type nominee struct {
	leave  fastpath.LeaveKey
	arrive fastpath.ArriveKey
	in     bool
}

// entry is one of either of the two tables.
type entry struct {
	network             *network
	stations            forward.Pair
	slot                fastpath.Slot
	ruling              ruling
	frames, bytes, lost uint64 // as far as they are counted
	used                time.Time
}

// ruling is what has been decided on a pair.
type ruling struct {
	fate   forward.Fate
	way    *fastpath.Way // of a pair whose packets leave
	target fastpath.Target
}

func (r *ruling) limit() fastpath.Limit {
	return fastpath.Limit{MaxFrame: r.fate.MaxFrame, MSS: r.fate.MSS}
}

// openPairs finds out whether the kernel can forward by itself, if that is wanted.
func (v *VTEP) openPairs() {
	if !v.features.on(FeatureFastPath) {
		return
	}
	for _, f := range []string{FeatureTAPVNet, FeatureTAPTSO, FeatureTAPUSO} {
		if !v.features.on(f) {
			v.features.missing(FeatureFastPath, errors.New("needs "+f))
			return
		}
	}
	if v.cfg.Underlay.Checksum == ChecksumOn {
		v.features.missing(FeatureFastPath, errors.New("its datagrams have no outer UDP checksum, and underlay.checksum demands one"))
		return
	}
	t, err := fastpath.Open(v.cfg.Underlay.Port)
	if err != nil {
		v.features.missing(FeatureFastPath, err)
		return
	}
	p := &pairs{
		v: v, table: t,
		nominated: make(chan nominee, nominees), changed: make(chan struct{}, 1),
		inlets:  map[int]*fastpath.Hook{},
		outlets: map[uint32]*network{},
		leave:   map[fastpath.LeaveKey]*entry{}, arrive: map[fastpath.ArriveKey]*entry{},
		macs: map[addr.MAC]int{},
	}
	v.pairs = p
	v.tables.OnChange(p.change)
}

// closePairs ends what the kernel forwards. No worker may be running, and no TAP be left.
func (v *VTEP) closePairs() error {
	p := v.pairs
	if p == nil {
		return nil
	}
	v.pairs = nil
	var errs []error
	for _, h := range p.inlets {
		errs = append(errs, h.Close())
	}
	return errors.Join(append(errs, p.table.Close())...)
}

// change says that the tables have changed. It never blocks.
func (p *pairs) change() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// watchTables has changes of the tables of n noticed.
func (p *pairs) watchTables(n *network) {
	if p == nil {
		return
	}
	n.fwd.Changed, n.fwd.FDB.Changed, n.fwd.Neighbors.Changed = p.change, p.change, p.change
}

// hookTAP attaches the programs of the TAP of n, which is open and not up. The network forwards without them, too.
func (v *VTEP) hookTAP(n *network, to *port) {
	p := v.pairs
	if p == nil {
		return
	}
	hooks, target, err := p.hooks(n, to)
	if err != nil {
		for _, h := range hooks {
			err = errors.Join(err, h.Close())
		}
		if n.sandbox != nil {
			err = errors.Join(err, n.sandbox.CloseRelay())
		}
		v.log.Warn("the kernel forwards nothing of this network by itself, so that it will be slower", "network", n.cfg.Name, "error", err)
		return
	}
	to.hooks, to.target, to.outlet = hooks, target, hooks[0].Outlet
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outlets[to.outlet] = n
}

// hooks attaches the programs of a TAP, that at the TAP itself first. After an error, it returns those that are attached.
func (p *pairs) hooks(n *network, to *port) (hooks []*fastpath.Hook, target fastpath.Target, err error) {
	add := func(h *fastpath.Hook, failed error) error {
		if failed == nil {
			hooks = append(hooks, h)
		}
		return failed
	}
	var index int
	if err := n.in(func() error { index, err = indexOf(n.cfg.Device); return err }); err != nil {
		return nil, target, err
	}
	if n.sandbox == nil {
		return hooks, fastpath.Target{Device: index}, add(p.table.AttachTAP(index, 0))
	}
	relay, err := n.sandbox.OpenRelay(n.cfg.VNI)
	if err != nil {
		return nil, target, err
	}
	err = n.in(func() error {
		if err := add(p.table.AttachTAP(index, relay.Inside)); err != nil {
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
	if n.sandbox != nil {
		errs = append(errs, n.sandbox.CloseRelay())
	}
	return errors.Join(errs...)
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
	for index := range want {
		if p.inlets[index] != nil {
			continue
		}
		h, err := p.table.AttachUnderlay(index)
		if err != nil {
			if v.tell(fmt.Sprint("fast path ", index), err.Error()) {
				v.log.Warn("what comes in by this device passes userspace, which is slower", "device", index, "error", err)
			}
			continue
		}
		p.inlets[index] = h
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

// nominations keeps a source of nominees from naming the same pair with each packet. It belongs to one goroutine.
type nominations[K comparable] struct {
	recent [64]struct {
		key K
		at  int64 // second of the packet path's clock, from 1
	}
}

// due reports whether k is to be nominated, at a second of the packet path's clock.
func (n *nominations[K]) due(k *K, place uint32, second int64) bool {
	r := &n.recent[place%uint32(len(n.recent))]
	if r.at == second+1 && r.key == *k {
		return false
	}
	r.key, r.at = *k, second+1
	return true
}

// left notes that a batch of frames from the TAP is dealt with that the kernel did not forward by itself.
func (o *outlet) left(k int) {
	p := o.w.v.pairs
	if p == nil || o.hook == 0 {
		return
	}
	second := o.w.v.now() / 1e9
	for i := range o.w.frames[:k] {
		key, hash, ok := p.table.Leaving(o.hook, o.w.frames[i].Bytes())
		if !ok {
			continue
		}
		p.table.LeftDone(hash)
		if o.named.due(&key, hash, second) {
			p.nominate(nominee{leave: key})
		}
	}
}

// arrived is left for a batch of datagrams.
func (in *inlet) arrived(k int) {
	p := in.w.v.pairs
	if p == nil || !in.local.Is4() {
		return
	}
	second := in.w.v.now() / 1e9
	for i := range in.w.buffers[:k] {
		r := &in.w.buffers[i]
		place := p.table.ArrivedDone(r.From, r.Port, len(r.Data))
		if key, ok := p.table.Arriving(r.From, in.local, r.Data); ok && in.named.due(&key, place, second) {
			p.nominate(nominee{arrive: key, in: true})
		}
	}
}

func (p *pairs) nominate(n nominee) {
	select {
	case p.nominated <- n:
	default:
	}
}

// followPairs is the goroutine that decides.
func (v *VTEP) followPairs(ctx context.Context) {
	p := v.pairs
	closed := false
	for {
		var tick <-chan time.Time
		switch {
		case closed:
			tick = time.After(pairsSettle)
		case p.any():
			tick = time.After(pairsEvery)
		}
		select {
		case <-ctx.Done():
			return
		case n := <-p.nominated:
			p.admit(&n, time.Now())
			continue
		case <-p.changed:
			if !p.any() {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pairsPause):
			}
		case <-tick:
			closed = p.table.Settle()
		}
		p.sweep(time.Now())
	}
}

func (p *pairs) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.leave)+len(p.arrive)+len(p.freed) > 0
}

// admit has the kernel forward the packets of a nominee, if that may be. What is there already is decided on anew by sweep.
func (p *pairs) admit(n *nominee, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.in {
		if p.arrive[n.arrive] == nil {
			admit(p, p.arrive, n.arrive, p.arrives, p.putArrive, now)
		}
		return
	}
	if p.leave[n.leave] == nil {
		admit(p, p.leave, n.leave, p.leaves, p.putLeave, now)
	}
}

// admit is the part of pairs.admit that both directions share.
func admit[K comparable](p *pairs, into map[K]*entry, k K, decide func(K) (*network, ruling, bool), put func(K, *entry) error, now time.Time) {
	n, r, ok := decide(k)
	if !ok {
		return
	}
	slot, err := p.table.NewSlot()
	if err != nil {
		return // there are as many as may be; others will go
	}
	e := &entry{network: n, slot: slot, ruling: r, used: now}
	if err := put(k, e); err != nil {
		p.table.FreeSlot(slot)
		if !errors.Is(err, fastpath.ErrFull) {
			p.v.log.Debug("the kernel does not take a pair of stations", "network", n.cfg.Name, "error", err)
		}
		return
	}
	into[k] = e
	p.macs[e.stations.Src]++
	p.macs[e.stations.Dst]++
}

// moved leaves to userspace what has to do with a station that was heard elsewhere than before. When it returns, no packet to
// it goes where it was.
func (p *pairs) moved(s forward.Station) {
	if p == nil {
		return
	}
	p.mu.Lock()
	if p.macs[s.MAC] > 0 {
		p.decide(time.Now())
	}
	p.mu.Unlock()
}

func (p *pairs) putLeave(k fastpath.LeaveKey, e *entry) error {
	e.stations = k.Pair()
	return p.table.SetLeave(k, e.slot, e.ruling.way, e.ruling.limit())
}

func (p *pairs) putArrive(k fastpath.ArriveKey, e *entry) error {
	e.stations = k.Pair()
	return p.table.SetArrive(k, e.slot, e.ruling.target, e.ruling.limit())
}

// leaves decides on packets from a TAP.
func (p *pairs) leaves(k fastpath.LeaveKey) (*network, ruling, bool) {
	n := p.outlets[k.Outlet]
	if n == nil {
		return nil, ruling{}, false
	}
	fate, ok := p.v.tables.Leave(n.fwd, k.Pair())
	if !ok {
		return nil, ruling{}, false
	}
	p.v.sendMu.RLock()
	defer p.v.sendMu.RUnlock()
	if int(fate.VTEP) >= len(p.v.direct) || p.v.direct[fate.VTEP] == nil {
		return nil, ruling{}, false
	}
	way := *p.v.direct[fate.VTEP]
	way.VNI = n.cfg.VNI
	return n, ruling{fate: fate, way: &way}, true
}

// arrives decides on packets from the underlay.
func (p *pairs) arrives(k fastpath.ArriveKey) (*network, ruling, bool) {
	stations := k.Pair()
	fate, ok := p.v.tables.Arrive(k.Network(), netip.AddrFrom4(k.Outer), stations)
	if !ok {
		return nil, ruling{}, false
	}
	for _, n := range p.outlets {
		if n.fwd != fate.Net {
			continue
		}
		to := n.port.Load()
		// The host itself is the only station at a TAP of its own.
		if to == nil || n.sandbox == nil && stations.Dst != n.fwd.LocalMAC {
			break
		}
		return n, ruling{fate: fate, target: to.target}, true
	}
	return nil, ruling{}, false
}

// sweep counts what was forwarded, decides on every pair anew, and lets those go that are not to be forwarded any more or
// have not been heard for long.
func (p *pairs) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.freed {
		p.table.FreeSlot(s)
	}
	p.freed = p.freed[:0]
	p.decide(now)
}

// decide is sweep without giving back counters. The mutex is held.
func (p *pairs) decide(now time.Time) {
	sweep(p, p.leave, p.leaves, p.putLeave, p.table.UnsetLeave, p.countLeft, now)
	sweep(p, p.arrive, p.arrives, p.putArrive, p.table.UnsetArrive, p.countArrived, now)
}

// sweep is the part of pairs.sweep that both directions share.
func sweep[K comparable](p *pairs, all map[K]*entry, decide func(K) (*network, ruling, bool),
	put func(K, *entry) error, unset func(K) error, count func(*entry, time.Time), now time.Time) {
	for k, e := range all {
		count(e, now)
		n, r, ok := decide(k)
		if ok && n == e.network && now.Sub(e.used) < pairIdle {
			if r.same(&e.ruling) {
				continue
			}
			old := e.ruling
			if e.ruling = r; put(k, e) == nil {
				continue
			}
			e.ruling = old
		}
		if err := unset(k); err != nil {
			p.v.log.Error("the kernel goes on forwarding packets of a pair of stations that it should not; restart overlayd", "network", e.network.cfg.Name, "error", err)
			continue
		}
		// A program that found it a moment ago may still count.
		count(e, now)
		delete(all, k)
		for _, mac := range []addr.MAC{e.stations.Src, e.stations.Dst} {
			if p.macs[mac]--; p.macs[mac] == 0 {
				delete(p.macs, mac)
			}
		}
		p.freed = append(p.freed, e.slot)
	}
}

// same reports whether both come to the same for the kernel.
func (r *ruling) same(o *ruling) bool {
	if r.fate != o.fate || r.target != o.target || (r.way == nil) != (o.way == nil) {
		return false
	}
	return r.way == nil || r.way.Same(o.way) && slices.Equal(r.way.Sources, o.way.Sources)
}

// count brings all counters up to date, before somebody looks at them.
func (p *pairs) count() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, e := range p.leave {
		p.countLeft(e, now)
	}
	for _, e := range p.arrive {
		p.countArrived(e, now)
	}
}

// news returns what an entry has counted since it was last asked.
func (p *pairs) news(e *entry, now time.Time) (frames, bytes, lost int) {
	f, b, l := p.table.Count(e.slot)
	frames, bytes, lost = int(f-e.frames), int(b-e.bytes), int(l-e.lost)
	e.frames, e.bytes, e.lost = f, b, l
	if frames > 0 {
		e.used = now
	}
	return frames, bytes, lost
}

func (p *pairs) countLeft(e *entry, now time.Time) {
	frames, bytes, lost := p.news(e, now)
	if frames > 0 {
		p.v.tables.CountLeft(&e.ruling.fate, frames, bytes)
		e.network.fastOut.Add(frames, bytes)
	}
	if c := e.network.fwd.Counters; lost > 0 {
		c.TAPIn.Add(lost, 0)
		c.Drops.Add(forward.SendFailed, lost, p.v.now())
	}
}

func (p *pairs) countArrived(e *entry, now time.Time) {
	frames, bytes, lost := p.news(e, now)
	if frames > 0 {
		p.v.tables.CountArrived(&e.ruling.fate, e.stations, frames, bytes, p.v.now())
		p.v.received.Add(uint64(frames))
		e.network.fastIn.Add(frames, bytes)
	}
	if c := e.network.fwd.Counters; lost > 0 {
		c.UnderlayIn.Add(lost, 0)
		c.Drops.Add(forward.TAPRejected, lost, p.v.now())
	}
}

// forwarded returns how many pairs of n the kernel forwards.
func (p *pairs) forwarded(n *network) (count int) {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := range maps.Values(p.leave) {
		if e.network == n {
			count++
		}
	}
	for e := range maps.Values(p.arrive) {
		if e.network == n {
			count++
		}
	}
	return count
}

// indexOf returns the index of an interface in the namespace of the calling thread.
func indexOf(device string) (int, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return 0, fmt.Errorf("looking up %s: %w", device, err)
	}
	return i.Index, nil
}
