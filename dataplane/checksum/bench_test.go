package checksum

import (
	"fmt"
	"testing"
)

// BenchmarkSum measures buffers that stay in the first-level cache. "plain" is the loop of RFC 1071 in the
// same run, for comparison.
func BenchmarkSum(b *testing.B) {
	impls := implementations()
	impls["Sum"] = func(b []byte) uint64 { return Sum(b, 0) }
	impls["plain"] = func(b []byte) uint64 { return uint64(plainSum(b, 0)) }
	for _, n := range []int{20, 40, 64, 100, 128, 200, 256, 512, 1400, 9000, 32768} {
		buf := make([]byte, n)
		for i := range buf {
			buf[i] = byte(i * 7)
		}
		for _, name := range []string{"plain", "generic", "avx2", "Sum"} {
			sum, ok := impls[name]
			if !ok {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					sum(buf)
				}
			})
		}
	}
}
