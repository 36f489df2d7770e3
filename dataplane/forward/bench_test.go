package forward

import (
	"testing"

	"github.com/overlayd/overlayd/dataplane/frametest"
)

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
