package header

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// Lengths in bytes of the fixed parts of Neighbor Discovery messages, ICMPv6 header included; options follow
// (RFC 4861, sections 4.1 to 4.4).
const (
	NDNeighborLen  = 24 // solicitation and advertisement
	NDRouterSolLen = 8
	NDRouterAdvLen = 16
)

// NDHopLimit is the hop limit that a Neighbor Discovery message must have, so that it cannot come from off
// the link (RFC 4861, section 7.1).
const NDHopLimit uint8 = 255

// NDLinkAddrLen is the length of a source or target link-layer address option for Ethernet, in bytes.
const NDLinkAddrLen = 8

// Types of options (RFC 4861, section 4.6; RFC 3971, section 5.3; RFC 8106).
const (
	NDOptionSourceLinkAddr uint8 = 1
	NDOptionTargetLinkAddr uint8 = 2
	NDOptionPrefix         uint8 = 3
	NDOptionRedirected     uint8 = 4
	NDOptionMTU            uint8 = 5
	NDOptionNonce          uint8 = 14
)

// Flags of a neighbor advertisement (RFC 4861, section 4.4).
const (
	NDFlagRouter    uint8 = 0x80 // R: the sender is a router
	NDFlagSolicited uint8 = 0x40 // S: in answer to a solicitation
	NDFlagOverride  uint8 = 0x20 // O: replaces what a cache holds
)

const (
	ndFlags  = 4
	ndTarget = 8

	ndOptionUnit = 8 // option lengths count in these
)

// NDNeighbor is a neighbor solicitation or advertisement, seen from its ICMPv6 type on (RFC 4861, sections 4.3
// and 4.4).
type NDNeighbor []byte

// Flags returns the R, S and O flags of an advertisement; in a solicitation the bits are reserved.
func (h NDNeighbor) Flags() uint8 { return h[ndFlags] }

// Router returns the R flag of an advertisement.
func (h NDNeighbor) Router() bool { return h[ndFlags]&NDFlagRouter != 0 }

// Solicited returns the S flag of an advertisement.
func (h NDNeighbor) Solicited() bool { return h[ndFlags]&NDFlagSolicited != 0 }

// Override returns the O flag of an advertisement.
func (h NDNeighbor) Override() bool { return h[ndFlags]&NDFlagOverride != 0 }

// Target returns the address asked for or advertised.
func (h NDNeighbor) Target() netip.Addr { return netip.AddrFrom16([16]byte(h[ndTarget:NDNeighborLen])) }

// OptionList returns the options to be walked; h must end where the message ends.
func (h NDNeighbor) OptionList() NDOptions { return NDOptions{list: h[NDNeighborLen:]} }

// WalkOptions calls fn for each option with its type and its data (without type and length) until fn
// returns false or the list ends. It returns false if it met an option of length zero or one that runs over the
// message, in which case the message as a whole is to be discarded (RFC 4861, section 7.1). h must end
// where the message ends. fn must not keep data.
func (h NDNeighbor) WalkOptions(fn func(kind byte, data []byte) bool) bool {
	return h.OptionList().walk(fn)
}

// SetFlags sets the flags of an advertisement and clears the reserved bytes after them.
func (h NDNeighbor) SetFlags(v uint8) { binary.BigEndian.PutUint32(h[ndFlags:ndTarget], uint32(v)<<24) }

// SetTarget sets the address asked for or advertised.
func (h NDNeighbor) SetTarget(ip netip.Addr) { put16(h[ndTarget:NDNeighborLen], ip) }

// RouterSolOptions returns the options of a router solicitation that starts at h[0]; h must end where the
// message ends.
func (h ICMPv6) RouterSolOptions() NDOptions { return NDOptions{list: h[NDRouterSolLen:]} }

// RouterAdvOptions returns the options of a router advertisement that starts at h[0]; h must end where the
// message ends.
func (h ICMPv6) RouterAdvOptions() NDOptions { return NDOptions{list: h[NDRouterAdvLen:]} }

// NDOptions walks the options of a Neighbor Discovery message: a type, a length that covers all of the option
// in units of 8 bytes, and the data (RFC 4861, section 4.6). The zero value is an empty list. It is
// bounded by the list, since every step goes at least 8 bytes on, and never reads outside it.
type NDOptions struct {
	list       []byte
	start, end int // of the option at hand, in list
	malformed  bool
}

// Next goes to the next option. It returns false at the end of the list and at an option whose length is
// zero or runs over the list; Malformed then tells which.
func (o *NDOptions) Next() bool {
	rest := len(o.list) - o.end
	if rest == 0 {
		return false
	}
	n := 0
	if rest >= ndOptionUnit {
		n = int(o.list[o.end+1]) * ndOptionUnit
	}
	if n == 0 || n > rest {
		o.malformed = true
		o.end = len(o.list)
		return false
	}
	o.start, o.end = o.end, o.end+n
	return true
}

// Malformed reports whether the walk met an option that cannot be; it says nothing about options that
// Next has not come to.
func (o *NDOptions) Malformed() bool { return o.malformed }

// Kind returns the type of the option that Next came to.
func (o *NDOptions) Kind() uint8 { return o.list[o.start] }

// Data returns what follows the type and the length of the option that Next came to: at least 6 bytes, in
// place.
func (o *NDOptions) Data() []byte { return o.list[o.start+2 : o.end : o.end] }

// LinkAddr returns the address in the source or target link-layer address option that Next came to.
func (o *NDOptions) LinkAddr() addr.MAC { return addr.MAC(o.Data()[:6]) }

// walk calls fn for each option until fn returns false, and reports whether all it met was well formed.
func (o NDOptions) walk(fn func(kind byte, data []byte) bool) bool {
	for o.Next() {
		if !fn(o.Kind(), o.Data()) {
			return true
		}
	}
	return !o.malformed
}

// PutNDLinkAddr writes a source or target link-layer address option of NDLinkAddrLen bytes into b.
func PutNDLinkAddr(b []byte, kind uint8, m addr.MAC) {
	b[0], b[1] = kind, NDLinkAddrLen/ndOptionUnit
	copy(b[2:NDLinkAddrLen], m[:])
}
