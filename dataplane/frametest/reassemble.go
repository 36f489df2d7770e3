package frametest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/overlayd/overlayd/dataplane/header"
)

// Reassemble puts the IPv4 fragments of one packet together, in the order in which they come, and returns the frame that
// they are of, with the headers of the first (RFC 791, section 3.2). If the last one says that more follow, or the first
// that some went before, the frame is a fragment itself. Fragments that overlap, leave a gap, do not belong together or
// are no valid packets are an error; so are headers that differ in more than what fragments may.
//
// It is the plain way: fragments are read one after the other, and nothing is shared with the code that makes them.
func Reassemble(fragments [][]byte) ([]byte, error) {
	if len(fragments) == 0 {
		return nil, errors.New("frametest: no fragments")
	}
	var out []byte
	var next, l3, hlen int
	for i, f := range fragments {
		p, err := decode(f, checksumAny)
		if err != nil {
			return nil, fmt.Errorf("frametest: fragment %d: %w", i, err)
		}
		if p.IPv4 == nil {
			return nil, fmt.Errorf("frametest: fragment %d is not IPv4", i)
		}
		at := 14 + 4*len(p.VLANs)
		ip := f[at : at+int(p.IPv4.Length)]
		offset := int(p.IPv4.FragOffset) * 8
		if i == 0 {
			l3, hlen, next = at, int(p.IPv4.IHL)*4, offset
			out = bytes.Clone(f[:at+hlen])
		}
		first := out[l3:]
		switch {
		case offset != next:
			return nil, fmt.Errorf("frametest: fragment %d begins at %d, want %d", i, offset, next)
		case !bytes.Equal(f[:l3], out[:l3]), at != l3, !bytes.Equal(ip[4:6], first[4:6]), ip[1] != first[1], !bytes.Equal(ip[8:10], first[8:10]), !bytes.Equal(ip[12:20], first[12:20]):
			return nil, fmt.Errorf("frametest: fragment %d is of another packet: % x", i, f[:at+20])
		case binary.BigEndian.Uint16(ip[6:])&0x2000 == 0 && i < len(fragments)-1:
			return nil, fmt.Errorf("frametest: fragment %d of %d claims to be the last", i, len(fragments))
		}
		if i > 0 {
			if err := laterOptions(ip[20:int(p.IPv4.IHL)*4], first[20:hlen]); err != nil {
				return nil, fmt.Errorf("frametest: fragment %d: %w", i, err)
			}
		}
		payload := ip[int(p.IPv4.IHL)*4:]
		next += len(payload)
		out = append(out, payload...)
	}
	// The offset of the first, the MF flag of the last.
	h := header.IPv4(out[l3:])
	tail := header.IPv4(fragments[len(fragments)-1][l3:])
	h.SetTotalLen(uint16(len(h)))
	binary.BigEndian.PutUint16(h[6:], h.FlagsFragment()&^0x2000|tail.FlagsFragment()&0x2000)
	h.UpdateChecksum()
	return out, nil
}

// laterOptions checks that a later fragment has all options of the first that are to be copied, and no other.
func laterOptions(got, first []byte) error {
	list := func(o []byte, all bool) (out [][]byte) {
		for len(o) > 0 && o[0] != 0 {
			n := 1
			if o[0] != 1 {
				n = int(o[1])
				if all || o[0]&0x80 != 0 {
					out = append(out, o[:n])
				}
			}
			o = o[n:]
		}
		return out
	}
	if g, w := list(got, true), list(first, false); fmt.Sprint(g) != fmt.Sprint(w) {
		return fmt.Errorf("options %x, want %x", g, w)
	}
	return nil
}
