package forward

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// On an isolated network the tables are complete: every station is registered with its MAC, its addresses and the
// host behind which it lives. So a frame that claims something else is a lie, and a destination that is not there
// need not be looked for.
//
// Both ends check, by the same rules. The sender's host keeps a station from posing as another; the receiver's host
// keeps a host from posing as another, should one be taken over. What passes between two stations behind one bridge
// is not seen here.
//
// A station may use the addresses that Neighbors has for its MAC. Link-local IPv6 addresses are not registered: each
// station has the one that follows from its MAC by EUI-64 (RFC 4291, appendix A), which nobody else can have, and no
// other. If such an address is registered nevertheless, it belongs to whom it is registered for.
//
// Frames with VLAN tags and protocols other than ARP and IP are refused. Nothing is known of stations on other VLANs;
// and a receiver takes tags with the VLAN 0 off, however many there are, so that behind them anything could hide.

// owner returns the MAC that may use ip: the one that it is registered for, or the one that it is made of.
func (n *Network) owner(ip netip.Addr) (addr.MAC, bool) {
	if ip.Is4In6() { // registered as IPv4, and never on a wire
		return addr.MAC{}, false
	}
	if mac, ok := n.Neighbors.Lookup(ip); ok {
		return mac, true
	}
	if ip.Is6() && ip.IsLinkLocalUnicast() {
		return fromEUI64(ip.As16())
	}
	return addr.MAC{}, false
}

// fromEUI64 returns the MAC of which the link-local address ip is made (RFC 4291, section 2.5.6 and appendix A).
func fromEUI64(ip [16]byte) (addr.MAC, bool) {
	const group, local = 1, 2 // bits of a MAC's first octet; the second is inverted
	if binary.BigEndian.Uint64(ip[:]) != 0xfe80<<48 || ip[11] != 0xff || ip[12] != 0xfe || ip[8]&group != 0 {
		return addr.MAC{}, false
	}
	return addr.MAC{ip[8] ^ local, ip[9], ip[10], ip[13], ip[14], ip[15]}, true
}

func (n *Network) owns(mac addr.MAC, ip netip.Addr) bool {
	owner, ok := n.owner(ip)
	return ok && owner == mac
}

// verify reports why the sound frame b, which p describes, cannot be from a station behind the VTEP from.
func (n *Network) verify(b []byte, p *frame.Parsed, from fdb.VTEPID) DropReason {
	mac := header.Ethernet(b).Src()
	switch at, ok := n.FDB.LookupStatic(mac); {
	case !ok:
		return SourceMACUnknown
	case at != from:
		return SourceSpoofed
	case mac == n.GatewayMAC && from == fdb.Local:
		return DestinationLocal // every host has a gateway of this MAC, and this one's is for its own containers
	case p.Tags != 0:
		return ProtocolRefused
	}
	switch p.L3 {
	case frame.IPv4:
		if !n.owns(mac, header.IPv4(b[p.L3Off:]).Src()) {
			return SourceIPSpoofed
		}
		if p.Proto == header.ProtoUDP && toPort(b, upper4(b, p), header.DHCPClientPort) {
			return RogueDHCP
		}
		return NotDropped
	case frame.IPv6:
		return n.verifyIPv6(b, p, mac, from)
	case frame.ARP:
		return n.verifyARP(header.ARP(b[p.L3Off:p.End]), mac, from)
	}
	return ProtocolRefused
}

// accept is verify for a frame from the underlay, which must also be for somebody here: the bridge would flood it
// to all stations else.
func (n *Network) accept(b []byte, p *frame.Parsed, from fdb.VTEPID) DropReason {
	if reason := n.verify(b, p, from); reason != NotDropped {
		return reason
	}
	dst := header.Ethernet(b).Dst()
	if dst.IsMulticast() {
		return NotDropped
	}
	if at, ok := n.FDB.LookupStatic(dst); !ok || at != fdb.Local {
		return DestinationUnknown
	}
	return NotDropped
}

// upper4 returns where the header of the upper layer begins in an IPv4 packet, or 0 if it has none: a later fragment.
func upper4(b []byte, p *frame.Parsed) int {
	ip := header.IPv4(b[p.L3Off:])
	if p.Fragment && ip.FragmentOffset() != 0 {
		return 0
	}
	return int(p.L3Off) + ip.HeaderLen()
}

// upper6 returns the protocol and the place of the upper layer in an IPv6 packet. The place is 0 where none can be
// seen: in later fragments, and behind a routing header of an unknown kind, which nobody lets pass. The parser does
// not look into fragments; the first one has to show its upper layer, which is false if it hides it (RFC 7112).
func upper6(b []byte, p *frame.Parsed) (proto uint8, off int, shown bool) {
	if !p.Fragment {
		return p.Proto, int(p.L4Off), true
	}
	const (
		most = 16 // extension headers; what has more hides something
		seen = 4  // bytes of the upper layer that are looked at
	)
	off = int(p.L3Off) + header.IPv6Len
	proto = header.IPv6(b[p.L3Off:]).NextHeader()
	for range most {
		size := header.IPv6ExtMinLen
		switch proto {
		case header.ProtoNone:
			return proto, 0, true
		case header.ProtoHopByHop, header.ProtoRouting, header.ProtoDestOpts, header.ProtoAH, header.ProtoFragment:
			if off+size > p.End {
				return 0, 0, false
			}
		default:
			return proto, off, off+seen <= p.End
		}
		switch proto {
		case header.ProtoAH:
			size += int(b[off+1]) * 4
		case header.ProtoFragment:
			if binary.BigEndian.Uint16(b[off+2:])&0xfff8 != 0 {
				return b[off], 0, true
			}
		default:
			size += int(b[off+1]) * 8
		}
		proto = b[off]
		off += size
	}
	return 0, 0, false
}

// toPort reports whether the UDP header at off, if that is not 0, names this destination port.
func toPort(b []byte, off int, port uint16) bool {
	return off != 0 && header.UDP(b[off:]).DstPort() == port
}

// verifyARP holds the sender that an ARP packet names against who sent the frame. A probe names none (RFC 5227,
// section 1.1). It must be for an address of its sender; for one of somebody else, it gets as far as this host's own
// table, which tells the prober that the address is taken.
func (n *Network) verifyARP(a header.ARP, mac addr.MAC, from fdb.VTEPID) DropReason {
	if !a.IsEthernetIPv4() {
		return ProtocolRefused
	}
	ip := a.SenderIP()
	probe := ip.IsUnspecified() && a.Op() == header.ARPRequest
	if probe {
		ip = a.TargetIP()
	}
	if a.SenderMAC() != mac || !(probe && from == fdb.Local || n.owns(mac, ip)) {
		return ARPSpoofed
	}
	return NotDropped
}

func (n *Network) verifyIPv6(b []byte, p *frame.Parsed, mac addr.MAC, from fdb.VTEPID) DropReason {
	src := header.IPv6(b[p.L3Off:]).Src()
	nameless := src.IsUnspecified()
	if !nameless && !n.owns(mac, src) {
		return SourceIPSpoofed
	}
	proto, off, shown := upper6(b, p)
	switch {
	case !shown:
		return IPBadFragment
	case proto == header.ProtoUDP && toPort(b, off, header.DHCPv6ClientPort):
		return RogueDHCP
	case proto == header.ProtoICMPv6 && off != 0:
		return n.verifyICMPv6(header.ICMPv6(b[off:p.End]), p.Fragment, nameless, mac, from)
	case nameless:
		return SourceIPSpoofed
	}
	return NotDropped
}

// verifyICMPv6 looks at the messages that have a say in who has which address. Stations that have no address yet send
// some of them from none: solicitations (RFC 4861, section 4.1; RFC 4862, section 5.4.2) and multicast listener reports
// (RFC 3590, section 4).
func (n *Network) verifyICMPv6(m header.ICMPv6, fragment, nameless bool, mac addr.MAC, from fdb.VTEPID) DropReason {
	switch m.Type() {
	case header.ICMPv6RouterAdv, header.ICMPv6Redirect:
		return RogueRouter
	case header.ICMPv6NeighborSol, header.ICMPv6NeighborAdv, header.ICMPv6RouterSol:
		if fragment { // which nobody may send, and nobody take (RFC 6980, section 5)
			return NDSpoofed
		}
	case header.ICMPv6MLDReport, header.ICMPv6MLDDone, header.ICMPv6MLDv2Report:
		return NotDropped
	default:
		if nameless {
			return SourceIPSpoofed
		}
		return NotDropped
	}
	var options header.NDOptions
	if m.Type() == header.ICMPv6RouterSol {
		options = m.RouterSolOptions()
	} else {
		if len(m) < header.NDNeighborLen {
			return NDSpoofed
		}
		nd := header.NDNeighbor(m)
		// What is advertised must be the sender's own, and so must what is asked for in duplicate address
		// detection; for the address of somebody else, that is as with an ARP probe.
		advert := m.Type() == header.ICMPv6NeighborAdv
		if advert && nameless || (advert || nameless && from != fdb.Local) && !n.owns(mac, nd.Target()) {
			return NDSpoofed
		}
		options = nd.OptionList()
	}
	for options.Next() {
		kind := options.Kind()
		if (kind == header.NDOptionSourceLinkAddr || kind == header.NDOptionTargetLinkAddr) && options.LinkAddr() != mac {
			return NDSpoofed
		}
	}
	if options.Malformed() {
		return NDSpoofed
	}
	return NotDropped
}

// unanswered decides on the frame b from the TAP, which verify has passed and which may be a question for the owner
// of an address that suppress did not answer. A question for an address that nobody has goes nowhere, so that a
// station that scans a subnet burdens no other host.
func (n *Network) unanswered(b []byte, p *frame.Parsed) DropReason {
	var (
		target   netip.Addr
		nameless bool
		taken    DropReason // for a nameless question after the address of somebody else
	)
	switch {
	case p.L3 == frame.ARP:
		a := header.ARP(b[p.L3Off:])
		if a.Op() != header.ARPRequest {
			return NotDropped
		}
		target, nameless, taken = a.TargetIP(), a.SenderIP().IsUnspecified(), ARPSpoofed
	case p.L3 == frame.IPv6 && p.Proto == header.ProtoICMPv6 && p.L4Off != 0 && header.ICMPv6(b[p.L4Off:]).Type() == header.ICMPv6NeighborSol:
		target = header.NDNeighbor(b[p.L4Off:p.End]).Target()
		nameless, taken = header.IPv6(b[p.L3Off:]).Src().IsUnspecified(), NDSpoofed
	default:
		return NotDropped
	}
	owner, known := n.owner(target)
	var at fdb.VTEPID
	if known {
		at, known = n.FDB.LookupStatic(owner)
	}
	eth := header.Ethernet(b)
	switch {
	case !known:
		return NeighborUnknown
	case owner == eth.Src():
		return NotDropped // an announcement, or duplicate address detection
	case at == fdb.Local && eth.Dst().IsMulticast():
		return DestinationLocal
	case nameless:
		return taken
	}
	return NotDropped
}
