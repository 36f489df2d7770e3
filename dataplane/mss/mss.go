package mss

import (
	"encoding/binary"
	"math/bits"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Clamp lowers the MSS option of a SYN or SYN-ACK to most, and reports whether it did. It never raises one. tcp begins
// with the TCP header; how much of it is there does not matter. partial says that the checksum is only that of the
// pseudo-header, which says nothing of options; a complete one is updated (RFC 1624), so that one that was wrong stays
// wrong.
//
// It leaves alone: other segments; a SYN without the option, to whose sender segments have 536 or 1220 bytes (RFC 9293,
// section 3.7.1); an option of another length than 4; an MSS of 0, which means nothing; what comes behind an option
// that cannot be; and a SYN that is signed with TCP-AO, which covers the options (RFC 5925, section 5.1), and which
// nobody would take any more. TCP-MD5 does not cover them (RFC 2385, section 2.0).
func Clamp(tcp []byte, most mtu.MSS, partial bool) (lowered bool) {
	if len(tcp) < header.TCPMinLen || tcp[13]&header.TCPSyn == 0 || most <= 0 {
		return false
	}
	end := min(header.TCP(tcp).DataOffset(), len(tcp))
	if end <= header.TCPMinLen || signed(tcp[header.TCPMinLen:end]) {
		return false
	}
	list := tcp[header.TCPMinLen:end]
	for at := 0; at < len(list); {
		size := optionLen(list[at:])
		if size == 0 {
			break
		}
		if list[at] == header.TCPOptionMSS && size == header.TCPOptionMSSLen {
			v := binary.BigEndian.Uint16(list[at+2:])
			if mtu.MSS(v) > most {
				set(tcp, header.TCPMinLen+at+2, v, uint16(most), partial)
				lowered = true
			}
		}
		at += size
	}
	return lowered
}

// optionLen returns the length of the option with which list begins, or 0 if it ends there: at the end of the list, or
// at an option that cannot be.
func optionLen(list []byte) int {
	switch {
	case list[0] == header.TCPOptionEnd:
		return 0
	case list[0] == header.TCPOptionNop:
		return 1
	case len(list) < 2 || list[1] < 2 || int(list[1]) > len(list):
		return 0
	}
	return int(list[1])
}

// signed reports whether TCP-AO is among the options.
func signed(list []byte) bool {
	for len(list) > 0 {
		size := optionLen(list)
		if size == 0 {
			return false
		}
		if list[0] == header.TCPOptionAO {
			return true
		}
		list = list[size:]
	}
	return false
}

// set writes v over old at tcp[at:] and updates the checksum.
func set(tcp []byte, at int, old, v uint16, partial bool) {
	binary.BigEndian.PutUint16(tcp[at:], v)
	if partial {
		return
	}
	if at%2 != 0 {
		// The number lies across two words. In one's complement arithmetic, to shift it by a byte is to swap
		// its bytes (RFC 1071, section 2 (B)).
		old, v = bits.ReverseBytes16(old), bits.ReverseBytes16(v)
	}
	h := header.TCP(tcp)
	h.SetChecksum(checksum.Update(h.Checksum(), old, v))
}
