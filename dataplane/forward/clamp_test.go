package forward

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// synOf builds a SYN that offers this MSS.
func synOf(o ft.Opts, v6 bool, mss uint16) *ft.Builder {
	if o.Flags == 0 {
		o.Flags = header.TCPSyn
	}
	o.Options = []layers.TCPOption{ft.MSS(mss), {OptionType: 4, OptionLength: 2}, ft.Timestamps(9, 0), ft.Nop(), {OptionType: 3, OptionLength: 3, OptionData: []byte{7}}}
	if v6 {
		return ft.TCP6(o)
	}
	return ft.TCP4(o)
}

// clampCases say what becomes of an MSS of 1460.
var clampCases = map[string]struct {
	path  mtu.PathMTU
	mtu   mtu.OverlayMTU
	fixed mtu.MSS
	v6    bool
	vlans []uint16
	want  uint16
}{
	"the path":                   {path: 1400, mtu: 1450, want: 1400 - 50 - 40},
	"the path, IPv6 inside":      {path: 1400, mtu: 1450, v6: true, want: 1400 - 50 - 60},
	"the network":                {path: 1500, mtu: 1380, want: 1340},
	"neither":                    {path: 9000, mtu: 8950, want: 1460},
	"network without an MTU":     {path: 1400, want: 1310},
	"a tag takes room":           {path: 1400, mtu: 1450, vlans: []uint16{5}, want: 1306},
	"fixed":                      {path: 1500, mtu: 1450, fixed: 1200, want: 1200},
	"fixed above the path":       {path: 1400, mtu: 1450, fixed: 1420, want: 1310},
	"fixed where all would pass": {path: 9000, mtu: 8950, fixed: 1300, want: 1300},
	"no room":                    {path: 80, want: 1460},
}

func TestEgressClamps(t *testing.T) {
	for name, c := range clampCases {
		for _, flags := range []uint8{header.TCPSyn, header.TCPSyn | header.TCPAck} {
			for _, payload := range []int{0, 9} {
				w := narrow(t, c.path)
				w.net.SetMTU(c.mtu)
				w.net.SetMSS(c.fixed)
				if w.net.MSS() != c.fixed {
					t.Fatal("not what was set")
				}
				o := ft.Opts{Flags: flags, VLANs: c.vlans, Payload: payload}
				b, want := synOf(o, c.v6, 1460), synOf(o, c.v6, c.want).Bytes()
				frames := []frame.Frame{plain(b.Bytes()), offloaded(b, 0)}
				if payload > 0 {
					frames = append(frames, offloaded(b, 1398)) // a superframe of one segment
				}
				n := uint64(0)
				for i, f := range frames {
					got := w.send(t, f)
					w.answers()
					if c.path < 100 {
						continue // it does not even fit
					}
					if len(got) != 1 || !bytes.Equal(got[0][header.VXLANLen:], want) {
						t.Errorf("%s, frame %d\n got % x\nwant % x", name, i, got, want)
					}
					if c.want != 1460 {
						n++
					}
				}
				w.wantRepaired(t, repaired{Clamped: n})
				w.checkLaw(t)
			}
		}
	}
}

func TestIngressClamps(t *testing.T) {
	for name, c := range clampCases {
		for _, tap := range []Offload{full, {}} {
			w := newWorld(t, tap, peerA)
			w.setPath(t, peerA, c.path)
			w.net.SetMTU(c.mtu)
			w.net.SetMSS(c.fixed)
			o := ft.Opts{Flags: header.TCPSyn | header.TCPAck, VLANs: c.vlans, Payload: 3}
			b, wanted := synOf(o, c.v6, 1460), synOf(o, c.v6, c.want)
			for partial, f := range map[bool][]byte{false: b.Bytes(), true: b.Partial()} {
				want := wanted.Bytes()
				if partial && tap.Checksum {
					want = wanted.Partial()
				}
				items := w.receive(Received{From: peerA, Data: encap(testVNI, f)})
				if len(items) != 1 || !bytes.Equal(bytes.Join(items[0].Pieces, nil), want) {
					t.Errorf("%s, partial %v\n got % x\nwant % x", name, partial, items[0].Pieces, want)
				}
			}
			n := uint64(2)
			if c.want == 1460 {
				n = 0
			}
			w.wantRepaired(t, repaired{Clamped: n})
			w.checkLaw(t)
		}
	}
}

// A SYN that goes to all peers has one MSS in all copies, as they share memory: that of the narrowest path.
func TestFloodedSYN(t *testing.T) {
	w := newWorld(t, full, peerA, peerB, peerC)
	w.setPath(t, peerA, 1400)
	w.setPath(t, peerB, 1337)
	for i, d := range w.send(t, plain(synOf(ft.Opts{DstMAC: ft.MAC(9)}, false, 1460).Bytes())) {
		if want := synOf(ft.Opts{DstMAC: ft.MAC(9)}, false, 1337-50-40).Bytes(); !bytes.Equal(d[header.VXLANLen:], want) {
			t.Errorf("copy %d\n got % x\nwant % x", i, d[header.VXLANLen:], want)
		}
	}
	w.wantRepaired(t, repaired{Clamped: 1})
	w.checkLaw(t)
}

// A SYN is never cut: a superframe of several segments that says that it is one is a lie.
func TestSYNOfSeveralSegments(t *testing.T) {
	w := narrow(t, 1500)
	w.send(t, offloaded(synOf(ft.Opts{Payload: 3000}, false, 1460), 1398))
	w.wantDropped(t, BadOffload, 1)
	w.checkLaw(t)
}

// What is not for the clamp goes through as it came.
func TestNothingElseIsClamped(t *testing.T) {
	w := narrow(t, 1300)
	ao := ft.TCP4(ft.Opts{Flags: header.TCPSyn, Options: []layers.TCPOption{ft.MSS(1460), ft.AO()}})
	for _, b := range []*ft.Builder{
		synOf(ft.Opts{Flags: header.TCPAck}, false, 1460), synOf(ft.Opts{Flags: header.TCPRst | header.TCPAck}, true, 1460),
		synOf(ft.Opts{}, false, 1210), synOf(ft.Opts{}, true, 0), ao, ft.TCP4(ft.Opts{Flags: header.TCPSyn}),
	} {
		same(t, inner(t, 1264, w.send(t, plain(b.Bytes()))), b.Bytes())
	}
	w.wantRepaired(t, repaired{})
}

// Nothing is clamped that does not get through: a stranger's SYN, or one whose checksum is wrong.
func TestDroppedSYNsAreNotCounted(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.setPath(t, peerA, 1300)
	bad := synOf(ft.Opts{Payload: 4}, false, 1460).Bytes()
	bad[len(bad)-1] ^= 1
	w.receive(Received{From: peerB, Data: encap(testVNI, synOf(ft.Opts{}, false, 1460).Bytes())}, Received{From: peerA, Data: encap(testVNI, bad)})
	w.wantRepaired(t, repaired{})
	if w.dropped(VTEPUnknown) != 1 || w.dropped(BadChecksum) != 1 {
		t.Error("not dropped")
	}
	w.checkLaw(t)
}

// probeDatagram is a path probe as far as the forwarding looks at it.
func probeDatagram(n int) []byte {
	b := append([]byte{0, 'o', 'v', 'l', 'p', 'r', 'b', '1', 1}, ft.Pattern(n)...)
	return b[:n]
}

// Probes are handed on, from whomever they come, each of a train alone, and are neither frames nor drops.
func TestProbesAreHandedOn(t *testing.T) {
	w := newWorld(t, full, peerA)
	stranger := netip.MustParseAddr("203.0.113.9")
	data := encap(testVNI, ft.UDP4(ft.Opts{Payload: 72 - 8 - 42}).Bytes())
	a, b, c := probeDatagram(1400), probeDatagram(72), probeDatagram(72)
	b[20], c[30] = 1, 2
	items := w.receive(
		Received{From: peerA, Data: a},
		train(stranger, b, c, probeDatagram(9)),
		train(peerA, data, c, data),
		train(peerA, b, data),
	)
	want := []ProbeDatagram{{peerA, a}, {stranger, b}, {stranger, c}, {stranger, probeDatagram(9)}, {peerA, c}, {peerA, b}}
	if len(w.ingress.Probes) != len(want) {
		t.Fatalf("%d probes, want %d", len(w.ingress.Probes), len(want))
	}
	for i, p := range w.ingress.Probes {
		if p.Remote != want[i].Remote || !bytes.Equal(p.Payload, want[i].Payload) || cap(p.Payload) != len(p.Payload) {
			t.Errorf("probe %d: %v, %d bytes of %d", i, p.Remote, len(p.Payload), cap(p.Payload))
		}
	}
	frames := 0
	for _, it := range items {
		frames += it.Frames
	}
	if frames != 3 || w.ingress.Datagrams != 9 || w.stray.Sum() != 0 {
		t.Errorf("%d frames of %d datagrams, %d dropped", frames, w.ingress.Datagrams, w.stray.Sum())
	}
	w.checkLaw(t)
	if w.receive(); len(w.ingress.Probes) != 0 {
		t.Error("the probes of the last batch are still there")
	}
}

// A probe is whatever begins like one. What is in it is for others to look at, even if it looks like a superframe.
func TestProbeThatLooksLikeASuperframe(t *testing.T) {
	w := newWorld(t, full, peerA)
	b := append(probeDatagram(8), ft.TCP4(ft.Opts{Payload: 1400}).Bytes()...)
	for _, data := range [][]byte{b, append(bytes.Clone(b), 0)} { // as long as it says, and longer
		w.receive(Received{From: peerA, Data: data, Stride: 500})
		if p := w.ingress.Probes; len(p) != 1 || len(p[0].Payload) != 500 || w.dropped(VXLANBadTrain) != 0 {
			t.Errorf("%d probes, want that in front; %d dropped as a bad train", len(p), w.dropped(VXLANBadTrain))
		}
	}
	w.checkLaw(t)
}

// What is not quite a probe is dropped for the reason for which it always was.
func TestWhatIsNoProbe(t *testing.T) {
	w := newWorld(t, full, peerA)
	almost := probeDatagram(100)
	almost[7] = '2'
	w.receive(Received{From: peerA, Data: almost})
	w.wantDropped(t, VXLANBadFlags, 1)
	w.receive(Received{From: peerA, Data: probeDatagram(7)})
	if w.dropped(VXLANTruncated) != 1 || len(w.ingress.Probes) != 0 {
		t.Error("half a header is no probe")
	}
}

// A VTEP is called by one name, reached at one address, and heard from several.
func TestVTEPsMove(t *testing.T) {
	at := netip.MustParseAddr
	tables := NewTables()
	a, b := tables.AddVTEP(peerA, 1500), tables.AddVTEP(peerB, 1500)
	far, six, seen := at("198.51.100.1"), at("2001:db8::1"), at("203.0.113.1")
	tables.SetVTEP(a, VTEPAddress{Addr: six, Path: 1400, Accept: []netip.Addr{far, seen, peerB}})
	v := tables.VTEP(a)
	if v.Name != peerA || v.Addr != six || v.Path != 1400 || v.MaxFrame != mtu.MaxFrame(1400, mtu.IPv6) {
		t.Errorf("%+v", v)
	}
	want := func(from string, id int) {
		t.Helper()
		if got, ok := tables.Lookup(at(from)); ok != (id >= 0) || ok && int(got) != id {
			t.Errorf("%s is VTEP %d (%v), want %d", from, got, ok, id)
		}
	}
	want("192.0.2.1", 0) // its name
	want("2001:db8::1", 0)
	want("198.51.100.1", 0)
	want("203.0.113.1", 0)
	want("192.0.2.2", 1) // the name of b, whatever a accepts
	tables.SetVTEP(b, VTEPAddress{Addr: peerB, Path: 1500, Accept: []netip.Addr{far, peerA}})
	want("198.51.100.1", 0) // a was first
	want("192.0.2.1", 0)
	tables.SetVTEP(b, VTEPAddress{Addr: far, Path: 1500})
	want("198.51.100.1", 1) // b is reached there, and a only claims it
	tables.SetVTEP(b, VTEPAddress{Addr: peerB, Path: 1500, Accept: []netip.Addr{far, peerA}})
	tables.SetVTEP(a, VTEPAddress{Addr: peerA, Path: 1500})
	want("198.51.100.1", 1)
	want("203.0.113.1", -1)
	if c := tables.AddVTEP(far, 1300); c == b {
		t.Error("an address that another VTEP accepts cannot become a name")
	}
	want("198.51.100.1", 2)
	if tables.AddVTEP(peerA, 99) != a || tables.VTEP(a).Path != 1500 {
		t.Error("a name that is known was added again")
	}
	tables.SetPath(b, 1280)
	if v := tables.VTEP(b); v.Addr != peerB || v.Path != 1280 || len(v.Accept) != 2 || v.MaxFrame != 1280-50+14 {
		t.Errorf("%+v after its path was set", v)
	}
	accept := []netip.Addr{six}
	tables.SetVTEP(b, VTEPAddress{Addr: peerB, Path: 1280, Accept: accept})
	accept[0] = seen
	if tables.VTEP(b).Accept[0] != six {
		t.Error("the caller's slice is kept")
	}
	tables.SetVTEP(b, VTEPAddress{}) // nowhere for now
	if v := tables.VTEP(b); v.Addr.IsValid() || v.MaxFrame != 0 {
		t.Errorf("%+v, though it is nowhere", v)
	}
	want("192.0.2.2", 1)
	if _, ok := tables.Lookup(netip.Addr{}); ok {
		t.Error("a VTEP that is nowhere is found under no address")
	}
}

// Frames are taken from every address that belongs to a VTEP, and from no other; what they teach names the VTEP.
func TestAcceptedSources(t *testing.T) {
	w := newWorld(t, full, peerA, peerB)
	far := netip.MustParseAddr("198.51.100.1")
	w.tables.SetVTEP(w.id(t, peerA), VTEPAddress{Addr: peerA, Path: 1400, Accept: []netip.Addr{far}})
	syn := synOf(ft.Opts{SrcMAC: ft.MAC(7)}, false, 1460).Bytes()
	if items := w.receive(Received{From: far, Data: encap(testVNI, syn)}); len(items) != 1 {
		t.Fatal("dropped")
	}
	w.wantRepaired(t, repaired{Clamped: 1}) // by the path of a
	if id, ok := w.net.FDB.Lookup(ft.MAC(7)); !ok || id != w.id(t, peerA) || w.tables.VTEP(id).Heard() != 2e9 {
		t.Error("not learned, or not heard")
	}
	w.tables.SetVTEP(w.id(t, peerA), VTEPAddress{Addr: peerA, Path: 1400})
	w.receive(Received{From: far, Data: encap(testVNI, syn)})
	w.wantDropped(t, VTEPUnknown, 1)
}

// Every datagram for a VTEP counts as traffic to it, taken by the kernel or not; what never left for it does not.
func TestSent(t *testing.T) {
	w := narrow(t, 1400)
	a, b := w.id(t, peerA), w.id(t, peerB)
	w.send(t, offloaded(ft.TCP4(ft.Opts{Payload: 13980}), 1300), plain(ft.UDP4(ft.Opts{Payload: 1422}).Bytes()))
	if n := w.tables.VTEP(a).Sent(); n != 11 {
		t.Errorf("%d datagrams, want 11", n)
	}
	w.egress.Process([]frame.Frame{plain(ft.UDP4(ft.Opts{DstMAC: addr.Broadcast}).Bytes())}, 1)
	for i := range w.egress.Sends {
		s := &w.egress.Sends[i]
		w.egress.Report(s, s.Frames, s.Bytes, SendUnreachable)
	}
	w.tables.SetPath(a, 1300) // the count stays
	if n, m := w.tables.VTEP(a).Sent(), w.tables.VTEP(b).Sent(); n != 12 || m != 1 {
		t.Errorf("%d and %d datagrams, want 12 and 1", n, m)
	}
	if (VTEP{}).Sent() != 0 {
		t.Error("nobody sends to nowhere")
	}
}
