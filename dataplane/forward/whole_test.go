package forward

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// wholeLimit is what one packet carries over IPv4, in these tests.
const wholeLimit = 65493

// uncut makes w send superframes to all VTEPs uncut.
func (w *world) uncut() {
	w.egress.Whole = nil
	for range w.tables.VTEPs() {
		w.egress.Whole = append(w.egress.Whole, wholeLimit)
	}
}

// segments cuts send i of e as the kernel would, plainly, and reports it as sent.
func (w *world) segments(t interface{ Fatal(...any) }, s *Send) [][]byte {
	w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
	d := w.egress.Pieces[s.First]
	vni, _, err := frametest.Datagram(d)
	if err != nil || vni != testVNI || s.End != s.First+1 || s.Size != len(d) {
		t.Fatal("no datagram in one piece: ", vni, err, s)
	}
	out, err := frametest.Segments(d[header.VXLANLen:], int(s.Offload.GSOSize))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEgressLeavesSuperframesWhole(t *testing.T) {
	stamps := []layers.TCPOption{frametest.Nop(), frametest.Nop(), frametest.Timestamps(1, 2)}
	for name, c := range map[string]struct {
		b    *frametest.Builder
		size int
		tos  uint8
		want header.VirtioNet
	}{
		"TCP over IPv4": {frametest.TCP4(frametest.Opts{Payload: 60000, Options: stamps, TOS: 3}), 1398, 3,
			header.VirtioNet{Flags: 1, GSOType: header.GSOTCPv4, GSOSize: 1398, CsumStart: 42, CsumOffset: 16, HdrLen: 74, InnerNetwork: 22}},
		"TCP over IPv6": {frametest.TCP6(frametest.Opts{Payload: 2781}), 1390, 0,
			header.VirtioNet{Flags: 1, GSOType: header.GSOTCPv6, GSOSize: 1390, CsumStart: 62, CsumOffset: 16, HdrLen: 82, InnerNetwork: 22}},
		"CWR": {frametest.TCP4(frametest.Opts{Payload: 9000, Flags: header.TCPAck | header.TCPCwr}), 1000, 0,
			header.VirtioNet{Flags: 1, GSOType: header.GSOTCPv4 | header.GSOECN, GSOSize: 1000, CsumStart: 42, CsumOffset: 16, HdrLen: 62, InnerNetwork: 22}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			w.uncut()
			h, b := c.b.Offload(c.size)
			want, err := frametest.Segments(b, c.size)
			if err != nil {
				t.Fatal(err)
			}
			f := fromTAP(h, append(bytes.Clone(b), "padding"...))
			w.egress.Process([]frame.Frame{f}, 1)
			if n := len(w.egress.Sends); n != 1 {
				t.Fatalf("%d sends", n)
			}
			s := &w.egress.Sends[0]
			if !s.Whole || s.Offload != c.want || s.Frames != len(want) || s.TOS != c.tos {
				t.Errorf("send %+v, want %+v", s, c.want)
			}
			if !bytes.Equal(w.egress.Pieces[s.First], encap(testVNI, b)) {
				t.Error("it is not the superframe that came, with its checksum left to be completed")
			}
			got := w.segments(t, s)
			if len(got) != len(want) {
				t.Fatalf("%d segments, want %d", len(got), len(want))
			}
			bytesOut := 0
			for i := range got {
				bytesOut += len(got[i])
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("segment %d differs", i)
				}
			}
			if n := int(w.net.Counters.UnderlayOut.Bytes.Load()); n != bytesOut {
				t.Errorf("%d bytes counted, %d sent", n, bytesOut)
			}
			w.checkLaw(t)
		})
	}
}

// What cannot go whole is cut, and goes by the same port.
func TestEgressCutsWhatCannotGoWhole(t *testing.T) {
	big := frametest.Opts{Payload: 9000}
	tagged := big
	tagged.VLANs = []uint16{7}
	options := frametest.Ethernet(frametest.MAC(2), frametest.MAC(1)).IPv4(frametest.IP4(1), frametest.IP4(2), func(l *layers.IPv4) {
		l.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
	}).TCP(1, 2).Payload(9000)
	extension := frametest.Ethernet(frametest.MAC(2), frametest.MAC(1)).IPv6(frametest.IP6(1), frametest.IP6(2)).
		Extension(60, []byte{1, 4, 0, 0, 0, 0}).TCP(1, 2).Payload(9000)
	long := big
	long.Payload = wholeLimit - header.VXLANLen - header.EthernetLen - header.IPv4MinLen - header.TCPMinLen + 1
	for name, c := range map[string]struct {
		b    *frametest.Builder
		size int
	}{
		"UDP":               {frametest.UDP4(big), 1000},
		"VLAN tag":          {frametest.TCP4(tagged), 1000},
		"IP options":        {options, 1000},
		"extension headers": {extension, 1000},
		"too long":          {frametest.TCP4(long), 1398},
		"one segment":       {frametest.TCP4(frametest.Opts{Payload: 1000}), 1000},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, full, peerA)
			w.uncut()
			h, b := c.b.Offload(c.size)
			got := w.send(t, fromTAP(h, b))
			want, err := frametest.Segments(b, c.size)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want) {
				t.Fatalf("%d datagrams, want %d", len(got), len(want))
			}
			for _, s := range w.egress.Sends {
				if s.Whole {
					t.Errorf("it goes whole: %+v", s)
				}
			}
			w.checkLaw(t)
		})
	}
}

// Only to whom it may go whole it does, and copies to several do not disturb each other.
func TestEgressMixesWholeAndCut(t *testing.T) {
	w := newWorld(t, full, peerA, peerB, peerC)
	w.egress.Whole = make([]int, w.id(t, peerB)+1) // peerC is behind its end
	w.egress.Whole[w.id(t, peerB)] = wholeLimit
	w.setPath(t, peerB, 1000)
	h, b := frametest.TCP4(frametest.Opts{Payload: 9000, DstMAC: addr.Broadcast}).Offload(1398)
	w.egress.Process([]frame.Frame{fromTAP(h, b)}, 1)
	by := map[fdb.VTEPID][][]byte{}
	for i := range w.egress.Sends {
		s := &w.egress.Sends[i]
		if s.Whole != (s.VTEP == w.id(t, peerB)) {
			t.Fatalf("send %+v", s)
		}
		if s.Whole {
			by[s.VTEP] = w.segments(t, s)
			continue
		}
		w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
		for _, d := range wire(w.egress, i) {
			by[s.VTEP] = append(by[s.VTEP], d[header.VXLANLen:])
		}
	}
	for peer, room := range map[fdb.VTEPID]int{w.id(t, peerA): 1464, w.id(t, peerB): 964, w.id(t, peerC): 1444} {
		var payload []byte
		for _, f := range by[peer] {
			if len(f) > room {
				t.Errorf("to %d: a frame of %d bytes, and there is room for %d", peer, len(f), room)
			}
			payload = append(payload, frametest.Check(t, f).Payload...)
		}
		if !bytes.Equal(payload, frametest.Pattern(9000)) {
			t.Errorf("to %d: other payload, %d bytes", peer, len(payload))
		}
	}
	w.checkLaw(t)
}

// TestWholeFramesAreConserved sends anything and looks that what goes whole is sound and that all of it is counted.
func TestWholeFramesAreConserved(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t, full, peerA, peerB)
		w.uncut()
		w.net.FDB.SetStatic(frametest.MAC(2), w.id(t, peerA))
		if rapid.Bool().Draw(r, "limited") {
			w.net.Limit = NewLimiter(100, 5)
		}
		for range rapid.IntRange(1, 4).Draw(r, "batches") {
			var batch []frame.Frame
			for range rapid.IntRange(1, 6).Draw(r, "frames") {
				batch = append(batch, anyFrame(r))
			}
			w.egress.Process(batch, 1)
			for i := range w.egress.Sends {
				s := &w.egress.Sends[i]
				w.egress.Report(s, s.Frames, s.Bytes, outcome(r, SendNoBuffer, SendFailed))
				if !s.Whole {
					continue
				}
				_, f, err := frametest.Datagram(w.egress.Pieces[s.First])
				if err != nil {
					r.Fatal(err)
				}
				cut, err := frametest.Segments(f, int(s.Offload.GSOSize))
				if err != nil || len(cut) != s.Frames || len(cut) < 2 {
					r.Fatalf("%d segments, want %d: %v", len(cut), s.Frames, err)
				}
				n := 0
				for _, c := range cut {
					n += len(c)
				}
				if n != s.Bytes || len(cut[0]) != int(s.Offload.HdrLen)-header.VXLANLen+int(s.Offload.GSOSize) {
					r.Fatalf("%d bytes, the first segment %d: %+v", n, len(cut[0]), s)
				}
			}
			for _, a := range w.egress.Answers {
				w.egress.ReportAnswer(a, NotDropped)
			}
		}
		w.checkLaw(r)
	})
}

func TestWholeAllocatesNothing(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.uncut()
	h, b := frametest.TCP4(frametest.Opts{Payload: 60000}).Offload(1398)
	batch := []frame.Frame{fromTAP(h, b), fromTAP(h, b)}
	if n := testing.AllocsPerRun(100, func() {
		w.egress.Process(batch, 1)
		for i := range w.egress.Sends {
			s := &w.egress.Sends[i]
			w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
		}
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
	if len(w.egress.Sends) != 2 || !w.egress.Sends[0].Whole {
		t.Errorf("sends %+v", w.egress.Sends)
	}
}

func BenchmarkEgressWhole(b *testing.B) {
	w := newWorld(b, full, peerA)
	w.uncut()
	h, f := frametest.TCP4(frametest.Opts{Payload: 61512}).Offload(1398)
	batch := []frame.Frame{fromTAP(h, f)}
	b.SetBytes(61512)
	b.ReportAllocs()
	for b.Loop() {
		w.egress.Process(batch, 1)
	}
}
