package checksum

import (
	"encoding/binary"
	"math/bits"
)

// sumGeneric returns a number whose fold to 16 bits is the byte-swapped sum of b: the one's complement
// sum does not depend on byte order (RFC 1071, section 2 (B)), and little-endian loads are single instructions on the
// machines that matter. It is 0 only if all of b is zero.
//
// Each load of 64 bits stands for four words at once: the carry out of one word goes into the next, and the
// carry out of the last comes back in at the first, which is end-around carry.
func sumGeneric(b []byte) uint64 {
	all := b
	var acc, carry uint64
	for len(b) >= 64 {
		// One chain of eight additions with carry: the compiler keeps the carry in the flag.
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:8]), 0)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:32]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:40]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:48]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:56]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:64]), carry)
		// Cannot overflow: as the chain starts without a carry, no step leaves both a carry and 2^64-1.
		acc += carry
		b = b[64:]
	}
	if len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:8]), 0)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:32]), carry)
		acc += carry
		b = b[32:]
	}
	if len(b) >= 16 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:8]), 0)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:16]), carry)
		acc += carry
		b = b[16:]
	}
	if len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	// At most seven bytes are left: they make one last load, padded with zeros.
	var last uint64
	if len(all) >= 8 {
		// The load ends where the buffer does; the shift takes out what has been added already.
		last = binary.LittleEndian.Uint64(all[len(all)-8:]) >> (64 - 8*uint(len(b)))
	} else {
		last = loadShort(b)
	}
	acc, carry = bits.Add64(acc, last, 0)
	return acc + carry
}

// loadShort returns up to seven bytes as a little-endian number.
func loadShort(b []byte) uint64 {
	var v uint64
	if len(b) >= 4 {
		v = uint64(binary.LittleEndian.Uint32(b))
		// The last bytes once more, shifted to where they belong: what overlaps is equal.
		v |= uint64(binary.LittleEndian.Uint32(b[len(b)-4:])) << (8 * uint(len(b)-4))
		return v
	}
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}
