package frametest

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Packet is a decoded frame. Of the pointers, those of layers that the frame lacks are nil. The layers and
// Payload are views of the frame that was decoded.
type Packet struct {
	Ethernet   layers.Ethernet
	VLANs      []layers.Dot1Q // outermost first
	ARP        *layers.ARP
	IPv4       *layers.IPv4
	IPv6       *layers.IPv6
	Extensions []Extension // of IPv6, in order
	TCP        *layers.TCP
	UDP        *layers.UDP
	ICMP       *layers.ICMPv4
	ICMPv6     *layers.ICMPv6
	Fragment   bool   // part of an IP packet, be it the first: its transport layer is not decoded
	Payload    []byte // above the last layer that was decoded

	src, dst netip.Addr
}

// Extension is one IPv6 extension header.
type Extension struct {
	Kind  uint8
	Bytes []byte
}

// checksumState is what the transport checksum of a frame is to be.
type checksumState uint8

const (
	checksumFull    checksumState = iota // over all, as on a wire
	checksumPartial                      // over the pseudo-header, as behind an offload
	checksumAny
)

// minFrame is the least length of an Ethernet frame without FCS: up to it a sender may pad.
const minFrame = 60

// Check decodes a frame and fails the test unless every length agrees with the bytes that are there and
// every checksum is right. What is above UDP and TCP is not looked at.
func Check(t testing.TB, frame []byte) *Packet {
	t.Helper()
	return must(t, frame, checksumFull)
}

// CheckPartial is Check for a frame whose TCP or UDP checksum is to be that of the pseudo-header alone.
func CheckPartial(t testing.TB, frame []byte) *Packet {
	t.Helper()
	return must(t, frame, checksumPartial)
}

// Verify is Check with an error, for properties and fuzz targets.
func Verify(frame []byte) (*Packet, error) { return decode(frame, checksumFull) }

// CheckVXLAN checks a frame that carries VXLAN in UDP, and the frame inside it, and fails the test if either is
// wrong, the header of VXLAN has anything set but the I flag and the VNI, or the VNI is another.
func CheckVXLAN(t testing.TB, frame []byte, vni addr.VNI) (outer, inner *Packet) {
	t.Helper()
	outer = Check(t, frame)
	if outer.UDP == nil {
		t.Fatalf("no UDP in the frame\n%s", dump(frame))
	}
	got, payload, err := Datagram(outer.Payload)
	if err != nil {
		t.Fatalf("%v\n%s", err, dump(frame))
	}
	if got != vni {
		t.Fatalf("VNI %v, want %v\n%s", got, vni, dump(frame))
	}
	return outer, Check(t, payload)
}

// Datagram takes a VXLAN header off the payload of a UDP datagram. It is an error if the I flag is not set or
// anything reserved is (RFC 7348, section 5: a sender sets it to zero).
func Datagram(datagram []byte) (addr.VNI, []byte, error) {
	if len(datagram) < header.VXLANLen {
		return 0, nil, fmt.Errorf("VXLAN: datagram of %d bytes is shorter than the header", len(datagram))
	}
	if datagram[0] != 0x08 || datagram[1]|datagram[2]|datagram[3]|datagram[7] != 0 {
		return 0, nil, fmt.Errorf("VXLAN: header % x: want the I flag and nothing reserved", datagram[:header.VXLANLen])
	}
	return addr.VNI(binary.BigEndian.Uint32(datagram[4:]) >> 8), datagram[header.VXLANLen:], nil
}

func must(t testing.TB, frame []byte, state checksumState) *Packet {
	t.Helper()
	p, err := decode(frame, state)
	if err != nil {
		t.Fatalf("%v\n%s", err, dump(frame))
	}
	return p
}

// dump shows the first bytes of a frame that a test is about to complain of.
func dump(frame []byte) string {
	const most = 160
	if len(frame) <= most {
		return hex.Dump(frame)
	}
	return hex.Dump(frame[:most]) + fmt.Sprintf("(the first %d of %d bytes)", most, len(frame))
}

// feedback notes whether gopacket missed bytes.
type feedback struct{ truncated bool }

func (f *feedback) SetTruncated() { f.truncated = true }

// layer decodes one layer, and returns what is above it. Some layers of gopacket index past the end of
// malformed input, which gopacket.NewPacket would turn into an error; so does this.
func layer(l interface {
	DecodeFromBytes([]byte, gopacket.DecodeFeedback) error
	LayerPayload() []byte
}, name string, b []byte) (payload []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			payload, err = nil, fmt.Errorf("%s: gopacket: %v", name, r)
		}
	}()
	var f feedback
	if err := l.DecodeFromBytes(b, &f); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if f.truncated {
		return nil, fmt.Errorf("%s: %d bytes are fewer than its length says", name, len(b))
	}
	return l.LayerPayload(), nil
}

// decode takes a frame apart.
func decode(frame []byte, state checksumState) (*Packet, error) {
	p := new(Packet)
	rest, err := layer(&p.Ethernet, "Ethernet", frame)
	if err != nil {
		return nil, err
	}
	t := p.Ethernet.EthernetType
	for t == layers.EthernetTypeDot1Q || t == layers.EthernetTypeQinQ {
		var v layers.Dot1Q
		if rest, err = layer(&v, "VLAN", rest); err != nil {
			return nil, err
		}
		p.VLANs = append(p.VLANs, v)
		t = v.Type
	}
	padded := len(frame) <= minFrame+header.VLANLen*len(p.VLANs)
	switch t {
	case layers.EthernetTypeARP:
		p.ARP = new(layers.ARP)
		if rest, err = layer(p.ARP, "ARP", rest); err == nil && len(rest) > 0 && !padded {
			err = fmt.Errorf("ARP: %d bytes behind it", len(rest))
		}
		p.Payload = nil
	case layers.EthernetTypeIPv4:
		err = p.decodeIPv4(rest, padded, state)
	case layers.EthernetTypeIPv6:
		err = p.decodeIPv6(rest, padded, state)
	default:
		p.Payload = rest
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Packet) decodeIPv4(b []byte, padded bool, state checksumState) error {
	p.IPv4 = new(layers.IPv4)
	payload, err := layer(p.IPv4, "IPv4", b)
	if err != nil {
		return err
	}
	// gopacket takes a total length of zero for one that was left to the hardware, so the field itself counts.
	ip, n := p.IPv4, int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case ip.Version != 4:
		return fmt.Errorf("IPv4: version %d", ip.Version)
	case n == 0 || len(b) < n:
		return fmt.Errorf("IPv4: total length %d of %d bytes", n, len(b))
	case len(b) > n && !padded:
		return fmt.Errorf("IPv4: %d bytes behind a total length of %d", len(b)-n, n)
	case plainSum(b[:int(ip.IHL)*4], 0) != 0xffff:
		return fmt.Errorf("IPv4: header checksum %#04x is wrong", ip.Checksum)
	}
	p.src, p.dst = ipAddr(ip.SrcIP), ipAddr(ip.DstIP)
	p.Fragment = ip.FragOffset != 0 || ip.Flags&layers.IPv4MoreFragments != 0
	return p.transport(uint8(ip.Protocol), payload, state)
}

func (p *Packet) decodeIPv6(b []byte, padded bool, state checksumState) error {
	p.IPv6 = new(layers.IPv6)
	// gopacket would take the hop-by-hop header with the fixed one, so only the fixed header is its own.
	if len(b) < header.IPv6Len {
		return fmt.Errorf("IPv6: %d bytes are fewer than a header", len(b))
	}
	ip, n := p.IPv6, int(binary.BigEndian.Uint16(b[4:]))
	if err := ip.DecodeFromBytes(b, &feedback{}); err != nil {
		return fmt.Errorf("IPv6: %w", err)
	}
	rest := b[header.IPv6Len:]
	switch {
	case ip.Version != 6:
		return fmt.Errorf("IPv6: version %d", ip.Version)
	case len(rest) < n:
		return fmt.Errorf("IPv6: payload length %d of %d bytes", n, len(rest))
	case len(rest) > n && !padded:
		return fmt.Errorf("IPv6: %d bytes behind a payload length of %d", len(rest)-n, n)
	}
	p.src, p.dst = ipAddr(ip.SrcIP), ipAddr(ip.DstIP)
	rest = rest[:n]
	proto := b[6]
	for {
		size := 8
		switch proto {
		case header.ProtoHopByHop, header.ProtoRouting, header.ProtoDestOpts:
			if len(rest) >= 2 {
				size += int(rest[1]) * 8
			}
		case header.ProtoAH:
			if len(rest) >= 2 {
				size += int(rest[1]) * 4
			}
		case header.ProtoFragment:
			if len(rest) >= 8 && binary.BigEndian.Uint16(rest[2:])&0xfff9 != 0 {
				p.Fragment = true
			}
		default:
			return p.transport(proto, rest, state)
		}
		if len(rest) < size {
			return fmt.Errorf("IPv6: extension header %d of %d bytes, but %d are left", proto, size, len(rest))
		}
		p.Extensions = append(p.Extensions, Extension{proto, rest[:size]})
		if p.Fragment {
			p.Payload = rest[size:]
			return nil
		}
		proto, rest = rest[0], rest[size:]
	}
}

// transport decodes what an IP packet carries.
func (p *Packet) transport(proto uint8, b []byte, state checksumState) (err error) {
	p.Payload = b
	if p.Fragment {
		return nil
	}
	src, dst := p.src.AsSlice(), p.dst.AsSlice()
	pseudo := pseudoSum(src, dst, proto, len(b))
	switch {
	case proto == header.ProtoTCP:
		p.TCP = new(layers.TCP)
		if p.Payload, err = layer(p.TCP, "TCP", b); err != nil {
			return err
		}
		return verifyL4("TCP", state, p.TCP.Checksum, pseudo, b)
	case proto == header.ProtoUDP:
		p.UDP = new(layers.UDP)
		if p.Payload, err = layer(p.UDP, "UDP", b); err != nil {
			return err
		}
		if int(p.UDP.Length) != len(b) {
			return fmt.Errorf("UDP: length %d of %d bytes", p.UDP.Length, len(b))
		}
		if p.UDP.Checksum == 0 && state != checksumPartial {
			if p.IPv6 != nil && state == checksumFull {
				return errors.New("UDP: no checksum over IPv6")
			}
			return nil
		}
		return verifyL4("UDP", state, p.UDP.Checksum, pseudo, b)
	case proto == header.ProtoICMP && p.IPv4 != nil:
		p.ICMP = new(layers.ICMPv4)
		if p.Payload, err = layer(p.ICMP, "ICMP", b); err != nil {
			return err
		}
		return verifyL4("ICMP", checksumFull, p.ICMP.Checksum, 0, b)
	case proto == header.ProtoICMPv6 && p.IPv6 != nil:
		p.ICMPv6 = new(layers.ICMPv6)
		if p.Payload, err = layer(p.ICMPv6, "ICMPv6", b); err != nil {
			return err
		}
		if typ := b[0]; typ >= header.ICMPv6RouterSol && typ <= header.ICMPv6Redirect && p.IPv6.HopLimit != 255 {
			return fmt.Errorf("ICMPv6: type %d with hop limit %d, want 255", typ, p.IPv6.HopLimit)
		}
		return verifyL4("ICMPv6", checksumFull, p.ICMPv6.Checksum, pseudo, b)
	}
	return nil
}

// verifyL4 checks the checksum field of a transport header against what state wants.
func verifyL4(name string, state checksumState, field, pseudo uint16, b []byte) error {
	switch {
	case state == checksumFull && plainSum(b, pseudo) != 0xffff:
		return fmt.Errorf("%s: checksum %#04x is wrong", name, field)
	case state == checksumPartial && field != pseudo:
		return fmt.Errorf("%s: checksum field %#04x, want the pseudo-header sum %#04x", name, field, pseudo)
	}
	return nil
}

// plainSum is the sum of RFC 1071, section 4.1, word by word, not complemented.
func plainSum(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// pseudoSum is the sum of the pseudo-header, written out as RFC 8200, section 8.1, draws it. That of IPv4 has the
// same words, but for zeros.
func pseudoSum(src, dst []byte, proto uint8, length int) uint16 {
	h := append(append([]byte(nil), src...), dst...)
	h = binary.BigEndian.AppendUint32(h, uint32(length))
	return plainSum(append(h, 0, 0, 0, proto), 0)
}

func ipAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func mac(b []byte) addr.MAC { return addr.MAC(b) }
