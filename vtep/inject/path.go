package inject

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/header"
)

// maxOuter is the length of the longest headers in front of a datagram.
const maxOuter = header.EthernetLen + header.IPv6Len + header.UDPLen

// maxPacket is the longest packet, with its Ethernet header, that devices take in one piece unless they are set to
// less: one byte below the kernel's usual gso_max_size. What outer IPv4 and UDP headers can state is more.
const maxPacket = 65535

// PathConfig says how datagrams to one peer are to look and where they leave.
type PathConfig struct {
	Local, Peer netip.Addr // of one family
	Port        uint16     // of VXLAN at the peer
	TTL         int        // TTL or hop limit, 1 to 255
	Checksum    bool       // send outer UDP checksums; over IPv6 they always are
	Device      int        // interface index of the underlay device
	MaxPacket   int        // longest packet, with its Ethernet header, that the device takes; 0: as usual
}

// Path is the way to one peer. It does not change.
type Path struct {
	dev    *Device
	v6     bool
	tunnel uint8 // bit of the GSO type
	flags  uint8 // of the virtio-net header
	outer  int   // length of the headers
	most   int   // length of the longest datagram
	// header holds the outer headers but for lengths, traffic class, source port and checksums, which are zero.
	header [maxOuter]byte
	ipSum  uint64 // sum of the IPv4 header in it
	pseudo uint64 // sum of the pseudo-header of UDP, but for the length
}

// NewPath prepares injections to one peer.
func (d *Device) NewPath(c PathConfig) (*Path, error) {
	if !c.Local.IsValid() || !c.Peer.IsValid() || c.Local.Is4() != c.Peer.Is4() || c.Local.Is4In6() || c.Peer.Is4In6() {
		return nil, fmt.Errorf("a path from %v to %v: state two addresses of one family", c.Local, c.Peer)
	}
	if c.TTL < 1 || c.TTL > 255 || c.Device < 1 {
		return nil, fmt.Errorf("a path to %v with TTL %d by device %d: state a TTL of 1 to 255 and a device", c.Peer, c.TTL, c.Device)
	}
	p := &Path{dev: d, v6: c.Local.Is6()}
	h := p.header[:]
	// Both addresses are locally administered (IEEE 802, 8.2) and not group addresses, which the kernel would not
	// redirect.
	h[0], h[6] = 2, 2
	binary.BigEndian.PutUint32(h[indexAt:], uint32(c.Device))
	ip := h[header.EthernetLen:]
	local, peer := c.Local.AsSlice(), c.Peer.AsSlice()
	if p.v6 {
		binary.BigEndian.PutUint16(h[12:], header.EtherTypeIPv6)
		// The flow label is 0, as in what the sockets send, or routers would take one flow for two.
		ip[0], ip[6], ip[7] = 0x60, header.ProtoUDP, uint8(c.TTL)
		copy(ip[8:], local)
		copy(ip[24:], peer)
		p.tunnel = header.GSOUDPTunnelIPv6
		p.outer = header.EthernetLen + header.IPv6Len + header.UDPLen
		p.pseudo = checksum.PseudoIPv6(local, peer, header.ProtoUDP, 0)
	} else {
		binary.BigEndian.PutUint16(h[12:], header.EtherTypeIPv4)
		// DF is set, and the identification then means nothing (RFC 6864, section 4.1).
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, uint8(c.TTL), header.ProtoUDP
		copy(ip[12:], local)
		copy(ip[16:], peer)
		p.tunnel = header.GSOUDPTunnelIPv4
		p.outer = header.EthernetLen + header.IPv4MinLen + header.UDPLen
		p.ipSum = checksum.Sum(ip[:header.IPv4MinLen], 0)
		p.pseudo = checksum.PseudoIPv4(local, peer, header.ProtoUDP, 0)
	}
	binary.BigEndian.PutUint16(h[p.outer-header.UDPLen+2:], c.Port)
	p.most = maxPacket - p.outer
	if c.MaxPacket != 0 {
		p.most = min(p.most, c.MaxPacket-p.outer)
	}
	p.flags = header.VirtioFlagNeedsCsum
	if c.Checksum || p.v6 {
		p.flags |= header.VirtioFlagTunnelCsum
	}
	return p, nil
}

// Device returns what p leads through.
func (p *Path) Device() *Device { return p.dev }

// MaxDatagram is the largest UDP payload, VXLAN header included, that leaves for the peer in one piece, in bytes.
func (p *Path) MaxDatagram() int { return p.most }

// encode writes the outer headers of a datagram of n bytes to b, which has p.outer bytes.
func (p *Path) encode(b []byte, source uint16, tos uint8, n int) {
	copy(b, p.header[:p.outer])
	length := header.UDPLen + n
	ip := b[header.EthernetLen:]
	if p.v6 {
		ip[0] |= tos >> 4
		ip[1] |= tos << 4
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
	} else {
		total := header.IPv4MinLen + length
		ip[1] = tos
		binary.BigEndian.PutUint16(ip[2:], uint16(total))
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Fold(p.ipSum+uint64(tos)+uint64(total)))
	}
	udp := b[p.outer-header.UDPLen:]
	binary.BigEndian.PutUint16(udp, source)
	binary.BigEndian.PutUint16(udp[4:], uint16(length))
	if p.flags&header.VirtioFlagTunnelCsum != 0 {
		// Every segment will have a checksum of its own, so all that can be there now is the sum of the
		// pseudo-header.
		binary.BigEndian.PutUint16(udp[header.UDPChecksumOffset:], checksum.Fold(p.pseudo+uint64(length)))
	}
}
