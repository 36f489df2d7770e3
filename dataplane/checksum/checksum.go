package checksum

import (
	"encoding/binary"
	"math/bits"
)

// longMin is the length from which a buffer is summed by sumLong. Below it the way to the assembly, and its final
// reduction, cost more than they save.
const longMin = 192

// Sum adds the 16-bit big-endian words of b to initial, in one's complement arithmetic (RFC 1071). An
// odd last byte counts as the high byte of a word whose low byte is zero.
//
// The result is at most initial + 0xffff, so that billions of partial sums can be added with + before
// the 64 bits overflow. The sum is 0 only if initial is 0 and all of b is zero. It is neither folded
// nor complemented: see Fold.
func Sum(b []byte, initial uint64) uint64 {
	var sum uint64
	if len(b) < longMin {
		sum = sumGeneric(b)
	} else {
		sum = sumLong(b)
	}
	return initial + uint64(bits.ReverseBytes16(Fold(sum)))
}

// Fold reduces a partial sum to 16 bits by end-around carry. It does not complement the result: that is
// what a checksum field of an outgoing packet holds while the rest of the sum is left to the hardware.
// A packet whose checksum is right folds to 0xffff.
func Fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff // at most 18 bits now: the next two steps absorb all carries
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// Checksum returns the Internet checksum of b: what goes into the checksum field if that field is zero
// in b, and 0 if b holds a checksum that is right.
func Checksum(b []byte) uint16 {
	return ^Fold(Sum(b, 0))
}

// PseudoIPv4 returns the partial sum of the IPv4 pseudo-header (RFC 9293, section 3.1; RFC 768). src and
// dst are addresses of 4 bytes, length is that of the transport header and its payload in bytes. The
// result is below 2^34 for every length under 2^32.
func PseudoIPv4(src, dst []byte, proto uint8, length int) uint64 {
	// 2^16 is 1 modulo 2^16-1, so that 32 bits at a time give the same folded sum as 16 bits at a time.
	return uint64(binary.BigEndian.Uint32(src)) + uint64(binary.BigEndian.Uint32(dst)) + uint64(proto) + uint64(length)
}

// PseudoIPv6 returns the partial sum of the IPv6 pseudo-header (RFC 8200, section 8.1). src and dst are
// addresses of 16 bytes, proto is the transport protocol (not that of an extension header), length that of the
// transport header and its payload in bytes. The result is below 2^36 for every length under 2^32.
func PseudoIPv6(src, dst []byte, proto uint8, length int) uint64 {
	return sum16(src) + sum16(dst) + uint64(proto) + uint64(length)
}

// sum16 adds an IPv6 address in words of 32 bits.
func sum16(a []byte) uint64 {
	hi, lo := binary.BigEndian.Uint64(a), binary.BigEndian.Uint64(a[8:])
	return hi>>32 + hi&0xffffffff + lo>>32 + lo&0xffffffff
}

// Update returns the checksum that follows old once a 16-bit word under it, aligned to 16 bits, changes
// from from to to (RFC 1624, equation 3). A UDP checksum that comes out as 0 must be sent as 0xffff
// (RFC 768), and one that is 0 stands for "none" and must not be updated.
func Update(old, from, to uint16) uint16 {
	sum := uint32(^old) + uint32(^from) + uint32(to)
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}

// Update32 is Update for a field of 32 bits that is aligned to 16 bits, such as an IPv4 address or a TCP
// sequence number.
func Update32(old uint16, from, to uint32) uint16 {
	sum := uint64(^old) + uint64(^from) + uint64(to)
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum>>16 + sum)
}
