package mtu

import (
	"net/netip"
	"strings"
	"testing"
)

func TestOverhead(t *testing.T) {
	for _, c := range []struct {
		outer      Family
		tags, want int
	}{
		{IPv4, 0, 50}, {IPv4, 1, 54}, {IPv4, 2, 58},
		{IPv6, 0, 70}, {IPv6, 1, 74}, {IPv6, 2, 78},
		{0, 0, 70},
	} {
		if got := Overhead(c.outer, c.tags); got != c.want {
			t.Errorf("Overhead(%v, %d) = %d, want %d", c.outer, c.tags, got, c.want)
		}
	}
}

// The terms add up to the overhead, and name what is there.
func TestTerms(t *testing.T) {
	for _, outer := range []Family{IPv4, IPv6, 0} {
		for tags := range 3 {
			sum, names := 0, ""
			for _, term := range Terms(outer, tags) {
				sum += term.Bytes
				names += term.Name + ", "
			}
			if sum != Overhead(outer, tags) {
				t.Errorf("%v, %d tags: the terms add up to %d, the overhead is %d", outer, tags, sum, Overhead(outer, tags))
			}
			want := "outer IPv6, UDP, VXLAN, inner Ethernet, "
			if outer == IPv4 {
				want = "outer IPv4, UDP, VXLAN, inner Ethernet, "
			}
			if tags > 0 {
				want += "inner VLAN tags, "
			}
			if names != want {
				t.Errorf("%v, %d tags: %s", outer, tags, names)
			}
		}
	}
}

func TestOverlayOf(t *testing.T) {
	for _, c := range []struct {
		path  PathMTU
		outer Family
		want  OverlayMTU
		v6    bool
	}{
		{1500, IPv4, 1450, true},
		{1500, IPv6, 1430, true},
		{9000, IPv4, 8950, true},
		{1330, IPv4, 1280, true},
		{1329, IPv4, 1279, false},
		{1350, IPv6, 1280, true},
		{1349, IPv6, 1279, false},
		{118, IPv4, 68, false},
		{138, IPv6, 68, false},
		{65536, IPv4, 65485, true},
		{65536, IPv6, 65465, true},
	} {
		got, err := OverlayOf(c.path, c.outer)
		if err != nil || got != c.want || got.CarriesIPv6() != c.v6 {
			t.Errorf("OverlayOf(%d, %v) = %d, %v (IPv6: %v), want %d (IPv6: %v)", c.path, c.outer, got, err, got.CarriesIPv6(), c.want, c.v6)
		}
	}
	for _, c := range []struct {
		path  PathMTU
		outer Family
		word  string
	}{
		{117, IPv4, "at least 118"},
		{137, IPv6, "at least 138"},
		{0, IPv4, "at least 118"},
		{-1, IPv6, "at least 138"},
		{1500, 0, "family"},
		{1500, 5, "family"},
	} {
		got, err := OverlayOf(c.path, c.outer)
		if err == nil || got != 0 || !strings.Contains(err.Error(), c.word) {
			t.Errorf("OverlayOf(%d, %v) = %d, %v, want an error with %q", c.path, c.outer, got, err, c.word)
		}
	}
}

func TestMaxFrame(t *testing.T) {
	for _, c := range []struct {
		path  PathMTU
		outer Family
		want  int
	}{
		{1500, IPv4, 1464}, {1500, IPv6, 1444}, {9000, IPv4, 8964},
		{65536, IPv4, 65499}, {65536, IPv6, 65479},
		{50, IPv4, 14}, {49, IPv4, 0}, {70, IPv6, 14}, {69, IPv6, 0}, {0, IPv4, 0}, {-5, IPv6, 0},
	} {
		if got := MaxFrame(c.path, c.outer); got != c.want {
			t.Errorf("MaxFrame(%d, %v) = %d, want %d", c.path, c.outer, got, c.want)
		}
	}
}

// A frame with any number of tags that holds a packet as large as the path leaves room for is exactly the
// largest frame: the two ways of counting agree.
func TestMaxFrameAgreesWithOverhead(t *testing.T) {
	for _, outer := range []Family{IPv4, IPv6} {
		for tags := range 3 {
			for path := PathMTU(200); path <= maxPacket; path += 97 {
				packet := int(path) - Overhead(outer, tags)
				if frame := 14 + 4*tags + packet; frame != MaxFrame(path, outer) {
					t.Fatalf("path %d over %v, %d tags: frame of %d bytes, MaxFrame says %d", path, outer, tags, frame, MaxFrame(path, outer))
				}
			}
		}
	}
}

func TestMSSOf(t *testing.T) {
	for _, c := range []struct {
		overlay OverlayMTU
		inner   Family
		want    MSS
	}{
		{1450, IPv4, 1410}, {1450, IPv6, 1390}, {8950, IPv4, 8910}, {68, IPv4, 28}, {40, IPv4, 0}, {59, IPv6, 0}, {0, IPv4, 0},
	} {
		if got := MSSOf(c.overlay, c.inner); got != c.want {
			t.Errorf("MSSOf(%d, %v) = %d, want %d", c.overlay, c.inner, got, c.want)
		}
	}
}

func TestFamilyOf(t *testing.T) {
	for _, c := range []struct {
		a    netip.Addr
		want Family
		name string
	}{
		{netip.MustParseAddr("192.0.2.1"), IPv4, "IPv4"},
		{netip.MustParseAddr("::ffff:192.0.2.1"), IPv4, "IPv4"},
		{netip.MustParseAddr("2001:db8::1"), IPv6, "IPv6"},
		{netip.MustParseAddr("fe80::1%eth0"), IPv6, "IPv6"},
		{netip.Addr{}, 0, "Family(0)"},
	} {
		if got := FamilyOf(c.a); got != c.want || got.String() != c.name {
			t.Errorf("FamilyOf(%v) = %v, want %v (%s)", c.a, got, c.want, c.name)
		}
	}
}
