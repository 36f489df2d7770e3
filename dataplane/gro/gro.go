package gro

import (
	"bytes"
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

const (
	// maxOpen is how many flows may have an open item at once. The kernel's own GRO keeps eight a bucket.
	maxOpen = 8
	// maxUDPFrames bounds a UDP superframe; Linux before 6.9 segments no more than this (UDP_MAX_SEGMENTS).
	maxUDPFrames = 64
	// maxTCPFrames bounds a TCP superframe of small segments: a write takes 1,024 pieces (IOV_MAX), the
	// virtio-net header among them.
	maxTCPFrames = 1023
	// maxPacket is the largest IP packet, header included, whose length a header can state.
	maxPacket = 65535
)

// Kinds says what the receiver of the items takes as a superframe.
type Kinds struct {
	TCP bool
	UDP bool
}

// Item is one write: Pieces, in order, make up a frame, and Offload is its virtio-net header. It stands for
// Frames wire frames of Bytes bytes together.
type Item struct {
	Pieces  [][]byte
	Offload header.VirtioNet
	Frames  int
	Bytes   int

	first  []byte       // the first frame, whose headers are those of the item, and
	parsed frame.Parsed // what it is parsed into
	end    int          // of the item: that of the first frame, and the payloads of all others
	size   int          // payload of each frame, but for the last
	next   uint32       // TCP sequence number that the next frame must have
	id     uint16       // IPv4 identification of the last frame
	merged bool
}

// Coalescer collects the frames of one batch that go to one TAP.
type Coalescer struct {
	kinds Kinds
	items []Item
	n     int
	open  [maxOpen]int // indices into items, most recently used first
	nopen int
	last  *Item // to which the frame before was added, if it is still open
}

// New makes a Coalescer for a receiver that takes these kinds.
func New(kinds Kinds) *Coalescer {
	return &Coalescer{kinds: kinds, items: make([]Item, 0, 64)}
}

// Reset begins a new batch. The items of the last one become invalid.
func (c *Coalescer) Reset() { c.n, c.nopen, c.last = 0, 0, nil }

// Items finishes the batch and returns what is to be written, in order. It is valid until Reset. The first
// frame of each superframe has had its headers rewritten.
func (c *Coalescer) Items() []Item {
	items := c.items[:c.n]
	for i := range items {
		if items[i].merged {
			items[i].finish()
			items[i].merged = false
		}
	}
	c.nopen, c.last = 0, nil
	return items
}

// Add takes the frame b, whose transport checksum is in the given state, which must not be gso.Wrong. p
// must come from parsing b. b must stay as it is until the items have been written.
func (c *Coalescer) Add(b []byte, p *frame.Parsed, sum gso.Checksum) {
	c.last = nil
	if p.PayloadOff == 0 {
		// It may be a fragment of a flow that has an open item: nothing that follows may overtake it.
		c.nopen = 0
		c.push(b, p, sum)
		return
	}
	for i := range c.open[:c.nopen] {
		it := &c.items[c.open[i]]
		if !sameFlow(it, b, p) {
			continue
		}
		if !c.mergeable(b, p, sum) || !it.join(b, p) {
			c.close(i)
			break
		}
		c.touch(i)
		if it.full() || p.TCPFlags&(header.TCPPsh|header.TCPFin) != 0 || p.End-int(p.PayloadOff) < it.size {
			c.close(0)
			return
		}
		c.last = it
		return
	}
	at := c.push(b, p, sum)
	if c.mergeable(b, p, sum) && p.TCPFlags&(header.TCPPsh|header.TCPFin) == 0 {
		c.opened(at)
		if it := &c.items[at]; !it.full() {
			c.last = it
		}
	}
}

// Continue takes the frame b if it is what the frame of the last Add would be further on in its flow: of the same length,
// with the same headers but for what says where in the flow it is, and with checksums that are right. It reports whether
// it has. What has been decided on that frame by its headers goes for b then, which need not be parsed. b must stay as it is
// until the items have been written.
func (c *Coalescer) Continue(b []byte) bool {
	it := c.last
	if it == nil || !it.continuedBy(b) || gso.Verify(b, &it.parsed) != gso.Complete {
		return false
	}
	it.take(b, &it.parsed)
	if it.full() {
		c.close(0)
		c.last = nil
	}
	return true
}

// AddSuperframe takes a frame that already is a superframe of frames with size bytes of payload each. p must
// come from parsing b and gso.Splittable hold.
func (c *Coalescer) AddSuperframe(b []byte, p *frame.Parsed, size int) {
	c.last = nil
	for i := range c.open[:c.nopen] {
		if sameFlow(&c.items[c.open[i]], b, p) {
			c.close(i)
			break
		}
	}
	at := c.push(b[:p.End], p, gso.Partial)
	it := &c.items[at]
	payload := p.End - int(p.PayloadOff)
	it.Frames = gso.Segments(payload, size)
	it.Bytes = it.Frames*int(p.PayloadOff) + payload
	it.size = size
	it.offload()
}

// AddCut takes frames that gso.Split made: two pieces each, checksums complete. They are written one by one.
func (c *Coalescer) AddCut(pieces [][]byte) {
	c.nopen, c.last = 0, nil
	for ; len(pieces) >= 2; pieces = pieces[2:] {
		it := c.item()
		it.Pieces = append(it.Pieces, pieces[0], pieces[1])
		it.Frames = 1
		it.Bytes = len(pieces[0]) + len(pieces[1])
		it.Offload.Flags = header.VirtioFlagDataValid
	}
}

// item appends an empty item.
func (c *Coalescer) item() *Item {
	if c.n == len(c.items) {
		c.items = append(c.items, Item{})
	}
	it := &c.items[c.n]
	c.n++
	*it = Item{Pieces: it.Pieces[:0]}
	return it
}

// push appends an item made of one frame and returns its index.
func (c *Coalescer) push(b []byte, p *frame.Parsed, sum gso.Checksum) int {
	at := c.n
	it := c.item()
	it.Pieces = append(it.Pieces, b)
	it.Frames, it.Bytes = 1, len(b)
	it.first, it.parsed, it.end = b, *p, p.End
	it.size = p.End - int(p.PayloadOff)
	switch sum {
	case gso.Partial:
		it.Offload.Flags = header.VirtioFlagNeedsCsum
		it.Offload.CsumStart, it.Offload.CsumOffset = gso.MakePartial(b, p)
	case gso.Complete:
		it.Offload.Flags = header.VirtioFlagDataValid
	}
	if p.Proto == header.ProtoTCP && p.PayloadOff != 0 {
		it.next = binary.BigEndian.Uint32(b[p.L4Off+4:]) + uint32(it.size)
	}
	if p.L3 == frame.IPv4 {
		it.id = binary.BigEndian.Uint16(b[p.L3Off+4:])
	}
	return at
}

// mergeable reports whether b is of a kind that can be part of a superframe at all.
func (c *Coalescer) mergeable(b []byte, p *frame.Parsed, sum gso.Checksum) bool {
	if sum != gso.Complete && sum != gso.Partial || p.End == int(p.PayloadOff) {
		return false
	}
	// IP options and extension headers stay with the frame that carried them.
	l3len := int(p.L4Off - p.L3Off)
	if p.L3 == frame.IPv4 && l3len != header.IPv4MinLen || p.L3 == frame.IPv6 && l3len != header.IPv6Len {
		return false
	}
	if p.Proto == header.ProtoTCP {
		return c.kinds.TCP && p.TCPFlags&^(header.TCPAck|header.TCPPsh|header.TCPFin|header.TCPEce) == 0
	}
	return c.kinds.UDP && gso.Splittable(b, p)
}

// sameFlow reports whether b has the addresses, protocol and ports of the item.
func sameFlow(it *Item, b []byte, p *frame.Parsed) bool {
	q := &it.parsed
	if p.L3 != q.L3 || p.Proto != q.Proto || p.L3Off != q.L3Off {
		return false
	}
	f := it.first
	if binary.BigEndian.Uint32(b[p.L4Off:]) != binary.BigEndian.Uint32(f[q.L4Off:]) {
		return false
	}
	at := p.L3Off
	if p.L3 == frame.IPv4 {
		return binary.BigEndian.Uint64(b[at+12:]) == binary.BigEndian.Uint64(f[at+12:])
	}
	return bytes.Equal(b[at+8:at+40], f[at+8:at+40])
}

// join appends b, a mergeable frame of the same flow, to the item if its headers continue it.
func (it *Item) join(b []byte, p *frame.Parsed) bool {
	f, q := it.first, &it.parsed
	n := p.End - int(p.PayloadOff)
	l3 := int(p.L3Off)
	if n > it.size || it.end-l3+n > maxPacket || !bytes.Equal(b[:l3], f[:l3]) {
		return false
	}
	if p.L3 == frame.IPv4 {
		if b[l3+1] != f[l3+1] || b[l3+8] != f[l3+8] || b[l3+6] != f[l3+6] || !it.identified(b) {
			return false
		}
	} else if binary.BigEndian.Uint32(b[l3:]) != binary.BigEndian.Uint32(f[l3:]) || b[l3+7] != f[l3+7] {
		return false
	}
	if p.Proto == header.ProtoTCP {
		if !it.continuesTCP(b[p.L4Off:p.PayloadOff], f[p.L4Off:q.PayloadOff]) {
			return false
		}
		f[p.L4Off+13] |= p.TCPFlags & (header.TCPPsh | header.TCPFin)
	}
	it.take(b, p)
	return true
}

// identified reports whether the identification of the IPv4 packet in b is that of the one behind the item. It means
// nothing where fragmentation is forbidden (RFC 6864, section 4.1).
func (it *Item) identified(b []byte) bool {
	ip := header.IPv4(b[it.parsed.L3Off:])
	return ip.DontFragment() || binary.BigEndian.Uint16(ip[4:]) == it.id+1
}

// take appends b, which continues the item.
func (it *Item) take(b []byte, p *frame.Parsed) {
	if !it.merged {
		it.merged = true
		it.Bytes = it.end
		it.Pieces[0] = it.first[:it.end] // superframes carry no Ethernet padding
	}
	it.Pieces = append(it.Pieces, b[p.PayloadOff:p.End])
	it.Frames++
	it.Bytes += p.End
	n := p.End - int(p.PayloadOff)
	it.end += n
	it.next += uint32(n)
	if p.L3 == frame.IPv4 {
		it.id = binary.BigEndian.Uint16(b[p.L3Off+4:])
	}
}

// continuedBy reports whether b has the length of the first frame and, but for where it is in the flow, its headers. That of
// IPv4 has a checksum that is right; that of TCP or UDP is not looked at, and neither is the payload.
func (it *Item) continuedBy(b []byte) bool {
	f, p := it.first, &it.parsed
	l3, l4 := int(p.L3Off), int(p.L4Off)
	if len(b) != p.End || !bytes.Equal(b[:l3+4], f[:l3+4]) {
		return false
	}
	if p.L3 == frame.IPv4 {
		// What follows the identification, but for the checksum. That there are no options is what opens an item.
		if binary.BigEndian.Uint32(b[l3+6:]) != binary.BigEndian.Uint32(f[l3+6:]) ||
			binary.BigEndian.Uint64(b[l3+12:]) != binary.BigEndian.Uint64(f[l3+12:]) ||
			!it.identified(b) || checksum.Checksum(b[l3:l4]) != 0 {
			return false
		}
	} else if !bytes.Equal(b[l3+4:l4], f[l3+4:l4]) {
		return false
	}
	if binary.BigEndian.Uint32(b[l4:]) != binary.BigEndian.Uint32(f[l4:]) {
		return false
	}
	if p.Proto == header.ProtoUDP {
		return binary.BigEndian.Uint16(b[l4+4:]) == binary.BigEndian.Uint16(f[l4+4:])
	}
	const urgent = 18 // the urgent pointer, and behind it the options
	return binary.BigEndian.Uint32(b[l4+4:]) == it.next &&
		binary.BigEndian.Uint64(b[l4+8:]) == binary.BigEndian.Uint64(f[l4+8:]) &&
		bytes.Equal(b[l4+urgent:p.PayloadOff], f[l4+urgent:p.PayloadOff])
}

// continuesTCP compares two TCP headers: sequence in line, and all else the same, lengths too, but for PSH, FIN
// and the checksum. That takes in the reserved bits, of which RFC 9768 uses one.
func (it *Item) continuesTCP(h, f []byte) bool {
	const (
		last   = uint64(header.TCPPsh|header.TCPFin) << 16 // in the 8 bytes that begin with the acknowledgement
		urgent = 18                                        // the urgent pointer, and behind it the options
	)
	return binary.BigEndian.Uint32(h[4:]) == it.next &&
		(binary.BigEndian.Uint64(h[8:])^binary.BigEndian.Uint64(f[8:]))&^last == 0 &&
		bytes.Equal(h[urgent:], f[urgent:])
}

func (it *Item) full() bool {
	most := maxTCPFrames
	if it.parsed.Proto == header.ProtoUDP {
		most = maxUDPFrames
	}
	return it.Frames == most || it.end-int(it.parsed.L3Off)+it.size > maxPacket
}

// finish rewrites the headers of the first frame into those of the superframe.
func (it *Item) finish() {
	f, p := it.first, &it.parsed
	p.End = it.end
	ip := f[p.L3Off:]
	if p.L3 == frame.IPv4 {
		old, now := binary.BigEndian.Uint16(ip[2:]), uint16(p.End-int(p.L3Off))
		binary.BigEndian.PutUint16(ip[2:], now)
		sum := binary.BigEndian.Uint16(ip[10:])
		binary.BigEndian.PutUint16(ip[10:], checksum.Update(sum, old, now))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(p.End-int(p.L3Off)-header.IPv6Len))
	}
	if p.Proto == header.ProtoUDP {
		binary.BigEndian.PutUint16(f[p.L4Off+4:], uint16(p.End-int(p.L4Off)))
	}
	it.offload()
}

// offload fills the virtio-net header of a superframe and leaves its checksum partial, as the kernel wants
// it.
func (it *Item) offload() {
	p := &it.parsed
	start, off := gso.MakePartial(it.first, p)
	typ := uint8(header.GSOUDPL4)
	if p.Proto == header.ProtoTCP {
		typ = header.GSOTCPv4
		if p.L3 == frame.IPv6 {
			typ = header.GSOTCPv6
		}
		if p.TCPFlags&header.TCPCwr != 0 {
			typ |= header.GSOECN
		}
	}
	it.Offload = header.VirtioNet{
		Flags:      header.VirtioFlagNeedsCsum,
		GSOType:    typ,
		GSOSize:    uint16(it.size),
		HdrLen:     p.PayloadOff,
		CsumStart:  start,
		CsumOffset: off,
	}
}

// opened makes items[at] the most recently used open item. The least recently used one is forgotten when
// there are too many.
func (c *Coalescer) opened(at int) {
	if c.nopen < maxOpen {
		c.nopen++
	}
	copy(c.open[1:c.nopen], c.open[:c.nopen-1])
	c.open[0] = at
}

// touch moves the i-th open item to the front.
func (c *Coalescer) touch(i int) {
	if i == 0 {
		return
	}
	at := c.open[i]
	copy(c.open[1:i+1], c.open[:i])
	c.open[0] = at
}

// close forgets the i-th open item: nothing will join it any more.
func (c *Coalescer) close(i int) {
	copy(c.open[i:], c.open[i+1:c.nopen])
	c.nopen--
}
