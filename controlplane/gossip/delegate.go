package gossip

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// Types of messages: their first byte.
const (
	messageBatch    byte = 1 // for Deliver
	messageAnnounce byte = 2 // a claim
)

// delegateVersion says to other nodes which messages this one understands.
const delegateVersion = 1

// delegate is what memberlist calls. It calls some of this with its lock held, so nothing here calls it.
type delegate struct {
	g *Gossip
}

var (
	_ memberlist.Delegate      = delegate{}
	_ memberlist.EventDelegate = delegate{}
	_ memberlist.AliveDelegate = delegate{}
	_ memberlist.PingDelegate  = delegate{}
)

// NodeMeta implements memberlist.Delegate. A node's name is its ID, and there is nothing else to say that does not
// change all the time.
func (d delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg implements memberlist.Delegate.
func (d delegate) NotifyMsg(b []byte) {
	if !d.g.closed.Load() {
		d.g.receive(b)
	}
}

// GetBroadcasts implements memberlist.Delegate. memberlist counts with the largest of all packets, and a burst of them. A
// round with nothing to send, in which memberlist holds no lock, waits here until there may be something; the next one then
// follows at once and chooses its targets anew.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	messages := d.messages(overhead, limit)
	if len(messages) == 0 && limit == roundRoom {
		d.g.calm.wait()
	}
	return messages
}

func (d delegate) messages(overhead, limit int) [][]byte {
	g := d.g
	room := g.room()
	// memberlist forgets the length of the message that it adds these to.
	limit -= burst*(maxRoom-room) + compoundPartLen
	present, _ := g.members.counts()
	return g.queue.take(overhead, limit, maxMessage(room)+1, sendTimes(present))
}

// LocalState implements memberlist.Delegate.
func (d delegate) LocalState(bool) []byte { return d.g.claim().append(nil) }

// MergeRemoteState implements memberlist.Delegate.
func (d delegate) MergeRemoteState(b []byte, _ bool) { d.g.heed(b) }

// AckPayload implements memberlist.PingDelegate.
func (d delegate) AckPayload() []byte { return d.g.claim().append(nil) }

// NotifyPingComplete implements memberlist.PingDelegate. memberlist calls it at the end of a probe.
func (d delegate) NotifyPingComplete(_ *memberlist.Node, took time.Duration, payload []byte) {
	d.g.heed(payload)
	d.g.calm.rest(d.g.cfg.Timing.Probe, took)
}

// NotifyAlive implements memberlist.AliveDelegate. A node that is let in although it speaks no version in common
// would keep others from exchanging state: memberlist gives up when it sees one.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if _, ok := parseID(n.Name); !ok {
		return fmt.Errorf("the name is no node ID")
	}
	if len(n.Meta) != 0 {
		return fmt.Errorf("%d bytes of metadata where there should be none", len(n.Meta))
	}
	if a := addressOf(n); !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return fmt.Errorf("the address %v is not one of a node", a)
	}
	if n.PMin > protocolVersion || n.PMax < protocolVersion || n.PCur < memberlist.ProtocolVersionMin || n.PCur > memberlist.ProtocolVersionMax {
		return fmt.Errorf("protocol %d (%d to %d), here is %d", n.PCur, n.PMin, n.PMax, protocolVersion)
	}
	if n.DMin > delegateVersion || n.DMax < delegateVersion || n.DCur < delegateVersion {
		return fmt.Errorf("messages of version %d (%d to %d), here is %d", n.DCur, n.DMin, n.DMax, delegateVersion)
	}
	return nil
}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node) {
	d.g.members.joined(n.Name, addressOf(n))
	d.g.calm.stir()
}

// NotifyLeave implements memberlist.EventDelegate.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.g.members.gone(n.Name)
	d.g.calm.stir()
}

// NotifyUpdate implements memberlist.EventDelegate. Metadata is all that it is about.
func (d delegate) NotifyUpdate(*memberlist.Node) {}

func addressOf(n *memberlist.Node) netip.AddrPort {
	a, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(a.Unmap(), n.Port)
}

// receive takes a message from the network. b is memberlist's memory.
func (g *Gossip) receive(b []byte) {
	if len(b) < 1 || len(b) > maxRoom {
		g.count.rejectedMalformed.Add(1)
		return
	}
	switch b[0] {
	case messageBatch, messageAnnounce:
	default:
		g.count.unknown.Add(1)
		return
	}
	if !g.seen.add(b) {
		g.count.duplicates.Add(1)
		return
	}
	b = bytes.Clone(b)
	spread := false
	if b[0] == messageBatch {
		g.count.delivered.Add(1)
		spread = g.cfg.Deliver(b[1:len(b):len(b)])
	} else {
		// One that tells this node nothing tells others nothing either.
		spread = g.heed(b[1:])
	}
	if !spread {
		return
	}
	if err := g.queue.add(b); err != nil {
		g.count.queueDropped.Add(1)
		return
	}
	g.count.spread.Add(1)
	g.calm.stir()
}

// sent takes note of a part of a packet that memberlist sends.
func (g *Gossip) sent(part []byte) {
	g.members.sent(part)
	if tellsOfMembers(part) {
		g.calm.stir()
	}
}

// got takes note of a part of a packet for memberlist.
func (g *Gossip) got(part []byte) {
	g.members.received(part)
	if tellsOfMembers(part) {
		g.calm.stir()
	}
}

// heed looks at what another node claims to know, and reports whether it is more than this one knows.
func (g *Gossip) heed(b []byte) bool {
	c, ok := parseClaim(b)
	if !ok || c.cluster != g.cluster {
		g.count.rejectedMalformed.Add(1)
		return false
	}
	if g.closed.Load() || c.node == g.id || !c.digest.aheadOf(g.cfg.State()) {
		return false
	}
	g.cfg.Behind(c.nodeID(), c.digest)
	return true
}

func (g *Gossip) claim() claim {
	return claim{cluster: g.cluster, node: g.id, digest: g.cfg.State()}
}

// ipOf returns the form of an address in memberlist's configuration.
func ipOf(a netip.Addr) string { return net.IP(a.AsSlice()).String() }
