package forward

import (
	"bytes"
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
