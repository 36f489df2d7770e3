package fastpath

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// The DHCP ports that belong to clients, which packets never take the fast path to: a network may watch them.
const (
	dhcp4 = header.DHCPClientPort
	dhcp6 = header.DHCPv6ClientPort
)

// Leaving looks at a frame from the TAP as the program there did. ok says that the packet is of a kind which may take the
// fast path, and has been counted as one that did not; it has to be reported by LeftDone with hash when it is dealt
// with. b is the frame from its Ethernet header on.
func (t *Table) Leaving(outlet uint32, b []byte) (k LeaveKey, hash uint32, ok bool) {
	if len(b) < header.EthernetLen {
		return k, 0, false
	}
	k.Outlet = outlet
	copy(k.Ethernet[:], b)
	h, ok := t.inner(b, &k.Ethernet, &k.From)
	return k, uint32(h), ok
}

// Arriving names the pair of stations of the first frame in a datagram, or train of datagrams, from outer to local. ok
// says that the packet is of a kind which may take the fast path.
func (t *Table) Arriving(outer, local netip.Addr, datagram []byte) (k ArriveKey, ok bool) {
	if len(datagram) < header.VXLANLen+header.EthernetLen || !outer.Is4() || !local.Is4() {
		return k, false
	}
	copy(k.VNI[:], datagram[4:8])
	k.Outer, k.Local = outer.As4(), local.As4()
	b := datagram[header.VXLANLen:]
	copy(k.Ethernet[:], b)
	_, ok = t.inner(b, &k.Ethernet, &k.From)
	return k, ok
}

// inner does in Go what program.inner does in BPF. Both must come to the same result, or flows wait at their gates.
func (t *Table) inner(b []byte, eth *[header.EthernetLen]byte, from *[16]byte) (hash uint64, ok bool) {
	ip := b[header.EthernetLen:]
	var proto uint8
	var upper []byte
	switch binary.BigEndian.Uint16(eth[12:]) {
	case header.EtherTypeIPv4:
		if len(ip) < header.IPv4MinLen || ip[0] != 0x45 || binary.BigEndian.Uint16(ip[6:])&fragment4 != 0 {
			return 0, false
		}
		proto, upper = ip[9], ip[header.IPv4MinLen:]
		copy(from[:], ip[12:16])
		hash = frame.Mix(uint64(proto)+1, binary.BigEndian.Uint64(ip[12:]))
	case header.EtherTypeIPv6:
		if len(ip) < header.IPv6Len || ip[0]>>4 != 6 {
			return 0, false
		}
		proto, upper = ip[6], ip[header.IPv6Len:]
		copy(from[:], ip[8:24])
		hash = uint64(proto) + 1
		for i := 8; i < header.IPv6Len; i += 8 {
			hash = frame.Mix(hash, binary.BigEndian.Uint64(ip[i:]))
		}
	default:
		return 0, false
	}
	switch proto {
	case header.ProtoTCP:
		if len(upper) < header.TCPMinLen || upper[12]>>4 < header.TCPMinLen/4 {
			return 0, false
		}
	case header.ProtoUDP:
		if len(upper) < header.UDPLen {
			return 0, false
		}
		if p := binary.BigEndian.Uint16(upper[2:]); p == t.port || p == dhcp4 || p == dhcp6 {
			return 0, false
		}
	case header.ProtoICMP:
		return hash, len(upper) >= 2 && (upper[0] == header.ICMPEcho || upper[0] == header.ICMPEchoReply)
	case header.ProtoICMPv6:
		return hash, len(upper) >= 2 && (upper[0] == header.ICMPv6Echo || upper[0] == header.ICMPv6EchoReply)
	default:
		return 0, false
	}
	return frame.Mix(hash, uint64(binary.BigEndian.Uint32(upper))), true
}

// fragment4 are the bits of an IPv4 header's fragment field that a whole packet has not: more fragments, and the offset.
const fragment4 = 0x3fff

// outerHash tells apart what comes from different ports, or hosts: all frames of a flow have the same (RFC 7348,
// section 5).
func outerHash(from netip.Addr, port uint16) uint32 {
	a := from.As4()
	return uint32(frame.Mix(frame.Mix(1, uint64(binary.BigEndian.Uint32(a[:]))), uint64(port)))
}

// gateOf returns the number of a flow's gate. The four bits below choose its source port.
func gateOf(hash uint32) uint32 { return hash >> 4 & (gates - 1) }
