package frame

import "encoding/binary"

// HashFactor is what FlowHash multiplies by: 2^64 over the golden ratio, odd, and with bits that have no pattern. It
// is exported, and the hash no more than one multiplication of 64 bits a word, because a BPF program computes the same
// number for the packets that it forwards, see vtep/fastpath: BPF has no multiplication with a result of 128 bits, and
// a flow must keep its source port whichever of the two forwards a packet.
const HashFactor uint64 = 0x9e3779b97f4a7c15

// FlowHash returns a number that is the same for all frames of one flow of the parsed frame b, for use as
// entropy in the outer source port (RFC 7348, section 5): protocol, addresses and ports where they can be
// seen; protocol and addresses for fragments; the two MAC addresses for what is not IP.
func (p *Parsed) FlowHash(b []byte) uint32 {
	h := uint64(p.Proto) + 1
	switch p.L3 {
	case IPv4:
		h = Mix(h, binary.BigEndian.Uint64(b[p.L3Off+12:]))
	case IPv6:
		a := b[p.L3Off+8:]
		a = a[:32]
		h = Mix(h, binary.BigEndian.Uint64(a))
		h = Mix(h, binary.BigEndian.Uint64(a[8:]))
		h = Mix(h, binary.BigEndian.Uint64(a[16:]))
		h = Mix(h, binary.BigEndian.Uint64(a[24:]))
	default:
		h = Mix(h, binary.BigEndian.Uint64(b))
		h = Mix(h, uint64(binary.BigEndian.Uint32(b[8:])))
	}
	if p.PayloadOff != 0 {
		h = Mix(h, uint64(binary.BigEndian.Uint32(b[p.L4Off:])))
	}
	return uint32(h)
}

// Mix folds w into h, as FlowHash does with one word after the other. A product's low bits know only the low bits of its factors; so the high ones are folded in.
func Mix(h, w uint64) uint64 {
	h = (h ^ w) * HashFactor
	return h ^ h>>32
}
