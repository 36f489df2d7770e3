package decode

import (
	"net"
	"strings"
	"testing"
	"unicode"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	macA = net.HardwareAddr{2, 0x42, 10, 42, 0, 1}
	macB = net.HardwareAddr{2, 0x42, 10, 42, 0, 2}
	ipA  = net.IP{10, 42, 0, 1}
	ipB  = net.IP{10, 42, 0, 2}
	ip6A = net.ParseIP("fd42::1")
	ip6B = net.ParseIP("fd42::2")
)

func serialize(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, parts...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func ethernet(typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: typ}
}

func ipv4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: ipA, DstIP: ipB}
}

func ipv6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: ip6A, DstIP: ip6B}
}

func arpFrame(t testing.TB, op uint16) []byte {
	return serialize(t,
		&layers.Ethernet{SrcMAC: macA, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: macA, SourceProtAddress: ipA, DstHwAddress: make([]byte, 6), DstProtAddress: ipB,
		})
}

func TestLines(t *testing.T) {
	const link = "02:42:0a:2a:00:01 > 02:42:0a:2a:00:02"
	tcp := serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolTCP),
		&layers.TCP{SrcPort: 51000, DstPort: 443, SYN: true, ACK: true, Seq: 7, Ack: 8, Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}},
		gopacket.Payload("payload"))
	badOption := append([]byte(nil), tcp...)
	badOption[14+20+20+1] = 60 // the length of the MSS option runs over the header
	vxlan := serialize(t, &layers.VXLAN{ValidIDFlag: true, VNI: 99})
	for name, c := range map[string]struct {
		data  []byte
		outer bool
		want  string
	}{
		"ARP request": {arpFrame(t, layers.ARPRequest), false, "02:42:0a:2a:00:01 > ff:ff:ff:ff:ff:ff\nARP who has 10.42.0.2? tell 10.42.0.1"},
		"ARP reply":   {arpFrame(t, layers.ARPReply), false, "02:42:0a:2a:00:01 > ff:ff:ff:ff:ff:ff\nARP 10.42.0.1 is at 02:42:0a:2a:00:01"},
		"ARP other":   {arpFrame(t, 9), false, "02:42:0a:2a:00:01 > ff:ff:ff:ff:ff:ff\nARP operation 9 from 10.42.0.1 for 10.42.0.2"},
		"outer":       {append(append([]byte(nil), vxlan...), arpFrame(t, layers.ARPRequest)...), true, "VXLAN VNI 99, 02:42:0a:2a:00:01 > ff:ff:ff:ff:ff:ff\nARP who has 10.42.0.2? tell 10.42.0.1"},
		"no I flag":   {append(make([]byte, 8), tcp...), true, "VXLAN header without the I flag (flags 0x00), " + link + "\nIPv4 10.42.0.1 > 10.42.0.2, TCP 51000 > 443 [SYN ACK] seq 7 ack 8"},
		"TCP":         {tcp, false, link + "\nIPv4 10.42.0.1 > 10.42.0.2, TCP 51000 > 443 [SYN ACK] seq 7 ack 8"},
		"TCP, cut":    {tcp[:14+20+7], false, link + "\nIPv4 10.42.0.1 > 10.42.0.2, TCP, then cut or malformed: Invalid TCP header. Length 7 less than 20"},
		"TCP, option": {badOption, false, link + "\nIPv4 10.42.0.1 > 10.42.0.2, TCP 51000 > 443 [SYN ACK] seq 7 ack 8, then cut or malformed: Invalid TCP option length 60 exceeds remaining 4 bytes"},
		"QinQ": {serialize(t, ethernet(layers.EthernetTypeQinQ), &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeDot1Q},
			&layers.Dot1Q{VLANIdentifier: 6, Type: layers.EthernetTypeIPv4}, ipv4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1000, DstPort: 2000}), false,
			link + ", VLAN 5, VLAN 6\nIPv4 10.42.0.1 > 10.42.0.2, UDP 1000 > 2000 length 8"},
		"no DNS": {serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1000, DstPort: 53}, gopacket.Payload("x")), false,
			link + "\nIPv4 10.42.0.1 > 10.42.0.2, UDP 1000 > 53 length 9"},
		"UDP, cut": {serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1000, DstPort: 53})[:14+20+5], false,
			link + "\nIPv4 10.42.0.1 > 10.42.0.2, UDP, then cut or malformed: Invalid UDP header. Length 5 less than 8"},
		"UDP, length": {serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolUDP), gopacket.Payload{3, 232, 0, 53, 0, 7, 0, 0}), false,
			link + "\nIPv4 10.42.0.1 > 10.42.0.2, UDP 1000 > 53 length 7, then cut or malformed: UDP packet too small: 7 bytes"},
		"ICMP": {serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}), false,
			link + "\nIPv4 10.42.0.1 > 10.42.0.2, ICMP EchoRequest"},
		"fragment": {serialize(t, ethernet(layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, Protocol: layers.IPProtocolUDP, FragOffset: 185, SrcIP: ipA, DstIP: ipB}, gopacket.Payload("more")), false,
			link + "\nIPv4 10.42.0.1 > 10.42.0.2 protocol 17, fragment at byte 1480"},
		"options": {serialize(t, ethernet(layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, Protocol: 99, SrcIP: ipA, DstIP: ipB, Options: []layers.IPv4Option{{OptionType: 1}, {OptionType: 0}}}), false,
			link + "\nIPv4 10.42.0.1 > 10.42.0.2 with 2 options protocol 99"},
		"ND": {serialize(t, ethernet(layers.EthernetTypeIPv6), ipv6(layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)},
			&layers.ICMPv6NeighborSolicitation{TargetAddress: ip6B}), false,
			link + "\nIPv6 fd42::1 > fd42::2, ICMPv6 NeighborSolicitation, who has fd42::2?"},
		"IPv6 fragment": {serialize(t, ethernet(layers.EthernetTypeIPv6), ipv6(layers.IPProtocolIPv6Fragment), gopacket.Payload{17, 0, 0x05, 0xa8, 0, 0, 0, 1, 1, 2, 3}), false,
			link + "\nIPv6 fd42::1 > fd42::2, fragment at byte 1448"},
		"other type": {serialize(t, ethernet(0x88cc), gopacket.Payload("x")), false, link + " type 0x88cc\nthen cut or malformed: Missing mandatory LinkLayerDiscovery TLV"},
		"nested": {serialize(t, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 50000, DstPort: 4789}, &layers.VXLAN{ValidIDFlag: true, VNI: 7},
			ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolSCTP)), false,
			link + "\nIPv4 10.42.0.1 > 10.42.0.2, UDP 50000 > 4789 length 76, VXLAN VNI 7, " + link + ", IPv4 10.42.0.1 > 10.42.0.2"},
		"runt":  {[]byte{1, 2, 3}, false, "3 bytes that cannot be decoded: 01 02 03"},
		"stray": {[]byte{8, 0}, true, "2 bytes that cannot be decoded: 08 00"},
		"empty": {nil, false, "empty"},
	} {
		if got := strings.Join(Lines(c.data, c.outer), "\n"); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", name, got, c.want)
		}
	}
}

// FuzzLines checks that no frame makes the decoder panic, or brings control characters or more than two
// lines of bounded length onto the terminal.
func FuzzLines(f *testing.F) {
	f.Add(arpFrame(f, layers.ARPRequest), false)
	f.Add(append([]byte{8, 0, 0, 0, 0, 0, 42, 0}, arpFrame(f, layers.ARPReply)...), true)
	f.Add(serialize(f, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolTCP), &layers.TCP{SYN: true}), false)
	f.Add(serialize(f, ethernet(layers.EthernetTypeIPv6), ipv6(layers.IPProtocolUDP), &layers.UDP{DstPort: 53}, gopacket.Payload("not DNS")), false)
	f.Add(serialize(f, ethernet(layers.EthernetTypeIPv4), ipv4(layers.IPProtocolUDP), &layers.UDP{DstPort: 4789}, gopacket.Payload(make([]byte, 60))), false)
	f.Fuzz(func(t *testing.T, data []byte, outer bool) {
		lines := Lines(data, outer)
		if len(lines) < 1 || len(lines) > 2 {
			t.Errorf("%d lines", len(lines))
		}
		for _, line := range lines {
			if line == "" || len(line) > maxLine || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q is not one clean line", line)
			}
		}
	})
}
