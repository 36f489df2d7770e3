package gossip

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
)

var (
	// ErrTooBig says that a message does not fit into a packet, see MaxMessage.
	ErrTooBig = errors.New("too big for a packet")
	// ErrQueueFull says that so many messages wait to be sent for the first time that another one would only
	// make all of them late.
	ErrQueueFull = errors.New("too many messages wait to be sent")
)

// maxQueued bounds the messages in a queue, at 1.5 MB: it takes a second and more to send as many.
const maxQueued = 1024

// queue has the messages that are to be sent, each to several nodes. memberlist has such a queue too, in which
// a message that is too large for any packet stays for ever, and the newest go first. Here the oldest
// go first among those that have been sent equally often, because every batch builds on the one before it.
type queue struct {
	dropped *atomic.Uint64

	mu    sync.Mutex
	items []*queued // by sent, then seq
	seq   uint64
}

type queued struct {
	message []byte
	sent    int
	seq     uint64
}

func (q *queued) compare(o *queued) int {
	return cmp.Or(cmp.Compare(q.sent, o.sent), cmp.Compare(q.seq, o.seq))
}

// add appends a message, which must not change any more.
func (q *queue) add(message []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.items); n >= maxQueued {
		if q.items[n-1].sent == 0 {
			return ErrQueueFull
		}
		// What has gone out most often will be missed least.
		q.items = q.items[:n-1]
		q.dropped.Add(1)
	}
	q.seq++
	i, _ := slices.BinarySearchFunc(q.items, &queued{seq: q.seq}, (*queued).compare)
	q.items = slices.Insert(q.items, i, &queued{message: message, seq: q.seq})
	return nil
}

// take returns messages for one packet with limit bytes of room, of which each message takes overhead more
// than its length. Those that have been sent times times are dropped from the queue; so are, counted, those
// longer than longest: paths have become narrower since they were added.
func (q *queue) take(overhead, limit, longest, times int) [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out [][]byte
	keep := q.items[:0]
	for _, m := range q.items {
		size := overhead + len(m.message)
		switch {
		case len(m.message) > longest:
			q.dropped.Add(1)
			continue
		case size <= limit && len(out) < maxParts/2: // memberlist may add parts of its own
			out = append(out, m.message)
			limit -= size
			if m.sent++; m.sent >= times {
				continue
			}
		}
		keep = append(keep, m)
	}
	clear(q.items[len(keep):])
	q.items = keep
	if len(out) > 0 {
		slices.SortFunc(q.items, (*queued).compare)
	}
	return out
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// sendTimes returns how often each node sends a message, in a cluster of n. When every node that gets a message
// sends it to c random ones, a part of exp(-c) never gets it. So this leaves one node without one message in
// sixty, whatever n, and with 10 % loss one in twenty. They find out by digests.
func sendTimes(n int) int {
	return 4 + int(math.Ceil(math.Log(float64(n+1))))
}
