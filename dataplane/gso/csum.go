package gso

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Checksum is the state of the transport checksum of a frame.
type Checksum uint8

// The states that Verify tells apart.
const (
	None     Checksum = iota // the frame has none: other protocol, fragment, or UDP over IPv4 without one
	Partial                  // holds the sum of the pseudo-header alone: left for hardware to complete
	Complete                 // holds the right checksum
	Wrong                    // holds something else
)

// checksumField returns the offset of the checksum in the TCP or UDP header.
func checksumField(p *frame.Parsed) int {
	if p.Proto == header.ProtoTCP {
		return int(p.L4Off) + 16
	}
	return int(p.L4Off) + 6
}

// transportEnd returns where the TCP segment or UDP datagram ends. UDP carries its own length, which may
// be less than that of the IP packet.
func transportEnd(b []byte, p *frame.Parsed) int {
	if p.Proto == header.ProtoUDP {
		return int(p.L4Off) + int(binary.BigEndian.Uint16(b[p.L4Off+4:]))
	}
	return p.End
}

// Verify tells in which state the transport checksum of b is. p must come from parsing b.
//
// A sender on the same machine leaves checksums partial, and they arrive so over virtual links. A complete
// checksum that happens to equal the pseudo-header's sum is reported as Partial; completing it again gives
// the same value.
func Verify(b []byte, p *frame.Parsed) Checksum {
	if p.PayloadOff == 0 {
		return None
	}
	field := binary.BigEndian.Uint16(b[checksumField(p):])
	if field == 0 && p.Proto == header.ProtoUDP && p.L3 == frame.IPv4 {
		return None
	}
	end := transportEnd(b, p)
	sum := pseudo(b, p, end-int(p.L4Off))
	if field == checksum.Fold(sum) {
		return Partial
	}
	if checksum.Fold(checksum.Sum(b[p.L4Off:end], sum)) != 0xffff {
		return Wrong
	}
	return Complete
}

// CompleteTransport writes the right transport checksum into b. p must come from parsing b and have PayloadOff set.
func CompleteTransport(b []byte, p *frame.Parsed) {
	at := checksumField(p)
	binary.BigEndian.PutUint16(b[at:], 0)
	end := transportEnd(b, p)
	v := ^checksum.Fold(checksum.Sum(b[p.L4Off:end], pseudo(b, p, end-int(p.L4Off))))
	if v == 0 && p.Proto == header.ProtoUDP {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], v)
}

// MakePartial writes the sum of the pseudo-header into the checksum field of b, as a kernel expects it in a
// frame whose virtio-net header says NEEDS_CSUM, and returns where the sum starts and where, relative to
// that, the field is.
func MakePartial(b []byte, p *frame.Parsed) (start, offset uint16) {
	at := checksumField(p)
	binary.BigEndian.PutUint16(b[at:], checksum.Fold(pseudo(b, p, transportEnd(b, p)-int(p.L4Off))))
	return p.L4Off, uint16(at) - p.L4Off
}

// CompleteOffload finishes the checksum that the virtio-net header h asks for: the sum from CsumStart to
// the end of b, written at CsumOffset behind CsumStart (Virtual I/O Device 1.3, section 5.1.6.2). It
// reports false, having changed nothing, when the header points outside b.
func CompleteOffload(b []byte, h *header.VirtioNet) bool {
	start, at := int(h.CsumStart), int(h.CsumStart)+int(h.CsumOffset)
	if start < header.EthernetLen || at+2 > len(b) {
		return false
	}
	v := ^checksum.Fold(checksum.Sum(b[start:], 0))
	if v == 0 {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], v)
	return true
}
