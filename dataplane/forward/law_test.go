package forward

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

func batchOf(b []byte) []frame.Frame { return []frame.Frame{plain(b)} }

// anyFrame draws a frame as a TAP might deliver it: of any kind, sound or damaged, plain or a superframe.
func anyFrame(t *rapid.T) frame.Frame {
	o := frametest.Opts{
		SrcMAC:  frametest.MAC(uint16(rapid.IntRange(1, 3).Draw(t, "src"))),
		DstMAC:  frametest.MAC(uint16(rapid.IntRange(1, 6).Draw(t, "dst"))),
		SrcPort: uint16(rapid.IntRange(1, 4).Draw(t, "port")),
		TOS:     uint8(rapid.IntRange(0, 3).Draw(t, "ecn")),
		Seq:     rapid.Uint32().Draw(t, "seq"),
		Payload: rapid.SampledFrom([]int{0, 1, 20, 64, 1150, 1400, 1422, 1423, 9000, 60000}).Draw(t, "payload"),

		Fragmentable: rapid.Bool().Draw(t, "fragmentable"),
		Flags:        header.TCPAck | rapid.SampledFrom([]uint8{0, 0, 0, header.TCPPsh | header.TCPFin | header.TCPCwr, header.TCPSyn, header.TCPUrg, header.TCPRst}).Draw(t, "flags"),
		Options:      rapid.SampledFrom([][]layers.TCPOption{nil, nil, {frametest.MSS(1460)}, {frametest.MD5(), frametest.Nop(), frametest.Nop()}, {frametest.MSS(65535), frametest.AO()}}).Draw(t, "options"),
	}
	if rapid.IntRange(0, 9).Draw(t, "broadcast") == 0 {
		o.DstMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	if rapid.IntRange(0, 9).Draw(t, "tagged") == 0 {
		o.VLANs = []uint16{9}
	}
	var b *frametest.Builder
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0, 1:
		b = frametest.TCP4(o)
	case 2:
		b = frametest.TCP6(o)
	case 3, 4:
		b = frametest.UDP4(o)
	case 5:
		b = frametest.UDP6(o)
	case 6:
		return plain(frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(uint16(rapid.IntRange(2, 3).Draw(t, "target")))).Bytes())
	default:
		return plain(frametest.Ping4(o).Bytes())
	}
	h, f := b.Offload(0)
	if o.Payload > 1423 && rapid.IntRange(0, 3).Draw(t, "jumbo") != 0 || rapid.Bool().Draw(t, "superframe") {
		h, f = b.Offload(rapid.SampledFrom([]int{48, 536, 1000, 1398}).Draw(t, "size"))
	}
	if rapid.IntRange(0, 5).Draw(t, "damage") == 0 {
		for range rapid.IntRange(1, 3).Draw(t, "times") {
			f[rapid.IntRange(0, min(len(f), 90)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
	}
	if rapid.IntRange(0, 9).Draw(t, "cut") == 0 {
		f = f[:rapid.IntRange(0, len(f)).Draw(t, "left")]
	}
	return fromTAP(h, f)
}

// outcome draws what the kernel says to a send or a write.
func outcome(t *rapid.T, failures ...DropReason) DropReason {
	if rapid.IntRange(0, 4).Draw(t, "fails") == 0 {
		return rapid.SampledFrom(failures).Draw(t, "reason")
	}
	return NotDropped
}

// TestFramesAreConserved sends random batches from one host to another over an underlay that joins, cuts and
// loses, and checks the law of the package comment on both, whatever kernels say.
func TestFramesAreConserved(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := newWorld(t, full, peerB, peerC)
		tap := full
		if rapid.Bool().Draw(rt, "plain TAP") {
			tap = Offload{}
		}
		b := newWorld(t, tap, peerA)
		if rapid.Bool().Draw(rt, "limited") {
			a.net.Limit = NewLimiter(1e9, rapid.IntRange(1, 60).Draw(rt, "burst"))
		}
		if rapid.Bool().Draw(rt, "isolated") {
			a.net.Isolate, b.net.Isolate = true, true
			a.net.FDB.SetStatic(frametest.MAC(1), fdb.Local)
			a.net.FDB.SetStatic(frametest.MAC(4), fdb.Local)
			b.net.FDB.SetStatic(frametest.MAC(1), b.id(t, peerA))
			b.net.FDB.SetStatic(frametest.MAC(2), fdb.Local)
			for _, n := range []*Network{a.net, b.net} {
				n.Neighbors.Set(frametest.IP4(1), frametest.MAC(1))
				n.Neighbors.Set(frametest.IP6(1), frametest.MAC(1))
			}
		}
		a.net.FDB.SetStatic(frametest.MAC(2), a.id(t, peerB))
		a.net.Neighbors.Set(frametest.IP4(3), frametest.MAC(3))
		b.net.FDB.SetStatic(frametest.MAC(3), b.tables.AddVTEP(peerC, 1500)) // frames from station 3 are spoofed
		for _, p := range []netip.Addr{peerB, peerC} {
			a.setPath(t, p, rapid.SampledFrom([]mtu.PathMTU{1500, 1500, 1400, 1337, 1281, 1280, 576, 120, 0}).Draw(rt, "path"))
		}
		a.net.SetMSS(rapid.SampledFrom([]mtu.MSS{0, 0, 1000}).Draw(rt, "fixed MSS"))
		if rapid.Bool().Draw(rt, "whole") {
			a.egress.Whole = []int{40000, 65000}
		}
		for range rapid.IntRange(1, 3).Draw(rt, "batches") {
			var batch []frame.Frame
			for range rapid.IntRange(1, 8).Draw(rt, "frames") {
				batch = append(batch, anyFrame(rt))
			}
			a.egress.Process(batch, 1)
			var received []Received
			for i := range a.egress.Sends {
				s := &a.egress.Sends[i]
				r := outcome(rt, SendNoBuffer, SendDenied, SendTooBig)
				a.egress.Report(s, s.Frames, s.Bytes, r)
				if r != NotDropped || s.VTEP != a.id(t, peerB) {
					continue
				}
				datagrams := wire(a.egress, i)
				for _, d := range datagrams {
					if most := a.tables.VTEP(s.VTEP).MaxFrame + header.VXLANLen; !s.Whole && len(d) > most {
						rt.Errorf("a datagram of %d bytes for a path of %d", len(d), most)
					}
				}
				if s.Whole { // it is in one piece up to the device
					continue
				}
				if rapid.Bool().Draw(rt, "as a train") {
					received = append(received, train(peerA, datagrams...))
					continue
				}
				for _, d := range datagrams {
					received = append(received, train(peerA, d))
				}
			}
			for _, r := range a.egress.Answers {
				a.egress.ReportAnswer(r, outcome(rt, TAPDown))
			}
			a.checkLaw(rt)
			before := b.net.Counters.UnderlayIn.Frames.Load()
			b.ingress.Process(received, 2)
			for _, d := range b.ingress.Deliveries {
				for i := range d.Items {
					b.ingress.Report(d.Net, &d.Items[i], outcome(rt, TAPDown, TAPFull))
				}
			}
			b.checkLaw(rt)
			sent := 0
			for _, r := range received {
				sent += 1
				if r.Stride > 0 {
					sent += (len(r.Data) - 1) / r.Stride
				}
			}
			if got := b.net.Counters.UnderlayIn.Frames.Load() - before; got != uint64(sent) {
				rt.Errorf("%d datagrams arrived and %d frames were counted", sent, got)
			}
			if b.stray.Sum() != 0 {
				rt.Errorf("%d datagrams of our own were not understood", b.stray.Sum())
			}
		}
	})
}

// TestFlowsKeepTheirOrder sends several flows through both halves and checks that the payload of each arrives in
// order.
func TestFlowsKeepTheirOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := newWorld(t, full, peerB), newWorld(t, full, peerA)
		a.setPath(t, peerB, mtu.PathMTU(rapid.SampledFrom([]int{1500, 1400, 1281, 576, 200}).Draw(rt, "path")))
		next := map[uint16]uint32{}
		want := map[uint16]*bytes.Buffer{}
		var batch []frame.Frame
		for range rapid.IntRange(1, 60).Draw(rt, "frames") {
			port := uint16(rapid.IntRange(1, 12).Draw(rt, "flow"))
			o := frametest.Opts{
				SrcPort: port, Seq: next[port], Payload: rapid.SampledFrom([]int{0, 1, 64, 64, 64, 1000, 1396, 4000}).Draw(rt, "payload"),
				Flags: header.TCPAck | rapid.SampledFrom([]uint8{0, 0, header.TCPPsh}).Draw(rt, "push"),
			}
			data := frametest.Pattern(o.Payload + int(next[port])%7)[int(next[port])%7:]
			o.Data = data
			next[port] += uint32(len(data))
			if want[port] == nil {
				want[port] = new(bytes.Buffer)
			}
			want[port].Write(data)
			size := min(1000, max(len(data), 48))
			if len(data) < 1400 && rapid.Bool().Draw(rt, "single segment") {
				size = 0
			}
			h, f := frametest.TCP4(o).Offload(size)
			batch = append(batch, fromTAP(h, f))
		}
		var received []Received
		for start := 0; start < len(batch); start += 20 {
			a.egress.Process(batch[start:min(start+20, len(batch))], 1)
			for i := range a.egress.Sends {
				received = append(received, train(peerA, wire(a.egress, i)...))
			}
		}
		seq := map[uint16]uint32{}
		got := map[uint16]*bytes.Buffer{}
		for _, item := range b.receive(received...) {
			p := parse(rt, bytes.Join(item.Pieces, nil))
			port := uint16(p.SrcPort)
			if p.Seq != seq[port] {
				rt.Fatalf("flow %d: sequence number %d after %d", port, p.Seq, seq[port])
			}
			seq[port] += uint32(len(p.Payload))
			if got[port] == nil {
				got[port] = new(bytes.Buffer)
			}
			got[port].Write(p.Payload)
		}
		for port, w := range want {
			if got[port] == nil || !bytes.Equal(got[port].Bytes(), w.Bytes()) {
				rt.Fatalf("flow %d: the payload differs", port)
			}
		}
	})
}

func parse(t *rapid.T, b []byte) *layers.TCP {
	l4 := new(layers.TCP)
	if err := l4.DecodeFromBytes(b[34:], nopFeedback{}); err != nil {
		t.Fatal(err)
	}
	return l4
}

type nopFeedback struct{}

func (nopFeedback) SetTruncated() {}

// TestThePacketPathAllocatesNothing runs both halves over every kind of batch: superframes, small frames,
// drops and answers.
func TestThePacketPathAllocatesNothing(t *testing.T) {
	for name, make := range batches() {
		t.Run(name, func(t *testing.T) {
			for _, isolated := range []bool{false, true} {
				allocatesNothing(t, make(), isolated, false)
				allocatesNothing(t, make(), isolated, true)
			}
		})
	}
}

func allocatesNothing(t *testing.T, batch []frame.Frame, isolated, narrow bool) {
	a, b := newWorld(t, full, peerB), newWorld(t, full, peerA)
	a.net.Neighbors.Set(frametest.IP4(3), frametest.MAC(3))
	a.net.Limit = NewLimiter(1e6, 100)
	if isolated {
		isolate(a, b)
	}
	if narrow {
		a.setPath(t, peerB, 1300)
		a.net.FDB.SetStatic(frametest.MAC(2), a.id(t, peerB))
	}
	pristine := copyBatch(batch)
	a.egress.Process(batch, 1)
	var received []Received
	for i := range a.egress.Sends {
		received = append(received, train(peerA, wire(a.egress, i)...))
	}
	keep := copyReceived(received)
	run := func() {
		for i := range batch {
			copy(batch[i].Buf, pristine[i].Buf)
		}
		a.egress.Process(batch, 1)
		for i := range a.egress.Sends {
			s := &a.egress.Sends[i]
			a.egress.Report(s, s.Frames, s.Bytes, NotDropped)
		}
		for i := range received {
			copy(received[i].Data, keep[i].Data)
		}
		b.ingress.Process(received, 1)
		for _, d := range b.ingress.Deliveries {
			for i := range d.Items {
				b.ingress.Report(d.Net, &d.Items[i], NotDropped)
			}
		}
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations a batch, isolated: %v, narrow path: %v", n, isolated, narrow)
	}
}

// isolate registers stations 1 behind a and 2 and 3 behind b, which must have one peer each.
func isolate(a, b *world) {
	for _, w := range []*world{a, b} {
		w.net.Isolate = true
		for n, behind := range map[uint16]*world{1: a, 2: b, 3: b} {
			at := fdb.VTEPID(0)
			if behind == w {
				at = fdb.Local
			}
			w.net.FDB.SetStatic(frametest.MAC(n), at)
			w.net.Neighbors.Set(frametest.IP4(n), frametest.MAC(n))
			w.net.Neighbors.Set(frametest.IP6(n), frametest.MAC(n))
		}
	}
}

// batches returns makers of typical batches, for tests and benchmarks.
func batches() map[string]func() []frame.Frame {
	super := func(b *frametest.Builder, size int) func() []frame.Frame {
		return func() []frame.Frame {
			h, f := b.Offload(size)
			return []frame.Frame{fromTAP(h, f)}
		}
	}
	return map[string]func() []frame.Frame{
		"TCP superframe":         super(frametest.TCP4(frametest.Opts{Payload: 61512}), 1398),
		"TCP superframe IPv6":    super(frametest.TCP6(frametest.Opts{Payload: 60000}), 1378),
		"UDP superframe":         super(frametest.UDP4(frametest.Opts{Payload: 60000}), 1400),
		"too large for the path": tooLarge,
		"small UDP": func() (out []frame.Frame) {
			for range 60 {
				out = append(out, plain(frametest.UDP4(frametest.Opts{Payload: 64}).Bytes()))
			}
			return out
		},
		"small UDP of 64 flows": func() (out []frame.Frame) {
			for i := range 60 {
				out = append(out, plain(frametest.UDP4(frametest.Opts{Payload: 64, SrcPort: uint16(1000 + i)}).Bytes()))
			}
			return out
		},
		"acknowledgements": func() (out []frame.Frame) {
			for i := range 30 {
				out = append(out, plain(frametest.TCP4(frametest.Opts{Ack: uint32(i)}).Bytes()))
			}
			return out
		},
		"answers and drops": func() (out []frame.Frame) {
			for range 10 {
				out = append(out, plain(frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(3)).Bytes()))
			}
			for _, h := range hostile() {
				out = append(out, plain(h.inner))
			}
			return out
		},
	}
}

func copyBatch(in []frame.Frame) []frame.Frame {
	out := make([]frame.Frame, len(in))
	for i, f := range in {
		out[i] = frame.Frame{Buf: bytes.Clone(f.Buf), Offload: f.Offload}
	}
	return out
}

func copyReceived(in []Received) []Received {
	out := make([]Received, len(in))
	for i, r := range in {
		out[i] = r
		out[i].Data = bytes.Clone(r.Data)
	}
	return out
}

// kinds are the networks that are measured: on an open one everything is flooded, to the one peer there is; on the
// others the destination is known.
var kinds = map[string]func(a, b *world){
	"": func(a, b *world) {},
	"known/": func(a, b *world) {
		a.net.FDB.SetStatic(frametest.MAC(2), 0)
		b.net.FDB.SetStatic(frametest.MAC(1), 0)
	},
	"isolated/": isolate,
}

func BenchmarkEgress(b *testing.B) {
	for kind, prepare := range kinds {
		for name, make := range batches() {
			b.Run(kind+name, func(b *testing.B) {
				w, other := newWorld(b, full, peerB), newWorld(b, full, peerA)
				prepare(w, other)
				batch := make()
				for b.Loop() {
					w.egress.Process(batch, 1)
				}
				perFrame(b, w.net.Counters.TAPIn.Bytes.Load(), w.net.Counters.TAPIn.Frames.Load())
			})
		}
	}
}

func BenchmarkIngress(b *testing.B) {
	for kind, prepare := range kinds {
		for name, make := range batches() {
			b.Run(kind+name, func(b *testing.B) {
				a, w := newWorld(b, full, peerB), newWorld(b, full, peerA)
				prepare(a, w)
				a.egress.Process(make(), 1)
				var received []Received
				for i := range a.egress.Sends {
					received = append(received, train(peerA, wire(a.egress, i)...))
				}
				pristine := copyReceived(received)
				for b.Loop() {
					for i := range received { // joining rewrites the first headers of a train
						copy(received[i].Data[:min(128, len(received[i].Data))], pristine[i].Data)
					}
					w.ingress.Process(received, 1)
				}
				perFrame(b, w.net.Counters.UnderlayIn.Bytes.Load(), w.net.Counters.UnderlayIn.Frames.Load())
			})
		}
	}
}

func perFrame(b *testing.B, bytes, frames uint64) {
	if frames == 0 {
		return
	}
	b.SetBytes(int64(bytes / uint64(b.N)))
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(frames), "ns/frame")
}

// FuzzEgress feeds one frame with any offload header to the egress half.
func FuzzEgress(f *testing.F) {
	for _, make := range batches() {
		for _, fr := range make()[:1] {
			var h [header.VirtioNetMrgLen]byte
			fr.Offload.Encode(h[:])
			f.Add(h[:], fr.Bytes())
		}
	}
	for _, h := range hostile() {
		f.Add(make([]byte, header.VirtioNetMrgLen), h.inner)
	}
	for _, c := range claims(here, behindB) {
		f.Add(make([]byte, header.VirtioNetMrgLen), c.inner)
	}
	for _, fr := range tooLarge() {
		var h [header.VirtioNetMrgLen]byte
		fr.Offload.Encode(h[:])
		f.Add(h[:], fr.Bytes())
	}
	f.Fuzz(func(t *testing.T, offload, b []byte) {
		if len(offload) < header.VirtioNetMrgLen || len(b) > 65535+18 {
			return
		}
		var h header.VirtioNet
		h.Decode(offload[:header.VirtioNetMrgLen])
		open := newWorld(t, full, peerA, peerB, peerC)
		open.net.Neighbors.Set(frametest.IP4(3), frametest.MAC(3))
		limited := newWorld(t, full, peerA, peerB, peerC)
		limited.net.Limit = NewLimiter(1, 5)
		isolated := newIsolated(t, full)
		close := narrow(t, 1280)
		close.setPath(t, peerB, 400)
		device := narrow(t, 700)
		device.egress.Whole = []int{65000, 65000}
		for _, w := range []*world{open, limited, isolated, close, device} {
			w.egress.Process([]frame.Frame{fromTAP(h, b)}, 1)
			for i := range w.egress.Sends {
				s := &w.egress.Sends[i]
				most := w.tables.VTEP(s.VTEP).MaxFrame + header.VXLANLen
				if s.Whole {
					most = 65000
					if n := int(s.Offload.HdrLen) + int(s.Offload.GSOSize); n > w.tables.VTEP(s.VTEP).MaxFrame+header.VXLANLen {
						t.Errorf("segments of %d bytes for a path of %d", n, w.tables.VTEP(s.VTEP).Path)
					}
				}
				for _, d := range wire(w.egress, i) {
					if len(d) > most {
						t.Errorf("a datagram of %d bytes for a path of %d", len(d), most)
					}
					var p frame.Parsed
					if fault := p.Parse(d[header.VXLANLen:]); fault != frame.Sound {
						t.Errorf("fault %d in what is sent: % x", fault, d)
					}
					if w == isolated {
						wantHonest(t, d[header.VXLANLen:], here, alsoHere)
					}
				}
				w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
			}
			for _, a := range w.egress.Answers {
				if _, err := frametest.Verify(a); err != nil {
					t.Errorf("answer % x: %v", a, err)
				}
				w.egress.ReportAnswer(a, NotDropped)
			}
			w.checkLaw(t)
		}
	})
}

// wantHonest checks, without the code under test, that f names one of these stations, and no other, as its sender.
func wantHonest(t *testing.T, f []byte, stations ...uint16) {
	t.Helper()
	for _, n := range stations {
		mac, ip4, ip6, own6 := frametest.MAC(n), frametest.IP4(n).As4(), frametest.IP6(n).As16(), linkLocal(n).As16()
		if !bytes.Equal(f[6:12], mac[:]) {
			continue
		}
		ok := false
		switch [2]byte(f[12:14]) {
		case [2]byte{8, 0}:
			ok = bytes.Equal(f[14+12:14+16], ip4[:])
		case [2]byte{8, 6}:
			ok = bytes.Equal(f[14+8:14+14], mac[:]) && (bytes.Equal(f[14+14:14+18], ip4[:]) ||
				bytes.Equal(f[14+14:14+18], make([]byte, 4)) && bytes.Equal(f[14+24:14+28], ip4[:]))
		case [2]byte{0x86, 0xdd}:
			src := f[14+8 : 14+24]
			none := bytes.Equal(src, make([]byte, 16))
			ok = none || bytes.Equal(src, ip6[:]) || bytes.Equal(src, own6[:])
			if next, icmp := f[14+6], f[14+40:]; next == header.ProtoICMPv6 {
				switch icmp[0] {
				case 134, 137:
					ok = false
				case 136:
					ok = ok && (bytes.Equal(icmp[8:24], ip6[:]) || bytes.Equal(icmp[8:24], own6[:]))
				}
			}
		}
		if !ok {
			t.Errorf("a lie got through: %x", f)
		}
		return
	}
	t.Errorf("a frame from a stranger got through: %x", f)
}

// FuzzIngress feeds one buffer with any stride and traffic class to the ingress half, for a TAP with and
// without offloads.
func FuzzIngress(f *testing.F) {
	for _, h := range hostile() {
		f.Add(encap(testVNI, h.inner), 0, uint8(0))
	}
	for _, c := range claims(behindA, here) {
		f.Add(encap(testVNI, c.inner), 0, uint8(0))
	}
	for _, make := range batches() {
		w := newWorld(f, full, peerA)
		w.egress.Process(make(), 1)
		if len(w.egress.Sends) > 0 {
			r := train(peerA, wire(w.egress, 0)...)
			f.Add(r.Data, r.Stride, uint8(rand.IntN(4)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, stride int, tos uint8) {
		if len(b) > 65507 {
			return
		}
		for i, tap := range []Offload{full, {}, full} {
			w := newWorld(t, tap, peerA)
			if i == 2 {
				w = newIsolated(t, tap)
			}
			r := Received{From: peerA, Data: bytes.Clone(b), Stride: stride, TOS: tos}
			for _, item := range w.receive(r) {
				n := 0
				for _, p := range item.Pieces {
					n += len(p)
				}
				if n > 65535+header.EthernetLen+2*header.VLANLen || len(item.Pieces) > 1023 {
					t.Errorf("an item of %d bytes in %d pieces", n, len(item.Pieces))
				}
				if tap == (Offload{}) && item.Offload.GSOType != header.GSONone {
					t.Errorf("a superframe for a TAP that takes none: %+v", item.Offload)
				}
				if i == 2 {
					wantHonest(t, bytes.Join(item.Pieces, nil), behindA)
				}
			}
			w.checkLaw(t)
		}
	})
}
