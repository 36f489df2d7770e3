package frame_test

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"

	. "github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

func TestParseSound(t *testing.T) {
	for _, s := range sound() {
		var p Parsed
		if f := p.Parse(s.frame); f != Sound || p != s.want {
			t.Errorf("%s: fault %d\n got %+v\nwant %+v", s.name, f, p, s.want)
		}
	}
}

func TestParseHostile(t *testing.T) {
	seen := map[Fault]bool{Sound: true}
	for _, s := range hostile() {
		var p Parsed
		if f := p.Parse(bytes.Clone(s.frame)); f != s.fault {
			t.Errorf("%s: fault %d, want %d (%+v)", s.name, f, s.fault, p)
		}
		seen[s.fault] = true
	}
	if len(seen) != int(NumFaults) {
		t.Errorf("faults tried: %v, want all %d", seen, NumFaults)
	}
}

// A frame that lost its end is a fault, unless nothing in it says how long it is or only padding was lost.
func TestParseTruncated(t *testing.T) {
	for _, s := range sound() {
		for n := range s.frame {
			if n > 300 && n < len(s.frame)-100 {
				continue
			}
			var p Parsed
			f := p.Parse(s.frame[:n:n])
			if whole := n >= s.want.End || s.want.L3 == Opaque && n >= int(s.want.L3Off); whole != (f == Sound) {
				t.Errorf("%s, %d of %d bytes: fault %d, %+v", s.name, n, len(s.frame), f, p)
			}
			if f == Sound {
				checkOrder(t, &p, s.frame[:n])
			}
		}
	}
}

// checkOrder fails the test unless the offsets of a sound frame stand where they can be used without a look
// at the length.
func checkOrder(t *testing.T, p *Parsed, b []byte) {
	t.Helper()
	l3, l4, payload := int(p.L3Off), int(p.L4Off), int(p.PayloadOff)
	ok := l3 == 14+4*int(p.Tags) && p.Tags <= 2 && l3 <= p.End && p.End <= len(b)
	hlen := map[Layer3]int{Opaque: 0, ARP: header.ARPLen, IPv4: header.IPv4MinLen, IPv6: header.IPv6Len}[p.L3]
	ok = ok && l3+hlen <= p.End
	if l4 != 0 {
		ok = ok && l3+hlen <= l4 && l4+8 <= p.End && !p.Fragment
	}
	if payload != 0 {
		ok = ok && l4 != 0 && l4+8 <= payload && payload <= p.End
	}
	ported := p.Proto == header.ProtoTCP || p.Proto == header.ProtoUDP
	ok = ok && (payload == 0 || ported) && (l4 == 0 || !ported || payload != 0)
	ok = ok && (p.TCPFlags == 0 || p.Proto == header.ProtoTCP && payload != 0)
	if p.L3 == IPv6 {
		ok = ok && (p.DstOff == 0 && l4 == 0 || int(p.DstOff) >= l3+24 && int(p.DstOff)+16 <= p.End)
	} else {
		ok = ok && p.DstOff == 0
	}
	if !ok {
		t.Fatalf("offsets out of range or order in %d bytes: %+v\n% x", len(b), p, b[:min(len(b), 200)])
	}
}

// Nothing of one frame is left over when the next is parsed.
func TestParseResets(t *testing.T) {
	all := append(sound(), hostile()...)
	for _, first := range all {
		for _, s := range all {
			var reused, fresh Parsed
			reused.Parse(first.frame)
			f, g := reused.Parse(s.frame), fresh.Parse(s.frame)
			if f != g || reused != fresh {
				t.Fatalf("%s after %s: %+v, fresh %+v", s.name, first.name, reused, fresh)
			}
		}
	}
}

// matchesOracle compares what Parse found in a frame with what gopacket finds in it, if it decodes it
// strictly and without fault.
func matchesOracle(t *testing.T, p *Parsed, f Fault, b []byte) {
	t.Helper()
	pkt, err := ft.Verify(b)
	if err != nil {
		return
	}
	switch f {
	case Runt:
		if pkt.ICMPv6 != nil && len(pkt.Payload) < 4 {
			return // gopacket is content with the first four of the eight bytes that every message has
		}
		if pkt.ARP != nil && (pkt.ARP.HwAddressSize != 6 || pkt.ARP.ProtAddressSize != 4) {
			return // nor does it mind ARP with addresses that Ethernet and IPv4 do not have
		}
		fallthrough
	case BadLength, BadIPHeader:
		t.Fatalf("fault %d in a frame in which gopacket finds none\n% x", f, b)
	case Sound:
	default:
		return // well-formed, but refused
	}
	if len(pkt.VLANs) > 2 {
		if p.L3 != Opaque || p.Tags != 2 {
			t.Fatalf("%d tags: %+v", len(pkt.VLANs), p)
		}
		return
	}
	want := Parsed{
		L3Off: uint16(14 + 4*len(pkt.VLANs)), EtherType: uint16(pkt.Ethernet.EthernetType), Tags: uint8(len(pkt.VLANs)),
		End: len(b), Fragment: pkt.Fragment, DstOff: p.DstOff,
	}
	if pkt.Ethernet.Length != 0 { // IEEE 802.3
		want.EtherType = pkt.Ethernet.Length
	}
	if n := len(pkt.VLANs); n > 0 {
		want.EtherType = uint16(pkt.VLANs[n-1].Type)
	}
	switch {
	case pkt.ARP != nil:
		want.L3, want.End = ARP, int(want.L3Off)+28
	case pkt.IPv4 != nil:
		want.L3, want.Proto = IPv4, uint8(pkt.IPv4.Protocol)
		want.End = int(want.L3Off) + int(pkt.IPv4.Length)
		want.L4Off = want.L3Off + uint16(pkt.IPv4.IHL)*4
	case pkt.IPv6 != nil:
		want.L3, want.Proto = IPv6, uint8(pkt.IPv6.NextHeader)
		want.End = int(want.L3Off) + 40 + int(pkt.IPv6.Length)
		want.L4Off = want.L3Off + 40
		for _, e := range pkt.Extensions {
			want.Proto = e.Bytes[0]
			want.L4Off += uint16(len(e.Bytes))
		}
	}
	switch {
	case p.L3 == IPv6 && p.DstOff == 0: // a route of an unknown kind
		want.L4Off = 0
	case pkt.TCP != nil:
		want.PayloadOff = want.L4Off + uint16(pkt.TCP.DataOffset)*4
		want.TCPFlags = b[want.L4Off+13]
	case pkt.UDP != nil:
		want.PayloadOff = want.L4Off + 8
	case pkt.ICMP == nil && pkt.ICMPv6 == nil:
		want.L4Off = 0
	}
	if *p != want {
		t.Fatalf("gopacket disagrees\n got %+v\nwant %+v\n% x", *p, want, b)
	}
	if want.PayloadOff != 0 && !bytes.Equal(b[p.PayloadOff:p.End], pkt.Payload) {
		t.Fatalf("payload at %d to %d is not that of gopacket\n% x", p.PayloadOff, p.End, b)
	}
}

func TestParseMatchesOracle(t *testing.T) {
	decoded := 0
	for _, s := range append(sound(), hostile()...) {
		if _, err := ft.Verify(s.frame); err == nil {
			decoded++
		}
		var p Parsed
		matchesOracle(t, &p, p.Parse(s.frame), s.frame)
	}
	if decoded < 30 {
		t.Errorf("gopacket decoded only %d frames: this test has lost its point", decoded)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range append(sound(), hostile()...) {
		if len(s.frame) < 2000 {
			f.Add(s.frame)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b):len(b)]
		before := bytes.Clone(b)
		p := Parsed{L3: IPv6, Fragment: true, DstOff: 7, L4Off: 3}
		fault := p.Parse(b)
		if fault >= NumFaults {
			t.Fatalf("fault %d", fault)
		}
		if fault == Sound {
			checkOrder(t, &p, b)
			p.FlowHash(b)
		}
		matchesOracle(t, &p, fault, b)
		if !bytes.Equal(b, before) {
			t.Fatal("the frame was changed")
		}
	})
}

func hash(t testing.TB, b []byte) uint32 {
	t.Helper()
	var p Parsed
	if f := p.Parse(b); f != Sound {
		t.Fatalf("fault %d\n% x", f, b)
	}
	return p.FlowHash(b)
}

func TestFlowHash(t *testing.T) {
	const udp = header.ProtoUDP
	lldp := func(n uint16) []byte {
		return edited(ft.Ethernet(ft.MAC(2), ft.MAC(n)).Payload(40).Bytes(), 12, 0x88, 0xcc)
	}
	for _, c := range []struct {
		name string
		a, b []byte
		same bool
	}{
		{"same flow, later segment", ft.TCP4(ft.Opts{Payload: 3, Seq: 5, TOS: 4}).Bytes(), ft.TCP4(ft.Opts{Payload: 99, Seq: 8, Flags: header.TCPFin}).Bytes(), true},
		{"same flow over IPv6", ft.UDP6(ft.Opts{Payload: 3}).Bytes(), ft.UDP6(ft.Opts{Payload: 99, TOS: 7}).Bytes(), true},
		{"same flow, with options of IPv4", ft.TCP4(ft.Opts{}).Bytes(), options4([]byte{1, 1, 1, 0}, 5), true},
		{"same flow, with extension headers", ip6().UDP(1, 2).Payload(3).Bytes(), extensions(3), true},
		{"fragments of IPv4", fragment4(udp, 0, true, 800), fragment4(udp, 800, false, 77), true},
		{"fragments of IPv6", fragment6(udp, 0, true, 800), fragment6(udp, 800, false, 77), true},
		{"ARP of one station", ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(2)).Bytes(), ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(3)).Bytes(), true},
		{"pings between two stations", ft.Ping4(ft.Opts{Payload: 3}).Bytes(), ft.Ping4(ft.Opts{Payload: 9}).Bytes(), true},

		{"source port", ft.TCP4(ft.Opts{SrcPort: 1}).Bytes(), ft.TCP4(ft.Opts{SrcPort: 2}).Bytes(), false},
		{"destination port", ft.TCP4(ft.Opts{DstPort: 1}).Bytes(), ft.TCP4(ft.Opts{DstPort: 2}).Bytes(), false},
		{"ports over IPv6", ft.UDP6(ft.Opts{SrcPort: 1}).Bytes(), ft.UDP6(ft.Opts{SrcPort: 2}).Bytes(), false},
		{"protocol", ft.TCP4(ft.Opts{}).Bytes(), ft.UDP4(ft.Opts{}).Bytes(), false},
		{"source", ft.TCP4(ft.Opts{Src: ft.IP4(8)}).Bytes(), ft.TCP4(ft.Opts{Src: ft.IP4(9)}).Bytes(), false},
		{"destination", ft.TCP4(ft.Opts{Dst: ft.IP4(8)}).Bytes(), ft.TCP4(ft.Opts{Dst: ft.IP4(9)}).Bytes(), false},
		{"source over IPv6", ft.UDP6(ft.Opts{Src: ft.IP6(8)}).Bytes(), ft.UDP6(ft.Opts{Src: ft.IP6(9)}).Bytes(), false},
		{"destination over IPv6", ft.UDP6(ft.Opts{Dst: ft.IP6(8)}).Bytes(), ft.UDP6(ft.Opts{Dst: ft.IP6(9)}).Bytes(), false},
		{"direction", ft.Ping4(ft.Opts{}).Bytes(), ft.Ping4(ft.Opts{Src: ft.IP4(2), Dst: ft.IP4(1)}).Bytes(), false},
		{"stations of what is not IP", lldp(1), lldp(3), false},
	} {
		if (hash(t, c.a) == hash(t, c.b)) != c.same {
			t.Errorf("%s: %#x and %#x, want same %t", c.name, hash(t, c.a), hash(t, c.b), c.same)
		}
	}
}

// Flows that differ as little as real ones do must still spread over a small pool of source ports.
func TestFlowHashSpreads(t *testing.T) {
	const flows, buckets = 2048, 16
	for name, build := range map[string]func(i uint16) *ft.Builder{
		"source ports in a row":      func(i uint16) *ft.Builder { return ft.TCP4(ft.Opts{SrcPort: 32768 + i}) },
		"every other source port":    func(i uint16) *ft.Builder { return ft.TCP4(ft.Opts{SrcPort: 32768 + 2*i}) },
		"destination ports in a row": func(i uint16) *ft.Builder { return ft.UDP6(ft.Opts{DstPort: 1 + i}) },
		"sources in a row":           func(i uint16) *ft.Builder { return ft.UDP4(ft.Opts{Src: ft.IP4(i)}) },
		"IPv6 destinations in a row": func(i uint16) *ft.Builder { return ft.TCP6(ft.Opts{Dst: ft.IP6(i)}) },
		"pings of many":              func(i uint16) *ft.Builder { return ft.Ping4(ft.Opts{Src: ft.IP4(i)}) },
		"stations in a row":          func(i uint16) *ft.Builder { return ft.ARPRequest(ft.MAC(i), ft.IP4(1), ft.IP4(2)) },
	} {
		var n [buckets]int
		for i := range uint16(flows) {
			n[hash(t, build(i).Bytes())%buckets]++
		}
		// 128 each on average, with a standard deviation of 11: five of them is far out.
		for i, v := range n {
			if v < flows/buckets-55 || v > flows/buckets+55 {
				t.Errorf("%s: %d of %d flows in bucket %d: %v", name, v, flows, i, n)
				break
			}
		}
	}
}

func TestFrameBytes(t *testing.T) {
	f := Frame{Buf: append(make([]byte, Headroom), 1, 2, 3)}
	if !bytes.Equal(f.Bytes(), []byte{1, 2, 3}) {
		t.Errorf("%v", f.Bytes())
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	var p Parsed
	for _, s := range append(sound(), hostile()...) {
		if n := testing.AllocsPerRun(10, func() {
			if p.Parse(s.frame) == Sound {
				p.FlowHash(s.frame)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
	}
}

var benchmarks = []struct {
	name  string
	frame []byte
}{
	{"tcp4", ft.TCP4(ft.Opts{Payload: 1400, Options: []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(1, 2)}}).Bytes()},
	{"udp4", ft.UDP4(ft.Opts{Payload: 64}).Bytes()},
	{"tcp6", ft.TCP6(ft.Opts{Payload: 1400}).Bytes()},
}

func BenchmarkParse(b *testing.B) {
	for _, c := range benchmarks {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var p Parsed
			for b.Loop() {
				if p.Parse(c.frame) != Sound {
					b.Fatal("not sound")
				}
			}
		})
	}
}

func BenchmarkFlowHash(b *testing.B) {
	for _, c := range benchmarks {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var p Parsed
			p.Parse(c.frame)
			var sum uint32
			for b.Loop() {
				sum += p.FlowHash(c.frame)
			}
			_ = sum
		})
	}
}
