package pathmtu

import (
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

// candidate is one address of a peer.
type candidate struct {
	peer   *peer
	remote netip.Addr
	origin Origin
	search *Search // nil until there has been a route
	route  Route   // the last one that there was
	noWay  error   // why there is none now; nil = there is one
	gone   bool    // it is no longer one of the peer

	askRoute     bool // the route is to be looked up
	routeChanged bool // because something has changed
	asked        time.Time
	raised       time.Time

	notBefore  time.Time // when it may be probed for the first time
	added      time.Time
	answered   time.Time // when it last acknowledged a probe
	mistaken   time.Time // when another node answered for it last
	hinted     time.Time
	claimed    int // what an ICMP error said of the path, while nothing could be proven; 0 = nothing
	seenAs     netip.Addr
	blackHoles uint64 // of the present search that have been counted
}

func newCandidate(p *peer, remote netip.Addr, origin Origin, start time.Time) *candidate {
	return &candidate{peer: p, remote: remote, origin: origin, askRoute: true, notBefore: start, added: start}
}

// routeDue reports whether the route is to be looked up.
func (c *candidate) routeDue(now time.Time) bool {
	return c.askRoute || c.noWay != nil && now.Sub(c.asked) >= routeRetry/2
}

// setRoute takes the route, or why there is none.
func (c *candidate) setRoute(now time.Time, r Route, err error) {
	changed := c.routeChanged
	c.askRoute, c.routeChanged, c.asked = false, false, now
	was, had := c.route, c.noWay == nil
	if c.noWay = err; err != nil {
		return
	}
	c.route = r
	if c.search != nil && (c.search.State() != StateReachable || r != was || !had) {
		c.search.Prompt(now)
	}
	switch {
	case c.search == nil || r.Local != was.Local:
		c.search, c.blackHoles = NewSearch(c.remote, r.MTU, c.origin == OriginObserved), 0
	case r.MTU != was.MTU:
		c.search.SetRoute(c.remote, r.MTU)
	case r.Device != was.Device || !had:
		c.search.Revalidate()
	case changed && now.Sub(c.raised) >= idleRaise/2:
		c.raised = now // the way may be another one behind the first router, which nothing here can tell
		c.search.Raise()
	}
}

// state says what is known of the candidate.
func (c *candidate) state() State {
	if c.noWay != nil || c.search == nil {
		return StateNoRoute
	}
	return c.search.State()
}

// usable reports whether datagrams may go there. What is merely observed has to answer before: whoever repeats
// a probe of the peer from elsewhere must not draw its traffic.
func (c *candidate) usable() bool { return c.state() == StateReachable }

// accepted reports whether datagrams that come from there are to be taken for those of the peer: not if all that is known is
// that another node answers there.
func (c *candidate) accepted() bool {
	return c.origin == OriginStated && c.mistaken.IsZero() || !c.answered.IsZero()
}

// onTrial reports whether no more is known of an address than that a probe of a peer came from there.
func onTrial(known []*candidate) bool {
	return !slices.ContainsFunc(known, func(c *candidate) bool { return c.origin == OriginStated || !c.answered.IsZero() })
}

// path is what is to be used of the path there; 0 = there was no route so far.
func (c *candidate) path() mtu.PathMTU {
	if c.search == nil {
		return 0
	}
	return c.search.Path()
}

// prompt has it asked at once if it does not answer. A probe that came from there is reason to, and proves nothing: anybody
// may have sent it.
func (c *candidate) prompt(now time.Time) {
	if c.search != nil && c.search.State() != StateReachable {
		c.search.Prompt(now)
		c.peer.next = time.Time{}
	}
}

// aged reports whether an observed address has been silent for too long.
func (c *candidate) aged(now time.Time) bool {
	last := c.added
	if c.answered.After(last) {
		last = c.answered
	}
	return c.origin == OriginObserved && now.Sub(last) >= observedLasts
}

// grade is how trustworthy and useful a candidate is before anything is measured: less is better. A stated one
// that answers is used before any that was observed, so that someone who passes probes on cannot draw traffic
// to himself by being near.
func (c *candidate) grade() int {
	grade := 0
	if c.origin == OriginObserved {
		grade++
	}
	if c.search.TooNarrow() {
		grade += 2
	}
	return grade
}
