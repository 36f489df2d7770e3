package pathmtu

import (
	"net/netip"
	"sync"
	"time"
)

// What may wait for the prober's goroutine. Of it, what is of no peer has a part, so that whoever sends much of that does
// not keep the peers out.
const (
	maxQueued      = 8192
	maxQueuedBytes = 8 << 20
	strangersPart  = 4
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
	all    waiting
	alien  waiting // of it, what is of strangers
	losses uint64
}

type waiting struct{ items, bytes int }

func (w *waiting) full(more, part int) bool {
	return w.items >= maxQueued/part || w.bytes+more > maxQueuedBytes/part
}

func (w *waiting) add(bytes int) {
	w.items++
	w.bytes += bytes
}

// put copies the payload, or counts a loss if too much is waiting.
func (q *queue) put(a arrival, payload []byte, stranger bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all.full(len(payload), 1) || stranger && q.alien.full(len(payload), strangersPart) {
		q.losses++
		return
	}
	q.all.add(len(payload))
	if stranger {
		q.alien.add(len(payload))
	}
	a.payload = append([]byte(nil), payload...)
	q.items = append(q.items, a)
}

// take returns what is waiting, and keeps the count of what was lost. What it returns is valid until the next call.
func (q *queue) take(counters *Counters) []arrival {
	q.mu.Lock()
	defer q.mu.Unlock()
	taken := q.items
	clear(q.spare)
	q.items, q.spare, q.all, q.alien = q.spare[:0], taken, waiting{}, waiting{}
	counters.QueueLosses = q.losses
	return taken
}
