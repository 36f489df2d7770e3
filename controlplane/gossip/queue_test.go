package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
)

func newQueue() *queue { return &queue{dropped: &atomic.Uint64{}} }

func texts(b [][]byte) (out []string) {
	for _, m := range b {
		out = append(out, string(m))
	}
	return out
}

func TestQueueOrder(t *testing.T) {
	q := newQueue()
	for i := range 5 {
		if err := q.add([]byte{'a' + byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	// Room for two of one byte with an overhead of three.
	var got []string
	for range 5 {
		got = append(got, texts(q.take(3, 9, 100, 2))...)
	}
	want := []string{"a", "b", "c", "d", "e", "a", "b", "c", "d", "e"}
	if !slices.Equal(got, want) {
		t.Errorf("took %v, want %v: the least sent first, of these the oldest first", got, want)
	}
	if n := q.len(); n != 0 {
		t.Errorf("%d are left, want none", n)
	}
	if err := errors.Join(q.add([]byte("old")), q.add([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	q.take(3, 6, 100, 5)
	if err := q.add([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if got, want := texts(q.take(3, 100, 100, 5)), []string{"x", "new", "old"}; !slices.Equal(got, want) {
		t.Errorf("took %v, want %v", got, want)
	}
}

func TestQueueSkipsWhatDoesNotFitNow(t *testing.T) {
	q := newQueue()
	if err := errors.Join(q.add(make([]byte, 50)), q.add(make([]byte, 10)), q.add(make([]byte, 200))); err != nil {
		t.Fatal(err)
	}
	if got := q.take(3, 20, 100, 9); len(got) != 1 || len(got[0]) != 10 {
		t.Errorf("took %d messages, want the one of 10 bytes", len(got))
	}
	if q.len() != 2 || q.dropped.Load() != 1 {
		t.Errorf("%d are left, %d dropped, want 2 and 1, the one that no packet has room for", q.len(), q.dropped.Load())
	}
	if got := q.take(3, -5, 100, 9); got != nil {
		t.Errorf("took %d messages into no room", len(got))
	}
}

func TestQueueIsBounded(t *testing.T) {
	q := newQueue()
	for i := range maxQueued {
		if err := q.add([]byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.add([]byte("more")); !errors.Is(err, ErrQueueFull) {
		t.Errorf("adding to a full queue: %v, want ErrQueueFull", err)
	}
	first := texts(q.take(3, 6, 100, 9))
	if err := q.add([]byte("more")); err != nil {
		t.Errorf("adding when something has been sent: %v", err)
	}
	if q.len() != maxQueued || q.dropped.Load() != 1 {
		t.Errorf("%d queued, %d dropped, want %d and 1", q.len(), q.dropped.Load(), maxQueued)
	}
	for _, m := range q.take(0, 1<<20, 100, 9) {
		if slices.Contains(first, string(m)) {
			t.Errorf("%s was kept, which had been sent before", m)
		}
	}
	// memberlist adds its own parts to a packet, which may have 255.
	for range 10 {
		if got := len(q.take(0, 1<<20, 100, 99)); got > 200 {
			t.Errorf("took %d messages at once", got)
		}
	}
}

func TestSeen(t *testing.T) {
	s := newSeen()
	if !s.add([]byte("x")) || s.add([]byte("x")) {
		t.Error("a message must be new once")
	}
	for i := range remembered {
		s.add(fmt.Append(nil, i))
	}
	if len(s.known) != remembered {
		t.Errorf("%d are remembered, want %d", len(s.known), remembered)
	}
	if !s.add([]byte("x")) {
		t.Error("the oldest is still known")
	}
	if s.add(fmt.Append(nil, remembered-1)) {
		t.Error("the newest is forgotten")
	}
}

func TestSendTimes(t *testing.T) {
	for n, want := range map[int]int{0: 4, 1: 5, 5: 6, 50: 8, 1000: 11} {
		if got := sendTimes(n); got != want {
			t.Errorf("%d nodes: %d times, want %d", n, got, want)
		}
	}
}

func TestMaxMessageFits(t *testing.T) {
	for _, packet := range []int{minPacket, 1252, maxPacket} {
		room := packet - packetOverhead
		m := bytes.Repeat([]byte{partUser}, 1+1+maxMessage(room))
		if got := join([][]byte{m}, room); len(got) != 1 || len(got[0]) > room {
			t.Errorf("packet of %d: the longest message takes %d bytes", packet, len(got[0]))
		}
		// And memberlist's arithmetic gives it its place.
		limit := burst*maxRoom - compoundHeaderLen - (burst*(maxRoom-room) + compoundPartLen)
		q := newQueue()
		if err := q.add(m[1:]); err != nil {
			t.Fatal(err)
		}
		if got := q.take(compoundPartLen+1, limit, maxMessage(room)+1, 1); len(got) != 1 {
			t.Errorf("packet of %d: the longest message is never taken", packet)
		}
	}
}

// What memberlist is given beside what it has goes into a burst of packets that the path carries, and no more.
func TestGetBroadcastsKeepsToThePath(t *testing.T) {
	for _, packet := range []int{minPacket, 1252, maxPacket, 9000} {
		g := &Gossip{members: newMembers("self"), cfg: Config{PacketSize: func() int { return packet }}}
		g.queue.dropped = &g.count.queueDropped
		const messages, length = 200, 250
		for range messages {
			if err := g.queue.add(make([]byte, length)); err != nil {
				t.Fatal(err)
			}
		}
		const first = 80 // bytes of a ping
		packed := [][]byte{make([]byte, first)}
		for _, m := range (delegate{g}).GetBroadcasts(compoundPartLen+1, burst*maxRoom-compoundHeaderLen-first) {
			packed = append(packed, append([]byte{partUser}, m...))
		}
		got := join(packed, g.room())
		for _, p := range got {
			if len(p) > g.room() {
				t.Errorf("packet of %d: one with %d bytes, %d fit", packet, len(p), g.room())
			}
		}
		// What does not fill a packet to its end costs another one at most for each that holds two messages or more.
		if each := g.room() / (length + compoundPartLen + 2); len(got) > 2*burst || len(packed)-1 < burst*max(each-1, 1) {
			t.Errorf("packet of %d: %d messages with a ping take %d packets", packet, len(packed)-1, len(got))
		}
	}
}
