package forward

import (
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/suppress"
)

// maxSend is the most payload that one UDP send takes: 65,535 less the headers of IPv4 and UDP.
const maxSend = 65507

// arenaSize holds the headers of a batch of superframes of gso.MaxSegments frames, each with the largest headers
// there are (IPv6, TCP with options, two tags, VXLAN), and the payload of a batch of a TAP. Replication to many peers reuses
// them.
const arenaSize = 4*gso.MaxSegments*160 + 4*65536

// trainMost is the longest frame that is worth to be copied into a train: of a superframe of 62 KB in frames of 1,450 bytes
// a send takes 7.3 us as a train, which takes 1.5 us to make, and 11 in pieces. With frames of 4,500 bytes it is 9.1 and 1.9, and 9.4.
// These were measured once, by hand: of the two kinds of sends no benchmark has both. What it takes to make a train is about
// what BenchmarkEgress takes longer for known/TCP_superframe than for TCP_superframe, which is flooded in pieces.
const trainMost = 3 << 10

// Options are the limits of the underlay that an Egress keeps to, and its memory.
type Options struct {
	Port        uint16     // UDP port of VXLAN, to recognise VXLAN inside VXLAN
	Buckets     int        // number of outer source ports to spread flows over; a power of two
	MaxSegments int        // datagrams that one send may carry
	Arena       *gso.Arena // from NewArena
}

// NewArena makes the memory for the headers of a batch, and for the payload of what is sent as a train. All halves of one
// goroutine share one: Process of any of them ends the life of what the others have made in it. It is large, and there are as
// many halves as queues of all networks.
func NewArena() *gso.Arena { return gso.NewArena(make([]byte, arenaSize)) }

// Send is one call of sendmsg: one or several datagrams to one VTEP from one source port. All datagrams are
// Size bytes long but for the last, which may be shorter. Each is made of PerDatagram consecutive pieces
// of Egress.Pieces[First:End].
//
// Or, if Whole is set, it is one superframe behind its VXLAN header, in one piece, for the kernel to cut as Offload
// says. Offsets in Offload count from the VXLAN header.
type Send struct {
	VTEP        fdb.VTEPID
	Bucket      int   // which source port: all frames of a flow have the same
	TOS         uint8 // outer traffic class: the ECN field of the inner packet (RFC 6040, section 4.1)
	Size        int
	First, End  int
	PerDatagram int
	Frames      int // datagrams, each with one frame
	Bytes       int // of the frames
	Whole       bool
	Offload     header.VirtioNet
	total       int // of the datagrams
	closed      bool
}

// Egress turns batches of frames from the TAP of one network into sends. What the fields Sends, Pieces and
// Answers hold is valid until the next Process of any half that has the same arena, as long as the batch is.
type Egress struct {
	Sends   []Send
	Pieces  [][]byte
	Answers [][]byte // frames for the TAP: replies to requests, and errors about frames that are too large

	// Whole says to which VTEPs superframes are sent uncut, and how long they then may be, VXLAN header included;
	// 0 and what is beyond its end mean none. It is indexed by VTEPID and set before Process.
	Whole []int

	tables  *Tables
	net     *Network
	samples *Samples
	opt     Options
	arena   *gso.Arena
	view    *view
	now     int64
	p       frame.Parsed
	prefix  [header.VXLANLen]byte
	cut     struct{ size, first, per int } // where in Pieces the frame in hand is cut to this size, with how many a frame; 0: not yet
	frags   struct{ size, first int }      // and where into fragments of this size
	known   bool                           // the frame in hand goes to one VTEP, behind which its destination is
	created int
	repairs repairs
	answers int
	in      struct{ frames, bytes int }
}

// NewEgress makes the egress half of one worker of n.
func NewEgress(t *Tables, n *Network, s *Samples, opt Options) *Egress {
	e := &Egress{
		Sends:   make([]Send, 0, 128),
		Pieces:  make([][]byte, 0, 512),
		Answers: make([][]byte, 0, 64),
		tables:  t, net: n, samples: s, opt: opt,
		arena: opt.Arena,
	}
	header.VXLAN(e.prefix[:]).Encode(n.VNI)
	return e
}

// Process decides on every frame of the batch at the time now, in nanoseconds of the caller's clock.
func (e *Egress) Process(batch []frame.Frame, now int64) {
	e.Sends, e.Pieces, e.Answers = e.Sends[:0], e.Pieces[:0], e.Answers[:0]
	e.arena.Reset()
	e.view, e.now = e.tables.view.Load(), now
	e.created, e.answers = 0, 0
	e.in.frames, e.in.bytes = 0, 0
	for i := range batch {
		e.one(&batch[i])
	}
	c := e.net.Counters
	c.TAPIn.Add(e.in.frames, e.in.bytes)
	if e.created != 0 {
		c.Created.Add(uint64(e.created))
	}
	if e.answers != 0 {
		c.Suppressed.Add(uint64(e.answers))
	}
	if e.repairs != (repairs{}) {
		e.repairs.count(c)
		e.repairs = repairs{}
	}
}

// one decides on one frame.
func (e *Egress) one(f *frame.Frame) {
	b := f.Bytes()
	e.cut.size, e.frags.size, e.known = 0, 0, false
	reason := faultReasons[e.p.Parse(b)]
	size, frames, bytes := 0, 1, len(b)
	if reason == NotDropped && f.Offload.GSOType != header.GSONone {
		if size, reason = segmentSize(b, &e.p, &f.Offload); reason == NotDropped {
			payload := gso.Payload(&e.p)
			frames = gso.Segments(payload, size)
			bytes = frames*int(e.p.PayloadOff) + payload
		}
	}
	e.in.frames += frames
	e.in.bytes += bytes
	if reason == NotDropped && size == 0 && f.Offload.Flags&header.VirtioFlagNeedsCsum != 0 {
		reason = e.complete(b, &f.Offload)
	}
	if reason == NotDropped && e.net.Isolate {
		answered := false
		if answered, reason = e.isolated(b); answered {
			return
		}
	}
	switch {
	case reason != NotDropped:
	case !e.net.AllowNested && nested(b, &e.p, e.opt.Port):
		reason = NestedVXLAN
	case !e.net.Isolate && e.suppress(b):
		return
	}
	if reason != NotDropped {
		e.drop(reason, frames, b, nil)
		return
	}
	header.VXLAN(f.Buf).Encode(e.net.VNI)
	s := Send{
		Bucket: int(e.p.FlowHash(b)) & (e.opt.Buckets - 1),
		TOS:    innerECN(b, &e.p),
		Frames: frames,
		Bytes:  bytes,
	}
	dst := header.Ethernet(b).Dst()
	if !dst.IsMulticast() {
		if id, ok := e.net.FDB.Lookup(dst); ok {
			if !e.reaches(id) {
				e.drop(DestinationLocal, frames, b, nil)
				return
			}
			s.VTEP, e.known = id, true
			e.clamp(b, e.view.vteps[id].MaxFrame)
			e.created += e.send(f, size, s) - frames
			return
		}
		if e.net.Isolate {
			e.drop(DestinationUnknown, frames, b, nil)
			return
		}
	}
	e.flood(f, size, s)
}

// complete finishes the checksum of b that h asks for. Where it goes is for the sender to say, who may thereby change
// any two bytes to what it likes. So what does not go into the checksum field of TCP or UDP is looked at anew.
func (e *Egress) complete(b []byte, h *header.VirtioNet) DropReason {
	if !gso.CompleteOffload(b, h) {
		return BadOffload
	}
	if h.CsumStart == e.p.L4Off && (e.p.Proto == header.ProtoTCP && h.CsumOffset == header.TCPChecksumOffset ||
		e.p.Proto == header.ProtoUDP && h.CsumOffset == header.UDPChecksumOffset) {
		return NotDropped
	}
	return faultReasons[e.p.Parse(b)]
}

// isolated decides whether b may leave the host on an isolated network, or answers it.
func (e *Egress) isolated(b []byte) (answered bool, reason DropReason) {
	if reason := e.net.verify(b, &e.p, fdb.Local); reason != NotDropped {
		return false, reason
	}
	if e.suppress(b) {
		return true, NotDropped
	}
	return false, e.net.unanswered(b, &e.p)
}

// reaches reports whether id is the number of a VTEP, and sees to it that the view in hand has it: the tables are
// changed while a batch is under way, and name VTEPs that are younger than the batch.
func (e *Egress) reaches(id fdb.VTEPID) bool {
	if int(id) < len(e.view.vteps) {
		return true
	}
	if id == fdb.Local {
		return false
	}
	e.view = e.tables.view.Load()
	return true
}

// flood sends a copy of f to each member of the network, as far as its limit lets it.
func (e *Egress) flood(f *frame.Frame, size int, s Send) {
	flood := e.net.flood()
	if len(flood) == 0 {
		e.drop(NoPeers, s.Frames, f.Bytes(), nil)
		return
	}
	if e.net.Limit != nil {
		if n := e.limit(f.Bytes(), size, s.Frames); n < s.Frames {
			if n == 0 {
				return
			}
			s.Frames, s.Bytes = n, n*(int(e.p.PayloadOff)+size)
		}
	}
	if e.p.TCPFlags&header.TCPSyn != 0 {
		e.clamp(f.Bytes(), e.narrowest(flood))
	}
	copies := 0
	for _, s.VTEP = range flood {
		if e.reaches(s.VTEP) {
			copies += e.send(f, size, s)
		}
	}
	e.created += copies - s.Frames
}

// limit returns how many of the frames for which b stands may be flooded, and drops the rest. Of a superframe with
// segments of size bytes, e.p then describes the first ones.
func (e *Egress) limit(b []byte, size, frames int) int {
	n := e.net.Limit.Allow(e.now, frames)
	if n == frames {
		return n
	}
	e.drop(BUMRateLimited, frames-n, b, nil)
	if n == 0 {
		return 0
	}
	e.p.End = int(e.p.PayloadOff) + n*size
	if e.p.Proto == header.ProtoTCP {
		// What these flags say of the end of the superframe is not true of its new end.
		tcp := header.TCP(b[e.p.L4Off:])
		tcp.SetFlags(tcp.Flags() &^ (header.TCPFin | header.TCPPsh))
	}
	return n
}

// segmentSize checks the offload header of a superframe against the frame and returns its GSO size, or 0 for a SYN. That
// may carry data (RFC 7413) and so bear the mark of a superframe; but there is no way to cut it, and it must be a single
// segment.
func segmentSize(b []byte, p *frame.Parsed, h *header.VirtioNet) (int, DropReason) {
	var want struct {
		l3    frame.Layer3
		proto uint8
	}
	switch h.GSOType &^ header.GSOECN {
	case header.GSOTCPv4:
		want.l3, want.proto = frame.IPv4, header.ProtoTCP
	case header.GSOTCPv6:
		want.l3, want.proto = frame.IPv6, header.ProtoTCP
	case header.GSOUDPL4:
		want.l3, want.proto = p.L3, header.ProtoUDP
	default:
		return 0, GSOUnsupported
	}
	if p.L3 != want.l3 || p.Proto != want.proto || p.PayloadOff == 0 || h.GSOSize == 0 {
		return 0, BadOffload
	}
	segments := gso.Segments(gso.Payload(p), int(h.GSOSize))
	if p.TCPFlags&header.TCPSyn != 0 && segments == 1 {
		return 0, NotDropped
	}
	if !gso.Splittable(b, p) || segments > gso.MaxSegments {
		return 0, BadOffload
	}
	return int(h.GSOSize), NotDropped
}

// suppress answers an ARP or ND request from the table, if it can.
func (e *Egress) suppress(b []byte) bool {
	if e.net.Neighbors.Len() == 0 {
		return false
	}
	if e.p.L3 != frame.ARP && (e.p.L3 != frame.IPv6 || e.p.Proto != header.ProtoICMPv6) {
		return false
	}
	mark := e.arena.Mark()
	out := e.arena.Alloc(suppress.MaxReplyLen)
	if out == nil {
		return false
	}
	reply, ok := suppress.Answer(b, int(e.p.L3Off), e.p.EtherType, e.net.Neighbors, out)
	if ok {
		// A station behind our own bridge has heard the question and answers itself. If we did, in its name, the
		// bridge would take the TAP for its port.
		id, known := e.net.FDB.Lookup(header.Ethernet(reply).Src())
		ok = !known || id != fdb.Local
	}
	if !ok {
		e.arena.Release(mark)
		return false
	}
	e.Answers = append(e.Answers, reply)
	e.answers++
	return true
}

// send appends what is to go to s.VTEP and returns the number of wire frames that it took on, dropped ones
// included.
func (e *Egress) send(f *frame.Frame, size int, s Send) int {
	room := e.view.vteps[s.VTEP].MaxFrame
	if size == 0 {
		if len(f.Buf)-frame.Headroom > room {
			return e.shrink(f, room, s)
		}
		return e.sendPlain(f.Buf, s)
	}
	if !fits(&e.p, size, room) {
		return e.shrinkSuperframe(f, size, room, s)
	}
	return e.sendSuperframe(f, size, s)
}

// sendPlain appends the datagram buf, to which the frame in hand and its VXLAN header amount.
func (e *Egress) sendPlain(buf []byte, s Send) int {
	s.Size, s.PerDatagram = len(buf), 1
	if n := len(e.Sends); n > 0 && e.Sends[n-1].join(&s, e.opt.MaxSegments) {
		e.Pieces = append(e.Pieces, buf)
		e.Sends[n-1].End++
		return 1
	}
	s.First, s.total = len(e.Pieces), s.Size
	s.End = s.First + 1
	e.Pieces = append(e.Pieces, buf)
	e.Sends = append(e.Sends, s)
	return 1
}

// join lets the single datagram s ride with l, the send before it, if the kernel can send both as one: the
// same size, or the last one shorter, from and to the same place. Only the last send is looked at, so that
// order is kept.
func (l *Send) join(s *Send, maxSegments int) bool {
	if l.closed || l.Whole || l.PerDatagram != 1 || l.VTEP != s.VTEP || l.Bucket != s.Bucket || l.TOS != s.TOS ||
		s.Size > l.Size || l.Frames == maxSegments || l.total+s.Size > maxSend {
		return false
	}
	l.closed = s.Size < l.Size
	l.Frames++
	l.Bytes += s.Bytes
	l.total += s.Size
	return true
}

// sendSuperframe sends the superframe f in segments with size bytes of payload, which fit.
func (e *Egress) sendSuperframe(f *frame.Frame, size int, s Send) int {
	if e.sendWhole(f, size, &s) {
		return s.Frames
	}
	return e.sendCut(f.Bytes(), size, s)
}

// sendCut cuts b into segments with size bytes of payload and appends as many sends as they need. b is a superframe, or
// a TCP segment that is too long.
func (e *Egress) sendCut(b []byte, size int, s Send) int {
	payload := gso.Payload(&e.p)
	frames := gso.Segments(payload, size)
	if e.cut.size != size {
		first, per := len(e.Pieces), 1
		var pieces [][]byte
		if e.known && int(e.p.PayloadOff)+size <= trainMost { // of a flood each size would have a copy of its own
			pieces = gso.Train(e.Pieces, e.arena, e.prefix[:], b, &e.p, size)
		}
		if pieces == nil {
			pieces = gso.Split(e.Pieces, e.arena, e.prefix[:], b, &e.p, size)
			per = 2
		}
		if pieces == nil {
			e.drop(GSOUnsupported, frames, b, &e.view.vteps[s.VTEP])
			return frames
		}
		e.Pieces = pieces
		e.cut.size, e.cut.first, e.cut.per = size, first, per
	}
	s.PerDatagram = e.cut.per
	e.emit(s, e.cut.first, frames, int(e.p.PayloadOff), size, payload)
	return frames
}

// emit appends as many sends as frames take that have been cut, from e.Pieces[first] on, with s.PerDatagram pieces, hlen
// bytes of headers each, and size bytes of payload, payload bytes in all.
func (e *Egress) emit(s Send, first, frames, hlen, size, payload int) {
	s.Size = header.VXLANLen + hlen + min(size, payload)
	s.closed = true // the last frame of a superframe is shorter, or the send full
	most := min(e.opt.MaxSegments, maxSend/s.Size)
	for left := frames; left > 0; left -= s.Frames {
		s.Frames = min(left, most)
		s.First, s.End = first, first+s.PerDatagram*s.Frames
		first = s.End
		n := min(payload, s.Frames*size)
		payload -= n
		s.Bytes = s.Frames*hlen + n
		e.Sends = append(e.Sends, s)
	}
}

func (e *Egress) drop(reason DropReason, frames int, b []byte, to *VTEP) {
	e.net.Counters.Drops.Add(reason, frames, e.now)
	s := Sample{Time: e.now, Network: e.net.Name, Reason: reason, Egress: true}
	if to != nil {
		s.Peer = to.Addr
	}
	e.samples.Add(s, b)
}

// Report counts the outcome of frames of s, of bytes together: NotDropped when the kernel took them.
func (e *Egress) Report(s *Send, frames, bytes int, outcome DropReason) {
	c, to := e.net.Counters, &e.view.vteps[s.VTEP]
	to.sent.Add(uint64(frames))
	if outcome == NotDropped {
		c.UnderlayOut.Add(frames, bytes)
		return
	}
	c.Drops.Add(outcome, frames, e.now)
	e.samples.Add(Sample{
		Time: e.now, Network: e.net.Name, Reason: outcome, Egress: true, Outer: true, Peer: to.Addr,
	}, e.Pieces[s.First])
}

// ReportAnswer counts the outcome of writing answer to the TAP: NotDropped when the kernel took it.
func (e *Egress) ReportAnswer(answer []byte, outcome DropReason) {
	if outcome == NotDropped {
		e.net.Counters.TAPOut.Add(1, len(answer))
		return
	}
	e.net.Counters.Drops.Add(outcome, 1, e.now)
	e.samples.Add(Sample{Time: e.now, Network: e.net.Name, Reason: outcome}, answer)
}
