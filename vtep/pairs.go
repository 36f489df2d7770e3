package vtep

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep/fastpath"
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
	stale     atomic.Bool   // they have changed since pairs were last decided on

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
	p.stale.Store(true)
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// catchUp decides now, where changes must not wait for more of them: until then the kernel goes on as before, and a packet that
// no longer fits its path would vanish uncounted.
func (p *pairs) catchUp() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stale.Load() {
		p.decide(time.Now())
	}
}

// watchTables has changes of the tables of n noticed.
func (p *pairs) watchTables(n *network) {
	if p == nil {
		return
	}
	n.fwd.Changed, n.fwd.FDB.Changed, n.fwd.Neighbors.Changed = p.change, p.change, p.change
}

// followPairs is the goroutine that decides.
func (v *VTEP) followPairs(ctx context.Context) {
	p := v.pairs
	due := time.Now().Add(pairsEvery) // whatever else there is to do meanwhile
	for {
		var tick <-chan time.Time
		if p.any() {
			tick = time.After(time.Until(due))
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
			p.catchUp()
			continue
		case <-tick:
			due = time.Now().Add(pairsEvery)
			if p.table.Settle() {
				due = time.Now().Add(pairsSettle)
			}
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
	direct := p.wayTo(fate.VTEP)
	if direct == nil {
		return nil, ruling{}, false
	}
	way := *direct
	way.VNI = n.cfg.VNI
	return n, ruling{fate: fate, way: &way}, true
}

// wayTo returns how the kernel sends to a VTEP by itself, or nil.
func (p *pairs) wayTo(id fdb.VTEPID) *fastpath.Way {
	p.v.sendMu.RLock()
	defer p.v.sendMu.RUnlock()
	if int(id) >= len(p.v.direct) {
		return nil
	}
	return p.v.direct[id]
}

// arrives decides on packets from the underlay.
func (p *pairs) arrives(k fastpath.ArriveKey) (*network, ruling, bool) {
	stations := k.Pair()
	fate, ok := p.v.tables.Arrive(k.Network(), netip.AddrFrom4(k.Outer), stations)
	if !ok || p.wayTo(fate.VTEP) == nil { // what must not be sent past the host's policies must not come in past them
		return nil, ruling{}, false
	}
	for _, n := range p.outlets {
		if n.fwd != fate.Net {
			continue
		}
		to := n.port.Load()
		// The host itself is the only station at a TAP of its own.
		if to == nil || n.sandbox == nil && (stations.Dst != n.fwd.LocalMAC || n.down.Load()) {
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
	p.stale.Store(false)
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
