package state

import (
	"net/netip"
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	idLen   = 16 // hexadecimal digits
	maxName = 63 // bytes, as RFC 1123 section 2.1 has it for a label
)

// parseID reads an ID. It stands for exactly one number, which is never 0.
func parseID(field, s string) (uint64, *refusal) {
	if n, ok := idOf(s); ok {
		return n, nil
	}
	return 0, invalid(field, "%s is not an ID: give 16 lower-case hexadecimal digits, not all 0", show(s))
}

func idOf(s string) (uint64, bool) {
	if len(s) != idLen {
		return 0, false
	}
	var n uint64
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			n = n<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, n != 0
}

// formatID is the inverse of parseID. Listings and snapshots call it three times an endpoint.
func formatID(id uint64) string {
	var b [idLen]byte
	for i := idLen - 1; i >= 0; i-- {
		b[i] = "0123456789abcdef"[id&15]
		id >>= 4
	}
	return string(b[:])
}

// checkName checks a name that has to be there: lower-case letters, digits and hyphens, at most 63, no hyphen at either
// end. What could be taken for an ID is refused, as operators may write either.
func checkName(field, s string) *refusal {
	const form = "use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end"
	if s == "" {
		return invalid(field, "it is empty: %s", form)
	}
	if len(s) > maxName || s[0] == '-' || s[len(s)-1] == '-' {
		return invalid(field, "%s is no name: %s", show(s), form)
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return invalid(field, "%s is no name: %s", show(s), form)
		}
	}
	if _, ok := idOf(s); ok {
		return invalid(field, "%s has the form of an ID: choose a name that cannot be taken for one", show(s))
	}
	return nil
}

// parseAddr reads an address that one interface can have.
func parseAddr(field, s string) (netip.Addr, *refusal) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, invalid(field, "%s is not an IP address: write it as in 192.0.2.1 or 2001:db8::1", show(s))
	case a.Zone() != "":
		return a, invalid(field, "%s has a zone, which means something to one host only: give an address without", show(s))
	case a.Is4In6():
		return a, invalid(field, "%s is an IPv4 address in the form of IPv6: write %v", show(s), a.Unmap())
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, invalid(field, "%v is not the address of one interface: give a unicast address", a)
	case a.IsLinkLocalUnicast():
		return a, invalid(field, "%v is link-local, which means something on one link only: give another address", a)
	}
	return a, nil
}

// checkTime returns t in its canonical form. It has to be set and valid.
func checkTime(field string, t *timestamppb.Timestamp) (*timestamppb.Timestamp, *refusal) {
	if t == nil {
		return nil, invalid(field, "it is missing: give the time")
	}
	if t.CheckValid() != nil {
		return nil, invalid(field, "%d s and %d ns is no time between the years 1 and 9999: check the clock of the node that sent it", t.Seconds, t.Nanos)
	}
	return &timestamppb.Timestamp{Seconds: t.Seconds, Nanos: t.Nanos}, nil
}

// before reports whether a is earlier than b.
func before(a, b *timestamppb.Timestamp) bool {
	return a.Seconds < b.Seconds || a.Seconds == b.Seconds && a.Nanos < b.Nanos
}

// element is the name of one element of a repeated field.
func element(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
