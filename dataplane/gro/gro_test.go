package gro_test

import (
	"testing"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	. "github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

var both = Kinds{TCP: true, UDP: true}

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

// Where fragmentation is forbidden the identification means nothing, and many senders leave it at 0.
func TestIdentificationUnderDF(t *testing.T) {
	s, x := newStream(), newBench(t, both)
	for _, id := range []uint16{0, 0, 0, 9, 3} {
		s.id = id
		x.add(s.next(700))
	}
	if got := counts(x.finish()); !same(got, []int{5}) {
		t.Errorf("items of %v frames, want [5]", got)
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

// What would make a packet longer than a header can state does not continue an item.
func TestContinueTooLong(t *testing.T) {
	for _, udp := range []bool{false, true} {
		s := newStream()
		s.udp = udp
		c := New(both)
		first, second := s.next(40000), s.next(40000)
		var p frame.Parsed
		if p.Parse(first) != frame.Sound {
			t.Fatal("not sound")
		}
		c.Add(first, &p, gso.Verify(first, &p))
		if c.Continue(second) {
			t.Errorf("UDP %v: an item of %d bytes", udp, c.Items()[0].Bytes)
		}
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
