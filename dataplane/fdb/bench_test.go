package fdb

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// scattered returns n MACs in an order that has nothing to do with their place in a table.
func scattered(n int) []addr.MAC {
	macs := make([]addr.MAC, n)
	for i := range macs {
		macs[i] = mac(uint64(i) * 0x9e3779b1 & 0xffffffff)
	}
	return macs
}

func filled(macs []addr.MAC) *Table {
	t := NewTable(len(macs))
	for i, m := range macs {
		t.Learn(m, VTEPID(i), 1)
	}
	return t
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{100, 10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			macs := scattered(n)
			t := filled(macs)
			i := 0
			for b.Loop() {
				if _, ok := t.Lookup(macs[i]); !ok {
					b.Fatal("missed")
				}
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}

func BenchmarkLookupMiss(b *testing.B) {
	macs := scattered(20_000)
	t := filled(macs[:10_000])
	i := 10_000
	for b.Loop() {
		if _, ok := t.Lookup(macs[i]); ok {
			b.Fatal("found")
		}
		if i++; i == len(macs) {
			i = 10_000
		}
	}
}

// BenchmarkLearn measures the four things that Learn does: nothing is due, a new second, a move, a new entry.
func BenchmarkLearn(b *testing.B) {
	const n = 10_000
	macs := scattered(n)
	for what, f := range map[string]func(t *Table, i, round int){
		"same-second": func(t *Table, i, _ int) { t.Learn(macs[i], VTEPID(i), 1) },
		"refresh":     func(t *Table, i, round int) { t.Learn(macs[i], VTEPID(i), uint32(2+round)) },
		"move":        func(t *Table, i, round int) { t.Learn(macs[i], VTEPID(i+round+1), 1) },
	} {
		b.Run(what, func(b *testing.B) {
			t := filled(macs)
			b.ReportAllocs()
			i, round := 0, 0
			for b.Loop() {
				f(t, i, round)
				if i++; i == n {
					i = 0
					round++
				}
			}
		})
	}
	// An iteration fills a table with a million.
	b.Run("add-1000000", func(b *testing.B) {
		macs := scattered(1_000_000)
		for b.Loop() {
			filled(macs)
		}
		b.ReportMetric(float64(b.N)*float64(len(macs))/b.Elapsed().Seconds(), "adds/s")
	})
}

// BenchmarkExpire goes through a million entries of which none is old.
func BenchmarkExpire(b *testing.B) {
	t := filled(scattered(1_000_000))
	for b.Loop() {
		t.Expire(2, 300)
	}
}

// BenchmarkMemory reports the heap that a table of a million takes, and fails above the 32 MB that it may.
func BenchmarkMemory(b *testing.B) {
	const n, limit = 1_000_000, 32e6
	measure := func(b *testing.B, fill func() any) {
		for b.Loop() {
			before := heap()
			t := fill()
			took := float64(heap() - before)
			runtime.KeepAlive(t)
			b.ReportMetric(took/1e6, "MB")
			if took > limit {
				b.Fatalf("%d entries take %.1f MB, more than %.0f", n, took/1e6, limit/1e6)
			}
		}
	}
	macs := scattered(n)
	b.Run("table", func(b *testing.B) { measure(b, func() any { return filled(macs) }) })
	b.Run("neighbors-v4", func(b *testing.B) {
		measure(b, func() any {
			t := NewNeighbors()
			for i := range n {
				t.Set(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), macs[i])
			}
			return t
		})
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
