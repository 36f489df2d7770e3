package state

import (
	"testing"

	"pgregory.net/rapid"
)

// TestIndex compares with a map, under a hash that makes many keys collide.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(0, 8).Draw(t, "bits of the hash")
		x := &index{
			hash: func(e *endpoint) uint64 { return uint64(e.ip4) * 0x9e3779b97f4a7c15 >> (63 - bits) },
			same: func(a, b *endpoint) bool { return a.ip4 == b.ip4 },
		}
		model := map[uint32]*endpoint{}
		keys := rapid.IntRange(1, 400).Draw(t, "keys")
		for range rapid.IntRange(1, 30).Draw(t, "runs") {
			adding := rapid.IntRange(0, 2).Draw(t, "adding") > 0
			for range rapid.IntRange(1, 60).Draw(t, "run") {
				e := &endpoint{ip4: uint32(rapid.IntRange(0, keys).Draw(t, "key"))}
				if adding {
					x.put(e)
					model[e.ip4] = e
				} else {
					x.remove(e)
					delete(model, e.ip4)
				}
			}
			if x.used != len(model) || x.used*4 > len(x.slots)*3 || len(x.slots) > minSlots && x.used*16 < len(x.slots) {
				t.Fatalf("%d of %d slots are used for %d endpoints", x.used, len(x.slots), len(model))
			}
			for k := range keys + 1 {
				if got := x.find(&endpoint{ip4: uint32(k)}); got != model[uint32(k)] {
					t.Fatalf("key %d: %p, want %p", k, got, model[uint32(k)])
				}
			}
		}
	})
}
