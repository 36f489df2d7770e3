package gossip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// Limits of PacketSize. Every path carries the smaller one (RFC 1122, section 3.3.2, less 28). The larger
	// is that of Ethernet; more would save little.
	minPacket = 548
	maxPacket = 1472
	// maxRoom is what remains for memberlist in the largest packet.
	maxRoom = maxPacket - packetOverhead
	// burst is how many packets of messages one node is sent at once, at most. With one, a change or two in each
	// interval is all that four targets can be kept informed of: a host that starts a hundred containers would make every
	// change wait for seconds. With eight a node sends 350 kB a second at the very most.
	burst = 8
	// roundRoom is the room that memberlist says a round has while it has nothing to send itself. When messages ride on
	// something else there is less.
	roundRoom = burst*maxRoom - compoundHeaderLen
	// maxAwareness bounds the factor by which a node that loses probes gives them more time.
	maxAwareness = 4

	protocolVersion = 5 // of memberlist
)

// Gossip is this node's membership in a cluster. Make one with New, call Run, and Close it.
type Gossip struct {
	cfg         Config
	id, cluster [8]byte
	keys        atomic.Pointer[keyring]
	count       counters
	members     *members
	queue       queue
	seen        *seen
	calm        *calm
	sockets     *sockets // nil with Config.Transport
	list        *memberlist.Memberlist
	closed      atomic.Bool
	joins       sync.WaitGroup // those of rejoin

	// use is held for reading by calls that memberlist does not allow after its end.
	use sync.RWMutex
}

// New opens the sockets and starts to answer other nodes. An error for a Config that cannot work is ErrConfig;
// that of an address that is taken is EADDRINUSE.
func New(cfg Config) (*Gossip, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	ring, err := newKeyring(cfg.Keys)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	cfg.Keys = nil
	g := &Gossip{
		cfg: cfg, members: newMembers(cfg.NodeID), seen: newSeen(),
		calm: newCalm((maxAwareness + 1) * cfg.Timing.Probe),
	}
	g.id, _ = parseID(cfg.NodeID)
	g.cluster, _ = parseID(cfg.Cluster)
	g.keys.Store(ring)
	g.queue.dropped = &g.count.queueDropped

	inner := cfg.Transport
	if inner == nil {
		if g.sockets, err = listen(cfg.Bind, g.segment); err != nil {
			return nil, fmt.Errorf("opening the gossip port: %w", err)
		}
		inner = g.sockets
	}
	t := &transport{
		inner: inner, cluster: g.cluster, keys: &g.keys, room: g.room,
		sent: g.sent, got: g.got, count: &g.count, routes: routes{all: cfg.Addresses},
	}
	t.start()
	if g.list, err = memberlist.Create(g.memberlistConfig(t)); err != nil {
		return nil, errors.Join(fmt.Errorf("starting gossip: %w", err), t.Shutdown())
	}
	return g, nil
}

func (g *Gossip) memberlistConfig(t *transport) *memberlist.Config {
	timing := g.cfg.Timing
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.NodeID
	c.Transport = t
	c.BindAddr, c.BindPort = "", int(g.cfg.Advertise.Port())
	c.AdvertiseAddr, c.AdvertisePort = ipOf(g.cfg.Advertise.Addr()), int(g.cfg.Advertise.Port())
	c.ProtocolVersion = protocolVersion
	c.DelegateProtocolMin, c.DelegateProtocolMax, c.DelegateProtocolVersion = delegateVersion, delegateVersion, delegateVersion
	d := delegate{g}
	c.Delegate, c.Events, c.Alive, c.Ping = d, d, d, d
	c.Logger = logger(g.cfg.Log)

	c.UDPBufferSize = burst * maxRoom // packets are cut to what the path carries by the transport
	c.EnableCompression = false
	c.TCPTimeout = streamTimeout
	c.ProbeInterval, c.ProbeTimeout = timing.Probe, timing.ProbeTimeout
	c.AwarenessMaxMultiplier = maxAwareness
	c.SuspicionMult = int((timing.Suspicion + timing.Probe - 1) / timing.Probe)
	c.SuspicionMaxTimeoutMult = maxSuspicion
	c.GossipInterval, c.PushPullInterval = timing.Gossip, timing.PushPull
	c.GossipNodes = 4 // in a cluster of five each round reaches everybody
	c.DeadNodeReclaimTime = reclaimAfter
	c.HandoffQueueDepth = 4096 // a cluster of a thousand says as much when it starts
	return c
}

// packet returns the UDP payload that paths carry now.
func (g *Gossip) packet() int { return max(minPacket, min(maxPacket, g.cfg.PacketSize())) }

// room returns what remains of a packet for memberlist.
func (g *Gossip) room() int { return g.packet() - packetOverhead }

// segment returns the largest TCP segment that paths carry: TCP's header is 12 bytes longer than UDP's.
func (g *Gossip) segment() int { return g.packet() - 12 }

// maxMessage returns the length of a message for which there is always a packet with room for it: one that it
// shares with nothing but the framing of a compound and the types of the part and the message.
func maxMessage(room int) int {
	return room - compoundHeaderLen - 2*compoundPartLen - 1 - 1
}

// MaxMessage returns how long in bytes a message may be now. It follows PacketSize.
func (g *Gossip) MaxMessage() int { return maxMessage(g.room()) }

// Broadcast queues a message for all members, of which some may never get it: see Config.Behind. The error is
// ErrTooBig or ErrQueueFull: then nobody gets it, and Announce makes others ask for what it says. It does not
// come back by Deliver. Broadcasting a message again that is still queued sends it twice as often.
func (g *Gossip) Broadcast(message []byte) error {
	if n, most := len(message), g.MaxMessage(); n == 0 || n > most {
		return fmt.Errorf("broadcasting %d bytes, 1 to %d are possible: %w", n, most, ErrTooBig)
	}
	return g.enqueue(append([]byte{messageBatch}, message...))
}

// Announce tells all members what this node knows, so that those that know less ask. It is for changes that
// Broadcast cannot carry; without it they show within some probe intervals. The error is ErrQueueFull.
func (g *Gossip) Announce() error {
	return g.enqueue(g.claim().append([]byte{messageAnnounce}))
}

func (g *Gossip) enqueue(b []byte) error {
	g.seen.add(b)
	if err := g.queue.add(b); err != nil {
		return fmt.Errorf("queueing a message of %d bytes: %w", len(b)-1, err)
	}
	g.calm.stir()
	return nil
}

// Leave tells the members that this node goes, and waits until that has been sent, or for the timeout. The
// node goes on to answer until Close, but cannot join again.
func (g *Gossip) Leave(timeout time.Duration) error {
	g.use.RLock()
	defer g.use.RUnlock()
	if g.closed.Load() {
		return fmt.Errorf("leaving the cluster: %w", errClosed)
	}
	if timeout <= 0 {
		return fmt.Errorf("leaving the cluster: the timeout is %v, must be positive", timeout)
	}
	if err := g.list.Leave(timeout); err != nil {
		return fmt.Errorf("leaving the cluster: %w; others will see this node die instead", err)
	}
	return nil
}

// Members returns all nodes, this one included, by ID. Those that are dead or have left stay for 10 minutes.
func (g *Gossip) Members() []Member { return g.members.list() }

// SetKeys replaces the keys, from the next packet and stream on. For no node to be lost on the way, a new key
// must first be added behind the others on all nodes, then be put first on all, and only then may the old one go.
func (g *Gossip) SetKeys(keys [][]byte) error {
	ring, err := newKeyring(keys)
	if err != nil {
		return fmt.Errorf("replacing gossip keys: %w", err)
	}
	g.keys.Store(ring)
	return nil
}

// Stats returns counts.
func (g *Gossip) Stats() Stats {
	c := &g.count
	s := Stats{
		PacketsSent: c.packetsSent.Load(), PacketsReceived: c.packetsReceived.Load(),
		BytesSent: c.bytesSent.Load(), BytesReceived: c.bytesReceived.Load(),
		StreamsDialled: c.streamsDialled.Load(), StreamsAccepted: c.streamsAccepted.Load(),
		StreamBytesSent: c.streamBytesSent.Load(), StreamBytesReceived: c.streamBytesReceived.Load(),
		Delivered: c.delivered.Load(), Duplicates: c.duplicates.Load(), Spread: c.spread.Load(), Unknown: c.unknown.Load(),
		Queued: g.queue.len(), QueueDropped: c.queueDropped.Load(),
		RejectedCluster: c.rejectedCluster.Load(), RejectedKey: c.rejectedKey.Load(),
		RejectedMalformed: c.rejectedMalformed.Load(), RejectedBusy: c.rejectedBusy.Load(),
		Oversize: c.oversize.Load(), Heals: c.heals.Load(), Missing: int(c.missing.Load()),
		Health: g.list.GetHealthScore(),
	}
	s.Members, s.Suspect = g.members.counts()
	return s
}

// Run reports events and rejoins missing managers until ctx is done. It may be called once.
func (g *Gossip) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { g.reportEvents(ctx) })
	wg.Go(func() { g.rejoin(ctx) })
	wg.Wait()
	return nil
}

// reportEvents is the goroutine "events".
func (g *Gossip) reportEvents(ctx context.Context) {
	for ctx.Err() == nil {
		events, wait := g.members.report()
		for _, e := range events {
			g.cfg.Events(e)
		}
		var later <-chan time.Time
		if wait > 0 {
			later = time.After(wait)
		}
		select {
		case <-g.members.changed:
		case <-later:
		case <-ctx.Done():
		}
	}
}

// Close ends all communication without a farewell, and joins the goroutines of this package, those of Run
// and of calls of Join excepted, which end soon. It may be called again.
func (g *Gossip) Close() error {
	g.use.Lock()
	defer g.use.Unlock()
	if g.closed.Swap(true) {
		return nil
	}
	err := g.list.Shutdown() // before calm ends, or else the probe that rests there would be made, and fail
	g.calm.end()
	g.joins.Wait()
	if err != nil {
		return fmt.Errorf("closing gossip: %w", err)
	}
	return nil
}

// Join exchanges membership with the nodes at addrs, and returns how many of them could be reached. The
// error says why the others could not. It takes some 10 s for each 8 addresses that do not answer.
func (g *Gossip) Join(addrs []netip.AddrPort) (reached int, err error) {
	const atOnce = 8
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		slot = make(chan struct{}, atOnce)
	)
	for _, a := range addrs {
		if err := checkAddress("joined", a); err != nil {
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
			continue
		}
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			err := g.joinOne(a)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			reached++
		})
	}
	wg.Wait()
	return reached, errors.Join(errs...)
}

// joinOne is the goroutine "join".
func (g *Gossip) joinOne(a netip.AddrPort) error {
	if g.closed.Load() {
		return fmt.Errorf("joining %v: %w", a, errClosed)
	}
	if _, err := g.list.Join([]string{a.String()}); err != nil {
		if one := errors.Unwrap(err); one != nil {
			err = one // a list of one
		}
		return fmt.Errorf("joining %v: %w; check that it runs, that this host may reach its gossip port by TCP and UDP, and that both have the same gossip keys", a, err)
	}
	return nil
}
