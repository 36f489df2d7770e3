package icmperr

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// The longest errors, in bytes with their IP header.
const (
	most4 = 576  // RFC 1812, section 4.3.2.3
	most6 = 1280 // RFC 4443, section 3.2: the minimum MTU of IPv6
)

// MaxLen is the length of the longest error, as a frame with two VLAN tags.
const MaxLen = header.EthernetLen + 2*header.VLANLen + most6

const (
	ttl = 64
	tos = 0xc0 // network control: errors are not to be lost where packets are (RFC 1812, section 4.3.2.5)
)

// Write writes into out, which must have MaxLen bytes, the frame that tells the sender of a packet that the way to its
// destination carries packets of at most m bytes, and returns that frame.
//
// The frame in question is head and body, one after the other, without padding. p must come from parsing it, head reach
// at least to the end of its IP header, and Answerable hold.
func Write(out, head, body []byte, p *frame.Parsed, m mtu.OverlayMTU) []byte {
	l3 := int(p.L3Off)
	copy(out, head[:l3])
	eth := header.Ethernet(out)
	eth.SetDst(header.Ethernet(head).Src())
	eth.SetSrc(header.Ethernet(head).Dst())
	if p.L3 == frame.IPv4 {
		return out[:l3+write4(out[l3:], head[l3:], body, m)]
	}
	return out[:l3+write6(out[l3:], head[l3:], body, m)]
}

// quote copies as much of a packet as there is room for.
func quote(out, head, body []byte) int {
	n := copy(out, head)
	return n + copy(out[n:], body)
}

func write4(out, head, body []byte, m mtu.OverlayMTU) int {
	const icmpOff = header.IPv4MinLen
	n := icmpOff + header.ICMPLen
	n += quote(out[n:most4], head, body)
	ip, was := header.IPv4(out[:n]), header.IPv4(head)
	ip.SetHeaderLen(header.IPv4MinLen)
	ip.SetTOS(tos)
	ip.SetTotalLen(uint16(n))
	ip.SetID(0) // of no use where DF is set (RFC 6864, section 4.1)
	ip.SetFlagsFragment(true, false, 0)
	ip.SetTTL(ttl)
	ip.SetProtocol(header.ProtoICMP)
	copy(ip.SrcBytes(), was.DstBytes())
	copy(ip.DstBytes(), was.SrcBytes())
	ip.UpdateChecksum()
	icmp := header.ICMP(out[icmpOff:n])
	icmp.SetType(header.ICMPUnreachable)
	icmp.SetCode(header.ICMPCodeFragNeeded)
	icmp.SetID(0) // the unused half of the word (RFC 1191, section 4)
	icmp.SetNextHopMTU(uint16(m))
	icmp.SetChecksum(0)
	icmp.SetChecksum(checksum.Checksum(icmp))
	return n
}

func write6(out, head, body []byte, m mtu.OverlayMTU) int {
	const icmpOff = header.IPv6Len
	n := icmpOff + header.ICMPv6Len
	n += quote(out[n:most6], head, body)
	ip, was := header.IPv6(out[:n]), header.IPv6(head)
	clear(ip[:4])
	ip.SetVersion()
	ip.SetTrafficClass(tos)
	ip.SetPayloadLen(uint16(n - icmpOff))
	ip.SetNextHeader(header.ProtoICMPv6)
	ip.SetHopLimit(ttl)
	copy(ip.SrcBytes(), was.DstBytes())
	copy(ip.DstBytes(), was.SrcBytes())
	icmp := header.ICMPv6(out[icmpOff:n])
	icmp.SetType(header.ICMPv6PacketTooBig)
	icmp.SetCode(0)
	icmp.SetMTU(uint32(m))
	icmp.SetChecksum(0)
	icmp.SetChecksum(^checksum.Fold(checksum.Sum(icmp, ip.PseudoSum(header.ProtoICMPv6, len(icmp)))))
	return n
}

// Answerable reports whether there may be an error about the sound frame b, which p describes.
//
// There must be none about other errors, about fragments other than the first, about what was sent to many or from
// no single station (RFC 1122, section 3.2.2; RFC 4443, section 2.4(e)), and none to an IPv4 sender who allows
// fragmentation. RFC 4443 would let packets to groups be answered; but such an answer would bear the address of the
// group as its source.
func Answerable(b []byte, p *frame.Parsed) bool {
	eth := header.Ethernet(b)
	if eth.Dst().IsMulticast() || eth.Dst().IsZero() {
		return false
	}
	switch p.L3 {
	case frame.IPv4:
		ip := header.IPv4(b[p.L3Off:])
		if !ip.DontFragment() || ip.FragmentOffset() != 0 || !station4(ip.Src()) || !station4(ip.Dst()) {
			return false
		}
		return p.Proto != header.ProtoICMP || !isError4(b, int(p.L3Off)+ip.HeaderLen())
	case frame.IPv6:
		ip := header.IPv6(b[p.L3Off:])
		if !station6(ip.Src()) || !station6(ip.Dst()) {
			return false
		}
		off, first := int(p.L4Off), true
		if p.Fragment {
			off, first = fragmentPayload(b, p)
		}
		switch p.Proto {
		case header.ProtoHopByHop, header.ProtoRouting, header.ProtoDestOpts, header.ProtoAH:
			return false // of a fragment: what is behind it might be an error
		case header.ProtoICMPv6:
			return first && !isError6(b, off)
		}
		return first
	}
	return false
}

// station4 reports whether ip can be the address of one station.
func station4(ip netip.Addr) bool {
	const reserved = 240 // class E, and the broadcast address
	return !ip.IsUnspecified() && !ip.IsLoopback() && !ip.IsMulticast() && ip.As4()[0] < reserved
}

func station6(ip netip.Addr) bool {
	return !ip.IsUnspecified() && !ip.IsLoopback() && !ip.IsMulticast()
}

// isError4 reports whether the ICMP message at off is an error. One that cannot be seen might be.
func isError4(b []byte, off int) bool {
	return off+header.ICMPLen > len(b) || header.ICMP(b[off:]).IsError()
}

func isError6(b []byte, off int) bool {
	return off == 0 || off+header.ICMPv6Len > len(b) || header.ICMPv6(b[off:]).IsError()
}

// fragmentPayload returns where the fragment of a larger packet in b begins, behind its fragment header, and whether it
// is the first. Parse has found a fragment header, and everything in front of it to be sound.
func fragmentPayload(b []byte, p *frame.Parsed) (off int, first bool) {
	next := header.IPv6(b[p.L3Off:]).NextHeader()
	off = int(p.L3Off) + header.IPv6Len
	for off+header.IPv6ExtMinLen <= len(b) {
		if next != header.ProtoFragment {
			h := header.IPv6Extension(b[off:])
			next, off = h.NextHeader(), off+h.Len(next)
			continue
		}
		word := binary.BigEndian.Uint16(b[off+2:])
		if off += header.IPv6FragmentLen; word != 0 { // 0: a fragment that is alone, which may be in front of another
			return off, word&0xfff8 == 0
		}
		next = b[off-header.IPv6FragmentLen]
	}
	return 0, false
}
