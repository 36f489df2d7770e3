package header

import "encoding/binary"

// Bounds of the length of a TCP header, in bytes.
const (
	TCPMinLen = 20
	TCPMaxLen = 60
)

// TCPChecksumOffset is where the checksum lies in a TCP header, in bytes: the csum_offset of a
// virtio-net header.
const TCPChecksumOffset = 16

// Flags (RFC 9293, section 3.1; RFC 3168, section 6.1).
const (
	TCPFin uint8 = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// Kinds of options (RFC 9293, section 3.2; RFC 7323; RFC 2018; RFC 2385; RFC 5925), and the length of the
// MSS option in bytes, kind and length included.
const (
	TCPOptionEnd           uint8 = OptionEnd
	TCPOptionNop           uint8 = OptionNop
	TCPOptionMSS           uint8 = 2
	TCPOptionWindowScale   uint8 = 3
	TCPOptionSACKPermitted uint8 = 4
	TCPOptionSACK          uint8 = 5
	TCPOptionTimestamps    uint8 = 8
	TCPOptionMD5           uint8 = 19
	TCPOptionAO            uint8 = 29

	TCPOptionMSSLen = 4
)

const (
	tcpSrcPort    = 0
	tcpDstPort    = 2
	tcpSeq        = 4
	tcpAck        = 8
	tcpDataOffset = 12
	tcpFlags      = 13
	tcpWindow     = 14
	tcpUrgent     = 18
)

// TCP is a TCP header, and what follows it (RFC 9293, section 3.1).
type TCP []byte

// SrcPort returns the source port.
func (h TCP) SrcPort() uint16 { return binary.BigEndian.Uint16(h[tcpSrcPort:tcpDstPort]) }

// DstPort returns the destination port.
func (h TCP) DstPort() uint16 { return binary.BigEndian.Uint16(h[tcpDstPort:tcpSeq]) }

// Seq returns the sequence number of the first byte of payload, or of the SYN.
func (h TCP) Seq() uint32 { return binary.BigEndian.Uint32(h[tcpSeq:tcpAck]) }

// Ack returns the acknowledgment number; it counts only with TCPAck.
func (h TCP) Ack() uint32 { return binary.BigEndian.Uint32(h[tcpAck:tcpDataOffset]) }

// DataOffset returns the length of the header with its options in bytes: 0 to 60, a multiple of 4.
func (h TCP) DataOffset() int { return int(h[tcpDataOffset]>>4) * 4 }

// Flags returns the eight flags.
func (h TCP) Flags() uint8 { return h[tcpFlags] }

// Window returns the window as it is on the wire, not scaled.
func (h TCP) Window() uint16 { return binary.BigEndian.Uint16(h[tcpWindow:TCPChecksumOffset]) }

// Checksum returns the checksum of pseudo-header, header and payload.
func (h TCP) Checksum() uint16 { return binary.BigEndian.Uint16(h[TCPChecksumOffset:tcpUrgent]) }

// Urgent returns the urgent pointer; it counts only with TCPUrg.
func (h TCP) Urgent() uint16 { return binary.BigEndian.Uint16(h[tcpUrgent:TCPMinLen]) }

// Options returns the options, empty for a header of TCPMinLen.
func (h TCP) Options() []byte { return h[TCPMinLen:h.DataOffset()] }

// OptionList returns the options to be walked.
func (h TCP) OptionList() Options { return Options{list: h.Options()} }

// WalkOptions calls fn for each option with its kind and its data (without kind and length), leaving out
// padding, until fn returns false or the list ends. It returns false if it met an option whose length is
// under 2 or runs over the header. Data is in place: writing to it changes the packet. fn must not keep it.
func (h TCP) WalkOptions(fn func(kind byte, data []byte) bool) bool { return h.OptionList().walk(fn) }

// SetSrcPort sets the source port.
func (h TCP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(h[tcpSrcPort:tcpDstPort], v) }

// SetDstPort sets the destination port.
func (h TCP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(h[tcpDstPort:tcpSeq], v) }

// SetSeq sets the sequence number.
func (h TCP) SetSeq(v uint32) { binary.BigEndian.PutUint32(h[tcpSeq:tcpAck], v) }

// SetAck sets the acknowledgment number.
func (h TCP) SetAck(v uint32) { binary.BigEndian.PutUint32(h[tcpAck:tcpDataOffset], v) }

// SetDataOffset sets the length of the header to n bytes, a multiple of 4 from TCPMinLen to TCPMaxLen.
// The reserved bits next to it stay.
func (h TCP) SetDataOffset(n int) { h[tcpDataOffset] = h[tcpDataOffset]&0x0f | uint8(n/4)<<4 }

// SetFlags sets the eight flags.
func (h TCP) SetFlags(v uint8) { h[tcpFlags] = v }

// SetWindow sets the window as it is on the wire.
func (h TCP) SetWindow(v uint16) { binary.BigEndian.PutUint16(h[tcpWindow:TCPChecksumOffset], v) }

// SetChecksum sets the checksum of pseudo-header, header and payload.
func (h TCP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(h[TCPChecksumOffset:tcpUrgent], v) }

// SetUrgent sets the urgent pointer.
func (h TCP) SetUrgent(v uint16) { binary.BigEndian.PutUint16(h[tcpUrgent:TCPMinLen], v) }
