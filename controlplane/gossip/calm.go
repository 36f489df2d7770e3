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

	rested time.Time // when the last rest ended, by plan; of memberlist's goroutine that probes
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

// quiet reports whether there was no sign for some time.
func (c *calm) quiet() bool { return int64(time.Since(c.epoch)) >= c.busy.Load() }

// wait returns when rounds are to be made: at once, or else when stir or end is called.
func (c *calm) wait() {
	for c.quiet() {
		select {
		case <-c.wake: // which may be from long ago
		case <-c.done:
			return
		}
	}
}

// rest holds memberlist up after a probe that was answered after took, until the clock shows a whole multiple of every, the
// interval of probes: then this process does all that it does again and again. memberlist's own tick comes meanwhile, unheard,
// so that the next probe follows at once. There is one in each interval as without this; only the first rest is longer, less
// than twice the interval. It begins no rest while there are signs: a member that may be lost is probed by memberlist's ticks
// alone. A sign during a rest does not end it, though: the next probe may then come up to an interval later than memberlist's
// tick would have made it, and after the first rest up to nearly two.
func (c *calm) rest(every, took time.Duration) {
	if !c.quiet() {
		return
	}
	now := time.Now()
	least := now.Add(every) // by which memberlist's tick has come
	if ago := now.Sub(c.rested); ago-took < every/10 {
		// This probe was made by a tick that came during the last rest, and there will be another by the end of this one, which
		// is whole if nobody has set the clock.
		least = now.Add(every - ago - every/10)
	}
	c.rested = least.Add(untilWhole(least, every))
	select {
	case <-time.After(c.rested.Sub(now)):
	case <-c.done:
	}
}

// untilWhole returns how long it is until the clock shows a whole multiple of d.
func untilWhole(now time.Time, d time.Duration) time.Duration { return d - now.Sub(now.Truncate(d)) }

// end lets what waits go, and nothing wait any more. It must be called once, after memberlist was told to shut down: what
// rests until then makes one more probe otherwise.
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
