package forward

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

// delivered is an item, out of the memory of the batch.
type delivered struct {
	offload       header.VirtioNet
	frames, bytes int
	content       []byte
}

func keep(items []gro.Item) (out []delivered) {
	for _, it := range items {
		out = append(out, delivered{it.Offload, it.Frames, it.Bytes, bytes.Join(it.Pieces, nil)})
	}
	return out
}

// apart are the datagrams of r by themselves, which are all parsed and checked.
func apart(r Received) (out []Received) {
	for b := range slices.Chunk(bytes.Clone(r.Data), r.Stride) {
		out = append(out, Received{From: r.From, TOS: r.TOS, Data: b})
	}
	return out
}

// wantAsApart runs trains through one host, and the same datagrams one by one through another: there must be no
// difference.
func wantAsApart(t testing.TB, open func() *world, trains []Received) {
	t.Helper()
	together, single := open(), open()
	var singles []Received
	for _, r := range trains {
		singles = append(singles, apart(r)...)
	}
	want := keep(single.receive(singles...))
	got := keep(together.receive(trains...))
	equal := slices.EqualFunc(got, want, func(a, b delivered) bool {
		return a.offload == b.offload && a.frames == b.frames && a.bytes == b.bytes && bytes.Equal(a.content, b.content)
	})
	if !equal {
		t.Errorf("%d items of trains, and %d of datagrams by themselves, or others", len(got), len(want))
		for i := range min(len(got), len(want)) {
			t.Logf("  %d and %d frames, %d and %d bytes, %+v and %+v", got[i].frames, want[i].frames, len(got[i].content), len(want[i].content), got[i].offload, want[i].offload)
		}
	}
	for r := range NumReasons {
		if a, b := together.dropped(r), single.dropped(r); a != b {
			t.Errorf("%d dropped as %v, and %d by themselves", a, r, b)
		}
	}
	if a, b := together.ingress.Datagrams, single.ingress.Datagrams; a != b {
		t.Errorf("%d datagrams, and %d by themselves", a, b)
	}
	if a, b := together.net.Counters.UnderlayIn.Bytes.Load(), single.net.Counters.UnderlayIn.Bytes.Load(); a != b {
		t.Errorf("%d bytes, and %d by themselves", a, b)
	}
	together.checkLaw(t)
}

// trainKinds are flows that trains are made of. Those with an ECN field are changed by what the underlay has marked.
func trainKinds() []*frametest.Builder {
	const ect0 = 2
	return []*frametest.Builder{
		frametest.TCP4(frametest.Opts{Payload: 900}), frametest.TCP4(frametest.Opts{Payload: 900, TOS: ect0}),
		frametest.TCP6(frametest.Opts{Payload: 900}), frametest.TCP4(frametest.Opts{Payload: 900, VLANs: []uint16{7}}),
		frametest.TCP4(frametest.Opts{Payload: 900, Fragmentable: true}),
		frametest.UDP4(frametest.Opts{Payload: 900}), frametest.UDP6(frametest.Opts{Payload: 900, TOS: ect0}),
	}
}

// anyTrains cuts one or two flows into trains, from senders of all sorts, and changes some of their bytes, but for the
// first datagram of each train: as long as it has the length that it states, what follows is a train.
func anyTrains(t *rapid.T) (out []Received) {
	kinds := trainKinds()
	size := rapid.SampledFrom([]int{50, 100, 128}).Draw(t, "size")
	for range rapid.IntRange(1, 2).Draw(t, "flows") {
		b := kinds[rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")]
		parts, err := frametest.Segments(b.Bytes(), size)
		if err != nil {
			t.Fatal(err)
		}
		for i := range parts {
			parts[i] = encap(rapid.SampledFrom([]addr.VNI{testVNI, testVNI, testVNI, testVNI, testVNI, testVNI + 1}).Draw(t, "network"), parts[i])
		}
		for len(parts) > 0 {
			n := rapid.IntRange(1, len(parts)).Draw(t, "length")
			from := rapid.SampledFrom([]netip.Addr{peerA, peerA, peerB, frametest.IP4(99)}).Draw(t, "from")
			r := train(from, parts[:n]...)
			r.Stride, r.TOS = len(parts[0]), rapid.Uint8Range(0, 3).Draw(t, "outer ECN")
			for range rapid.IntRange(0, 3).Draw(t, "changes") {
				at := rapid.IntRange(0, len(r.Data)-1).Draw(t, "at")
				if rapid.Bool().Draw(t, "in a header") {
					at = at/r.Stride*r.Stride + rapid.IntRange(0, min(75, r.Stride-1)).Draw(t, "of the header")
				}
				if at >= r.Stride && at < len(r.Data) {
					r.Data[at] ^= rapid.Byte().Draw(t, "change")
				}
			}
			out = append(out, r)
			parts = parts[n:]
		}
	}
	return out
}

// TestTrainsAreAsDatagrams holds what spares a datagram its checks to what it would be without.
func TestTrainsAreAsDatagrams(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		trains := anyTrains(rt)
		isolate := rapid.Bool().Draw(rt, "isolated")
		wantAsApart(t, func() *world {
			if isolate {
				return newIsolated(t, full)
			}
			return newWorld(t, full, peerA, peerB)
		}, trains)
		if t.Failed() {
			rt.FailNow()
		}
	})
}

// TestTrainsDiffer changes each byte of the headers of one datagram of a train: as a broken one has it, and as one of another
// flow has it, whose checksums are right.
func TestTrainsDiffer(t *testing.T) {
	for kind, b := range trainKinds() {
		parts := segments(t, b, 100)
		headers := len(parts[0]) - 100
		for at := range headers {
			for _, change := range []byte{0x01, 0x08, 0x80} {
				for _, mended := range []bool{false, true} {
					odd := bytes.Clone(parts[3])
					odd[at] ^= change
					if mended {
						mend(odd[min(header.VXLANLen, len(odd)):])
					}
					r := train(peerA, parts[0], parts[1], parts[2], odd, parts[4], parts[5])
					wantAsApart(t, func() *world { return newWorld(t, full, peerA) }, []Received{r})
					if t.Failed() {
						t.Fatalf("kind %d, byte %d changed by %#x, mended: %v", kind, at, change, mended)
					}
				}
			}
		}
	}
}

// mend makes the checksums of the frame f right, as far as it has any.
func mend(f []byte) {
	at := header.EthernetLen
	if header.Ethernet(f).EtherType() == header.EtherTypeVLAN {
		at += header.VLANLen
	}
	if f[at]>>4 == 4 {
		ip := header.IPv4(f[at:min(len(f), at+header.IPv4MinLen)])
		ip.SetChecksum(0)
		ip.SetChecksum(checksum.Checksum(ip))
	}
	var p frame.Parsed
	if p.Parse(f) == frame.Sound && p.PayloadOff != 0 {
		gso.CompleteTransport(f, &p)
	}
}

// TestTrainsFill has flows that are longer than a superframe can be.
func TestTrainsFill(t *testing.T) {
	tcp := append(segments(t, frametest.TCP4(frametest.Opts{Payload: 60000, Seq: 7}), 1000),
		segments(t, frametest.TCP4(frametest.Opts{Payload: 60000, Seq: 60007}), 1000)...)
	udp := segments(t, frametest.UDP6(frametest.Opts{Payload: 20000}), 100)
	for name, r := range map[string][]Received{
		"TCP":  {train(peerA, tcp[:40]...), train(peerA, tcp[40:80]...), train(peerA, tcp[80:]...)},
		"UDP":  {train(peerA, udp...)},
		"both": {train(peerA, tcp[:40]...), train(peerA, udp[:70]...), train(peerA, tcp[40:]...)},
	} {
		t.Run(name, func(t *testing.T) {
			wantAsApart(t, func() *world { return newWorld(t, full, peerA) }, r)
		})
	}
}

// TestTrainsShorten has datagrams whose frames are shorter than the ones before: padded, in the middle of a train, and cut
// off, at its end.
func TestTrainsShorten(t *testing.T) {
	flow := func(seq uint32, n int) []byte {
		return encap(testVNI, frametest.TCP4(frametest.Opts{Seq: seq, Payload: n}).Bytes())
	}
	padded := append(flow(200, 50), make([]byte, 50)...)
	cut := flow(200, 100)
	for name, r := range map[string]Received{
		"padded":                train(peerA, flow(0, 100), flow(100, 100), padded, flow(250, 100), flow(350, 100)),
		"shorter":               train(peerA, flow(0, 100), flow(100, 100), flow(200, 50)),
		"cut off":               train(peerA, flow(0, 100), flow(100, 100), cut[:len(cut)-10]),
		"no more than a header": train(peerA, flow(0, 100), flow(100, 100), cut[:header.VXLANLen]),
		"less":                  train(peerA, flow(0, 100), flow(100, 100), cut[:header.VXLANLen-1]),
	} {
		t.Run(name, func(t *testing.T) {
			wantAsApart(t, func() *world { return newWorld(t, full, peerA) }, []Received{r})
		})
	}
}

// TestTrainOfAStranger has a host that is no member send what follows in a flow of one that is.
func TestTrainOfAStranger(t *testing.T) {
	parts := segments(t, frametest.TCP4(frametest.Opts{Payload: 10000}), 1000)
	w := newWorld(t, full, peerA)
	items := w.receive(train(peerA, parts[:5]...), train(frametest.IP4(99), parts[5:]...))
	if len(items) != 1 || items[0].Frames != 5 {
		t.Errorf("%d items, the first of %d frames", len(items), items[0].Frames)
	}
	w.wantDropped(t, VTEPUnknown, 5)
}

// TestTrainBehindAnotherFlow has the member of a network end a flow within a train, so that the flow before it is the one
// that is joined to last, and go on with that of another sender.
func TestTrainBehindAnotherFlow(t *testing.T) {
	whole := segments(t, frametest.TCP4(frametest.Opts{Payload: 3000, SrcPort: 1}), 1000)
	other := segments(t, frametest.TCP4(frametest.Opts{Payload: 2000, SrcMAC: frametest.MAC(3), SrcPort: 2, Flags: header.TCPAck | header.TCPPsh}), 1000)
	spoofed := bytes.Clone(whole[1])
	w := newWorld(t, full, peerA, peerB)
	w.net.Learning = false
	w.net.FDB.SetStatic(header.Ethernet(whole[0][header.VXLANLen:]).Src(), w.id(t, peerA))
	items := w.receive(train(peerA, whole[0]), train(peerB, other[0], other[1], spoofed))
	if len(items) != 2 || items[0].Frames != 1 || items[1].Frames != 2 {
		t.Errorf("%d items", len(items))
	}
	w.wantDropped(t, SourceSpoofed, 1)
}
