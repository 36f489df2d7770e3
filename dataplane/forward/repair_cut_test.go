package forward

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

const allFlags = header.TCPAck | header.TCPPsh | header.TCPFin | header.TCPCwr | header.TCPEce

// A TCP segment that does not fit is cut, whether the superframe or the single segment is too large, and whatever its
// checksum is: the segments are those that its sender would have made.
func TestTCPIsCutToThePath(t *testing.T) {
	timestamps := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.Timestamps(7, 8)}
	for name, o := range map[string]ft.Opts{
		"plain":      {},
		"all flags":  {Flags: allFlags},
		"timestamps": {Options: timestamps, Seq: 0xffffff00},
		"tagged":     {VLANs: []uint16{7}, TOS: 3},
		"may be cut": {Fragmentable: true},
	} {
		for _, v6 := range []bool{false, true} {
			for _, path := range []mtu.PathMTU{1280, 1281, 1337, 1400, 576} {
				tcp := ft.TCP4
				if v6 {
					tcp = ft.TCP6
				}
				room := int(path) - 50 + 14
				// Single segments of the full size.
				o.Payload = 1398
				b := tcp(o)
				hlen := len(b.Bytes()) - 1398
				want := mustSegment(t, b, room-hlen)
				for kind, f := range map[string]frame.Frame{"complete": plain(b.Bytes()), "partial": offloaded(b, 0)} {
					w := narrow(t, path)
					w.egress.Process(nil, 1)
					got := inner(t, room, w.send(t, f))
					t.Logf("%s, IPv6 %v, path %d, %s: %d segments", name, v6, path, kind, len(got))
					same(t, got, want...)
					w.wantRepaired(t, repaired{Split: 1})
					w.checkLaw(t)
				}
				// Superframes.
				o.Payload = 20000
				b = tcp(o)
				w := narrow(t, path)
				got := inner(t, room, w.send(t, offloaded(b, 1398)))
				same(t, got, mustSegment(t, b, room-hlen)...)
				w.wantRepaired(t, repaired{Resegmented: 1})
				w.checkLaw(t)
			}
		}
	}
}

// What fits is left as it is, to the byte.
func TestWhatFitsIsLeftAlone(t *testing.T) {
	w := narrow(t, 1400)
	room := 1400 - 50 + 14
	for _, b := range []*ft.Builder{
		ft.TCP4(ft.Opts{Payload: room - 54}), ft.TCP6(ft.Opts{Payload: room - 74}), ft.UDP4(ft.Opts{Payload: room - 42, Fragmentable: true}),
		ft.UDP4(ft.Opts{Payload: room - 46, VLANs: []uint16{1}}),
	} {
		same(t, inner(t, room, w.send(t, plain(b.Bytes()))), b.Bytes())
	}
	for _, b := range []*ft.Builder{ft.TCP4(ft.Opts{Payload: 800}), ft.UDP6(ft.Opts{Payload: 800})} { // superframes by name only
		same(t, inner(t, room, w.send(t, offloaded(b, 1398))), b.Bytes())
	}
	same(t, inner(t, room, w.send(t, offloaded(ft.TCP4(ft.Opts{Payload: 9000}), room-54))), mustSegment(t, ft.TCP4(ft.Opts{Payload: 9000}), room-54)...)
	w.wantRepaired(t, repaired{})
	w.checkLaw(t)
}

// Padding is no reason to cut a packet, or to refuse it.
func TestPaddingIsCutOff(t *testing.T) {
	for _, b := range []*ft.Builder{ft.UDP4(ft.Opts{Payload: 1200}), ft.TCP6(ft.Opts{Payload: 1000})} {
		w := narrow(t, 1300)
		f := b.Bytes()
		same(t, inner(t, 1264, w.send(t, plain(append(bytes.Clone(f), make([]byte, 400)...)))), f)
		w.wantRepaired(t, repaired{})
		if got := w.net.Counters.UnderlayOut.Bytes.Load(); got != uint64(len(f)) {
			t.Errorf("%d bytes counted, %d sent", got, len(f))
		}
		w.checkLaw(t)
	}
}

// A segment that is too large and whose checksum is wrong must not become two with checksums that are right.
func TestSplitDoesNotMakeGoodOfBad(t *testing.T) {
	w := narrow(t, 1300)
	f := ft.TCP4(ft.Opts{Payload: 1398}).Bytes()
	f[700] ^= 1
	if got := w.send(t, plain(f)); len(got) != 0 {
		t.Errorf("%d datagrams", len(got))
	}
	w.wantDropped(t, BadChecksum, 1)
	w.wantRepaired(t, repaired{})
	w.checkLaw(t)
}

// A superframe that a device cuts is bounded by the path too, and one that is signed keeps its segments.
func TestWholeSuperframesKeepToThePath(t *testing.T) {
	md5 := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.MD5()}
	for name, c := range map[string]struct {
		options  []layers.TCPOption
		path     mtu.PathMTU
		size     int // 0: nothing is sent
		repaired repaired
	}{
		"wide":           {nil, 1500, 1300, repaired{}},
		"narrow":         {nil, 1300, 1300 - 50 - 40, repaired{Resegmented: 1}},
		"wide, signed":   {md5, 1500, 1300, repaired{}},
		"narrow, signed": {md5, 1300, 0, repaired{Told: 1}},
	} {
		w := narrow(t, c.path)
		w.egress.Whole = []int{65000}
		b := ft.TCP4(ft.Opts{Payload: 26000, Options: c.options})
		w.egress.Process([]frame.Frame{offloaded(b, 1300)}, 1e9)
		for i := range w.egress.Sends {
			s := &w.egress.Sends[i]
			if !s.Whole || int(s.Offload.GSOSize) != c.size || s.Frames != (26000+c.size-1)/c.size {
				t.Errorf("%s: %+v, want segments of %d bytes", name, s, c.size)
			}
			w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
		}
		if (len(w.egress.Sends) == 0) != (c.size == 0) {
			t.Errorf("%s: %d sends", name, len(w.egress.Sends))
		}
		w.answers()
		w.wantRepaired(t, c.repaired)
		w.checkLaw(t)
	}
}
