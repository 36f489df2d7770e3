package checksum

import (
	"math/bits"

	"golang.org/x/sys/cpu"
)

// vectorMax is the longest buffer that goes to the assembly: far below the 16 GiB at which its sum could overflow.
const vectorMax = 1 << 30

// sumLong is sumGeneric by the fastest way that the processor has.
func sumLong(b []byte) uint64 {
	if len(b) > vectorMax || !cpu.X86.HasAVX2 {
		return sumGeneric(b)
	}
	return sumVector(b)
}

// sumVector is sumGeneric by way of AVX2, for any length up to vectorMax.
func sumVector(b []byte) uint64 {
	blocks := len(b) &^ 31
	acc, carry := bits.Add64(sumBlocksAVX2(b), sumGeneric(b[blocks:]), 0)
	return acc + carry
}

// sumBlocksAVX2 adds the 32-bit little-endian words of the first len(b)&^31 bytes of b, without folding. The
// total fits in 64 bits for every len(b) under 16 GiB.
//
//go:noescape
func sumBlocksAVX2(b []byte) uint64
