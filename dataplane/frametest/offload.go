package frametest

import (
	"encoding/binary"
	"fmt"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/header"
)

// Offload returns the frame as a TAP with offloads would hand it over, with its virtio-net header: the
// checksum of the innermost transport header is only that of the pseudo-header. A gsoSize over 0 makes it a
// superframe whose segments have that much payload each; 0 makes it a plain frame. NumBuffers is 0, as
// it is for everything that does not come from a real queue.
func (b *Builder) Offload(gsoSize int) (header.VirtioNet, []byte) {
	frame := b.Bytes()
	h := header.VirtioNet{Flags: header.VirtioFlagNeedsCsum, GSOSize: uint16(gsoSize)}
	_, v4 := b.ip.(*layers.IPv4)
	var l4Len int
	switch {
	case b.tcp != nil:
		l4Len, h.CsumOffset = int(b.tcp.DataOffset)*4, 16
		h.GSOType = header.GSOTCPv6
		if v4 {
			h.GSOType = header.GSOTCPv4
		}
		if b.tcp.CWR {
			h.GSOType |= header.GSOECN
		}
	case b.udp != nil:
		l4Len, h.CsumOffset = 8, 6
		h.GSOType = header.GSOUDPL4
	default:
		panic("frametest: only TCP and UDP can be offloaded")
	}
	if gsoSize == 0 {
		h.GSOType = header.GSONone
	}
	start := len(frame) - b.tail - l4Len
	h.CsumStart = uint16(start)
	if gsoSize != 0 {
		h.HdrLen = uint16(start + l4Len)
	}

	// The transport header and all after it count in the pseudo-header's length, also in a superframe.
	proto := uint8(header.ProtoUDP)
	if b.tcp != nil {
		proto = header.ProtoTCP
	}
	var pseudo uint16
	switch ip := b.ip.(type) {
	case *layers.IPv4:
		pseudo = pseudoSum(ip.SrcIP.To4(), ip.DstIP.To4(), proto, len(frame)-start)
	case *layers.IPv6:
		pseudo = pseudoSum(ip.SrcIP.To16(), ip.DstIP.To16(), proto, len(frame)-start)
	}
	binary.BigEndian.PutUint16(frame[start+int(h.CsumOffset):], pseudo)
	return h, frame
}

// Partial returns the frame with the checksum of the innermost transport header only begun.
func (b *Builder) Partial() []byte {
	_, frame := b.Offload(0)
	return frame
}

// Segments splits the payload of a TCP or UDP frame into frames of at most size bytes of payload each, the plain
// way: the frame is decoded, and every segment is built anew with all its checksums. As Linux does it, the IPv4
// identification counts up from that of the frame, FIN and PSH stay with the last segment, and CWR with the
// first. The checksum of the frame itself is not looked at.
func Segments(frame []byte, size int) ([][]byte, error) {
	p, err := decode(frame, checksumAny)
	if err != nil {
		return nil, err
	}
	if size <= 0 || p.TCP == nil && p.UDP == nil {
		return nil, fmt.Errorf("frametest: frame without TCP or UDP, or segment size %d: cannot be split", size)
	}
	var out [][]byte
	for i, rest := 0, p.Payload; i == 0 || len(rest) > 0; i++ {
		n := min(size, len(rest))
		last := n == len(rest)
		segment := p.segment(i, i*size, last).Data(rest[:n]).Bytes()
		if p.TCP != nil {
			setOptions(segment[:len(segment)-n], p.TCP.Contents[header.TCPMinLen:])
		}
		out = append(out, segment)
		rest = rest[n:]
	}
	return out, nil
}

// setOptions puts TCP options at the end of headers, which have some of that length there, byte by byte: gopacket
// keeps nothing that stands behind an end of the list. The checksum follows (RFC 1624, equation 3).
func setOptions(headers, options []byte) {
	at := headers[len(headers)-len(options):]
	tcp := headers[len(headers)-len(options)-header.TCPMinLen:]
	sum := uint32(^binary.BigEndian.Uint16(tcp[16:]))
	for i := 0; i < len(options); i += 2 {
		sum += uint32(^binary.BigEndian.Uint16(at[i:])) + uint32(binary.BigEndian.Uint16(options[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
	copy(at, options)
}

// segment rebuilds the headers of p for the i-th segment, which starts at offset in the payload.
func (p *Packet) segment(i, offset int, last bool) *Builder {
	b := Ethernet(mac(p.Ethernet.DstMAC), mac(p.Ethernet.SrcMAC))
	t := p.Ethernet.EthernetType
	for _, v := range p.VLANs {
		b.tag(t, v.VLANIdentifier, []func(*layers.Dot1Q){func(l *layers.Dot1Q) {
			l.Priority, l.DropEligible = v.Priority, v.DropEligible
		}})
		t = v.Type
	}
	if p.IPv4 != nil {
		b.IPv4(p.src, p.dst, func(l *layers.IPv4) {
			l.TOS, l.TTL, l.Flags, l.Options = p.IPv4.TOS, p.IPv4.TTL, p.IPv4.Flags, p.IPv4.Options
			l.Id = p.IPv4.Id + uint16(i)
		})
	} else {
		b.IPv6(p.src, p.dst, func(l *layers.IPv6) {
			l.TrafficClass, l.HopLimit, l.FlowLabel = p.IPv6.TrafficClass, p.IPv6.HopLimit, p.IPv6.FlowLabel
		})
		for _, e := range p.Extensions {
			b.Extension(e.Kind, e.Bytes[2:])
		}
	}
	if p.UDP != nil {
		return b.UDP(uint16(p.UDP.SrcPort), uint16(p.UDP.DstPort))
	}
	return b.TCP(uint16(p.TCP.SrcPort), uint16(p.TCP.DstPort), func(l *layers.TCP) {
		// Field by field: l already knows its IP layer, which p.TCP does not.
		t := p.TCP
		l.Seq, l.Ack, l.Window, l.Urgent = t.Seq, t.Ack, t.Window, t.Urgent
		for range t.Contents[header.TCPMinLen:] {
			l.Options = append(l.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1})
		}
		l.FIN, l.SYN, l.RST, l.PSH, l.ACK, l.URG, l.ECE, l.CWR, l.NS = t.FIN, t.SYN, t.RST, t.PSH, t.ACK, t.URG, t.ECE, t.CWR, t.NS
		l.Seq += uint32(offset)
		l.FIN, l.PSH = l.FIN && last, l.PSH && last
		l.CWR = l.CWR && i == 0
	})
}
