package state

import (
	"sort"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Bounds of the ring.
const (
	maxBatches = 4096
	maxDeltas  = 65536 // in all batches together; a batch that has more alone is kept until the next one comes
)

// ring holds the newest batches, each of which continues the one before it.
type ring struct {
	batches [maxBatches]*statev1.Batch
	first   int // place of the oldest one
	count   int
	deltas  int // in all
}

// at returns the i-th batch, from the oldest one on.
func (r *ring) at(i int) *statev1.Batch { return r.batches[(r.first+i)%maxBatches] }

func (r *ring) add(b *statev1.Batch) {
	for r.count > 0 && (r.count == maxBatches || r.deltas+size(b) > maxDeltas) {
		r.deltas -= size(r.at(0))
		r.batches[r.first] = nil
		r.first = (r.first + 1) % maxBatches
		r.count--
	}
	r.batches[(r.first+r.count)%maxBatches] = b
	r.count++
	r.deltas += size(b)
}

// since returns the batches that lead on from index, if the ring has them all.
func (r *ring) since(index uint64) ([]*statev1.Batch, bool) {
	i := sort.Search(r.count, func(i int) bool { return r.at(i).Previous >= index })
	if i == r.count || r.at(i).Previous != index {
		return nil, false // too old, or none of ours
	}
	out := make([]*statev1.Batch, 0, r.count-i)
	for ; i < r.count; i++ {
		out = append(out, r.at(i))
	}
	return out, true
}

// Since returns the batches after index, oldest first, none if index is the newest. They are shared: nobody may change
// them. False means that they are not at hand, or that index is not one at which something changed: a copy at index
// then needs a PublicSnapshot.
func (s *Store) Since(index uint64) ([]*statev1.Batch, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if index == s.c.index {
		return nil, true
	}
	return s.ring.since(index)
}
