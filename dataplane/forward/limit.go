package forward

import (
	"math"
	"sync/atomic"
)

// Limiter is a token bucket for the frames that one network floods. All workers of the network share it: Allow is
// lock-free and may be called from any goroutine.
//
// It limits what comes from the TAP, before a copy is made for each VTEP, and so what one host can burden all others
// with. What comes in from the underlay is not limited: its sender's host has done so, it goes to one TAP and makes
// no copies, and a bucket that the frames of all hosts share would let the noisiest of them silence the others.
type Limiter struct {
	interval int64 // nanoseconds in which one token comes
	depth    int64 // nanoseconds in which an empty bucket fills
	bucket   bucket
}

// bucket is the state of a token bucket that many goroutines share. The zero bucket is full if time begins at 0.
type bucket struct {
	// full is when the bucket will be full again, were nothing taken any more. That one word is all its state.
	full atomic.Int64
}

// NewLimiter returns a bucket for burst frames, at least 1, that is full and refilled at perSecond, or nil, which is no
// limit, if perSecond is not above 0. The time between two frames is rounded to nanoseconds: of a rate up to a million
// a second, that changes less than a thousandth.
func NewLimiter(perSecond, burst int) *Limiter {
	if perSecond <= 0 {
		return nil
	}
	interval := max(1, (int64(1e9)+int64(perSecond)/2)/int64(perSecond))
	most := int64(math.MaxInt64/4) / interval // so that no sum of times overflows
	l := &Limiter{interval: interval, depth: min(max(1, int64(burst)), most) * interval}
	l.bucket.full.Store(math.MinInt64)
	return l
}

// Allow takes tokens for n frames at the time now, in nanoseconds of a clock that never goes back by much, and returns
// for how many of them there were any.
func (l *Limiter) Allow(now int64, n int) int { return l.bucket.take(now, n, l.interval, l.depth) }

// take takes up to n tokens, of which one comes every interval, from a bucket that fills in depth.
func (b *bucket) take(now int64, n int, interval, depth int64) int {
	for {
		full := b.full.Load()
		start := max(full, now)
		k := min((depth-(start-now))/interval, int64(n))
		if k <= 0 {
			return 0
		}
		if b.full.CompareAndSwap(full, start+k*interval) {
			return int(k)
		}
	}
}
