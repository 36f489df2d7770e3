package pathmtu

import (
	"slices"
	"time"
)

// Pace says how closely a path is to be watched.
type Pace struct {
	Chosen  bool // it is what is used
	Traffic bool // datagrams go to the peer
	Known   bool // the peer has answered, here or at another of its addresses
	Hurry   bool // it may be chosen soon
	Dark    bool // datagrams go to the peer, and none of its addresses is known to answer
	Others  int  // how many candidates the peer has beside the chosen one; they share what may be spent on them
}

// What watching a settled path may cost, in bytes/s, all that it makes both ends send included. Full-size probes
// of large packets are rarer for it. The sum for a path, with the small probes to one other candidate, is below
// 2000 with traffic and below 100 without.
const (
	busyFullRate  = 1660
	busyRaiseRate = 170
	idleFullRate  = 30
	idleRaiseRate = 28
	idleSmallRate = 20
)

// The shortest intervals between probes of a settled path.
const (
	busyFull  = time.Second // RFC 8899, section 5.1.1, has 30 s and more: a black hole would last as long
	busyRaise = 10 * time.Second
	busyOther = 5 * time.Second
	busyAsk   = time.Second
	darkAsk   = 4 * time.Second        // with the second for which an answer is waited: every 5 s
	hurryAsk  = 400 * time.Millisecond // so that one that comes and goes each second is not only met when it is there
	idleFull  = time.Minute
	idleRaise = time.Minute
	idleSmall = 10 * time.Second
	idleOther = 15 * time.Second
)

// costOf is what a probe costs with its acknowledgement, and with a small one that goes with it.
func (l *limits) costOf(size int) int { return size + 3*l.small }

// every is how often something that costs so many bytes may be done at a rate in bytes/s.
func every(bytes, rate int, least time.Duration) time.Duration {
	return max(least, time.Duration(bytes)*time.Second/time.Duration(rate))
}

// The intervals at which a settled path is probed with each kind; 0 = never.

func (s *Search) fullInterval() time.Duration {
	switch {
	case s.lo == 0 || !s.pace.Chosen:
		return 0
	case s.pace.Traffic:
		return every(s.costOf(s.lo), busyFullRate, busyFull)
	default:
		return every(s.costOf(s.lo), idleFullRate, idleFull)
	}
}

func (s *Search) raiseInterval() time.Duration {
	switch {
	case s.hi > s.ceil || !s.pace.Chosen:
		return 0
	case s.pace.Traffic:
		return every(s.costOf(s.hi), busyRaiseRate, busyRaise)
	default:
		return every(s.costOf(s.hi), idleRaiseRate, idleRaise)
	}
}

func (s *Search) smallInterval() time.Duration {
	others := time.Duration(max(1, s.pace.Others))
	switch {
	case s.pace.Chosen && s.lo > 0 && s.pace.Traffic:
		return 0 // one goes with each of full size
	case s.pace.Hurry:
		return hurryAsk
	case s.pace.Chosen:
		return every(2*s.small, idleSmallRate, idleSmall)
	case s.pace.Traffic:
		return busyOther * others
	default:
		return idleOther * others
	}
}

// lostInterval is how long a peer that no longer answers, or does not at this of its addresses, is left alone between
// two questions.
func (s *Search) lostInterval() time.Duration {
	switch stranger := s.phase == phaseNew && !s.pace.Known; {
	case s.pace.Dark && (stranger || !s.pace.Chosen):
		return darkAsk
	case stranger:
		return maxBackoff // it may be of the kind that never answers
	case s.pace.Chosen && s.pace.Traffic:
		return busyAsk
	}
	return min(s.smallInterval(), idleOther)
}

// SetPace says how closely the path is to be watched from now on. What is looked at more closely than before
// is probed at once.
func (s *Search) SetPace(p Pace) {
	if p.Chosen && !s.pace.Chosen {
		s.Revalidate()
	}
	if p == s.pace {
		return
	}
	s.pace = p
	if s.phase == phaseNew || s.phase == phaseLost {
		s.retry = earlier(s.retry, s.lastSmall.Add(s.lostInterval()))
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// dueAt is when something is due that was done last at a time, or never if the interval is 0. What was never
// done is due at once.
func dueAt(last time.Time, interval time.Duration) (time.Time, bool) {
	if last.IsZero() {
		return last, true
	}
	return last.Add(interval), interval > 0
}

// due is when the next round begins, while none is open.
func (s *Search) due() time.Time {
	switch s.phase {
	case phaseNew, phaseLost:
		if s.promptAt.IsZero() {
			return s.retry // zero at first
		}
		return earlier(s.retry, s.promptAt)
	case phaseSearch:
		pause := min(time.Duration(max(0, s.rounds-maxRounds))*time.Second, idleOther)
		return s.round.start.Add(pause)
	}
	if s.silent > 0 || s.fullLosses > 0 {
		return s.round.start
	}
	next := s.lastSmall.Add(time.Hour)
	if !s.promptAt.IsZero() {
		next = s.promptAt
	}
	if at, ok := dueAt(s.lastSmall, s.smallInterval()); ok {
		next = earlier(next, at)
	}
	if at, ok := dueAt(s.lastFull, s.fullInterval()); ok && s.lo > 0 {
		next = earlier(next, at)
	}
	if at, ok := dueAt(s.lastRaise, s.raiseInterval()); ok && s.hi <= s.ceil {
		next = earlier(next, at)
	}
	return next
}

// plan appends the sizes of the round that begins now, if any does.
func (s *Search) plan(now time.Time, dst []int) []int {
	if now.Before(s.due()) {
		return dst
	}
	switch {
	case s.phase == phaseNew && s.round.number == 0 && !s.cautious, s.phase == phaseSearch:
		dst = s.planSearch(dst)
	case s.phase == phaseSettled:
		dst = s.planWatch(now, dst)
	default:
		dst = append(dst, s.small)
	}
	if !s.promptAt.IsZero() {
		s.prompted, s.promptAt = now, time.Time{}
	}
	s.lastSmall = now
	return dst
}

// planSearch is a round that narrows the interval down. The smallest size in question is tried again with each
// round, since only maxProbes losses count, but the sizes below it are searched at the same time: if it was
// lost by chance, little is lost by that.
func (s *Search) planSearch(dst []int) []int {
	floor, bound := s.interval()
	dst = append(dst, s.small)
	switch {
	case bound == floor+1 && bound > s.ceil:
		dst = append(dst, s.ceil)
	case bound == floor+1:
		for range confirm - s.losses[bound] {
			dst = append(dst, bound)
		}
	default:
		dst = s.planInterval(dst, floor, bound)
	}
	return append(dst, s.small)
}

func (s *Search) planInterval(dst []int, floor, bound int) []int {
	if floor < s.base-1 && s.base < bound && s.losses[s.base] == 0 {
		floor = s.base - 1 // nearly every path carries base: below is searched only if this one does not
		dst = append(dst, s.base)
	}
	start := len(dst)
	dst = appendSpread(dst, floor, bound)
	for _, size := range [...]int{s.hint, s.hint + 1} {
		if s.hint > 0 && floor < size && size < bound && !slices.Contains(dst[start:], size) {
			dst = append(dst, size)
		}
	}
	switch {
	case bound > s.ceil && !slices.Contains(dst, s.ceil):
		return append(dst, s.ceil)
	case bound <= s.ceil && s.losses[bound] < maxProbes:
		return append(dst, bound, bound)
	}
	return dst
}

// planWatch is a round that looks whether a settled path is still what it was.
func (s *Search) planWatch(now time.Time, dst []int) []int {
	dst = append(dst, s.small)
	if s.silent > 0 {
		dst = append(dst, s.small)
	}
	if s.fullLosses > 0 {
		if s.base < s.lo {
			dst = append(dst, s.base)
		}
		s.lastFull = now
		return append(dst, s.lo, s.lo)
	}
	if s.hint > 0 && s.hint < s.lo {
		dst = append(dst, s.hint)
		s.lastFull = time.Time{}
	}
	if at, ok := dueAt(s.lastFull, s.fullInterval()); s.lo > 0 && (s.silent > 0 || ok && !now.Before(at)) {
		dst = append(dst, s.lo)
		s.lastFull = now
	}
	if at, ok := dueAt(s.lastRaise, s.raiseInterval()); s.hi <= s.ceil && ok && !now.Before(at) {
		dst = append(dst, s.hi)
		s.lastRaise = now
	}
	return dst
}
