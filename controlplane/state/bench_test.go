package state

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// heap is how much memory is in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// million is a store with n endpoints in a /8, each with a name of 9 bytes, and how much memory they take.
func million(t testing.TB, n int) (s *Store, network *statev1.Network, perEndpoint float64) {
	s = NewStore()
	index := uint64(0)
	apply := func(e []byte) *statev1.Result {
		index++
		res, _, err := s.Apply(index, e)
		if err != nil || res.Error != nil {
			t.Fatal(res, err)
		}
		return res
	}
	apply(founding())
	network = apply(entry(2, 0, &statev1.CreateNetwork{Name: "big", Subnets: []string{"10.0.0.0/8"}})).Network
	for i := range 100 {
		node := testNode(i+2, worker)
		node.Addresses = []string{fmt.Sprintf("198.51.100.%d", i+1)}
		apply(entry(index+1, 0, &statev1.AddNode{Node: node}))
	}
	before := heap()
	for i := range n {
		apply(entry(index+1, 0, &statev1.AddEndpoint{Network: network.Id, Node: id(2 + i%100), Name: fmt.Sprintf("web-%05x", i)}))
	}
	// Besides the endpoints there are the batches of the ring, which are as many for any number of endpoints.
	s.ring = ring{}
	return s, network, float64(heap()-before) / float64(n)
}

// TestMemoryPerEndpoint logs what an endpoint costs and holds it to a bound, with which a million are a few hundred MB.
func TestMemoryPerEndpoint(t *testing.T) {
	s, _, built := million(t, 5_000)
	t.Logf("%.0f bytes an endpoint, as built", built)
	b := snapshotOf(t, s.Snapshot())
	t.Logf("%.0f bytes an endpoint in a snapshot", float64(len(b))/5_000)
	before := heap()
	restored := NewStore()
	if err := restored.Restore(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	after := float64(heap()-before) / 5_000
	t.Logf("%.0f bytes an endpoint, as restored", after)
	if max(built, after) > 400 {
		t.Errorf("an endpoint takes %.0f bytes as built and %.0f as restored, more than 400", built, after)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(restored)
	runtime.KeepAlive(b)
}

// BenchmarkMillion measures with a million endpoints in the state.
func BenchmarkMillion(b *testing.B) {
	const n = 1_000_000
	s, network, built := million(b, n)
	index := s.applied
	apply := func(b *testing.B, e []byte) *statev1.Result {
		index++
		res, _, err := s.Apply(index, e)
		if err != nil || res.Error != nil {
			b.Fatal(res, err)
		}
		return res
	}
	b.Run("add-and-remove", func(b *testing.B) {
		b.ReportMetric(built, "B/endpoint")
		for b.Loop() {
			e := apply(b, entry(index+1, 0, &statev1.AddEndpoint{Network: network.Id, Node: id(2)})).Endpoint
			apply(b, entry(index+1, 0, &statev1.RemoveEndpoint{Id: e.Id}))
		}
	})
	b.Run("move", func(b *testing.B) {
		e := s.EndpointByName(network.Id, "web-00000")
		for i := 0; b.Loop(); i++ {
			apply(b, entry(index+1, 0, &statev1.MoveEndpoint{Id: e.Id, Node: id(3 + i%2)}))
		}
	})
	b.Run("snapshot-taken", func(b *testing.B) {
		for b.Loop() {
			s.Snapshot()
		}
	})
	b.Run("snapshot-written", func(b *testing.B) {
		for b.Loop() {
			size, err := s.Snapshot().WriteTo(io.Discard)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(size)
		}
	})
	b.Run("restore", func(b *testing.B) {
		var buf bytes.Buffer
		if _, err := s.Snapshot().WriteTo(&buf); err != nil {
			b.Fatal(err)
		}
		before := heap()
		restored := NewStore()
		for b.Loop() {
			if err := restored.Restore(bytes.NewReader(buf.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/n, "B/endpoint")
		runtime.KeepAlive(&buf)
		runtime.KeepAlive(restored)
	})
	b.Run("load", func(b *testing.B) {
		var buf bytes.Buffer
		if _, err := s.PublicSnapshot().WriteTo(&buf); err != nil {
			b.Fatal(err)
		}
		before := heap()
		r := NewReplica()
		for b.Loop() { // the first time into an empty copy, and then without a difference
			if _, err := r.Load(bytes.NewReader(buf.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/n, "B/endpoint")
		runtime.KeepAlive(&buf)
		runtime.KeepAlive(r)
	})
	b.Run("adopt", func(b *testing.B) {
		before := heap()
		r := NewReplica()
		for b.Loop() {
			if _, err := r.Adopt(s); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/n, "B/endpoint")
		runtime.KeepAlive(r)
	})
	b.Run("apply", func(b *testing.B) {
		r := NewReplica()
		if _, err := r.Adopt(s); err != nil {
			b.Fatal(err)
		}
		e := s.EndpointByName(network.Id, "web-00000")
		for i := r.Index(); b.Loop(); i++ {
			e.Index, e.Generation, e.Node = i+1, e.Generation+1, id(3+int(i%2))
			batch := &statev1.Batch{ClusterId: cluster, Previous: i, Index: i + 1, Deltas: []*statev1.Delta{{Index: i + 1, Endpoint: e}}}
			if ok, err := r.Apply(batch); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("endpoints", func(b *testing.B) {
		for b.Loop() {
			if len(s.Endpoints("", "")) != n {
				b.Fatal("not all")
			}
		}
	})
	b.Run("digest", func(b *testing.B) {
		for b.Loop() {
			s.Digest()
		}
	})
}

// BenchmarkFindAddress looks for a free address in pools of two sizes, 256 times apart: empty, with one hole at the worst
// place, and full.
func BenchmarkFindAddress(b *testing.B) {
	for _, width := range []int{16, 24} {
		for _, holes := range []string{"all free", "one free", "none free"} {
			taken := newBitmap(width)
			last := uint64(1)<<width - 2
			if holes != "all free" {
				for n := range uint64(1) << width {
					taken.add(n)
				}
			}
			next := uint64(1)
			if holes == "one free" {
				next = last/2 + 1
				taken.remove(last / 2)
			}
			b.Run(fmt.Sprintf("/%d %s", 32-width, holes), func(b *testing.B) {
				for b.Loop() {
					if _, ok := nextFree(taken, next, 1, last); ok == (holes == "none free") {
						b.Fatal("wrong")
					}
				}
			})
		}
	}
}
