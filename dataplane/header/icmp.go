package header

import "encoding/binary"

// ICMPLen is the length of the fixed part of an ICMP message in bytes: type, code, checksum and four
// bytes whose meaning depends on the type.
const ICMPLen = 8

// Types, and codes of ICMPUnreachable (RFC 792; RFC 1191, section 4).
const (
	ICMPEchoReply      uint8 = 0
	ICMPUnreachable    uint8 = 3
	ICMPSourceQuench   uint8 = 4
	ICMPRedirect       uint8 = 5
	ICMPEcho           uint8 = 8
	ICMPTimeExceeded   uint8 = 11
	ICMPParamProblem   uint8 = 12
	ICMPCodeFragNeeded uint8 = 4
)

const (
	icmpType     = 0
	icmpCode     = 1
	icmpChecksum = 2
	icmpID       = 4
	icmpSeq      = 6
)

// ICMP is an ICMP message for IPv4 (RFC 792). Its checksum covers the message alone, without a
// pseudo-header.
type ICMP []byte

// Type returns the type of the message.
func (h ICMP) Type() uint8 { return h[icmpType] }

// Code returns the code, whose meaning depends on the type.
func (h ICMP) Code() uint8 { return h[icmpCode] }

// Checksum returns the checksum of the message.
func (h ICMP) Checksum() uint16 { return binary.BigEndian.Uint16(h[icmpChecksum:icmpID]) }

// ID returns the identifier of an echo request or reply.
func (h ICMP) ID() uint16 { return binary.BigEndian.Uint16(h[icmpID:icmpSeq]) }

// Seq returns the sequence number of an echo request or reply.
func (h ICMP) Seq() uint16 { return binary.BigEndian.Uint16(h[icmpSeq:ICMPLen]) }

// NextHopMTU returns the MTU that a "fragmentation needed" message states (RFC 1191, section 4); 0 if the
// router does not know RFC 1191.
func (h ICMP) NextHopMTU() uint16 { return binary.BigEndian.Uint16(h[icmpSeq:ICMPLen]) }

// IsError reports whether the message is about another packet, whose first bytes it quotes from ICMPLen
// on. No error is ever sent about an error (RFC 1122, section 3.2.2).
func (h ICMP) IsError() bool {
	switch h.Type() {
	case ICMPUnreachable, ICMPSourceQuench, ICMPRedirect, ICMPTimeExceeded, ICMPParamProblem:
		return true
	}
	return false
}

// SetType sets the type of the message.
func (h ICMP) SetType(v uint8) { h[icmpType] = v }

// SetCode sets the code.
func (h ICMP) SetCode(v uint8) { h[icmpCode] = v }

// SetChecksum sets the checksum of the message.
func (h ICMP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(h[icmpChecksum:icmpID], v) }

// SetID sets the identifier of an echo request or reply, or the unused half word of an error.
func (h ICMP) SetID(v uint16) { binary.BigEndian.PutUint16(h[icmpID:icmpSeq], v) }

// SetSeq sets the sequence number of an echo request or reply.
func (h ICMP) SetSeq(v uint16) { binary.BigEndian.PutUint16(h[icmpSeq:ICMPLen], v) }

// SetNextHopMTU sets the MTU of a "fragmentation needed" message.
func (h ICMP) SetNextHopMTU(v uint16) { binary.BigEndian.PutUint16(h[icmpSeq:ICMPLen], v) }
