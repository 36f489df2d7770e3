package forward

import (
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/icmperr"
	"github.com/overlayd/overlayd/dataplane/mss"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// A frame may be larger than what the path to its VTEP carries: its station was told another MTU, or the path has become
// narrower since. What can be done about it, in this order:
//
//   - TCP is cut into smaller segments. Neither end notices, and a connection that was opened before the path became
//     narrower goes on without anybody being told. Segments that are signed (TCP-MD5, TCP-AO) or urgent, and those
//     that open or reset a connection, cannot be cut so.
//   - An IPv4 packet is cut into fragments if its sender allows it. So is each datagram of a run of UDP datagrams: unlike
//     the boundaries between segments of TCP, those between datagrams mean something.
//   - The sender is told by ICMP what the path carries, and the frame is dropped.
//
// A frame that is flooded is cut for each path that needs it, but nobody is told: where its destination is, is not known,
// and so neither is what it has to fit. It may even be behind this host's own bridge, which would take the TAP for its
// port on seeing an answer in its name.
//
// All copies of a flooded frame share its memory. So nothing here writes to it: what is changed is written anew into the
// arena. The MSS of a SYN is the exception, and is the same for all copies.

// repairs counts what was done in one batch.
type repairs struct{ clamped, told, limited, fragmented, resegmented, split uint64 }

func (r *repairs) count(c *Counters) {
	c.MSSClamped.Add(r.clamped)
	c.ICMPSent.Add(r.told)
	c.ICMPLimited.Add(r.limited)
	c.Fragmented.Add(r.fragmented)
	c.Resegmented.Add(r.resegmented)
	c.Split.Add(r.split)
}

// mostMSS returns the MSS for a frame whose path, to where its answers come from, carries frames of at most room bytes.
func (n *Network) mostMSS(p *frame.Parsed, room int) mtu.MSS {
	overlay := mtu.OverlayMTU(room - int(p.L3Off))
	if m := n.MTU(); m > 0 {
		overlay = min(overlay, m)
	}
	family := mtu.IPv4
	if p.L3 == frame.IPv6 {
		family = mtu.IPv6
	}
	most := mtu.MSSOf(overlay, family)
	if fixed := n.MSS(); fixed > 0 {
		most = min(most, fixed)
	}
	return most
}

// clamp lowers the MSS of the frame b to what is left by a path for frames of at most room bytes, if it is a SYN. Its
// checksum is complete.
func (e *Egress) clamp(b []byte, room int) {
	if e.p.TCPFlags&header.TCPSyn != 0 && mss.Clamp(b[e.p.L4Off:e.p.PayloadOff], e.net.mostMSS(&e.p, room), false) {
		e.repairs.clamped++
	}
}

// narrowest returns the largest frame that gets to all VTEPs of a flood.
func (e *Egress) narrowest(flood []fdb.VTEPID) int {
	room := int(^uint16(0))
	for _, id := range flood {
		if e.reaches(id) {
			room = min(room, e.view.vteps[id].MaxFrame)
		}
	}
	return room
}

// fits reports whether no segment of a superframe, with size bytes of payload, is longer than room.
func fits(p *frame.Parsed, size, room int) bool {
	return int(p.PayloadOff)+min(size, gso.Payload(p)) <= room
}

// shrink deals with the single frame f, which is longer than room. It returns the number of wire frames that it took on.
func (e *Egress) shrink(f *frame.Frame, room int, s Send) int {
	b, p := f.Bytes(), &e.p
	if p.L3 != frame.Opaque && p.End <= room {
		s.Bytes = p.End // what is behind the packet is padding
		return e.sendPlain(f.Buf[:frame.Headroom+p.End], s)
	}
	if !e.cuttable(b, room) {
		return e.fragment(b, 0, room, s)
	}
	// All segments get checksums that are right. That must not make good data of bad.
	if gso.Verify(b, p) == gso.Wrong {
		e.drop(BadChecksum, 1, b, &e.view.vteps[s.VTEP])
		return 1
	}
	e.repairs.split++
	return e.sendCut(b, room-int(p.PayloadOff), s)
}

// shrinkSuperframe is shrink for a superframe whose segments, with size bytes of payload, are longer than room.
func (e *Egress) shrinkSuperframe(f *frame.Frame, size, room int, s Send) int {
	if !e.cuttable(f.Bytes(), room) {
		return e.fragment(f.Bytes(), size, room, s)
	}
	e.repairs.resegmented++
	return e.sendSuperframe(f, room-int(e.p.PayloadOff), s)
}

// cuttable reports whether b is TCP that can be cut into segments of at most room bytes.
func (e *Egress) cuttable(b []byte, room int) bool {
	p := &e.p
	most := room - int(p.PayloadOff)
	return p.Proto == header.ProtoTCP && gso.Splittable(b, p) &&
		most > 0 && gso.Segments(gso.Payload(p), most) <= gso.MaxSegments && !gso.Signed(b, p)
}

// fragment sends b in fragments of at most room bytes, each segment of it if it is a superframe with segments of size
// bytes of payload. If there must be none, it drops b.
func (e *Egress) fragment(b []byte, size, room int, s Send) int {
	p := &e.p
	l3 := int(p.L3Off)
	if p.L3 != frame.IPv4 || header.IPv4(b[l3:]).DontFragment() {
		return e.exceeds(b, size, room, s)
	}
	hlen := l3 + header.IPv4(b[l3:]).HeaderLen()
	part := gso.FragmentSize(header.IPv4(b[l3:]), room-l3) // of the payload of IP
	// full and last are the payloads of IP in each segment, and in the last.
	last, full, n := p.End-hlen, 0, 1
	if size != 0 {
		n = gso.Segments(gso.Payload(p), size)
		last -= (n - 1) * size
		full = int(p.PayloadOff) - hlen + size
	}
	if part == 0 || part < int(p.PayloadOff)-hlen {
		return e.exceeds(b, size, room, s)
	}
	perFull := gso.Segments(full, part)
	frames := (n-1)*perFull + gso.Segments(last, part)
	if frames > gso.MaxSegments {
		return e.exceeds(b, size, room, s)
	}
	if e.frags.size != part && !e.cutFragments(b, size, hlen, part) {
		e.drop(GSOUnsupported, frames, b, &e.view.vteps[s.VTEP])
		return frames
	}
	first := e.frags.first
	s.PerDatagram = 2
	for range n - 1 {
		e.emit(s, first, perFull, hlen, part, full)
		first += 2 * perFull
	}
	e.emit(s, first, gso.Segments(last, part), hlen, part, last)
	e.repairs.fragmented += uint64(n)
	return frames
}

// cutFragments cuts b into fragments, and remembers where they are. It is false if there is no room for their headers.
func (e *Egress) cutFragments(b []byte, size, hlen, part int) bool {
	l3 := int(e.p.L3Off)
	at, mark := len(e.Pieces), e.arena.Mark()
	pieces := e.Pieces
	if size == 0 {
		pieces = gso.Fragment(pieces, e.arena, e.prefix[:], b[:hlen], b[hlen:e.p.End], l3, part)
	} else {
		run := gso.Split(pieces, e.arena, nil, b, &e.p, size)
		pieces = run
		for i := at; i < len(run) && pieces != nil; i += 2 {
			pieces = gso.Fragment(pieces, e.arena, e.prefix[:], run[i], run[i+1], l3, part)
		}
		at = len(run)
	}
	if pieces == nil {
		e.arena.Release(mark)
		return false
	}
	e.Pieces = pieces
	e.frags.size, e.frags.first = part, at
	return true
}

// exceeds drops b, whose segments have size bytes of payload if it is a superframe, because it is too large, and tells
// its sender how large a frame may be.
func (e *Egress) exceeds(b []byte, size, room int, s Send) int {
	e.drop(ExceedsPathMTU, s.Frames, b, &e.view.vteps[s.VTEP])
	m := mtu.OverlayMTU(room - int(e.p.L3Off))
	if !e.known || m < mtu.MinIPv4 || !icmperr.Answerable(b, &e.p) {
		return s.Frames
	}
	if e.net.errors.take(e.now, 1, errorInterval, errorDepth) == 0 {
		e.repairs.limited++
		return s.Frames
	}
	head, body := b[:e.p.End], []byte(nil)
	if size != 0 {
		// What is quoted is the first segment, as it would have been on a wire: one byte more, and it is not the last.
		q := e.p
		q.End = min(q.End, int(q.PayloadOff)+size+1)
		if cut := gso.Split(e.Pieces, e.arena, nil, b, &q, size); cut != nil {
			head, body = cut[len(e.Pieces)], cut[len(e.Pieces)+1]
		}
	}
	out := e.arena.Alloc(icmperr.MaxLen)
	if out == nil {
		e.repairs.limited++
		return s.Frames
	}
	e.Answers = append(e.Answers, icmperr.Write(out, head, body, &e.p, m))
	e.repairs.told++
	e.created++
	return s.Frames
}
