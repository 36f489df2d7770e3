package header

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/checksum"
)

// Bounds of the length of an IPv4 header, in bytes.
const (
	IPv4MinLen = 20
	IPv4MaxLen = 60
)

// Kinds of IPv4 options (RFC 791, section 3.1; RFC 2113), with the copied flag and the class.
const (
	IPv4OptionRecordRoute uint8 = 7
	IPv4OptionTimestamp   uint8 = 68
	IPv4OptionLSRR        uint8 = 131 // loose source route
	IPv4OptionSSRR        uint8 = 137 // strict source route
	IPv4OptionRouterAlert uint8 = 148
)

const (
	ipv4VersionIHL = 0
	ipv4TOS        = 1
	ipv4TotalLen   = 2
	ipv4ID         = 4
	ipv4Flags      = 6
	ipv4TTL        = 8
	ipv4Protocol   = 9
	ipv4Checksum   = 10
	ipv4Src        = 12
	ipv4Dst        = 16

	ipv4DF         = 0x4000
	ipv4MF         = 0x2000
	ipv4OffsetMask = 0x1fff // in units of 8 bytes
)

// IPv4 is an IPv4 header, and what follows it (RFC 791, section 3.1).
type IPv4 []byte

// Version returns the version, 4 in a header that is what it says.
func (h IPv4) Version() uint8 { return h[ipv4VersionIHL] >> 4 }

// HeaderLen returns the length of the header with its options, in bytes: 0 to 60, a multiple of 4.
func (h IPv4) HeaderLen() int { return int(h[ipv4VersionIHL]&0x0f) * 4 }

// TOS returns the byte of DSCP (high six bits) and ECN (low two bits).
func (h IPv4) TOS() uint8 { return h[ipv4TOS] }

// TotalLen returns the length of header and payload in bytes.
func (h IPv4) TotalLen() uint16 { return binary.BigEndian.Uint16(h[ipv4TotalLen:ipv4ID]) }

// ID returns the identification that the fragments of a packet share.
func (h IPv4) ID() uint16 { return binary.BigEndian.Uint16(h[ipv4ID:ipv4Flags]) }

// FlagsFragment returns the word of flags and fragment offset as it is on the wire.
func (h IPv4) FlagsFragment() uint16 { return binary.BigEndian.Uint16(h[ipv4Flags:ipv4TTL]) }

// DontFragment returns the DF flag.
func (h IPv4) DontFragment() bool { return h.FlagsFragment()&ipv4DF != 0 }

// MoreFragments returns the MF flag.
func (h IPv4) MoreFragments() bool { return h.FlagsFragment()&ipv4MF != 0 }

// FragmentOffset returns where the payload lies in that of the whole packet, in bytes.
func (h IPv4) FragmentOffset() int { return int(h.FlagsFragment()&ipv4OffsetMask) * 8 }

// IsFragment reports whether the packet is a fragment, be it the first.
func (h IPv4) IsFragment() bool { return h.FlagsFragment()&(ipv4MF|ipv4OffsetMask) != 0 }

// TTL returns the time to live in hops.
func (h IPv4) TTL() uint8 { return h[ipv4TTL] }

// Protocol returns the protocol of the payload.
func (h IPv4) Protocol() uint8 { return h[ipv4Protocol] }

// Checksum returns the header checksum.
func (h IPv4) Checksum() uint16 { return binary.BigEndian.Uint16(h[ipv4Checksum:ipv4Src]) }

// Src returns the source address.
func (h IPv4) Src() netip.Addr { return netip.AddrFrom4([4]byte(h[ipv4Src:ipv4Dst])) }

// Dst returns the destination address.
func (h IPv4) Dst() netip.Addr { return netip.AddrFrom4([4]byte(h[ipv4Dst:IPv4MinLen])) }

// SrcBytes returns the 4 bytes of the source address in place, as the pseudo-header sum takes them.
func (h IPv4) SrcBytes() []byte { return h[ipv4Src:ipv4Dst:ipv4Dst] }

// DstBytes returns the 4 bytes of the destination address in place.
func (h IPv4) DstBytes() []byte { return h[ipv4Dst:IPv4MinLen:IPv4MinLen] }

// Options returns the options, empty for a header of IPv4MinLen.
func (h IPv4) Options() []byte { return h[IPv4MinLen:h.HeaderLen()] }

// OptionList returns the options to be walked.
func (h IPv4) OptionList() Options { return Options{list: h.Options()} }

// WalkOptions calls fn for each option with its kind and its data (without kind and length), leaving out
// padding, until fn returns false or the list ends. It returns false if it met an option whose length is
// under 2 or runs over the header. fn must not keep data.
func (h IPv4) WalkOptions(fn func(kind byte, data []byte) bool) bool { return h.OptionList().walk(fn) }

// SetHeaderLen sets the version to 4 and the length of the header to n bytes, a multiple of 4 from
// IPv4MinLen to IPv4MaxLen.
func (h IPv4) SetHeaderLen(n int) { h[ipv4VersionIHL] = 4<<4 | uint8(n/4)&0x0f }

// SetTOS sets the byte of DSCP and ECN.
func (h IPv4) SetTOS(v uint8) { h[ipv4TOS] = v }

// SetTotalLen sets the length of header and payload in bytes.
func (h IPv4) SetTotalLen(n uint16) { binary.BigEndian.PutUint16(h[ipv4TotalLen:ipv4ID], n) }

// SetID sets the identification.
func (h IPv4) SetID(id uint16) { binary.BigEndian.PutUint16(h[ipv4ID:ipv4Flags], id) }

// SetFlagsFragment sets the flags DF and MF and the fragment offset, which is in bytes, a multiple of 8
// under 65536. The reserved flag becomes 0.
func (h IPv4) SetFlagsFragment(df, mf bool, offset int) {
	v := uint16(offset/8) & ipv4OffsetMask
	if df {
		v |= ipv4DF
	}
	if mf {
		v |= ipv4MF
	}
	binary.BigEndian.PutUint16(h[ipv4Flags:ipv4TTL], v)
}

// SetTTL sets the time to live in hops.
func (h IPv4) SetTTL(v uint8) { h[ipv4TTL] = v }

// SetProtocol sets the protocol of the payload.
func (h IPv4) SetProtocol(p uint8) { h[ipv4Protocol] = p }

// SetChecksum sets the header checksum.
func (h IPv4) SetChecksum(v uint16) { binary.BigEndian.PutUint16(h[ipv4Checksum:ipv4Src], v) }

// SetSrc sets the source address. It panics if ip is not an IPv4 address.
func (h IPv4) SetSrc(ip netip.Addr) { put4(h[ipv4Src:ipv4Dst], ip) }

// SetDst sets the destination address. It panics if ip is not an IPv4 address.
func (h IPv4) SetDst(ip netip.Addr) { put4(h[ipv4Dst:IPv4MinLen], ip) }

// UpdateChecksum computes the header checksum over HeaderLen bytes and sets it.
func (h IPv4) UpdateChecksum() {
	h.SetChecksum(0)
	h.SetChecksum(checksum.Checksum(h[:h.HeaderLen()]))
}

// PseudoSum returns the sum of the pseudo-header for a transport header and payload of length bytes.
func (h IPv4) PseudoSum(proto uint8, length int) uint64 {
	return checksum.PseudoIPv4(h.SrcBytes(), h.DstBytes(), proto, length)
}
