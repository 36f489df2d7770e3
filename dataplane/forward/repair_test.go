package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/icmperr"
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

// toldTo checks that there is one answer, an ICMP error about b, with the MTU of the path.
func toldTo(t testing.TB, answers [][]byte, b []byte, path int) {
	t.Helper()
	if len(answers) != 1 {
		t.Fatalf("%d answers, want an ICMP error", len(answers))
	}
	p, q := ft.Check(t, answers[0]), ft.Check(t, b)
	if addr.MAC(p.Ethernet.DstMAC) != addr.MAC(q.Ethernet.SrcMAC) || addr.MAC(p.Ethernet.SrcMAC) != addr.MAC(q.Ethernet.DstMAC) {
		t.Errorf("from %v to %v", p.Ethernet.SrcMAC, p.Ethernet.DstMAC)
	}
	m, quoted := 0, p.Payload
	if q.IPv4 != nil {
		if p.ICMP == nil || p.ICMP.TypeCode != layers.CreateICMPv4TypeCode(3, 4) {
			t.Fatalf("not the error: %+v", p)
		}
		m = int(p.ICMP.Seq)
	} else {
		if p.ICMPv6 == nil || p.ICMPv6.TypeCode != layers.CreateICMPv6TypeCode(2, 0) {
			t.Fatalf("not the error: %+v", p)
		}
		m, quoted = int(binary.BigEndian.Uint32(p.Payload)), p.Payload[4:]
	}
	l3 := 14 + 4*len(q.VLANs)
	if want := path - 50 - 4*len(q.VLANs); m != want {
		t.Errorf("MTU %d, want %d", m, want)
	}
	if !bytes.HasPrefix(b[l3:], quoted) || len(quoted) < 500 {
		t.Errorf("quotes % x, of % x", quoted[:60], b[l3:l3+60])
	}
}

// What can neither be cut nor fragmented is dropped, and its sender is told, once a superframe.
func TestSenderIsTold(t *testing.T) {
	md5 := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.MD5()}
	ao := []layers.TCPOption{ft.AO()}
	for name, c := range map[string]struct {
		b      *ft.Builder
		size   int
		frames uint64
	}{
		"UDP":                     {ft.UDP4(ft.Opts{Payload: 1422}), 0, 1},
		"UDP IPv6":                {ft.UDP6(ft.Opts{Payload: 1402}), 0, 1},
		"UDP tagged":              {ft.UDP4(ft.Opts{Payload: 1422, VLANs: []uint16{7}}), 0, 1},
		"run of UDP":              {ft.UDP4(ft.Opts{Payload: 14000}), 1400, 10},
		"run of UDP IPv6":         {ft.UDP6(ft.Opts{Payload: 14000}), 1400, 10},
		"TCP with MD5":            {ft.TCP4(ft.Opts{Payload: 1300, Options: md5}), 0, 1},
		"TCP with MD5 IPv6":       {ft.TCP6(ft.Opts{Payload: 1300, Options: md5}), 0, 1},
		"TCP with AO":             {ft.TCP4(ft.Opts{Payload: 1300, Options: ao}), 0, 1},
		"superframe with MD5":     {ft.TCP4(ft.Opts{Payload: 13000, Options: md5, Flags: allFlags}), 1300, 10},
		"a superframe of one":     {ft.TCP4(ft.Opts{Payload: 1300, Options: md5, Flags: allFlags}), 1300, 1},
		"superframe with AO IPv6": {ft.TCP6(ft.Opts{Payload: 13001, Options: ao}), 1300, 11},
		"urgent TCP":              {ft.TCP4(ft.Opts{Payload: 1300, Flags: header.TCPAck | header.TCPUrg}), 0, 1},
		"SYN with data":           {ft.TCP4(ft.Opts{Payload: 1300, Flags: header.TCPSyn}), 0, 1},
		"reset with data":         {ft.TCP6(ft.Opts{Payload: 1300, Flags: header.TCPRst}), 0, 1},
		"echo":                    {ft.Ping4(ft.Opts{Payload: 1300}), -1, 1},
		"echo IPv6":               {ft.Ping6(ft.Opts{Payload: 1300}), -1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := narrow(t, 1300)
			f, first := plain(c.b.Bytes()), c.b.Bytes()
			if c.size >= 0 {
				f = offloaded(c.b, c.size)
			}
			if c.size > 0 {
				first = mustSegment(t, c.b, c.size)[0]
			}
			if got := w.send(t, f); len(got) != 0 {
				t.Errorf("%d datagrams", len(got))
			}
			toldTo(t, w.answers(), first, 1300)
			w.wantDropped(t, ExceedsPathMTU, c.frames)
			w.wantRepaired(t, repaired{Told: 1})
			w.checkLaw(t)
		})
	}
}

// On a path over IPv6, 20 bytes less are left.
func TestSenderIsToldOfAPathOverIPv6(t *testing.T) {
	w := newWorld(t, full, peerC)
	w.net.FDB.SetStatic(ft.MAC(2), w.id(t, peerC))
	b := ft.UDP4(ft.Opts{Payload: 1422}).Bytes()
	w.send(t, plain(b))
	toldTo(t, w.answers(), b, 1480)
	w.checkLaw(t)
}

// Errors are bounded. What is too much is dropped all the same, and counted.
func TestErrorsAreLimited(t *testing.T) {
	w := narrow(t, 1300)
	var batch []frame.Frame
	for range 150 {
		batch = append(batch, plain(ft.UDP4(ft.Opts{Payload: 1422}).Bytes()))
	}
	w.send(t, batch...)
	if n := len(w.answers()); n != 100 {
		t.Errorf("%d errors at once, want 100", n)
	}
	w.wantRepaired(t, repaired{Told: 100, Limited: 50})
	w.egress.Process(batch[:10], 1e9+3e6) // three milliseconds later
	if n := len(w.answers()); n != 3 {
		t.Errorf("%d errors after 3 ms, want 3", n)
	}
	w.wantDropped(t, ExceedsPathMTU, 160)
	w.checkLaw(t)
}

// One for which there is no memory in the batch is counted like one too many.
func TestErrorWithoutRoom(t *testing.T) {
	w := narrow(t, 1300)
	w.egress.arena = gso.NewArena(make([]byte, icmperr.MaxLen))
	w.send(t, plain(ft.UDP4(ft.Opts{Payload: 1422}).Bytes()), plain(ft.UDP4(ft.Opts{Payload: 1422}).Bytes()))
	if n := len(w.answers()); n != 1 {
		t.Errorf("%d errors, want 1", n)
	}
	w.wantRepaired(t, repaired{Told: 1, Limited: 1})
	w.checkLaw(t)
}

// Nobody is told of what is flooded, or could be told of it.
func TestNobodyIsTold(t *testing.T) {
	for name, b := range map[string]*ft.Builder{
		"unknown destination": ft.UDP4(ft.Opts{DstMAC: ft.MAC(9), Payload: 1422}),
		"broadcast":           ft.UDP4(ft.Opts{DstMAC: addr.Broadcast, Dst: netip.MustParseAddr("10.42.255.255"), Payload: 1422}),
		"group":               ft.UDP6(ft.Opts{DstMAC: addr.MAC{0x33, 0x33, 0, 0, 0, 1}, Dst: netip.MustParseAddr("ff02::1"), Payload: 1402}),
		"no IP":               ft.Ethernet(ft.MAC(2), ft.MAC(1), func(l *layers.Ethernet) { l.EthernetType = 0x88b5 }).Payload(1440),
		"an error":            ft.Ethernet(ft.MAC(2), ft.MAC(1)).IPv4(ft.IP4(1), ft.IP4(2)).ICMP(3, 4, 0, 900).Payload(1400),
	} {
		t.Run(name, func(t *testing.T) {
			w := narrow(t, 1300)
			w.setPath(t, peerB, 1300)
			copies := uint64(2)
			if header.Ethernet(b.Bytes()).Dst() == ft.MAC(2) {
				copies = 1
			}
			known := plain(ft.UDP4(ft.Opts{}).Bytes()) // goes to one VTEP; the next one does not
			if got := w.send(t, known, plain(b.Bytes())); len(got) != 1 {
				t.Errorf("%d datagrams, want that of the first", len(got))
			}
			if n := len(w.answers()); n != 0 {
				t.Errorf("%d answers", n)
			}
			w.wantDropped(t, ExceedsPathMTU, copies)
			w.wantRepaired(t, repaired{})
			w.checkLaw(t)
		})
	}
}

// A path that leaves no room for IP at all is nothing that a sender could keep to.
func TestHopelessPath(t *testing.T) {
	for _, path := range []mtu.PathMTU{0, 49, 50, 64, 100, 110, 117} {
		for _, b := range []*ft.Builder{ft.UDP4(ft.Opts{Payload: 1400}), ft.UDP6(ft.Opts{Payload: 1400})} {
			w := narrow(t, path)
			w.send(t, plain(b.Bytes()))
			if n := len(w.answers()); n != 0 {
				t.Errorf("path %d: %d answers", path, n)
			}
			w.wantDropped(t, ExceedsPathMTU, 1)
			w.checkLaw(t)
		}
		for _, f := range []frame.Frame{
			offloaded(ft.TCP4(ft.Opts{Payload: 60000}), 1400), offloaded(ft.UDP4(ft.Opts{Payload: 60000, Fragmentable: true}), 1400),
			plain(ft.TCP6(ft.Opts{Payload: 1400}).Bytes()), plain(ft.UDP4(ft.Opts{Payload: 1400, Fragmentable: true}).Bytes()),
		} {
			w := narrow(t, path)
			for _, d := range w.send(t, f) {
				if len(d) > max(0, int(path)-28) {
					t.Errorf("path %d: a datagram of %d bytes", path, len(d))
				}
			}
			w.answers()
			w.checkLaw(t)
		}
	}
}

// IPv4 packets whose sender allows it are fragmented, each datagram of a run too.
func TestFragmentsToThePath(t *testing.T) {
	md5 := []layers.TCPOption{ft.Nop(), ft.Nop(), ft.MD5()}
	for name, c := range map[string]struct {
		b    *ft.Builder
		size int
	}{
		"UDP":                 {ft.UDP4(ft.Opts{Payload: 1422}), 0},
		"UDP tagged":          {ft.UDP4(ft.Opts{Payload: 1422, VLANs: []uint16{7}}), 0},
		"echo":                {ft.Ping4(ft.Opts{Payload: 1422}), -1},
		"run of UDP":          {ft.UDP4(ft.Opts{Payload: 14000}), 1400},
		"run with a rest":     {ft.UDP4(ft.Opts{Payload: 4500}), 1400},
		"run, rest too large": {ft.UDP4(ft.Opts{Payload: 2790}), 1400},
		"run of two, tagged":  {ft.UDP4(ft.Opts{Payload: 2797, VLANs: []uint16{7, 8}}), 1400},
		"run of one":          {ft.UDP4(ft.Opts{Payload: 1400}), 1400},
		"run of jumbos":       {ft.UDP4(ft.Opts{Payload: 50000}), 8900},
		"signed TCP":          {ft.TCP4(ft.Opts{Payload: 1400, Options: md5}), 0},
		"signed superframe":   {ft.TCP4(ft.Opts{Payload: 9000, Options: md5}), 1398},
		"urgent TCP":          {ft.TCP4(ft.Opts{Payload: 1400, Flags: header.TCPUrg}), 0},
		"SYN with data":       {ft.TCP4(ft.Opts{Payload: 1400, Flags: header.TCPSyn}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []mtu.PathMTU{1400, 1337, 1280, 576} {
				mayFragment := func(b []byte) []byte {
					l3 := 14
					for binary.BigEndian.Uint16(b[l3-2:]) == header.EtherTypeVLAN {
						l3 += 4
					}
					header.IPv4(b[l3:]).SetFlagsFragment(false, false, 0)
					header.IPv4(b[l3:]).UpdateChecksum()
					return b
				}
				h, f := header.VirtioNet{}, mayFragment(c.b.Bytes())
				want := [][]byte{bytes.Clone(f)}
				if c.size >= 0 {
					h, f = c.b.Offload(c.size)
					mayFragment(f)
				}
				if c.size > 0 {
					var err error
					if want, err = ft.Segments(mayFragment(c.b.Bytes()), c.size); err != nil {
						t.Fatal(err)
					}
				}
				w := narrow(t, path)
				room := int(path) - 50 + 14
				got := inner(t, room, w.send(t, fromTAP(h, f)))
				var whole [][]byte
				fragmented := uint64(0)
				for len(got) > 0 {
					n := 1
					for binary.BigEndian.Uint16(got[n-1][14+4*len(ft.Check(t, got[n-1]).VLANs)+6:])&0x2000 != 0 {
						n++
					}
					b, err := ft.Reassemble(got[:n])
					if err != nil {
						t.Fatal(err)
					}
					whole, got = append(whole, b), got[n:]
					fragmented++
				}
				same(t, whole, want...)
				w.wantRepaired(t, repaired{Fragmented: fragmented})
				w.checkLaw(t)
			}
		})
	}
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

// Whatever UDP is sent over whatever path: the datagrams that arrive are those that were sent, one by one, in order.
func TestDatagramsSurviveFragmentation(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		path := rapid.IntRange(150, 1500).Draw(rt, "path")
		w := narrow(t, mtu.PathMTU(path))
		var batch []frame.Frame
		var want [][]byte
		for range rapid.IntRange(1, 4).Draw(rt, "frames") {
			o := ft.Opts{Fragmentable: true, SrcPort: uint16(rapid.IntRange(1, 3).Draw(rt, "port")), Payload: rapid.IntRange(0, 6000).Draw(rt, "payload")}
			if rapid.Bool().Draw(rt, "tagged") {
				o.VLANs = []uint16{4}
			}
			size := rapid.IntRange(max(50, o.Payload/20), 3000).Draw(rt, "size")
			batch = append(batch, offloaded(ft.UDP4(o), size))
			segments, err := ft.Segments(ft.UDP4(o).Bytes(), size)
			if err != nil {
				rt.Fatal(err)
			}
			want = append(want, segments...)
		}
		var got [][]byte
		for _, d := range w.send(t, batch...) {
			if len(d) > path-28 {
				rt.Fatalf("a datagram of %d bytes on a path of %d", len(d), path)
			}
			got = append(got, d[header.VXLANLen:])
		}
		for i := range want {
			n := 0
			for l3 := len(want[i]) - len(ft.Check(t, want[i]).Payload) - 28; n < len(got); n++ {
				if ip := header.IPv4(got[n][l3:]); !ip.MoreFragments() {
					break
				}
			}
			b, err := ft.Reassemble(got[:min(n+1, len(got))])
			if err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(b, want[i]) {
				rt.Fatalf("datagram %d\n got % x\nwant % x", i, b, want[i])
			}
			got = got[n+1:]
		}
		if len(got) != 0 || len(w.egress.Answers) != 0 {
			rt.Fatalf("%d frames too many, %d answers", len(got), len(w.egress.Answers))
		}
		w.checkLaw(rt)
	})
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
