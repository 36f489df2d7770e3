#include "textflag.h"

// func sumBlocksAVX2(b []byte) uint64
//
// The sum of all 32-bit words of b. AVX2 has no addition with carry, so the low and the high word of every 64-bit lane
// need sums of their own. Instead of masking out the low word, whole lanes are added modulo 2^64 (X), and the
// high words once more by themselves (H): X is low + 2^32 * high modulo 2^64, so that the low words are
// X - 2^32 * H, exactly, as long as they fit in 64 bits. That takes three operations for 32 bytes.
//
//	Y0, Y1  X, two accumulators to shorten the chains of dependent additions
//	Y2, Y3  H
TEXT ·sumBlocksAVX2(SB), NOSPLIT, $0-32
	MOVQ  b_base+0(FP), SI
	MOVQ  b_len+8(FP), CX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	SUBQ  $128, CX
	JLT   rest

	PCALIGN $32

loop:
	VMOVDQU 0(SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y6
	VMOVDQU 96(SI), Y7
	VPADDQ  Y4, Y0, Y0
	VPADDQ  Y5, Y1, Y1
	VPSRLQ  $32, Y4, Y4
	VPSRLQ  $32, Y5, Y5
	VPADDQ  Y6, Y0, Y0
	VPADDQ  Y7, Y1, Y1
	VPSRLQ  $32, Y6, Y6
	VPSRLQ  $32, Y7, Y7
	VPADDQ  Y4, Y2, Y2
	VPADDQ  Y5, Y3, Y3
	VPADDQ  Y6, Y2, Y2
	VPADDQ  Y7, Y3, Y3
	ADDQ    $128, SI
	SUBQ    $128, CX
	JGE     loop

rest:
	// CX is the number of bytes left minus 128; 0 to 3 blocks of 32 bytes remain.
	ADDQ $96, CX
	JLT  reduce

block:
	VMOVDQU 0(SI), Y4
	VPADDQ  Y4, Y0, Y0
	VPSRLQ  $32, Y4, Y4
	VPADDQ  Y4, Y2, Y2
	ADDQ    $32, SI
	SUBQ    $32, CX
	JGE     block

reduce:
	VPADDQ Y1, Y0, Y0
	VPADDQ Y3, Y2, Y2
	VPSLLQ $32, Y2, Y3
	VPSUBQ Y3, Y0, Y0
	VPADDQ Y2, Y0, Y0

	// Four lanes of 64 bits to one.
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VMOVQ        X0, AX
	VZEROUPPER
	MOVQ         AX, ret+24(FP)
	RET
