package checksum

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// plainSum is the loop of RFC 1071, section 4.1, one word at a time and folded after every addition: slow
// and easily seen to be right. It shares nothing with the code under test.
func plainSum(b []byte, sum uint32) uint16 {
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

// implementations are all ways in which this machine can compute the sum.
func implementations() map[string]func([]byte) uint64 {
	m := vectorImplementations()
	m["generic"] = sumGeneric
	m["long"] = sumLong
	return m
}

func swap(v uint16) uint16 { return v>>8 | v<<8 }

// The example of RFC 1071, section 3.
func TestSumRFC1071(t *testing.T) {
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := Fold(Sum(b, 0)); got != 0xddf2 {
		t.Errorf("sum %#04x, want 0xddf2", got)
	}
	if got := Checksum(b); got != 0x220d {
		t.Errorf("checksum %#04x, want 0x220d", got)
	}
}

// Every length up to 4096 at every alignment to a vector register, with bytes around it that must not count.
func TestSumEveryLengthAndAlignment(t *testing.T) {
	const maxLen, aligns = 4096, 32
	rng := rand.New(rand.NewPCG(1, 2))
	mem := make([]byte, maxLen+2*aligns)
	for i := range mem {
		mem[i] = byte(rng.Uint32())
	}
	impls := implementations()
	for align := 0; align < aligns; align++ {
		even := uint16(0) // the plain sum of all words before n
		for n := 0; n <= maxLen; n++ {
			b := mem[align : align+n : align+n]
			if n >= 2 && n%2 == 0 {
				even = plainSum(b[n-2:], uint32(even))
			}
			want := plainSum(b[n&^1:], uint32(even))
			for name, sum := range impls {
				if got := swap(Fold(sum(b))); got != want {
					t.Fatalf("%s: length %d at alignment %d: %#04x, want %#04x", name, n, align, got, want)
				}
			}
		}
	}
}

// All ones makes every addition carry; all zeros must stay the one representation of zero that a sum has.
func TestSumExtremes(t *testing.T) {
	for name, sum := range implementations() {
		for n := 0; n <= 2048; n++ {
			b := make([]byte, n)
			if got := sum(b); got != 0 {
				t.Fatalf("%s: %d zeros: %#x, want 0", name, n, got)
			}
			for i := range b {
				b[i] = 0xff
			}
			if got, want := swap(Fold(sum(b))), plainSum(b, 0); got != want {
				t.Fatalf("%s: %d bytes of 0xff: %#04x, want %#04x", name, n, got, want)
			}
		}
		// One set byte anywhere must count once, at its place.
		b := make([]byte, 517)
		for i := range b {
			b[i] = 0x80
			if got, want := swap(Fold(sum(b))), plainSum(b, 0); got != want {
				t.Fatalf("%s: byte %d alone: %#04x, want %#04x", name, i, got, want)
			}
			b[i] = 0
		}
	}
}

// A long buffer of ones is where an accumulator of the assembly would overflow first.
func TestSumLong(t *testing.T) {
	n := 16 << 20
	if testing.Short() {
		n = 1 << 20
	}
	b := make([]byte, n+1)
	for i := range b {
		b[i] = 0xff
	}
	want := plainSum(b, 0)
	for name, sum := range implementations() {
		if got := swap(Fold(sum(b))); got != want {
			t.Errorf("%s: %d bytes of 0xff: %#04x, want %#04x", name, len(b), got, want)
		}
	}
}

func TestSumProperties(t *testing.T) {
	impls := implementations()
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 2000).Draw(t, "b")
		initial := rapid.Uint64Range(0, 1<<40).Draw(t, "initial")

		want := plainSum(b, 0)
		for name, sum := range impls {
			if got := swap(Fold(sum(b))); got != want {
				t.Fatalf("%s: %#04x, want %#04x", name, got, want)
			}
		}

		total := Sum(b, initial)
		if total < initial || total > initial+0xffff {
			t.Fatalf("Sum(b, %#x) = %#x, beyond its bound", initial, total)
		}

		// The sum of the parts is the sum of the whole, for every even cut.
		cut := rapid.IntRange(0, len(b)/2).Draw(t, "cut") * 2
		if got := Fold(Sum(b[cut:], Sum(b[:cut], initial))); got != Fold(total) {
			t.Fatalf("cut at %d: %#04x, want %#04x", cut, got, Fold(total))
		}
		if got := Fold(Sum(b[cut:], 0) + Sum(b[:cut], 0) + initial); got != Fold(total) {
			t.Fatalf("cut at %d and added: %#04x, want %#04x", cut, got, Fold(total))
		}

		// A packet that holds its own checksum sums to 0xffff.
		if len(b) >= 2 {
			b[0], b[1] = 0, 0
			binary.BigEndian.PutUint16(b, Checksum(b))
			if got := Fold(Sum(b, 0)); got != 0xffff {
				t.Fatalf("with its checksum in place: %#04x, want 0xffff", got)
			}
			if got := Checksum(b); got != 0 {
				t.Fatalf("Checksum over a right checksum: %#04x, want 0", got)
			}
		}
	})
}

func TestFoldProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64().Draw(t, "sum")
		want := n % 0xffff
		if want == 0 && n != 0 {
			want = 0xffff
		}
		if got := Fold(n); uint64(got) != want {
			t.Fatalf("Fold(%#x) = %#04x, want %#04x", n, got, want)
		}
	})
	for _, n := range []uint64{0, 0xffff, 0x10000, 0x1fffe, 0xffffffff, 1<<64 - 1, 1<<48 - 1, 0xffff0000ffff0000} {
		want := uint16(n % 0xffff)
		if want == 0 && n != 0 {
			want = 0xffff
		}
		if got := Fold(n); got != want {
			t.Errorf("Fold(%#x) = %#04x, want %#04x", n, got, want)
		}
	}
}

// The pseudo-headers, written out byte by byte as the RFCs draw them.
func TestPseudoHeaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "addresses")
		proto := rapid.Byte().Draw(t, "proto")
		length := rapid.IntRange(0, 1<<20).Draw(t, "length")

		v6 := append([]byte(nil), a...)
		v6 = binary.BigEndian.AppendUint32(v6, uint32(length))
		v6 = append(v6, 0, 0, 0, proto)
		got := PseudoIPv6(a[:16], a[16:], proto, length)
		if Fold(got) != plainSum(v6, 0) || got >= 1<<36 {
			t.Fatalf("IPv6: %#x folds to %#04x, want %#04x", got, Fold(got), plainSum(v6, 0))
		}

		length &= 0xffff
		v4 := append([]byte(nil), a[:8]...)
		v4 = append(v4, 0, proto)
		v4 = binary.BigEndian.AppendUint16(v4, uint16(length))
		got = PseudoIPv4(a[:4], a[4:8], proto, length)
		if Fold(got) != plainSum(v4, 0) || got >= 1<<34 {
			t.Fatalf("IPv4: %#x folds to %#04x, want %#04x", got, Fold(got), plainSum(v4, 0))
		}
	})
}

// The example of RFC 1624, section 4, where the equation of RFC 1141 comes out wrong.
func TestUpdateRFC1624(t *testing.T) {
	if got := Update(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
		t.Errorf("Update(0xdd2f, 0x5555, 0x3285) = %#04x, want 0", got)
	}
}

// An update gives what a computation from scratch gives. The packet keeps one word that is not zero, as every real one
// does: RFC 1624 has no answer for a sum of all zeros.
func TestUpdateProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 8, 64).Draw(t, "b")
		b[0] |= 0x40
		old := Checksum(b)
		at := rapid.IntRange(1, len(b)/2-1).Draw(t, "word") * 2

		from, to := binary.BigEndian.Uint16(b[at:]), rapid.Uint16().Draw(t, "to")
		binary.BigEndian.PutUint16(b[at:], to)
		if got, want := Update(old, from, to), Checksum(b); got != want {
			t.Fatalf("Update(%#04x, %#04x, %#04x) = %#04x, want %#04x", old, from, to, got, want)
		}

		at = rapid.IntRange(1, len(b)/2-2).Draw(t, "long word") * 2
		old = Checksum(b)
		from32, to32 := binary.BigEndian.Uint32(b[at:]), rapid.Uint32().Draw(t, "to32")
		binary.BigEndian.PutUint32(b[at:], to32)
		if got, want := Update32(old, from32, to32), Checksum(b); got != want {
			t.Fatalf("Update32(%#04x, %#08x, %#08x) = %#04x, want %#04x", old, from32, to32, got, want)
		}
	})
}

// The carries of the updates meet in sums that random input hardly ever gives.
func TestUpdateEdges(t *testing.T) {
	plain := func(old uint16, words ...uint16) uint16 {
		sum := uint32(^old)
		for i := 0; i < len(words); i += 2 {
			sum += uint32(^words[i]) + uint32(words[i+1])
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		return ^uint16(sum)
	}
	edges := []uint16{0, 1, 2, 0x7fff, 0x8000, 0x8001, 0xfffd, 0xfffe, 0xffff}
	for _, old := range edges {
		for _, a := range edges {
			for _, b := range edges {
				if got, want := Update(old, a, b), plain(old, a, b); got != want {
					t.Errorf("Update(%#04x, %#04x, %#04x) = %#04x, want %#04x", old, a, b, got, want)
				}
				for _, c := range edges {
					for _, d := range edges {
						got := Update32(old, uint32(a)<<16|uint32(c), uint32(b)<<16|uint32(d))
						if want := plain(old, a, b, c, d); got != want {
							t.Errorf("Update32(%#04x, %#04x%04x, %#04x%04x) = %#04x, want %#04x", old, a, c, b, d, got, want)
						}
					}
				}
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	b := make([]byte, 1400)
	var sink uint16
	if n := testing.AllocsPerRun(100, func() {
		sink += Fold(Sum(b, PseudoIPv6(b[:16], b[16:32], 6, len(b))))
		sink += Update32(Update(sink, 1, 2), 3, 4)
	}); n != 0 {
		t.Errorf("%v allocations a run, want 0", n)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint32(0))
	f.Add([]byte{0x45}, uint32(0xffff))
	f.Add([]byte{0x45, 0, 0, 20, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2}, uint32(6))
	long := make([]byte, 333)
	for i := range long {
		long[i] = byte(255 - i%3)
	}
	f.Add(long, uint32(1))
	impls := implementations()
	f.Fuzz(func(t *testing.T, b []byte, initial uint32) {
		want := plainSum(b, 0)
		for name, sum := range impls {
			if got := swap(Fold(sum(b))); got != want {
				t.Errorf("%s: %#04x, want %#04x", name, got, want)
			}
		}
		if got, want := Fold(Sum(b, uint64(initial))), Fold(uint64(want)+uint64(initial)); got != want {
			t.Errorf("Sum with initial %#x: %#04x, want %#04x", initial, got, want)
		}
	})
}
