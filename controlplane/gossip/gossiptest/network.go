package gossiptest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Link is what a path between two nodes is like.
type Link struct {
	Latency time.Duration // one way
	Jitter  time.Duration // added to Latency, random from 0 to this
	Loss    float64       // part of packets that get lost, 0 to 1
	// MTU is the size in bytes of the largest IP packet that gets through, with headers of 20 or 40 and 8
	// bytes. Larger ones vanish, as where ICMP is filtered. 0 = no limit.
	MTU int
}

// Counts are what a transport has sent and received. Bytes are payloads.
type Counts struct {
	PacketsSent, PacketsReceived         uint64
	BytesSent, BytesReceived             uint64
	StreamsDialled                       uint64
	StreamBytesSent, StreamBytesReceived uint64
	Lost                                 uint64 // packets sent that did not arrive
}

// Packet is one packet as it is on the way.
type Packet struct {
	From, To netip.AddrPort
	Payload  []byte // not to be changed
}

// Network joins transports. Make one with NewNetwork.
type Network struct {
	mu         sync.Mutex
	random     *rand.Rand
	link       Link
	transports map[netip.AddrPort]*Transport
	group      map[netip.AddrPort]int // 0 = in none
	oneWay     []cut
	tap        func(Packet)
}

// cut is a one-way partition.
type cut struct {
	from, to map[netip.AddrPort]bool
}

// NewNetwork returns a network of perfect links.
func NewNetwork(seed uint64) *Network {
	return &Network{
		random:     rand.New(rand.NewPCG(seed, 0)),
		transports: map[netip.AddrPort]*Transport{},
	}
}

// SetLink makes all paths like l from now on.
func (n *Network) SetLink(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link = l
}

// Partition cuts every path between nodes of different groups, both ways. Nodes that are in no group make one
// more. It replaces an earlier partition.
func (n *Network) Partition(groups ...[]netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.group = map[netip.AddrPort]int{}
	for i, g := range groups {
		for _, a := range g {
			n.group[a] = i + 1
		}
	}
}

// CutOneWay makes nothing that nodes in from send arrive at nodes in to.
func (n *Network) CutOneWay(from, to []netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := cut{from: map[netip.AddrPort]bool{}, to: map[netip.AddrPort]bool{}}
	for _, a := range from {
		c.from[a] = true
	}
	for _, a := range to {
		c.to[a] = true
	}
	n.oneWay = append(n.oneWay, c)
}

// Heal ends all partitions.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.group, n.oneWay = nil, nil
}

// Tap has f called for every packet that is sent, whether it arrives or not. f must not block nor call the
// network. nil ends it.
func (n *Network) Tap(f func(Packet)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = f
}

// Inject delivers a packet at once, whoever it says it is from.
func (n *Network) Inject(p Packet) error {
	n.mu.Lock()
	to := n.transports[p.To]
	n.mu.Unlock()
	if to == nil {
		return fmt.Errorf("injecting a packet to %v: there is no transport", p.To)
	}
	to.deliver(p.From, append([]byte(nil), p.Payload...))
	return nil
}

// Transport makes a transport at an address. The address of one that has been shut down can be used again.
func (n *Network) Transport(a netip.AddrPort) (*Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.transports[a] != nil {
		return nil, fmt.Errorf("making a transport at %v: there is one", a)
	}
	t := &Transport{
		net: n, addr: a, done: make(chan struct{}),
		packets: make(chan *memberlist.Packet, socketBuffer),
		streams: make(chan net.Conn),
	}
	n.transports[a] = t
	return t, nil
}

// passes reports whether anything gets from one node to the other. The lock must be held.
func (n *Network) passes(from, to netip.AddrPort) bool {
	if n.group != nil && n.group[from] != n.group[to] {
		return false
	}
	for _, c := range n.oneWay {
		if c.from[from] && c.to[to] {
			return false
		}
	}
	return true
}

// delay draws how long something takes. The lock must be held.
func (n *Network) delay() time.Duration {
	d := n.link.Latency
	if n.link.Jitter > 0 {
		d += time.Duration(n.random.Int64N(int64(n.link.Jitter) + 1))
	}
	return d
}

// send takes a packet on its way, and reports whether it will arrive unless to is gone by then.
func (n *Network) send(from, to netip.AddrPort, b []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tap != nil {
		n.tap(Packet{From: from, To: to, Payload: b})
	}
	headers := 28
	if to.Addr().Is6() {
		headers = 48
	}
	t := n.transports[to]
	switch {
	case t == nil, !n.passes(from, to), n.link.MTU > 0 && len(b)+headers > n.link.MTU:
		return false
	case n.link.Loss > 0 && n.random.Float64() < n.link.Loss:
		return false
	}
	time.AfterFunc(n.delay(), func() { t.deliver(from, b) })
	return true
}

// reach returns the transport at an address if something gets there and back, and how long one way takes.
func (n *Network) reach(from, to netip.AddrPort) (*Transport, time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.transports[to]
	if t == nil || !n.passes(from, to) || !n.passes(to, from) {
		return nil, 0
	}
	return t, n.delay()
}
