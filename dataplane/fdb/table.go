package fdb

import (
	"iter"
	"math"
	"sync/atomic"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// VTEPID names a remote VTEP: its index in the daemon's registry of them, stable for the life of the daemon.
type VTEPID uint32

// Local stands in an entry for no VTEP at all: the MAC lives behind this host's own bridge. It is no index into
// anything.
const Local VTEPID = ^VTEPID(0)

// Outcome says what Learn did.
type Outcome uint8

const (
	Refreshed Outcome = iota // known there; the time at which it was last seen is up to date
	Added                    // was not known
	Moved                    // was learned behind another VTEP
	Pinned                   // a static entry says another VTEP; nothing changed
	Full                     // not known, and as many are learned as may be; nothing changed
)

func (o Outcome) String() string {
	switch o {
	case Refreshed:
		return "refreshed"
	case Added:
		return "added"
	case Moved:
		return "moved"
	case Pinned:
		return "pinned"
	case Full:
		return "full"
	default:
		return "invalid"
	}
}

// Entry is one row of a Table.
type Entry struct {
	MAC      addr.MAC
	VTEP     VTEPID
	Static   bool
	LastSeen uint32 // seconds, as handed to Learn; 0 for a static entry
}

// Table is the forwarding database of one network: it maps a MAC to the VTEP behind which it lives. Entries
// are either static, put and removed by the operator or the control plane, or learned from received frames,
// in which case they age. All methods are safe for concurrent use; Lookup never locks, and neither does Learn
// for an entry that it only refreshes.
type Table struct {
	store   store[uint64] // MAC -> VTEPID<<32 | stamp
	seeds   seeds
	max     int64
	learned atomic.Int64 // learned entries; written under the store's mutex

	// Changed, if it is not nil, is called after every change of where a MAC lives or of whether that is static: an entry
	// was added, moved, pinned, deleted or has expired; once for all that one call changed. A refresh is no change, nor
	// is what SetStatic finds to be so already. The table shows the change by then, and its lock is not held. It may be
	// called from several goroutines at once, and from the packet path: it must not block, nor change the table. It
	// is set before the table is used.
	Changed func()
}

// A stamp is the lower half of a live value: pinned, or firstStamp plus the second in which the station was
// last seen. Stamps below stand for the store's empty and dead. Of two values of one entry with the same VTEP,
// the larger is therefore the more recent, as the store demands.
const (
	pinned     = 2
	firstStamp = 3
)

func staticValue(v VTEPID) uint64 { return uint64(v)<<32 | pinned }

func learnedValue(v VTEPID, now uint32) uint64 {
	return uint64(v)<<32 | uint64(min(now, math.MaxUint32-firstStamp)+firstStamp)
}

func isStatic(v uint64) bool   { return uint32(v) == pinned }
func vtepOf(v uint64) VTEPID   { return VTEPID(v >> 32) }
func lastSeen(v uint64) uint32 { return uint32(v) - firstStamp }

// NewTable makes an empty table that learns at most maxLearned entries, so that a station that makes up
// addresses cannot take all memory; with 0 or less it learns none. Static entries are not limited. It takes
// memory as it fills: 29 bytes an entry at most, and 2 KB when empty.
func NewTable(maxLearned int) *Table {
	t := &Table{seeds: newSeeds(), max: int64(maxLearned)}
	t.store.hash = t.seeds.hash64
	return t
}

// Lookup returns the VTEP behind which mac lives. It takes no lock and does not allocate.
func (t *Table) Lookup(mac addr.MAC) (VTEPID, bool) {
	k := mac.Uint64()
	if v := t.store.get(t.seeds.hash64(k), k); v > dead {
		return vtepOf(v), true
	}
	return 0, false
}

// LookupStatic is Lookup for static entries alone: what was learned is what somebody claimed.
func (t *Table) LookupStatic(mac addr.MAC) (VTEPID, bool) {
	k := mac.Uint64()
	if v := t.store.get(t.seeds.hash64(k), k); isStatic(v) {
		return vtepOf(v), true
	}
	return 0, false
}

// Learn notes that a frame from mac came from vtep at the second now, counted from any instant as long as it
// is always the same. The caller has made sure that mac is the address of one station. An entry that is
// refreshed costs no lock, no allocation, and one store a second; so do frames of stations that find the
// table full or are pinned elsewhere, for which nothing is stored at all.
func (t *Table) Learn(mac addr.MAC, vtep VTEPID, now uint32) Outcome {
	k := mac.Uint64()
	h := t.seeds.hash64(k)
	p := t.store.shard(h)
	want := learnedValue(vtep, now)
	for {
		a := p.Load()
		s := a.find(h, k)
		v := empty
		if s != nil {
			v = s.value.Load()
		}
		switch {
		case v <= dead:
			if t.learned.Load() >= t.max {
				return Full
			}
			return t.learnSlow(h, k, want)
		case isStatic(v) && vtepOf(v) != vtep:
			return Pinned
		case vtepOf(v) != vtep:
			return t.learnSlow(h, k, want)
		case isStatic(v) || v >= want:
			return Refreshed
		case s.value.CompareAndSwap(v, want) && p.Load() == a:
			return Refreshed
		}
		// Another goroutine changed the entry or moved it to a new array: look again.
	}
}

// Refresh notes, as Learn does, that mac was last seen at the second now, if there is an entry that says that it lives
// behind vtep, and reports whether there is one. It adds and moves nothing, so that it does no harm if it comes late:
// the frames that it is about may be older than what was learned since. It takes no lock.
func (t *Table) Refresh(mac addr.MAC, vtep VTEPID, now uint32) bool {
	k := mac.Uint64()
	h := t.seeds.hash64(k)
	p := t.store.shard(h)
	want := learnedValue(vtep, now)
	for {
		a := p.Load()
		s := a.find(h, k)
		if s == nil {
			return false
		}
		switch v := s.value.Load(); {
		case v <= dead || vtepOf(v) != vtep:
			return false
		case isStatic(v) || v >= want:
			return true
		case s.value.CompareAndSwap(v, want) && p.Load() == a:
			return true
		}
	}
}

// learnSlow is Learn for what cannot be done without the mutex.
func (t *Table) learnSlow(h, k, want uint64) Outcome {
	o := t.learnLocked(h, k, want)
	if o == Added || o == Moved {
		t.changed()
	}
	return o
}

func (t *Table) changed() {
	if t.Changed != nil {
		t.Changed()
	}
}

// learnLocked is learnSlow under the mutex. The entry is looked at anew.
func (t *Table) learnLocked(h, k, want uint64) Outcome {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	s := t.store.shard(h).Load().find(h, k)
	v := empty
	if s != nil {
		v = s.value.Load()
	}
	switch {
	case v > dead && vtepOf(v) == vtepOf(want):
		// Put here a moment ago by another goroutine. If the exchange fails, it has also been refreshed.
		if !isStatic(v) && v < want {
			s.value.CompareAndSwap(v, want)
		}
		return Refreshed
	case v > dead && isStatic(v):
		return Pinned
	case v > dead:
		t.store.put(h, k, want)
		return Moved
	case t.learned.Load() >= t.max:
		return Full
	}
	t.store.put(h, k, want)
	t.learned.Add(1)
	return Added
}

// SetStatic puts an entry that is never learned over and does not age, in place of any other entry of mac.
func (t *Table) SetStatic(mac addr.MAC, vtep VTEPID) {
	if t.pin(mac.Uint64(), staticValue(vtep)) {
		t.changed()
	}
}

// pin gives k a static value, and reports whether it had another.
func (t *Table) pin(k, want uint64) bool {
	h := t.seeds.hash64(k)
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	v := t.store.get(h, k)
	if v == want {
		return false
	}
	if v > dead && !isStatic(v) {
		t.learned.Add(-1)
	}
	t.store.put(h, k, want)
	return true
}

// Delete removes the entry of mac, static or learned, and reports whether there was one.
func (t *Table) Delete(mac addr.MAC) bool {
	was := t.remove(mac.Uint64())
	if was {
		t.changed()
	}
	return was
}

// remove takes the entry of k away, and reports whether there was one.
func (t *Table) remove(k uint64) bool {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	v := t.store.remove(t.seeds.hash64(k), k)
	if v == empty {
		return false
	}
	if !isStatic(v) {
		t.learned.Add(-1)
	}
	return true
}

// DeleteVTEP removes all learned entries behind vtep and returns how many there were. Static ones stay.
func (t *Table) DeleteVTEP(vtep VTEPID) int {
	return t.sweep(func(v uint64) bool { return vtepOf(v) == vtep && !isStatic(v) })
}

// Expire removes the learned entries that were last seen more than maxAge seconds before now, and returns how
// many there were.
func (t *Table) Expire(now, maxAge uint32) int {
	return t.sweep(func(v uint64) bool {
		return !isStatic(v) && now > lastSeen(v) && now-lastSeen(v) > maxAge
	})
}

// sweep removes the entries whose value the function condemns, all of them learned, and returns how many.
func (t *Table) sweep(condemned func(v uint64) bool) int {
	n := t.store.sweep(condemned, func(n int) { t.learned.Add(int64(-n)) })
	if n > 0 {
		t.changed()
	}
	return n
}

// Len returns the number of entries, static ones included.
func (t *Table) Len() int { return int(t.store.live.Load()) }

// All yields the entries in no particular order. Entries that are put or removed meanwhile may be missed or
// seen; each that is seen was true at some moment of the iteration, and no MAC is seen twice.
func (t *Table) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		t.store.all(func(k, v uint64) bool {
			e := Entry{MAC: addr.MACFromUint64(k), VTEP: vtepOf(v), Static: isStatic(v)}
			if !e.Static {
				e.LastSeen = lastSeen(v)
			}
			return yield(e)
		})
	}
}
