package forward

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

func TestEgressWrapsAndFloods(t *testing.T) {
	w := newWorld(t, full, peerA, peerC)
	f := frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)).Bytes()
	got := w.send(t, plain(f))
	if len(got) != 2 || len(w.egress.Sends) != 2 {
		t.Fatalf("a broadcast to two peers made %d datagrams in %d sends", len(got), len(w.egress.Sends))
	}
	for i, want := range []struct{ vtep int }{{0}, {1}} {
		if int(w.egress.Sends[i].VTEP) != want.vtep {
			t.Errorf("send %d goes to VTEP %d, want %d", i, w.egress.Sends[i].VTEP, want.vtep)
		}
		vni, inner, err := frametest.Datagram(got[i])
		if err != nil || vni != testVNI || !bytes.Equal(inner, f) {
			t.Errorf("datagram %d: VNI %v, error %v, inner frame equal: %v", i, vni, err, bytes.Equal(inner, f))
		}
	}
	if n := w.net.Counters.Created.Load(); n != 1 {
		t.Errorf("created %d copies, want 1", n)
	}
	w.checkLaw(t)
}

func TestEgressSendsKnownUnicastToOneVTEP(t *testing.T) {
	w := newWorld(t, full, peerA, peerB, peerC)
	w.net.FDB.SetStatic(frametest.MAC(2), w.id(t, peerB))
	w.send(t, plain(frametest.UDP4(frametest.Opts{Payload: 100}).Bytes()))
	if len(w.egress.Sends) != 1 || w.egress.Sends[0].VTEP != w.id(t, peerB) {
		t.Errorf("sends: %+v, want one to %v", w.egress.Sends, peerB)
	}
	w.send(t, plain(frametest.UDP4(frametest.Opts{Payload: 100, DstMAC: frametest.MAC(9)}).Bytes()))
	if len(w.egress.Sends) != 3 {
		t.Errorf("an unknown destination made %d sends, want one to each of 3 peers", len(w.egress.Sends))
	}
	w.checkLaw(t)
}

func TestEgressWithoutPeersDrops(t *testing.T) {
	w := newWorld(t, full)
	h, b := frametest.TCP4(frametest.Opts{Payload: 14000}).Offload(1400)
	w.send(t, fromTAP(h, b))
	w.wantDropped(t, NoPeers, 10)
	w.checkLaw(t)
}

// TestEgressCutsSuperframes compares what leaves with the plain segmentation, for every kind of superframe.
func TestEgressCutsSuperframes(t *testing.T) {
	stamps := []layers.TCPOption{{OptionType: 1}, {OptionType: 1}, {OptionType: 8, OptionLength: 10, OptionData: make([]byte, 8)}}
	for name, c := range map[string]struct {
		b    *frametest.Builder
		size int
	}{
		"TCP over IPv4": {frametest.TCP4(frametest.Opts{Payload: 60000, Options: stamps, Flags: header.TCPAck | header.TCPPsh}), 1398},
		"TCP over IPv6": {frametest.TCP6(frametest.Opts{Payload: 60001}), 1390},
		"tagged":        {frametest.TCP4(frametest.Opts{Payload: 3001, VLANs: []uint16{7}}), 1000},
		"UDP over IPv4": {frametest.UDP4(frametest.Opts{Payload: 20000}), 1400},
		"UDP over IPv6": {frametest.UDP6(frametest.Opts{Payload: 1401}), 1400},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			h, b := c.b.Offload(c.size)
			want, err := frametest.Segments(b, c.size)
			if err != nil {
				t.Fatal(err)
			}
			got := w.send(t, fromTAP(h, b))
			if len(got) != len(want) {
				t.Fatalf("%d datagrams, want %d", len(got), len(want))
			}
			for i := range got {
				if !bytes.Equal(got[i], encap(testVNI, want[i])) {
					t.Fatalf("datagram %d differs:\n%x\n%x", i, got[i][:80], encap(testVNI, want[i])[:80])
				}
			}
			if n := w.net.Counters.TAPIn.Frames.Load(); n != uint64(len(want)) {
				t.Errorf("counted %d frames in, want %d", n, len(want))
			}
			w.checkLaw(t)
		})
	}
}

// TestEgressMakesTrains looks at which superframes are copied: those of short frames, as long as there is room.
func TestEgressMakesTrains(t *testing.T) {
	const payload, headers = 60000, 50 * (header.VXLANLen + 54)
	for name, c := range map[string]struct {
		size, arena, pieces int
		flooded             bool
	}{
		"short frames":           {1398, arenaSize, 1, false},
		"long frames":            {trainMost, arenaSize, 2, false},
		"the longest in a train": {trainMost - 54, arenaSize, 1, false},
		"no room for payload":    {1398, headers + payload/2, 2, false},
		"flooded":                {1398, arenaSize, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			w.setPath(t, peerA, 9000)
			if !c.flooded {
				w.net.FDB.SetStatic(frametest.MAC(2), w.id(t, peerA))
			}
			w.egress.arena = gso.NewArena(make([]byte, c.arena))
			h, b := frametest.TCP4(frametest.Opts{Payload: payload}).Offload(c.size)
			want, err := frametest.Segments(b, c.size)
			if err != nil {
				t.Fatal(err)
			}
			got := w.send(t, fromTAP(h, b))
			if n := w.egress.Sends[0].PerDatagram; n != c.pieces {
				t.Errorf("%d pieces a datagram, want %d", n, c.pieces)
			}
			if !slices.EqualFunc(got, want, func(d, f []byte) bool { return bytes.Equal(d, encap(testVNI, f)) }) {
				t.Errorf("%d datagrams, want %d, or others", len(got), len(want))
			}
			w.checkLaw(t)
		})
	}
}

// TestEgressFloodsManySizes has superframes cut anew for each of many peers, which must not use up the memory.
func TestEgressFloodsManySizes(t *testing.T) {
	var peers []netip.Addr
	for i := range uint16(40) {
		peers = append(peers, frametest.IP4(200+i))
	}
	w := newWorld(t, full, peers...)
	for i, p := range peers {
		w.setPath(t, p, mtu.PathMTU(1500-100*(i%2)))
	}
	h, b := frametest.TCP4(frametest.Opts{Payload: 60000}).Offload(1398)
	w.send(t, fromTAP(h, b), fromTAP(h, b))
	if n := w.dropped(GSOUnsupported); n != 0 {
		t.Errorf("%d frames were dropped", n)
	}
	w.checkLaw(t)
}

// What has no room in the arena is dropped, and does not touch what was cut before for others.
func TestEgressFloodsWithoutRoom(t *testing.T) {
	a, b, c := frametest.IP4(200), frametest.IP4(201), frametest.IP4(202)
	w := newWorld(t, full, a, b, c)
	w.setPath(t, b, 1400)
	offload, sf := frametest.TCP4(frametest.Opts{Payload: 60000}).Offload(1398)
	const headers = 62 // VXLAN, Ethernet, IPv4, TCP
	frames := (60000 + 1397) / 1398
	w.egress.arena = gso.NewArena(make([]byte, 2*frames*headers)) // for b there are more
	for _, d := range w.send(t, fromTAP(offload, sf)) {
		frametest.Check(t, d[header.VXLANLen:])
	}
	sent := map[fdb.VTEPID]int{}
	for _, s := range w.egress.Sends {
		sent[s.VTEP] += s.Frames
	}
	if toA, toC := sent[w.id(t, a)], sent[w.id(t, c)]; toA != frames || toC != frames || len(sent) != 2 {
		t.Errorf("%d datagrams to a, %d to c, %d VTEPs, want %[4]d, %[4]d, and these two", toA, toC, len(sent), frames)
	}
	if n := w.dropped(GSOUnsupported); n <= uint64(frames) {
		t.Errorf("%d frames were dropped, want those to b", n)
	}
	w.checkLaw(t)
}

func TestEgressNeverExceedsOneSend(t *testing.T) {
	w := newWorld(t, full, peerA)
	h, b := frametest.TCP4(frametest.Opts{Payload: 65000}).Offload(1398)
	w.send(t, fromTAP(h, b))
	if len(w.egress.Sends) != 2 {
		t.Errorf("%d sends, want 2: 47 datagrams of 1460 bytes do not fit one", len(w.egress.Sends))
	}
	for _, s := range w.egress.Sends {
		if s.Frames > 63 || s.Frames*s.Size > maxSend {
			t.Errorf("a send of %d datagrams of %d bytes", s.Frames, s.Size)
		}
	}
}

func TestEgressCutsSmallerForANarrowPath(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.setPath(t, peerA, 1280)
	h, b := frametest.TCP4(frametest.Opts{Payload: 14000}).Offload(1400)
	got := w.send(t, fromTAP(h, b))
	room := 1280 - 20 - 8 // of outer IPv4 and UDP
	for _, d := range got {
		if len(d) > room {
			t.Fatalf("a datagram of %d bytes on a path for %d", len(d), room)
		}
		frametest.Check(t, d[header.VXLANLen:])
	}
	if n := w.net.Counters.Created.Load(); n != uint64(len(got)-10) {
		t.Errorf("created %d segments, want %d", n, len(got)-10)
	}
	w.checkLaw(t)
	w.send(t, plain(frametest.UDP4(frametest.Opts{Payload: 1300}).Bytes()))
	w.wantDropped(t, ExceedsPathMTU, 1)
	w.checkLaw(t)
	// Datagrams cannot be cut at other places than their sender chose.
	h, b = frametest.UDP4(frametest.Opts{Payload: 4000}).Offload(1400)
	if got := w.send(t, fromTAP(h, b)); len(got) != 0 {
		t.Errorf("a UDP superframe left as %d datagrams", len(got))
	}
	w.wantDropped(t, ExceedsPathMTU, 4)
	w.checkLaw(t)
}

func TestEgressGroupsEqualSmallFrames(t *testing.T) {
	w := newWorld(t, full, peerA)
	var batch []frame.Frame
	for range 5 {
		batch = append(batch, plain(frametest.UDP4(frametest.Opts{Payload: 64}).Bytes()))
	}
	batch = append(batch, plain(frametest.UDP4(frametest.Opts{Payload: 20}).Bytes())) // shorter: the last of its send
	batch = append(batch, plain(frametest.UDP4(frametest.Opts{Payload: 20}).Bytes()))
	batch = append(batch, plain(frametest.UDP4(frametest.Opts{Payload: 64}).Bytes())) // longer: a send of its own
	got := w.send(t, batch...)
	var frames []int
	for _, s := range w.egress.Sends {
		frames = append(frames, s.Frames)
	}
	if !slices.Equal(frames, []int{6, 1, 1}) {
		t.Errorf("frames in each send: %v, want [6 1 1]", frames)
	}
	for i, d := range got {
		if !bytes.Equal(d[header.VXLANLen:], batch[i].Bytes()) {
			t.Errorf("datagram %d is out of order", i)
		}
	}
	w.checkLaw(t)
}

func TestEgressCompletesPartialChecksums(t *testing.T) {
	w := newWorld(t, full, peerA)
	for _, b := range []*frametest.Builder{
		frametest.TCP4(frametest.Opts{Payload: 99}), frametest.UDP6(frametest.Opts{Payload: 100}),
	} {
		h, f := b.Offload(0)
		got := w.send(t, fromTAP(h, f))
		if len(got) != 1 {
			t.Fatalf("%d datagrams", len(got))
		}
		frametest.Check(t, got[0][header.VXLANLen:])
	}
}

// TestEgressReplicatesSuperframes floods a superframe to peers on paths of two sizes.
func TestEgressReplicatesSuperframes(t *testing.T) {
	w := newWorld(t, full, peerA, peerB, peerC)
	w.setPath(t, peerB, 1400)
	h, b := frametest.TCP4(frametest.Opts{Payload: 14000}).Offload(1400)
	got := w.send(t, fromTAP(h, b))
	// Of 1400, 1310 and 1390 bytes: the first path carries what the sender chose, the others less.
	if len(got) != 10+11+11 {
		t.Errorf("%d datagrams, want 32", len(got))
	}
	for i := range got {
		frametest.Check(t, got[i][header.VXLANLen:])
	}
	w.checkLaw(t)
}

func TestEgressTakesSmallSegments(t *testing.T) {
	w := newWorld(t, full, peerA)
	h, b := frametest.UDP4(frametest.Opts{Payload: 600}).Offload(20)
	if got := w.send(t, fromTAP(h, b)); len(got) != 30 {
		t.Errorf("%d datagrams of 20 bytes, want 30", len(got))
	}
	w.checkLaw(t)
}

func TestEgressKeepsFlowsOnOneSourcePort(t *testing.T) {
	w := newWorld(t, full, peerA)
	seen := map[int]bool{}
	for port := range uint16(200) {
		var buckets []int
		for n := range 3 {
			w.send(t, plain(frametest.TCP4(frametest.Opts{SrcPort: 20000 + port, Seq: uint32(n), Payload: 100 * n}).Bytes()))
			buckets = append(buckets, w.egress.Sends[0].Bucket)
		}
		if buckets[0] != buckets[1] || buckets[1] != buckets[2] || buckets[0] < 0 || buckets[0] > 15 {
			t.Fatalf("one flow used the source ports %v", buckets)
		}
		seen[buckets[0]] = true
	}
	if len(seen) != 16 {
		t.Errorf("200 flows use %d of 16 source ports", len(seen))
	}
}

func TestEgressCopiesECN(t *testing.T) {
	w := newWorld(t, full, peerA)
	for ecn := range uint8(4) {
		for _, b := range [][]byte{
			frametest.UDP4(frametest.Opts{TOS: 0xb8 | ecn}).Bytes(), frametest.UDP6(frametest.Opts{TOS: 0xb8 | ecn}).Bytes(),
		} {
			w.send(t, plain(b))
			if got := w.egress.Sends[0].TOS; got != ecn {
				t.Errorf("inner ECN %d, outer traffic class %#x", ecn, got)
			}
		}
	}
}

func TestEgressAnswersKnownNeighbours(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.net.Neighbors.Set(frametest.IP4(2), frametest.MAC(2))
	got := w.send(t, plain(frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)).Bytes()))
	if len(got) != 0 || len(w.egress.Answers) != 1 {
		t.Fatalf("%d datagrams and %d answers, want 0 and 1", len(got), len(w.egress.Answers))
	}
	p := frametest.Check(t, w.egress.Answers[0])
	if p.ARP == nil || addr.MAC(p.ARP.SourceHwAddress) != frametest.MAC(2) {
		t.Errorf("the answer is %+v", p.ARP)
	}
	w.egress.ReportAnswer(w.egress.Answers[0], NotDropped)
	if n := w.net.Counters.Suppressed.Load(); n != 1 {
		t.Errorf("suppressed %d, want 1", n)
	}
	w.checkLaw(t)
}

func TestEgressDropsBadOffloads(t *testing.T) {
	tcp := frametest.TCP4(frametest.Opts{Payload: 4000})
	for name, c := range map[string]struct {
		edit func(h *header.VirtioNet)
		b    *frametest.Builder
		want DropReason
	}{
		"too many segments":       {func(h *header.VirtioNet) { h.GSOSize = 1 }, tcp, BadOffload},
		"no segment size":         {func(h *header.VirtioNet) { h.GSOSize = 0 }, tcp, BadOffload},
		"TCPv6 on IPv4":           {func(h *header.VirtioNet) { h.GSOType = header.GSOTCPv6 }, tcp, BadOffload},
		"UDP on TCP":              {func(h *header.VirtioNet) { h.GSOType = header.GSOUDPL4 }, tcp, BadOffload},
		"UFO":                     {func(h *header.VirtioNet) { h.GSOType = header.GSOUDP }, tcp, GSOUnsupported},
		"a tunnel":                {func(h *header.VirtioNet) { h.GSOType |= header.GSOUDPTunnelIPv4 }, tcp, GSOUnsupported},
		"SYN superframe":          {func(*header.VirtioNet) {}, frametest.TCP4(frametest.Opts{Payload: 4000, Flags: header.TCPSyn}), BadOffload},
		"checksum starts outside": {func(h *header.VirtioNet) { h.GSOType = 0; h.CsumStart = 60000 }, frametest.TCP4(frametest.Opts{Payload: 400}), BadOffload},
		"checksum lies outside":   {func(h *header.VirtioNet) { h.GSOType = 0; h.CsumOffset = 60000 }, frametest.TCP4(frametest.Opts{Payload: 400}), BadOffload},
		"checksum in IP":          {func(h *header.VirtioNet) { h.GSOType = 0; h.CsumStart = 26; h.CsumOffset = 0 }, frametest.TCP4(frametest.Opts{Payload: 400}), IPBadHeader},
		"checksum in Ethernet":    {func(h *header.VirtioNet) { h.GSOType = 0; h.CsumStart = 0 }, frametest.TCP4(frametest.Opts{Payload: 400}), BadOffload},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			h, b := c.b.Offload(1400)
			c.edit(&h)
			if got := w.send(t, fromTAP(h, b)); len(got) != 0 {
				t.Errorf("%d datagrams left", len(got))
			}
			w.wantDropped(t, c.want, 1)
			w.checkLaw(t)
		})
	}
}

func TestEgressCountsFailedSends(t *testing.T) {
	w := newWorld(t, full, peerA)
	h, b := frametest.TCP4(frametest.Opts{Payload: 14000}).Offload(1400)
	w.egress.Process([]frame.Frame{fromTAP(h, b)}, 5)
	s := &w.egress.Sends[0]
	w.egress.Report(s, 4, 4*s.Size, NotDropped)
	w.egress.Report(s, 6, 6*s.Size, SendNoBuffer)
	w.wantDropped(t, SendNoBuffer, 6)
	if s := w.samples.After(0); s[0].Peer != peerA || !s[0].Egress || !s[0].Outer || s[0].Time != 5 {
		t.Errorf("sample: %+v", s[0])
	}
	w.checkLaw(t)
}
