package forward

import (
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Most packets are plain: sound, unicast, untagged, IPv4 without options or IPv6 without extension headers, no fragments,
// and of TCP, UDP, or an ICMP echo. What Egress and Ingress decide on those depends on who sends them to whom and on
// little else. Leave and Arrive say it for all of them at once, so that somebody else can forward them. They say nothing
// but what Egress and Ingress would do, and of the rest, that it is for these to look at.

// Pair names the plain packets of one station to another, as far as a decision depends on it.
type Pair struct {
	Src, Dst addr.MAC
	From     netip.Addr // source address of the packets: IPv4 or IPv6, never IPv4 in IPv6, and without a zone
}

// Fate is what becomes of the plain packets of a Pair. It holds until the network, its tables or the VTEPs change; see
// Tables.OnChange, Network.Changed, and Changed of the two tables.
type Fate struct {
	Net      *Network
	VTEP     fdb.VTEPID // behind which the other station is: that of Dst if they leave, of Src if they arrive
	MaxFrame int        // longest frame, in bytes with the Ethernet header, that needs nothing done to it
	MSS      mtu.MSS    // a SYN that states at most this needs no change
}

// Leave says what Egress does with the plain packets that come from the TAP of n. It is true if each of them is sent to
// one VTEP, unchanged, as long as the frame has at most MaxFrame bytes, a SYN states an MSS of at most MSS or none, and
// a UDP datagram is neither for the port of VXLAN nor for those of DHCP clients (68 and 546). A checksum that is only
// begun has to be completed, as for every frame. False means that every packet is to be looked at by itself.
//
// It takes no lock and may be called from any goroutine.
func (t *Tables) Leave(n *Network, p Pair) (Fate, bool) {
	if !p.plain() {
		return Fate{}, false
	}
	if n.Isolate && (p.Src == n.GatewayMAC || !n.registered(p, fdb.Local)) {
		return Fate{}, false
	}
	id, ok := n.FDB.Lookup(p.Dst)
	if !ok || id == fdb.Local {
		return Fate{}, false
	}
	// Loaded after the lookup, so that it has the VTEP.
	room := t.view.Load().vteps[id].MaxFrame
	if room <= header.EthernetLen {
		return Fate{}, false
	}
	return Fate{Net: n, VTEP: id, MaxFrame: room, MSS: p.mostMSS(n, room)}, true
}

// Arrive says what Ingress does with the plain packets that arrive in datagrams with this VNI from the address outer. It
// is true if each of them goes to the TAP of Fate.Net, unchanged, under the conditions that Leave names, and if its
// checksum is right and the ECN field of the datagram changes nothing about its own (RFC 6040, figure 4). False means that
// every packet is to be looked at by itself, if only to learn where its source is.
//
// It takes no lock, may be called from any goroutine, and learns nothing.
func (t *Tables) Arrive(vni addr.VNI, outer netip.Addr, p Pair) (Fate, bool) {
	if !p.plain() {
		return Fate{}, false
	}
	v := t.view.Load()
	n := v.networks[vni]
	if n == nil {
		return Fate{}, false
	}
	id, ok := v.byAddr[outer]
	if !ok || !n.isMember(id) || !n.arrives(p, id) {
		return Fate{}, false
	}
	// A TCP segment that is longer may be several that a kernel on this machine has not cut.
	overlay := int(n.MTU())
	if overlay <= 0 {
		return Fate{}, false
	}
	return Fate{Net: n, VTEP: id, MaxFrame: overlay + header.EthernetLen, MSS: p.mostMSS(n, v.vteps[id].MaxFrame)}, true
}

// plain reports whether there are such packets, and they are unicast.
func (p *Pair) plain() bool {
	return !p.Src.IsMulticast() && !p.Src.IsZero() && !p.Dst.IsMulticast() &&
		p.From.IsValid() && !p.From.Is4In6() && !p.From.IsUnspecified() && !p.From.IsMulticast() && !p.From.IsLoopback()
}

// registered is verify for the packets of p on an isolated network.
func (n *Network) registered(p Pair, from fdb.VTEPID) bool {
	at, ok := n.FDB.LookupStatic(p.Src)
	return ok && at == from && n.owns(p.Src, p.From)
}

// arrives is accept and source for the packets of p from behind the VTEP from, except that nothing is learned: where a
// network learns, that has been done.
func (n *Network) arrives(p Pair, from fdb.VTEPID) bool {
	if n.Isolate {
		at, ok := n.FDB.LookupStatic(p.Dst)
		return ok && at == fdb.Local && n.registered(p, from)
	}
	if p.Src == n.LocalMAC {
		return false
	}
	at, ok := n.FDB.Lookup(p.Src)
	return ok && at == from || !ok && !n.Learning
}

// mostMSS is what the SYNs of p are clamped to, for a path that carries frames of at most room bytes.
func (p *Pair) mostMSS(n *Network, room int) mtu.MSS {
	plain := frame.Parsed{L3: frame.IPv4, L3Off: header.EthernetLen}
	if p.From.Is6() {
		plain.L3 = frame.IPv6
	}
	return n.mostMSS(&plain, room)
}

// CountLeft counts frames, of bytes together, that came from the TAP and were sent as Leave said, but not by an Egress.
func (t *Tables) CountLeft(f *Fate, frames, bytes int) {
	f.Net.Counters.TAPIn.Add(frames, bytes)
	f.Net.Counters.UnderlayOut.Add(frames, bytes)
	t.view.Load().vteps[f.VTEP].sent.Add(uint64(frames))
}

// CountArrived counts frames of p, of bytes together, that came from the VTEP and went to the TAP as Arrive said, but not
// through an Ingress. The last of them came at the time now, in nanoseconds of the clock that is handed to
// Ingress.Process; until then, the VTEP was heard, and the source was where it was learned to be. If it has been learned
// elsewhere or forgotten since, it stays so. No frames are no sign of life.
func (t *Tables) CountArrived(f *Fate, p Pair, frames, bytes int, now int64) {
	if frames <= 0 {
		return
	}
	f.Net.Counters.UnderlayIn.Add(frames, bytes)
	f.Net.Counters.TAPOut.Add(frames, bytes)
	if heard := t.view.Load().vteps[f.VTEP].heard; heard.Load() < now {
		heard.Store(now)
	}
	if f.Net.Learning {
		f.Net.FDB.Refresh(p.Src, f.VTEP, uint32(now/1e9))
	}
}
