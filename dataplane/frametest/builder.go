package frametest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Builder collects the layers of a frame, outermost first.
type Builder struct {
	layers []gopacket.SerializableLayer
	ip     gopacket.NetworkLayer // the nearest IP layer below, for pseudo-headers
	next   func(nextType)        // tells the layer below what comes on top of it
	tcp    *layers.TCP           // the innermost transport layer, if it is TCP
	udp    *layers.UDP           // the innermost transport layer, if it is UDP
	tail   int                   // bytes on top of the innermost transport layer
	err    error
}

// nextType is how the layers below name a layer: Ethernet and VLAN by etherType, IP by proto.
type nextType struct {
	etherType layers.EthernetType
	proto     layers.IPProtocol
}

func hw(m addr.MAC) net.HardwareAddr { return net.HardwareAddr(m[:]) }

// Ethernet starts a frame.
func Ethernet(dst, src addr.MAC, edit ...func(*layers.Ethernet)) *Builder {
	l := &layers.Ethernet{DstMAC: hw(dst), SrcMAC: hw(src)}
	return new(Builder).ethernet(l, edit)
}

func (b *Builder) ethernet(l *layers.Ethernet, edit []func(*layers.Ethernet)) *Builder {
	for _, f := range edit {
		f(l)
	}
	return push(b, unpadded{l}, nil, nextType{}, func(n nextType) { l.EthernetType = n.etherType })
}

// unpadded is an Ethernet layer without the padding to 60 bytes that gopacket gives it: frames from a TAP
// have none, and what is inside VXLAN has none.
type unpadded struct{ *layers.Ethernet }

func (l unpadded) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	p, err := b.PrependBytes(header.EthernetLen)
	if err != nil {
		return err
	}
	copy(p, l.DstMAC)
	copy(p[6:], l.SrcMAC)
	binary.BigEndian.PutUint16(p[12:], uint16(l.EthernetType))
	return nil
}

// push puts a layer on top. own is what the layer below is told; next is how l is told what comes above.
func push[L gopacket.SerializableLayer](b *Builder, l L, edit []func(L), own nextType, next func(nextType)) *Builder {
	if b.next != nil {
		b.next(own)
	}
	for _, f := range edit {
		f(l)
	}
	b.layers = append(b.layers, l)
	b.next = next
	return b
}

// VLAN puts an 802.1Q tag.
func (b *Builder) VLAN(id uint16, edit ...func(*layers.Dot1Q)) *Builder {
	return b.tag(layers.EthernetTypeDot1Q, id, edit)
}

// QinQ puts an 802.1ad service tag.
func (b *Builder) QinQ(id uint16, edit ...func(*layers.Dot1Q)) *Builder {
	return b.tag(layers.EthernetTypeQinQ, id, edit)
}

func (b *Builder) tag(t layers.EthernetType, id uint16, edit []func(*layers.Dot1Q)) *Builder {
	l := &layers.Dot1Q{VLANIdentifier: id}
	return push(b, l, edit, nextType{etherType: t}, func(n nextType) { l.Type = n.etherType })
}

// ARP puts an ARP packet for IPv4 on Ethernet.
func (b *Builder) ARP(op uint16, senderMAC addr.MAC, sender netip.Addr, targetMAC addr.MAC, target netip.Addr, edit ...func(*layers.ARP)) *Builder {
	l := &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4,
		HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
		SourceHwAddress: hw(senderMAC), SourceProtAddress: sender.AsSlice(),
		DstHwAddress: hw(targetMAC), DstProtAddress: target.AsSlice(),
	}
	return push(b, l, edit, nextType{etherType: layers.EthernetTypeARP}, nil)
}

// IPv4 puts an IPv4 header, with DF, a TTL of 64 and an identification of 0x1234.
func (b *Builder) IPv4(src, dst netip.Addr, edit ...func(*layers.IPv4)) *Builder {
	l := &layers.IPv4{
		Version: 4, TTL: 64, Id: 0x1234, Flags: layers.IPv4DontFragment,
		SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
	}
	if !src.Is4() || !dst.Is4() {
		b.fail("IPv4 from %v to %v: not IPv4 addresses", src, dst)
	}
	for _, f := range edit {
		f(l)
	}
	push(b, bounded{l}, nil, nextType{layers.EthernetTypeIPv4, layers.IPProtocolIPv4}, func(n nextType) { l.Protocol = n.proto })
	b.ip = l
	return b
}

// IPv6 puts an IPv6 header with a hop limit of 64.
func (b *Builder) IPv6(src, dst netip.Addr, edit ...func(*layers.IPv6)) *Builder {
	l := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	if !src.Is6() || !dst.Is6() {
		b.fail("IPv6 from %v to %v: not IPv6 addresses", src, dst)
	}
	for _, f := range edit {
		f(l)
	}
	push(b, bounded{l}, nil, nextType{layers.EthernetTypeIPv6, layers.IPProtocolIPv6}, func(n nextType) { l.NextHeader = n.proto })
	b.ip = l
	return b
}

// bounded is an IP layer that refuses more than its length field can say: gopacket would let IPv4 wrap around,
// and make IPv6 a jumbogram.
type bounded struct{ gopacket.SerializableLayer }

func (l bounded) SerializeTo(b gopacket.SerializeBuffer, opts gopacket.SerializeOptions) error {
	most := 0xffff
	if ip, ok := l.SerializableLayer.(*layers.IPv4); ok {
		most -= header.IPv4MinLen
		for _, o := range ip.Options {
			most -= int(max(o.OptionLength, 1))
		}
	}
	if n := len(b.Bytes()); n > most {
		return fmt.Errorf("IP payload of %d bytes is over %d", n, most)
	}
	return l.SerializableLayer.SerializeTo(b, opts)
}

// Extension puts an IPv6 extension header of one of the kinds that have a length: hop-by-hop options, routing,
// destination options, authentication. body is what follows the length byte; it is padded with zeros, which are
// Pad1 in options.
func (b *Builder) Extension(kind uint8, body []byte) *Builder {
	l := &extension{kind: kind, data: append([]byte{0, 0}, body...)}
	for len(l.data)%8 != 0 {
		l.data = append(l.data, 0)
	}
	l.data[1] = uint8(len(l.data)/8 - 1)
	if kind == header.ProtoAH {
		l.data[1] = uint8(len(l.data)/4 - 2)
	}
	return push(b, l, nil, nextType{proto: layers.IPProtocol(kind)}, func(n nextType) { l.data[0] = byte(n.proto) })
}

// Fragment6 puts an IPv6 fragment header. offset is in bytes, a multiple of 8.
func (b *Builder) Fragment6(offset int, more bool, id uint32) *Builder {
	v := uint16(offset)
	if offset%8 != 0 || offset < 0 || offset > 0xfff8 {
		b.fail("IPv6 fragment offset %d: not a multiple of 8 under 65536", offset)
	}
	if more {
		v |= 1
	}
	l := &extension{kind: header.ProtoFragment, data: []byte{
		0, 0, byte(v >> 8), byte(v), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id),
	}}
	return push(b, l, nil, nextType{proto: layers.IPProtocolIPv6Fragment}, func(n nextType) { l.data[0] = byte(n.proto) })
}

// extension is an IPv6 extension header as gopacket takes it; gopacket cannot write all kinds itself.
type extension struct {
	kind uint8
	data []byte
}

func (e *extension) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	p, err := b.PrependBytes(len(e.data))
	copy(p, e.data)
	return err
}

func (e *extension) LayerType() gopacket.LayerType { return layers.IPProtocol(e.kind).LayerType() }

// TCP puts a TCP header with the ACK flag and a window of 65535.
func (b *Builder) TCP(srcPort, dstPort uint16, edit ...func(*layers.TCP)) *Builder {
	l := &layers.TCP{SrcPort: layers.TCPPort(srcPort), DstPort: layers.TCPPort(dstPort), Seq: 1, Ack: 1, ACK: true, Window: 0xffff}
	b.under(l.SetNetworkLayerForChecksum)
	push(b, l, edit, nextType{proto: layers.IPProtocolTCP}, nil)
	b.tcp, b.udp, b.tail = l, nil, 0
	return b
}

// UDP puts a UDP header.
func (b *Builder) UDP(srcPort, dstPort uint16, edit ...func(*layers.UDP)) *Builder {
	l := &layers.UDP{SrcPort: layers.UDPPort(srcPort), DstPort: layers.UDPPort(dstPort)}
	b.under(l.SetNetworkLayerForChecksum)
	for _, f := range edit {
		f(l)
	}
	push(b, onesUDP{l}, nil, nextType{proto: layers.IPProtocolUDP}, nil)
	b.tcp, b.udp, b.tail = nil, l, 0
	return b
}

// onesUDP writes a computed checksum of zero as all ones, since zero means that there is none (RFC 768);
// gopacket does not know this.
type onesUDP struct{ *layers.UDP }

func (u onesUDP) SerializeTo(b gopacket.SerializeBuffer, opts gopacket.SerializeOptions) error {
	err := u.UDP.SerializeTo(b, opts)
	if err == nil && opts.ComputeChecksums && u.Checksum == 0 {
		u.Checksum = 0xffff
		b.Bytes()[header.UDPChecksumOffset] = 0xff
		b.Bytes()[header.UDPChecksumOffset+1] = 0xff
	}
	return err
}

// VXLAN puts a VXLAN header. The inner frame follows as InnerEthernet or as Data.
func (b *Builder) VXLAN(vni addr.VNI, edit ...func(*layers.VXLAN)) *Builder {
	return push(b, &layers.VXLAN{ValidIDFlag: true, VNI: uint32(vni)}, edit, nextType{}, nil)
}

// InnerEthernet starts a frame inside the frame; what follows belongs to it.
func (b *Builder) InnerEthernet(dst, src addr.MAC, edit ...func(*layers.Ethernet)) *Builder {
	l := &layers.Ethernet{DstMAC: hw(dst), SrcMAC: hw(src)}
	b.ip = nil
	return b.ethernet(l, edit)
}

// ICMP puts an ICMP message. id and seq are the second four bytes of the header, whatever the type.
func (b *Builder) ICMP(typ, code uint8, id, seq uint16) *Builder {
	l := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, code), Id: id, Seq: seq}
	return push(b, l, nil, nextType{proto: layers.IPProtocolICMPv4}, nil)
}

// ICMPv6 puts the first four bytes of an ICMPv6 message: type, code, checksum. The body follows as Data.
func (b *Builder) ICMPv6(typ, code uint8) *Builder {
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, code)}
	b.under(l.SetNetworkLayerForChecksum)
	return push(b, l, nil, nextType{proto: layers.IPProtocolICMPv6}, nil)
}

// Data puts bytes that are taken as they are.
func (b *Builder) Data(p []byte) *Builder {
	b.layers = append(b.layers, gopacket.Payload(p))
	b.next = nil
	b.tail += len(p)
	return b
}

// Payload puts n bytes of Pattern.
func (b *Builder) Payload(n int) *Builder { return b.Data(Pattern(n)) }

// under tells a layer with a pseudo-header about the IP layer below it.
func (b *Builder) under(set func(gopacket.NetworkLayer) error) {
	if b.ip == nil {
		b.fail("a transport layer without an IP layer below it")
		return
	}
	if err := set(b.ip); err != nil {
		b.fail("%v", err)
	}
}

func (b *Builder) fail(format string, args ...any) {
	if b.err == nil {
		b.err = fmt.Errorf("frametest: "+format, args...)
	}
}

// Bytes returns the frame in memory of its own, with all lengths and checksums right. The frame is not
// padded to the minimum of Ethernet.
func (b *Builder) Bytes() []byte {
	if b.err != nil {
		panic(b.err)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, b.layers...); err != nil {
		panic(fmt.Errorf("frametest: %w", err))
	}
	return append([]byte(nil), buf.Bytes()...)
}
