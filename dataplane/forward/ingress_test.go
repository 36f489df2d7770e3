package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

func TestIngressUnwrapsAndLearns(t *testing.T) {
	w := newWorld(t, full, peerA, peerB)
	f := frametest.UDP4(frametest.Opts{Payload: 100}).Bytes()
	items := w.receive(Received{From: peerB, Data: encap(testVNI, f)})
	if len(items) != 1 || !bytes.Equal(bytes.Join(items[0].Pieces, nil), f) {
		t.Fatalf("items: %+v", items)
	}
	if items[0].Offload.Flags != header.VirtioFlagDataValid {
		t.Errorf("offload of a verified frame: %+v", items[0].Offload)
	}
	if id, ok := w.net.FDB.Lookup(frametest.MAC(1)); !ok || id != w.id(t, peerB) {
		t.Errorf("learned %v, %v, want behind %v", id, ok, peerB)
	}
	// The station moves.
	w.receive(Received{From: peerA, Data: encap(testVNI, frametest.UDP4(frametest.Opts{}).Bytes())})
	if id, _ := w.net.FDB.Lookup(frametest.MAC(1)); id != w.id(t, peerA) {
		t.Errorf("after a move: behind %v", id)
	}
	w.checkLaw(t)
}

func TestIngressWithoutLearningKeepsTheTable(t *testing.T) {
	w := newWorld(t, full, peerA, peerB)
	w.net.Learning = false
	w.receive(Received{From: peerB, Data: encap(testVNI, frametest.UDP4(frametest.Opts{}).Bytes())})
	if n := w.net.FDB.Len(); n != 0 {
		t.Errorf("%d entries, want none", n)
	}
	w.net.FDB.SetStatic(frametest.MAC(1), w.id(t, peerA))
	w.receive(Received{From: peerB, Data: encap(testVNI, frametest.UDP4(frametest.Opts{}).Bytes())})
	w.wantDropped(t, SourceSpoofed, 1)
}

// hostile lists frames that no sound sender makes, and the reason under which each must be counted.
func hostile() map[string]struct {
	inner []byte
	want  DropReason
} {
	edit := func(b *frametest.Builder, do func(f []byte)) []byte {
		f := b.Bytes()
		do(f)
		return f
	}
	// fixIP makes the IPv4 header checksum right after an edit, so that it is not what is found.
	fixIP := func(f []byte) {
		h := header.IPv4(f[14:])
		h.UpdateChecksum()
	}
	udp := func() *frametest.Builder { return frametest.UDP4(frametest.Opts{Payload: 64}) }
	tcp := func() *frametest.Builder { return frametest.TCP4(frametest.Opts{Payload: 64}) }
	options := func(o ...layers.IPv4Option) *frametest.Builder {
		return frametest.Ethernet(frametest.MAC(2), frametest.MAC(1)).
			IPv4(frametest.IP4(1), frametest.IP4(2), func(l *layers.IPv4) { l.Options = o }).UDP(1, 2).Payload(9)
	}
	fragment := func(proto layers.IPProtocol, offset uint16, more bool, size int) []byte {
		return frametest.Ethernet(frametest.MAC(2), frametest.MAC(1)).
			IPv4(frametest.IP4(1), frametest.IP4(2), func(l *layers.IPv4) {
				l.Protocol, l.FragOffset, l.Flags = proto, offset/8, 0
				if more {
					l.Flags = layers.IPv4MoreFragments
				}
			}).Payload(size).Bytes()
	}
	stamps := frametest.Opts{Payload: 10, Options: []layers.TCPOption{{OptionType: 8, OptionLength: 10, OptionData: make([]byte, 8)}, {OptionType: 1}, {OptionType: 1}}}
	type row = struct {
		inner []byte
		want  DropReason
	}
	return map[string]row{
		"IPv4 header cut":          {udp().Bytes()[:14+12], FrameRunt},
		"IPv6 header cut":          {frametest.UDP6(frametest.Opts{}).Bytes()[:14+39], FrameRunt},
		"VLAN tag cut":             {frametest.UDP4(frametest.Opts{VLANs: []uint16{5}}).Bytes()[:16], FrameRunt},
		"ARP cut":                  {frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)).Bytes()[:30], FrameRunt},
		"source is a group":        {edit(udp(), func(f []byte) { f[6] |= 1 }), FrameBadSource},
		"source is zero":           {edit(udp(), func(f []byte) { clear(f[6:12]) }), FrameBadSource},
		"source is this host":      {frametest.UDP4(frametest.Opts{SrcMAC: addr.MAC{2, 0xff, 0, 0, 0, 1}}).Bytes(), SourceSpoofed},
		"total length too long":    {edit(udp(), func(f []byte) { f[17] += 4; fixIP(f) }), FrameBadLength},
		"total length too short":   {edit(udp(), func(f []byte) { f[16], f[17] = 0, 19; fixIP(f) }), FrameBadLength},
		"IPv6 payload too long":    {edit(frametest.UDP6(frametest.Opts{Payload: 9}), func(f []byte) { f[19]++ }), FrameBadLength},
		"UDP length too long":      {edit(udp(), func(f []byte) { f[14+20+5]++ }), FrameBadLength},
		"UDP length too short":     {edit(udp(), func(f []byte) { f[14+20+4], f[14+20+5] = 0, 7 }), FrameBadLength},
		"TCP data offset too long": {edit(frametest.TCP4(frametest.Opts{}), func(f []byte) { f[14+20+12] = 6 << 4 }), FrameBadLength},
		"IP version 5":             {edit(udp(), func(f []byte) { f[14] = 0x55 }), IPBadHeader},
		"header length 4":          {edit(udp(), func(f []byte) { f[14] = 0x44 }), IPBadHeader},
		"header checksum":          {edit(udp(), func(f []byte) { f[14+8]-- }), IPBadHeader},
		"loose source route":       {options(layers.IPv4Option{OptionType: 131, OptionLength: 7, OptionData: make([]byte, 5)}, layers.IPv4Option{OptionType: 0}).Bytes(), IPBadOption},
		"option of length 0":       {edit(options(layers.IPv4Option{OptionType: 148, OptionLength: 4, OptionData: make([]byte, 2)}), func(f []byte) { f[35] = 0; fixIP(f) }), IPBadOption},
		"option of length 255":     {edit(options(layers.IPv4Option{OptionType: 148, OptionLength: 4, OptionData: make([]byte, 2)}), func(f []byte) { f[35] = 255; fixIP(f) }), IPBadOption},
		"TCP option of length 0":   {edit(frametest.TCP4(stamps), func(f []byte) { f[14+20+20+1] = 0 }), TCPBadOption},
		"TCP option overrun":       {edit(frametest.TCP4(stamps), func(f []byte) { f[14+20+20+1] = 13 }), TCPBadOption},
		"tiny TCP fragment":        {fragment(6, 0, true, 16), IPBadFragment},
		"TCP fragment at 8":        {fragment(6, 8, false, 64), IPBadFragment},
		"fragment beyond 65535":    {fragment(17, 65528, false, 64), IPBadFragment},
		"odd middle fragment":      {fragment(17, 1480, true, 33), IPBadFragment},
		"bad TCP checksum":         {edit(tcp(), func(f []byte) { f[len(f)-1] ^= 1 }), BadChecksum},
		"bad UDP checksum":         {edit(udp(), func(f []byte) { f[len(f)-1] ^= 1 }), BadChecksum},
		"VXLAN in VXLAN":           {frametest.UDP4(frametest.Opts{DstPort: header.VXLANPort, Data: encap(7, udp().Bytes())}).Bytes(), NestedVXLAN},
	}
}

func TestIngressDropsHostileFrames(t *testing.T) {
	for name, c := range hostile() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			if items := w.receive(Received{From: peerA, Data: encap(testVNI, c.inner)}); len(items) != 0 {
				t.Errorf("%d items reached the TAP", len(items))
			}
			w.wantDropped(t, c.want, 1)
			w.checkLaw(t)
			if w.net.FDB.Len() != 0 {
				t.Errorf("%d entries were learned from it", w.net.FDB.Len())
			}
		})
	}
}

// TestEgressDropsHostileFrames offers the same to the other direction. What only the receiver can know passes.
func TestEgressDropsHostileFrames(t *testing.T) {
	for name, c := range hostile() {
		if c.want == SourceSpoofed || c.want == BadChecksum {
			continue
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			if got := w.send(t, plain(c.inner)); len(got) != 0 {
				t.Errorf("%d datagrams left", len(got))
			}
			w.wantDropped(t, c.want, 1)
			w.checkLaw(t)
		})
	}
}

func TestIngressDropsHostileDatagrams(t *testing.T) {
	sound := encap(testVNI, frametest.UDP4(frametest.Opts{Payload: 64}).Bytes())
	noFlag := bytes.Clone(sound)
	noFlag[0] = 0
	stranger := netip.MustParseAddr("203.0.113.9")
	for name, c := range map[string]struct {
		r    Received
		want DropReason
	}{
		"empty":         {Received{From: peerA, Data: sound[:0]}, VXLANTruncated},
		"one byte":      {Received{From: peerA, Data: sound[:1]}, VXLANTruncated},
		"21 bytes":      {Received{From: peerA, Data: sound[:21]}, VXLANTruncated},
		"no I flag":     {Received{From: peerA, Data: noFlag}, VXLANBadFlags},
		"VNI of nobody": {Received{From: peerA, Data: encap(43, sound[8:])}, VNIUnknown},
		"stranger":      {Received{From: stranger, Data: sound}, VTEPUnknown},
		"broken mark":   {Received{From: peerA, Data: sound, TOS: header.ECNCE}, ECNBroken},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			c.r.Data = bytes.Clone(c.r.Data)
			if items := w.receive(c.r); len(items) != 0 {
				t.Errorf("%d items reached the TAP", len(items))
			}
			if len(c.r.Data) > 0 {
				w.wantDropped(t, c.want, 1)
			} else if w.dropped(c.want) != 1 {
				t.Errorf("an empty datagram was not counted as %v", c.want)
			}
			w.checkLaw(t)
		})
	}
}

// TestIngressKnowsMembersOfEachNetwork offers a frame from a VTEP that this host knows, but of another network.
func TestIngressKnowsMembersOfEachNetwork(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.tables.AddVTEP(peerB, 1500)
	w.receive(Received{From: peerB, Data: encap(testVNI, frametest.UDP4(frametest.Opts{}).Bytes())})
	w.wantDropped(t, VTEPUnknown, 1)
}

func TestNestedVXLANPassesWhereAllowed(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.net.AllowNested = true
	f := frametest.UDP4(frametest.Opts{DstPort: header.VXLANPort, Payload: 64}).Bytes()
	if items := w.receive(Received{From: peerA, Data: encap(testVNI, f)}); len(items) != 1 {
		t.Errorf("%d items, want 1", len(items))
	}
	if got := w.send(t, plain(f)); len(got) != 1 {
		t.Errorf("%d datagrams, want 1", len(got))
	}
}

// segments returns the datagrams of a superframe that another overlayd would send.
func segments(t *testing.T, b *frametest.Builder, size int) [][]byte {
	t.Helper()
	parts, err := frametest.Segments(b.Bytes(), size)
	if err != nil {
		t.Fatal(err)
	}
	for i := range parts {
		parts[i] = encap(testVNI, parts[i])
	}
	return parts
}

func TestIngressJoinsTrains(t *testing.T) {
	for name, b := range map[string]*frametest.Builder{
		"TCP over IPv4": frametest.TCP4(frametest.Opts{Payload: 40000}),
		"TCP over IPv6": frametest.TCP6(frametest.Opts{Payload: 40000}),
		"UDP over IPv4": frametest.UDP4(frametest.Opts{Payload: 40000}),
		"UDP over IPv6": frametest.UDP6(frametest.Opts{Payload: 40000}),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			parts := segments(t, b, 1300)
			items := w.receive(train(peerA, parts...))
			if len(items) != 1 || items[0].Frames != len(parts) || items[0].Offload.GSOSize != 1300 {
				t.Fatalf("%d items, the first of %d frames with %+v", len(items), items[0].Frames, items[0].Offload)
			}
			if whole := bytes.Join(items[0].Pieces, nil); len(whole) != len(b.Bytes()) {
				t.Errorf("the superframe has %d bytes, want %d", len(whole), len(b.Bytes()))
			} else {
				frametest.CheckPartial(t, whole)
			}
			if w.ingress.Datagrams != len(parts) {
				t.Errorf("counted %d datagrams, want %d", w.ingress.Datagrams, len(parts))
			}
			w.checkLaw(t)
		})
	}
}

// TestIngressTakesKernelSuperframes offers what a kernel VXLAN peer on a virtual link hands over: a whole superframe in
// one datagram, its checksum partial; of UDP with the size of the inner segments as if it were a train.
func TestIngressTakesKernelSuperframes(t *testing.T) {
	for name, c := range map[string]struct {
		b      *frametest.Builder
		stride int
		size   int
		typ    uint8
	}{
		"TCP over IPv4": {frametest.TCP4(frametest.Opts{Payload: 50000}), 0, 1410, header.GSOTCPv4},
		"TCP over IPv6": {frametest.TCP6(frametest.Opts{Payload: 50000}), 0, 1390, header.GSOTCPv6},
		"tagged":        {frametest.TCP4(frametest.Opts{Payload: 50000, VLANs: []uint16{3}}), 0, 1410, header.GSOTCPv4},
		"UDP":           {frametest.UDP4(frametest.Opts{Payload: 50000}), 1400, 1400, header.GSOUDPL4},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			_, f := c.b.Offload(c.size)
			items := w.receive(Received{From: peerA, Data: encap(testVNI, f), Stride: c.stride})
			if len(items) != 1 {
				t.Fatalf("%d items, want 1", len(items))
			}
			h := items[0].Offload
			if h.GSOType != c.typ || int(h.GSOSize) != c.size || h.Flags != header.VirtioFlagNeedsCsum {
				t.Errorf("offload %+v", h)
			}
			if !bytes.Equal(bytes.Join(items[0].Pieces, nil), f) {
				t.Error("the superframe was changed")
			}
			if want := (50000 + c.size - 1) / c.size; items[0].Frames != want {
				t.Errorf("counted as %d frames, want %d", items[0].Frames, want)
			}
			w.checkLaw(t)

			// The same for a TAP that takes plain frames alone.
			w = newWorld(t, Offload{}, peerA)
			items = w.receive(Received{From: peerA, Data: encap(testVNI, f), Stride: c.stride})
			want, err := frametest.Segments(f, c.size)
			if err != nil || len(items) != len(want) {
				t.Fatalf("%d plain frames, want %d (%v)", len(items), len(want), err)
			}
			for i := range items {
				if !bytes.Equal(bytes.Join(items[i].Pieces, nil), want[i]) {
					t.Fatalf("plain frame %d differs", i)
				}
			}
			w.checkLaw(t)
		})
	}
}

// TestIngressTakesSmallSegments offers a UDP superframe of a kernel peer with segments of 20 bytes.
func TestIngressTakesSmallSegments(t *testing.T) {
	_, f := frametest.UDP4(frametest.Opts{Payload: 600}).Offload(20)
	w := newWorld(t, Offload{}, peerA)
	if items := w.receive(Received{From: peerA, Data: encap(testVNI, f), Stride: 20}); len(items) != 30 {
		t.Errorf("%d frames reached the TAP, want 30", len(items))
	}
	w.checkLaw(t)
}

// TestIngressNeverSplitsBlindly offers trains whose parts do not agree with the stride.
func TestIngressNeverSplitsBlindly(t *testing.T) {
	big := encap(testVNI, frametest.UDP4(frametest.Opts{Payload: 1000}).Bytes())
	w := newWorld(t, full, peerA)
	// The first frame is longer than the stride, and shorter than the whole.
	w.receive(Received{From: peerA, Data: append(bytes.Clone(big), make([]byte, 950)...), Stride: 500})
	w.wantDropped(t, VXLANBadTrain, 4)
	w.checkLaw(t)

	// A train of frames that are no IP has nothing but the stride to go by.
	opaque := encap(testVNI, frametest.Ethernet(frametest.MAC(2), frametest.MAC(1), func(l *layers.Ethernet) { l.EthernetType = 0x88b5 }).Payload(46).Bytes())
	w = newWorld(t, full, peerA)
	if items := w.receive(train(peerA, opaque, bytes.Clone(opaque), bytes.Clone(opaque))); len(items) != 3 {
		t.Errorf("%d frames of 3 arrived", len(items))
	}
	// Padded ARP requests, as small frames from hardware are.
	arp := encap(testVNI, append(frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)).Bytes(), make([]byte, 18)...))
	if items := w.receive(train(peerA, arp, bytes.Clone(arp))); len(items) != 2 {
		t.Errorf("%d padded frames of 2 arrived", len(items))
	}
	// One bad part must not take the others with it.
	good := segments(t, frametest.UDP4(frametest.Opts{Payload: 4000}), 1000)
	good[1][0] = 0
	w = newWorld(t, full, peerA)
	w.receive(train(peerA, good...))
	w.wantDropped(t, VXLANBadFlags, 1)
	if n := w.net.Counters.TAPOut.Frames.Load(); n != 3 {
		t.Errorf("%d frames of the train arrived, want 3", n)
	}
	w.checkLaw(t)
}

func TestIngressHandlesPartialChecksums(t *testing.T) {
	for _, b := range []*frametest.Builder{frametest.TCP4(frametest.Opts{Payload: 64}), frametest.UDP6(frametest.Opts{Payload: 65})} {
		w := newWorld(t, full, peerA)
		items := w.receive(Received{From: peerA, Data: encap(testVNI, b.Partial())})
		if len(items) != 1 || items[0].Offload.Flags != header.VirtioFlagNeedsCsum || items[0].Offload.CsumStart == 0 {
			t.Errorf("with offload: %+v", items)
		}
		w = newWorld(t, Offload{}, peerA)
		items = w.receive(Received{From: peerA, Data: encap(testVNI, b.Partial())})
		if len(items) != 1 {
			t.Fatalf("without offload: %+v", items)
		}
		frametest.Check(t, items[0].Pieces[0])
	}
}

// TestECNFollowsRFC6040 goes through figure 4 of the RFC.
func TestECNFollowsRFC6040(t *testing.T) {
	const not, one, zero, ce = header.ECNNotECT, header.ECNECT1, header.ECNECT0, header.ECNCE
	const drop = 0xff
	for inner, row := range map[uint8][4]uint8{ // by outer: Not-ECT, ECT(1), ECT(0), CE
		not:  {not, not, not, drop},
		zero: {zero, one, zero, ce},
		one:  {one, one, one, ce},
		ce:   {ce, ce, ce, ce},
	} {
		for outer, want := range row {
			for _, six := range []bool{false, true} {
				o := frametest.Opts{TOS: 0x28 | inner, Payload: 10}
				b := frametest.UDP4(o)
				if six {
					b = frametest.UDP6(o)
				}
				w := newWorld(t, full, peerA)
				items := w.receive(Received{From: peerA, Data: encap(testVNI, b.Bytes()), TOS: uint8(outer)})
				if want == drop {
					w.wantDropped(t, ECNBroken, 1)
					continue
				}
				p := frametest.Check(t, items[0].Pieces[0])
				got := uint8(0)
				if six {
					got = p.IPv6.TrafficClass
				} else {
					got = p.IPv4.TOS
				}
				if got != 0x28|want {
					t.Errorf("inner %d, outer %d, IPv6 %v: traffic class %#x, want %#x", inner, outer, six, got, 0x28|want)
				}
			}
		}
	}
}

func TestIngressCountsRefusedWrites(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.ingress.Process([]Received{train(peerA, segments(t, frametest.TCP4(frametest.Opts{Payload: 13000}), 1300)...)}, 7)
	d := w.ingress.Deliveries[0]
	w.ingress.Report(d.Net, &d.Items[0], TAPDown)
	w.wantDropped(t, TAPDown, 10)
	w.checkLaw(t)
}

func TestReasonsAreNamed(t *testing.T) {
	seen := map[string]bool{}
	for r := range NumReasons {
		if r.String() == "" || seen[r.String()] || r.Help() == "" {
			t.Errorf("reason %d: name %q, help %q", r, r.String(), r.Help())
		}
		seen[r.String()] = true
	}
	if NumReasons.String() != "unknown" {
		t.Error("a number that is no reason has a name")
	}
}

func TestTablesRefuseATakenVNI(t *testing.T) {
	w := newWorld(t, full, peerA)
	if err := w.tables.AddNetwork(&Network{Name: "red", VNI: testVNI}); err == nil {
		t.Error("two networks with one VNI were accepted")
	}
	if id := w.tables.AddVTEP(peerA, 9000); w.tables.VTEP(id).Path != 1500 {
		t.Error("naming a VTEP again changed its path")
	}
}

func TestSamplesKeepTheLast(t *testing.T) {
	s := NewSamples(4)
	for i := range 10 {
		var b [2]byte
		binary.BigEndian.PutUint16(b[:], uint16(i))
		s.Add(Sample{Reason: FrameRunt}, b[:])
	}
	got := s.After(0)
	if len(got) != 4 || got[0].Seq != 7 || got[3].Seq != 10 || got[3].Data[1] != 9 || got[3].Length != 2 {
		t.Errorf("kept %+v", got)
	}
	if more := s.After(9); len(more) != 1 || more[0].Seq != 10 {
		t.Errorf("after 9: %d samples", len(more))
	}
}
