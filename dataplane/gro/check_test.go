package gro_test

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	. "github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

// tb is what testing.T and rapid.T have in common, as far as it is used here.
type tb interface {
	Helper()
	Fatalf(string, ...any)
}

// bench is a Coalescer under test, with a record of all that went into it.
type bench struct {
	t       tb
	c       *Coalescer
	kinds   Kinds
	split   func(b []byte, size int) ([][]byte, error)
	in      []input
	between map[int]bool // places in the order of all frames that nothing may cross
}

// input is one wire frame that went in.
type input struct {
	flow string
	raw  []byte // as it was added: checksums perhaps partial, perhaps padded
	wire []byte // with complete checksums, not padded
}

func newBench(t tb, kinds Kinds) *bench {
	return &bench{t: t, c: New(kinds), kinds: kinds, split: ft.Segments}
}

func (x *bench) reset() {
	x.c.Reset()
	x.in, x.between = nil, nil
}

func (x *bench) parse(b []byte) *frame.Parsed {
	x.t.Helper()
	p := new(frame.Parsed)
	if f := p.Parse(b); f != frame.Sound {
		x.t.Fatalf("fault %d\n% x", f, b[:min(len(b), 200)])
	}
	return p
}

// add hands over one frame that is not a superframe.
func (x *bench) add(b []byte) {
	x.t.Helper()
	p := x.parse(b)
	sum := gso.Verify(b, p)
	if sum == gso.Wrong {
		x.t.Fatalf("wrong checksum\n% x", b)
	}
	wire := bytes.Clone(b)
	if p.PayloadOff != 0 {
		wire = wire[:p.End]
	}
	if sum == gso.Partial {
		gso.CompleteTransport(wire, p)
	}
	if p.Fragment {
		x.barrier()
	}
	x.in = append(x.in, input{flow: flow(b, p), raw: bytes.Clone(b), wire: wire})
	if p.Fragment {
		x.barrier()
	}
	x.c.Add(b, p, sum)
}

func (x *bench) barrier() {
	if x.between == nil {
		x.between = map[int]bool{}
	}
	x.between[len(x.in)] = true
}

// addSuper hands over a superframe.
func (x *bench) addSuper(b []byte, size int) {
	x.t.Helper()
	x.record(b, size)
	x.c.AddSuperframe(b, x.parse(b), size)
}

// addCut hands over a superframe in pieces.
func (x *bench) addCut(b []byte, size int) {
	x.t.Helper()
	x.record(b, size)
	x.c.AddCut(gso.Split(nil, gso.NewArena(make([]byte, 1<<20)), nil, b, x.parse(b), size))
}

func (x *bench) record(b []byte, size int) {
	x.t.Helper()
	p := x.parse(b)
	segs, err := x.split(b[:p.End], size)
	if err != nil {
		x.t.Fatalf("%v", err)
	}
	for _, s := range segs {
		x.in = append(x.in, input{flow: flow(b, p), raw: s, wire: s})
	}
}

// flow names the flow of a frame.
func flow(b []byte, p *frame.Parsed) string {
	s := fmt.Sprintf("%x %d %d", b[:p.L3Off], p.L3, p.Proto)
	switch p.L3 {
	case frame.IPv4:
		s += fmt.Sprintf(" %x", b[p.L3Off+12:p.L3Off+20])
	case frame.IPv6:
		s += fmt.Sprintf(" %x", b[p.L3Off+8:p.L3Off+40])
	}
	if p.PayloadOff != 0 {
		s += fmt.Sprintf(" %x", b[p.L4Off:p.L4Off+4])
	}
	return s
}

// finish takes the items, cuts each up again, and fails the test unless that gives the frames that went in:
// all of them, those of a flow in their order, and byte for byte, but for padding and for the identification
// of packets that must not be fragmented. It returns the items.
func (x *bench) finish() []Item {
	x.t.Helper()
	items := x.c.Items()
	todo := map[string][]int{} // by flow, places in x.in
	for i, in := range x.in {
		todo[in.flow] = append(todo[in.flow], i)
	}
	at := 0 // place in the order of what comes out
	highest := -1
	for n := range items {
		it := &items[n]
		whole := bytes.Join(it.Pieces, nil)
		var p frame.Parsed
		if f := p.Parse(whole); f != frame.Sound {
			x.t.Fatalf("item %d: fault %d\n% x", n, f, whole[:min(len(whole), 120)])
		}
		queue := todo[flow(whole, &p)]
		if len(queue) == 0 {
			x.t.Fatalf("item %d is of a flow that has no frames left", n)
		}
		parts := [][]byte{whole}
		if it.Offload.GSOType != header.GSONone {
			parts = x.cut(n, it, whole, &p)
		} else {
			x.single(n, it, whole, &p, &x.in[queue[0]])
		}
		if len(parts) > len(queue) || it.Frames != len(parts) {
			x.t.Fatalf("item %d: %d frames, says %d, and %d are left in its flow", n, len(parts), it.Frames, len(queue))
		}
		total := 0
		for i, part := range parts {
			in := x.in[queue[i]]
			total += len(part)
			if it.Offload.GSOType != header.GSONone && !bytes.Equal(unidentified(part), unidentified(in.wire)) {
				x.t.Fatalf("frame %d of %d of item %d\n got % x\nwant % x", i, len(parts), n, part[:min(len(part), 120)], in.wire[:min(len(in.wire), 120)])
			}
			if x.between[at] && highest != at-1 {
				x.t.Fatalf("item %d: something crossed the fragment at place %d", n, at)
			}
			at, highest = at+1, max(highest, queue[i])
		}
		if it.Bytes != total {
			x.t.Fatalf("item %d: says %d bytes, has %d", n, it.Bytes, total)
		}
		todo[flow(whole, &p)] = queue[len(parts):]
	}
	for f, left := range todo {
		if len(left) > 0 {
			x.t.Fatalf("%d frames of flow %s are missing", len(left), f)
		}
	}
	return items
}

// single checks an item that is one frame: exactly the one that came in.
func (x *bench) single(n int, it *Item, whole []byte, p *frame.Parsed, in *input) {
	x.t.Helper()
	if !bytes.Equal(whole, in.raw) {
		x.t.Fatalf("item %d\n got % x\nwant % x", n, whole, in.raw)
	}
	want := header.VirtioNet{}
	switch gso.Verify(whole, p) {
	case gso.Partial:
		want.Flags, want.CsumStart, want.CsumOffset = header.VirtioFlagNeedsCsum, p.L4Off, 16
		if p.Proto == header.ProtoUDP {
			want.CsumOffset = 6
		}
	case gso.Complete:
		want.Flags = header.VirtioFlagDataValid
	}
	if it.Offload != want {
		x.t.Fatalf("item %d: offload %+v, want %+v", n, it.Offload, want)
	}
}

// cut checks an item that is a superframe and returns the frames that it stands for.
func (x *bench) cut(n int, it *Item, whole []byte, p *frame.Parsed) [][]byte {
	x.t.Helper()
	size := int(it.Offload.GSOSize)
	payload := len(whole) - int(p.PayloadOff)
	want := header.VirtioNet{
		Flags: header.VirtioFlagNeedsCsum, GSOType: header.GSOUDPL4, GSOSize: it.Offload.GSOSize,
		HdrLen: p.PayloadOff, CsumStart: p.L4Off, CsumOffset: 6,
	}
	allowed := x.kinds.UDP
	if p.Proto == header.ProtoTCP {
		want.GSOType, want.CsumOffset, allowed = header.GSOTCPv4, 16, x.kinds.TCP
		if p.L3 == frame.IPv6 {
			want.GSOType = header.GSOTCPv6
		}
		if p.TCPFlags&header.TCPCwr != 0 {
			want.GSOType |= header.GSOECN
		}
	}
	if it.Offload != want || !allowed {
		x.t.Fatalf("item %d: offload %+v, want %+v (%+v)", n, it.Offload, want, x.kinds)
	}
	parts, err := x.split(whole, size)
	if err != nil {
		x.t.Fatalf("item %d: %v", n, err)
	}
	switch {
	case p.End != len(whole), len(whole)-int(p.L3Off) > 65535, size == 0, payload <= size:
		x.t.Fatalf("item %d: superframe of %d bytes, end %d, payload %d, GSO size %d", n, len(whole), p.End, payload, size)
	case len(it.Pieces) > 1023, p.Proto == header.ProtoUDP && len(parts) > 64:
		x.t.Fatalf("item %d: %d pieces, %d segments", n, len(it.Pieces), len(parts))
	case gso.Verify(whole, p) != gso.Partial:
		x.t.Fatalf("item %d: the checksum is not partial", n)
	}
	return parts
}

// unidentified blanks the identification of an IPv4 packet that must not be fragmented, where it means nothing
// (RFC 6864, section 4.1), and the header checksum with it.
func unidentified(b []byte) []byte {
	var p frame.Parsed
	if p.Parse(b) != frame.Sound || p.L3 != frame.IPv4 || b[p.L3Off+6]&0x40 == 0 {
		return b
	}
	b = bytes.Clone(b)
	binary.BigEndian.PutUint16(b[p.L3Off+4:], 0)
	binary.BigEndian.PutUint16(b[p.L3Off+10:], 0)
	return b
}
