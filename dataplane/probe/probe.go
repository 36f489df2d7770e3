package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Len is the length in bytes of an acknowledgement, and of the shortest probe, as a UDP payload.
const Len = 72

// MaxLen is the length in bytes of the longest payload of a UDP datagram.
const MaxLen = 65535 - 8

// Where the fields are.
const (
	offType     = 8
	offReserved = 9
	offSize     = 10
	offKey      = 12
	offNonce    = 16
	offSender   = 24
	offObserved = 40
	offTag      = 56
	tagLen      = 16
)

// magic is a VXLAN header with no flag and "ovlprb1" in its reserved fields.
const magic = 0x006f766c70726231

// Type says what a message is.
type Type uint8

// The types of message.
const (
	Probe Type = 1 // asks for an acknowledgement
	Ack   Type = 2 // answers a probe
)

func (t Type) String() string {
	switch t {
	case Probe:
		return "probe"
	case Ack:
		return "acknowledgement"
	default:
		return fmt.Sprintf("Type(%d)", uint8(t))
	}
}

// Message is what a probe or an acknowledgement says.
type Message struct {
	Type     Type
	Size     int        // bytes of the outer IP packet, as the probe was sent or as it arrived; at most 65535
	Nonce    uint64     // chosen by who sent the probe
	Sender   netip.Addr // the address by which others name the node that sends this; invalid = none
	Observed netip.Addr // in an acknowledgement: where the probe came from; invalid = not said
}

// Why a datagram is not a message.
var (
	ErrTruncated  = errors.New("too short or too long for a path probe")
	ErrNotProbe   = errors.New("not a path probe")
	ErrType       = errors.New("neither a path probe nor an acknowledgement, or not as these are built")
	ErrUnknownKey = errors.New("path probe sealed with a key that is not known here")
	ErrBadTag     = errors.New("path probe whose seal is broken")
)

// Is reports whether a UDP payload on the VXLAN port says that it is one of these messages, whole or not. It
// looks at the first eight bytes only: what it takes, no VTEP would take for a frame.
func Is(datagram []byte) bool {
	return len(datagram) >= 8 && binary.BigEndian.Uint64(datagram) == magic
}

// QuotedNonce returns the nonce of a probe of which a router has quoted the beginning in an ICMP error (RFC
// 1812, section 4.3.2.3). It is false if this is no probe, or if less than its nonce was quoted. Nothing
// proves that the quote is genuine: the caller has to know the nonce.
func QuotedNonce(quoted []byte) (nonce uint64, ok bool) {
	if !Is(quoted) || len(quoted) < offSender || Type(quoted[offType]) != Probe {
		return 0, false
	}
	return binary.BigEndian.Uint64(quoted[offNonce:]), true
}

// Append appends to dst a datagram of length bytes that says m, sealed with the first of the keys. A length
// below Len counts as Len, one above MaxLen as MaxLen.
func (k Keys) Append(dst []byte, m Message, length int) []byte {
	length = min(max(length, Len), MaxLen)
	start := len(dst)
	dst = append(dst, make([]byte, length)...)
	b := dst[start:]
	key := k.sealing()
	binary.BigEndian.PutUint64(b, magic)
	b[offType] = byte(m.Type)
	binary.BigEndian.PutUint16(b[offSize:], uint16(m.Size))
	copy(b[offKey:], key.id[:])
	binary.BigEndian.PutUint64(b[offNonce:], m.Nonce)
	putAddr(b[offSender:offObserved], m.Sender)
	putAddr(b[offObserved:offTag], m.Observed)
	tag := key.tag(b)
	copy(b[offTag:], tag[:])
	return dst
}

// Parse returns what a datagram says once its seal has been found whole. The error is one of those of this
// package.
func (k Keys) Parse(datagram []byte) (Message, error) {
	if !Is(datagram) {
		return Message{}, ErrNotProbe
	}
	if len(datagram) < Len || len(datagram) > MaxLen {
		return Message{}, ErrTruncated
	}
	t := Type(datagram[offType])
	if t != Probe && t != Ack || datagram[offReserved] != 0 || t == Ack && len(datagram) != Len {
		return Message{}, ErrType
	}
	key, ok := k.opening([keyIDLen]byte(datagram[offKey:]))
	if !ok {
		return Message{}, ErrUnknownKey
	}
	if !key.opens(datagram) {
		return Message{}, ErrBadTag
	}
	return Message{
		Type:     t,
		Size:     int(binary.BigEndian.Uint16(datagram[offSize:])),
		Nonce:    binary.BigEndian.Uint64(datagram[offNonce:]),
		Sender:   getAddr(datagram[offSender:offObserved]),
		Observed: getAddr(datagram[offObserved:offTag]),
	}, nil
}

// putAddr writes an address, or zeros for none. A zone says something on its own host only and stays there.
func putAddr(b []byte, a netip.Addr) {
	if a.IsValid() {
		a16 := a.As16()
		copy(b, a16[:])
	}
}

// getAddr is the inverse of putAddr. The unspecified address stands for none.
func getAddr(b []byte) netip.Addr {
	a := netip.AddrFrom16([16]byte(b)).Unmap()
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
