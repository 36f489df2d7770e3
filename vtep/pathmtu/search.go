package pathmtu

import (
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

// How many probes have to be lost, while smaller ones of the same round are acknowledged, before a size counts
// as too large.
const (
	maxProbes = 3 // MAX_PROBES of RFC 8899, section 5.1.2: for a step of the search
	confirm   = 5 // for its result, which lasts: at a loss of 1 % each way 1 search in 300 million is wrong
)

// maxSilent is how many rounds have to be lost altogether before a peer counts as lost.
const maxSilent = 3

// maxBackoff is how rarely a peer is asked that has never answered.
const maxBackoff = 30 * time.Second

// maxRounds is how many rounds a search may take, one right after the other, before it is slowed down. It
// needs about 5, and on a path that loses every fifth packet about 15.
const maxRounds = 40

type phase uint8

const (
	phaseNew     phase = iota // never acknowledged: RFC 8899, section 5.2, DISABLED and BASE
	phaseSearch               // SEARCHING
	phaseSettled              // SEARCH_COMPLETE
	phaseLost                 // it once answered: ERROR, but for the size, which is kept
)

// Probe is one probe of a Search: an outer IP packet to be sent.
type Probe struct {
	Size  int       // bytes, with the IP header
	Sent  time.Time // when
	round uint64
	index int
}

// Search finds the largest packet that passes from one local address to one remote one, and watches that it
// goes on to pass (RFC 8899, section 5). It is a state machine without a clock: it sends nothing itself, but
// says what is to be sent and when it wants to be asked again. It belongs to one goroutine.
//
// It works in rounds. The probes of a round are sent together, first and last of them a small one. A round
// ends when all of them are acknowledged, or none was for a while after the last. Only then is a size that
// was not acknowledged taken for lost, and only if a smaller one of the same round got through: a round of
// which nothing comes back says something of the peer and nothing of sizes.
type Search struct {
	limits
	cautious bool
	pace     Pace
	phase    phase
	rtt      rtt

	proven   bool        // lo, or that not even base passes, was found out by probing
	complete bool        // and nothing is left to be searched
	lo       int         // the largest size acknowledged; 0 = none of at least min
	hi       int         // the smallest size that counts as too large; ceil+1 = none
	losses   map[int]int // by size, of those above lo

	fullLosses int // of probes of lo in a row since the path is settled
	under      int // the largest size below lo acknowledged since the first of them
	distrust   time.Time

	round   round
	sampled uint64 // the last round of which the time to its first acknowledgement was measured
	silent  int    // rounds in a row of which nothing came back
	rounds  int    // since the search began
	hint    int    // a size that a router claims to be the largest; 0 = none

	confirmed  time.Time // when the size was found out or confirmed last
	lastSmall  time.Time // when each kind was sent last
	lastFull   time.Time
	lastRaise  time.Time
	retry      time.Time // when a peer that does not answer is asked again
	promptAt   time.Time // when it is asked out of turn; zero = it is not
	prompted   time.Time // when that was done last
	backoff    time.Duration
	blackHoles uint64
}

// round is what was sent together.
type round struct {
	open    bool
	number  uint64
	start   time.Time
	lastAck time.Time
	sizes   []int
	acked   []bool
	acks    int
	unsent  int // of those, how many the host refused as too large; their size is 0
}

// NewSearch returns the search of a path to remote on a route with that MTU. One that is cautious sends nothing
// but a small probe now and then until one is acknowledged.
func NewSearch(remote netip.Addr, route mtu.UnderlayMTU, cautious bool) *Search {
	s := &Search{cautious: cautious, limits: limitsOf(remote, route), losses: make(map[int]int)}
	s.hi = s.ceil + 1
	return s
}

// Path is the size that is to be used now, in bytes: what has been proven, or before that what the route
// carries.
func (s *Search) Path() mtu.PathMTU {
	switch {
	case !s.proven:
		return mtu.PathMTU(s.ceil)
	case s.lo > 0:
		return mtu.PathMTU(s.lo)
	case s.hi > s.base:
		return mtu.PathMTU(s.base)
	default:
		return mtu.PathMTU(s.min)
	}
}

// Learned says what Path rests on.
func (s *Search) Learned() Learned {
	if s.proven {
		return LearnedProbe
	}
	return LearnedRoute
}

// Settled reports whether Path is not being searched for: it is exact, or nobody answers.
func (s *Search) Settled() bool {
	switch s.phase {
	case phaseNew:
		return s.silent > 0
	case phaseSearch:
		return false
	default:
		return s.complete
	}
}

// State says whether the remote answers.
func (s *Search) State() State {
	switch s.phase {
	case phaseNew:
		return StateUnanswered
	case phaseLost:
		return StateLost
	default:
		return StateReachable
	}
}

// RTT is the time to the remote and back, the least of the last few measurements; 0 = not known.
func (s *Search) RTT() time.Duration { return s.rtt.least() }

// Doubtful reports whether the last round was lost altogether, of a remote that answered before.
func (s *Search) Doubtful() bool { return s.silent > 0 && s.State() == StateReachable }

// TooNarrow reports whether not even the smallest size that is searched for gets through.
func (s *Search) TooNarrow() bool { return s.phase == phaseSettled && s.lo == 0 }

// Poll appends to dst the probes that are to be sent now.
func (s *Search) Poll(now time.Time, dst []Probe) []Probe {
	if s.round.open {
		if now.Before(s.roundEnd()) {
			return dst
		}
		if s.round.acks == 0 && now.Before(s.round.start.Add(s.rtt.timeout())) {
			s.round.open = false // not waited for to its end, so that it says nothing
		} else {
			s.finish(now)
		}
	}
	sizes := s.plan(now, s.round.sizes[:0])
	if len(sizes) == 0 {
		return dst
	}
	s.round = round{
		open: true, number: s.round.number + 1, start: now, sizes: sizes,
		acked: append(s.round.acked[:0], make([]bool, len(sizes))...),
	}
	for i, size := range sizes {
		dst = append(dst, Probe{Size: size, Sent: now, round: s.round.number, index: i})
	}
	return dst
}

// Next is when Poll is to be called again, at the latest.
func (s *Search) Next() time.Time {
	if s.round.open {
		return s.roundEnd()
	}
	return s.due()
}

// roundEnd is when the present round is over if nothing more comes back.
func (s *Search) roundEnd() time.Time {
	switch r := &s.round; {
	case r.acks == 0:
		end := r.start.Add(s.rtt.timeout())
		if s.promptAt.IsZero() || s.rtt.count > 0 {
			return end
		}
		// It has been heard, and was perhaps not there yet when it was asked.
		return earlier(end, latest(s.promptAt, r.start.Add(minTimeout)))
	case r.acks+r.unsent == len(r.sizes):
		return r.lastAck
	default:
		return r.lastAck.Add(s.rtt.grace())
	}
}

// Acked takes the acknowledgement of a probe. The caller has checked that it is genuine, and passes none twice.
func (s *Search) Acked(now time.Time, p Probe) {
	r := &s.round
	current := r.open && p.round == r.number
	if p.round > s.sampled {
		s.rtt.sample(now.Sub(p.Sent)) // of those sent together only the first has not waited for others
		s.sampled = p.round
	}
	s.silent = 0
	if current {
		r.acked[p.index] = true
		r.acks++
		r.lastAck = now
	} else if s.phase == phaseNew || s.phase == phaseLost {
		s.retry = now // too late for its round, but there is somebody
	}
	s.prove(now, p)
}

// prove draws the conclusions from a packet having passed.
func (s *Search) prove(now time.Time, p Probe) {
	if p.Sent.Before(s.distrust) || p.Size < s.min || p.Size > s.ceil {
		return // the path has become narrower since, or says nothing of what is searched for
	}
	if p.Size < s.lo {
		return
	}
	if p.Size == s.lo {
		s.fullLosses, s.under, s.confirmed = 0, 0, now
		return
	}
	s.lo = p.Size
	s.fullLosses, s.under, s.confirmed = 0, 0, now
	s.hi = s.ceil + 1
	for size, n := range s.losses {
		if size <= s.lo {
			delete(s.losses, size)
		} else if n >= maxProbes {
			s.hi = min(s.hi, size)
		}
	}
	switch {
	case s.lo == s.ceil:
		s.settle(now)
		s.round.open = false // whatever else of it comes back says nothing more
	case s.phase == phaseSettled:
		s.search()
	}
}

// TooLarge says that the host could not send a probe because it is larger than the device takes.
func (s *Search) TooLarge(now time.Time, p Probe) {
	if s.round.open && p.round == s.round.number {
		s.round.sizes[p.index] = 0 // it was not sent, so it is not waited for
		s.round.unsent++
	}
	if p.Size <= s.min {
		return // nothing smaller is searched for; the route will say so
	}
	s.losses[p.Size] = confirm
	s.hi = min(s.hi, p.Size)
	if p.Size <= s.lo {
		s.fall(now)
	}
}

// finish ends a round.
func (s *Search) finish(now time.Time) {
	r := &s.round
	r.open = false
	if r.acks == 0 {
		s.finishSilent(now)
		return
	}
	s.silent, s.backoff = 0, 0
	passed := 0 // the largest size of the round that was acknowledged
	for i, size := range r.sizes {
		if r.acked[i] {
			passed = max(passed, size)
		}
	}
	for i, size := range r.sizes {
		switch {
		case r.acked[i]:
			if size < s.lo {
				s.under = max(s.under, size)
			}
		case size <= passed: // lost by chance, if it was sent at all
		case size == s.lo:
			s.fullLosses++
		case size > s.lo:
			s.losses[size]++
			if s.losses[size] >= maxProbes {
				s.hi = min(s.hi, size)
			}
		}
	}
	s.conclude(now)
}

// conclude looks at what is known after a round of which something came back.
func (s *Search) conclude(now time.Time) {
	searched := slices.Max(s.round.sizes) >= s.base
	switch s.phase {
	case phaseNew:
		s.search()
		s.proven = searched
	case phaseSearch:
		s.proven = s.proven || searched
	case phaseLost:
		if s.complete {
			s.phase = phaseSettled
			s.Revalidate()
		} else {
			s.search()
		}
	}
	if s.phase == phaseSettled {
		if s.fullLosses == 0 {
			s.under, s.hint = 0, 0
		} else if s.fullLosses >= maxProbes {
			s.blackHoles++
			s.losses[s.lo] = s.fullLosses
			s.hi = s.lo
			s.fall(now)
		}
	}
	if s.phase == phaseSearch {
		s.rounds++
		if floor, bound := s.interval(); bound == floor+1 && (bound > s.ceil || s.losses[bound] >= confirm) {
			s.hi = bound
			s.settle(now)
		}
	}
}

// finishSilent ends a round of which nothing came back.
func (s *Search) finishSilent(now time.Time) {
	s.silent++
	if (s.phase == phaseSearch || s.phase == phaseSettled) && s.silent >= maxSilent {
		s.phase, s.backoff = phaseLost, 0
	}
	switch s.phase {
	case phaseNew:
		s.backoff = min(max(2*s.backoff, time.Second), s.lostInterval())
		s.retry = now.Add(s.backoff)
	case phaseLost:
		s.retry = now.Add(s.lostInterval())
	}
}

// search begins a search between lo and hi.
func (s *Search) search() {
	s.phase, s.complete, s.rounds = phaseSearch, false, 0
}

// fall begins a search below a size that is known no longer to pass.
func (s *Search) fall(now time.Time) {
	s.lo = 0
	if s.under >= s.min && s.under < s.hi {
		s.lo = s.under
	}
	s.fullLosses, s.under, s.distrust = 0, 0, now
	if s.phase == phaseSettled {
		s.search()
	}
}

// settle ends a search.
func (s *Search) settle(now time.Time) {
	s.phase, s.proven, s.complete, s.silent, s.hint = phaseSettled, true, true, 0, 0
	s.fullLosses, s.under = 0, 0
	clear(s.losses)
	s.confirmed, s.lastSmall, s.lastFull, s.lastRaise = now, now, now, now
}

// interval returns the sizes between which the answer is: the largest that is known to pass, or one below
// the smallest in question, and the smallest of which anything says that it does not.
func (s *Search) interval() (floor, bound int) {
	floor, bound = max(s.lo, s.min-1), s.hi
	for size := range s.losses {
		if size > floor {
			bound = min(bound, size)
		}
	}
	return floor, bound
}

// SetRoute says what the route carries now.
func (s *Search) SetRoute(remote netip.Addr, route mtu.UnderlayMTU) {
	was := s.ceil
	s.limits = limitsOf(remote, route)
	switch {
	case s.ceil == was:
		return
	case s.ceil < was:
		for size := range s.losses {
			if size > s.ceil {
				delete(s.losses, size)
			}
		}
		s.lo, s.hi = min(s.lo, s.ceil), min(s.hi, s.ceil+1)
		s.fullLosses, s.under = 0, 0
	case s.hi > was:
		s.hi, s.complete = s.ceil+1, false
		if s.phase == phaseSettled {
			s.search()
		}
	}
	s.Revalidate()
}

// Revalidate makes everything that is known be probed again at once.
func (s *Search) Revalidate() {
	s.lastFull, s.lastRaise = time.Time{}, time.Time{}
}

// Prompt makes the remote be asked whether it answers: at once if it never did or no longer does, and otherwise soon.
// However often this is called, that is not done more than once a second.
func (s *Search) Prompt(now time.Time) {
	switch s.phase {
	case phaseNew, phaseLost:
		if s.promptAt.IsZero() {
			s.promptAt = latest(now, s.prompted.Add(time.Second))
		}
		s.backoff = 0
	case phaseSettled:
		s.promptAt = s.lastSmall.Add(time.Second)
	}
}

// Hint takes the claim of a router that size is the largest that passes. It only makes the search look there
// at once. It reports whether the claim makes sense.
func (s *Search) Hint(size int) bool {
	if size < s.min || size >= int(s.Path()) {
		return false
	}
	s.hint = size
	s.lastFull = time.Time{}
	return true
}

// Raise makes larger sizes be tried again at once.
func (s *Search) Raise() { s.lastRaise = time.Time{} }
