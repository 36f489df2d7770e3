package gossip

import "encoding/binary"

// The parts of memberlist's packets that this package has to know. They are its protocol, versions 2 to 5, and
// their numbers do not change.
const (
	partPing         = 0
	partIndirectPing = 1
	partAck          = 2
	partSuspect      = 3
	partAlive        = 4
	partDead         = 5
	partPushPull     = 6 // streams only
	partCompound     = 7
	partUser         = 8
	partNack         = 11
	partChecksum     = 12
	partError        = 13 // streams only

	checksumLen       = 5 // type and CRC 32
	compoundHeaderLen = 2 // type and number of parts
	compoundPartLen   = 2 // length of each part, 16 bits
	maxParts          = 255
)

// parts returns the parts of a packet of memberlist. A packet that is no compound is one part; so is one that
// cannot be understood, which memberlist will say of it too.
func parts(packet []byte) [][]byte {
	if len(packet) > checksumLen && packet[0] == partChecksum {
		packet = packet[checksumLen:]
	}
	if len(packet) < compoundHeaderLen || packet[0] != partCompound {
		return [][]byte{packet}
	}
	n := int(packet[1])
	lengths, rest := packet[compoundHeaderLen:], packet
	if len(lengths) < n*compoundPartLen {
		return [][]byte{packet}
	}
	rest = lengths[n*compoundPartLen:]
	out := make([][]byte, 0, n)
	for i := range n {
		l := int(binary.BigEndian.Uint16(lengths[i*compoundPartLen:]))
		if l > len(rest) {
			return [][]byte{packet}
		}
		out = append(out, rest[:l:l])
		rest = rest[l:]
	}
	return out
}

// maxNodes bounds the nodes in one exchange, for which memberlist takes 112 bytes each when it reads their number.
const maxNodes = 16 << 10

// packetPart reports whether a part may come in a packet. Others only a member that means harm would send:
// memberlist does not nest compounds, and compresses nothing here. It would decompress 40 MB from one packet.
func packetPart(part []byte) bool {
	if len(part) == 0 {
		return false
	}
	switch part[0] {
	case partPing, partIndirectPing, partAck, partSuspect, partAlive, partDead, partUser, partNack:
		return true
	}
	return false
}

// streamStart reports whether a stream may begin with b, of which memberlist writes at least this much at once.
func streamStart(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	switch b[0] {
	case partPing, partAck, partError:
		return true
	case partPushPull:
		r := reader{b: b[1:]}
		for range r.mapLen() {
			switch r.str() {
			case "Nodes":
				r.bad = r.uint() > maxNodes || r.bad
			case "UserStateLen":
				r.bad = r.uint() > maxRoom || r.bad
			default:
				r.skip()
			}
		}
		return !r.bad
	}
	return false
}

// join packs parts, in their order, into as few packets of at most size bytes as that order allows. A part
// that does not fit gets a packet of its own, as it is.
func join(parts [][]byte, size int) [][]byte {
	var out [][]byte
	for len(parts) > 0 {
		n, total := 0, compoundHeaderLen
		for n < len(parts) && n < maxParts && total+compoundPartLen+len(parts[n]) <= size {
			total += compoundPartLen + len(parts[n])
			n++
		}
		if n <= 1 {
			out = append(out, parts[0])
			parts = parts[1:]
			continue
		}
		p := append(make([]byte, 0, total), partCompound, byte(n))
		for _, part := range parts[:n] {
			p = binary.BigEndian.AppendUint16(p, uint16(len(part)))
		}
		for _, part := range parts[:n] {
			p = append(p, part...)
		}
		out = append(out, p)
		parts = parts[n:]
	}
	return out
}

// notice is what a suspect, alive or dead part says.
type notice struct {
	part        byte
	node, from  string // from: who says so; not in alive parts
	incarnation uint64
}

// parseNotice reads a part, which is its type and a MessagePack map. It reports false for other parts, and for
// one that it does not understand.
func parseNotice(part []byte) (n notice, ok bool) {
	if len(part) < 2 || part[0] < partSuspect || part[0] > partDead {
		return n, false
	}
	n.part = part[0]
	r := reader{b: part[1:]}
	for range r.mapLen() {
		switch key := r.str(); key {
		case "Node":
			n.node = r.str()
		case "From":
			n.from = r.str()
		case "Incarnation":
			n.incarnation = r.uint()
		default:
			r.skip()
		}
		if r.bad {
			return notice{}, false
		}
	}
	return n, !r.bad && n.node != ""
}

// reader reads MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md) as far as flat maps of
// numbers and byte strings go. After an error bad is set, and all it returns is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// number reads n bytes, big-endian.
func (r *reader) number(n int) (v uint64) {
	for _, b := range r.take(n) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (r *reader) mapLen() int {
	switch c := r.byte(); {
	case c&0xf0 == 0x80:
		return int(c & 0x0f)
	case c == 0xde:
		return int(r.number(2))
	}
	r.bad = true
	return 0
}

// str reads a string or binary of any length form.
func (r *reader) str() string {
	switch c := r.byte(); {
	case c&0xe0 == 0xa0:
		return string(r.take(int(c & 0x1f)))
	case c == 0xc4 || c == 0xd9:
		return string(r.take(int(r.number(1))))
	case c == 0xc5 || c == 0xda:
		return string(r.take(int(r.number(2))))
	}
	r.bad = true
	return ""
}

// uint reads a non-negative integer of a signed or unsigned form.
func (r *reader) uint() uint64 {
	switch c := r.byte(); {
	case c < 0x80:
		return uint64(c)
	case c >= 0xcc && c <= 0xcf:
		return r.number(1 << (c - 0xcc))
	case c >= 0xd0 && c <= 0xd3:
		n := 1 << (c - 0xd0)
		if v := r.number(n); v>>(8*n-1) == 0 {
			return v
		}
	}
	r.bad = true
	return 0
}

// skip passes over a number, a boolean, nil, a string or binary.
func (r *reader) skip() {
	if len(r.b) == 0 {
		r.bad = true
		return
	}
	switch c := r.b[0]; {
	case c < 0x80, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3:
		r.take(1)
	case c >= 0xcc && c <= 0xcf:
		r.take(1 + 1<<(c-0xcc))
	case c >= 0xd0 && c <= 0xd3:
		r.take(1 + 1<<(c-0xd0))
	default:
		r.str()
	}
}
