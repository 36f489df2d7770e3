package forward

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// faultReasons maps what the parser finds to the reason under which it is counted.
var faultReasons = [frame.NumFaults]DropReason{
	frame.Sound:        NotDropped,
	frame.Runt:         FrameRunt,
	frame.BadLength:    FrameBadLength,
	frame.BadSource:    FrameBadSource,
	frame.BadIPHeader:  IPBadHeader,
	frame.BadIPOption:  IPBadOption,
	frame.BadFragment:  IPBadFragment,
	frame.BadTCPOption: TCPBadOption,
}

// nested reports whether b is itself a datagram to the VXLAN port.
func nested(b []byte, p *frame.Parsed, port uint16) bool {
	return p.Proto == header.ProtoUDP && p.L4Off != 0 && binary.BigEndian.Uint16(b[p.L4Off+2:]) == port
}

// innerECN returns the ECN field of the packet in b; 0 (not ECN-capable) for what is not IP.
func innerECN(b []byte, p *frame.Parsed) uint8 {
	switch p.L3 {
	case frame.IPv4:
		return b[p.L3Off+1] & header.ECNMask
	case frame.IPv6:
		return b[p.L3Off+1] >> 4 & header.ECNMask
	}
	return header.ECNNotECT
}

// decapECN brings the ECN field of the outer header into the inner one as RFC 6040, figure 4 says. It
// reports false when the combination says that the frame must be dropped: congestion was marked on a packet
// whose sender would not hear of it.
func decapECN(b []byte, p *frame.Parsed, outer uint8) bool {
	outer &= header.ECNMask
	inner := innerECN(b, p)
	if p.L3 != frame.IPv4 && p.L3 != frame.IPv6 {
		return true
	}
	switch {
	case outer == header.ECNCE && inner == header.ECNNotECT:
		return false
	case outer == header.ECNCE && inner != header.ECNCE,
		outer == header.ECNECT1 && inner == header.ECNECT0:
		setECN(b, p, outer)
	}
	return true
}

func setECN(b []byte, p *frame.Parsed, ecn uint8) {
	ip := b[p.L3Off:]
	if p.L3 == frame.IPv6 {
		ip[1] = ip[1]&^(header.ECNMask<<4) | ecn<<4
		return
	}
	old := binary.BigEndian.Uint16(ip)
	ip[1] = ip[1]&^header.ECNMask | ecn
	sum := binary.BigEndian.Uint16(ip[10:])
	binary.BigEndian.PutUint16(ip[10:], checksum.Update(sum, old, binary.BigEndian.Uint16(ip)))
}
