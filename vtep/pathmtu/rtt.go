package pathmtu

import (
	"slices"
	"time"
)

// How long to wait for acknowledgements.
const (
	minTimeout = 200 * time.Millisecond
	maxTimeout = time.Second // and what is waited while nothing is known of the peer
	minGrace   = 25 * time.Millisecond
	maxGrace   = 250 * time.Millisecond
)

// rtt estimates the time to a peer and back (RFC 6298, section 2). Each probe has a nonce of its own, so no
// measurement is ambiguous.
type rtt struct {
	smoothed  time.Duration // 0 = nothing measured
	variation time.Duration
	recent    [8]time.Duration // the last measurements, in a ring
	count     int
}

func (r *rtt) sample(d time.Duration) {
	d = max(d, time.Microsecond)
	r.recent[r.count%len(r.recent)] = d
	r.count++
	if r.smoothed == 0 {
		r.smoothed, r.variation = d, d/2
		return
	}
	r.variation += ((r.smoothed - d).Abs() - r.variation) / 4
	r.smoothed += (d - r.smoothed) / 8
}

// least is the least of the last few measurements, 0 if there is none. A busy host or a full queue makes single ones
// longer and none shorter, so that this is what the path itself takes, by which paths are compared.
func (r *rtt) least() time.Duration {
	if r.count == 0 {
		return 0
	}
	return slices.Min(r.recent[:min(r.count, len(r.recent))])
}

// grace is how long after the last acknowledgement of a round the others are waited for. Larger probes take
// longer over a slow link, each one by as much as the one before it.
func (r *rtt) grace() time.Duration {
	return min(max(minGrace, r.smoothed/4, r.variation), maxGrace)
}

// timeout is how long a round is waited for of which nothing has come back.
func (r *rtt) timeout() time.Duration {
	if r.smoothed == 0 {
		return maxTimeout
	}
	return max(minTimeout, min(4*r.smoothed, maxTimeout), r.smoothed+r.grace())
}
