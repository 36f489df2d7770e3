package pathmtu

import (
	"container/heap"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/dataplane/probe"
)

// world is hosts with a Prober each and paths between them, in virtual time.
type world struct {
	t      testing.TB
	rng    *rand.Rand
	now    time.Time
	events events
	count  int
	hosts  map[netip.Addr]*host      // by each of their addresses
	inside map[netip.Addr]netip.Addr // the address of a host to which a NAT translates one
	paths  map[pair]*path
	tap    func(from, to netip.Addr, payload []byte, size int) // sees each packet that is sent
}

type pair struct{ from, to netip.Addr }

// path is one way between two addresses.
type path struct {
	mtu    int
	loss   float64
	delay  time.Duration
	jitter time.Duration // up to as much more: packets overtake each other
	twice  float64       // probability to arrive twice
	rate   float64       // bytes/s of a queue without end; 0 = unlimited
	cut    bool
	free   time.Time
	seenAs netip.Addr // the source address that a NAT puts in its place; invalid = none
}

type host struct {
	w       *world
	prober  *Prober
	kernel  bool // a VTEP that discards probes
	mapped  bool // it has a socket for both families
	ways    func(remote netip.Addr) (Route, error)
	traffic map[netip.Addr]uint64
	stream  map[netip.Addr]bool // peers to which datagrams go all the time
	told    map[netip.Addr]Choice
	history []moment
	turnAt  time.Time
	sent    int // bytes of IP packets
	device  int // the largest packet that it takes; 0 = no limit
}

type moment struct {
	at time.Time
	Choice
}

type event struct {
	at  time.Time
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newWorld(t testing.TB, seed uint64) *world {
	return &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 4)), now: time.Unix(1_800_000_000, 0),
		hosts: make(map[netip.Addr]*host), paths: make(map[pair]*path),
		inside: make(map[netip.Addr]netip.Addr),
	}
}

func (w *world) at(d time.Duration, do func()) {
	w.count++
	heap.Push(&w.events, event{w.now.Add(d), w.count, do})
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	w.runUntil(d, func() bool { return false })
}

// runUntil lets time pass until done, and returns how much did; it is false if that was as much as it may be.
func (w *world) runUntil(d time.Duration, done func() bool) (time.Duration, bool) {
	start := w.now
	end := start.Add(d)
	for !done() {
		if len(w.events) == 0 || w.events[0].at.After(end) {
			w.now = end
			return d, done()
		}
		e := heap.Pop(&w.events).(event)
		if e.at.After(w.now) {
			w.now = e.at
		}
		e.do()
	}
	return w.now.Sub(start), true
}

var discard = slog.New(slog.NewTextHandler(io.Discard, nil))

// host adds a host with addresses, whose device carries so much.
func (w *world) host(device int, addresses ...netip.Addr) *host {
	h := &host{
		w: w, traffic: make(map[netip.Addr]uint64), stream: make(map[netip.Addr]bool), told: make(map[netip.Addr]Choice),
	}
	h.ways = func(remote netip.Addr) (Route, error) {
		for _, local := range addresses {
			if w.paths[pair{local, remote}] != nil {
				return Route{Local: local, Device: "eth0", MTU: mtu.UnderlayMTU(device)}, nil
			}
		}
		return Route{}, errors.New("network is unreachable")
	}
	prober, err := newProber(Config{
		Send: h.send, Log: discard, Now: func() time.Time { return w.now },
		Route: func(remote netip.Addr) (Route, error) { return h.ways(remote) },
		Traffic: func(peer netip.Addr) uint64 {
			if h.stream[peer] {
				h.traffic[peer]++
			}
			return h.traffic[peer]
		},
		Changed: func(c Choice) {
			h.told[c.Peer] = c
			h.history = append(h.history, moment{w.now, c})
		},
	}, w.rng.Uint64)
	if err != nil {
		w.t.Fatal(err)
	}
	h.prober = prober
	for _, a := range addresses {
		w.hosts[a] = h
	}
	return h
}

// wake is what the prober's own goroutine does when it is woken.
func (h *host) wake() {
	now, next := h.prober.turn()
	at := now.Add(max(next.Sub(now), granularity))
	h.turnAt = at
	h.w.at(at.Sub(h.w.now), func() {
		if h.turnAt.Equal(at) {
			h.wake()
		}
	})
}

func (h *host) setPeers(peers ...Peer) {
	h.prober.SetPeers(peers)
	h.wake()
}

func (h *host) send(local, remote netip.Addr, payload []byte) error {
	w := h.w
	size := len(payload) + headersLen(remote)
	if h.device > 0 && size > h.device {
		return ErrTooLarge
	}
	h.sent += size
	if w.tap != nil {
		w.tap(local, remote, payload, size)
	}
	p := w.paths[pair{local, remote}]
	if p == nil {
		return errors.New("no path")
	}
	w.carry(p, local, remote, slices.Clone(payload), size)
	return nil
}

// carry takes a packet along a path.
func (w *world) carry(p *path, from, to netip.Addr, payload []byte, size int) {
	if p.cut || size > p.mtu || w.rng.Float64() < p.loss {
		return
	}
	delay := p.delay
	if p.jitter > 0 {
		delay += time.Duration(w.rng.Int64N(int64(p.jitter)))
	}
	if p.rate > 0 {
		if p.free.Before(w.now) {
			p.free = w.now
		}
		p.free = p.free.Add(time.Duration(float64(size) / p.rate * float64(time.Second)))
		delay += p.free.Sub(w.now)
	}
	if p.seenAs.IsValid() {
		from = p.seenAs
	}
	copies := 1
	if w.rng.Float64() < p.twice {
		copies = 2
	}
	for range copies {
		w.at(delay, func() { w.deliver(from, to, payload, size) })
	}
}

// deliver hands a packet to whoever has the address.
func (w *world) deliver(from, to netip.Addr, payload []byte, size int) {
	h := w.hosts[to]
	if h == nil || h.kernel {
		return
	}
	if !probe.Is(payload) {
		w.t.Fatalf("what was sent from %v to %v is no probe", from, to)
	}
	if inside, ok := w.inside[to]; ok {
		to = inside
	}
	if h.mapped {
		to, from = netip.AddrFrom16(to.As16()), netip.AddrFrom16(from.As16())
	}
	h.prober.Receive(to, from, payload, size)
	h.wake()
}

// join makes a path in both directions and returns both.
func (w *world) join(a, b netip.Addr, both path) (there, back *path) {
	there, back = new(path), new(path)
	*there, *back = both, both
	w.paths[pair{a, b}], w.paths[pair{b, a}] = there, back
	return there, back
}

var (
	addrA  = netip.MustParseAddr("192.0.2.1")
	addrB  = netip.MustParseAddr("192.0.2.2")
	addrA6 = netip.MustParseAddr("2001:db8::1")
	addrB6 = netip.MustParseAddr("2001:db8::2")
	floatA = netip.MustParseAddr("203.0.113.1")
	floatB = netip.MustParseAddr("203.0.113.2")

	floatA6 = netip.MustParseAddr("2001:db8:f::1")
	floatB6 = netip.MustParseAddr("2001:db8:f::2")
)

type addrOf = netip.Addr

func underlay(size int) mtu.UnderlayMTU { return mtu.UnderlayMTU(size) }

func peerAt(addresses ...netip.Addr) Peer { return Peer{Address: addresses[0], Candidates: addresses} }

// two is a world of two hosts that know each other, with one path.
func two(t testing.TB, seed uint64, device int, a, b netip.Addr, both path) (w *world, x, y *host, there, back *path) {
	w = newWorld(t, seed)
	there, back = w.join(a, b, both)
	x, y = w.host(device, a), w.host(device, b)
	x.setPeers(peerAt(b))
	y.setPeers(peerAt(a))
	return w, x, y, there, back
}

// settledAt reports whether a host has settled on a size for a peer.
func (h *host) settledAt(peer netip.Addr, size int) func() bool {
	return func() bool {
		c := h.told[peer]
		return c.Settled && c.Learned == LearnedProbe && int(c.Path) == size
	}
}
