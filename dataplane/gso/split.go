package gso

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
)

// MaxSegments is how many frames one superframe may become. A full one has that many at an MSS of 48, the
// least that Linux accepts (net.ipv4.tcp_min_snd_mss); more would let a hostile header turn one superframe
// into tens of thousands of frames.
const MaxSegments = 65536 / 48

// Segments returns how many frames a superframe with this much payload stands for at a GSO size of size
// bytes: at least 1.
func Segments(payload, size int) int {
	if size <= 0 || payload <= size {
		return 1
	}
	return (payload + size - 1) / size
}

// Payload returns the bytes behind the transport header of the superframe that p describes.
func Payload(p *frame.Parsed) int { return p.End - int(p.PayloadOff) }

// Splittable reports whether b, which p describes, is a whole TCP segment or UDP datagram that Split can
// cut.
func Splittable(b []byte, p *frame.Parsed) bool {
	if p.PayloadOff == 0 {
		return false
	}
	if p.Proto == header.ProtoUDP {
		return int(binary.BigEndian.Uint16(b[p.L4Off+4:])) == p.End-int(p.L4Off)
	}
	return p.Proto == header.ProtoTCP && p.TCPFlags&(header.TCPSyn|header.TCPRst|header.TCPUrg) == 0
}

// Signed reports whether the TCP segment b, which p describes, carries a signature: TCP-MD5 (RFC 2385) or TCP-AO (RFC
// 5925). It covers the payload of one segment, so that a segment with other boundaries would not be taken by its
// receiver.
func Signed(b []byte, p *frame.Parsed) bool {
	if p.Proto != header.ProtoTCP || int(p.PayloadOff-p.L4Off) <= header.TCPMinLen {
		return false
	}
	for o := header.TCP(b[p.L4Off:p.PayloadOff]).OptionList(); o.Next(); {
		if o.Kind() == header.TCPOptionMD5 || o.Kind() == header.TCPOptionAO {
			return true
		}
	}
	return false
}

// Split cuts the superframe b, which may also be a single segment, into frames of at most size bytes of payload each
// and appends two pieces a frame to pieces: the headers, preceded by a copy of prefix, and the payload, which is part of
// b. The frames carry complete checksums, whatever b had in its checksum fields.
//
// p must come from parsing b, Splittable(b, p) must hold and size be at least 1. Split returns nil when the
// arena has no room; nothing is appended then.
//
// Sequence numbers, IPv4 identification and TCP flags follow what the Linux kernel does in software: FIN
// and PSH on the last frame alone, CWR on the first alone (RFC 3168, section 6.1.2), identification rising
// by one.
func Split(pieces [][]byte, a *Arena, prefix, b []byte, p *frame.Parsed, size int) [][]byte {
	return split(pieces, a, prefix, b, p, size, false)
}

// Train is Split with one piece for each frame: its payload is copied behind its headers, and the frames lie behind one
// another. A kernel that is to take them in one send has one piece of memory to read, not two a frame, which is worth more
// than the copy while frames are short.
func Train(pieces [][]byte, a *Arena, prefix, b []byte, p *frame.Parsed, size int) [][]byte {
	return split(pieces, a, prefix, b, p, size, true)
}

func split(pieces [][]byte, a *Arena, prefix, b []byte, p *frame.Parsed, size int, whole bool) [][]byte {
	hlen := int(p.PayloadOff)
	payload := b[hlen:p.End]
	mark := a.Mark()
	var c cutter
	c.init(b, p)
	for i := 0; len(payload) > 0 || i == 0; i++ {
		n := min(size, len(payload))
		need := len(prefix) + hlen
		if whole {
			need += n
		}
		h := a.Alloc(need)
		if h == nil {
			a.Release(mark)
			return nil
		}
		copy(h, prefix)
		f := h[len(prefix):]
		copy(f, b[:hlen])
		pieces = append(pieces, h)
		if whole {
			copy(f[hlen:], payload[:n])
		} else {
			pieces = append(pieces, payload[:n])
		}
		c.write(f[:hlen], payload[:n], i, n == len(payload))
		payload = payload[n:]
	}
	return pieces
}

// cutter holds what stays the same from frame to frame of one superframe.
type cutter struct {
	p      *frame.Parsed
	seq    uint32
	id     uint16
	pseudo uint64 // sum of the pseudo-header but for the length
	ipSum  uint64 // sum of the IPv4 header but for total length, identification and checksum
}

func (c *cutter) init(b []byte, p *frame.Parsed) {
	c.p = p
	ip := b[p.L3Off:]
	if p.L3 == frame.IPv4 {
		c.id = binary.BigEndian.Uint16(ip[4:])
		hlen := int(ip[0]&0x0f) * 4
		c.ipSum = checksum.Sum(ip[:2], 0)
		c.ipSum = checksum.Sum(ip[6:10], c.ipSum)
		c.ipSum = checksum.Sum(ip[12:hlen], c.ipSum)
	}
	c.pseudo = pseudo(b, p, 0)
	if p.Proto == header.ProtoTCP {
		c.seq = binary.BigEndian.Uint32(b[p.L4Off+4:])
	}
}

// write turns f, a copy of the superframe's headers, into the headers of frame i with this payload.
func (c *cutter) write(f, payload []byte, i int, last bool) {
	p := c.p
	ip := f[p.L3Off:]
	l3len := len(ip) + len(payload)
	if p.L3 == frame.IPv4 {
		id := c.id + uint16(i)
		binary.BigEndian.PutUint16(ip[2:], uint16(l3len))
		binary.BigEndian.PutUint16(ip[4:], id)
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Fold(c.ipSum+uint64(l3len)+uint64(id)))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(l3len-header.IPv6Len))
	}
	l4 := f[p.L4Off:]
	l4len := len(l4) + len(payload)
	sum := c.pseudo + uint64(l4len)
	if p.Proto == header.ProtoTCP {
		binary.BigEndian.PutUint32(l4[4:], c.seq)
		c.seq += uint32(len(payload))
		if !last {
			l4[13] &^= header.TCPFin | header.TCPPsh
		}
		if i > 0 {
			l4[13] &^= header.TCPCwr
		}
		binary.BigEndian.PutUint16(l4[16:], 0)
		binary.BigEndian.PutUint16(l4[16:], ^checksum.Fold(checksum.Sum(payload, checksum.Sum(l4, sum))))
		return
	}
	binary.BigEndian.PutUint16(l4[4:], uint16(l4len))
	binary.BigEndian.PutUint16(l4[6:], 0)
	v := ^checksum.Fold(checksum.Sum(payload, checksum.Sum(l4, sum)))
	if v == 0 { // 0 on the wire means "no checksum" (RFC 768)
		v = 0xffff
	}
	binary.BigEndian.PutUint16(l4[6:], v)
}

// pseudo returns the sum of the pseudo-header of the TCP or UDP packet of length bytes in b (RFC 9293,
// section 3.1; RFC 8200, section 8.1).
func pseudo(b []byte, p *frame.Parsed, length int) uint64 {
	ip := b[p.L3Off:]
	if p.L3 == frame.IPv4 {
		return checksum.PseudoIPv4(ip[12:16], ip[16:20], p.Proto, length)
	}
	return checksum.PseudoIPv6(ip[8:24], b[p.DstOff:p.DstOff+16], p.Proto, length)
}
