package pathmtu

import (
	"errors"
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/probe"
)

// Acknowledgements that may be sent, per second and at once. A thousand nodes that start together ask for about
// as many. They are never larger than what they answer, so nobody can use them to multiply traffic. Half of those
// at once are kept for the addresses of peers: a probe that is repeated from elsewhere is answered too, for the
// sender's node need not be known here.
const (
	acksPerSecond = 4096
	acksAtOnce    = 4096
	acksForPeers  = acksAtOnce / 2
)

// maxObserved is how many addresses of a peer are used or tried that nobody has stated.
const (
	maxObserved    = 2
	trialLasts     = 10 * time.Second // then another may take the place of one that has not answered
	observedLasts  = time.Minute
	mistakenLasts  = time.Minute
	minQuotedVXLAN = header.VXLANLen
)

// bucket limits a rate.
type bucket struct {
	tokens float64
	filled time.Time
}

// take takes one token, unless that would leave less than reserve.
func (b *bucket) take(now time.Time, rate, size, reserve float64) bool {
	if b.filled.IsZero() {
		b.tokens = size
	} else {
		b.tokens = min(size, b.tokens+now.Sub(b.filled).Seconds()*rate)
	}
	b.filled = now
	if b.tokens < 1+reserve {
		return false
	}
	b.tokens--
	return true
}

func (e *engine) ignore(why Ignore) { e.counters.Ignored[why]++ }

// receive takes a message from the underlay.
func (e *engine) receive(now time.Time, local, remote netip.Addr, payload []byte, size int) {
	if e.keys.Public() && len(e.byRemote[remote]) == 0 {
		e.ignore(IgnoreStranger) // whatever it says, which would cost more to find out than to say
		return
	}
	m, err := e.keys.Parse(payload)
	switch {
	case errors.Is(err, probe.ErrUnknownKey):
		e.ignore(IgnoreUnknownKey)
	case errors.Is(err, probe.ErrBadTag):
		e.ignore(IgnoreBadTag)
	case err != nil || !local.IsValid() || !remote.IsValid():
		e.ignore(IgnoreMalformed)
	case m.Type == probe.Probe:
		e.receiveProbe(now, local, remote, &m, size)
	default:
		e.receiveAck(now, remote, &m)
	}
}

func (e *engine) receiveProbe(now time.Time, local, remote netip.Addr, m *probe.Message, size int) {
	known := e.byRemote[remote]
	reserve := 0.
	if onTrial(known) {
		reserve = acksForPeers
	}
	e.acknowledge(now, local, remote, m.Nonce, size, reserve)
	if e.keys.Public() {
		for _, c := range known {
			c.prompt(now)
		}
		return
	}
	p := e.peers[m.Sender]
	if p == nil {
		return // a node that is not a peer yet, or no longer: it may know this one, and has been answered
	}
	for _, c := range known {
		if c.peer == p {
			c.prompt(now)
			return
		}
	}
	if len(known) > 0 || !p.observe(now, remote) {
		e.ignore(IgnoreObserved)
		return
	}
	e.index()
}

func (e *engine) acknowledge(now time.Time, local, remote netip.Addr, nonce uint64, size int, reserve float64) {
	if !e.acks.take(now, acksPerSecond, acksAtOnce, reserve) {
		e.counters.AcksLimited++
		return
	}
	e.counters.AcksSent++
	e.counters.BytesSent += uint64(headersLen(remote) + probe.Len)
	e.out = append(e.out, outgoing{
		local: local, remote: remote, length: probe.Len,
		message: probe.Message{Type: probe.Ack, Size: size, Nonce: nonce, Sender: e.sender(local), Observed: remote},
	})
}

func (e *engine) receiveAck(now time.Time, remote netip.Addr, m *probe.Message) {
	f, ok := e.flights[m.Nonce]
	switch {
	case !ok || !f.current():
		e.ignore(IgnoreStale)
		return
	case f.candidate.remote != remote:
		e.ignore(IgnoreWrongSource)
		return
	case m.Size != f.probe.Size:
		e.ignore(IgnoreWrongSize)
		return
	case !e.keys.Public() && m.Sender != f.candidate.peer.address:
		f.candidate.mistaken = now
		f.candidate.peer.next = time.Time{}
		e.ignore(IgnoreWrongNode)
		return
	}
	delete(e.flights, m.Nonce)
	e.counters.ProbesAcked++
	c := f.candidate
	first := c.answered.IsZero()
	c.answered, c.mistaken, c.seenAs = now, time.Time{}, m.Observed
	if first && c.origin == OriginObserved {
		e.index()
	}
	c.search.Acked(now, f.probe)
	c.peer.next = time.Time{}
}

// hint takes an ICMP error.
func (e *engine) hint(now time.Time, remote netip.Addr, path int, quoted []byte) {
	known := e.byRemote[remote]
	if len(known) == 0 {
		e.counters.HintsIgnored[HintUnknown]++
		return
	}
	if !e.quotes(remote, quoted) {
		e.counters.HintsIgnored[HintNoQuote]++
		return
	}
	for _, c := range known {
		switch {
		case c.search == nil || c.search.State() != StateReachable:
			e.counters.HintsIgnored[HintUnanswered]++
			e.noteClaim(c, path)
		case !c.hinted.IsZero() && now.Sub(c.hinted) < hintInterval:
			e.counters.HintsIgnored[HintLimited]++
		case !c.search.Hint(path):
			e.counters.HintsIgnored[HintAbsurd]++
		default:
			c.hinted = now
			c.peer.next = time.Time{}
			e.counters.HintsAccepted++
		}
	}
}

// noteClaim keeps what is said of a path of which nothing can be proven, for people to judge.
func (e *engine) noteClaim(c *candidate, path int) {
	if c.search == nil || path < c.search.min || path >= int(c.search.Path()) {
		return
	}
	if c.claimed == 0 {
		e.log.Warn("an ICMP error says that the path to a peer is narrow, and the peer answers no path probes, so that nothing proves it; if it is true, set that MTU for the route to it",
			"peer", c.peer.address, "address", c.remote, "said", path, "used", int(c.search.Path()))
	}
	c.claimed = path
}

// quotes reports whether what an ICMP error quotes was sent by this node to remote, as far as one can tell: a
// probe that is outstanding, or a VXLAN datagram. The host has found our socket by the ports of the quote.
func (e *engine) quotes(remote netip.Addr, quoted []byte) bool {
	if nonce, ok := probe.QuotedNonce(quoted); ok {
		f, out := e.flights[nonce]
		return out && f.candidate.remote == remote
	}
	return len(quoted) >= minQuotedVXLAN && header.VXLAN(quoted).ValidVNI()
}
