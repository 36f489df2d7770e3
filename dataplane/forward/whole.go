package forward

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

// sendWhole appends the superframe f to the sends uncut, to become segments with size bytes of payload, if
// s.VTEP takes it so. It fills in s, and leaves the checksum of f to be completed in each segment.
//
// What has VLAN tags, IP options or extension headers is cut here: not every device looks behind these.
func (e *Egress) sendWhole(f *frame.Frame, size int, s *Send) bool {
	if int(s.VTEP) >= len(e.Whole) {
		return false
	}
	p := &e.p
	end, payload := frame.Headroom+p.End, gso.Payload(p)
	if end > e.Whole[s.VTEP] || p.Proto != header.ProtoTCP || p.Tags != 0 || size < 1 || size >= payload {
		return false
	}
	frames := gso.Segments(payload, size)
	if frames > gso.MaxSegments {
		return false
	}
	b := f.Bytes()
	ip := b[p.L3Off:p.End]
	l3len, total, typ := int(p.L4Off-p.L3Off), 0, header.GSOTCPv4
	if p.L3 == frame.IPv4 {
		total = int(binary.BigEndian.Uint16(ip[2:]))
		if l3len != header.IPv4MinLen {
			return false
		}
	} else {
		typ = header.GSOTCPv6
		total = header.IPv6Len + int(binary.BigEndian.Uint16(ip[4:]))
		if l3len != header.IPv6Len {
			return false
		}
	}
	if total != len(ip) {
		return false // the end of it has been taken off
	}
	if p.TCPFlags&header.TCPCwr != 0 {
		typ |= header.GSOECN
	}
	start, offset := gso.MakePartial(b, p)
	s.Whole = true
	s.Offload = header.VirtioNet{
		Flags:        header.VirtioFlagNeedsCsum,
		GSOType:      typ,
		GSOSize:      uint16(size),
		HdrLen:       frame.Headroom + p.PayloadOff,
		CsumStart:    frame.Headroom + start,
		CsumOffset:   offset,
		InnerNetwork: frame.Headroom + p.L3Off,
	}
	s.Size, s.PerDatagram = end, 1
	s.Frames, s.Bytes = frames, frames*int(p.PayloadOff)+payload
	s.First = len(e.Pieces)
	s.End = s.First + 1
	e.Pieces = append(e.Pieces, f.Buf[:end])
	e.Sends = append(e.Sends, *s)
	return true
}
