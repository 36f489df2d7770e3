package forward

import (
	"net/netip"
	"sync"
)

// SampleLen is how many bytes of a dropped frame a Sample keeps: enough for outer VXLAN, Ethernet, IPv6 and
// TCP headers with options.
const SampleLen = 192

// Sample is one dropped frame, or its beginning.
type Sample struct {
	Seq     uint64 // rises by one from sample to sample, from 1
	Time    int64  // nanoseconds of the clock that was handed in
	Network string // "" for a datagram that belongs to none
	Reason  DropReason
	Egress  bool       // it came from the TAP
	Outer   bool       // Data begins with a VXLAN header
	Peer    netip.Addr // VTEP that it came from or was meant for, if known
	Length  int        // bytes of the whole
	Kept    int        // bytes of Data that are filled
	Data    [SampleLen]byte
}

// Samples keeps the most recent drops. Writers and readers may be many; a write copies a few hundred bytes
// under a mutex, which is affordable because a frame that is dropped costs nothing else.
type Samples struct {
	mu   sync.Mutex
	ring []Sample
	next uint64 // sequence number of the next sample
}

// NewSamples keeps the last n.
func NewSamples(n int) *Samples { return &Samples{ring: make([]Sample, n), next: 1} }

// Add keeps one sample: s with the beginning of data.
func (r *Samples) Add(s Sample, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slot := &r.ring[r.next%uint64(len(r.ring))]
	*slot = s
	slot.Seq = r.next
	slot.Length = len(data)
	slot.Kept = copy(slot.Data[:], data)
	r.next++
}

// After returns the samples that are still kept whose Seq is above seq, oldest first.
func (r *Samples) After(seq uint64) []Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := uint64(1)
	if n := uint64(len(r.ring)); r.next > n {
		first = r.next - n
	}
	var out []Sample
	for s := max(first, seq+1); s < r.next; s++ {
		out = append(out, r.ring[s%uint64(len(r.ring))])
	}
	return out
}
