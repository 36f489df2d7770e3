package fdb

import (
	"maps"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// placed is all of an entry that a decision depends on.
type placed struct {
	vtep   VTEPID
	static bool
}

func places(tab *Table) map[addr.MAC]placed {
	m := map[addr.MAC]placed{}
	for e := range tab.All() {
		m[e.MAC] = placed{e.VTEP, e.Static}
	}
	return m
}

// TestTableSaysWhenItChanges does things at random, and holds what Changed is told against what is different. It is told
// once for each call, and finds the change in the table, whose lock is free.
func TestTableSaysWhenItChanges(t *testing.T) {
	macs := rapid.Custom(func(r *rapid.T) addr.MAC { return mac(rapid.Uint64Range(0, 7).Draw(r, "n")) })
	vteps := rapid.SampledFrom([]VTEPID{0, 1, Local})
	rapid.Check(t, func(r *rapid.T) {
		tab, told, now := NewTable(5), 0, uint32(100)
		var shown map[addr.MAC]placed
		tab.Changed = func() {
			if !tab.store.mu.TryLock() {
				r.Fatal("told under the lock")
			}
			tab.store.mu.Unlock()
			told++
			shown = places(tab)
		}
		do := func(f func(m addr.MAC, v VTEPID)) func(*rapid.T) {
			return func(r *rapid.T) {
				before := places(tab)
				told = 0
				f(macs.Draw(r, "mac"), vteps.Draw(r, "vtep"))
				after := places(tab)
				want := 0
				if !maps.Equal(before, after) {
					want = 1
				}
				if told != want {
					r.Fatalf("told %d times, want %d: %v became %v", told, want, before, after)
				}
				if told > 0 && !maps.Equal(shown, after) {
					r.Fatalf("told when the table had %v, which became %v", shown, after)
				}
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"learn":       do(func(m addr.MAC, v VTEPID) { tab.Learn(m, v, now) }),
			"refresh":     do(func(m addr.MAC, v VTEPID) { tab.Refresh(m, v, now) }),
			"pin":         do(func(m addr.MAC, v VTEPID) { tab.SetStatic(m, v) }),
			"delete":      do(func(m addr.MAC, _ VTEPID) { tab.Delete(m) }),
			"delete VTEP": do(func(_ addr.MAC, v VTEPID) { tab.DeleteVTEP(v) }),
			"expire":      do(func(addr.MAC, VTEPID) { tab.Expire(now, 10) }),
			"time":        func(r *rapid.T) { now += rapid.Uint32Range(1, 10).Draw(r, "seconds") },
		})
	})
}

// What Learn found to be different may be so no more when it has the lock.
func TestTableSaysNothingIfAnotherWasFaster(t *testing.T) {
	tab := NewTable(1)
	tab.Learn(mac(1), 7, 100)
	tab.SetStatic(mac(2), 7)
	tab.Changed = func() { t.Error("told of a change") }
	for want, e := range map[Outcome]Entry{Refreshed: {MAC: mac(1), VTEP: 7}, Pinned: {MAC: mac(2), VTEP: 8}, Full: {MAC: mac(3), VTEP: 7}} {
		k := e.MAC.Uint64()
		if got := tab.learnSlow(tab.seeds.hash64(k), k, learnedValue(e.VTEP, 100)); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

func TestNeighborsSayWhenTheyChange(t *testing.T) {
	ips := rapid.SampledFrom([]netip.Addr{
		{}, netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("::ffff:10.42.0.1"),
		netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"),
	})
	rapid.Check(t, func(r *rapid.T) {
		n, told := NewNeighbors(), 0
		var shown map[netip.Addr]addr.MAC
		n.Changed = func() {
			if !n.v4.mu.TryLock() || !n.v6.mu.TryLock() {
				r.Fatal("told under the lock")
			}
			n.v4.mu.Unlock()
			n.v6.mu.Unlock()
			told++
			shown = maps.Collect(n.All())
		}
		do := func(f func(ip netip.Addr, m addr.MAC)) func(*rapid.T) {
			return func(r *rapid.T) {
				before := maps.Collect(n.All())
				told = 0
				f(ips.Draw(r, "ip"), mac(rapid.Uint64Range(0, 2).Draw(r, "mac")))
				after := maps.Collect(n.All())
				want := 0
				if !maps.Equal(before, after) {
					want = 1
				}
				if told != want || told > 0 && !maps.Equal(shown, after) {
					r.Fatalf("told %d times of %v, want %d: %v became %v", told, shown, want, before, after)
				}
			}
		}
		r.Repeat(map[string]func(*rapid.T){
			"set":    do(n.Set),
			"delete": do(func(ip netip.Addr, _ addr.MAC) { n.Delete(ip) }),
		})
	})
}

// TestRefresh looks at what a refresh that comes late must leave alone.
func TestRefresh(t *testing.T) {
	tab := NewTable(10)
	tab.Learn(mac(1), 7, 100)
	tab.SetStatic(mac(2), 7)
	// A deleted entry is still in its array as long as another one is.
	tab.Learn(mac(3), 0, 100)
	mate := uint64(10)
	for tab.store.shard(tab.seeds.hash64(mac(mate).Uint64())) != tab.store.shard(tab.seeds.hash64(mac(3).Uint64())) {
		mate++
	}
	tab.SetStatic(mac(mate), 7)
	tab.Delete(mac(3))
	for _, c := range []struct {
		name string
		mac  addr.MAC
		vtep VTEPID
		now  uint32
		want bool
		seen uint32 // of mac(1), afterwards
	}{
		{"of what is there", mac(1), 7, 160, true, 160},
		{"from before", mac(1), 7, 150, true, 160},
		{"from where it is no more", mac(1), 8, 170, false, 160},
		{"of a static entry", mac(2), 7, 170, true, 160},
		{"of a static entry, from elsewhere", mac(2), 8, 170, false, 160},
		{"of what was deleted", mac(3), 0, 170, false, 160},
		{"of what was never there", mac(4), 7, 170, false, 160},
	} {
		if got := tab.Refresh(c.mac, c.vtep, c.now); got != c.want {
			t.Errorf("refresh %s: %v, want %v", c.name, got, c.want)
		}
		want := map[addr.MAC]Entry{mac(1): {mac(1), 7, false, c.seen}, mac(2): {mac(2), 7, true, 0}, mac(mate): {mac(mate), 7, true, 0}}
		if got := entries(tab); !maps.Equal(got, want) {
			t.Errorf("after a refresh %s: %v, want %v", c.name, got, want)
		}
	}
	if n := tab.Expire(450, 300); n != 0 {
		t.Errorf("%d entries have expired, and none is old", n)
	}
	if a := testing.AllocsPerRun(100, func() { tab.Refresh(mac(1), 7, 170) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}
