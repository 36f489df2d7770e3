package decode

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// maxLine bounds a line, in bytes: a frame can stack more headers than anyone wants to read.
const maxLine = 240

// Lines describes the beginning of a frame in one or two lines: first the link layer, from the VXLAN header
// on if outer says that data begins with one, then what the frame carries. Data may end anywhere.
func Lines(data []byte, outer bool) []string {
	if len(data) == 0 {
		return []string{"empty"}
	}
	first := gopacket.Decoder(layers.LayerTypeEthernet)
	if outer {
		first = layers.LayerTypeVXLAN
	}
	// NewPacket turns a panic of a decoder into a failure layer.
	packet := gopacket.NewPacket(data, first, gopacket.DecodeOptions{NoCopy: true})
	var link, inner []string
	var last gopacket.Layer // with a description
	for _, layer := range packet.Layers() {
		text := describe(layer)
		if text == "" {
			continue
		}
		last = layer
		switch layer.(type) {
		case *layers.VXLAN, *layers.Ethernet, *layers.Dot1Q:
			// Those behind an IP header belong to a tunnel inside the frame.
			if len(inner) == 0 {
				link = append(link, text)
				continue
			}
		}
		inner = append(inner, text)
	}
	if failed := packet.ErrorLayer(); failed != nil && !beyond(last) {
		if len(link) == 0 && len(inner) == 0 {
			return []string{fmt.Sprintf("%d bytes that cannot be decoded: % x", len(data), data[:min(len(data), 24)])}
		}
		inner = append(inner, "then cut or malformed: "+clean(failed.Error().Error()))
	}
	var lines []string
	for _, parts := range [][]string{link, inner} {
		if len(parts) > 0 {
			lines = append(lines, limit(strings.Join(parts, ", ")))
		}
	}
	return lines
}

// beyond reports whether what follows the layer is the data of an application, which gopacket guesses at by
// the port and whose faults are none of ours.
func beyond(layer gopacket.Layer) bool {
	udp, ok := layer.(*layers.UDP)
	return ok && len(udp.Contents) > 0 && (udp.Length == 0 || udp.Length >= 8)
}

// clean takes out of a decoder's error whatever a terminal might act on.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, s)
}

func limit(s string) string {
	if len(s) > maxLine {
		return s[:maxLine-3] + "..."
	}
	return s
}

// describe puts one layer into words; "" for one that is not worth any.
func describe(layer gopacket.Layer) string {
	switch l := layer.(type) {
	case *layers.VXLAN:
		if !l.ValidIDFlag {
			return fmt.Sprintf("VXLAN header without the I flag (flags 0x%02x)", l.Contents[0])
		}
		return fmt.Sprintf("VXLAN VNI %d", l.VNI)
	case *layers.Ethernet:
		return fmt.Sprintf("%v > %v%s", l.SrcMAC, l.DstMAC, etherType(l.EthernetType))
	case *layers.Dot1Q:
		return fmt.Sprintf("VLAN %d%s", l.VLANIdentifier, etherType(l.Type))
	case *layers.ARP:
		return arp(l)
	case *layers.IPv4:
		text := fmt.Sprintf("IPv4 %v > %v", l.SrcIP, l.DstIP)
		if l.FragOffset > 0 || l.Flags&layers.IPv4MoreFragments != 0 {
			return fmt.Sprintf("%s protocol %d, fragment at byte %d", text, uint8(l.Protocol), int(l.FragOffset)*8)
		}
		if len(l.Options) > 0 {
			text += fmt.Sprintf(" with %d options", len(l.Options))
		}
		return text + protocol(l.Protocol)
	case *layers.IPv6:
		return fmt.Sprintf("IPv6 %v > %v%s", l.SrcIP, l.DstIP, protocol(l.NextHeader))
	case *layers.IPv6HopByHop:
		return "hop-by-hop options"
	case *layers.IPv6Routing:
		return fmt.Sprintf("routing header of type %d", l.RoutingType)
	case *layers.IPv6Destination:
		return "destination options"
	case *layers.IPv6Fragment:
		return fmt.Sprintf("fragment at byte %d", int(l.FragmentOffset)*8)
	case *layers.TCP:
		if l.DataOffset == 0 {
			return "TCP" // the decoder leaves an empty header where it is too short
		}
		return fmt.Sprintf("TCP %d > %d [%s] seq %d ack %d", l.SrcPort, l.DstPort, tcpFlags(l), l.Seq, l.Ack)
	case *layers.UDP:
		if len(l.Contents) == 0 {
			return "UDP"
		}
		return fmt.Sprintf("UDP %d > %d length %d", l.SrcPort, l.DstPort, l.Length)
	case *layers.SCTP:
		return fmt.Sprintf("SCTP %d > %d", l.SrcPort, l.DstPort)
	case *layers.ICMPv4:
		return "ICMP " + l.TypeCode.String()
	case *layers.ICMPv6:
		return "ICMPv6 " + l.TypeCode.String()
	case *layers.ICMPv6NeighborSolicitation:
		return fmt.Sprintf("who has %v?", l.TargetAddress)
	case *layers.ICMPv6NeighborAdvertisement:
		return fmt.Sprintf("here is %v", l.TargetAddress)
	}
	return ""
}

// arp is in the words in which ARP is usually read.
func arp(l *layers.ARP) string {
	sender, okSender := netip.AddrFromSlice(l.SourceProtAddress)
	target, okTarget := netip.AddrFromSlice(l.DstProtAddress)
	if !okSender || !okTarget {
		return fmt.Sprintf("ARP operation %d with addresses of %d and %d bytes", l.Operation, l.HwAddressSize, l.ProtAddressSize)
	}
	switch l.Operation {
	case layers.ARPRequest:
		return fmt.Sprintf("ARP who has %v? tell %v", target, sender)
	case layers.ARPReply:
		return fmt.Sprintf("ARP %v is at %v", sender, net.HardwareAddr(l.SourceHwAddress))
	}
	return fmt.Sprintf("ARP operation %d from %v for %v", l.Operation, sender, target)
}

// etherType names a type whose content is not decoded further, which would leave the reader without a word
// about it.
func etherType(t layers.EthernetType) string {
	switch t {
	case layers.EthernetTypeIPv4, layers.EthernetTypeIPv6, layers.EthernetTypeARP, layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ:
		return ""
	}
	return fmt.Sprintf(" type 0x%04x", uint16(t))
}

// protocol does the same for what an IP packet carries.
func protocol(p layers.IPProtocol) string {
	switch p {
	case layers.IPProtocolTCP, layers.IPProtocolUDP, layers.IPProtocolSCTP, layers.IPProtocolICMPv4, layers.IPProtocolICMPv6,
		layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Destination, layers.IPProtocolIPv6Fragment:
		return ""
	}
	return fmt.Sprintf(" protocol %d", uint8(p))
}

func tcpFlags(l *layers.TCP) string {
	var set []string
	for _, f := range []struct {
		on   bool
		name string
	}{
		{l.SYN, "SYN"}, {l.ACK, "ACK"}, {l.FIN, "FIN"}, {l.RST, "RST"}, {l.PSH, "PSH"}, {l.URG, "URG"}, {l.ECE, "ECE"}, {l.CWR, "CWR"},
	} {
		if f.on {
			set = append(set, f.name)
		}
	}
	return strings.Join(set, " ")
}
