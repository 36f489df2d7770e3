package suppress

import (
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Announce returns the frame by which the station mac tells all others on a link that ip is its own, so that those that
// know ip by another MAC use this one from now on: an ARP announcement (RFC 5227, section 3), or an unsolicited
// neighbor advertisement (RFC 4861, section 7.2.6). It has no tags. Nobody who does not know ip learns it by that.
//
// ok is false, and there is no frame, if ip or mac is not that of one station, or ip is link-local, for the reason that
// the package comment gives. The frame lies at the start of out; there is none if the capacity of that does not suffice.
func Announce(ip netip.Addr, mac addr.MAC, out []byte) (frame []byte, ok bool) {
	const arpLen, ndLen = header.EthernetLen + header.ARPLen, header.EthernetLen + header.IPv6Len + advertLen
	if !ip.IsGlobalUnicast() || ip.Is4In6() || mac.IsMulticast() || mac.IsZero() {
		return nil, false
	}
	switch {
	case ip.Is4() && cap(out) >= arpLen:
		out = out[:arpLen]
		header.Ethernet(out).SetDst(addr.Broadcast)
		header.Ethernet(out).SetEtherType(header.EtherTypeARP)
		putARP(out[header.EthernetLen:], header.ARPRequest, mac, ip, addr.MAC{}, ip)
	case ip.Is6() && cap(out) >= ndLen:
		out = out[:ndLen]
		header.Ethernet(out).SetDst(addr.MAC{0x33, 0x33, 0, 0, 0, 1}) // RFC 2464, section 7
		header.Ethernet(out).SetEtherType(header.EtherTypeIPv6)
		putAdvert(out[header.EthernetLen:], mac, ip, netip.IPv6LinkLocalAllNodes(), header.NDFlagOverride)
	default:
		return nil, false
	}
	header.Ethernet(out).SetSrc(mac)
	return out, true
}
