package forward

import (
	"encoding/binary"
	"maps"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mss"
	"github.com/overlayd/overlayd/dataplane/probe"
)

// Received is what one receive from the underlay delivered: one datagram, or a train of datagrams of
// Stride bytes each (the last may be shorter) that the kernel joined.
//
// Data belongs to the receiver of the batch, who may write to it, until the next receive.
type Received struct {
	From   netip.Addr
	Port   uint16 // from which it came
	Data   []byte
	Stride int   // as the kernel stated it (UDP_GRO), 0 if it stated none
	TOS    uint8 // traffic class of the outer header
}

// Delivery is what one batch has for the TAP of one network.
type Delivery struct {
	Net   *Network
	Items []gro.Item
}

// ProbeDatagram is a path probe, or the acknowledgement of one, as package probe describes them.
type ProbeDatagram struct {
	Remote  netip.Addr // outer source, be it that of a known VTEP or not
	Payload []byte     // of the UDP datagram: where it was received
}

// Station is one station of one network.
type Station struct {
	Net *Network
	MAC addr.MAC
}

// outlet collects the frames for one network.
type outlet struct {
	net  *Network
	gro  *gro.Coalescer
	used bool
	in   struct{ frames, bytes int }
}

// Ingress turns batches of received buffers into items for TAPs. What Deliveries and Probes hold is valid until
// the next Process of any half that has the same arena, as long as the batch is.
type Ingress struct {
	Deliveries []Delivery
	// Probes are the datagrams of the batch that are path probes. They are no frames, and none is dropped here.
	Probes []ProbeDatagram
	// Moved are the stations that were learned, in the last batch, to be behind another VTEP than before.
	Moved []Station
	// Datagrams counts the datagrams of the last batch.
	Datagrams int

	tables     *Tables
	samples    *Samples
	drops      *Drops // of datagrams that belong to no network
	opt        Options
	outlets    map[addr.VNI]*outlet
	last       *outlet // of the frame before, which nearly always is that of this one
	lead       *outlet // that of the datagram before in the same train, if it was delivered as it is, and
	leadHeader uint64  // its VXLAN header
	used       []*outlet
	cut        [][]byte
	arena      *gso.Arena
	view       *view
	removed    uint64 // view.removals, when outlets were last gone through
	now        int64
	seconds    uint32
	p          frame.Parsed
	from       netip.Addr // outer source of the buffer in hand, and
	vtep       fdb.VTEPID // its number, if
	known      bool       // it has one
	tos        uint8
	learned    struct { // what was learned last in this batch, to do it once a train
		mac  addr.MAC
		vtep fdb.VTEPID
		net  *Network
	}
}

// NewIngress makes the ingress half of one worker. Drops that belong to no network are counted in drops.
func NewIngress(t *Tables, drops *Drops, s *Samples, opt Options) *Ingress {
	return &Ingress{
		tables: t, drops: drops, samples: s, opt: opt,
		outlets: make(map[addr.VNI]*outlet),
		arena:   opt.Arena,
	}
}

// Process decides on everything in the batch at the time now, in nanoseconds of the caller's clock.
func (in *Ingress) Process(batch []Received, now int64) {
	in.view, in.now, in.seconds = in.tables.view.Load(), now, uint32(now/1e9)
	in.Deliveries, in.Probes, in.used, in.cut = in.Deliveries[:0], in.Probes[:0], in.used[:0], in.cut[:0]
	in.Moved = in.Moved[:0]
	in.arena.Reset()
	if in.removed != in.view.removals {
		in.forget()
	}
	in.last, in.learned.net, in.Datagrams, in.known = nil, nil, 0, false
	for i := range batch {
		in.receive(&batch[i])
	}
	for _, o := range in.used {
		o.used = false
		o.net.Counters.UnderlayIn.Add(o.in.frames, o.in.bytes)
		o.in.frames, o.in.bytes = 0, 0
		if items := o.gro.Items(); len(items) > 0 {
			in.Deliveries = append(in.Deliveries, Delivery{Net: o.net, Items: items})
		}
	}
}

// forget lets go of the networks that have been removed.
func (in *Ingress) forget() {
	in.removed = in.view.removals
	maps.DeleteFunc(in.outlets, func(vni addr.VNI, o *outlet) bool { return in.view.networks[vni] != o.net })
	clear(in.used[:cap(in.used)])
	clear(in.Moved[:cap(in.Moved)])
	clear(in.Deliveries[:cap(in.Deliveries)])
}

// receive tells a train from a superframe and handles each datagram.
func (in *Ingress) receive(r *Received) {
	if in.from != r.From {
		in.from = r.From
		in.known = false
	}
	if !in.known {
		if in.vtep, in.known = in.view.byAddr[r.From]; in.known {
			in.view.vteps[in.vtep].heard.Store(in.now) // once a batch and source
		}
	}
	in.tos, in.lead = r.TOS, nil
	b := r.Data
	if r.Stride <= 0 || r.Stride >= len(b) {
		in.Datagrams++
		in.datagram(b, 0)
		return
	}
	// A kernel VXLAN peer on the same machine hands over whole superframes, and of a UDP one the stated size
	// is that of the inner segments. So the inner lengths decide, never the stride alone.
	const outer = header.VXLANLen
	if len(b) > outer && !probe.Is(b) && in.p.Parse(b[outer:]) == frame.Sound && gso.Splittable(b[outer:], &in.p) {
		switch end := outer + in.p.End; {
		case end == len(b):
			in.Datagrams++
			in.datagram(b, r.Stride)
			return
		case end > r.Stride:
			n := (len(b) + r.Stride - 1) / r.Stride
			in.Datagrams += n
			in.dropOuter(VXLANBadTrain, n, b)
			return
		}
	}
	for len(b) > 0 {
		n := min(r.Stride, len(b))
		in.Datagrams++
		if !in.following(b[:n:n]) {
			in.datagram(b[:n:n], 0)
		}
		b = b[n:]
	}
}

// following takes the datagram b if it is like the last of the same train that was delivered, but for where its frame is in
// its flow. All that is decided here depends on what is the same, and so need not be decided again. It reports
// whether it has.
func (in *Ingress) following(b []byte) bool {
	const outer = header.VXLANLen
	o := in.lead
	if o == nil || len(b) < outer || binary.BigEndian.Uint64(b) != in.leadHeader || !o.gro.Continue(b[outer:]) {
		return false
	}
	o.in.frames++
	o.in.bytes += len(b) - outer
	return true
}

// datagram handles one VXLAN datagram. size is the segment size of the superframe in it, if it is known.
func (in *Ingress) datagram(b []byte, size int) {
	v := header.VXLAN(b)
	if len(b) < header.VXLANLen+header.EthernetLen || !v.ValidVNI() {
		in.noFrame(b)
		return
	}
	o := in.outlet(v.VNI())
	if o == nil {
		in.dropOuter(VNIUnknown, 1, b)
		return
	}
	f := b[header.VXLANLen:]
	fault := in.p.Parse(f)
	frames, bytes := 1, len(f)
	if fault == frame.Sound {
		if size = superSize(f, &in.p, size, o.net); size != 0 {
			payload := gso.Payload(&in.p)
			frames = gso.Segments(payload, size)
			bytes = frames*int(in.p.PayloadOff) + payload
		}
	}
	o.in.frames += frames
	o.in.bytes += bytes
	reason, sum := in.check(o.net, f, fault)
	if reason != NotDropped {
		in.drop(o.net, reason, frames, b)
		return
	}
	if in.p.TCPFlags&header.TCPSyn != 0 {
		in.clamp(o.net, f, sum)
	}
	in.deliver(o, b, size, sum)
}

// noFrame handles a datagram that is not VXLAN as RFC 7348 has it.
func (in *Ingress) noFrame(b []byte) {
	switch {
	case probe.Is(b):
		in.Probes = append(in.Probes, ProbeDatagram{Remote: in.from, Payload: b[:len(b):len(b)]})
	case len(b) < header.VXLANLen+header.EthernetLen:
		in.dropOuter(VXLANTruncated, 1, b)
	default:
		in.dropOuter(VXLANBadFlags, 1, b)
	}
}

// clamp lowers the MSS of the SYN f, so that the station here that it is for sends nothing that would not get back to
// the VTEP in hand.
func (in *Ingress) clamp(n *Network, f []byte, sum gso.Checksum) {
	most := n.mostMSS(&in.p, in.view.vteps[in.vtep].MaxFrame)
	if mss.Clamp(f[in.p.L4Off:in.p.PayloadOff], most, sum == gso.Partial) {
		n.Counters.MSSClamped.Add(1)
	}
}

// superSize returns the segment size of f if it is a superframe, or 0. Without a stated size, a TCP segment
// that is larger than the network's MTU is one; the largest segment that the MTU admits is then as good as
// the sender's own.
func superSize(f []byte, p *frame.Parsed, stated int, n *Network) int {
	if !gso.Splittable(f, p) {
		return 0
	}
	payload := gso.Payload(p)
	if p.Proto == header.ProtoUDP {
		if stated > 0 && stated < payload && gso.Segments(payload, stated) <= gso.MaxSegments {
			return stated
		}
		return 0
	}
	if room := int(n.MTU()) - int(p.PayloadOff-p.L3Off); room > 0 && payload > room {
		return room
	}
	return 0
}

// check applies every test to the frame f for n: who sent it, whether it is sound, and what it claims.
func (in *Ingress) check(n *Network, f []byte, fault frame.Fault) (DropReason, gso.Checksum) {
	switch {
	case !in.known || !n.isMember(in.vtep):
		return VTEPUnknown, 0
	case fault != frame.Sound:
		return faultReasons[fault], 0
	case !decapECN(f, &in.p, in.tos):
		return ECNBroken, 0
	case !n.AllowNested && nested(f, &in.p, in.opt.Port):
		return NestedVXLAN, 0
	}
	sum := gso.Verify(f, &in.p)
	// The source comes last: nothing is learned from a frame that is dropped.
	switch {
	case sum == gso.Wrong:
		return BadChecksum, 0
	case n.Isolate:
		return n.accept(f, &in.p, in.vtep), sum
	case !in.source(n, header.Ethernet(f).Src()):
		return SourceSpoofed, 0
	}
	return NotDropped, sum
}

// source reports whether mac may come from behind the VTEP in hand, and learns it if the network learns.
func (in *Ingress) source(n *Network, mac addr.MAC) bool {
	if in.learned.net == n && in.learned.mac == mac && in.learned.vtep == in.vtep {
		return true
	}
	if mac == n.LocalMAC {
		return false
	}
	if n.Learning {
		switch n.FDB.Learn(mac, in.vtep, in.seconds) {
		case fdb.Pinned:
			return false
		case fdb.Moved:
			in.Moved = append(in.Moved, Station{n, mac})
		}
	} else if id, ok := n.FDB.Lookup(mac); ok && id != in.vtep {
		return false
	}
	in.learned.net, in.learned.mac, in.learned.vtep = n, mac, in.vtep
	return true
}

// deliver hands the frame in the datagram b on in the form that the TAP takes.
func (in *Ingress) deliver(o *outlet, b []byte, size int, sum gso.Checksum) {
	p, tap := &in.p, &o.net.TAP
	f := b[header.VXLANLen:]
	if size == 0 {
		if sum == gso.Partial && !tap.Checksum {
			gso.CompleteTransport(f, p)
			sum = gso.Complete
		}
		o.gro.Add(f, p, sum)
		in.lead, in.leadHeader = o, binary.BigEndian.Uint64(b)
		return
	}
	if p.Proto == header.ProtoTCP && tap.Super.TCP || p.Proto == header.ProtoUDP && tap.Super.UDP {
		o.gro.AddSuperframe(f, p, size)
		return
	}
	first := len(in.cut)
	cut := gso.Split(in.cut, in.arena, nil, f, p, size)
	if cut == nil {
		in.drop(o.net, GSOUnsupported, gso.Segments(gso.Payload(p), size), b)
		return
	}
	in.cut = cut
	o.gro.AddCut(in.cut[first:])
}

// outlet returns the outlet of the network with this VNI, or nil if there is none.
func (in *Ingress) outlet(vni addr.VNI) *outlet {
	o := in.last
	if o == nil || o.net.VNI != vni {
		n := in.view.networks[vni]
		if n == nil {
			return nil
		}
		if o = in.outlets[vni]; o == nil || o.net != n {
			o = &outlet{net: n, gro: gro.New(n.TAP.Super)}
			in.outlets[vni] = o
		}
		in.last = o
	}
	if !o.used {
		o.used = true
		o.gro.Reset()
		in.used = append(in.used, o)
	}
	return o
}

func (in *Ingress) drop(n *Network, reason DropReason, frames int, b []byte) {
	n.Counters.Drops.Add(reason, frames, in.now)
	in.samples.Add(Sample{Time: in.now, Network: n.Name, Reason: reason, Outer: true, Peer: in.from}, b)
}

func (in *Ingress) dropOuter(reason DropReason, frames int, b []byte) {
	in.drops.Add(reason, frames, in.now)
	in.samples.Add(Sample{Time: in.now, Reason: reason, Outer: true, Peer: in.from}, b)
}

// Report counts the outcome of writing item to the TAP of n: NotDropped when the kernel took it.
func (in *Ingress) Report(n *Network, item *gro.Item, outcome DropReason) {
	if outcome == NotDropped {
		n.Counters.TAPOut.Add(item.Frames, item.Bytes)
		return
	}
	n.Counters.Drops.Add(outcome, item.Frames, in.now)
	in.samples.Add(Sample{Time: in.now, Network: n.Name, Reason: outcome, Peer: in.from}, item.Pieces[0])
}
