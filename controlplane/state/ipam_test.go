package state

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

// TestBitmap compares with a plain set, in small widths where it fills up and in large ones.
func TestBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.SampledFrom([]int{2, 6, 12, 13, 18, 24, 32}).Draw(t, "width")
		// Numbers lie close together at a few places, so that words and leaves fill up.
		base := rapid.Uint64Range(0, 1<<width-1).Draw(t, "base") &^ 0xfff
		number := rapid.Custom(func(t *rapid.T) uint64 {
			return min(base+rapid.Uint64Range(0, 200).Draw(t, "n"), 1<<width-1)
		})
		b, set := newBitmap(width), map[uint64]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := number.Draw(t, "from")
			for range rapid.IntRange(1, 150).Draw(t, "run") {
				if rapid.IntRange(0, 9).Draw(t, "remove") == 0 {
					n := number.Draw(t, "removed")
					b.remove(n)
					delete(set, n)
				}
				if n < 1<<width {
					b.add(n)
					set[n] = true
				}
				n++
			}
			n = number.Draw(t, "looked for")
			want := n
			for set[want] {
				want++
			}
			if got, ok := b.missing(n); ok && got != want || !ok && want < 1<<width {
				t.Fatalf("missing(%d) = %d, %v, want %d", n, got, ok, want)
			}
			if b.has(n) != set[n] {
				t.Fatalf("has(%d) = %v", n, b.has(n))
			}
		}
		for n := range set {
			b.remove(n)
		}
		if b.root != nil {
			t.Fatal("an empty set keeps memory")
		}
	})
}

// TestBitmapFull fills one to the last number.
func TestBitmapFull(t *testing.T) {
	b := newBitmap(18)
	for _, n := range rand.Perm(1 << 18) {
		b.add(uint64(n))
	}
	if n, ok := b.missing(0); ok {
		t.Errorf("%d is missing", n)
	}
	b.remove(77777)
	for _, from := range []uint64{0, 4096, 77776, 77777} {
		if n, ok := b.missing(from); !ok || n != 77777 {
			t.Errorf("missing(%d) = %d, %v", from, n, ok)
		}
	}
	if n, ok := b.missing(77778); ok {
		t.Errorf("%d is missing", n)
	}
	b.remove(77777)
	b.add(77777)
	if _, ok := b.missing(0); ok {
		t.Error("not full again")
	}
}

// TestBitmapLeaves empties a leaf and uses it again.
func TestBitmapLeaves(t *testing.T) {
	b := newBitmap(24)
	b.add(5)
	b.add(5000)
	b.remove(5)
	if b.root.kids[0].kids[0] != nil {
		t.Error("an empty leaf is kept")
	}
	b.add(6)
	b.remove(5000)
	if !b.has(6) || b.has(5000) || b.has(5) {
		t.Error("the wrong leaf went")
	}
}

// TestDerivedAddresses steps over what is reserved and what is taken, and gives up in the end.
func TestDerivedAddresses(t *testing.T) {
	p := newPool(subnet{netip.MustParsePrefix("2001:db8:42::/64"), netip.MustParseAddr("2001:db8:42::1")})
	c := newContent(nil)
	taken := &endpoint{id: 1, network: 7}
	taken.setIP(netip.MustParseAddr("2001:db8:42::2"))
	c.byIP6.put(taken)
	for network, want := range map[uint64]string{7: "2001:db8:42::3", 8: "2001:db8:42::2"} {
		if a, ok := p.find(c, network, func(attempt int) uint64 { return uint64(attempt) }); !ok || a.String() != want {
			t.Errorf("network %d: %v, %v, want %s", network, a, ok, want)
		}
	}
	if a, ok := p.find(c, 7, func(int) uint64 { return 2 }); ok {
		t.Errorf("%v was found, which is taken", a)
	}
}

// TestFreedAddressesRest: an address that is freed comes round only when all others have been given out.
func TestFreedAddressesRest(t *testing.T) {
	w := newWorld(t)
	blue := w.must(&statev1.CreateNetwork{Name: "blue", Subnets: []string{"10.42.0.0/29"}, Gateways: []string{"10.42.0.2"}}).Network
	var got []string
	for range 12 {
		e := w.endpoint(blue, "")
		got = append(got, e.Ips[0])
		w.must(&statev1.RemoveEndpoint{Id: e.Id})
	}
	want := "[10.42.0.1 10.42.0.3 10.42.0.4 10.42.0.5 10.42.0.6 10.42.0.1 10.42.0.3 10.42.0.4 10.42.0.5 10.42.0.6 10.42.0.1 10.42.0.3]"
	if fmt.Sprint(got) != want {
		t.Errorf("%v\nwant %s", got, want)
	}
	// What is given by hand is skipped, and does not move the search on.
	w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(2), Ips: []string{"10.42.0.4"}})
	if ip := w.endpoint(blue, "").Ips[0]; ip != "10.42.0.5" {
		t.Error(ip)
	}
	// All five, and no more.
	for range 3 {
		w.endpoint(blue, "")
	}
	if res := w.do(&statev1.AddEndpoint{Network: blue.Id, Node: id(2)}); res.Error.GetKind() != kExhausted {
		t.Error(res)
	}
}

// TestSmallestSubnets are usable.
func TestSmallestSubnets(t *testing.T) {
	w := newWorld(t)
	tiny := w.must(&statev1.CreateNetwork{Name: "tiny", Subnets: []string{"10.42.0.4/30", "2001:db8:42::4/126"}, Gateways: []string{"10.42.0.5", "2001:db8:42::7"}}).Network
	if e := w.endpoint(tiny, ""); fmt.Sprint(e.Ips) != "[10.42.0.6 2001:db8:42::5]" {
		t.Error(e.Ips)
	}
	if res := w.do(&statev1.AddEndpoint{Network: tiny.Id, Node: id(2)}); res.Error.GetKind() != kExhausted {
		t.Error(res)
	}
	six := w.network("six", "2001:db8:43::/126")
	var got []string
	for range 3 {
		got = append(got, w.endpoint(six, "").Ips[0])
	}
	if fmt.Sprint(got) != "[2001:db8:43::1 2001:db8:43::2 2001:db8:43::3]" {
		t.Error(got)
	}
}

// TestIPv6IsSparse: addresses of large subnets are derived, differ, and lie in their subnet.
func TestIPv6IsSparse(t *testing.T) {
	w := newWorld(t)
	for i, subnet := range []string{"2001:db8:42::/64", "2001:db8:43:8000::/90", "2001:db8:44::/48", "fd00::/8"} {
		p := netip.MustParsePrefix(subnet)
		net := w.network(fmt.Sprint("n", i), subnet)
		seen := map[netip.Addr]bool{}
		for range 200 {
			a := netip.MustParseAddr(w.endpoint(net, "").Ips[0])
			if seen[a] || !p.Contains(a) || a == p.Addr() || seen[a.Next()] || seen[a.Prev()] {
				t.Errorf("%v of %v", a, p)
			}
			seen[a] = true
		}
	}
}

func TestMACsAreLocal(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.42.0.0/22")
	seen := map[addr.MAC]bool{}
	for range 500 {
		m := addr.MAC(w.endpoint(blue, "").Mac)
		if m[0]&3 != 2 || seen[m] {
			t.Fatalf("%v", m)
		}
		seen[m] = true
	}
}

// TestVNIs are given out from 4096 on, round and round.
func TestVNIs(t *testing.T) {
	w := newWorld(t)
	create := func(name string, vni uint32) *statev1.Network {
		t.Helper()
		return w.must(&statev1.CreateNetwork{Name: name, Vni: vni}).Network
	}
	create("low", 7)
	create("given", 4097)
	a, b := create("a", 0), create("b", 0)
	if a.Vni != 4096 || b.Vni != 4098 {
		t.Errorf("%d, %d", a.Vni, b.Vni)
	}
	w.must(&statev1.RemoveNetwork{Id: a.Id})
	if c := create("c", 0); c.Vni != 4099 {
		t.Errorf("%d was freed a moment ago", c.Vni)
	}
	create("last", uint32(addr.MaxVNI)-1)
	w.c.alloc.nextVNI = uint32(addr.MaxVNI)
	if d := create("d", 0); d.Vni != uint32(addr.MaxVNI) {
		t.Error(d.Vni)
	}
	if e := create("e", 0); e.Vni != 4096 {
		t.Error(e.Vni)
	}
	// Exhausted, with the given ones below left.
	w.c.alloc.vnis.root.full = ^uint64(0)
	if res := w.do(&statev1.CreateNetwork{Name: "f"}); res.Error.GetKind() != kExhausted || res.Error.Field != "create_network.vni" {
		t.Error(res)
	}
	create("f", 8)
}

// TestDefaultSubnets keep clear of other subnets and of the nodes.
func TestDefaultSubnets(t *testing.T) {
	w := newWorld(t)
	n := testNode(4, worker)
	n.Addresses = []string{"10.0.1.9", "10.0.6.1"}
	w.must(&statev1.AddNode{Node: n})
	w.network("small", "10.0.2.64/28")
	other := w.network("small2", "10.0.2.0/28")
	large := w.network("large", "10.0.4.0/23")
	var got []string
	create := func() {
		got = append(got, w.network(fmt.Sprint("n", len(got))).Subnets[0])
	}
	for range 4 {
		create()
	}
	if fmt.Sprint(got) != "[10.0.0.0/24 10.0.3.0/24 10.0.7.0/24 10.0.8.0/24]" {
		t.Error(got)
	}
	w.must(&statev1.RemoveNetwork{Id: other.Id}) // half of its /24 stays taken
	w.must(&statev1.RemoveNetwork{Id: large.Id})
	w.must(&statev1.UpdateNode{Id: id(4), Addresses: []string{"10.0.6.1"}})
	w.c.alloc.nextSubnet = 1
	got = nil
	for i := range 3 {
		got = append(got, w.network(fmt.Sprint("m", i)).Subnets[0])
	}
	if fmt.Sprint(got) != "[10.0.1.0/24 10.0.4.0/24 10.0.5.0/24]" {
		t.Error(got)
	}
	w.network("rest", "10.128.0.0/9")
	w.c.alloc.nextSubnet = 1 << 15
	if p := w.network("round").Subnets[0]; p != "10.0.9.0/24" {
		t.Error(p)
	}
	w.c.alloc.blocks.root.full = ^uint64(0)
	if res := w.do(&statev1.CreateNetwork{Name: "more"}); res.Error.GetKind() != kExhausted || res.Error.Field != "create_network.subnets" {
		t.Error(res)
	}
}
