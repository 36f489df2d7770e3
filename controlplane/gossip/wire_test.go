package gossip

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestJoinParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(20, 2000).Draw(t, "size")
		var in [][]byte
		for range rapid.IntRange(1, 600).Draw(t, "parts") {
			n := rapid.OneOf(rapid.IntRange(1, 8), rapid.IntRange(1, 2100)).Draw(t, "length")
			in = append(in, bytes.Repeat([]byte{partUser}, n))
		}
		var out [][]byte
		for _, p := range join(in, size) {
			ps := parts(p)
			if len(p) > size && len(ps) != 1 {
				t.Fatalf("a packet of %d parts has %d bytes, want at most %d", len(ps), len(p), size)
			}
			out = append(out, ps...)
		}
		if !slices.EqualFunc(in, out, bytes.Equal) {
			t.Fatalf("%d parts went in, %d others came out", len(in), len(out))
		}
	})
}

func TestPartsOfOddPackets(t *testing.T) {
	crc := []byte{partChecksum, 1, 2, 3, 4}
	for name, c := range map[string]struct {
		in   []byte
		want [][]byte
	}{
		"empty":               {nil, [][]byte{nil}},
		"one":                 {[]byte{partUser, 1}, [][]byte{{partUser, 1}}},
		"with checksum":       {append(crc, partUser, 1), [][]byte{{partUser, 1}}},
		"compound":            {append(crc, partCompound, 2, 0, 1, 0, 2, 8, 8, 9), [][]byte{{8}, {8, 9}}},
		"checksum of nothing": {crc, [][]byte{crc}},
		"lengths cut":         {[]byte{partCompound, 2, 0, 1}, [][]byte{{partCompound, 2, 0, 1}}},
		"part cut":            {[]byte{partCompound, 1, 0, 2, 8}, [][]byte{{partCompound, 1, 0, 2, 8}}},
	} {
		if got := parts(c.in); !slices.EqualFunc(got, c.want, bytes.Equal) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// dead is a part of memberlist, taken off a network in memory.
func deadPart(incarnation byte, node, from string) []byte {
	b := append([]byte{partDead, 0x83, 0xab}, "Incarnation"...)
	b = append(append(b, incarnation, 0xa4), "Node"...)
	b = append(append(b, 0xa0|byte(len(node))), node...)
	b = append(append(b, 0xa4), "From"...)
	return append(append(b, 0xa0|byte(len(from))), from...)
}

func TestParseNotice(t *testing.T) {
	b := deadPart(7, "a", "b")
	if got, ok := parseNotice(b); !ok || got != (notice{part: partDead, node: "a", from: "b", incarnation: 7}) {
		t.Errorf("read %+v, %v", got, ok)
	}
	for n := range len(b) {
		if _, ok := parseNotice(b[:n]); ok && n < len(b)-1 {
			t.Errorf("read the first %d of %d bytes", n, len(b))
		}
	}
	for _, b := range [][]byte{nil, {partPing, 0x80}, {partDead, 0x80}, {partDead, 0x81, 0xa4, 'N', 'o', 'd', 'e', 0x93}, {partDead, 0xdf}} {
		if got, ok := parseNotice(b); ok {
			t.Errorf("read %+v from % x", got, b)
		}
	}
}

func FuzzPacket(f *testing.F) {
	f.Add(deadPart(7, "a", "b"))
	f.Add([]byte{partCompound, 2, 0, 1, 0, 2, 8, 8, 9})
	f.Add([]byte{partPushPull, 0x81, 0xa5, 'N', 'o', 'd', 'e', 's', 0xcd, 0x40, 0x01})
	m := newMembers("self")
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for _, p := range parts(b) {
			total += len(p)
			packetPart(p)
			m.sent(p)
			m.received(p)
		}
		if total > len(b) {
			t.Errorf("%d bytes of parts in a packet of %d", total, len(b))
		}
		streamStart(b)
	})
}

func TestClaim(t *testing.T) {
	want := claim{cluster: here, node: there, digest: Digest{Index: 1<<63 + 5, Sum: 1<<64 - 1}}
	b := want.append(nil)
	if got, ok := parseClaim(b); !ok || got != want {
		t.Errorf("read %+v, %v, want %+v", got, ok, want)
	}
	for _, b := range [][]byte{nil, b[:len(b)-1], append(b[:len(b):len(b)], 0), append([]byte{2}, b[1:]...)} {
		if _, ok := parseClaim(b); ok {
			t.Errorf("read % x", b)
		}
	}
	for _, c := range []struct {
		theirs, ours Digest
		want         bool
	}{
		{Digest{1, 1}, Digest{1, 1}, false},
		{Digest{2, 1}, Digest{1, 1}, true},
		{Digest{1, 1}, Digest{2, 1}, false},
		{Digest{1, 2}, Digest{1, 1}, true},
		{Digest{1, 2}, Digest{2, 1}, false},
	} {
		if got := c.theirs.aheadOf(c.ours); got != c.want {
			t.Errorf("%v ahead of %v: %v, want %v", c.theirs, c.ours, got, c.want)
		}
	}
}

func FuzzClaim(f *testing.F) {
	f.Add(claim{cluster: here}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ok := parseClaim(b); ok && !bytes.Equal(c.append(nil), b) {
			t.Errorf("%+v is not what % x says", c, b)
		}
	})
}
