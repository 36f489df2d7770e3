package pathmtu

import (
	"net/netip"
	"sync"
	"time"
)

// What may wait for the prober's goroutine.
const (
	maxQueued      = 8192
	maxQueuedBytes = 8 << 20
)

// arrival is a message or an ICMP error.
type arrival struct {
	local, remote netip.Addr
	payload       []byte
	at            time.Time
	size          int // of the outer packet; of a hint the MTU that it claims
	hint          bool
}

// queue takes what arrives from many goroutines to one.
type queue struct {
	mu     sync.Mutex
	items  []arrival
	spare  []arrival // what was taken last
	bytes  int
	losses uint64
}

// put copies the payload, or counts a loss if too much is waiting.
func (q *queue) put(a arrival, payload []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) >= maxQueued || q.bytes+len(payload) > maxQueuedBytes {
		q.losses++
		return
	}
	a.payload = append([]byte(nil), payload...)
	q.items = append(q.items, a)
	q.bytes += len(payload)
}

// take returns what is waiting, and keeps the count of what was lost. What it returns is valid until the next call.
func (q *queue) take(counters *Counters) []arrival {
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := q.items
	clear(q.spare)
	q.items, q.spare, q.bytes = q.spare[:0], taken, 0
	counters.QueueLosses = q.losses
	return taken
}
