package frame_test

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/gopacket/layers"

	. "github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// sample is a frame, and what Parse is to find in it.
type sample struct {
	name  string
	frame []byte
	fault Fault
	want  Parsed // of sound frames
}

// Handy layers.
func plain() *ft.Builder                      { return ft.Ethernet(ft.MAC(2), ft.MAC(1)) }
func ip4(e ...func(*layers.IPv4)) *ft.Builder { return plain().IPv4(ft.IP4(1), ft.IP4(2), e...) }
func ip6() *ft.Builder                        { return plain().IPv6(ft.IP6(1), ft.IP6(2)) }

func proto4(p uint8) func(*layers.IPv4) {
	return func(l *layers.IPv4) { l.Protocol = layers.IPProtocol(p) }
}

// fragment4 is a fragment of an IPv4 packet with n bytes of payload at offset.
func fragment4(proto uint8, offset int, more bool, n int) []byte {
	return ip4(proto4(proto), func(l *layers.IPv4) {
		l.Flags, l.FragOffset = 0, uint16(offset/8)
		if more {
			l.Flags = layers.IPv4MoreFragments
		}
	}).Payload(n).Bytes()
}

// fragment6 is the same for IPv6. gopacket must be told the next header by hand.
func fragment6(proto uint8, offset int, more bool, n int) []byte {
	b := ip6().Fragment6(offset, more, 7).Payload(n).Bytes()
	b[54] = proto
	return b
}

// options4 puts these IPv4 options, which must be a multiple of 4 bytes long, in front of n bytes of TCP.
func options4(o []byte, n int) []byte {
	b := ft.TCP4(ft.Opts{Payload: n}).Bytes()
	b = append(b[:34:34], append(o, b[34:]...)...)
	b[14] = 0x45 + byte(len(o)/4)
	binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
	return sum4(b, 14)
}

// tcpOptions puts these options, which must be a multiple of 4 bytes long, into a TCP header. The TCP
// checksum, which Parse does not look at, is not right.
func tcpOptions(o []byte, n int) []byte {
	b := ft.TCP4(ft.Opts{Payload: n}).Bytes()
	b = append(b[:54:54], append(o, b[54:]...)...)
	b[46] += byte(len(o) / 4 << 4)
	binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
	return sum4(b, 14)
}

// sum4 makes the checksum of the IPv4 header at b[off:] right.
func sum4(b []byte, off int) []byte {
	h := b[off : off+int(b[off]&15)*4]
	h[10], h[11] = 0, 0
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return b
}

// routed is a UDP frame on its way to the address via, which a routing header of this type sends on to IP6(2).
func routed(typ uint8, via netip.Addr) []byte {
	final := ft.IP6(2).As16()
	b := ip6().Extension(header.ProtoRouting, append([]byte{typ, 1, 0, 0, 0, 0}, final[:]...)).UDP(1, 2).Payload(5).Bytes()
	a := via.As16()
	copy(b[38:], a[:])
	return b
}

// edited returns b with these bytes from off on.
func edited(b []byte, off int, v ...byte) []byte {
	copy(b[off:], v)
	return b
}

// edited4 is edited for an IPv4 header without tags, whose checksum is made right again.
func edited4(b []byte, off int, v ...byte) []byte { return sum4(edited(b, off, v...), 14) }

func sound() []sample {
	const (
		tcp, udp = header.ProtoTCP, header.ProtoUDP
		e4, e6   = header.EtherTypeIPv4, header.EtherTypeIPv6
		ack      = header.TCPAck
	)
	timestamps := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(1, 2)}
	atomicUDP := ip6().Fragment6(0, false, 7).UDP(1, 2).Payload(9).Bytes()
	return []sample{
		{name: "tcp4", frame: ft.TCP4(ft.Opts{Payload: 100}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 54, EtherType: e4, End: 154, L3: IPv4, Proto: tcp, TCPFlags: ack}},
		{name: "tcp4 with timestamps", frame: ft.TCP4(ft.Opts{Payload: 3, Options: timestamps, Flags: header.TCPFin | ack}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 66, EtherType: e4, End: 69, L3: IPv4, Proto: tcp, TCPFlags: header.TCPFin | ack}},
		{name: "tcp4 syn", frame: ft.TCP4(ft.Opts{Flags: header.TCPSyn, Options: []layers.TCPOption{ft.MSS(1460), ft.Nop(), ft.Nop(), ft.Nop(), ft.Nop()}}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 62, EtherType: e4, End: 62, L3: IPv4, Proto: tcp, TCPFlags: header.TCPSyn}},
		{name: "tcp4 options ended early", frame: tcpOptions([]byte{1, 0, 9, 9}, 3),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 58, EtherType: e4, End: 61, L3: IPv4, Proto: tcp, TCPFlags: ack}},
		{name: "tcp4 largest options", frame: tcpOptions(append([]byte{254, 40}, make([]byte, 38)...), 3),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 94, EtherType: e4, End: 97, L3: IPv4, Proto: tcp, TCPFlags: ack}},
		{name: "tcp4 of 65535 bytes", frame: ft.TCP4(ft.Opts{Payload: 65495}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 54, EtherType: e4, End: 65549, L3: IPv4, Proto: tcp, TCPFlags: ack}},
		{name: "tcp4 with options of IPv4", frame: options4([]byte{1, 148, 4, 0, 0, 0, 99, 0}, 7),
			want: Parsed{L3Off: 14, L4Off: 42, PayloadOff: 62, EtherType: e4, End: 69, L3: IPv4, Proto: tcp, TCPFlags: ack}},
		{name: "tcp4 padded to 60 bytes", frame: append(ft.TCP4(ft.Opts{Payload: 1}).Bytes(), 0xff, 0xff, 0xff, 0xff, 0xff),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 54, EtherType: e4, End: 55, L3: IPv4, Proto: tcp, TCPFlags: ack}},
		{name: "tcp4 tagged", frame: ft.TCP4(ft.Opts{VLANs: []uint16{7}, Payload: 9}).Bytes(),
			want: Parsed{L3Off: 18, L4Off: 38, PayloadOff: 58, EtherType: e4, End: 67, L3: IPv4, Proto: tcp, Tags: 1, TCPFlags: ack}},
		{name: "tcp6 tagged twice", frame: plain().QinQ(5).VLAN(6).IPv6(ft.IP6(1), ft.IP6(2)).TCP(1, 2).Payload(33).Bytes(),
			want: Parsed{L3Off: 22, L4Off: 62, PayloadOff: 82, EtherType: e6, End: 115, L3: IPv6, Proto: tcp, Tags: 2, TCPFlags: ack, DstOff: 46}},
		{name: "tagged three times", frame: ft.TCP4(ft.Opts{VLANs: []uint16{1, 2, 3}, Payload: 9}).Bytes(),
			want: Parsed{L3Off: 22, EtherType: header.EtherTypeVLAN, End: 75, Tags: 2}},
		{name: "udp4", frame: ft.UDP4(ft.Opts{Payload: 11}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 42, EtherType: e4, End: 53, L3: IPv4, Proto: udp}},
		{name: "udp4 empty", frame: ft.UDP4(ft.Opts{}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 42, EtherType: e4, End: 42, L3: IPv4, Proto: udp}},
		{name: "udp4 shorter than its packet", frame: edited(ft.UDP4(ft.Opts{Payload: 11}).Bytes(), 38, 0, 10),
			want: Parsed{L3Off: 14, L4Off: 34, PayloadOff: 42, EtherType: e4, End: 53, L3: IPv4, Proto: udp}},
		{name: "udp6", frame: ft.UDP6(ft.Opts{Payload: 11}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 54, PayloadOff: 62, EtherType: e6, End: 73, L3: IPv6, Proto: udp, DstOff: 38}},
		{name: "ping4", frame: ft.Ping4(ft.Opts{Payload: 56}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 34, EtherType: e4, End: 98, L3: IPv4, Proto: header.ProtoICMP}},
		{name: "ping6", frame: ft.Ping6(ft.Opts{Payload: 56}).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 54, EtherType: e6, End: 118, L3: IPv6, Proto: header.ProtoICMPv6, DstOff: 38}},
		{name: "neighbor solicitation", frame: ft.NeighborSol(ft.MAC(1), ft.IP6(1), ft.IP6(2)).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 54, EtherType: e6, End: 86, L3: IPv6, Proto: header.ProtoICMPv6, DstOff: 38}},
		{name: "icmp in IPv6", frame: edited(ip6().Payload(4).Bytes(), 20, header.ProtoICMP),
			want: Parsed{L3Off: 14, EtherType: e6, End: 58, L3: IPv6, Proto: header.ProtoICMP, DstOff: 38}},
		{name: "sctp4", frame: ip4(proto4(header.ProtoSCTP)).Payload(40).Bytes(),
			want: Parsed{L3Off: 14, EtherType: e4, End: 74, L3: IPv4, Proto: header.ProtoSCTP}},
		{name: "esp6", frame: edited(ip6().Payload(40).Bytes(), 20, header.ProtoESP),
			want: Parsed{L3Off: 14, EtherType: e6, End: 94, L3: IPv6, Proto: header.ProtoESP, DstOff: 38}},
		{name: "nothing in IPv6", frame: edited(ip6().Payload(0).Bytes(), 20, header.ProtoNone),
			want: Parsed{L3Off: 14, EtherType: e6, End: 54, L3: IPv6, Proto: header.ProtoNone, DstOff: 38}},
		{name: "tcp6 hop-by-hop, destination options", frame: ip6().Extension(header.ProtoHopByHop, []byte{5, 2, 0, 0, 1, 0}).Extension(header.ProtoDestOpts, []byte{1, 12, 14: 0}).TCP(1, 2).Payload(33).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 54 + 8 + 24, PayloadOff: 106, EtherType: e6, End: 139, L3: IPv6, Proto: tcp, TCPFlags: ack, DstOff: 38}},
		{name: "udp6 authenticated", frame: ip6().Extension(header.ProtoAH, make([]byte, 22)).UDP(1, 2).Payload(3).Bytes(),
			want: Parsed{L3Off: 14, L4Off: 78, PayloadOff: 86, EtherType: e6, End: 89, L3: IPv6, Proto: udp, DstOff: 38}},
		{name: "udp6 with seven extension headers", frame: extensions(7),
			want: Parsed{L3Off: 14, L4Off: 54 + 7*8, PayloadOff: 118, EtherType: e6, End: 121, L3: IPv6, Proto: udp, DstOff: 38}},
		{name: "udp6 with the largest extension headers", frame: largestExtensions(),
			want: Parsed{L3Off: 22, L4Off: 62 + 7*2048, PayloadOff: 70 + 7*2048, EtherType: e6, End: 73 + 7*2048, L3: IPv6, Proto: udp, Tags: 2, DstOff: 46}},
		{name: "udp6 at the end of its route", frame: edited(routed(0, ft.IP6(2)), 57, 0),
			want: Parsed{L3Off: 14, L4Off: 78, PayloadOff: 86, EtherType: e6, End: 91, L3: IPv6, Proto: udp, DstOff: 38}},
		{name: "udp6 to a mobile node", frame: routed(2, ft.IP6(9)),
			want: Parsed{L3Off: 14, L4Off: 78, PayloadOff: 86, EtherType: e6, End: 91, L3: IPv6, Proto: udp, DstOff: 62}},
		{name: "udp6 with segment routing", frame: routed(4, ft.IP6(9)),
			want: Parsed{L3Off: 14, L4Off: 78, PayloadOff: 86, EtherType: e6, End: 91, L3: IPv6, Proto: udp, DstOff: 62}},
		{name: "udp6 with a route of an unknown kind", frame: routed(3, ft.IP6(9)),
			want: Parsed{L3Off: 14, EtherType: e6, End: 91, L3: IPv6, Proto: udp}},
		{name: "udp6 atomic fragment", frame: atomicUDP,
			want: Parsed{L3Off: 14, L4Off: 62, PayloadOff: 70, EtherType: e6, End: 79, L3: IPv6, Proto: udp, DstOff: 38}},
		{name: "udp4 first fragment", frame: fragment4(udp, 0, true, 1480),
			want: Parsed{L3Off: 14, EtherType: e4, End: 1514, L3: IPv4, Proto: udp, Fragment: true}},
		{name: "udp4 last fragment", frame: fragment4(udp, 1480, false, 3),
			want: Parsed{L3Off: 14, EtherType: e4, End: 37, L3: IPv4, Proto: udp, Fragment: true}},
		{name: "udp4 last possible fragment", frame: fragment4(udp, 65512, false, 3),
			want: Parsed{L3Off: 14, EtherType: e4, End: 37, L3: IPv4, Proto: udp, Fragment: true}},
		{name: "udp4 first fragment that ends in its header", frame: fragment4(udp, 0, true, 8),
			want: Parsed{L3Off: 14, EtherType: e4, End: 42, L3: IPv4, Proto: udp, Fragment: true}},
		{name: "tcp4 first fragment", frame: fragment4(tcp, 0, true, 24),
			want: Parsed{L3Off: 14, EtherType: e4, End: 58, L3: IPv4, Proto: tcp, Fragment: true}},
		{name: "tcp4 third fragment", frame: fragment4(tcp, 16, true, 8),
			want: Parsed{L3Off: 14, EtherType: e4, End: 42, L3: IPv4, Proto: tcp, Fragment: true}},
		{name: "udp6 first fragment", frame: fragment6(udp, 0, true, 1232),
			want: Parsed{L3Off: 14, EtherType: e6, End: 1294, L3: IPv6, Proto: udp, Fragment: true, DstOff: 38}},
		{name: "udp6 last fragment", frame: fragment6(udp, 1232, false, 5),
			want: Parsed{L3Off: 14, EtherType: e6, End: 67, L3: IPv6, Proto: udp, Fragment: true, DstOff: 38}},
		{name: "udp6 last possible fragment", frame: fragment6(udp, 65528, false, 7),
			want: Parsed{L3Off: 14, EtherType: e6, End: 69, L3: IPv6, Proto: udp, Fragment: true, DstOff: 38}},
		{name: "arp request", frame: ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(2)).Bytes(),
			want: Parsed{L3Off: 14, EtherType: header.EtherTypeARP, End: 42, L3: ARP}},
		{name: "arp reply padded", frame: append(ft.ARPReply(ft.MAC(1), ft.IP4(1), ft.MAC(2), ft.IP4(2)).Bytes(), make([]byte, 18)...),
			want: Parsed{L3Off: 14, EtherType: header.EtherTypeARP, End: 42, L3: ARP}},
		{name: "lldp", frame: edited(plain().Payload(50).Bytes(), 12, 0x88, 0xcc),
			want: Parsed{L3Off: 14, EtherType: 0x88cc, End: 64}},
		{name: "802.3 with a length", frame: edited(plain().Payload(46).Bytes(), 12, 0, 46),
			want: Parsed{L3Off: 14, EtherType: 46, End: 60}},
		{name: "nothing but Ethernet", frame: edited(plain().Payload(0).Bytes(), 12, 0x88, 0xb5),
			want: Parsed{L3Off: 14, EtherType: 0x88b5, End: 14}},
	}
}

// extensions is a UDP frame behind n destination options headers.
func extensions(n int) []byte {
	b := ip6()
	for range n {
		b.Extension(header.ProtoDestOpts, nil)
	}
	return b.UDP(1, 2).Payload(3).Bytes()
}

// largestExtensions has the UDP header as far back as it can be.
func largestExtensions() []byte {
	b := plain().QinQ(1).VLAN(2).IPv6(ft.IP6(1), ft.IP6(2))
	for range 7 {
		b.Extension(header.ProtoDestOpts, make([]byte, 2046))
	}
	return b.UDP(1, 2).Payload(3).Bytes()
}

func hostile() []sample {
	const tcp, udp = header.ProtoTCP, header.ProtoUDP
	tcp4 := func() []byte { return ft.TCP4(ft.Opts{Payload: 40}).Bytes() }
	tcp6 := func() []byte { return ft.TCP6(ft.Opts{Payload: 40}).Bytes() }
	udp4 := func() []byte { return ft.UDP4(ft.Opts{Payload: 40}).Bytes() }
	udp6 := func() []byte { return ft.UDP6(ft.Opts{Payload: 40}).Bytes() }
	dest := func(body ...byte) []byte {
		return ip6().Extension(header.ProtoDestOpts, body).UDP(1, 2).Payload(9).Bytes()
	}
	return []sample{
		{name: "nothing", frame: nil, fault: Runt},
		{name: "13 bytes", frame: tcp4()[:13], fault: Runt},
		{name: "cut in a tag", frame: ft.TCP4(ft.Opts{VLANs: []uint16{1}}).Bytes()[:17], fault: Runt},
		{name: "cut in the second tag", frame: ft.TCP4(ft.Opts{VLANs: []uint16{1, 2}}).Bytes()[:21], fault: Runt},
		{name: "cut in IPv4", frame: tcp4()[:33], fault: Runt},
		{name: "cut in IPv6", frame: tcp6()[:53], fault: Runt},
		{name: "cut in ARP", frame: ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(2)).Bytes()[:41], fault: Runt},
		{name: "packet ends in TCP", frame: ip4(proto4(tcp)).Payload(19).Bytes(), fault: Runt},
		{name: "packet ends in UDP", frame: ip4(proto4(udp)).Payload(7).Bytes(), fault: Runt},
		{name: "packet ends in ICMP", frame: ip4(proto4(header.ProtoICMP)).Payload(7).Bytes(), fault: Runt},
		{name: "packet ends in ICMPv6", frame: edited(ip6().Payload(7).Bytes(), 20, header.ProtoICMPv6), fault: Runt},
		{name: "packet ends in TCP, padding goes on", frame: append(ip4(proto4(tcp)).Payload(19).Bytes(), make([]byte, 40)...), fault: Runt},

		{name: "from a group", frame: edited(tcp4(), 6, 3), fault: BadSource},
		{name: "from everybody", frame: edited(tcp4(), 6, 255, 255, 255, 255, 255, 255), fault: BadSource},
		{name: "from nobody", frame: edited(tcp4(), 6, 0, 0, 0, 0, 0, 0), fault: BadSource},

		{name: "IPv4 longer than the frame", frame: edited4(tcp4(), 16, 0, 81), fault: BadLength},
		{name: "IPv4 shorter than its header", frame: edited4(tcp4(), 16, 0, 19), fault: BadLength},
		{name: "IPv4 of length 0", frame: edited4(tcp4(), 16, 0, 0), fault: BadLength},
		{name: "IPv4 header over its packet", frame: edited4(tcp4(), 14, 0x4f, 0, 0, 59), fault: BadLength},
		{name: "IPv4 header over the frame", frame: edited(ft.UDP4(ft.Opts{}).Bytes(), 14, 0x4f, 0, 0, 60), fault: BadLength},
		{name: "IPv6 longer than the frame", frame: edited(tcp6(), 18, 0, 61), fault: BadLength},
		{name: "TCP header of 16 bytes", frame: edited(tcp4(), 46, 0x40), fault: BadLength},
		{name: "TCP header over its packet", frame: edited(ft.TCP4(ft.Opts{Payload: 39}).Bytes(), 46, 0xf0), fault: BadLength},
		{name: "TCP header over its packet, padding goes on", frame: append(edited(ft.TCP4(ft.Opts{Payload: 0}).Bytes(), 46, 0x60), 1, 1, 1, 1), fault: BadLength},
		{name: "UDP longer than its packet", frame: edited(udp4(), 38, 0, 49), fault: BadLength},
		{name: "UDP shorter than its header", frame: edited(udp4(), 38, 0, 7), fault: BadLength},
		{name: "UDP of length 0 over IPv6", frame: edited(udp6(), 58, 0, 0), fault: BadLength},

		{name: "IPv4 of version 6", frame: edited4(tcp4(), 14, 0x65), fault: BadIPHeader},
		{name: "IPv4 with a header of 16 bytes", frame: edited4(tcp4(), 14, 0x44), fault: BadIPHeader},
		{name: "IPv4 with a wrong checksum", frame: edited(tcp4(), 24, 0xbe, 0xef), fault: BadIPHeader},
		{name: "IPv4 with a changed TTL", frame: edited(tcp4(), 22, 9), fault: BadIPHeader},
		{name: "IPv6 of version 4", frame: edited(tcp6(), 14, 0x45), fault: BadIPHeader},

		{name: "loose source route", frame: options4([]byte{131, 7, 4, 10, 0, 0, 1, 0}, 9), fault: BadIPOption},
		{name: "strict source route", frame: options4([]byte{1, 137, 7, 4, 10, 0, 0, 1}, 9), fault: BadIPOption},
		{name: "IPv4 option of length 0", frame: options4([]byte{7, 0, 0, 0}, 9), fault: BadIPOption},
		{name: "IPv4 option of length 1", frame: options4([]byte{7, 1, 0, 0}, 9), fault: BadIPOption},
		{name: "IPv4 option over its header", frame: options4([]byte{7, 5, 0, 0}, 9), fault: BadIPOption},
		{name: "IPv4 option without a length", frame: options4([]byte{1, 1, 1, 7}, 9), fault: BadIPOption},
		{name: "IPv6 source route", frame: routed(0, ft.IP6(9)), fault: BadIPOption},
		{name: "IPv6 segment routing without a segment", frame: edited(ip6().Extension(header.ProtoRouting, []byte{4, 1}).UDP(1, 2).Payload(90).Bytes(), 54), fault: BadIPOption},
		{name: "IPv6 option over its header", frame: dest(30, 5, 0, 0, 0, 0), fault: BadIPOption},
		{name: "IPv6 option without a length", frame: dest(1, 3, 0, 0, 0, 30), fault: BadIPOption},
		{name: "IPv6 hop-by-hop option over its header", frame: ip6().Extension(header.ProtoHopByHop, []byte{5, 20}).UDP(1, 2).Payload(90).Bytes(), fault: BadIPOption},
		{name: "IPv6 extension header over its packet", frame: edited(dest(), 55, 3), fault: BadIPOption},
		{name: "IPv6 extension header over its packet, padding goes on", frame: append(edited(ip6().Extension(header.ProtoRouting, []byte{9, 0}).UDP(1, 2).Payload(9).Bytes(), 55, 3), make([]byte, 40)...), fault: BadIPOption},
		{name: "IPv6 extension header cut", frame: edited(ip6().Payload(7).Bytes(), 20, header.ProtoDestOpts), fault: BadIPOption},
		{name: "IPv6 authentication cut", frame: edited(ip6().Payload(7).Bytes(), 20, header.ProtoAH), fault: BadIPOption},
		{name: "IPv6 authentication over its packet", frame: edited(ip6().Extension(header.ProtoAH, make([]byte, 22)).UDP(1, 2).Payload(3).Bytes(), 55, 9), fault: BadIPOption},
		{name: "IPv6 with eight extension headers", frame: extensions(8), fault: BadIPOption},
		{name: "IPv6 with a hundred extension headers", frame: extensions(100), fault: BadIPOption},
		{name: "IPv6 with atomic fragments without end", frame: func() []byte {
			b := ip6()
			for range 8 {
				b.Fragment6(0, false, 1)
			}
			return b.UDP(1, 2).Bytes()
		}(), fault: BadIPOption},

		{name: "ping of death", frame: fragment4(header.ProtoICMP, 65528, false, 8), fault: BadFragment},
		{name: "IPv4 fragment whose packet would be 65536 bytes", frame: fragment4(udp, 65512, false, 4), fault: BadFragment},
		{name: "IPv6 fragment over the end", frame: fragment6(udp, 65528, false, 8), fault: BadFragment},
		{name: "first TCP fragment of 16 bytes", frame: fragment4(tcp, 0, true, 16), fault: BadFragment},
		{name: "TCP fragment over the flags", frame: fragment4(tcp, 8, true, 64), fault: BadFragment},
		{name: "last TCP fragment over the flags", frame: fragment4(tcp, 8, false, 64), fault: BadFragment},
		{name: "first TCP fragment of 16 bytes in IPv6", frame: fragment6(tcp, 0, true, 16), fault: BadFragment},
		{name: "TCP fragment over the flags in IPv6", frame: fragment6(tcp, 8, true, 64), fault: BadFragment},
		{name: "odd fragment that is not the last", frame: fragment4(udp, 0, true, 1477), fault: BadFragment},
		{name: "odd fragment that is not the last in IPv6", frame: fragment6(udp, 0, true, 1233), fault: BadFragment},
		{name: "empty fragment", frame: fragment4(udp, 64, true, 0), fault: BadFragment},
		{name: "empty last fragment", frame: fragment4(udp, 64, false, 0), fault: BadFragment},
		{name: "empty fragment of IPv6", frame: fragment6(udp, 64, false, 0), fault: BadFragment},
		{name: "cut in the fragment header", frame: edited(ip6().Data(make([]byte, 7)).Bytes(), 20, header.ProtoFragment), fault: BadFragment},

		{name: "TCP option of length 0", frame: tcpOptions([]byte{2, 0, 1, 1}, 9), fault: BadTCPOption},
		{name: "TCP option of length 1", frame: tcpOptions([]byte{1, 2, 1, 0}, 9), fault: BadTCPOption},
		{name: "TCP option over its header", frame: tcpOptions([]byte{2, 5, 5, 0xb4}, 9), fault: BadTCPOption},
		{name: "TCP option without a length", frame: tcpOptions([]byte{1, 1, 1, 2}, 9), fault: BadTCPOption},
		{name: "TCP timestamps over their header", frame: tcpOptions([]byte{1, 1, 8, 10, 0, 0, 0, 1}, 9), fault: BadTCPOption},
	}
}
