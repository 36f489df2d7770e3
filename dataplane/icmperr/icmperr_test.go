package icmperr_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	. "github.com/overlayd/overlayd/dataplane/icmperr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// tb is what testing.T and testing.F have in common, as far as it is used here.
type tb interface {
	Helper()
	Fatalf(string, ...any)
}

func parse(t tb, b []byte) *frame.Parsed {
	t.Helper()
	p := new(frame.Parsed)
	if f := p.Parse(b); f != frame.Sound {
		t.Fatalf("fault %d: % x", f, b[:min(len(b), 120)])
	}
	return p
}

// write returns the error about b, cut into a head and a body at the given place.
func write(t testing.TB, b []byte, cut int, m mtu.OverlayMTU) []byte {
	t.Helper()
	p := parse(t, b)
	if !Answerable(b, p) {
		t.Fatal("not answerable")
	}
	out := bytes.Repeat([]byte{0xa5}, MaxLen)
	return Write(out, b[:cut], b[cut:p.End], p, m)
}

// options4 is an IPv4 header with a router alert and a record route.
func options4(l *layers.IPv4) {
	l.Options = []layers.IPv4Option{
		{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}},
		{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}, {OptionType: 0, OptionLength: 1},
	}
}

func TestWrite4(t *testing.T) {
	eth := func() *ft.Builder { return ft.Ethernet(ft.MAC(2), ft.MAC(1)) }
	for name, b := range map[string]*ft.Builder{
		"UDP":            ft.UDP4(ft.Opts{Payload: 1422}),
		"TCP":            ft.TCP4(ft.Opts{Payload: 1410, TOS: 0xb8}),
		"signed TCP":     ft.TCP4(ft.Opts{Payload: 1390, Options: []layers.TCPOption{ft.MD5(), ft.Nop(), ft.Nop()}}),
		"echo request":   ft.Ping4(ft.Opts{Payload: 1422}),
		"another":        eth().IPv4(ft.IP4(1), ft.IP4(2), func(l *layers.IPv4) { l.Protocol = 132 }).Payload(1430),
		"short":          ft.UDP4(ft.Opts{Payload: 5}),
		"tagged":         ft.UDP4(ft.Opts{Payload: 1422, VLANs: []uint16{9}}),
		"twice tagged":   ft.UDP4(ft.Opts{Payload: 1422, VLANs: []uint16{9, 8}}),
		"options":        eth().IPv4(ft.IP4(1), ft.IP4(2), options4).UDP(1, 2).Payload(1400),
		"first fragment": eth().IPv4(ft.IP4(1), ft.IP4(2), func(l *layers.IPv4) { l.Flags |= layers.IPv4MoreFragments }).UDP(1, 2).Payload(1400),
	} {
		f := b.Bytes()
		p := parse(t, f)
		for _, cut := range []int{p.End, int(p.L3Off) + 20 + 40, int(p.L3Off) + header.IPv4(f[p.L3Off:]).HeaderLen()} {
			got := write(t, f, min(cut, len(f)), 1337)
			q := ft.Check(t, got)
			switch {
			case q.IPv4 == nil || q.ICMP == nil || q.ICMP.TypeCode != layers.CreateICMPv4TypeCode(3, 4):
				t.Fatalf("%s: not what it should be: %+v", name, q)
			case !q.IPv4.SrcIP.Equal(ft.IP4(2).AsSlice()) || !q.IPv4.DstIP.Equal(ft.IP4(1).AsSlice()) || q.IPv4.TTL != 64 || q.IPv4.Flags != layers.IPv4DontFragment:
				t.Errorf("%s: header %+v", name, q.IPv4)
			case addr.MAC(q.Ethernet.DstMAC) != ft.MAC(1) || addr.MAC(q.Ethernet.SrcMAC) != ft.MAC(2) || len(q.VLANs) != int(p.Tags):
				t.Errorf("%s: from %v to %v", name, q.Ethernet.SrcMAC, q.Ethernet.DstMAC)
			case q.ICMP.Id != 0 || q.ICMP.Seq != 1337:
				t.Errorf("%s: words %d and %d, want 0 and the MTU", name, q.ICMP.Id, q.ICMP.Seq)
			}
			packet := f[p.L3Off:p.End]
			if want := min(576-28, len(packet)); len(q.Payload) != want || !bytes.Equal(q.Payload, packet[:want]) {
				t.Errorf("%s: quotes %d bytes, want %d of the packet", name, len(q.Payload), want)
			}
			var r frame.Parsed
			if r.Parse(got) != frame.Sound || Answerable(got, &r) {
				t.Errorf("%s: an error about the error would be sent", name)
			}
		}
	}
}

func TestWrite6(t *testing.T) {
	ip6 := func() *ft.Builder { return ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv6(ft.IP6(1), ft.IP6(2)) }
	for name, b := range map[string]*ft.Builder{
		"UDP":            ft.UDP6(ft.Opts{Payload: 1402}),
		"TCP":            ft.TCP6(ft.Opts{Payload: 1390, TOS: 0xb8}),
		"echo request":   ft.Ping6(ft.Opts{Payload: 1300}),
		"short":          ft.UDP6(ft.Opts{Payload: 4}),
		"tagged":         ft.UDP6(ft.Opts{Payload: 1402, VLANs: []uint16{9, 8}}),
		"extensions":     ip6().Extension(header.ProtoHopByHop, nil).Extension(header.ProtoDestOpts, make([]byte, 22)).UDP(1, 2).Payload(1300),
		"first fragment": ip6().Extension(header.ProtoDestOpts, nil).Fragment6(0, true, 7).UDP(1, 2).Payload(1400),
		"a whole one":    ip6().Fragment6(0, false, 7).UDP(1, 2).Payload(1400),
		"echo in first":  ip6().Fragment6(0, true, 7).ICMPv6(header.ICMPv6Echo, 0).Payload(1404),
	} {
		f := b.Bytes()
		p := parse(t, f)
		got := write(t, f, int(p.L3Off)+40, 1300)
		q := ft.Check(t, got)
		switch {
		case q.IPv6 == nil || q.ICMPv6 == nil || q.ICMPv6.TypeCode != layers.CreateICMPv6TypeCode(2, 0):
			t.Fatalf("%s: not what it should be: %+v", name, q)
		case !q.IPv6.SrcIP.Equal(ft.IP6(2).AsSlice()) || !q.IPv6.DstIP.Equal(ft.IP6(1).AsSlice()) || q.IPv6.HopLimit != 64 || q.IPv6.FlowLabel != 0:
			t.Errorf("%s: header %+v", name, q.IPv6)
		case addr.MAC(q.Ethernet.DstMAC) != ft.MAC(1) || addr.MAC(q.Ethernet.SrcMAC) != ft.MAC(2) || len(q.VLANs) != int(p.Tags):
			t.Errorf("%s: from %v to %v", name, q.Ethernet.SrcMAC, q.Ethernet.DstMAC)
		}
		if m := binary.BigEndian.Uint32(q.Payload); m != 1300 {
			t.Errorf("%s: MTU %d", name, m)
		}
		packet, quoted := f[p.L3Off:p.End], q.Payload[4:]
		if want := min(1280-48, len(packet)); len(quoted) != want || !bytes.Equal(quoted, packet[:want]) {
			t.Errorf("%s: quotes %d bytes, want %d of the packet", name, len(quoted), want)
		}
		var r frame.Parsed
		if r.Parse(got) != frame.Sound || Answerable(got, &r) {
			t.Errorf("%s: an error about the error would be sent", name)
		}
	}
}

func TestNotAnswerable(t *testing.T) {
	ip4 := func(src, dst string, edit ...func(*layers.IPv4)) *ft.Builder {
		return ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv4(netip.MustParseAddr(src), netip.MustParseAddr(dst), edit...)
	}
	ip6 := func(src, dst string) *ft.Builder {
		return ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv6(netip.MustParseAddr(src), netip.MustParseAddr(dst))
	}
	const a4, b4, a6, b6 = "10.42.0.1", "10.42.0.2", "fd42::1", "fd42::2"
	at := func(df bool, offset int) func(*layers.IPv4) {
		return func(l *layers.IPv4) {
			if !df {
				l.Flags = 0
			}
			l.FragOffset = uint16(offset / 8)
		}
	}
	for name, b := range map[string]*ft.Builder{
		"DF clear":                  ip4(a4, b4, at(false, 0)).UDP(1, 2).Payload(1400),
		"a later fragment":          ip4(a4, b4, at(true, 1400)).UDP(1, 2).Payload(1400),
		"from nobody":               ip4("0.0.0.0", b4).UDP(1, 2).Payload(1400),
		"from itself":               ip4("127.0.0.1", b4).UDP(1, 2).Payload(1400),
		"from a group":              ip4("224.0.0.1", b4).UDP(1, 2).Payload(1400),
		"from the broadcast":        ip4("255.255.255.255", b4).UDP(1, 2).Payload(1400),
		"from class E":              ip4("240.0.0.1", b4).UDP(1, 2).Payload(1400),
		"to a group":                ip4(a4, "239.1.2.3").UDP(1, 2).Payload(1400),
		"to the broadcast":          ip4(a4, "255.255.255.255").UDP(1, 2).Payload(1400),
		"to a group MAC":            ft.UDP4(ft.Opts{DstMAC: addr.MAC{1, 0, 0x5e, 0, 0, 1}, Payload: 1400}),
		"to the broadcast MAC":      ft.UDP4(ft.Opts{DstMAC: addr.Broadcast, Payload: 1400}),
		"unreachable":               ip4(a4, b4).ICMP(header.ICMPUnreachable, 1, 0, 0).Payload(1400),
		"fragmentation needed":      ip4(a4, b4).ICMP(header.ICMPUnreachable, 4, 0, 1300).Payload(1400),
		"time exceeded":             ip4(a4, b4).ICMP(header.ICMPTimeExceeded, 0, 0, 0).Payload(1400),
		"parameter problem":         ip4(a4, b4).ICMP(header.ICMPParamProblem, 0, 0, 0).Payload(1400),
		"an error in fragments":     ip4(a4, b4, func(l *layers.IPv4) { l.Flags |= layers.IPv4MoreFragments }).ICMP(header.ICMPUnreachable, 1, 0, 0).Payload(1400),
		"v6 from nobody":            ip6("::", b6).UDP(1, 2).Payload(1400),
		"v6 from itself":            ip6("::1", b6).UDP(1, 2).Payload(1400),
		"v6 from a group":           ip6("ff02::1", b6).UDP(1, 2).Payload(1400),
		"v6 to a group":             ip6(a6, "ff02::1").UDP(1, 2).Payload(1400),
		"v6 to a group MAC":         ft.UDP6(ft.Opts{DstMAC: addr.MAC{0x33, 0x33, 0, 0, 0, 1}, Payload: 1400}),
		"v6 unreachable":            ip6(a6, b6).ICMPv6(header.ICMPv6Unreachable, 0).Payload(1400),
		"packet too big":            ip6(a6, b6).ICMPv6(header.ICMPv6PacketTooBig, 0).Payload(1400),
		"an unknown v6 error":       ip6(a6, b6).ICMPv6(127, 0).Payload(1400),
		"v6 error behind options":   ip6(a6, b6).Extension(header.ProtoDestOpts, nil).ICMPv6(header.ICMPv6Unreachable, 0).Payload(1400),
		"v6 error in fragments":     ip6(a6, b6).Fragment6(0, true, 3).ICMPv6(header.ICMPv6Unreachable, 0).Payload(1404),
		"v6 error in a fragment":    ip6(a6, b6).Fragment6(0, false, 3).ICMPv6(header.ICMPv6Unreachable, 0).Payload(1404),
		"v6 error behind fragments": ip6(a6, b6).Fragment6(0, true, 3).Extension(header.ProtoDestOpts, nil).ICMPv6(header.ICMPv6Unreachable, 0).Payload(1404),
		"a later v6 fragment":       ip6(a6, b6).Extension(header.ProtoDestOpts, nil).Fragment6(1400, true, 3).UDP(1, 2).Payload(1400),
		"the last v6 fragment":      ip6(a6, b6).Fragment6(1400, false, 3).UDP(1, 2).Payload(1400),
		"later, behind a whole one": ip6(a6, b6).Fragment6(0, false, 2).Fragment6(1400, false, 3).UDP(1, 2).Payload(1400),
		"ARP":                       ft.ARPRequest(ft.MAC(1), ft.IP4(1), ft.IP4(2)),
		"no IP":                     ft.Ethernet(ft.MAC(2), ft.MAC(1), func(l *layers.Ethernet) { l.EthernetType = 0x88b5 }).Payload(1500),
	} {
		f := b.Bytes()
		if Answerable(f, parse(t, f)) {
			t.Errorf("%s: an error would be sent", name)
		}
	}
}

// FuzzWrite makes an error about anything that is sound and may have one. It must be right, and bounded.
func FuzzWrite(f *testing.F) {
	for _, b := range []*ft.Builder{
		ft.UDP4(ft.Opts{Payload: 1422}), ft.TCP6(ft.Opts{Payload: 1402, VLANs: []uint16{1}}), ft.Ping4(ft.Opts{}), ft.Ping6(ft.Opts{Payload: 3}),
		ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv4(ft.IP4(1), ft.IP4(2), options4).UDP(1, 2).Payload(9),
		ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv6(ft.IP6(1), ft.IP6(2)).Extension(header.ProtoAH, make([]byte, 10)).Fragment6(0, true, 7).UDP(1, 2).Payload(8),
	} {
		f.Add(b.Bytes(), uint16(1280), uint16(54))
	}
	f.Fuzz(func(t *testing.T, b []byte, m, cut uint16) {
		var p frame.Parsed
		b = b[:len(b):len(b)]
		if p.Parse(b) != frame.Sound || !Answerable(b, &p) {
			return
		}
		least := int(p.L3Off) + 40
		if p.L3 == frame.IPv4 {
			least = int(p.L3Off) + header.IPv4(b[p.L3Off:]).HeaderLen()
		}
		at := min(max(least, int(cut)), p.End)
		before := bytes.Clone(b)
		got := Write(make([]byte, MaxLen), b[:at], b[at:p.End], &p, mtu.OverlayMTU(m))
		if !bytes.Equal(b, before) {
			t.Fatal("the packet was changed")
		}
		if len(got) > int(p.L3Off)+1280 || p.L3 == frame.IPv4 && len(got) > int(p.L3Off)+576 {
			t.Fatalf("%d bytes", len(got))
		}
		q, err := ft.Verify(got)
		if err != nil {
			t.Fatal(err)
		}
		if quoted := q.Payload; p.L3 == frame.IPv4 && !bytes.HasPrefix(b[p.L3Off:p.End], quoted) || p.L3 == frame.IPv6 && !bytes.HasPrefix(b[p.L3Off:p.End], quoted[4:]) {
			t.Fatal("another quote")
		}
	})
}

func TestWriteAllocatesNothing(t *testing.T) {
	out := make([]byte, MaxLen)
	for _, b := range []*ft.Builder{ft.UDP4(ft.Opts{Payload: 1422}), ft.Ping6(ft.Opts{Payload: 1300})} {
		f := b.Bytes()
		p := parse(t, f)
		if n := testing.AllocsPerRun(100, func() {
			if Answerable(f, p) {
				Write(out, f, nil, p, 1300)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
