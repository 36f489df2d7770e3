package pathmtu

import (
	"fmt"
	"time"
)

// status is what is known of the peer.
func (p *peer) status(now time.Time) PeerStatus {
	s := PeerStatus{Since: p.since, BlackHoles: p.blackHoles, Moves: p.moves}
	if p.chosen == nil { // stated a moment ago
		s.Peer, s.Remote, s.State, s.LearnedAt = p.address, p.candidates[0].remote, StateNoRoute, p.since
	} else {
		s.Choice, s.LearnedAt = p.choice(now), p.chosen.learnedAt()
	}
	for _, c := range p.candidates {
		s.Candidates = append(s.Candidates, c.status(now))
	}
	return s
}

// learnedAt is when the path MTU was found out, or confirmed last.
func (c *candidate) learnedAt() time.Time {
	if c.search == nil || c.search.confirmed.IsZero() {
		return c.asked
	}
	return c.search.confirmed
}

func (c *candidate) status(now time.Time) CandidateStatus {
	s := CandidateStatus{
		Remote: c.remote, Origin: c.origin, State: c.state(), Chosen: c == c.peer.chosen, SeenAs: c.seenAs, Path: c.path(),
	}
	if c.noWay == nil {
		s.Local, s.Device = c.route.Local, c.route.Device
	}
	if c.search != nil {
		s.RTT, s.Settled = c.search.RTT(), c.search.Settled()
	}
	s.Why = c.why(now)
	return s
}

// why says in words why the candidate is not chosen, or what is wrong with it if it is.
func (c *candidate) why(now time.Time) string {
	chosen := c.peer.chosen
	switch c.state() {
	case StateNoRoute:
		if c.noWay == nil {
			return "its route is being looked up"
		}
		return fmt.Sprintf("no route: %v", c.noWay)
	case StateUnanswered:
		switch {
		case c.isMistaken(now):
			return "another node answers at this address"
		case c.search.silent == 0:
			return "it has not answered yet"
		case c == chosen && c.claimed > 0 && c.claimed < int(c.path()):
			return fmt.Sprintf("it has never answered a path probe: the MTU of the route is used, though an ICMP error said %d", c.claimed)
		case c == chosen:
			return "it has never answered a path probe: the MTU of the route is used"
		}
		return "it has never answered a path probe"
	case StateLost:
		if c.isMistaken(now) {
			return "another node answers at this address now"
		}
		return "it no longer answers path probes"
	}
	switch {
	case c == chosen && c.search.TooNarrow():
		return fmt.Sprintf("packets of %d bytes do not get through, and nothing smaller is searched for", c.search.min)
	case c == chosen || chosen == nil:
		return ""
	case c == c.peer.challenger:
		return fmt.Sprintf("it is better, and will be used when it has answered %d more probes", winsNeeded-c.peer.wins)
	}
	return c.lost(chosen)
}

// isMistaken reports whether another node answered for it moments ago.
func (c *candidate) isMistaken(now time.Time) bool {
	return !c.mistaken.IsZero() && now.Sub(c.mistaken) < mistakenLasts
}

// lost says why c is worse than what is chosen, where both answer or only c does.
func (c *candidate) lost(chosen *candidate) string {
	switch {
	case !chosen.usable():
		return "it has only just answered"
	case c.search.TooNarrow() && !chosen.search.TooNarrow():
		return fmt.Sprintf("packets of %d bytes do not get through", c.search.min)
	case c.origin == OriginObserved && chosen.origin == OriginStated:
		return "it was observed and not stated, and a stated address answers"
	case !near(c.search.RTT(), chosen.search.RTT(), false):
		return fmt.Sprintf("slower: %v there and back, and not %v", c.search.RTT().Round(10*time.Microsecond), chosen.search.RTT().Round(10*time.Microsecond))
	case chosen.wider(c):
		return fmt.Sprintf("narrower: packets of %d bytes, and not %d", c.path(), chosen.path())
	}
	return "as good, but not preferred"
}
