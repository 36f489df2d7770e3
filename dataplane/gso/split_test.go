package gso_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	. "github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

func plain() *ft.Builder { return ft.Ethernet(ft.MAC(2), ft.MAC(1)) }
func ip6() *ft.Builder   { return plain().IPv6(ft.IP6(1), ft.IP6(2)) }

// parse fails the test unless the frame is sound.
func parse(t testing.TB, b []byte) *frame.Parsed {
	t.Helper()
	p := new(frame.Parsed)
	if f := p.Parse(b); f != frame.Sound {
		t.Fatalf("fault %d\n% x", f, b[:min(len(b), 200)])
	}
	return p
}

// tb is what testing.T and rapid.T have in common, as far as it is used here.
type tb interface {
	Helper()
	Fatalf(string, ...any)
}

// split cuts b and checks all but the content of the frames: prefixes, the places of the payload, the arena,
// that b has not changed. It returns the frames without the prefix.
func split(t tb, b []byte, p *frame.Parsed, size int) [][]byte {
	t.Helper()
	before := bytes.Clone(b)
	prefix := []byte{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4}
	n := Segments(Payload(p), size)
	a := NewArena(make([]byte, n*(len(prefix)+int(p.PayloadOff))))
	first := [][]byte{{7}}
	pieces := Split(first, a, prefix, b, p, size)
	if len(pieces) != 1+2*n || &pieces[0][0] != &first[0][0] {
		t.Fatalf("%d pieces for %d segments behind one that was there", len(pieces), n)
	}
	if a.Alloc(1) != nil {
		t.Fatalf("the arena has room left")
	}
	if !bytes.Equal(b, before) {
		t.Fatalf("the superframe was changed")
	}
	var out [][]byte
	at := int(p.PayloadOff)
	for ; len(pieces) > 1; pieces = pieces[2:] {
		h, payload := pieces[1], pieces[2]
		if !bytes.Equal(h[:len(prefix)], prefix) || len(h) != len(prefix)+int(p.PayloadOff) || cap(h) != len(h) {
			t.Fatalf("headers % x with a prefix % x", h, prefix)
		}
		if len(payload) > 0 && &payload[0] != &b[at] {
			t.Fatalf("payload of segment %d was copied", len(out))
		}
		at += len(payload)
		out = append(out, append(bytes.Clone(h[len(prefix):]), payload...))
	}
	wantTrain(t, prefix, b, p, size, out)
	return out
}

// wantTrain looks at whether Train makes the same frames, one behind another in memory.
func wantTrain(t tb, prefix, b []byte, p *frame.Parsed, size int, want [][]byte) {
	t.Helper()
	before := bytes.Clone(b)
	mem := make([]byte, len(want)*(len(prefix)+int(p.PayloadOff))+Payload(p))
	a := NewArena(mem)
	got := Train([][]byte{{7}}, a, prefix, b, p, size)
	if len(got) != 1+len(want) || a.Alloc(1) != nil || !bytes.Equal(b, before) {
		t.Fatalf("%d pieces for %d segments, %d bytes of %d used", len(got), len(want), a.Mark(), len(mem))
	}
	for i, d := range got[1:] {
		if !bytes.Equal(d, append(bytes.Clone(prefix), want[i]...)) || cap(d) != len(d) {
			t.Fatalf("segment %d of a train is another", i)
		}
		if &d[0] != &mem[0] {
			t.Fatalf("segment %d is not behind the one before", i)
		}
		mem = mem[len(d):]
	}
	mem = make([]byte, a.Mark()-1)
	a = NewArena(mem)
	if Train(nil, a, prefix, b, p, size) != nil || a.Mark() != 0 {
		t.Fatalf("a train in too little memory, of which %d bytes were kept", a.Mark())
	}
}

// matches compares frames with the oracle's.
func matches(t tb, got [][]byte, b []byte, size int) {
	t.Helper()
	want, err := ft.Segments(b, size)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d segments, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			n := min(len(got[i]), len(want[i]), 140)
			t.Fatalf("segment %d of %d differs (%d and %d bytes)\n got % x\nwant % x", i, len(want), len(got[i]), len(want[i]), got[i][:n], want[i][:n])
		}
		if _, err := ft.Verify(got[i]); err != nil {
			t.Fatalf("segment %d: %v", i, err)
		}
	}
}

func TestSplit(t *testing.T) {
	const all = header.TCPAck | header.TCPPsh | header.TCPFin | header.TCPCwr | header.TCPEce
	timestamps := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(1, 2)}
	id := func(v uint16) func(*layers.IPv4) { return func(l *layers.IPv4) { l.Id, l.Flags = v, 0 } }
	for name, b := range map[string]*ft.Builder{
		"tcp4":                ft.TCP4(ft.Opts{Payload: 10000, Options: timestamps}),
		"tcp4 all flags":      ft.TCP4(ft.Opts{Payload: 10001, Flags: all, TOS: 0xb9}),
		"tcp4 no flags":       plain().IPv4(ft.IP4(1), ft.IP4(2)).TCP(1, 2, ft.TCPFlags(0)).Payload(5000),
		"tcp4 accurate ECN":   plain().IPv4(ft.IP4(1), ft.IP4(2)).TCP(1, 2, func(l *layers.TCP) { l.NS = true }).Payload(5000),
		"tcp4 sequence wraps": ft.TCP4(ft.Opts{Payload: 10000, Seq: 0xfffffff0}),
		"tcp4 id wraps":       plain().IPv4(ft.IP4(1), ft.IP4(2), id(0xfffe)).TCP(1, 2).Payload(9000),
		"tcp4 options": plain().IPv4(ft.IP4(1), ft.IP4(2), func(l *layers.IPv4) {
			l.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
		}).TCP(1, 2).Payload(4000),
		"tcp4 largest": ft.TCP4(ft.Opts{Payload: 65495}),
		"tcp4 empty":   ft.TCP4(ft.Opts{}),
		"tcp4 tagged":  ft.TCP4(ft.Opts{VLANs: []uint16{4094}, Payload: 3000}),
		"tcp6 twice tagged": plain().QinQ(5, func(l *layers.Dot1Q) { l.Priority = 5; l.DropEligible = true }).VLAN(6).
			IPv6(ft.IP6(1), ft.IP6(2), func(l *layers.IPv6) { l.FlowLabel, l.TrafficClass = 0xabcde, 0x2e }).TCP(1, 2, ft.TCPFlags(all)).Payload(9999),
		"tcp6 extensions": ip6().Extension(header.ProtoHopByHop, []byte{5, 2}).Extension(header.ProtoDestOpts, make([]byte, 30)).TCP(1, 2).Payload(4000),
		"tcp6 atomic":     ip6().Fragment6(0, false, 99).TCP(1, 2).Payload(4000),
		"tcp6 largest":    ft.TCP6(ft.Opts{Payload: 65515}),
		"udp4":            ft.UDP4(ft.Opts{Payload: 5001}),
		"udp4 empty":      ft.UDP4(ft.Opts{}),
		"udp4 largest":    ft.UDP4(ft.Opts{Payload: 65507}),
		"udp6":            ft.UDP6(ft.Opts{Payload: 5001}),
		"udp6 extensions": ip6().Extension(header.ProtoDestOpts, nil).UDP(1, 2).Payload(2000),
	} {
		for _, size := range []int{1, 48, 49, 536, 999, 1400, 1448, 9000, 65535} {
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				_, b := b.Offload(size)
				p := parse(t, b)
				if !Splittable(b, p) {
					t.Fatal("not splittable")
				}
				matches(t, split(t, b, p, size), b, size)
			})
		}
	}
}

// superframe is any TCP or UDP frame that a kernel may hand over.
func superframe() *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		draw := func(name string, least, most int) int { return rapid.IntRange(least, most).Draw(t, name) }
		b := plain()
		switch tags := draw("tags", 0, 2); tags {
		case 2:
			b.QinQ(uint16(draw("outer tag", 0, 4095)))
			fallthrough
		case 1:
			b.VLAN(uint16(draw("tag", 0, 4095)), func(l *layers.Dot1Q) { l.Priority = uint8(draw("priority", 0, 7)) })
		}
		room := 65535
		if rapid.Bool().Draw(t, "IPv4") {
			b.IPv4(ft.IP4(uint16(draw("source", 1, 9))), ft.IP4(2), func(l *layers.IPv4) {
				l.Id, l.TOS, l.TTL = uint16(draw("id", 0, 65535)), uint8(draw("tos", 0, 255)), uint8(draw("ttl", 1, 255))
				if rapid.Bool().Draw(t, "may fragment") {
					l.Flags = 0
				}
				for range draw("options", 0, 3) {
					l.Options = append(l.Options, layers.IPv4Option{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}})
					room -= 4
				}
			})
			room -= 20
		} else {
			b.IPv6(ft.IP6(1), ft.IP6(uint16(draw("destination", 2, 9))), func(l *layers.IPv6) {
				l.TrafficClass, l.FlowLabel = uint8(draw("class", 0, 255)), uint32(draw("label", 0, 1<<20-1))
			})
			for range draw("extensions", 0, 3) {
				b.Extension(header.ProtoDestOpts, make([]byte, 8*draw("body", 0, 4)))
				room -= 8 + 4*8
			}
			if rapid.Bool().Draw(t, "atomic") {
				b.Fragment6(0, false, 5)
				room -= 8
			}
		}
		if rapid.Bool().Draw(t, "TCP") {
			b.TCP(uint16(draw("source port", 1, 65535)), 80, func(l *layers.TCP) {
				ft.TCPFlags(rapid.Uint8().Draw(t, "flags") &^ (header.TCPSyn | header.TCPRst | header.TCPUrg))(l)
				l.Seq, l.Ack, l.Window = rapid.Uint32().Draw(t, "seq"), rapid.Uint32().Draw(t, "ack"), rapid.Uint16().Draw(t, "window")
				l.NS = rapid.Bool().Draw(t, "accurate ECN")
				for range draw("options", 0, 3) {
					l.Options = append(l.Options, ft.Nop(), ft.Nop(), ft.Timestamps(rapid.Uint32().Draw(t, "time"), 0))
				}
			})
			room -= 60
		} else {
			b.UDP(uint16(draw("source port", 1, 65535)), 53)
			room -= 8
		}
		n := draw("payload", 0, min(room, 1<<draw("magnitude", 0, 16)))
		// Bytes of zero and of all ones make the corners of the sum.
		fill := rapid.SampledFrom([][]byte{{0}, {0xff}, nil}).Draw(t, "fill")
		if fill == nil {
			return b.Payload(n).Bytes()
		}
		return b.Data(bytes.Repeat(fill, n)).Bytes()
	})
}

func TestSplitProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := superframe().Draw(t, "superframe")
		size := rapid.IntRange(1, 3000).Draw(t, "size")
		// Whatever the checksum fields hold does not matter.
		p := new(frame.Parsed)
		if f := p.Parse(b); f != frame.Sound || !Splittable(b, p) {
			t.Fatalf("fault %d, %+v", f, p)
		}
		got := split(t, b, p, size)
		matches(t, got, b, size)
		if p.Proto == header.ProtoTCP {
			binary.BigEndian.PutUint16(b[p.L4Off+16:], rapid.Uint16().Draw(t, "garbage"))
			if !bytes.Equal(got[0], split(t, b, p, size)[0]) {
				t.Fatalf("the old checksum got into the new one")
			}
		}
	})
}

// The transport checksum of a packet on its way along a routing header has the last address in it, and so
// must have those of its segments.
func TestSplitRouted(t *testing.T) {
	via := ft.IP6(0x0909).As16()
	final := ft.IP6(2).As16()
	for _, kind := range []byte{2, 4} {
		for name, b := range map[string]*ft.Builder{
			"tcp": ip6().Extension(header.ProtoRouting, append([]byte{kind, 0, 0, 0, 0, 0}, final[:]...)).TCP(1, 2).Payload(3001),
			"udp": ip6().Extension(header.ProtoRouting, append([]byte{kind, 0, 0, 0, 0, 0}, final[:]...)).UDP(1, 2).Payload(3001),
		} {
			b := b.Bytes()
			want, err := ft.Segments(b, 1000)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range append(want, b) { // all are still to go to another address first
				copy(f[38:], via[:])
				f[57] = 1
			}
			p := parse(t, b)
			if v := Verify(b, p); v != Complete {
				t.Errorf("%s, type %d: checksum state %d, want complete", name, kind, v)
			}
			for i, got := range split(t, b, p, 1000) {
				if !bytes.Equal(got, want[i]) {
					t.Errorf("%s, type %d: segment %d\n got % x\nwant % x", name, kind, i, got[:120], want[i][:120])
				}
			}
		}
	}
}

// A UDP checksum that comes to 0 must leave as all ones: 0 says that there is none.
func TestSplitUDPChecksumZero(t *testing.T) {
	for _, build := range []func(ft.Opts) *ft.Builder{ft.UDP4, ft.UDP6} {
		data := append(ft.Pattern(100), 0, 0)
		segs, err := ft.Segments(build(ft.Opts{Data: bytes.Repeat(data, 3)}).Bytes(), len(data))
		if err != nil {
			t.Fatal(err)
		}
		p := parse(t, segs[0])
		sum := header.UDP(segs[0][p.L4Off:]).Checksum()
		binary.BigEndian.PutUint16(data[100:], sum)
		b := build(ft.Opts{Data: bytes.Repeat(data, 3)}).Partial()
		p = parse(t, b)
		got := split(t, b, p, len(data))
		matches(t, got, b, len(data))
		for i, s := range got {
			if c := header.UDP(s[p.L4Off:]).Checksum(); c != 0xffff {
				t.Errorf("segment %d: checksum %#04x, want 0xffff", i, c)
			}
		}
	}
}

func TestSplitLeavesPaddingBehind(t *testing.T) {
	b := ft.UDP4(ft.Opts{Payload: 200}).Bytes()
	got := split(t, append(b[:len(b):len(b)], 9, 9, 9, 9), parse(t, b), 100)
	matches(t, got, b, 100)
}

func TestSplitWithoutRoom(t *testing.T) {
	b := ft.TCP4(ft.Opts{Payload: 1000}).Bytes()
	p := parse(t, b)
	const need = 10 * (3 + 54)
	prefix := []byte{1, 2, 3}
	for room := range need + 1 {
		a := NewArena(make([]byte, 5+room))
		a.Alloc(5)
		mark := a.Mark()
		pieces := Split([][]byte{{1}}, a, prefix, b, p, 100)
		switch {
		case room < need && (pieces != nil || a.Mark() != mark):
			t.Fatalf("%d bytes of %d: %d pieces, arena at %d, was at %d", room, need, len(pieces), a.Mark(), mark)
		case room == need && len(pieces) != 21:
			t.Fatalf("enough room: %d pieces", len(pieces))
		}
	}
}

func TestSplittable(t *testing.T) {
	udp := ft.UDP4(ft.Opts{Payload: 20}).Bytes()
	binary.BigEndian.PutUint16(udp[38:], 27) // one byte less than there is
	for _, c := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"tcp", ft.TCP4(ft.Opts{Payload: 5}).Bytes(), true},
		{"tcp fin psh", ft.TCP4(ft.Opts{Payload: 5, Flags: header.TCPFin | header.TCPPsh}).Bytes(), true},
		{"udp", ft.UDP6(ft.Opts{Payload: 5}).Bytes(), true},
		{"padded udp", append(ft.UDP4(ft.Opts{Payload: 5}).Bytes(), 0, 0, 0), true},
		{"tcp syn", ft.TCP4(ft.Opts{Payload: 5, Flags: header.TCPSyn}).Bytes(), false},
		{"tcp rst", ft.TCP4(ft.Opts{Payload: 5, Flags: header.TCPRst | header.TCPAck}).Bytes(), false},
		{"tcp urg", ft.TCP4(ft.Opts{Payload: 5, Flags: header.TCPUrg | header.TCPAck}).Bytes(), false},
		{"udp shorter than its packet", udp, false},
		{"ping", ft.Ping4(ft.Opts{Payload: 50}).Bytes(), false},
		{"arp", ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(2)).Bytes(), false},
		{"fragment", ip6().Fragment6(0, true, 1).Payload(64).Bytes(), false},
	} {
		if got := Splittable(c.b, parse(t, c.b)); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestSegments(t *testing.T) {
	for _, c := range [][3]int{{0, 100, 1}, {1, 100, 1}, {100, 100, 1}, {101, 100, 2}, {200, 100, 2}, {201, 100, 3}, {500, 0, 1}, {500, -1, 1}, {65495, 48, 1365}} {
		if got := Segments(c[0], c[1]); got != c[2] {
			t.Errorf("Segments(%d, %d) = %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

func TestArena(t *testing.T) {
	a := NewArena(make([]byte, 10))
	x := a.Alloc(4)
	mark := a.Mark()
	y := a.Alloc(6)
	if len(x) != 4 || len(y) != 6 || a.Alloc(1) != nil || a.Alloc(0) == nil {
		t.Fatalf("%d, %d bytes", len(x), len(y))
	}
	x = append(x, 1) // must not run into y
	if y[0] != 0 || &y[0] == &x[4] {
		t.Fatal("pieces overlap")
	}
	a.Release(mark)
	if z := a.Alloc(6); &z[0] != &y[0] {
		t.Fatal("released memory is not given again")
	}
	a.Reset()
	if a.Mark() != 0 || len(a.Alloc(10)) != 10 {
		t.Fatal("not all there after Reset")
	}
}

// FuzzSplit takes any sound frame apart and checks every field of the headers of what comes out.
func FuzzSplit(f *testing.F) {
	for _, b := range []*ft.Builder{
		ft.TCP4(ft.Opts{Payload: 300, Flags: 0xd9}), ft.UDP4(ft.Opts{Payload: 300}), ft.TCP6(ft.Opts{Payload: 301, VLANs: []uint16{1, 2}}),
		ip6().Extension(header.ProtoDestOpts, nil).UDP(1, 2).Payload(199),
		ip6().Extension(header.ProtoRouting, append([]byte{4, 1}, make([]byte, 20)...)).TCP(1, 2).Payload(199),
	} {
		f.Add(b.Bytes(), uint16(100))
	}
	f.Fuzz(func(t *testing.T, b []byte, size16 uint16) {
		size := max(1, int(size16))
		var p frame.Parsed
		if p.Parse(b) != frame.Sound || !Splittable(b, &p) {
			return
		}
		segs := split(t, b, &p, size)
		rest := b[p.PayloadOff:p.End]
		for i, s := range segs {
			var q frame.Parsed
			if q.Parse(s) != frame.Sound || Verify(s, &q) != Complete && Verify(s, &q) != Partial {
				t.Fatalf("segment %d is not sound: %+v\n% x", i, q, s)
			}
			n := min(size, len(rest))
			if !bytes.Equal(s[q.PayloadOff:], rest[:n]) || q.End != len(s) {
				t.Fatalf("segment %d has other payload", i)
			}
			rest = rest[n:]
			want := bytes.Clone(b[:p.PayloadOff])
			ip, l4 := want[p.L3Off:], want[p.L4Off:]
			if p.L3 == frame.IPv4 {
				binary.BigEndian.PutUint16(ip[2:], uint16(len(s)-int(p.L3Off)))
				binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
				copy(ip[10:12], s[p.L3Off+10:])
			} else {
				binary.BigEndian.PutUint16(ip[4:], uint16(len(s)-int(p.L3Off)-40))
			}
			if p.Proto == header.ProtoTCP {
				binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+uint32(i*size))
				if i < len(segs)-1 {
					l4[13] &^= header.TCPFin | header.TCPPsh
				}
				if i > 0 {
					l4[13] &^= header.TCPCwr
				}
				copy(l4[16:18], s[p.L4Off+16:])
			} else {
				binary.BigEndian.PutUint16(l4[4:], uint16(len(s)-int(p.L4Off)))
				copy(l4[6:8], s[p.L4Off+6:])
			}
			if !bytes.Equal(s[:p.PayloadOff], want) {
				t.Fatalf("headers of segment %d\n got % x\nwant % x", i, s[:p.PayloadOff], want)
			}
		}
		if len(rest) != 0 {
			t.Fatalf("%d bytes were lost", len(rest))
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	for _, c := range []struct {
		name string
		b    *ft.Builder
		size int
	}{
		{"tcp4", ft.TCP4(ft.Opts{Payload: 64000, Options: []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(1, 2)}}), 1448},
		{"udp6", ft.UDP6(ft.Opts{Payload: 64000}), 1400},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, f := c.b.Offload(c.size)
			p, a := parse(b, f), NewArena(make([]byte, 1<<16))
			pieces, prefix := make([][]byte, 0, 256), make([]byte, header.VXLANLen)
			b.SetBytes(int64(len(f)))
			b.ReportAllocs()
			for b.Loop() {
				a.Reset()
				if Split(pieces, a, prefix, f, p, c.size) == nil {
					b.Fatal("no room")
				}
			}
		})
	}
}
