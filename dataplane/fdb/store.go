package fdb

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// Values with a meaning in every store. All others are live and belong to the table that owns the store.
const (
	empty uint64 = 0 // no key was ever put here; the end of a probe
	dead  uint64 = 1 // the key was removed
)

const (
	shardBits = 8
	shards    = 1 << shardBits
	minSlots  = 8
)

// slot is one place of an array. The key is written once, before the value first becomes something else than
// empty, and never again: whoever has seen a value other than empty may read it without further ado.
type slot[K comparable] struct {
	value atomic.Uint64
	key   K
}

// array is an open-addressing table with linear probing. At least a quarter of its slots is empty, so that
// every probe ends.
type array[K comparable] struct {
	slots []slot[K]

	// For writers only, under the store's mutex.
	used int // slots that have a key
	live int // those of them whose value is not dead
}

// store maps keys to 64-bit values as doc.go says.
//
// A live value may be replaced without the mutex, by compare-and-swap, only by a numerically larger one, and
// whoever does so has to start anew if the shard's array is no longer the same afterwards. With that, no such
// replacement is lost while an array is copied: see rebuild.
type store[K comparable] struct {
	arrays [shards]atomic.Pointer[array[K]] // nil = no entry
	hash   func(K) uint64                   // for rebuild; hot paths hash by themselves and hand the hash in
	live   atomic.Int64                     // entries in the whole store
	mu     sync.Mutex                       // held by writers
}

// seeds key the hash.
type seeds struct{ a, b uint64 }

func newSeeds() seeds { return seeds{rand.Uint64(), rand.Uint64()} }

// hash64 and hash128 mix every bit of the key into every bit of the hash, of which the highest choose the
// shard and the lower 32 the slot.
func (s seeds) hash64(k uint64) uint64 { return mix(mix(k^s.a, s.b|1), 0x9e3779b97f4a7c15) }

func (s seeds) hash128(k [2]uint64) uint64 {
	return mix(mix(k[0]^s.a, s.b|1)^k[1], s.a|1)
}

func mix(x, y uint64) uint64 {
	hi, lo := bits.Mul64(x, y)
	return hi ^ lo
}

// shard returns the place where the array of the keys with hash h is published.
func (s *store[K]) shard(h uint64) *atomic.Pointer[array[K]] {
	return &s.arrays[h>>(64-shardBits)]
}

// start is the index at which the probe for hash h begins: the lower 32 bits scaled to the number of slots,
// which thereby need not be a power of two.
func (a *array[K]) start(h uint64) int {
	return int(uint64(uint32(h)) * uint64(len(a.slots)) >> 32)
}

// find returns the slot of k, be it live or dead, or nil. The array may be nil.
func (a *array[K]) find(h uint64, k K) *slot[K] {
	if a == nil {
		return nil
	}
	slots := a.slots
	for i := a.start(h); ; {
		s := &slots[i]
		if s.value.Load() == empty {
			return nil
		}
		if s.key == k {
			return s
		}
		if i++; i == len(slots) {
			i = 0
		}
	}
}

// get returns the value of k, or empty or dead if there is none.
func (s *store[K]) get(h uint64, k K) uint64 {
	if p := s.shard(h).Load().find(h, k); p != nil {
		return p.value.Load()
	}
	return empty
}

// put gives k, which may be present, dead or absent, the live value v. The mutex is held.
func (s *store[K]) put(h uint64, k K, v uint64) {
	p := s.shard(h)
	a := p.Load()
	if found := a.find(h, k); found != nil {
		if found.value.Load() == dead {
			a.live++
			s.live.Add(1)
		}
		found.value.Store(v)
		return
	}
	if a == nil || (a.used+1)*4 > len(a.slots)*3 {
		a = s.rebuild(p)
	}
	a.insert(h, k, v)
	s.live.Add(1)
}

// insert adds a key that has no slot yet. There is room.
func (a *array[K]) insert(h uint64, k K, v uint64) *slot[K] {
	i := a.start(h)
	for a.slots[i].value.Load() != empty {
		if i++; i == len(a.slots) {
			i = 0
		}
	}
	a.slots[i].key = k
	a.slots[i].value.Store(v) // publishes the key
	a.used++
	a.live++
	return &a.slots[i]
}

// remove marks the entry of k as dead and returns the value that it had, or empty if there was none. The
// mutex is held.
func (s *store[K]) remove(h uint64, k K) uint64 {
	p := s.shard(h)
	a := p.Load()
	found := a.find(h, k)
	if found == nil {
		return empty
	}
	v := found.value.Swap(dead)
	if v == dead {
		return empty
	}
	a.live--
	s.live.Add(-1)
	s.shrink(p)
	return v
}

// sweep removes the entries whose value the function condemns and returns how many. It takes the mutex for
// one shard at a time, so that other writers wait for a few microseconds, not for the whole table; drop is
// called under it with the number removed from a shard.
func (s *store[K]) sweep(condemned func(v uint64) bool, drop func(n int)) int {
	total := 0
	for i := range s.arrays {
		p := &s.arrays[i]
		if p.Load() == nil {
			continue
		}
		s.mu.Lock()
		if a := p.Load(); a != nil {
			n := 0
			for j := range a.slots {
				value := &a.slots[j].value
				// The loop is for a value that is raised at this very moment: it has to be judged anew.
				for v := value.Load(); v > dead && condemned(v); v = value.Load() {
					if value.CompareAndSwap(v, dead) {
						n++
						break
					}
				}
			}
			a.live -= n
			s.live.Add(int64(-n))
			drop(n)
			total += n
			s.shrink(p)
		}
		s.mu.Unlock()
	}
	return total
}

// shrink gives memory back when an array has become much too large for what lives in it. The mutex is held.
func (s *store[K]) shrink(p *atomic.Pointer[array[K]]) {
	a := p.Load()
	switch {
	case a.live == 0:
		p.Store(nil)
	case len(a.slots) > 4*slotsFor(a.live):
		s.rebuild(p)
	}
}

// slotsFor is the number of slots of a new array for live entries and at least one more. Five ninths full
// when new and three quarters when the next one is made: a million entries of 16 bytes take from 21 to
// 29 MB.
func slotsFor(live int) int { return max(minSlots, live*9/5+4) }

// rebuild replaces an array by one without dead slots and with room for more, and returns it. The mutex is
// held.
func (s *store[K]) rebuild(p *atomic.Pointer[array[K]]) *array[K] {
	old := p.Load()
	if old == nil {
		a := &array[K]{slots: make([]slot[K], minSlots)}
		p.Store(a)
		return a
	}
	a := &array[K]{slots: make([]slot[K], slotsFor(old.live))}
	for i := range old.slots {
		if v := old.slots[i].value.Load(); v > dead {
			a.insert(s.hash(old.slots[i].key), old.slots[i].key, v)
		}
	}
	p.Store(a)

	// Values in the old array may have been raised since they were copied. Those raised before they are looked
	// at here are taken over; for a moment, readers may still get the smaller value from the new array. Whoever
	// raises one later finds afterwards that another array is published, and starts anew.
	for i := range old.slots {
		v := old.slots[i].value.Load()
		if v <= dead {
			continue
		}
		value := &a.find(s.hash(old.slots[i].key), old.slots[i].key).value
		for have := value.Load(); have < v; have = value.Load() {
			if value.CompareAndSwap(have, v) {
				break
			}
		}
	}
	return a
}

// all calls yield with each live entry until it returns false. Entries that come or go meanwhile may be
// missed or seen; none is seen twice.
func (s *store[K]) all(yield func(k K, v uint64) bool) {
	for i := range s.arrays {
		a := s.arrays[i].Load()
		if a == nil {
			continue
		}
		for j := range a.slots {
			if v := a.slots[j].value.Load(); v > dead && !yield(a.slots[j].key, v) {
				return
			}
		}
	}
}
