package fdb

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// home is the invariant of the tests below: whatever is stored for key k says k in its lower bits, in all its
// variants. A reader that is shown the value of another key, or a mixture of two values, notices.
const homeBits = 12

// while returns a function that is true until the stress of one test has lasted long enough.
func while() func() bool {
	d := time.Second / 2
	if testing.Short() {
		d /= 5
	}
	end := time.Now().Add(d)
	return func() bool { return time.Now().Before(end) }
}

func variant(k, n uint64) uint64 { return n<<homeBits | k }
func home(v uint64) uint64       { return v & (1<<homeBits - 1) }

// TestTableTornReads lets readers and lock-free refreshers loose on a table whose entries come, move and go and
// whose arrays are replaced all the time.
func TestTableTornReads(t *testing.T) {
	const keys = 1 << homeBits
	tab := NewTable(keys)
	more := while()
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for i := 0; more(); i++ {
				k := r.Uint64N(keys)
				switch r.IntN(16) {
				case 0:
					tab.SetStatic(mac(k), VTEPID(variant(k, r.Uint64N(3))))
				case 1, 2, 3, 4, 5:
					tab.Delete(mac(k))
				case 6:
					if i%64 == 0 {
						tab.Expire(uint32(i), 500)
					}
				case 7:
					if i%64 == 0 {
						tab.DeleteVTEP(VTEPID(variant(k, 0)))
					}
				case 8:
					if i%4096 == 0 {
						for e := range tab.All() {
							tab.Delete(e.MAC)
						}
					}
				default:
					tab.Learn(mac(k), VTEPID(variant(k, r.Uint64N(3))), uint32(i))
				}
			}
		})
	}
	for w := range 3 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(w)))
			for i := uint32(0); !stop.Load(); i++ {
				k := r.Uint64N(keys)
				v, ok := tab.Lookup(mac(k))
				if ok && home(uint64(v)) != k {
					t.Errorf("lookup of %v gave a value of %v", mac(k), mac(home(uint64(v))))
					return
				}
				if ok && w == 0 {
					tab.Learn(mac(k), v, i)
				}
				if i%10_000 == 0 {
					seen := map[addr.MAC]bool{}
					for e := range tab.All() {
						if mac(home(uint64(e.VTEP))) != e.MAC || seen[e.MAC] {
							t.Errorf("All gave %+v, which is a value of %v or was there before", e, mac(home(uint64(e.VTEP))))
							return
						}
						seen[e.MAC] = true
					}
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()

	// The accounts agree with what is there.
	n, learned := 0, 0
	for e := range tab.All() {
		n++
		if !e.Static {
			learned++
		}
	}
	if n != tab.Len() || int64(learned) != tab.learned.Load() {
		t.Errorf("%d entries of which %d learned; the table thinks %d and %d", n, learned, tab.Len(), tab.learned.Load())
	}
}

// TestSlotIsNeverShownForAnotherKey narrows the same down to a handful of keys that all have one hash and so
// fight for the same few slots: a design that lets a key take over a slot fails here within milliseconds.
func TestSlotIsNeverShownForAnotherKey(t *testing.T) {
	const anchor = 99 // keeps the array from being thrown away when all other keys are gone
	var s store[uint64]
	s.hash = func(uint64) uint64 { return 0 }
	s.set(0, anchor, variant(anchor, 1))
	more := while()
	var stop atomic.Bool
	var reader, writer sync.WaitGroup
	reader.Go(func() {
		for k := uint64(0); !stop.Load(); k = (k + 1) % 4 {
			if v := s.get(0, k); v > dead && home(v) != k {
				t.Errorf("key %d was shown a value of key %d", k, home(v))
				return
			}
		}
	})
	writer.Go(func() {
		for i := uint64(0); more(); i++ {
			k := i % 4
			s.set(0, k, variant(k, 1+i%5))
			s.delete(0, k)
		}
	})
	writer.Wait()
	stop.Store(true)
	reader.Wait()
}

// TestRefreshIsNeverLost refreshes an entry without the lock while its array is replaced over and over. The
// array holds some hundred other entries, so that copying it takes as long as several refreshes.
func TestRefreshIsNeverLost(t *testing.T) {
	tab := NewTable(10)
	k := mac(1).Uint64()
	h := tab.seeds.hash64(k)
	p := tab.store.shard(h)
	tab.Learn(mac(1), 7, 0)
	for n, i := 0, uint64(2); n < 300; i++ {
		if tab.store.shard(tab.seeds.hash64(mac(i).Uint64())) == p {
			tab.SetStatic(mac(i), 1)
			n++
		}
	}
	more := while()
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() {
		for !stop.Load() {
			tab.store.mu.Lock()
			tab.store.rebuild(p)
			tab.store.mu.Unlock()
		}
	})
	for now := uint32(1); more(); now++ {
		for range rand.IntN(50) { // to be at any point of the copying
			tab.Lookup(mac(1))
		}
		if o := tab.Learn(mac(1), 7, now); o != Refreshed {
			t.Errorf("refresh: %v", o)
			break
		}
		tab.store.mu.Lock()
		got := lastSeen(tab.store.get(h, k))
		tab.store.mu.Unlock()
		if got != now {
			t.Errorf("last seen at %d, want %d", got, now)
			break
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestLearnLimitHoldsUnderContention(t *testing.T) {
	const limit = 500
	tab := NewTable(limit)
	var added atomic.Int64
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(1000) {
				if tab.Learn(mac(w<<16|i), 1, 1) == Added {
					added.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if added.Load() != limit || tab.Len() != limit {
		t.Errorf("%d were added and %d are there, want %d", added.Load(), tab.Len(), limit)
	}
}

func TestNeighborsTornReads(t *testing.T) {
	const keys = 1 << homeBits
	// IPv6 addresses that differ in the upper half only, in the lower only, and in both.
	of := func(k uint64) netip.Addr {
		hi, lo := byte(k>>8), byte(k)
		switch k % 4 {
		case 0, 1:
			return netip.AddrFrom4([4]byte{10, 42, hi, lo})
		case 2:
			return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 6: hi, 7: lo, 15: 1})
		default:
			return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: hi, 15: lo})
		}
	}
	n := NewNeighbors()
	more := while()
	var stop atomic.Bool
	var writers, readers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(w)))
			for more() {
				k := r.Uint64N(keys)
				if r.IntN(3) == 0 {
					n.Delete(of(k))
				} else {
					n.Set(of(k), mac(variant(k, r.Uint64N(3))))
				}
			}
		})
	}
	for w := range 2 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(4, uint64(w)))
			for !stop.Load() {
				k := r.Uint64N(keys)
				if m, ok := n.Lookup(of(k)); ok && home(m.Uint64()) != k {
					t.Errorf("lookup of %v gave a value of %v", of(k), of(home(m.Uint64())))
					return
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	readers.Wait()
	seen := 0
	for range n.All() {
		seen++
	}
	if seen != n.Len() {
		t.Errorf("%d entries, Len says %d", seen, n.Len())
	}
}
