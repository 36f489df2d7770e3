package gro_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	. "github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

var both = Kinds{TCP: true, UDP: true}

// stream makes the frames of one flow, one behind the other. Fields may be changed between frames.
type stream struct {
	v6, udp  bool
	vlans    []uint16
	station  uint16 // source
	to       uint16 // destination
	port     uint16
	seq, ack uint32
	id       uint16
	df       bool
	tos, ttl uint8
	label    uint32 // IPv6
	window   uint16
	time     uint32 // TCP timestamp; 0 for none
	flags    uint8
	ae       bool // the flag of RFC 9768
	urgent   uint16
	options4 bool // IPv4 options or IPv6 extension header
	padded   bool
	partial  bool
	zero     bool // UDP over IPv4 without a checksum
	sent     byte
}

func newStream() *stream {
	return &stream{station: 1, to: 2, port: 40000, seq: 1000, id: 7, df: true, ttl: 64, window: 500, flags: header.TCPAck}
}

func (s *stream) builder(n int) *ft.Builder {
	b := ft.Ethernet(ft.MAC(s.to), ft.MAC(s.station))
	for _, v := range s.vlans {
		b.VLAN(v)
	}
	if s.v6 {
		b.IPv6(ft.IP6(s.station), ft.IP6(s.to), func(l *layers.IPv6) {
			l.TrafficClass, l.HopLimit, l.FlowLabel = s.tos, s.ttl, s.label
		})
		if s.options4 {
			b.Extension(header.ProtoDestOpts, nil)
		}
	} else {
		b.IPv4(ft.IP4(s.station), ft.IP4(s.to), func(l *layers.IPv4) {
			l.TOS, l.TTL, l.Id = s.tos, s.ttl, s.id
			if !s.df {
				l.Flags = 0
			}
			if s.options4 {
				l.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
			}
		})
		s.id++
	}
	data := ft.Pattern(n)
	for i := range data {
		data[i] += s.sent
	}
	s.sent++
	if s.udp {
		return b.UDP(s.port, 80).Data(data)
	}
	b.TCP(s.port, 80, ft.TCPFlags(s.flags), func(l *layers.TCP) {
		l.Seq, l.Ack, l.Window, l.NS, l.Urgent = s.seq, s.ack, s.window, s.ae, s.urgent
		if s.time != 0 {
			l.Options = []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(s.time, 1)}
		}
	})
	s.seq += uint32(n)
	return b.Data(data)
}

// next is the next frame of the flow with n bytes of payload.
func (s *stream) next(n int) []byte {
	var f []byte
	if b := s.builder(n); s.partial {
		f = b.Partial()
	} else {
		f = b.Bytes()
	}
	if s.zero && s.udp && !s.v6 {
		at := 14 + 4*len(s.vlans) + 20 + 6
		if s.options4 {
			at += 4
		}
		binary.BigEndian.PutUint16(f[at:], 0)
	}
	if s.padded {
		f = append(f, 0xaa, 0xbb, 0xcc)
	}
	return f
}

// counts returns the number of frames in each item.
func counts(items []Item) []int {
	var n []int
	for i := range items {
		n = append(n, items[i].Frames)
	}
	return n
}

func same(a, b []int) bool {
	for i := range a {
		if len(a) != len(b) || a[i] != b[i] {
			return false
		}
	}
	return len(a) == len(b)
}

// repeat is n times v.
func repeat(n, v int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = v
	}
	return s
}

// Each row is a sequence of frames and how many of them each item is to hold.
func TestJoins(t *testing.T) {
	tcp6 := func(s *stream) { s.v6 = true }
	udp4 := func(s *stream) { s.udp = true }
	udp6 := func(s *stream) { s.udp, s.v6 = true, true }
	for _, c := range []struct {
		name  string
		set   func(*stream)
		sizes []int
		want  []int
	}{
		{"a train of TCP", nil, repeat(44, 1448), []int{44}},
		{"a train of TCP over IPv6", tcp6, repeat(44, 1428), []int{44}},
		{"a train of TCP, tagged", func(s *stream) { s.vlans = []uint16{5, 6} }, repeat(10, 1448), []int{10}},
		{"a train of TCP with timestamps", func(s *stream) { s.time = 9 }, repeat(10, 1448), []int{10}},
		{"a train of TCP with partial checksums", func(s *stream) { s.partial = true }, repeat(10, 1448), []int{10}},
		{"a train of TCP that may be fragmented", func(s *stream) { s.df = false }, repeat(10, 1448), []int{10}},
		{"a train of TCP, identification wraps", func(s *stream) { s.df, s.id = false, 0xfffd }, repeat(10, 1448), []int{10}},
		{"a train of TCP, sequence wraps", func(s *stream) { s.seq = 0xfffffe00 }, repeat(10, 1448), []int{10}},
		{"a train of padded TCP", func(s *stream) { s.padded = true }, repeat(10, 1), []int{10}},
		{"as much TCP as a packet holds", nil, []int{32000, 32000, 1495}, []int{2, 1}},
		{"as much TCP as a packet holds, exactly", nil, []int{13099, 13099, 13099, 13099, 13099}, []int{5}},
		{"more TCP than a packet holds", nil, []int{13100, 13100, 13100, 13100, 13096}, []int{4, 1}},
		{"more TCP over IPv6 than a packet holds", tcp6, repeat(50, 1428), []int{45, 5}},
		{"two TCP segments that are too much together", nil, []int{40000, 40000}, []int{1, 1}},
		{"SYN on all", func(s *stream) { s.flags |= header.TCPSyn }, repeat(3, 900), []int{1, 1, 1}},
		{"RST on all", func(s *stream) { s.flags |= header.TCPRst }, repeat(3, 900), []int{1, 1, 1}},
		{"URG on all", func(s *stream) { s.flags |= header.TCPUrg }, repeat(3, 900), []int{1, 1, 1}},
		{"CWR on all", func(s *stream) { s.flags |= header.TCPCwr }, repeat(3, 900), []int{1, 1, 1}},
		{"ECE on all", func(s *stream) { s.flags |= header.TCPEce }, repeat(3, 900), []int{3}},
		{"TCP shorter at the end", nil, []int{1448, 1448, 100, 1448}, []int{3, 1}},
		{"TCP longer in between", nil, []int{100, 1448, 1448}, []int{1, 2}},
		{"pure acknowledgements", nil, []int{0, 0, 0}, []int{1, 1, 1}},
		{"pure acknowledgement in between", nil, []int{1448, 0, 1448}, []int{1, 1, 1}},
		{"TCP with many small segments", nil, repeat(2100, 3), []int{1023, 1023, 54}},
		{"a train of UDP", udp4, repeat(70, 900), []int{64, 6}},
		{"a train of UDP over IPv6", udp6, repeat(64, 900), []int{64}},
		{"as much UDP as a packet holds", udp4, repeat(46, 1472), []int{44, 2}},
		{"UDP shorter at the end", udp4, []int{900, 900, 899, 900, 900}, []int{3, 2}},
		{"UDP longer in between", udp4, []int{900, 901, 901}, []int{1, 2}},
		{"UDP without a checksum", func(s *stream) { s.udp, s.zero = true, true }, repeat(3, 900), []int{1, 1, 1}},
		{"UDP without payload", udp4, repeat(3, 0), []int{1, 1, 1}},
		{"UDP with partial checksums", func(s *stream) { s.udp, s.partial = true, true }, repeat(3, 900), []int{3}},
		{"options of IPv4", func(s *stream) { s.options4 = true }, repeat(3, 900), []int{1, 1, 1}},
		{"extension headers", func(s *stream) { s.options4, s.v6 = true, true }, repeat(3, 900), []int{1, 1, 1}},
		{"one frame", nil, []int{1448}, []int{1}},
		{"one partial frame", func(s *stream) { s.partial = true }, []int{1448}, []int{1}},
	} {
		s := newStream()
		if c.set != nil {
			c.set(s)
		}
		x := newBench(t, both)
		for _, n := range c.sizes {
			x.add(s.next(n))
		}
		if got := counts(x.finish()); !same(got, c.want) {
			t.Errorf("%s: items of %v frames, want %v", c.name, got, c.want)
		}
	}
}

// A frame that differs from the one before in anything that the superframe has but once must begin an item of
// its own.
func TestDoesNotJoin(t *testing.T) {
	udp := func(s *stream) { s.udp = true }
	v6 := func(s *stream) { s.v6 = true }
	for _, c := range []struct {
		name   string
		set    func(*stream)
		change func(*stream)
	}{
		{"a gap", nil, func(s *stream) { s.seq += 10 }},
		{"a duplicate", nil, func(s *stream) { s.seq -= 500 }},
		{"acknowledgement", nil, func(s *stream) { s.ack++ }},
		{"window", nil, func(s *stream) { s.window++ }},
		{"high byte of the window", nil, func(s *stream) { s.window += 256 }},
		{"timestamp", func(s *stream) { s.time = 1 }, func(s *stream) { s.time = 2 }},
		{"options", nil, func(s *stream) { s.time = 2 }},
		{"congestion echo", nil, func(s *stream) { s.flags |= header.TCPEce }},
		{"accurate ECN", nil, func(s *stream) { s.ae = true }},
		{"congestion window reduced", nil, func(s *stream) { s.flags |= header.TCPCwr }},
		{"urgent pointer without URG", nil, func(s *stream) { s.urgent = 9 }},
		{"SYN", nil, func(s *stream) { s.flags = header.TCPSyn }},
		{"RST", nil, func(s *stream) { s.flags |= header.TCPRst }},
		{"URG", nil, func(s *stream) { s.flags |= header.TCPUrg }},
		{"no ACK", nil, func(s *stream) { s.flags = 0 }},
		{"TTL", nil, func(s *stream) { s.ttl-- }},
		{"TOS", nil, func(s *stream) { s.tos = 3 }},
		{"DF", func(s *stream) { s.df = false }, func(s *stream) { s.df = true }},
		{"identification", func(s *stream) { s.df = false }, func(s *stream) { s.id++ }},
		{"identification stands still", func(s *stream) { s.df, s.udp = false, true }, func(s *stream) { s.id-- }},
		{"hop limit", v6, func(s *stream) { s.ttl-- }},
		{"traffic class", v6, func(s *stream) { s.tos = 3 }},
		{"flow label", v6, func(s *stream) { s.label = 1 }},
		{"TTL of UDP", udp, func(s *stream) { s.ttl-- }},
		{"tag", func(s *stream) { s.vlans = []uint16{1} }, func(s *stream) { s.vlans = []uint16{2} }},
		{"tag gone", func(s *stream) { s.vlans = []uint16{1} }, func(s *stream) { s.vlans = nil }},
		{"port", nil, func(s *stream) { s.port++ }},
		{"source", nil, func(s *stream) { s.station = 9 }},
		{"destination", v6, func(s *stream) { s.to = 9 }},
		{"protocol", nil, func(s *stream) { s.udp = true }},
		{"extension header", v6, func(s *stream) { s.options4 = true }},
		{"checksum gone", udp, func(s *stream) { s.zero = true }},
	} {
		s := newStream()
		if c.set != nil {
			c.set(s)
		}
		x := newBench(t, both)
		x.add(s.next(500))
		x.add(s.next(500))
		c.change(s)
		x.add(s.next(500))
		if got := counts(x.finish()); !same(got, []int{2, 1}) {
			t.Errorf("%s: items of %v frames, want [2 1]", c.name, got)
		}
	}
}

// PSH and FIN end a superframe and keep their place at its end.
func TestPushAndFinEnd(t *testing.T) {
	for _, f := range []uint8{header.TCPPsh, header.TCPFin, header.TCPPsh | header.TCPFin} {
		s, x := newStream(), newBench(t, both)
		for i := range 6 {
			s.flags = header.TCPAck
			if i == 2 || i == 3 {
				s.flags |= f
			}
			x.add(s.next(700))
		}
		if got := counts(x.finish()); !same(got, []int{3, 1, 2}) {
			t.Errorf("flags %#x: items of %v frames, want [3 1 2]", f, got)
		}
	}
}

// A fragment may belong to any flow, so nothing may pass it.
func TestFragmentsAreNotPassed(t *testing.T) {
	fragment := ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv6(ft.IP6(1), ft.IP6(2)).Fragment6(800, false, 7).Payload(100)
	s, x := newStream(), newBench(t, both)
	s.udp, s.v6 = true, true
	x.add(s.next(700))
	x.add(s.next(700))
	x.add(fragment.Bytes())
	x.add(s.next(700))
	x.add(s.next(700))
	if got := counts(x.finish()); !same(got, []int{2, 1, 2}) {
		t.Errorf("items of %v frames, want [2 1 2]", got)
	}
}

func TestInterleavedFlows(t *testing.T) {
	for flows, want := range map[int][]int{1: {12}, 2: repeat(2, 12), 8: repeat(8, 12), 9: repeat(9*12, 1)} {
		x := newBench(t, both)
		s := make([]*stream, flows)
		for i := range s {
			s[i] = newStream()
			s[i].port += uint16(i)
			s[i].v6, s[i].udp = i&1 != 0, i&2 != 0
		}
		for range 12 {
			for _, s := range s {
				x.add(s.next(800))
			}
		}
		if got := counts(x.finish()); !same(got, want) {
			t.Errorf("%d flows: items of %v frames, want %v", flows, got, want)
		}
	}
}

func TestKinds(t *testing.T) {
	for _, k := range []Kinds{{}, {TCP: true}, {UDP: true}} {
		x := newBench(t, k)
		tcp, udp := newStream(), newStream()
		udp.udp = true
		for range 5 {
			x.add(tcp.next(100))
			x.add(udp.next(100))
		}
		want := 10
		if k.TCP || k.UDP {
			want = 6
		}
		if got := counts(x.finish()); len(got) != want {
			t.Errorf("%+v: items of %v frames, want %d items", k, got, want)
		}
	}
}

func TestSuperframes(t *testing.T) {
	for _, flags := range []uint8{header.TCPAck, header.TCPAck | header.TCPPsh | header.TCPCwr} {
		for _, v6 := range []bool{false, true} {
			s, x := newStream(), newBench(t, both)
			s.v6 = v6
			x.add(s.next(1000))
			x.add(s.next(1000))
			s.flags = flags
			x.addSuper(append(s.next(20001), 1, 2, 3), 1000) // padded, which a superframe never is
			s.flags = header.TCPAck
			x.add(s.next(1000))
			x.add(s.next(1000))
			x.addCut(s.next(5000), 1000)
			x.add(s.next(1000))
			if got := counts(x.finish()); !same(got, []int{2, 21, 2, 1, 1, 1, 1, 1, 1}) {
				t.Errorf("flags %#x: items of %v frames", flags, got)
			}
		}
	}
	s, x := newStream(), newBench(t, both)
	s.udp = true
	x.addSuper(s.next(9000), 1000)
	x.addSuper(s.next(9500), 1000)
	if got := counts(x.finish()); !same(got, []int{9, 10}) {
		t.Errorf("UDP: items of %v frames", got)
	}
}

// Another flow's superframe leaves the open items alone.
func TestSuperframeOfAnotherFlow(t *testing.T) {
	s, other, x := newStream(), newStream(), newBench(t, both)
	other.port++
	x.add(s.next(1000))
	x.addSuper(other.next(5000), 1000)
	x.add(s.next(1000))
	if got := counts(x.finish()); !same(got, []int{2, 5}) {
		t.Errorf("items of %v frames, want [2 5]", got)
	}
}

// Nothing of one batch shows in the next.
func TestReset(t *testing.T) {
	x := newBench(t, both)
	s := newStream()
	for range 3 {
		for range 5 {
			x.add(s.next(1000))
		}
		x.add(ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(2)).Bytes())
		if got := counts(x.finish()); !same(got, []int{5, 1}) {
			t.Fatalf("items of %v frames, want [5 1]", got)
		}
		x.reset()
		if n := len(x.c.Items()); n != 0 {
			t.Fatalf("%d items after Reset", n)
		}
		x.add(s.next(1000))
		x.reset() // and this one was never asked for
	}
}

// A UDP datagram may be shorter than the packet that carries it. No superframe can say so.
func TestShortUDPStaysAlone(t *testing.T) {
	x := newBench(t, both)
	for range 3 {
		b, short := ft.UDP4(ft.Opts{Payload: 500}).Bytes(), ft.UDP4(ft.Opts{Payload: 400}).Bytes()
		copy(b[38:42], short[38:42]) // length and checksum
		x.add(b)
	}
	if got := counts(x.finish()); !same(got, []int{1, 1, 1}) {
		t.Errorf("items of %v frames, want [1 1 1]", got)
	}
}

// Items may be asked for twice, and what is added in between joins nothing that was given out.
func TestItemsAgain(t *testing.T) {
	x, s := newBench(t, both), newStream()
	for range 4 {
		x.add(s.next(1000))
	}
	x.finish()
	x.add(s.next(1000))
	if got := counts(x.finish()); !same(got, []int{4, 1}) {
		t.Errorf("items of %v frames, want [4 1]", got)
	}
}

// Whatever a batch holds, what comes out stands for exactly what went in.
func TestCoalesceProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newBench(t, both)
		streams := make([]*stream, rapid.IntRange(1, 11).Draw(t, "flows"))
		for i := range streams {
			s := newStream()
			s.v6, s.udp = rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
			s.port = uint16(rapid.IntRange(1, 3).Draw(t, "port")) // flows may meet
			s.df, s.partial = rapid.Bool().Draw(t, "df"), rapid.Bool().Draw(t, "partial")
			s.padded = rapid.Bool().Draw(t, "padded")
			s.vlans = rapid.SampledFrom([][]uint16{nil, nil, {3}, {4, 5}}).Draw(t, "tags")
			s.time = uint32(rapid.IntRange(0, 1).Draw(t, "timestamps"))
			s.seq = rapid.SampledFrom([]uint32{0, 0xfffffff0, 12345}).Draw(t, "seq")
			s.id = rapid.SampledFrom([]uint16{0, 0xfffe}).Draw(t, "id")
			streams[i] = s
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			step(t, x, rapid.SampledFrom(streams).Draw(t, "flow"))
		}
		x.finish()
	})
}

// step does one thing that a flow may do.
func step(t *rapid.T, x *bench, s *stream) {
	const size = 600
	was := *s
	switch rapid.IntRange(0, 40).Draw(t, "step") {
	default:
		for range rapid.IntRange(1, 5).Draw(t, "run") {
			x.add(s.next(size))
		}
		return
	case 0:
		x.add(s.next(rapid.IntRange(1, size-1).Draw(t, "short")))
		return
	case 1:
		x.add(s.next(0))
		return
	case 2:
		s.seq += uint32(rapid.IntRange(1, 2000).Draw(t, "gap"))
		return
	case 3:
		s.seq -= size
		return
	case 4:
		s.ack++
		return
	case 5:
		s.window++
		return
	case 6:
		s.ttl--
		return
	case 7:
		s.tos ^= uint8(rapid.IntRange(1, 255).Draw(t, "tos"))
		return
	case 8:
		s.time++
		return
	case 9:
		s.id += uint16(rapid.IntRange(0, 3).Draw(t, "id"))
		return
	case 10:
		s.df = !s.df
		return
	case 11:
		s.label++
		return
	case 12:
		s.partial = !s.partial
		return
	case 13:
		x.add(s.next(size + 1))
		return
	case 14:
		x.add(ft.ARPRequest(ft.MAC(s.station), ft.IP4(1), ft.IP4(2)).Bytes())
		return
	case 15:
		x.add(ft.Ping4(ft.Opts{Payload: 56}).Bytes())
		return
	case 16:
		x.add(ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv4(ft.IP4(1), ft.IP4(2), func(l *layers.IPv4) {
			l.Flags, l.FragOffset, l.Protocol, l.Id = 0, 100, layers.IPProtocolUDP, s.id
		}).Payload(77).Bytes())
		return
	case 17:
		x.addSuper(s.superframe(t), size)
		return
	case 18:
		x.addCut(s.superframe(t), size)
		return

	// What follows is for one frame.
	case 19, 20:
		s.flags |= header.TCPPsh
	case 21:
		s.flags |= header.TCPFin
	case 22:
		s.flags = rapid.Uint8().Draw(t, "flags")
	case 23:
		s.options4 = true
	case 24:
		s.zero, s.partial = true, false
	case 25:
		s.ae = true
	}
	x.add(s.next(size))
	s.flags, s.options4, s.zero, s.partial, s.ae = was.flags, was.options4, was.zero, was.partial, was.ae
}

func (s *stream) superframe(t *rapid.T) []byte {
	was := *s
	s.padded, s.zero, s.partial = false, false, true
	if rapid.Bool().Draw(t, "reduced") {
		s.flags |= header.TCPCwr
	}
	b := s.next(rapid.IntRange(601, 8000).Draw(t, "superframe"))
	s.padded, s.zero, s.partial, s.flags = was.padded, was.zero, was.partial, was.flags
	return b
}

// FuzzCoalesce makes frames of four flows of which any header byte may be damaged. Three bytes of input make a
// frame: which flow and size, which byte, and what it is to be.
func FuzzCoalesce(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0})
	f.Add([]byte{1, 0, 0, 1, 22, 9, 1, 0, 0, 2, 0, 0, 2, 47, 0x18, 2, 0, 0, 3, 0, 0, 3, 60, 4})
	f.Add([]byte{4, 0, 0, 4, 46, 0x51, 4, 0, 0, 4, 15, 3, 4, 20, 64, 0, 20, 32})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var streams [4]*stream
		for i := range streams {
			streams[i] = newStream()
			streams[i].v6, streams[i].udp = i&1 != 0, i&2 != 0
		}
		x := newBench(t, both)
		x.split = func(b []byte, size int) ([][]byte, error) {
			// The oracle does not keep every reserved bit; Split, which is tested against it, does.
			var out [][]byte
			p := x.parse(b)
			a := gso.NewArena(make([]byte, gso.Segments(gso.Payload(p), size)*int(p.PayloadOff)))
			pieces := gso.Split(nil, a, nil, b, p, size)
			for ; len(pieces) > 0; pieces = pieces[2:] {
				out = append(out, append(pieces[0], pieces[1]...))
			}
			return out, nil
		}
		for ; len(ops) >= 3 && len(x.in) < 200; ops = ops[3:] {
			s := streams[ops[0]&3]
			b := s.next([]int{60, 60, 60, 59, 1, 61, 0, 600}[ops[0]>>2&7])
			if ops[1] != 0 {
				b[int(ops[1])%min(len(b), 74)] = ops[2]
				if !s.v6 {
					sum4(b)
				}
			}
			var p frame.Parsed
			if p.Parse(b) != frame.Sound {
				continue
			}
			if p.PayloadOff != 0 && gso.Verify(b, &p) == gso.Wrong {
				gso.CompleteTransport(b, &p)
			}
			x.add(b)
		}
		x.finish()
	})
}

// sum4 makes the checksum of an IPv4 header of 20 bytes behind Ethernet right.
func sum4(b []byte) {
	b[24], b[25] = 0, 0
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[24:], ^uint16(sum+sum>>16))
}

// batch is frames with what Add wants to know about them.
type batch []struct {
	b       []byte
	p       frame.Parsed
	sum     gso.Checksum
	headers []byte // as they were: the Coalescer writes over those in b
}

func newBatch(t testing.TB, flows, frames, size int, udp bool) batch {
	t.Helper()
	s := make([]*stream, flows)
	for i := range s {
		s[i] = newStream()
		s[i].port += uint16(i)
		s[i].udp, s[i].time = udp, 1
	}
	out := make(batch, frames)
	for i := range out {
		f := &out[i]
		f.b = s[i%flows].next(size)
		if f.p.Parse(f.b) != frame.Sound {
			t.Fatal("not sound")
		}
		f.sum = gso.Verify(f.b, &f.p)
		f.headers = bytes.Clone(f.b[:f.p.PayloadOff])
	}
	return out
}

func (f batch) run(c *Coalescer) int {
	c.Reset()
	for i := range f {
		copy(f[i].b, f[i].headers)
		c.Add(f[i].b, &f[i].p, f[i].sum)
	}
	return len(c.Items())
}

func TestCoalescerAllocatesNothing(t *testing.T) {
	superframe := ft.TCP4(ft.Opts{Payload: 9000}).Bytes()
	var p frame.Parsed
	p.Parse(superframe)
	cut := gso.Split(nil, gso.NewArena(make([]byte, 1<<16)), nil, superframe, &p, 1000)
	for _, f := range []batch{newBatch(t, 1, 300, 1400, false), newBatch(t, 5, 300, 64, true), newBatch(t, 20, 300, 64, false)} {
		c := New(both)
		run := func() {
			f.run(c)
			c.AddSuperframe(superframe, &p, 1000)
			c.AddCut(cut)
			c.Items()
		}
		run()
		if n := testing.AllocsPerRun(20, run); n != 0 {
			t.Errorf("%d frames: %v allocations once warm", len(f), n)
		}
	}
}

func BenchmarkCoalesce(b *testing.B) {
	for _, c := range []struct {
		name   string
		frames batch
	}{
		{"tcp, 1 flow", newBatch(b, 1, 44, 1448, false)},
		{"tcp, 4 flows", newBatch(b, 4, 64, 1448, false)},
		{"udp, 1 flow", newBatch(b, 1, 64, 64, true)},
		{"udp, 64 flows", newBatch(b, 64, 64, 64, true)},
	} {
		b.Run(c.name, func(b *testing.B) {
			g := New(both)
			b.ReportAllocs()
			for b.Loop() {
				c.frames.run(g)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(c.frames)), "ns/frame")
		})
	}
}
