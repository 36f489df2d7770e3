package header

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/checksum"
)

// IPv6Len is the length of an IPv6 header without extension headers, in bytes.
const IPv6Len = 40

// Protocol numbers of extension headers (RFC 8200, section 4; RFC 4302; RFC 4303), and of "nothing follows".
const (
	ProtoHopByHop uint8 = 0
	ProtoRouting  uint8 = 43
	ProtoFragment uint8 = 44
	ProtoESP      uint8 = 50
	ProtoAH       uint8 = 51
	ProtoNone     uint8 = 59
	ProtoDestOpts uint8 = 60
)

const (
	ipv6Version    = 0
	ipv6PayloadLen = 4
	ipv6NextHeader = 6
	ipv6HopLimit   = 7
	ipv6Src        = 8
	ipv6Dst        = 24

	ipv6FlowLabelMask = 0x000fffff
	ipv6TrafficClass  = 20 // bits to the right of the traffic class in the first word
)

// IPv6 is an IPv6 header, and what follows it (RFC 8200, section 3).
type IPv6 []byte

func (h IPv6) word() uint32 { return binary.BigEndian.Uint32(h[ipv6Version:ipv6PayloadLen]) }

func (h IPv6) setWord(v uint32) { binary.BigEndian.PutUint32(h[ipv6Version:ipv6PayloadLen], v) }

// Version returns the version, 6 in a header that is what it says.
func (h IPv6) Version() uint8 { return h[ipv6Version] >> 4 }

// TrafficClass returns the byte of DSCP (high six bits) and ECN (low two bits).
func (h IPv6) TrafficClass() uint8 { return uint8(h.word() >> ipv6TrafficClass) }

// FlowLabel returns the flow label, 20 bits.
func (h IPv6) FlowLabel() uint32 { return h.word() & ipv6FlowLabelMask }

// PayloadLen returns the length of what follows the header, extension headers included, in bytes.
func (h IPv6) PayloadLen() uint16 { return binary.BigEndian.Uint16(h[ipv6PayloadLen:ipv6NextHeader]) }

// NextHeader returns the protocol of what follows, which may be an extension header.
func (h IPv6) NextHeader() uint8 { return h[ipv6NextHeader] }

// HopLimit returns the hop limit.
func (h IPv6) HopLimit() uint8 { return h[ipv6HopLimit] }

// Src returns the source address.
func (h IPv6) Src() netip.Addr { return netip.AddrFrom16([16]byte(h[ipv6Src:ipv6Dst])) }

// Dst returns the destination address.
func (h IPv6) Dst() netip.Addr { return netip.AddrFrom16([16]byte(h[ipv6Dst:IPv6Len])) }

// SrcBytes returns the 16 bytes of the source address in place, as the pseudo-header sum takes them.
func (h IPv6) SrcBytes() []byte { return h[ipv6Src:ipv6Dst:ipv6Dst] }

// DstBytes returns the 16 bytes of the destination address in place.
func (h IPv6) DstBytes() []byte { return h[ipv6Dst:IPv6Len:IPv6Len] }

// SetVersion sets the version to 6.
func (h IPv6) SetVersion() { h[ipv6Version] = h[ipv6Version]&0x0f | 6<<4 }

// SetTrafficClass sets the byte of DSCP and ECN.
func (h IPv6) SetTrafficClass(v uint8) {
	h.setWord(h.word()&^(0xff<<ipv6TrafficClass) | uint32(v)<<ipv6TrafficClass)
}

// SetFlowLabel sets the flow label. Only the low 20 bits of v are used.
func (h IPv6) SetFlowLabel(v uint32) {
	h.setWord(h.word()&^ipv6FlowLabelMask | v&ipv6FlowLabelMask)
}

// SetPayloadLen sets the length of what follows the header in bytes.
func (h IPv6) SetPayloadLen(n uint16) {
	binary.BigEndian.PutUint16(h[ipv6PayloadLen:ipv6NextHeader], n)
}

// SetNextHeader sets the protocol of what follows.
func (h IPv6) SetNextHeader(p uint8) { h[ipv6NextHeader] = p }

// SetHopLimit sets the hop limit.
func (h IPv6) SetHopLimit(v uint8) { h[ipv6HopLimit] = v }

// SetSrc sets the source address. An IPv4 address is written in its IPv4-mapped form.
func (h IPv6) SetSrc(ip netip.Addr) { put16(h[ipv6Src:ipv6Dst], ip) }

// SetDst sets the destination address. An IPv4 address is written in its IPv4-mapped form.
func (h IPv6) SetDst(ip netip.Addr) { put16(h[ipv6Dst:IPv6Len], ip) }

// PseudoSum returns the sum of the pseudo-header for a transport header and payload of length bytes. proto is
// the transport protocol, wherever in the chain of extension headers it stands.
func (h IPv6) PseudoSum(proto uint8, length int) uint64 {
	return checksum.PseudoIPv6(h.SrcBytes(), h.DstBytes(), proto, length)
}

// IPv6ExtMinLen is the length of the shortest extension header, and of a fragment header, in bytes.
const IPv6ExtMinLen = 8

const (
	ipv6ExtNext         = 0
	ipv6ExtLen          = 1
	ipv6ExtRoutingType  = 2
	ipv6ExtSegmentsLeft = 3
)

// IPv6Extension is one extension header of the kinds hop-by-hop options, routing, destination options (RFC
// 8200, sections 4.3, 4.4, 4.6) or authentication (RFC 4302). The other kinds have another shape.
type IPv6Extension []byte

// NextHeader returns the protocol of what follows the extension header.
func (h IPv6Extension) NextHeader() uint8 { return h[ipv6ExtNext] }

// Len returns the length of the whole extension header in bytes, 8 to 2048. kind is the protocol number that
// led here, since the authentication header counts in other units than the rest.
func (h IPv6Extension) Len(kind uint8) int {
	if kind == ProtoAH {
		return int(h[ipv6ExtLen])*4 + 8
	}
	return int(h[ipv6ExtLen])*8 + 8
}

// RoutingType returns the type of a routing header. Type 0 is source routing and deprecated (RFC 5095).
func (h IPv6Extension) RoutingType() uint8 { return h[ipv6ExtRoutingType] }

// SegmentsLeft returns how many nodes of a routing header are still to be visited.
func (h IPv6Extension) SegmentsLeft() uint8 { return h[ipv6ExtSegmentsLeft] }

// IPv6FragmentLen is the length of a fragment header in bytes.
const IPv6FragmentLen = 8

const (
	ipv6FragmentNext   = 0
	ipv6FragmentOffset = 2
	ipv6FragmentID     = 4

	ipv6FragmentMore       = 0x0001
	ipv6FragmentOffsetMask = 0xfff8 // the offset in bytes, as it happens: its unit is 8 and it lies 3 bits up
)

// IPv6Fragment is a fragment header (RFC 8200, section 4.5).
type IPv6Fragment []byte

func (h IPv6Fragment) word() uint16 {
	return binary.BigEndian.Uint16(h[ipv6FragmentOffset:ipv6FragmentID])
}

// NextHeader returns the protocol of the first header of the fragmented part.
func (h IPv6Fragment) NextHeader() uint8 { return h[ipv6FragmentNext] }

// Offset returns where the payload lies in the fragmented part of the whole packet, in bytes.
func (h IPv6Fragment) Offset() int { return int(h.word() & ipv6FragmentOffsetMask) }

// More returns the M flag: more fragments follow.
func (h IPv6Fragment) More() bool { return h.word()&ipv6FragmentMore != 0 }

// ID returns the identification that the fragments of a packet share.
func (h IPv6Fragment) ID() uint32 { return binary.BigEndian.Uint32(h[ipv6FragmentID:IPv6FragmentLen]) }

// Encode writes all IPv6FragmentLen bytes. offset is in bytes, a multiple of 8 under 65536.
func (h IPv6Fragment) Encode(next uint8, offset int, more bool, id uint32) {
	v := uint16(offset) & ipv6FragmentOffsetMask
	if more {
		v |= ipv6FragmentMore
	}
	h[ipv6FragmentNext], h[ipv6FragmentNext+1] = next, 0
	binary.BigEndian.PutUint16(h[ipv6FragmentOffset:ipv6FragmentID], v)
	binary.BigEndian.PutUint32(h[ipv6FragmentID:IPv6FragmentLen], id)
}
