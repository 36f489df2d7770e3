package forward

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// repaired are the counters of what was done for narrow paths.
type repaired struct{ Clamped, Told, Limited, Fragmented, Resegmented, Split uint64 }

func (w *world) wantRepaired(t testing.TB, want repaired) {
	t.Helper()
	c := w.net.Counters
	got := repaired{c.MSSClamped.Load(), c.ICMPSent.Load(), c.ICMPLimited.Load(), c.Fragmented.Load(), c.Resegmented.Load(), c.Split.Load()}
	if got != want {
		t.Errorf("repairs %+v, want %+v", got, want)
	}
}

// narrow is a world whose station 2 is behind peerA, to which the path carries packets of that many bytes. What is
// flooded goes to peerB too.
func narrow(t testing.TB, path mtu.PathMTU) *world {
	w := newWorld(t, full, peerA, peerB)
	w.net.FDB.SetStatic(ft.MAC(2), w.id(t, peerA))
	w.setPath(t, peerA, path)
	return w
}

func offloaded(b *ft.Builder, size int) frame.Frame {
	h, f := b.Offload(size)
	return fromTAP(h, f)
}

// inner takes the VXLAN headers off and checks that the frames are right and at most room bytes long.
func inner(t testing.TB, room int, datagrams [][]byte) (out [][]byte) {
	t.Helper()
	for _, d := range datagrams {
		vni, f, err := ft.Datagram(d)
		if err != nil || vni != testVNI {
			t.Fatalf("datagram: %v, VNI %v", err, vni)
		}
		if len(f) > room {
			t.Errorf("a frame of %d bytes where %d fit", len(f), room)
		}
		ft.Check(t, f)
		out = append(out, f)
	}
	return out
}

// answers returns what the egress half has for the TAP, and reports it as written.
func (w *world) answers() (out [][]byte) {
	for _, a := range w.egress.Answers {
		out = append(out, bytes.Clone(a))
		w.egress.ReportAnswer(a, NotDropped)
	}
	return out
}

func same(t testing.TB, got [][]byte, want ...[]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d frames, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("frame %d\n got % x\nwant % x", i, got[i][:min(len(got[i]), 120)], want[i][:min(len(want[i]), 120)])
		}
	}
}

func mustSegment(t testing.TB, b *ft.Builder, size int) [][]byte {
	t.Helper()
	out, err := ft.Segments(b.Bytes(), size)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A flooded frame goes to each peer as its path wants it; what goes to one does not change what goes to another.
func TestFloodOverUnequalPaths(t *testing.T) {
	for name, c := range map[string]struct {
		b        *ft.Builder
		size     int
		repaired repaired
	}{
		"TCP":                    {ft.TCP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 1398}), 0, repaired{Split: 2}},
		"superframe":             {ft.TCP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 30000}), 1398, repaired{Resegmented: 2}},
		"UDP":                    {ft.UDP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 1402, Fragmentable: true}), 0, repaired{Fragmented: 2}},
		"run of UDP, fragmented": {ft.UDP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 2800, Fragmentable: true}), 1400, repaired{Fragmented: 4}},
	} {
		w := newWorld(t, full, peerA, peerB, peerC)
		w.setPath(t, peerB, 1337)
		w.setPath(t, peerC, 1300)
		alone := map[fdb.VTEPID][][]byte{}
		for _, p := range []netip.Addr{peerA, peerB, peerC} {
			v := newWorld(t, full, p)
			v.setPath(t, p, w.tables.VTEP(w.id(t, p)).Path)
			alone[w.id(t, p)] = v.send(t, offloaded(c.b, c.size))
		}
		w.egress.Process([]frame.Frame{offloaded(c.b, c.size)}, 1e9)
		got := map[fdb.VTEPID][][]byte{}
		for i := range w.egress.Sends {
			s := &w.egress.Sends[i]
			got[s.VTEP] = append(got[s.VTEP], wire(w.egress, i)...)
			w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
		}
		for id, want := range alone {
			t.Run(name, func(t *testing.T) { same(t, got[id], want...) })
		}
		w.wantRepaired(t, c.repaired)
		w.checkLaw(t)
	}
}

// Where there is no room for the headers of all segments or fragments, they are dropped, every one.
func TestRepairWithoutRoomForHeaders(t *testing.T) {
	single := ft.UDP4(ft.Opts{SrcPort: 7, Payload: 1400, Fragmentable: true}).Bytes()
	for _, super := range []*ft.Builder{ft.UDP4(ft.Opts{Payload: 65507, Fragmentable: true}), ft.TCP4(ft.Opts{Payload: 65000})} {
		w := narrow(t, 576)
		var batch []frame.Frame
		for range 130 {
			batch = append(batch, offloaded(super, 1000))
		}
		got := w.send(t, append(batch, plain(single))...)
		if w.dropped(GSOUnsupported) == 0 {
			t.Error("the arena was never used up: the test tests nothing")
		}
		// What was begun and could not be ended has left its room to others.
		if b, err := ft.Reassemble(inner(t, 540, got[len(got)-3:])); err != nil || !bytes.Equal(b, single) {
			t.Errorf("the last packet is not there: %v", err)
		}
		w.checkLaw(t)
	}
}

// A path so narrow that a superframe would become thousands of frames is as good as none.
func TestTooManyPieces(t *testing.T) {
	md5 := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.MD5(), ft.Nop(), ft.Nop(), ft.Timestamps(1, 2)}
	for name, c := range map[string]struct {
		b    *ft.Builder
		size int
		path mtu.PathMTU
		told int
	}{
		"TCP":                          {ft.TCP4(ft.Opts{Payload: 60000}), 1398, 124, 1},
		"fragments":                    {ft.UDP4(ft.Opts{Payload: 60000, Fragmentable: true}), 100, 124, 0},
		"no room for the first header": {ft.TCP4(ft.Opts{Payload: 9000, Fragmentable: true, Options: md5}), 1398, 98, 0},
	} {
		w := narrow(t, c.path)
		if got := w.send(t, offloaded(c.b, c.size)); len(got) != 0 {
			t.Errorf("%s: %d frames", name, len(got))
		}
		if got := w.answers(); len(got) != c.told {
			t.Errorf("%s: %d errors", name, len(got))
		}
		w.wantDropped(t, ExceedsPathMTU, w.net.Counters.TAPIn.Frames.Load())
		w.checkLaw(t)
	}
}

// VTEPs whose paths are equal share what a flooded frame was cut into.
func TestCutOnce(t *testing.T) {
	for _, f := range []frame.Frame{
		offloaded(ft.TCP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 1398}), 0), offloaded(ft.TCP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 13980}), 1398),
		offloaded(ft.UDP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 1398, Fragmentable: true}), 0),
	} {
		w := newWorld(t, full, peerA, peerB)
		w.setPath(t, peerA, 1300)
		w.setPath(t, peerB, 1300)
		w.egress.Process([]frame.Frame{f}, 1)
		if s := w.egress.Sends; len(s) != 2 || s[0].First != s[1].First || s[0].End != s[1].End {
			t.Errorf("%+v", s)
		}
	}
}

// tooLarge returns frames of all the kinds that a narrow path makes something else of.
func tooLarge() []frame.Frame {
	md5 := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.MD5()}
	return []frame.Frame{
		plain(ft.TCP4(ft.Opts{Payload: 1398}).Bytes()), plain(ft.TCP6(ft.Opts{Payload: 1378}).Bytes()),
		plain(ft.UDP4(ft.Opts{Payload: 1400}).Bytes()), plain(ft.UDP6(ft.Opts{Payload: 1380}).Bytes()),
		plain(ft.UDP4(ft.Opts{Payload: 1400, Fragmentable: true}).Bytes()), plain(ft.TCP4(ft.Opts{Payload: 1300, Options: md5}).Bytes()),
		plain(synOf(ft.Opts{}, false, 1460).Bytes()), plain(synOf(ft.Opts{}, true, 1440).Bytes()),
		offloaded(ft.UDP4(ft.Opts{Payload: 14000, Fragmentable: true}), 1400), offloaded(ft.UDP4(ft.Opts{Payload: 14000}), 1400),
		offloaded(ft.TCP4(ft.Opts{Payload: 30000, Options: md5, Fragmentable: true}), 1378),
		offloaded(ft.TCP6(ft.Opts{Payload: 30000, Options: md5}), 1358), offloaded(ft.TCP4(ft.Opts{Payload: 30000}), 1398),
		plain(ft.Ping4(ft.Opts{Payload: 1400}).Bytes()), plain(ft.Ping6(ft.Opts{Payload: 1300}).Bytes()),
	}
}

// BenchmarkChecks measures what every superframe pays for the clamp and the repairs when there is nothing to do: is it a
// SYN, do its segments fit. The headers are in the cache, as they are when the frame gets there.
func BenchmarkChecks(b *testing.B) {
	w := narrow(b, 1500)
	f := offloaded(ft.TCP4(ft.Opts{Payload: 61512, Options: []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(1, 2)}}), 1398)
	e := w.egress
	e.Process([]frame.Frame{f}, 1)
	id, size := w.id(b, peerA), 1386
	bytes := f.Bytes()
	for b.Loop() {
		room := e.view.vteps[id].MaxFrame
		e.clamp(bytes, room)
		if !fits(&e.p, size, room) {
			b.Fatal("does not fit")
		}
	}
}
