package pathmtu

import (
	"net/netip"
	"slices"
	"time"
)

const (
	decideWithin = 200 * time.Millisecond // the first choice waits so long for other candidates to answer too
	winsNeeded   = 3                      // probes in a row that a better candidate has to answer,
	winsApart    = 900 * time.Millisecond // each so long after the one before
)

// peer is a remote VTEP and the choice among its addresses.
type peer struct {
	address    netip.Addr
	candidates []*candidate // those stated in their order, then those observed

	chosen   *candidate
	since    time.Time
	decided  bool      // the first choice among those that answer has been made
	decideBy time.Time // when it is made at the latest; zero = none has answered

	challenger *candidate // better than the chosen one, but not yet for long enough
	wins       int
	seen       uint64 // the last round of the challenger that was looked at
	wonAt      time.Time

	traffic   uint64
	trafficAt time.Time // when it last grew; zero = never

	moves, blackHoles uint64
	told              Choice
	next              time.Time
}

// state takes the addresses that are stated of a peer, and reports whether any is new.
func (p *peer) state(stated []netip.Addr, start time.Time) (fresh bool) {
	had := p.candidates
	p.candidates = nil
	add := func(remote netip.Addr) {
		remote = remote.Unmap()
		if !remote.IsValid() || find(p.candidates, remote) != nil {
			return
		}
		c := find(had, remote)
		if c == nil {
			c, fresh = newCandidate(p, remote, OriginStated, start), true
		}
		c.origin = OriginStated
		p.candidates = append(p.candidates, c)
	}
	for _, remote := range stated {
		add(remote)
	}
	add(p.address)
	for _, c := range had {
		switch {
		case slices.Contains(p.candidates, c):
		case c.origin == OriginObserved:
			p.candidates = append(p.candidates, c)
		default:
			p.leave(c)
		}
	}
	p.next = time.Time{}
	return fresh
}

func find(candidates []*candidate, remote netip.Addr) *candidate {
	for _, c := range candidates {
		if c.remote == remote {
			return c
		}
	}
	return nil
}

// leave forgets a candidate that is no longer among those of the peer.
func (p *peer) leave(c *candidate) {
	c.gone = true
	if p.chosen == c {
		p.chosen = nil
	}
	if p.challenger == c {
		p.challenger = nil
	}
}

// observe takes an address of no peer from which a probe of this one came. It reports false if enough others are
// already in use or on trial.
func (p *peer) observe(now time.Time, remote netip.Addr) bool {
	var observed, failed int
	old := -1
	for i, c := range p.candidates {
		if c.origin != OriginObserved {
			continue
		}
		observed++
		if c.answered.IsZero() && now.Sub(c.added) >= trialLasts {
			failed++
			old = i
		}
	}
	if observed >= maxObserved {
		if failed == 0 {
			return false
		}
		p.leave(p.candidates[old])
		p.candidates = slices.Delete(p.candidates, old, old+1)
	}
	p.candidates = append(p.candidates, newCandidate(p, remote, OriginObserved, now))
	p.next = time.Time{}
	return true
}

// age takes observed addresses away that are silent, and reports whether any was.
func (p *peer) age(now time.Time) bool {
	before := len(p.candidates)
	p.candidates = slices.DeleteFunc(p.candidates, func(c *candidate) bool {
		if !c.aged(now) {
			return false
		}
		p.leave(c)
		return true
	})
	return len(p.candidates) != before
}

// busy reports whether datagrams go to the peer.
func (p *peer) busy(now time.Time) bool {
	return !p.trafficAt.IsZero() && now.Sub(p.trafficAt) < trafficLasts
}

func (p *peer) pace(now time.Time, c *candidate) Pace {
	pace := Pace{Chosen: c == p.chosen, Traffic: p.busy(now), Known: p.decided, Hurry: c == p.challenger, Others: len(p.candidates) - 1}
	// One address that never answered is most likely that of a VTEP of another kind. Those have no others.
	pace.Dark = pace.Traffic && (pace.Known || pace.Others > 0) && c.origin == OriginStated && (p.chosen == nil || !p.chosen.usable())
	return pace
}

// promptOthers asks the other candidates whether they answer when the chosen one does not. It reports whether
// any was asked.
func (p *peer) promptOthers(now time.Time) bool {
	if p.chosen == nil || p.chosen.search == nil || !p.chosen.search.Doubtful() || len(p.candidates) == 1 {
		return false
	}
	for _, c := range p.candidates {
		if c != p.chosen && c.search != nil {
			c.search.Prompt(now)
		}
	}
	return true
}

// choose chooses among the candidates. It returns the one that was used so far if that one has answered once
// and another is used now.
func (p *peer) choose(now time.Time) (moved *candidate) {
	if p.chosen == nil {
		p.chosen, p.since = p.fallback(), now
	}
	best := p.best()
	switch {
	case best == nil:
		p.challenger = nil
		if other := p.fallback(); p.chosen.state() == StateNoRoute && other.state() != StateNoRoute {
			if p.decided {
				return p.move(now, other)
			}
			p.chosen, p.since = other, now
		}
	case !p.decided:
		if p.decideBy.IsZero() {
			p.decideBy = now.Add(decideWithin)
		}
		if !now.Before(p.decideBy) || p.allAnswered() {
			p.decided = true
			if best != p.chosen {
				p.chosen, p.since = best, now
			}
		}
	case best == p.chosen:
		p.challenger = nil
	case !p.chosen.usable():
		return p.move(now, best)
	case best != p.challenger:
		p.challenger, p.wins, p.seen, p.wonAt = best, 0, best.search.sampled, now
	case best.search.silent > 0:
		p.wins = 0
	case best.search.sampled > p.seen:
		p.seen = best.search.sampled
		if now.Sub(p.wonAt) >= winsApart {
			p.wins, p.wonAt = p.wins+1, now
		}
		if p.wins >= winsNeeded {
			return p.move(now, best)
		}
	}
	return nil
}

func (p *peer) move(now time.Time, to *candidate) (from *candidate) {
	from = p.chosen
	p.chosen, p.since, p.challenger = to, now, nil
	p.moves++
	return from
}

// fallback is what is used while nobody answers: the first to which there is a route.
func (p *peer) fallback() *candidate {
	for _, c := range p.candidates {
		if c.state() != StateNoRoute && c.origin == OriginStated {
			return c
		}
	}
	return p.candidates[0]
}

func (p *peer) allAnswered() bool {
	for _, c := range p.candidates {
		if c.state() != StateNoRoute && !(c.usable() && c.search.Settled()) {
			return false
		}
	}
	return true
}

// Differences of round-trip times that do not count. The chosen candidate is let off more than the others, so
// that two that differ by about as much as counts do not take turns.
const (
	equalRTT       = time.Millisecond
	equalRTTChosen = 3 * time.Millisecond / 2
)

func near(rtt, least time.Duration, chosen bool) bool {
	if chosen {
		return rtt-least <= max(equalRTTChosen, least*3/8)
	}
	return rtt-least <= max(equalRTT, least/4)
}

// best returns the best of the candidates that answer, nil if none does: of those with the best grade and about
// the shortest round-trip time the one with the largest path, and of these the first.
func (p *peer) best() *candidate {
	grade, least := -1, time.Duration(0)
	for _, c := range p.candidates {
		if !c.usable() {
			continue
		}
		if g := c.grade(); grade < 0 || g < grade {
			grade, least = g, c.search.RTT()
		} else if g == grade {
			least = min(least, c.search.RTT())
		}
	}
	var best *candidate
	for _, c := range p.candidates {
		if c.usable() && c.grade() == grade && near(c.search.RTT(), least, c == p.chosen) &&
			(best == nil || c.wider(best)) {
			best = c
		}
	}
	return best
}

// wider reports whether the path of c is known to be larger than that of another.
func (c *candidate) wider(than *candidate) bool {
	return c.search.Settled() && than.search.Settled() && c.path() > than.path()
}

// choice is what is to be used for the peer.
func (p *peer) choice(now time.Time) Choice {
	c := p.chosen
	choice := Choice{
		Peer: p.address, Remote: c.remote, Local: c.route.Local, Device: c.route.Device, Underlay: c.route.MTU,
		Path: c.path(), State: c.state(),
	}
	if c.search != nil {
		choice.Settled, choice.Learned = c.search.Settled(), c.search.Learned()
	}
	for _, c := range p.candidates {
		if c.accepted() {
			choice.Accept = append(choice.Accept, c.remote)
		}
	}
	return choice
}

func (c *Choice) equal(o *Choice) bool {
	return c.Peer == o.Peer && c.Remote == o.Remote && c.Local == o.Local && c.Device == o.Device &&
		c.Underlay == o.Underlay && c.Path == o.Path && c.Settled == o.Settled && c.Learned == o.Learned &&
		c.State == o.State && slices.Equal(c.Accept, o.Accept)
}

// due is when the peer is to be polled again.
func (p *peer) due(now time.Time) time.Time {
	next := now.Add(time.Hour)
	if !p.decided && !p.decideBy.IsZero() {
		next = p.decideBy
	}
	if p.busy(now) {
		next = earlier(next, p.trafficAt.Add(trafficLasts))
	}
	for _, c := range p.candidates {
		if c.origin == OriginObserved {
			next = earlier(next, now.Add(observedLasts/4))
		}
		if c.search != nil && c.noWay == nil {
			at := c.search.Next()
			if at.Before(c.notBefore) {
				at = c.notBefore
			}
			next = earlier(next, at)
		}
	}
	return next
}
