package forward

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

var (
	peerMoved  = netip.MustParseAddr("198.51.100.1")    // where peerA may be reached now
	peerAccept = netip.MustParseAddr("198.51.100.2")    // from where peerB may send as well
	fromMAC1   = netip.MustParseAddr("fe80::ff:fe00:1") // follows from MAC(1)
)

// Source addresses that nobody may speak from, whoever they are registered for.
var improper = []netip.Addr{
	netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("224.0.0.5"),
	netip.MustParseAddr("::"), netip.MustParseAddr("::1"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("::ffff:10.42.0.1"),
}

// drawPairWorld draws a host with three other VTEPs and up to five stations that live anywhere.
func drawPairWorld(t *testing.T, rt *rapid.T) *world {
	w := newWorld(t, full, peerA, peerB, peerC)
	n := w.net
	n.Isolate = rapid.Bool().Draw(rt, "isolated")
	n.Learning = rapid.Bool().Draw(rt, "learning")
	n.GatewayMAC = rapid.SampledFrom([]addr.MAC{{}, frametest.MAC(1)}).Draw(rt, "gateway")
	n.LocalMAC = rapid.SampledFrom([]addr.MAC{{2, 0xff, 0, 0, 0, 1}, frametest.MAC(2)}).Draw(rt, "local")
	n.SetMTU(rapid.SampledFrom([]mtu.OverlayMTU{1450, 1450, 1400, 1280, 8950, 0}).Draw(rt, "overlay MTU"))
	n.SetMSS(rapid.SampledFrom([]mtu.MSS{0, 0, 1000}).Draw(rt, "fixed MSS"))
	var members []fdb.VTEPID
	for _, p := range []netip.Addr{peerA, peerB, peerC} {
		w.setPath(t, p, rapid.SampledFrom([]mtu.PathMTU{1500, 1500, 1400, 9000, 576, 120, 0}).Draw(rt, "path"))
		if rapid.IntRange(0, 3).Draw(rt, "a stranger") != 0 {
			members = append(members, w.id(t, p))
		}
	}
	n.SetMembers(members)
	if rapid.Bool().Draw(rt, "moved") {
		w.tables.SetVTEP(w.id(t, peerA), VTEPAddress{Addr: peerMoved, Path: 1500})
		w.tables.SetVTEP(w.id(t, peerB), VTEPAddress{Addr: peerB, Path: 1500, Accept: []netip.Addr{peerAccept}})
	}
	anywhere := rapid.SampledFrom([]fdb.VTEPID{0, 1, 2, fdb.Local, fdb.Local})
	for i := range uint16(5) {
		switch rapid.IntRange(0, 5).Draw(rt, "known") {
		case 0:
		case 1:
			n.FDB.Learn(frametest.MAC(i), anywhere.Draw(rt, "learned at"), 1)
		default:
			n.FDB.SetStatic(frametest.MAC(i), anywhere.Draw(rt, "registered at"))
		}
		for _, ip := range []netip.Addr{frametest.IP4(i), frametest.IP6(i)} {
			if rapid.IntRange(0, 3).Draw(rt, "address") != 0 {
				n.Neighbors.Set(ip, frametest.MAC(i))
			}
		}
	}
	for _, ip := range improper {
		if rapid.Bool().Draw(rt, "improper") {
			n.Neighbors.Set(ip, frametest.MAC(1))
		}
	}
	return w
}

// drawPair draws two stations, known or not, of which the first often speaks from its own address.
func drawPair(rt *rapid.T) (p Pair, proper bool) {
	src, dst := uint16(rapid.IntRange(0, 5).Draw(rt, "src")), uint16(rapid.IntRange(0, 5).Draw(rt, "dst"))
	p = Pair{Src: frametest.MAC(src), Dst: frametest.MAC(dst)}
	if src == 0 && rapid.Bool().Draw(rt, "no station") {
		p.Src = rapid.SampledFrom([]addr.MAC{{}, {3, 0, 0, 0, 0, 1}}).Draw(rt, "odd src")
	}
	if dst == 0 && rapid.Bool().Draw(rt, "no unicast") {
		p.Dst = rapid.SampledFrom([]addr.MAC{{}, addr.Broadcast, {1, 0, 0x5e, 0, 0, 5}}).Draw(rt, "odd dst")
	}
	switch rapid.IntRange(0, 9).Draw(rt, "from") {
	case 0:
		p.From = frametest.IP4(src + 1)
	case 1:
		p.From = fromMAC1
	case 2:
		p.From = rapid.SampledFrom(improper).Draw(rt, "improper")
		return p, false
	case 3, 4, 5, 6:
		p.From = frametest.IP4(src)
	default:
		p.From = frametest.IP6(src)
	}
	return p, true
}

// A plainPacket is one that a Fate is about. Its frame is as long as asked for, or nil if it has no room for its headers.
type plainPacket struct {
	name  string
	build func(p Pair, size int, o frametest.Opts) []byte
}

func plainOf(name string, v4, v6 func(frametest.Opts) *frametest.Builder) plainPacket {
	return plainPacket{name, func(p Pair, size int, o frametest.Opts) []byte {
		build := v6
		if p.From.Is4() {
			build = v4
		}
		o.Src = p.From
		headers := len(build(o).Bytes())
		if size < headers {
			return nil
		}
		o.Payload = size - headers
		b := build(o).Bytes()
		copy(b, p.Dst[:]) // Opts takes the zero MAC for another
		copy(b[6:], p.Src[:])
		return b
	}}
}

var (
	plainTCP  = plainOf("TCP", frametest.TCP4, frametest.TCP6)
	plainUDP  = plainOf("UDP", frametest.UDP4, frametest.UDP6)
	plainPing = plainOf("echo", frametest.Ping4, frametest.Ping6)
)

func plainSYN(p Pair, size int, options ...layers.TCPOption) []byte {
	return plainTCP.build(p, size, frametest.Opts{Flags: header.TCPSyn, Options: options})
}

// drawPlain draws packets of p in frames of at most room bytes, one of each kind, and the longest one.
func drawPlain(rt *rapid.T, p Pair, room int, most mtu.MSS) [][]byte {
	size := func() int { return room - rapid.SampledFrom([]int{0, 0, 1, 7, max(0, room-100)}).Draw(rt, "less") }
	o := frametest.Opts{
		TOS:          uint8(rapid.IntRange(0, 255).Draw(rt, "TOS")),
		SrcPort:      uint16(rapid.SampledFrom([]int{1, 53, 68, 546, 4789, 65535}).Draw(rt, "source port")),
		DstPort:      uint16(rapid.SampledFrom([]int{1, 53, 67, 547, 8472, 65535}).Draw(rt, "port")),
		Fragmentable: rapid.Bool().Draw(rt, "fragmentable"),
		Flags:        header.TCPAck | rapid.SampledFrom([]uint8{0, header.TCPPsh, header.TCPFin, header.TCPRst, header.TCPUrg, header.TCPCwr}).Draw(rt, "flags"),
		Options:      rapid.SampledFrom([][]layers.TCPOption{nil, {frametest.Nop(), frametest.Nop(), frametest.Timestamps(1, 2)}, {frametest.MSS(65535)}, {frametest.AO()}}).Draw(rt, "options"),
	}
	all := [][]byte{plainUDP.build(p, room, o), plainPing.build(p, size(), o), plainTCP.build(p, size(), o), plainUDP.build(p, size(), o)}
	stated := rapid.SampledFrom([]mtu.MSS{most, most, most / 2, 0}).Draw(rt, "stated")
	o.DstPort = uint16(rapid.SampledFrom([]int{68, 546, 4789, 80}).Draw(rt, "any port"))
	all = append(all, plainTCP.build(p, size(), o), plainSYN(p, size(), frametest.MSS(uint16(stated))), plainSYN(p, size()))
	var fit [][]byte
	for _, b := range all {
		if b != nil {
			fit = append(fit, b)
		}
	}
	return fit
}

// tally is what a world has counted of a VTEP and of its network.
type tally struct {
	tapIn, tapOut, underlayIn, underlayOut, tapInBytes, tapOutBytes, underlayInBytes, underlayOutBytes uint64
	sent, others                                                                                       uint64
}

func (w *world) tally(id fdb.VTEPID) tally {
	c := w.net.Counters
	return tally{
		c.TAPIn.Frames.Load(), c.TAPOut.Frames.Load(), c.UnderlayIn.Frames.Load(), c.UnderlayOut.Frames.Load(),
		c.TAPIn.Bytes.Load(), c.TAPOut.Bytes.Load(), c.UnderlayIn.Bytes.Load(), c.UnderlayOut.Bytes.Load(),
		w.tables.VTEP(id).Sent(),
		c.Created.Load() + c.Suppressed.Load() + c.Drops.Sum() + w.stray.Sum() + c.MSSClamped.Load() + c.ICMPSent.Load() +
			c.ICMPLimited.Load() + c.Fragmented.Load() + c.Resegmented.Load() + c.Split.Load(),
	}
}

func (t tally) minus(o tally) tally {
	return tally{
		t.tapIn - o.tapIn, t.tapOut - o.tapOut, t.underlayIn - o.underlayIn, t.underlayOut - o.underlayOut,
		t.tapInBytes - o.tapInBytes, t.tapOutBytes - o.tapOutBytes, t.underlayInBytes - o.underlayInBytes, t.underlayOutBytes - o.underlayOutBytes,
		t.sent - o.sent, t.others - o.others,
	}
}

// sentAs runs b through Egress and returns where it went, if that was as it is and to one VTEP only.
func (w *world) sentAs(t testing.TB, b []byte) (to fdb.VTEPID, ok bool) {
	before := w.tally(0).others
	out := w.send(t, plain(b))
	e := w.egress
	for _, a := range e.Answers {
		e.ReportAnswer(a, NotDropped)
	}
	if len(out) != 1 || len(e.Sends) != 1 || len(e.Answers) != 0 || e.Sends[0].Whole || w.tally(0).others != before {
		return 0, false
	}
	return e.Sends[0].VTEP, bytes.Equal(out[0], encap(w.net.VNI, b))
}

// TestLeaveSaysWhatEgressDoes holds Leave against Egress, in worlds and with pairs of all kinds.
func TestLeaveSaysWhatEgressDoes(t *testing.T) {
	leaves := 0
	rapid.Check(t, func(rt *rapid.T) {
		w := drawPairWorld(t, rt)
		for range 30 {
			p, proper := drawPair(rt)
			fate, ok := w.tables.Leave(w.net, p)
			if !ok {
				b := plainPing.build(p, 62, frametest.Opts{})
				to, sent := w.sentAs(t, b)
				if at, known := w.net.FDB.Lookup(p.Dst); proper && sent && known && at == to && !p.Dst.IsMulticast() {
					rt.Fatalf("%+v is sent to %v, but Leave does not say so", p, to)
				}
				continue
			}
			leaves++
			if !proper || fate.Net != w.net || fate.MaxFrame <= header.EthernetLen {
				rt.Fatalf("%+v: fate %+v", p, fate)
			}
			for _, b := range drawPlain(rt, p, fate.MaxFrame, fate.MSS) {
				before := w.tally(fate.VTEP)
				if to, sent := w.sentAs(t, b); !sent || to != fate.VTEP {
					rt.Fatalf("%+v: fate %+v, but this is not sent there as it is: % x", p, fate, b[:min(len(b), 80)])
				}
				after := w.tally(fate.VTEP)
				w.tables.CountLeft(&fate, 1, len(b))
				if want, got := after.minus(before), w.tally(fate.VTEP).minus(after); got != want {
					rt.Fatalf("Egress counts %+v, CountLeft %+v", want, got)
				}
			}
			if b := plainUDP.build(p, fate.MaxFrame+1, frametest.Opts{}); b != nil {
				if _, sent := w.sentAs(t, b); sent {
					rt.Fatalf("a frame of %d bytes is sent as it is, the longest should have %d", len(b), fate.MaxFrame)
				}
			}
			if b := plainSYN(p, fate.MaxFrame, frametest.MSS(uint16(fate.MSS+1))); b != nil && fate.MSS > 0 {
				if _, sent := w.sentAs(t, b); sent {
					rt.Fatalf("an MSS of %d is left alone, the largest should be %d", fate.MSS+1, fate.MSS)
				}
			}
			w.checkLaw(rt)
		}
	})
	if leaves < 50 {
		t.Errorf("only %d pairs could leave", leaves)
	}
}

// deliveredAs runs b, from outer, through Ingress and reports whether it went to the TAP as it is.
func (w *world) deliveredAs(vni addr.VNI, outer netip.Addr, tos uint8, b []byte) bool {
	before := w.tally(0).others
	r := train(outer, encap(vni, b))
	r.TOS = tos
	items := w.receive(r)
	return len(items) == 1 && items[0].Frames == 1 && bytes.Equal(bytes.Join(items[0].Pieces, nil), b) &&
		w.tally(0).others == before
}

// ecnOf returns the ECN field of the IP packet in the untagged frame b.
func ecnOf(b []byte) uint8 {
	if binary.BigEndian.Uint16(b[12:]) == header.EtherTypeIPv4 {
		return b[15] & header.ECNMask
	}
	return b[15] >> 4 & header.ECNMask
}

func (w *world) entries() map[addr.MAC]fdb.Entry {
	m := map[addr.MAC]fdb.Entry{}
	for e := range w.net.FDB.All() {
		m[e.MAC] = e
	}
	return m
}

// TestArriveSaysWhatIngressDoes holds Arrive against Ingress, in worlds and with pairs of all kinds.
func TestArriveSaysWhatIngressDoes(t *testing.T) {
	arrives := 0
	rapid.Check(t, func(rt *rapid.T) {
		w := drawPairWorld(t, rt)
		for range 30 {
			p, proper := drawPair(rt)
			vni := rapid.SampledFrom([]addr.VNI{testVNI, testVNI, testVNI, 43}).Draw(rt, "VNI")
			outer := rapid.SampledFrom([]netip.Addr{peerA, peerB, peerC, peerMoved, peerAccept, netip.MustParseAddr("203.0.113.9")}).Draw(rt, "outer")
			if at, ok := w.net.FDB.Lookup(p.Src); ok && at != fdb.Local && rapid.Bool().Draw(rt, "from where it is") {
				outer = w.tables.VTEP(at).Name
			}
			before := w.entries()
			fate, ok := w.tables.Arrive(vni, outer, p)
			if !maps.Equal(w.entries(), before) {
				rt.Fatalf("Arrive has learned: %v became %v", before, w.entries())
			}
			if !ok {
				// Where it is delivered, what was to be learned has been.
				delivered := w.deliveredAs(vni, outer, 0, plainPing.build(p, 62, frametest.Opts{}))
				_, ok := w.tables.Arrive(vni, outer, p)
				if want := delivered && proper && !p.Dst.IsMulticast() && w.net.MTU() != 0; ok != want {
					rt.Fatalf("%+v from %v: delivered %v, and then Arrive says %v", p, outer, delivered, ok)
				}
				continue
			}
			arrives++
			if !proper || p.Dst.IsMulticast() || fate.Net != w.net || fate.VTEP != w.id(t, outer) {
				rt.Fatalf("%+v from %v: fate %+v", p, outer, fate)
			}
			for _, b := range drawPlain(rt, p, fate.MaxFrame, fate.MSS) {
				tos := rapid.SampledFrom([]uint8{0, ecnOf(b)}).Draw(rt, "outer ECN")
				already := w.tally(fate.VTEP)
				if !w.deliveredAs(vni, outer, tos, b) {
					rt.Fatalf("%+v from %v: fate %+v, but this is not delivered as it is: % x", p, outer, fate, b[:min(len(b), 80)])
				}
				after, learned := w.tally(fate.VTEP), w.entries()
				if at, ok := learned[p.Src]; len(learned) != len(before) || ok && at.VTEP != before[p.Src].VTEP {
					rt.Fatalf("%+v from %v: there was something to learn: %v became %v", p, outer, before, learned)
				}
				w.tables.CountArrived(&fate, p, 1, len(b), 2e9)
				if want, got := after.minus(already), w.tally(fate.VTEP).minus(after); got != want {
					rt.Fatalf("Ingress counts %+v, CountArrived %+v", want, got)
				}
				if !maps.Equal(w.entries(), learned) {
					rt.Fatalf("CountArrived changes %v to %v", learned, w.entries())
				}
			}
			if w.deliveredAs(vni, outer, 0, plainTCP.build(p, fate.MaxFrame+1, frametest.Opts{})) {
				rt.Fatalf("a segment is delivered as it is that is longer than %d", fate.MaxFrame)
			}
			if fate.MSS > 0 && w.deliveredAs(vni, outer, 0, plainSYN(p, 80, frametest.MSS(uint16(fate.MSS+1)))) {
				rt.Fatalf("an MSS of %d is left alone, the largest should be %d", fate.MSS+1, fate.MSS)
			}
		}
	})
	if arrives < 50 {
		t.Errorf("only %d pairs could arrive", arrives)
	}
}

// What was forwarded elsewhere is a sign of life, but an old one when it is counted.
func TestCountArrivedRefreshesAndNoMore(t *testing.T) {
	w := newWorld(t, full, peerA, peerB)
	a, b := w.id(t, peerA), w.id(t, peerB)
	p := Pair{Src: frametest.MAC(1), Dst: frametest.MAC(2), From: frametest.IP4(1)}
	w.net.FDB.Learn(p.Src, a, 10)
	fate, ok := w.tables.Arrive(testVNI, peerA, p)
	if !ok {
		t.Fatal("it does not arrive")
	}
	check := func(what string, heard int64, want map[addr.MAC]fdb.Entry) {
		t.Helper()
		if got := w.tables.VTEP(a).Heard(); got != heard {
			t.Errorf("%s: heard at %d, want %d", what, got, heard)
		}
		if got := w.entries(); !maps.Equal(got, want) {
			t.Errorf("%s: learned %v, want %v", what, got, want)
		}
	}
	at := func(id fdb.VTEPID, second uint32) map[addr.MAC]fdb.Entry {
		return map[addr.MAC]fdb.Entry{p.Src: {MAC: p.Src, VTEP: id, LastSeen: second}}
	}
	w.tables.CountArrived(&fate, p, 3, 300, 20e9)
	check("frames", 20e9, at(a, 20))
	w.tables.CountArrived(&fate, p, 0, 0, 30e9)
	check("no frames", 20e9, at(a, 20))
	w.tables.CountArrived(&fate, p, 1, 100, 15e9)
	check("frames from before", 20e9, at(a, 20))
	w.net.FDB.Learn(p.Src, b, 21)
	w.tables.CountArrived(&fate, p, 1, 100, 22e9)
	check("the station has moved", 22e9, at(b, 21))
	w.net.FDB.Delete(p.Src)
	w.tables.CountArrived(&fate, p, 1, 100, 23e9)
	check("the station is forgotten", 23e9, map[addr.MAC]fdb.Entry{})
	if c := w.net.Counters; c.UnderlayIn.Frames.Load() != 6 || c.TAPOut.Bytes.Load() != 600 {
		t.Errorf("counted %d frames, %d bytes", c.UnderlayIn.Frames.Load(), c.TAPOut.Bytes.Load())
	}
}

func TestNoPairWithoutAnAddress(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.net.FDB.SetStatic(frametest.MAC(1), 0)
	p := Pair{Src: frametest.MAC(1), Dst: frametest.MAC(1)}
	if _, ok := w.tables.Leave(w.net, p); ok {
		t.Error("leaves")
	}
	if _, ok := w.tables.Arrive(testVNI, peerA, p); ok {
		t.Error("arrives")
	}
}

// TestEveryChangeIsTold goes through what a decision depends on besides the tables of fdb, in order, and looks whether it
// is told of, once, and not of what stays as it was.
func TestEveryChangeIsTold(t *testing.T) {
	var network, tables int
	w := &world{tables: NewTables()}
	w.net = &Network{Name: "blue", VNI: testVNI, Changed: func() { network++ }}
	w.tables.OnChange(func() {
		tables++
		w.tables.Networks() // readers may look, and see it
	})
	moved := VTEPAddress{Addr: peerMoved, Path: 1400, Accept: []netip.Addr{peerAccept}}
	for _, c := range []struct {
		name            string
		do              func()
		network, tables int
	}{
		{"members", func() { w.net.SetMembers([]fdb.VTEPID{0, 1}) }, 1, 0},
		{"the same members", func() { w.net.SetMembers([]fdb.VTEPID{0, 1}) }, 0, 0},
		{"other members", func() { w.net.SetMembers([]fdb.VTEPID{1}) }, 1, 0},
		{"no members", func() { w.net.SetMembers(nil) }, 1, 0},
		{"MTU", func() { w.net.SetMTU(1400) }, 1, 0},
		{"the same MTU", func() { w.net.SetMTU(1400) }, 0, 0},
		{"MSS", func() { w.net.SetMSS(1000) }, 1, 0},
		{"the same MSS", func() { w.net.SetMSS(1000) }, 0, 0},
		{"network", func() { w.tables.AddNetwork(w.net) }, 0, 1},
		{"the same network", func() { w.tables.AddNetwork(w.net) }, 0, 0},
		{"VTEP", func() { w.tables.AddVTEP(peerA, 1500) }, 0, 1},
		{"the same VTEP", func() { w.tables.AddVTEP(peerA, 1500) }, 0, 0},
		{"address", func() { w.tables.SetVTEP(0, moved) }, 0, 1},
		{"the same address", func() { w.tables.SetVTEP(0, moved) }, 0, 0},
		{"path", func() { w.tables.SetPath(0, 1500) }, 0, 1},
		{"the same path", func() { w.tables.SetPath(0, 1500) }, 0, 0},
		{"removal", func() { w.tables.RemoveNetwork(testVNI) }, 0, 1},
		{"another removal", func() { w.tables.RemoveNetwork(testVNI) }, 0, 0},
	} {
		network, tables = 0, 0
		c.do()
		if network != c.network || tables != c.tables {
			t.Errorf("%s: told %d and %d times, want %d and %d", c.name, network, tables, c.network, c.tables)
		}
	}
}
