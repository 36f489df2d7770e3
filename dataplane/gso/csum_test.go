package gso_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	. "github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

// transports are frames whose transport checksum can be left partial.
func transports() map[string]*ft.Builder {
	return map[string]*ft.Builder{
		"tcp4":            ft.TCP4(ft.Opts{Payload: 100}),
		"tcp4 odd":        ft.TCP4(ft.Opts{Payload: 1399}),
		"tcp4 empty":      ft.TCP4(ft.Opts{}),
		"tcp4 largest":    ft.TCP4(ft.Opts{Payload: 65495}),
		"tcp6 tagged":     ft.TCP6(ft.Opts{Payload: 77, VLANs: []uint16{1, 2}}),
		"tcp6 extensions": ip6().Extension(header.ProtoHopByHop, nil).TCP(1, 2).Payload(33),
		"udp4":            ft.UDP4(ft.Opts{Payload: 100}),
		"udp4 one byte":   ft.UDP4(ft.Opts{Payload: 1}),
		"udp6":            ft.UDP6(ft.Opts{Payload: 101}),
		"udp6 empty":      ft.UDP6(ft.Opts{}),
	}
}

func TestVerify(t *testing.T) {
	for name, b := range transports() {
		good, partial := b.Bytes(), b.Partial()
		p := parse(t, good)
		if v := Verify(good, p); v != Complete {
			t.Errorf("%s: state %d, want complete", name, v)
		}
		if v := Verify(append(good[:len(good):len(good)], 1, 2, 3), p); v != Complete {
			t.Errorf("%s padded: state %d, want complete", name, v)
		}
		if v := Verify(partial, p); v != Partial {
			t.Errorf("%s: state %d, want partial", name, v)
		}
		for i := int(p.L4Off); i < len(good); i += 1 + len(good)/50 {
			if p.Proto == header.ProtoUDP && (i-int(p.L4Off))/2 == 2 {
				continue // the length says what the checksum is over, and is checked before
			}
			good[i] ^= 0x10
			if v := Verify(good, p); v != Wrong {
				t.Errorf("%s with byte %d changed: state %d, want wrong", name, i, v)
			}
			good[i] ^= 0x10
		}
	}
}

func TestVerifyNone(t *testing.T) {
	udp4, udp6 := ft.UDP4(ft.Opts{Payload: 9}).Bytes(), ft.UDP6(ft.Opts{Payload: 9}).Bytes()
	binary.BigEndian.PutUint16(udp4[40:], 0)
	binary.BigEndian.PutUint16(udp6[60:], 0)
	for _, c := range []struct {
		name string
		b    []byte
		want Checksum
	}{
		{"udp4 without a checksum", udp4, None},
		{"udp6 without a checksum", udp6, Wrong}, // RFC 8200, section 8.1
		{"ping", ft.Ping4(ft.Opts{Payload: 9}).Bytes(), None},
		{"arp", ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(2)).Bytes(), None},
		{"fragment", ip6().Fragment6(8, true, 1).Payload(64).Bytes(), None},
	} {
		if got := Verify(c.b, parse(t, c.b)); got != c.want {
			t.Errorf("%s: state %d, want %d", c.name, got, c.want)
		}
	}
}

// A UDP datagram may be shorter than the packet that carries it; the rest is not under its checksum.
func TestVerifyShortUDP(t *testing.T) {
	long, short := ft.UDP4(ft.Opts{Payload: 31}).Bytes(), ft.UDP4(ft.Opts{Payload: 20}).Bytes()
	copy(long[38:42], short[38:42]) // length and checksum
	p := parse(t, long)
	if v := Verify(long, p); v != Complete {
		t.Errorf("state %d, want complete", v)
	}
	MakePartial(long, p)
	if v := Verify(long, p); v != Partial {
		t.Errorf("state %d, want partial", v)
	}
	CompleteTransport(long, p)
	if !bytes.Equal(long[38:42], short[38:42]) {
		t.Errorf("checksum % x, want % x", long[38:42], short[38:42])
	}
}

func TestPartialAndBack(t *testing.T) {
	for name, b := range transports() {
		want, wantPartial := b.Bytes(), b.Partial()
		h, _ := b.Offload(0)
		got := bytes.Clone(want)
		p := parse(t, got)
		start, offset := MakePartial(got, p)
		if !bytes.Equal(got, wantPartial) || start != h.CsumStart || offset != h.CsumOffset {
			t.Errorf("%s: partial at %d, %d, want %d, %d", name, start, offset, h.CsumStart, h.CsumOffset)
		}
		if CompleteTransport(got, p); !bytes.Equal(got, want) {
			t.Errorf("%s: not what it was", name)
		}
		if !CompleteOffload(wantPartial, &h) || !bytes.Equal(wantPartial, want) {
			t.Errorf("%s: the offload was not completed", name)
		}
		ft.Check(t, got)
		ft.Check(t, wantPartial)
	}
}

// Both ways to complete a checksum that comes to 0 must write all ones for UDP.
func TestCompleteZero(t *testing.T) {
	data := []byte{0, 0}
	sum := header.UDP(ft.UDP4(ft.Opts{Data: data}).Bytes()[34:]).Checksum()
	binary.BigEndian.PutUint16(data, sum)
	h, b := ft.UDP4(ft.Opts{Data: data}).Offload(0)
	again := bytes.Clone(b)
	CompleteTransport(b, parse(t, b))
	if got := binary.BigEndian.Uint16(b[40:]); got != 0xffff {
		t.Errorf("CompleteTransport wrote %#04x", got)
	}
	if !CompleteOffload(again, &h) || !bytes.Equal(again, b) {
		t.Errorf("CompleteOffload wrote %#04x", binary.BigEndian.Uint16(again[40:]))
	}
}

// Inside a tunnel the checksum is further back than any parser of the frame would look.
func TestCompleteOffloadInside(t *testing.T) {
	b := plain().IPv4(ft.IP4(1), ft.IP4(2)).UDP(50000, 4789).VXLAN(9).InnerEthernet(ft.MAC(4), ft.MAC(3)).IPv6(ft.IP6(1), ft.IP6(2)).TCP(1, 2).Payload(99)
	h, f := b.Offload(0)
	if !CompleteOffload(f, &h) {
		t.Fatal("refused")
	}
	ft.Check(t, f[50:])
}

func TestCompleteOffloadRefuses(t *testing.T) {
	good := ft.TCP4(ft.Opts{Payload: 10}).Partial()
	n := uint16(len(good))
	for _, c := range []struct {
		start, offset uint16
		want          bool
	}{
		{34, 16, true},
		{14, 0, true},
		{n - 2, 0, true},
		{34, n - 36, true},
		{0, 16, false}, {13, 16, false},
		{n - 1, 0, false}, {n, 0, false}, {n + 1, 0, false},
		{34, n - 35, false}, {34, 65535, false}, {65535, 65535, false}, {65535, 1, false},
	} {
		b := bytes.Clone(good)
		got := CompleteOffload(b, &header.VirtioNet{CsumStart: c.start, CsumOffset: c.offset})
		if got != c.want || !got && !bytes.Equal(b, good) {
			t.Errorf("start %d, offset %d: %t, changed %t", c.start, c.offset, got, !bytes.Equal(b, good))
		}
	}
}

func TestChecksumProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := superframe().Draw(t, "frame")
		b := bytes.Clone(want)
		var p frame.Parsed
		if p.Parse(b) != frame.Sound {
			t.Fatal("not sound")
		}
		if v := Verify(b, &p); v != Complete && v != Partial {
			t.Fatalf("state %d", v)
		}
		start, offset := MakePartial(b, &p)
		if Verify(b, &p) != Partial {
			t.Fatal("not partial")
		}
		again := bytes.Clone(b)
		CompleteTransport(b, &p)
		if !CompleteOffload(again, &header.VirtioNet{CsumStart: start, CsumOffset: offset}) {
			t.Fatal("refused")
		}
		// TCP knows two zeros: RFC 1624, section 3.
		at := start + offset
		if p.Proto == header.ProtoTCP && b[at]|b[at+1] == 0 {
			again[at], again[at+1] = 0, 0
		}
		if !bytes.Equal(b, want) || !bytes.Equal(again, want) {
			t.Fatalf("checksums % x and % x, want % x", b[at:at+2], again[at:at+2], want[at:at+2])
		}
	})
}

func FuzzCompleteOffload(f *testing.F) {
	f.Add(ft.TCP4(ft.Opts{Payload: 9}).Partial(), uint16(34), uint16(16))
	f.Add([]byte{}, uint16(65535), uint16(65535))
	f.Fuzz(func(t *testing.T, b []byte, start, offset uint16) {
		b = b[:len(b):len(b)]
		got := bytes.Clone(b)
		done := CompleteOffload(got, &header.VirtioNet{CsumStart: start, CsumOffset: offset})
		at := int(start) + int(offset)
		if done {
			got[at], got[at+1] = b[at], b[at+1]
		}
		if !bytes.Equal(got, b) {
			t.Fatal("changed more than the checksum")
		}
	})
}

func TestNothingAllocates(t *testing.T) {
	for name, b := range transports() {
		h, f := b.Offload(0)
		p, a := parse(t, f), NewArena(make([]byte, 1<<18))
		pieces, prefix := make([][]byte, 0, 4096), make([]byte, header.VXLANLen)
		if n := testing.AllocsPerRun(20, func() {
			a.Reset()
			if Split(pieces, a, prefix, f, p, 100) == nil {
				t.Fatal("no room")
			}
			if p.L3 == frame.IPv4 {
				l4 := int(p.L4Off)
				if Fragment(pieces, a, prefix, f[:l4], f[l4:p.End], int(p.L3Off), 104) == nil {
					t.Fatal("no room")
				}
			}
			Signed(f, p)
			MakePartial(f, p)
			Verify(f, p)
			CompleteTransport(f, p)
			CompleteOffload(f, &h)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	f := ft.TCP4(ft.Opts{Payload: 1448}).Bytes()
	p := parse(b, f)
	b.SetBytes(int64(len(f)))
	b.ReportAllocs()
	for b.Loop() {
		if Verify(f, p) != Complete {
			b.Fatal("not complete")
		}
	}
}
