package frame

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/header"
)

// Fault says what is wrong with a frame.
type Fault uint8

// The faults that Parse finds.
const (
	Sound        Fault = iota // nothing wrong
	Runt                      // shorter than one of its own headers
	BadLength                 // a length field contradicts the frame
	BadSource                 // source MAC is a group address or zero
	BadIPHeader               // version, header length or header checksum that cannot be
	BadIPOption               // malformed option or extension header, or source routing
	BadFragment               // fragment that cannot be part of a valid packet
	BadTCPOption              // option list that runs over its header
	NumFaults                 // how many there are
)

// maxPacket is the largest packet, in bytes, whose length an IPv4 header can state.
const maxPacket = 65535

// Layer3 is the network layer protocol of a frame, as far as Parse knows it.
type Layer3 uint8

// What Parse can see above Ethernet.
const (
	Opaque Layer3 = iota // some other EtherType: carried as it is
	ARP
	IPv4
	IPv6
)

// maxTags is the number of VLAN tags that Parse looks behind: one of 802.1Q, or two of 802.1ad. A frame
// with more is carried as Opaque.
const maxTags = 2

// maxExtensions is how many IPv6 extension headers a packet may have: the seven that RFC 8200, section 4.1
// names.
const maxExtensions = 7

// Parsed is the result of Parse: offsets in bytes from the first byte of the Ethernet header. Offsets of
// layers that are not there are 0.
type Parsed struct {
	L3Off      uint16 // network layer header
	L4Off      uint16 // TCP, UDP, ICMP or ICMPv6 header; 0 for other protocols, for fragments, and see DstOff
	PayloadOff uint16 // behind the TCP or UDP header
	EtherType  uint16 // innermost: behind the VLAN tags
	End        int    // end of the network layer packet; what follows is Ethernet padding
	L3         Layer3
	Proto      uint8 // upper-layer protocol number (IANA), behind IPv6 extension headers
	Tags       uint8 // VLAN tags
	TCPFlags   uint8
	Fragment   bool // a fragment of a larger packet; its ports are not looked at

	// DstOff is where, in an IPv6 packet, the address is that transport checksums have as destination: in the
	// fixed header, or in a routing header that leads on to another (RFC 8200, section 8.1). It is 0 if that
	// routing header is of an unknown kind; the transport header is not looked at then.
	DstOff uint16
}

// Parse fills p from the Ethernet frame b, or says what is wrong with it, in which case p is undefined
// except for the fields of the layers below the fault. It resets every field first.
//
// b may be a superframe. Bytes behind the network layer packet are padding and no fault (IEEE 802.3,
// 3.2.7).
func (p *Parsed) Parse(b []byte) Fault {
	*p = Parsed{}
	if len(b) < header.EthernetLen {
		return Runt
	}
	if b[6]&1 != 0 || binary.BigEndian.Uint32(b[6:])|uint32(binary.BigEndian.Uint16(b[10:])) == 0 {
		return BadSource
	}
	off := header.EthernetLen
	typ := binary.BigEndian.Uint16(b[12:])
	for (typ == header.EtherTypeVLAN || typ == header.EtherTypeQinQ) && p.Tags < maxTags {
		if len(b) < off+header.VLANLen {
			return Runt
		}
		typ = binary.BigEndian.Uint16(b[off+2:])
		off += header.VLANLen
		p.Tags++
	}
	p.EtherType = typ
	p.L3Off = uint16(off)
	p.End = len(b)
	switch typ {
	case header.EtherTypeIPv4:
		return p.parseIPv4(b, off)
	case header.EtherTypeIPv6:
		return p.parseIPv6(b, off)
	case header.EtherTypeARP:
		if len(b) < off+header.ARPLen {
			return Runt
		}
		p.L3 = ARP
		p.End = off + header.ARPLen
	}
	return Sound
}

func (p *Parsed) parseIPv4(b []byte, off int) Fault {
	p.L3 = IPv4
	ip := header.IPv4(b[off:])
	if len(ip) < header.IPv4MinLen {
		return Runt
	}
	hlen := int(ip[0]&0x0f) * 4
	if ip[0]>>4 != 4 || hlen < header.IPv4MinLen {
		return BadIPHeader
	}
	total := int(binary.BigEndian.Uint16(ip[2:]))
	if total < hlen || total > len(ip) {
		return BadLength
	}
	if !headerSumOK(ip[:hlen]) {
		return BadIPHeader
	}
	if hlen > header.IPv4MinLen && !ipv4OptionsOK(ip[header.IPv4MinLen:hlen]) {
		return BadIPOption
	}
	p.End = off + total
	p.Proto = ip[9]
	if word := binary.BigEndian.Uint16(ip[6:]); word&0x3fff != 0 {
		p.Fragment = true
		offset := int(word&0x1fff) * 8
		if offset+total > maxPacket { // more than the header of the whole packet could state
			return BadFragment
		}
		return fragmentFault(p.Proto, offset, word&0x2000 != 0, total-hlen)
	}
	return p.parseL4(b, off+hlen)
}

// headerSumOK verifies the checksum of an IPv4 header (RFC 791, section 3.1), whose length is a multiple
// of 4.
func headerSumOK(h []byte) bool {
	var sum uint64
	for ; len(h) >= 4; h = h[4:] {
		sum += uint64(binary.BigEndian.Uint32(h))
	}
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return sum == 0xffff
}

// ipv4OptionsOK refuses lists that overrun and the two source routes (options 131 and 137), which let a
// sender choose a way around whatever guards the receiver (RFC 7126, sections 4.3 and 4.4).
func ipv4OptionsOK(o []byte) bool {
	const (
		end, nop          = 0, 1
		looseSR, strictSR = 131, 137
	)
	for len(o) > 0 {
		switch o[0] {
		case end:
			return true
		case nop:
			o = o[1:]
			continue
		case looseSR, strictSR:
			return false
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return false
		}
		o = o[o[1]:]
	}
	return true
}

// fragmentFault refuses fragments that no sender makes and that have been used to get past filters or to
// crash receivers: an end beyond 65,535 bytes, a part that is empty, one that is not the last and no multiple
// of 8, a first TCP fragment that hides the flags (RFC 1858, section 3), and an overlap of the TCP header
// (RFC 3128).
func fragmentFault(proto uint8, offset int, more bool, size int) Fault {
	switch {
	case offset+size > maxPacket,
		size == 0,
		more && size%8 != 0,
		proto == header.ProtoTCP && offset == 0 && size < header.TCPMinLen,
		proto == header.ProtoTCP && offset == 8:
		return BadFragment
	}
	return Sound
}

func (p *Parsed) parseIPv6(b []byte, off int) Fault {
	p.L3 = IPv6
	ip := header.IPv6(b[off:])
	if len(ip) < header.IPv6Len {
		return Runt
	}
	if ip[0]>>4 != 6 {
		return BadIPHeader
	}
	end := header.IPv6Len + int(binary.BigEndian.Uint16(ip[4:]))
	if end > len(ip) {
		return BadLength
	}
	p.End = off + end
	p.DstOff = uint16(off + 24)
	ip = ip[:end]
	next := ip[6]
	at := header.IPv6Len
	for range maxExtensions + 1 { // and what is behind them
		var size int
		switch next {
		case header.ProtoHopByHop, header.ProtoRouting, header.ProtoDestOpts:
			if len(ip) < at+8 {
				return BadIPOption
			}
			size = 8 + int(ip[at+1])*8
		case header.ProtoAH:
			if len(ip) < at+8 {
				return BadIPOption
			}
			size = 8 + int(ip[at+1])*4
		case header.ProtoFragment:
			if len(ip) < at+8 {
				return BadFragment
			}
			next, at = p.parseIPv6Fragment(ip, at)
			if at == 0 {
				return BadFragment
			}
			if p.Fragment {
				p.Proto = next
				return Sound
			}
			continue
		default:
			p.Proto = next
			if p.DstOff == 0 {
				return Sound
			}
			return p.parseL4(b, off+at)
		}
		if len(ip) < at+size || !p.parseExtension(next, ip[at:at+size], off+at) {
			return BadIPOption
		}
		next = ip[at]
		at += size
	}
	return BadIPOption
}

// parseExtension looks into the extension header h at offset off of the frame.
func (p *Parsed) parseExtension(kind uint8, h []byte, off int) bool {
	switch kind {
	case header.ProtoHopByHop, header.ProtoDestOpts:
		return ipv6OptionsOK(h[2:])
	case header.ProtoRouting:
		return h[3] == 0 || p.parseRoute(h, off)
	}
	return true
}

// ipv6OptionsOK reports whether the options of a hop-by-hop or destination options header stay inside o
// (RFC 8200, section 4.2).
func ipv6OptionsOK(o []byte) bool {
	const pad1 = 0
	for len(o) > 0 {
		if o[0] == pad1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || 2+int(o[1]) > len(o) {
			return false
		}
		o = o[2+int(o[1]):]
	}
	return true
}

// parseRoute handles the routing header h at offset off of the frame, on a packet that is to go on to another
// address than the one in its fixed header. Type 0 is the IPv6 source route, deprecated by RFC 5095.
func (p *Parsed) parseRoute(h []byte, off int) bool {
	const source, mobility, segment = 0, 2, 4
	switch h[2] {
	case source:
		return false
	case mobility, segment:
		// The home address of RFC 6275, section 6.4.1, and the last segment of RFC 8754, section 2, which comes
		// first, are at the same place.
		if len(h) < 8+16 {
			return false
		}
		p.DstOff = uint16(off + 8)
	default:
		p.DstOff = 0
	}
	return true
}

// parseIPv6Fragment handles the fragment header at ip[at:]. It returns the next header and its offset, or
// 0 for a bad fragment. A fragment that is alone ("atomic", RFC 6946) is not treated as a fragment.
func (p *Parsed) parseIPv6Fragment(ip []byte, at int) (next uint8, off int) {
	next = ip[at]
	word := binary.BigEndian.Uint16(ip[at+2:])
	off = at + 8
	if word&0xfff9 == 0 {
		return next, off
	}
	p.Fragment = true
	if fragmentFault(next, int(word&0xfff8), word&1 != 0, len(ip)-off) != Sound {
		return next, 0
	}
	return next, off
}

// parseL4 looks at the transport header at b[off:p.End].
func (p *Parsed) parseL4(b []byte, off int) Fault {
	l4 := b[off:p.End]
	switch p.Proto {
	case header.ProtoTCP:
		if len(l4) < header.TCPMinLen {
			return Runt
		}
		size := int(l4[12]>>4) * 4
		if size < header.TCPMinLen || size > len(l4) {
			return BadLength
		}
		if size > header.TCPMinLen && !tcpOptionsOK(l4[header.TCPMinLen:size]) {
			return BadTCPOption
		}
		p.TCPFlags = l4[13]
		p.PayloadOff = uint16(off + size)
	case header.ProtoUDP:
		if len(l4) < header.UDPLen {
			return Runt
		}
		if n := int(binary.BigEndian.Uint16(l4[4:])); n < header.UDPLen || n > len(l4) {
			return BadLength
		}
		p.PayloadOff = uint16(off + header.UDPLen)
	case header.ProtoICMP, header.ProtoICMPv6:
		if (p.Proto == header.ProtoICMP) != (p.L3 == IPv4) {
			return Sound // the one of the other family is any other protocol
		}
		if len(l4) < 8 {
			return Runt
		}
	default:
		return Sound
	}
	p.L4Off = uint16(off)
	return Sound
}

// tcpOptionsOK reports whether the list stays inside o (RFC 9293, section 3.1).
func tcpOptionsOK(o []byte) bool {
	// Nearly every segment carries just this: two NOPs and the timestamps of RFC 7323, appendix A.
	if len(o) == 12 && binary.BigEndian.Uint32(o) == 0x0101080a {
		return true
	}
	for len(o) > 0 {
		switch o[0] {
		case 0: // end of list
			return true
		case 1: // no operation
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return false
		}
		o = o[o[1]:]
	}
	return true
}
