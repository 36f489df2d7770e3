package forward

import (
	"bytes"
	"testing"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
)

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
