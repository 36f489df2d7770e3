package suppress

import (
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/header"
)

// advertLen is the length of a neighbor advertisement with the one option that it carries, in bytes.
const advertLen = header.NDNeighborLen + header.NDLinkAddrLen

// MaxReplyLen is the capacity in bytes that out needs for the answer to any frame with up to two VLAN tags.
const MaxReplyLen = header.EthernetLen + 2*header.VLANLen + header.IPv6Len + advertLen

// Answer returns the answer to an ARP request or neighbor solicitation whose target n knows, in the name of the
// target and with the tags of the frame; ok is false when there is none and the frame is to go on.
//
// The network header is at frame[l3off], after all tags, and etherType says what it is. The frame need not be
// checked any further. It is only read, and neither it nor n is kept. The reply lies at the start of out, as
// far as its capacity reaches, which must not overlap frame; there is none if that does not suffice.
func Answer(frame []byte, l3off int, etherType uint16, n *fdb.Neighbors, out []byte) (reply []byte, ok bool) {
	if l3off < header.EthernetLen || l3off > len(frame) {
		return nil, false
	}
	asker := header.Ethernet(frame).Src()
	if asker.IsMulticast() || asker.IsZero() || !header.Ethernet(frame).Dst().IsMulticast() {
		return nil, false
	}
	switch etherType {
	case header.EtherTypeARP:
		return answerARP(frame, l3off, asker, n, out)
	case header.EtherTypeIPv6:
		return answerND(frame, l3off, asker, n, out)
	default:
		return nil, false
	}
}

func answerARP(frame []byte, l3off int, asker addr.MAC, n *fdb.Neighbors, out []byte) ([]byte, bool) {
	if len(frame)-l3off < header.ARPLen || cap(out) < l3off+header.ARPLen {
		return nil, false
	}
	q := header.ARP(frame[l3off:])
	if !q.IsEthernetIPv4() || q.Op() != header.ARPRequest || q.SenderMAC() != asker {
		return nil, false
	}
	// A probe comes from 0.0.0.0 and is answered to there. An announcement names its sender twice.
	sender, target := q.SenderIP(), q.TargetIP()
	if sender == target {
		return nil, false
	}
	owner, ok := ownerOf(target, asker, n)
	if !ok {
		return nil, false
	}
	out = out[:l3off+header.ARPLen]
	putEthernet(out, frame[:l3off], asker, owner)
	putARP(out[l3off:], header.ARPReply, owner, target, asker, sender)
	return out, true
}

func putARP(out []byte, op uint16, senderMAC addr.MAC, sender netip.Addr, targetMAC addr.MAC, target netip.Addr) {
	a := header.ARP(out)
	a.SetEthernetIPv4()
	a.SetOp(op)
	a.SetSenderMAC(senderMAC)
	a.SetSenderIP(sender)
	a.SetTargetMAC(targetMAC)
	a.SetTargetIP(target)
}

func answerND(frame []byte, l3off int, asker addr.MAC, n *fdb.Neighbors, out []byte) ([]byte, bool) {
	const replyLen = header.IPv6Len + advertLen
	if len(frame)-l3off < header.IPv6Len+header.NDNeighborLen || cap(out) < l3off+replyLen {
		return nil, false
	}
	ip := header.IPv6(frame[l3off:])
	message := frame[l3off+header.IPv6Len:]
	length := int(ip.PayloadLen())
	if ip.Version() != 6 || ip.NextHeader() != header.ProtoICMPv6 || ip.HopLimit() != header.NDHopLimit ||
		length < header.NDNeighborLen || length > len(message) {
		return nil, false
	}
	message = message[:length] // without the padding of a short frame
	icmp := header.ICMPv6(message)
	if icmp.Type() != header.ICMPv6NeighborSol || icmp.Code() != 0 {
		return nil, false
	}
	src, target := ip.Src(), header.NDNeighbor(message).Target()
	if target.IsLinkLocalUnicast() || target.IsMulticast() || target.Is4In6() ||
		src.IsMulticast() || src == target || ip.Dst() != solicitedNode(target) {
		return nil, false
	}
	owner, ok := ownerOf(target, asker, n)
	if !ok || !validOptions(message, asker, src.IsUnspecified()) {
		return nil, false
	}
	if checksum.Fold(checksum.Sum(message, ip.PseudoSum(header.ProtoICMPv6, length))) != 0xffff {
		return nil, false
	}

	// Who has no address yet is answered by way of all nodes, and did not solicit it (RFC 4861, section 7.2.4).
	to, at, flags := src, asker, header.NDFlagSolicited|header.NDFlagOverride
	if src.IsUnspecified() {
		to, at, flags = netip.IPv6LinkLocalAllNodes(), addr.MAC{0x33, 0x33, 0, 0, 0, 1}, header.NDFlagOverride
	}
	out = out[:l3off+replyLen]
	putEthernet(out, frame[:l3off], at, owner)
	putAdvert(out[l3off:], owner, target, to, flags)
	return out, true
}

// putAdvert writes a neighbor advertisement with its IPv6 header, by which owner tells to that target is its own.
func putAdvert(out []byte, owner addr.MAC, target, to netip.Addr, flags uint8) {
	clear(out)
	ip := header.IPv6(out)
	ip.SetVersion()
	ip.SetPayloadLen(advertLen)
	ip.SetNextHeader(header.ProtoICMPv6)
	ip.SetHopLimit(header.NDHopLimit)
	ip.SetSrc(target)
	ip.SetDst(to)
	advert := out[header.IPv6Len:]
	header.ICMPv6(advert).SetType(header.ICMPv6NeighborAdv)
	header.NDNeighbor(advert).SetFlags(flags)
	header.NDNeighbor(advert).SetTarget(target)
	header.PutNDLinkAddr(advert[header.NDNeighborLen:], header.NDOptionTargetLinkAddr, owner)
	sum := checksum.Sum(advert, ip.PseudoSum(header.ProtoICMPv6, advertLen))
	header.ICMPv6(advert).SetChecksum(^checksum.Fold(sum))
}

// ownerOf looks up the station that answers for target: not the asker itself, and one that can have sent a frame.
func ownerOf(target netip.Addr, asker addr.MAC, n *fdb.Neighbors) (addr.MAC, bool) {
	owner, ok := n.Lookup(target)
	return owner, ok && owner != asker && !owner.IsMulticast() && !owner.IsZero()
}

// validOptions makes the checks of RFC 4861, section 7.1.1, on the options of a solicitation: none is malformed, and
// there is no source link-layer address when there is no source. If there is one, it must be the asker's.
func validOptions(solicitation []byte, asker addr.MAC, noSource bool) bool {
	options := header.NDNeighbor(solicitation).OptionList()
	for options.Next() {
		if options.Kind() == header.NDOptionSourceLinkAddr && (noSource || options.LinkAddr() != asker) {
			return false
		}
	}
	return !options.Malformed()
}

// solicitedNode is the multicast address at which the owner of a listens for solicitations: the last 24 bits of a
// in ff02::1:ff00:0/104 (RFC 4291, section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// putEthernet writes the Ethernet header of the reply, with types and tags as in the request.
func putEthernet(reply, request []byte, dst, src addr.MAC) {
	copy(reply, request)
	header.Ethernet(reply).SetDst(dst)
	header.Ethernet(reply).SetSrc(src)
}
