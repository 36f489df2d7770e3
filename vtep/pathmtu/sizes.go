package pathmtu

import (
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/dataplane/probe"
)

// Sizes of outer IP packets in bytes, between which a path is searched (RFC 8899, section 5.1.2).
const (
	base    = 1280 // what nearly every path carries, BASE_PLPMTU
	minIPv4 = 576  // nothing smaller is searched for: what every IPv4 host can receive (RFC 791, section 3.1)
	minIPv6 = 1280 // every link carries this (RFC 8200, section 5)
)

// commonSizes are tried before others, in rising order, because networks have them: tunnels and providers of
// access below 1500, and the kinds of jumbo frames that clouds use.
var commonSizes = [...]int{1400, 1420, 1450, 1460, 1480, 1492, 1500, 8500, 8896, 9000}

// The probes of one round. More of them find the size in fewer rounds, fewer are less of a burst.
const (
	roundBytes = 24000
	roundMax   = 16
	roundMin   = 4
)

// limits are the sizes of one path, in bytes of the outer IP packet: small <= min <= base <= ceil, unless the
// route carries less than that.
type limits struct {
	small int // an unpadded probe, and an acknowledgement
	min   int // nothing smaller is searched for
	base  int // tried first
	ceil  int // what the route carries
}

// headersLen is the length of the outer IP and UDP headers.
func headersLen(remote netip.Addr) int {
	const any = 1500
	return any - mtu.MaxFrame(any, mtu.FamilyOf(remote)) - header.VXLANLen
}

func limitsOf(remote netip.Addr, route mtu.UnderlayMTU) limits {
	headers := headersLen(remote)
	l := limits{small: headers + probe.Len, min: minIPv4, ceil: min(int(route), headers+probe.MaxLen, 65535)}
	if mtu.FamilyOf(remote) == mtu.IPv6 {
		l.min = minIPv6
	}
	l.ceil = max(l.ceil, l.small)
	l.min = min(l.min, l.ceil)
	l.base = max(min(base, l.ceil), l.min)
	return l
}

// appendSpread appends sizes between floor and bound, neither included: all if they are few enough for a
// round, otherwise the common ones and others that leave no large gap.
func appendSpread(dst []int, floor, bound int) []int {
	room := min(max(roundBytes/bound, roundMin), roundMax)
	start := len(dst)
	if bound-floor-1 <= room {
		for size := floor + 1; size < bound; size++ {
			dst = append(dst, size)
		}
		return dst
	}
	for _, size := range commonSizes {
		if floor < size && size < bound && len(dst)-start < room {
			dst = append(dst, size)
		}
	}
	for len(dst)-start < room {
		at, size := widestGap(dst[start:], floor, bound)
		dst = slices.Insert(dst, start+at, size)
	}
	return dst
}

// widestGap returns the middle of the widest gap that the rising sizes leave between floor and bound, and where
// among them it belongs.
func widestGap(sizes []int, floor, bound int) (at, middle int) {
	widest, low := 0, floor
	for i := range len(sizes) + 1 {
		high := bound
		if i < len(sizes) {
			high = sizes[i]
		}
		if high-low > widest {
			widest, at, middle = high-low, i, low+(high-low)/2
		}
		low = high
	}
	return at, middle
}
