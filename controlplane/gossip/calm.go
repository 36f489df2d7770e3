package gossip

import (
	"sync/atomic"
	"time"
)

// calm holds memberlist's rounds of gossip up while there is nothing to say. memberlist makes a round every
// Timing.Gossip, come what may, and each wakes the processor: in a cluster in which nothing happens that is most of
// what this package costs. A round asks for messages. One that has nothing of its own to send and gets none waits here.
// While it does nobody listens to memberlist's ticker, and since Go 1.23 one that nobody listens to sets no timer; its
// tick that is overdue makes the next round follow at once. A node that is alone asks for nothing, and goes on to tick.
//
// memberlist does not tell when it has something to say. It nearly always follows from something that can be seen:
// a message about a member that comes or goes, a member that joins or is gone, or a probe that fails, upon which others
// are asked to try. So a round waits only when there was none of these for some time, longer than any probe takes. What
// memberlist has to say without such a sign rides on the probes, one each second or so, where it is seen as well.
type calm struct {
	after time.Duration // without a sign
	epoch time.Time
	busy  atomic.Int64  // until then rounds are made, since epoch
	wake  chan struct{} // capacity 1: busy was moved
	done  chan struct{} // closed by end
}

func newCalm(after time.Duration) *calm {
	c := &calm{after: after, epoch: time.Now(), wake: make(chan struct{}, 1), done: make(chan struct{})}
	c.stir()
	return c
}

// stir says that there is something to say now, or may be soon.
func (c *calm) stir() {
	c.busy.Store(int64(time.Since(c.epoch) + c.after))
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// wait returns when rounds are to be made: at once, or else when stir or end is called.
func (c *calm) wait() {
	for int64(time.Since(c.epoch)) >= c.busy.Load() {
		select {
		case <-c.wake: // which may be from long ago
		case <-c.done:
			return
		}
	}
}

// end lets the round that waits go, and none wait any more. It must be called once.
func (c *calm) end() { close(c.done) }

// tellsOfMembers reports whether a part that goes by means that memberlist has something to say, or may have soon.
func tellsOfMembers(part []byte) bool {
	if len(part) == 0 {
		return false
	}
	switch part[0] {
	case partSuspect, partAlive, partDead, partIndirectPing:
		return true
	}
	return false
}
