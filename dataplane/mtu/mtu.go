package mtu

import (
	"fmt"
	"net/netip"
)

// UnderlayMTU is the largest IP packet, in bytes with its IP header, that the interface or the route
// towards a peer sends.
type UnderlayMTU int

// PathMTU is the largest outer IP packet, in bytes with its IP header, that is known to reach one peer
// over one address family. It is at most the UnderlayMTU towards that peer.
type PathMTU int

// OverlayMTU is the largest inner IP packet, in bytes with its IP header, that a network carries: the MTU
// of a container's interface.
type OverlayMTU int

// MSS is the largest TCP payload of one segment, in bytes, without options (RFC 9293, section 3.7.1).
type MSS int

// The smallest MTU with which each version of IP works at all.
const (
	MinIPv4 OverlayMTU = 68   // RFC 791, section 3.2
	MinIPv6 OverlayMTU = 1280 // RFC 8200, section 5
)

// CarriesIPv6 reports whether inner IPv6 works with this MTU. Linux takes IPv6 off an interface whose MTU
// is below 1280.
func (m OverlayMTU) CarriesIPv6() bool { return m >= MinIPv6 }

// Family is a version of IP.
type Family uint8

// The families; the zero Family is that of an invalid address.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family in which packets to a travel: an IPv4 address mapped into IPv6 is IPv4. It
// is 0 for the zero Addr.
func FamilyOf(a netip.Addr) Family {
	switch {
	case a.Is4(), a.Is4In6():
		return IPv4
	case a.Is6():
		return IPv6
	default:
		return 0
	}
}

func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	default:
		return fmt.Sprintf("Family(%d)", uint8(f))
	}
}

// The terms of the overhead, in bytes.
const (
	ethernetLen = 14 // destination, source, EtherType; the frame check sequence is not carried (RFC 7348, section 5)
	vlanLen     = 4  // one 802.1Q or 802.1ad tag
	vxlanLen    = 8
	udpLen      = 8
	ipv4Len     = 20 // the outer header never has options
	ipv6Len     = 40 // nor extension headers
	tcpLen      = 20 // without options
)

// maxPacket is the largest IP packet that is ever counted on, for a device may claim more (the loopback has
// 65536) than the 16 bits of an IPv4 or UDP length can say.
const maxPacket = 65535

// ipLen is the length of the plain IP header. An unknown family counts as the longer one, so that a size
// derived from it fits in any case.
func ipLen(f Family) int {
	if f == IPv4 {
		return ipv4Len
	}
	return ipv6Len
}

// Overhead is the number of bytes by which a datagram on the underlay, outer IP header included, is longer
// than the inner IP packet in it, when the inner frame has vlanTags tags: 50 over IPv4 and 70 over IPv6
// without tags, and 4 more for each tag.
func Overhead(outer Family, vlanTags int) int {
	return ipLen(outer) + udpLen + vxlanLen + ethernetLen + vlanTags*vlanLen
}

// Term is one part of the overhead.
type Term struct {
	Name  string
	Bytes int
}

// Terms lists what Overhead is made of, from the outside inwards.
func Terms(outer Family, vlanTags int) []Term {
	ip := Term{"outer IPv6", ipv6Len}
	if outer == IPv4 {
		ip = Term{"outer IPv4", ipv4Len}
	}
	terms := []Term{ip, {"UDP", udpLen}, {"VXLAN", vxlanLen}, {"inner Ethernet", ethernetLen}}
	if vlanTags > 0 {
		terms = append(terms, Term{"inner VLAN tags", vlanTags * vlanLen})
	}
	return terms
}

// OverlayOf is the OverlayMTU that a path leaves to untagged inner frames. The error says that it would be
// below MinIPv4, where no IP can work; whether it is enough for inner IPv6 is for CarriesIPv6 to say.
func OverlayOf(path PathMTU, outer Family) (OverlayMTU, error) {
	if outer != IPv4 && outer != IPv6 {
		return 0, fmt.Errorf("overlay MTU for a path of %d bytes: the outer address family is neither IPv4 nor IPv6: give the VTEP a valid address", path)
	}
	overhead := Overhead(outer, 0)
	m := OverlayMTU(min(int(path), maxPacket) - overhead)
	if m < MinIPv4 {
		return 0, fmt.Errorf("overlay MTU for a path of %d bytes over %v: %d bytes of encapsulation leave less than the %d that IP needs: raise the MTU of the underlay to at least %d",
			path, outer, overhead, MinIPv4, int(MinIPv4)+overhead)
	}
	return m, nil
}

// MaxFrame is the length in bytes of the largest inner frame, from its Ethernet header on and with its tags,
// that fits in one unfragmented datagram on the path; 0 when there is no room even for an Ethernet header.
func MaxFrame(path PathMTU, outer Family) int {
	n := min(int(path), maxPacket) - Overhead(outer, 0) + ethernetLen
	if n < ethernetLen {
		return 0
	}
	return n
}

// MSSOf is the largest MSS whose segments, with plain IP and TCP headers, are within the overlay MTU; 0 when
// the headers alone fill it.
func MSSOf(overlay OverlayMTU, inner Family) MSS {
	return MSS(max(0, int(overlay)-ipLen(inner)-tcpLen))
}
