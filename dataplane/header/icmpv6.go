package header

import "encoding/binary"

// ICMPv6Len is the length of the fixed part of an ICMPv6 message in bytes: type, code, checksum and four
// bytes whose meaning depends on the type.
const ICMPv6Len = 8

// Types (RFC 4443; RFC 4861; RFC 2710; RFC 3810). Those below 128 are errors.
const (
	ICMPv6Unreachable  uint8 = 1
	ICMPv6PacketTooBig uint8 = 2
	ICMPv6TimeExceeded uint8 = 3
	ICMPv6ParamProblem uint8 = 4
	ICMPv6Echo         uint8 = 128
	ICMPv6EchoReply    uint8 = 129
	ICMPv6MLDReport    uint8 = 131
	ICMPv6MLDDone      uint8 = 132
	ICMPv6RouterSol    uint8 = 133
	ICMPv6RouterAdv    uint8 = 134
	ICMPv6NeighborSol  uint8 = 135
	ICMPv6NeighborAdv  uint8 = 136
	ICMPv6Redirect     uint8 = 137
	ICMPv6MLDv2Report  uint8 = 143
)

const (
	icmpv6Type     = 0
	icmpv6Code     = 1
	icmpv6Checksum = 2
	icmpv6Body     = 4
	icmpv6Seq      = 6

	icmpv6InfoBit = 0x80 // set in the types that are not errors
)

// ICMPv6 is an ICMPv6 message (RFC 4443, section 2.1). Its checksum covers the IPv6 pseudo-header and the
// message.
type ICMPv6 []byte

// Type returns the type of the message.
func (h ICMPv6) Type() uint8 { return h[icmpv6Type] }

// Code returns the code, whose meaning depends on the type.
func (h ICMPv6) Code() uint8 { return h[icmpv6Code] }

// Checksum returns the checksum of pseudo-header and message.
func (h ICMPv6) Checksum() uint16 { return binary.BigEndian.Uint16(h[icmpv6Checksum:icmpv6Body]) }

// ID returns the identifier of an echo request or reply.
func (h ICMPv6) ID() uint16 { return binary.BigEndian.Uint16(h[icmpv6Body:icmpv6Seq]) }

// Seq returns the sequence number of an echo request or reply.
func (h ICMPv6) Seq() uint16 { return binary.BigEndian.Uint16(h[icmpv6Seq:ICMPv6Len]) }

// MTU returns the MTU that a "packet too big" message states (RFC 4443, section 3.2).
func (h ICMPv6) MTU() uint32 { return binary.BigEndian.Uint32(h[icmpv6Body:ICMPv6Len]) }

// IsError reports whether the message is about another packet, whose first bytes it quotes from ICMPv6Len
// on. No error is ever sent about an error, nor about a redirect (RFC 4443, section 2.4 (e)).
func (h ICMPv6) IsError() bool { return h.Type()&icmpv6InfoBit == 0 }

// SetType sets the type of the message.
func (h ICMPv6) SetType(v uint8) { h[icmpv6Type] = v }

// SetCode sets the code.
func (h ICMPv6) SetCode(v uint8) { h[icmpv6Code] = v }

// SetChecksum sets the checksum of pseudo-header and message.
func (h ICMPv6) SetChecksum(v uint16) { binary.BigEndian.PutUint16(h[icmpv6Checksum:icmpv6Body], v) }

// SetID sets the identifier of an echo request or reply.
func (h ICMPv6) SetID(v uint16) { binary.BigEndian.PutUint16(h[icmpv6Body:icmpv6Seq], v) }

// SetSeq sets the sequence number of an echo request or reply.
func (h ICMPv6) SetSeq(v uint16) { binary.BigEndian.PutUint16(h[icmpv6Seq:ICMPv6Len], v) }

// SetMTU sets the MTU of a "packet too big" message.
func (h ICMPv6) SetMTU(v uint32) { binary.BigEndian.PutUint32(h[icmpv6Body:ICMPv6Len], v) }
