package pathmtu

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/dataplane/probe"
)

const (
	outstandingFor  = 4 * time.Second // later acknowledgements prove nothing any more
	trafficInterval = 500 * time.Millisecond
	trafficLasts    = 3 * time.Second // a peer to which nothing was sent for so long is idle
	routeRetry      = 5 * time.Second
	hintInterval    = time.Second
)

// The first burst of one peer is up to 24 kB. When many are stated at the same time, as at the start of a
// host, they begin one after the other.
const (
	startInterval = 2500 * time.Microsecond
	startSlack    = 3 * startInterval // so many at once
)

// engine is all of the prober but its goroutine, its queue and what it calls: what arrives and what time it is
// go in, what is to be sent and told comes out. It belongs to one goroutine.
type engine struct {
	log    *slog.Logger
	random func() uint64

	keys probe.Keys
	self netip.Addr

	peers    map[netip.Addr]*peer
	order    []*peer // by address
	byRemote map[netip.Addr][]*candidate
	remotes  atomic.Pointer[map[netip.Addr]bool] // the addresses of peers that are not on trial, for any goroutine
	flights  map[uint64]flight
	oldest   []expiry // of flights, in the order in which they were sent
	acks     bucket

	starts      time.Time // when the next new peer may be probed first
	nextTraffic time.Time
	askRoutes   bool // a candidate has a route to be looked up
	nextRoutes  time.Time
	probes      []Probe    // scratch
	out         []outgoing // to be sent
	changes     []Choice   // to be told
	counters    Counters
}

// flight is a probe that is not yet acknowledged.
type flight struct {
	candidate *candidate
	search    *Search
	probe     Probe
}

type expiry struct {
	nonce uint64
	at    time.Time
}

// outgoing is a message that is to be sent.
type outgoing struct {
	local, remote netip.Addr
	message       probe.Message
	length        int // of the UDP payload
}

func newEngine(log *slog.Logger, random func() uint64) *engine {
	return &engine{
		log: log, random: random, peers: make(map[netip.Addr]*peer), byRemote: make(map[netip.Addr][]*candidate),
		flights: make(map[uint64]flight),
	}
}

// setPeers replaces the peers.
func (e *engine) setPeers(now time.Time, stated []Peer) {
	had := e.peers
	e.peers, e.order = make(map[netip.Addr]*peer, len(stated)), e.order[:0]
	for _, s := range stated {
		address := s.Address.Unmap()
		if !address.IsValid() || e.peers[address] != nil {
			continue
		}
		p := had[address]
		if p == nil {
			p = &peer{address: address, since: now}
		}
		if p.state(s.Candidates, latest(now, e.starts.Add(-startSlack))) {
			e.starts = latest(now, e.starts).Add(startInterval)
		}
		delete(had, address)
		e.peers[address] = p
		e.order = append(e.order, p)
	}
	for _, p := range had {
		for _, c := range p.candidates {
			c.gone = true
		}
	}
	slices.SortFunc(e.order, func(a, b *peer) int { return a.address.Compare(b.address) })
	e.index()
}

// index finds candidates by their addresses, after any was added or taken away.
func (e *engine) index() {
	e.askRoutes = true
	clear(e.byRemote)
	for _, p := range e.order {
		for _, c := range p.candidates {
			e.byRemote[c.remote] = append(e.byRemote[c.remote], c)
		}
	}
	remotes := make(map[netip.Addr]bool, len(e.byRemote))
	for a, known := range e.byRemote {
		if !onTrial(known) {
			remotes[a] = true
		}
	}
	e.remotes.Store(&remotes)
}

// setKeys takes other keys, or another name of this node. Who has not understood it so far may do so now.
func (e *engine) setKeys(now time.Time, keys probe.Keys, self netip.Addr) {
	e.keys, e.self = keys, self
	for _, p := range e.order {
		for _, c := range p.candidates {
			c.prompt(now)
		}
	}
}

// routesChanged makes the routes of all candidates be looked up again.
func (e *engine) routesChanged() {
	for _, p := range e.order {
		for _, c := range p.candidates {
			c.askRoute, c.routeChanged = true, true
			e.askRoutes = true
		}
		p.next = time.Time{}
	}
}

// setRoute takes the route to a candidate, or why there is none.
func (e *engine) setRoute(now time.Time, c *candidate, r Route, err error) {
	c.setRoute(now, r, err)
	c.peer.next = time.Time{}
}

// setTraffic takes how many datagrams were sent to a peer so far.
func (e *engine) setTraffic(now time.Time, p *peer, count uint64) {
	if count == p.traffic {
		return
	}
	began := !p.busy(now)
	p.traffic, p.trafficAt = count, now
	if began {
		p.next = time.Time{}
	}
}

// poll does what is to be done now, and returns when it is to be called again.
func (e *engine) poll(now time.Time) time.Time {
	e.expire(now)
	next := now.Add(time.Hour)
	if len(e.order)+len(e.oldest) > 0 {
		next = e.nextTraffic
	}
	for _, p := range e.order {
		if !now.Before(p.next) {
			e.pollPeer(now, p)
		}
		next = earlier(next, p.next)
	}
	return next
}

func (e *engine) pollPeer(now time.Time, p *peer) {
	if p.age(now) {
		e.index()
	}
	// Once for what is due, and again for what follows from it: another choice, or doubts about the present one.
	for range 3 {
		for _, c := range p.candidates {
			if c.search != nil && !now.Before(c.notBefore) {
				e.pollCandidate(now, c)
			}
		}
		moved := p.choose(now)
		if moved != nil {
			e.counters.Moves++
			e.log.Info("peer is reached at another of its addresses", "peer", p.address, "address", p.chosen.remote, "before", moved.remote, "path_mtu", int(p.chosen.path()))
		}
		if moved == nil && !p.promptOthers(now) {
			break
		}
	}
	if choice := p.choice(now); !choice.equal(&p.told) {
		p.told = choice
		e.changes = append(e.changes, choice)
	}
	p.next = p.due(now)
}

func (e *engine) pollCandidate(now time.Time, c *candidate) {
	s := c.search
	s.SetPace(c.peer.pace(now, c))
	was := s.State()
	e.probes = s.Poll(now, e.probes[:0])
	if n := s.blackHoles - c.blackHoles; n > 0 {
		c.blackHoles += n
		c.peer.blackHoles += n
		e.counters.BlackHoles += n
		e.log.Warn("path to a peer has become narrower than was proven", "peer", c.peer.address, "address", c.remote, "path_mtu", int(s.Path()))
	}
	if is := s.State(); is != was && (was == StateLost || is == StateLost) {
		e.log.Info("peer answers path probes no longer, or again", "peer", c.peer.address, "address", c.remote, "state", is)
		if is == StateLost {
			c.askRoute, e.askRoutes = true, true
		}
	}
	for _, p := range e.probes {
		e.sendProbe(c, p)
	}
}

func (e *engine) sendProbe(c *candidate, p Probe) {
	nonce := e.random()
	if _, used := e.flights[nonce]; used {
		return // one in 2^64: it counts as lost
	}
	e.flights[nonce] = flight{candidate: c, search: c.search, probe: p}
	e.oldest = append(e.oldest, expiry{nonce, p.Sent.Add(outstandingFor)})
	e.counters.ProbesSent++
	e.counters.BytesSent += uint64(p.Size)
	e.out = append(e.out, outgoing{
		local: c.route.Local, remote: c.remote, length: p.Size - headersLen(c.remote),
		message: probe.Message{Type: probe.Probe, Size: p.Size, Nonce: nonce, Sender: e.sender(c.route.Local)},
	})
}

// sender is the address by which the others know this node.
func (e *engine) sender(local netip.Addr) netip.Addr {
	if e.self.IsValid() {
		return e.self
	}
	return local
}

// expire forgets probes that have been out for too long.
func (e *engine) expire(now time.Time) {
	n := 0
	for n < len(e.oldest) && !now.Before(e.oldest[n].at) {
		if _, out := e.flights[e.oldest[n].nonce]; out {
			delete(e.flights, e.oldest[n].nonce)
			e.counters.ProbesLost++
		}
		n++
	}
	e.oldest = e.oldest[n:]
}

// failed takes why a message was not sent.
func (e *engine) failed(now time.Time, o *outgoing, err error) {
	e.counters.BytesSent -= uint64(headersLen(o.remote) + o.length)
	if o.message.Type == probe.Ack {
		e.counters.AcksSent--
		e.counters.SendErrors++
		return
	}
	e.counters.ProbesSent--
	f, out := e.flights[o.message.Nonce]
	delete(e.flights, o.message.Nonce)
	switch {
	case !out || !f.current():
	case errors.Is(err, ErrTooLarge):
		f.search.TooLarge(now, f.probe)
		f.candidate.peer.next = time.Time{}
		return
	default:
		f.candidate.askRoute, e.askRoutes = true, true
	}
	e.counters.SendErrors++
}

// current reports whether the candidate is still searched as when the probe was sent.
func (f *flight) current() bool { return f.candidate.search == f.search && !f.candidate.gone }

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
