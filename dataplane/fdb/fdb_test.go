package fdb

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/dataplane/addr"
	"pgregory.net/rapid"
)

func mac(n uint64) addr.MAC { return addr.MACFromUint64(0x020000000000 | n) }

func TestTableOutcomes(t *testing.T) {
	tab := NewTable(2)
	check := func(what string, got, want Outcome) {
		t.Helper()
		if got != want {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	check("first frame", tab.Learn(mac(1), 7, 100), Added)
	check("same second", tab.Learn(mac(1), 7, 100), Refreshed)
	check("later", tab.Learn(mac(1), 7, 160), Refreshed)
	check("clock of another goroutine lags", tab.Learn(mac(1), 7, 159), Refreshed)
	if e := entries(tab)[mac(1)]; e != (Entry{mac(1), 7, false, 160}) {
		t.Fatalf("entry is %+v", e)
	}
	check("other VTEP", tab.Learn(mac(1), 8, 161), Moved)
	check("VTEP 0, second 0", tab.Learn(mac(2), 0, 0), Added)
	check("one too many", tab.Learn(mac(3), 7, 161), Full)
	tab.SetStatic(mac(2), 9)
	check("a static entry does not count", tab.Learn(mac(3), 7, 161), Added)
	check("static, elsewhere", tab.Learn(mac(2), 1, 162), Pinned)
	check("static, there", tab.Learn(mac(2), 9, 162), Refreshed)
	if e := entries(tab)[mac(2)]; e != (Entry{mac(2), 9, true, 0}) {
		t.Fatalf("static entry is %+v", e)
	}
	tab.SetStatic(mac(2), 10)
	if v, ok := tab.Lookup(mac(2)); !ok || v != 10 {
		t.Fatalf("static entry after a change: %v, %v", v, ok)
	}
	if tab.Delete(mac(4)) || !tab.Delete(mac(2)) || tab.Delete(mac(2)) {
		t.Fatal("Delete does not say what was there")
	}
	check("still full", tab.Learn(mac(4), 7, 163), Full)
	if n := tab.Expire(461, 300); n != 0 {
		t.Fatalf("Expire at the very age took %d", n)
	}
	if n := tab.Expire(462, 300); n != 2 || tab.Len() != 0 {
		t.Fatalf("Expire took %d and left %d", n, tab.Len())
	}
	check("room again", tab.Learn(mac(4), 7, 463), Added)
	check("nothing is learned", NewTable(0).Learn(mac(1), 1, 1), Full)
}

// A local entry is as static as one that names a VTEP, and a learned one is not.
func TestTableLocalAndStatic(t *testing.T) {
	tab := NewTable(10)
	tab.SetStatic(mac(1), Local)
	tab.SetStatic(mac(2), 0)
	tab.Learn(mac(3), 5, 100)
	for n, want := range map[uint64]struct {
		vtep          VTEPID
		known, static bool
	}{1: {Local, true, true}, 2: {0, true, true}, 3: {5, true, false}, 4: {}} {
		if v, ok := tab.Lookup(mac(n)); ok != want.known || v != want.vtep {
			t.Errorf("Lookup(%v) = %v, %v", mac(n), v, ok)
		}
		if v, ok := tab.LookupStatic(mac(n)); ok != want.static || ok && v != want.vtep {
			t.Errorf("LookupStatic(%v) = %v, %v", mac(n), v, ok)
		}
	}
	if o := tab.Learn(mac(1), 3, 100); o != Pinned {
		t.Errorf("a frame of a local station from elsewhere: %v, want pinned", o)
	}
	if n := tab.DeleteVTEP(Local) + tab.Expire(9000, 1); n != 1 {
		t.Errorf("%d entries went, want the learned one", n)
	}
	tab.Delete(mac(1))
	if _, ok := tab.LookupStatic(mac(1)); ok {
		t.Error("the local entry is still there")
	}
}

// The zero MAC and the highest numbers are keys and values like any other.
func TestTableExtremes(t *testing.T) {
	tab := NewTable(10)
	zero, broadcast := addr.MAC{}, addr.Broadcast
	const top = ^uint32(0)
	if _, ok := tab.Lookup(zero); ok {
		t.Fatal("the zero MAC is in an empty table")
	}
	tab.Learn(zero, VTEPID(top), top)
	tab.Learn(broadcast, 0, 0)
	for m, want := range map[addr.MAC]VTEPID{zero: VTEPID(top), broadcast: 0} {
		if v, ok := tab.Lookup(m); !ok || v != want {
			t.Errorf("%v is behind %v, %v, want %v", m, v, ok, want)
		}
	}
	if n := tab.Expire(top, 3); n != 1 { // the last three seconds before the counter ends count as one
		t.Errorf("Expire took %d", n)
	}
	if n := tab.Expire(0, 0); n != 0 {
		t.Errorf("Expire took %d that were last seen in the future", n)
	}
}

func TestNeighborsKinds(t *testing.T) {
	n := NewNeighbors()
	v4 := netip.MustParseAddr("10.42.0.7")
	v6 := netip.MustParseAddr("2001:db8::7")
	n.Set(v4, mac(1))
	n.Set(v6, mac(2))
	n.Set(netip.MustParseAddr("::"), addr.MAC{})
	n.Set(netip.Addr{}, mac(3))
	for _, c := range []struct {
		ip   string
		want addr.MAC
		ok   bool
	}{
		{"10.42.0.7", mac(1), true},
		{"::ffff:10.42.0.7", mac(1), true},
		{"::10.42.0.7", addr.MAC{}, false},
		{"2001:db8::7", mac(2), true},
		{"2001:db8::7%eth0", mac(2), true},
		{"2001:db8::8", addr.MAC{}, false},
		{"::", addr.MAC{}, true},
		{"0.0.0.0", addr.MAC{}, false},
	} {
		if m, ok := n.Lookup(netip.MustParseAddr(c.ip)); m != c.want || ok != c.ok {
			t.Errorf("Lookup(%s) = %v, %v, want %v, %v", c.ip, m, ok, c.want, c.ok)
		}
	}
	if _, ok := n.Lookup(netip.Addr{}); ok || n.Len() != 3 {
		t.Errorf("the zero Addr has an owner (%v), or Len is %d, not 3", ok, n.Len())
	}
	n.Set(v4, mac(9))
	if m, _ := n.Lookup(v4); m != mac(9) || n.Len() != 3 {
		t.Errorf("after a change %v, Len %d", m, n.Len())
	}
	seen := 0
	for range n.All() {
		seen++
		break
	}
	if seen != 1 {
		t.Errorf("All went on after break: %d", seen)
	}
	if !n.Delete(v4) || n.Delete(v4) || n.Delete(netip.Addr{}) || !n.Delete(v6) || n.Len() != 1 {
		t.Errorf("Delete does not say what was there, or Len is %d", n.Len())
	}
}

// TestTableModel compares a table with a plain map under any sequence of calls. Few MACs are used, so that
// they are removed and come back; every so often thousands, so that arrays grow and shrink.
func TestTableModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		limit := rapid.SampledFrom([]int{0, 3, 50, 100000}).Draw(r, "limit")
		tab := NewTable(limit)
		model := map[addr.MAC]Entry{}
		learned := func() (n int) {
			for _, e := range model {
				if !e.Static {
					n++
				}
			}
			return n
		}
		now := uint32(0)
		macs := rapid.Custom(func(r *rapid.T) addr.MAC { return mac(rapid.Uint64Range(0, 40).Draw(r, "mac")) })
		vteps := rapid.Custom(func(r *rapid.T) VTEPID { return VTEPID(rapid.Uint32Range(0, 4).Draw(r, "vtep")) })
		learn := func(r *rapid.T, m addr.MAC, v VTEPID) {
			e, ok := model[m]
			want := Refreshed
			switch {
			case !ok && learned() >= limit:
				want = Full
			case !ok:
				want = Added
			case e.Static && e.VTEP != v:
				want = Pinned
			case e.VTEP != v:
				want = Moved
			}
			if want == Added || want == Moved || want == Refreshed && !e.Static {
				model[m] = Entry{MAC: m, VTEP: v, LastSeen: now}
			}
			if got := tab.Learn(m, v, now); got != want {
				r.Fatalf("Learn(%v, %v, %v) = %v, want %v", m, v, now, got, want)
			}
		}
		drop := func(condemned func(Entry) bool) int {
			before := len(model)
			maps.DeleteFunc(model, func(_ addr.MAC, e Entry) bool { return !e.Static && condemned(e) })
			return before - len(model)
		}
		r.Repeat(map[string]func(*rapid.T){
			"learn": func(r *rapid.T) { learn(r, macs.Draw(r, "m"), vteps.Draw(r, "v")) },
			"static": func(r *rapid.T) {
				m, v := macs.Draw(r, "m"), vteps.Draw(r, "v")
				tab.SetStatic(m, v)
				model[m] = Entry{MAC: m, VTEP: v, Static: true}
			},
			"delete": func(r *rapid.T) {
				m := macs.Draw(r, "m")
				_, ok := model[m]
				delete(model, m)
				if got := tab.Delete(m); got != ok {
					r.Fatalf("Delete(%v) = %v, want %v", m, got, ok)
				}
			},
			"deleteVTEP": func(r *rapid.T) {
				v := vteps.Draw(r, "v")
				want := drop(func(e Entry) bool { return e.VTEP == v })
				if got := tab.DeleteVTEP(v); got != want {
					r.Fatalf("DeleteVTEP(%v) = %d, want %d", v, got, want)
				}
			},
			"expire": func(r *rapid.T) {
				age := rapid.Uint32Range(0, 20).Draw(r, "age")
				want := drop(func(e Entry) bool { return now-e.LastSeen > age })
				if got := tab.Expire(now, age); got != want {
					r.Fatalf("Expire(%d, %d) = %d, want %d", now, age, got, want)
				}
			},
			"time": func(r *rapid.T) { now += rapid.Uint32Range(1, 10).Draw(r, "seconds") },
			"many": func(r *rapid.T) {
				v := vteps.Draw(r, "v")
				room := max(0, limit-learned())
				for i := range min(uint64(room), 3000) {
					if _, ok := model[mac(1000+i)]; !ok {
						model[mac(1000+i)] = Entry{MAC: mac(1000 + i), VTEP: v, LastSeen: now}
						if got := tab.Learn(mac(1000+i), v, now); got != Added {
							r.Fatalf("Learn(%v, %v, %v) = %v, want added", mac(1000+i), v, now, got)
						}
					}
				}
			},
			"": func(r *rapid.T) {
				if tab.Len() != len(model) {
					r.Fatalf("Len = %d, want %d", tab.Len(), len(model))
				}
				if int(tab.learned.Load()) != learned() {
					r.Fatalf("learned = %d, want %d", tab.learned.Load(), learned())
				}
				got := map[addr.MAC]Entry{}
				for e := range tab.All() {
					if _, twice := got[e.MAC]; twice {
						r.Fatalf("All yields %v twice", e.MAC)
					}
					got[e.MAC] = e
				}
				if !maps.Equal(got, model) {
					r.Fatalf("table %v, model %v", got, model)
				}
				for i := range uint64(45) {
					e, want := model[mac(i)]
					if v, ok := tab.Lookup(mac(i)); v != e.VTEP || ok != want {
						r.Fatalf("Lookup(%v) = %v, %v, want %v, %v", mac(i), v, ok, e.VTEP, want)
					}
				}
			},
		})
	})
}

func TestNeighborsModel(t *testing.T) {
	ips := rapid.Custom(func(r *rapid.T) netip.Addr {
		last := rapid.ByteRange(0, 30).Draw(r, "last")
		if rapid.Bool().Draw(r, "v6") {
			return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: last & 1, 15: last})
		}
		return netip.AddrFrom4([4]byte{10, 42, 0, last})
	})
	rapid.Check(t, func(r *rapid.T) {
		n := NewNeighbors()
		model := map[netip.Addr]addr.MAC{}
		r.Repeat(map[string]func(*rapid.T){
			"set": func(r *rapid.T) {
				ip, m := ips.Draw(r, "ip"), mac(rapid.Uint64Range(0, 1<<24).Draw(r, "mac"))
				n.Set(ip, m)
				model[ip] = m
			},
			"delete": func(r *rapid.T) {
				ip := ips.Draw(r, "ip")
				_, ok := model[ip]
				delete(model, ip)
				if got := n.Delete(ip); got != ok {
					r.Fatalf("Delete(%v) = %v, want %v", ip, got, ok)
				}
			},
			"lookup": func(r *rapid.T) {
				ip := ips.Draw(r, "ip")
				want, known := model[ip]
				if m, ok := n.Lookup(ip); m != want || ok != known {
					r.Fatalf("Lookup(%v) = %v, %v, want %v, %v", ip, m, ok, want, known)
				}
			},
			"": func(r *rapid.T) {
				if got := maps.Collect(n.All()); n.Len() != len(model) || !maps.Equal(got, model) {
					r.Fatalf("Len %d, table %v, model %v", n.Len(), got, model)
				}
			},
		})
	})
}

func TestReadingAndRefreshingAllocateNothing(t *testing.T) {
	tab, n := NewTable(1000), NewNeighbors()
	v4, v6 := netip.MustParseAddr("10.42.0.7"), netip.MustParseAddr("2001:db8::7")
	tab.Learn(mac(1), 1, 1)
	n.Set(v4, mac(1))
	n.Set(v6, mac(1))
	now := uint32(1)
	for what, f := range map[string]func(){
		"Table.Lookup":        func() { tab.Lookup(mac(1)) },
		"Table.Lookup miss":   func() { tab.Lookup(mac(2)) },
		"Table.Learn":         func() { now++; tab.Learn(mac(1), 1, now) },
		"Table.Learn moved":   func() { now++; tab.Learn(mac(1), VTEPID(now), now) },
		"Neighbors.Lookup v4": func() { n.Lookup(v4) },
		"Neighbors.Lookup v6": func() { n.Lookup(v6) },
	} {
		if a := testing.AllocsPerRun(100, f); a != 0 {
			t.Errorf("%s: %v allocations", what, a)
		}
	}
}

func entries(tab *Table) map[addr.MAC]Entry {
	m := map[addr.MAC]Entry{}
	for e := range tab.All() {
		m[e.MAC] = e
	}
	return m
}
