package pathmtu

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/dataplane/probe"
)

// granularity is how long the prober sleeps at least, so that with many peers it does not wake for each timer.
const granularity = 2 * time.Millisecond

// Prober finds out the path to each of a set of peers and keeps watching it. All methods may be called by any
// goroutine at any time.
type Prober struct {
	cfg   Config
	queue queue
	wake  chan struct{} // holds one token while there is something for Run to do

	mu     sync.Mutex
	engine *engine // changed by Run's goroutine alone, with mu held, so that it may read without
	asked  asked

	scratch []byte // of Run's goroutine
}

// asked is what was asked of the Prober since Run last looked.
type asked struct {
	peers         []Peer
	setPeers      bool
	keys          probe.Keys
	self          netip.Addr
	setKeys       bool
	routesChanged bool
}

// New returns a Prober that does nothing until it runs.
func New(cfg Config) (*Prober, error) { return newProber(cfg, random) }

func newProber(cfg Config, random func() uint64) (*Prober, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Prober{cfg: cfg, wake: make(chan struct{}, 1), engine: newEngine(cfg.Log, random)}, nil
}

// random returns a nonce that nobody can guess.
func random() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: it ends the program instead
	return binary.BigEndian.Uint64(b[:])
}

// Run probes until ctx is done, and returns nil then. It must be called once.
func (p *Prober) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-p.wake:
		}
		_, next := p.turn()
		timer.Reset(max(next.Sub(p.cfg.Now()), granularity))
	}
}

// turn does all that is to be done now, and returns when there will be more.
func (p *Prober) turn() (now, next time.Time) {
	now = p.cfg.Now()
	p.takeAsked(now)
	p.lookUp(now)

	p.mu.Lock()
	for _, in := range p.queue.take(&p.engine.counters) {
		if in.hint {
			p.engine.hint(in.at, in.remote, in.size, in.payload)
		} else {
			p.engine.receive(in.at, in.local, in.remote, in.payload, in.size)
		}
	}
	p.mu.Unlock()
	p.lookUp(now) // of addresses that were observed just now

	// Once more whenever the host refuses a size, for that decides which is the next to be tried.
	for again := true; again; {
		p.mu.Lock()
		next = p.engine.poll(now)
		p.mu.Unlock()
		again = p.send(now)
	}
	changes := p.engine.changes
	for _, c := range changes {
		p.cfg.Changed(c)
	}
	p.engine.changes = changes[:0]
	return now, next
}

// takeAsked hands over what the setters have left.
func (p *Prober) takeAsked(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.asked
	p.asked = asked{}
	if a.setKeys {
		p.engine.setKeys(now, a.keys, a.self)
	}
	if a.setPeers {
		p.engine.setPeers(now, a.peers)
	}
	if a.routesChanged {
		p.engine.routesChanged()
	}
}

// lookUp asks the surroundings for traffic and routes, without the lock: they may have locks of their own.
func (p *Prober) lookUp(now time.Time) {
	e := p.engine
	if !now.Before(e.nextTraffic) {
		e.nextTraffic = now.Add(untilWhole(now, trafficInterval))
		for _, peer := range e.order {
			if count := p.cfg.Traffic(peer.address); count != peer.traffic {
				p.mu.Lock()
				e.setTraffic(now, peer, count)
				p.mu.Unlock()
			}
		}
	}
	if !e.askRoutes && now.Before(e.nextRoutes) {
		return
	}
	e.askRoutes, e.nextRoutes = false, now.Add(routeRetry)
	for _, peer := range e.order {
		for _, c := range peer.candidates {
			if !c.routeDue(now) {
				continue
			}
			route, err := p.cfg.Route(c.remote)
			if err == nil && !route.Local.IsValid() {
				err = errors.New("the route has no source address")
			}
			route.Local = route.Local.Unmap()
			p.mu.Lock()
			e.setRoute(now, c, route, err)
			p.mu.Unlock()
		}
	}
}

// untilWhole returns how long it is until the clock shows a whole multiple of d. What is done again and again is done then, by
// whoever does it: this process then wakes once for all of it.
func untilWhole(now time.Time, d time.Duration) time.Duration { return d - now.Sub(now.Truncate(d)) }

// send sends what is to be sent, and reports whether the host refused anything as too large.
func (p *Prober) send(now time.Time) (refused bool) {
	e := p.engine
	for i := range e.out {
		o := &e.out[i]
		p.scratch = e.keys.Append(p.scratch[:0], o.message, o.length)
		err := p.cfg.Send(o.local, o.remote, p.scratch)
		if err == nil {
			continue
		}
		if errors.Is(err, syscall.EMSGSIZE) {
			err = ErrTooLarge
		}
		refused = refused || errors.Is(err, ErrTooLarge)
		p.mu.Lock()
		e.failed(now, o, err)
		p.mu.Unlock()
	}
	e.out = e.out[:0]
	return refused
}

func (p *Prober) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// SetPeers replaces the set of peers. What is known of those that stay is kept. It does not wait. Peers and
// candidates without a valid address, and repetitions, are left out.
func (p *Prober) SetPeers(peers []Peer) {
	copied := make([]Peer, len(peers))
	for i, peer := range peers {
		copied[i] = Peer{Address: peer.Address, Candidates: append([]netip.Addr(nil), peer.Candidates...)}
	}
	p.mu.Lock()
	p.asked.peers, p.asked.setPeers = copied, true
	p.mu.Unlock()
	p.wakeUp()
}

// SetKeys sets the keys with which messages are sealed and opened from now on, and the address by which the
// peers know this node; invalid = the local address of each path.
func (p *Prober) SetKeys(keys probe.Keys, self netip.Addr) {
	p.mu.Lock()
	p.asked.keys, p.asked.self, p.asked.setKeys = keys, self.Unmap(), true
	p.mu.Unlock()
	p.wakeUp()
}

// stranger reports whether an address is none of a peer's.
func (p *Prober) stranger(remote netip.Addr) bool {
	known := p.engine.remotes.Load()
	return known == nil || !(*known)[remote]
}

// Receive takes a UDP payload for which probe.Is holds. It came from remote to local, and size is the length of
// its outer IP packet in bytes with the IP header. The payload is copied. Receive never blocks.
func (p *Prober) Receive(local, remote netip.Addr, payload []byte, size int) {
	a := arrival{at: p.cfg.Now(), local: local.Unmap(), remote: remote.Unmap(), size: size}
	p.queue.put(a, payload, p.stranger(a.remote))
	p.wakeUp()
}

// Hint takes an ICMP error from the underlay which says that packets to remote must not be larger than path
// bytes (RFC 1191, section 4; RFC 8201, section 4). quoted is what it quotes of the UDP payload, from its
// first byte on. Nothing is believed, but if the quote is of something that we sent, the path is probed at
// once. quoted is copied. Hint never blocks.
func (p *Prober) Hint(remote netip.Addr, path int, quoted []byte) {
	a := arrival{at: p.cfg.Now(), hint: true, remote: remote.Unmap(), size: path}
	p.queue.put(a, quoted[:min(len(quoted), probe.Len)], p.stranger(a.remote))
	p.wakeUp()
}

// RoutesChanged says that Config.Route may answer otherwise than before.
func (p *Prober) RoutesChanged() {
	p.mu.Lock()
	p.asked.routesChanged = true
	p.mu.Unlock()
	p.wakeUp()
}

// Status returns what is known of each peer, in the order of their addresses.
func (p *Prober) Status() []PeerStatus {
	now := p.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]PeerStatus, 0, len(p.engine.order))
	for _, peer := range p.engine.order {
		all = append(all, peer.status(now))
	}
	return all
}

// Counters returns what was counted so far.
func (p *Prober) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.engine.counters
}
