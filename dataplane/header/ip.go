package header

import "net/netip"

// Protocol numbers of what follows an IP header (IANA, Assigned Internet Protocol Numbers). Those that
// are IPv6 extension headers are in ipv6.go.
const (
	ProtoICMP   uint8 = 1
	ProtoIGMP   uint8 = 2
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoICMPv6 uint8 = 58
	ProtoSCTP   uint8 = 132
)

// The ECN field: the low two bits of the IPv4 TOS byte and of the IPv6 traffic class (RFC 3168, section 5).
const (
	ECNNotECT uint8 = 0
	ECNECT1   uint8 = 1
	ECNECT0   uint8 = 2
	ECNCE     uint8 = 3
	ECNMask   uint8 = 3
)

// put4 writes an IPv4 address into the first 4 bytes of b.
func put4(b []byte, ip netip.Addr) {
	a := ip.As4()
	copy(b, a[:])
}

// put16 writes an IPv6 address into the first 16 bytes of b.
func put16(b []byte, ip netip.Addr) {
	a := ip.As16()
	copy(b, a[:])
}
