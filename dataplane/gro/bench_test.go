package gro_test

import (
	"bytes"
	"testing"

	"github.com/overlayd/overlayd/dataplane/frame"
	ft "github.com/overlayd/overlayd/dataplane/frametest"
	. "github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/gso"
)

// batch is frames with what Add wants to know about them.
type batch []struct {
	b       []byte
	p       frame.Parsed
	sum     gso.Checksum
	headers []byte // as they were: the Coalescer writes over those in b
}

func newBatch(t testing.TB, flows, frames, size int, udp bool) batch {
	t.Helper()
	s := make([]*stream, flows)
	for i := range s {
		s[i] = newStream()
		s[i].port += uint16(i)
		s[i].udp, s[i].time = udp, 1
	}
	out := make(batch, frames)
	for i := range out {
		f := &out[i]
		f.b = s[i%flows].next(size)
		if f.p.Parse(f.b) != frame.Sound {
			t.Fatal("not sound")
		}
		f.sum = gso.Verify(f.b, &f.p)
		f.headers = bytes.Clone(f.b[:f.p.PayloadOff])
	}
	return out
}

func (f batch) run(c *Coalescer) int {
	c.Reset()
	for i := range f {
		copy(f[i].b, f[i].headers)
		c.Add(f[i].b, &f[i].p, f[i].sum)
	}
	return len(c.Items())
}

func TestCoalescerAllocatesNothing(t *testing.T) {
	superframe := ft.TCP4(ft.Opts{Payload: 9000}).Bytes()
	var p frame.Parsed
	p.Parse(superframe)
	cut := gso.Split(nil, gso.NewArena(make([]byte, 1<<16)), nil, superframe, &p, 1000)
	for _, f := range []batch{newBatch(t, 1, 300, 1400, false), newBatch(t, 5, 300, 64, true), newBatch(t, 20, 300, 64, false)} {
		c := New(both)
		run := func() {
			f.run(c)
			c.AddSuperframe(superframe, &p, 1000)
			c.AddCut(cut)
			c.Items()
		}
		run()
		if n := testing.AllocsPerRun(20, run); n != 0 {
			t.Errorf("%d frames: %v allocations once warm", len(f), n)
		}
	}
}

func BenchmarkCoalesce(b *testing.B) {
	for _, c := range []struct {
		name   string
		frames batch
	}{
		{"tcp, 1 flow", newBatch(b, 1, 44, 1448, false)},
		{"tcp, 4 flows", newBatch(b, 4, 64, 1448, false)},
		{"udp, 1 flow", newBatch(b, 1, 64, 64, true)},
		{"udp, 64 flows", newBatch(b, 64, 64, 64, true)},
	} {
		b.Run(c.name, func(b *testing.B) {
			g := New(both)
			b.ReportAllocs()
			for b.Loop() {
				c.frames.run(g)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(c.frames)), "ns/frame")
		})
	}
}
