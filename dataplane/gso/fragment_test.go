package gso_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	. "github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

// fragment cuts b, of whose IP payload extra bytes are in the head, and checks all but the content: prefixes, sizes, that
// b has not changed.
func fragment(t tb, b []byte, p *frame.Parsed, room, extra int) [][]byte {
	t.Helper()
	before := bytes.Clone(b)
	l3 := int(p.L3Off)
	ip := header.IPv4(b[l3:])
	hlen := l3 + ip.HeaderLen()
	size := FragmentSize(ip, room-l3)
	if size == 0 || size%8 != 0 || hlen+size > room || hlen+size+8 <= room {
		t.Fatalf("%d bytes of payload for room for %d behind %d", size, room, hlen)
	}
	n := Segments(p.End-hlen, size)
	prefix := []byte{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4}
	a := NewArena(make([]byte, n*(len(prefix)+hlen)+extra))
	first := [][]byte{{7}}
	pieces := Fragment(first, a, prefix, b[:hlen+extra], b[hlen+extra:p.End], l3, size)
	if len(pieces) != 1+2*n || &pieces[0][0] != &first[0][0] {
		t.Fatalf("%d pieces for %d fragments behind one that was there", len(pieces), n)
	}
	if a.Alloc(1) != nil {
		t.Fatalf("the arena has room left")
	}
	if !bytes.Equal(b, before) {
		t.Fatalf("the packet was changed")
	}
	var out [][]byte
	at := hlen + extra
	for ; len(pieces) > 1; pieces = pieces[2:] {
		h, payload := pieces[1], pieces[2]
		if !bytes.Equal(h[:len(prefix)], prefix) || cap(h) != len(h) {
			t.Fatalf("headers % x with a prefix % x", h, prefix)
		}
		if len(payload) > 0 && &payload[0] != &b[at] {
			t.Fatalf("payload of fragment %d was copied", len(out))
		}
		at += len(payload)
		f := append(bytes.Clone(h[len(prefix):]), payload...)
		if len(f) > room || len(out) < n-1 && len(f) != hlen+size {
			t.Fatalf("fragment %d of %d has %d bytes, there is room for %d", len(out), n, len(f), room)
		}
		out = append(out, f)
	}
	return out
}

// reassembles checks that fragments are sound and make up b.
func reassembles(t tb, fragments [][]byte, b []byte) {
	t.Helper()
	for i, f := range fragments {
		var p frame.Parsed
		if fault := p.Parse(f); fault != frame.Sound {
			t.Fatalf("fragment %d: fault %d: % x", i, fault, f[:min(len(f), 80)])
		}
	}
	got, err := ft.Reassemble(fragments)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if !bytes.Equal(got, b) {
		t.Fatalf("another packet\n got % x\nwant % x", got[:min(len(got), 120)], b[:min(len(b), 120)])
	}
}

// df clears the flag.
func df(l *layers.IPv4) { l.Flags &^= layers.IPv4DontFragment }

// options4 are options that belong into all fragments, and some that do not.
func options4(l *layers.IPv4) {
	df(l)
	l.Options = []layers.IPv4Option{
		{OptionType: 7, OptionLength: 7, OptionData: []byte{8, 10, 42, 0, 1}},
		{OptionType: 1, OptionLength: 1},
		{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}},
		{OptionType: 68, OptionLength: 8, OptionData: []byte{9, 0, 1, 2, 3, 4}},
		{OptionType: 130, OptionLength: 11, OptionData: make([]byte, 9)},
		{OptionType: 0, OptionLength: 1},
	}
}

func fragmentables() map[string]*ft.Builder {
	return map[string]*ft.Builder{
		"UDP":          ft.UDP4(ft.Opts{Payload: 1472, Fragmentable: true}),
		"UDP, odd":     ft.UDP4(ft.Opts{Payload: 1471, Fragmentable: true, TOS: 0x2e}),
		"UDP, 64K":     ft.UDP4(ft.Opts{Payload: 65507, Fragmentable: true}),
		"TCP":          ft.TCP4(ft.Opts{Payload: 1460, Fragmentable: true}),
		"echo":         ft.Ping4(ft.Opts{Payload: 1472, Fragmentable: true}),
		"tagged":       ft.UDP4(ft.Opts{Payload: 1472, Fragmentable: true, VLANs: []uint16{5}}),
		"twice tagged": ft.UDP4(ft.Opts{Payload: 1472, Fragmentable: true, VLANs: []uint16{5, 6}}),
		"options":      plain().IPv4(ft.IP4(1), ft.IP4(2), options4).UDP(1, 2).Payload(1440),
		"a fragment":   plain().IPv4(ft.IP4(1), ft.IP4(2), df, func(l *layers.IPv4) { l.Flags = layers.IPv4MoreFragments; l.FragOffset = 100 }).UDP(1, 2).Payload(1440),
		"the last":     plain().IPv4(ft.IP4(1), ft.IP4(2), df, func(l *layers.IPv4) { l.FragOffset = 8000 }).UDP(1, 2).Payload(1447),
		"reserved bit": plain().IPv4(ft.IP4(1), ft.IP4(2), df, func(l *layers.IPv4) { l.Flags = layers.IPv4EvilBit }).UDP(1, 2).Payload(1447),
	}
}

func TestFragment(t *testing.T) {
	for name, b := range fragmentables() {
		want := b.Bytes()
		p := parse(t, want)
		for _, room := range []int{130, 131, 137, 576, 1294, 1295, 1300, len(want) - 1} {
			for _, extra := range []int{0, 8, 20} {
				got := fragment(t, want, p, room, extra)
				if len(got) < 2 {
					t.Errorf("%s: %d bytes in room for %d make %d fragment", name, len(want), room, len(got))
				}
				reassembles(t, got, want)
			}
		}
		if got := fragment(t, want, p, len(want)+8, 8); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("%s: fragmented without need", name)
		}
	}
}

// Fragments that meet a narrower path are fragmented again; what comes out is still one packet.
func TestFragmentAgain(t *testing.T) {
	for name, b := range fragmentables() {
		want := b.Bytes()
		var all [][]byte
		for _, f := range fragment(t, want, parse(t, want), 1294, 8) {
			if len(f) <= 700 {
				all = append(all, f)
				continue
			}
			for _, g := range fragment(t, f, parse(t, f), 700, 0) {
				if len(g) <= 333 {
					all = append(all, g)
					continue
				}
				all = append(all, fragment(t, g, parse(t, g), 333, 0)...)
			}
		}
		t.Logf("%s: %d fragments", name, len(all))
		reassembles(t, all, want)
	}
}

func TestFragmentSize(t *testing.T) {
	for _, c := range []struct{ words, room, want int }{
		{5, 1500, 1480}, {5, 1499, 1472}, {5, 68, 48}, {5, 44, 24}, {5, 43, 0}, {5, 20, 0}, {5, 0, 0}, {5, -100, 0}, {15, 1500, 1440}, {15, 84, 24}, {15, 83, 0}, {15, 68, 0},
	} {
		ip := header.IPv4{byte(0x40 | c.words)}
		if got := FragmentSize(ip, c.room); got != c.want {
			t.Errorf("a header of %d words, room for %d: %d, want %d", c.words, c.room, got, c.want)
		}
	}
}

func TestFragmentNoRoom(t *testing.T) {
	b := ft.UDP4(ft.Opts{Payload: 3000, Fragmentable: true}).Bytes()
	p := parse(t, b)
	a := NewArena(make([]byte, 2*34))
	if Fragment(nil, a, nil, b[:34], b[34:p.End], 14, 1000) != nil {
		t.Error("four fragments from an arena for two headers")
	}
	if a.Alloc(2*34) == nil {
		t.Error("the arena was not released")
	}
	if Fragment(nil, NewArena(make([]byte, 4000)), nil, b[:34+60], b[34+60:p.End], 14, 48) != nil {
		t.Error("a head of 60 bytes in fragments of 48")
	}
}

// What is signed must keep its boundaries.
func TestSigned(t *testing.T) {
	nop, ts := ft.Nop(), ft.Timestamps(1, 2)
	for name, c := range map[string]struct {
		b    *ft.Builder
		want bool
	}{
		"plain":         {ft.TCP4(ft.Opts{}), false},
		"timestamps":    {ft.TCP4(ft.Opts{Options: []layers.TCPOption{nop, nop, ts}}), false},
		"MD5":           {ft.TCP4(ft.Opts{Options: []layers.TCPOption{nop, nop, ft.MD5()}}), true},
		"MD5, v6":       {ft.TCP6(ft.Opts{Options: []layers.TCPOption{nop, nop, ft.MD5()}}), true},
		"MD5 behind":    {ft.TCP4(ft.Opts{Options: []layers.TCPOption{nop, nop, ts, nop, nop, ft.MD5()}}), true},
		"AO":            {ft.TCP4(ft.Opts{VLANs: []uint16{1}, Options: []layers.TCPOption{ft.AO()}}), true},
		"UDP":           {ft.UDP4(ft.Opts{Payload: 40, Data: bytes.Repeat([]byte{19}, 40)}), false},
		"a NOP of 19":   {ft.TCP4(ft.Opts{Options: []layers.TCPOption{{OptionType: 8, OptionLength: 10, OptionData: bytes.Repeat([]byte{19}, 8)}}}), false},
		"ping":          {ft.Ping4(ft.Opts{Payload: 40}), false},
		"end, then MD5": {ft.TCP4(ft.Opts{Options: []layers.TCPOption{{OptionType: 0, OptionLength: 1}, ft.MD5()}}), false},
	} {
		f := c.b.Bytes()
		if got := Signed(f, parse(t, f)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestFragmentProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := plain().IPv4(ft.IP4(1), ft.IP4(2), func(l *layers.IPv4) {
			if rapid.Bool().Draw(rt, "options") {
				options4(l)
			}
			l.Flags = 0
			l.Id = rapid.Uint16().Draw(rt, "id")
			l.Protocol = layers.IPProtocol(rapid.SampledFrom([]uint8{132, 253}).Draw(rt, "proto"))
			l.FragOffset = uint16(rapid.IntRange(0, 2).Draw(rt, "offset") * 1000)
		}).Payload(rapid.IntRange(9, 9000).Draw(rt, "payload")).Bytes()
		var p frame.Parsed
		if p.Parse(b) != frame.Sound {
			rt.Skip()
		}
		got := fragment(rt, b, &p, rapid.IntRange(130, 1500).Draw(rt, "room"), 8)
		reassembles(rt, got, b)
		var again [][]byte
		room := rapid.IntRange(130, 600).Draw(rt, "narrower")
		for _, f := range got {
			if len(f) <= room {
				again = append(again, f)
				continue
			}
			if p.Parse(f) != frame.Sound {
				rt.Fatalf("not sound")
			}
			again = append(again, fragment(rt, f, &p, room, 0)...)
		}
		reassembles(rt, again, b)
	})
}

// FuzzFragment cuts any sound IPv4 packet. What it becomes must be sound for whoever parses it, and be the packet again.
func FuzzFragment(f *testing.F) {
	for _, b := range fragmentables() {
		f.Add(b.Bytes(), 600)
	}
	f.Fuzz(func(t *testing.T, b []byte, room int) {
		var p frame.Parsed
		b = b[:len(b):len(b)]
		if p.Parse(b) != frame.Sound || p.L3 != frame.IPv4 {
			return
		}
		l3 := int(p.L3Off)
		ip := header.IPv4(b[l3:])
		hlen := l3 + ip.HeaderLen()
		if FragmentSize(ip, room-l3) == 0 || room > len(b) || p.End == hlen {
			return
		}
		got := fragment(t, b, &p, room, 0)
		for i, g := range got {
			var q frame.Parsed
			if fault := q.Parse(g); fault != frame.Sound {
				t.Fatalf("fragment %d: fault %d", i, fault)
			}
		}
		// The options of what the oracle decodes may be none that gopacket takes; the parser's word is enough there.
		if whole, err := ft.Reassemble(got); err == nil {
			if binary.BigEndian.Uint16(b[l3+6:])&0x2000 == 0 && !bytes.Equal(whole, b[:p.End]) {
				t.Fatalf("another packet\n got % x\nwant % x", whole, b[:p.End])
			}
		} else if ip.HeaderLen() == header.IPv4MinLen && !p.Fragment && len(got) > 1 {
			t.Fatal(err)
		}
	})
}
