package gso

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/header"
)

// minFragment is the least payload that a fragment is worth: less, and the first would not hold a TCP header, which
// receivers take for an attempt to hide one (RFC 1858, section 3).
const minFragment = 24

const (
	ipv4MF     = 0x2000
	ipv4Copied = 0x80 // flag in the kind of an option: it belongs into all fragments
)

// FragmentSize returns how many bytes of IP payload each fragment of a packet with this header carries, but for the
// last, if none may be longer than room bytes, header included: a multiple of 8, or 0 if the packet cannot be
// fragmented so far down. Whether its sender allows it to be fragmented is for the caller to look at.
func FragmentSize(ip header.IPv4, room int) int {
	n := (room - ip.HeaderLen()) &^ 7
	if n < minFragment {
		return 0
	}
	return n
}

// Fragment cuts an IPv4 packet into fragments with size bytes of IP payload each, the last with what is left (RFC 791,
// section 3.2), and appends two pieces a fragment to pieces, as Split does: headers behind a copy of prefix, and
// payload, which is part of head or body.
//
// The frame to be cut is head and body, one after the other, without padding; its IP header is at head[l3:], and all of
// it in head. It may be a fragment itself. size must come from FragmentSize; the first fragment must have room for all
// of head. Fragment returns nil when it has not, or when the arena has no room; nothing is appended then.
//
// All headers have the length of the first, so that all fragments but the last have the same length: options that do
// not belong into later ones become NOPs.
func Fragment(pieces [][]byte, a *Arena, prefix, head, body []byte, l3, size int) [][]byte {
	hlen := l3 + header.IPv4(head[l3:]).HeaderLen()
	left := len(head) - hlen + len(body)
	// What the first fragment takes from body, as there is less of it in head than in all others.
	n := min(size-(len(head)-hlen), len(body))
	if n < 0 {
		return nil
	}
	mark := a.Mark()
	word := binary.BigEndian.Uint16(head[l3+6:])
	keep := head // of which the first fragment has more than the rest
	for first := true; first || len(body) > 0; first = false {
		h := a.Alloc(len(prefix) + len(keep))
		if h == nil {
			a.Release(mark)
			return nil
		}
		copy(h, prefix)
		f := h[len(prefix):]
		copy(f, keep)
		payload := len(f) - hlen + n
		left -= payload
		fragmentHeader(f[l3:hlen], word, payload, left > 0, first)
		pieces = append(pieces, h, body[:n])
		body = body[n:]
		word += uint16(payload / 8)
		keep, n = head[:hlen], min(size, len(body))
	}
	return pieces
}

// fragmentHeader makes ip, a copy of the header of the packet, that of a fragment with this much payload. word has the
// flags of the packet, and the offset of the fragment.
func fragmentHeader(ip header.IPv4, word uint16, payload int, more, first bool) {
	if more {
		word |= ipv4MF
	}
	ip.SetTotalLen(uint16(len(ip) + payload))
	binary.BigEndian.PutUint16(ip[6:], word)
	if !first {
		dropOptions(ip.Options())
	}
	ip.SetChecksum(0)
	ip.SetChecksum(checksum.Checksum(ip))
}

// dropOptions writes NOPs over the options in list that are in the first fragment alone.
func dropOptions(list []byte) {
	for len(list) > 0 && list[0] != header.OptionEnd {
		size := 1
		if list[0] != header.OptionNop {
			size = int(list[1]) // within the list: Parse has seen to it
		}
		if list[0]&ipv4Copied == 0 {
			for i := range size {
				list[i] = header.OptionNop
			}
		}
		list = list[size:]
	}
}
