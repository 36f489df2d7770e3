package header

import "encoding/binary"

// UDPLen is the length of a UDP header in bytes.
const UDPLen = 8

// UDPChecksumOffset is where the checksum lies in a UDP header, in bytes: the csum_offset of a
// virtio-net header.
const UDPChecksumOffset = 6

// Ports at which the clients of DHCP listen, and nobody else (RFC 2131, section 4.1; RFC 8415, section 7.2).
const (
	DHCPClientPort   uint16 = 68
	DHCPv6ClientPort uint16 = 546
)

const (
	udpSrcPort = 0
	udpDstPort = 2
	udpLength  = 4
)

// UDP is a UDP header, and what follows it (RFC 768).
type UDP []byte

// SrcPort returns the source port.
func (h UDP) SrcPort() uint16 { return binary.BigEndian.Uint16(h[udpSrcPort:udpDstPort]) }

// DstPort returns the destination port.
func (h UDP) DstPort() uint16 { return binary.BigEndian.Uint16(h[udpDstPort:udpLength]) }

// Length returns the length of header and payload in bytes.
func (h UDP) Length() uint16 { return binary.BigEndian.Uint16(h[udpLength:UDPChecksumOffset]) }

// Checksum returns the checksum of pseudo-header, header and payload; 0 means that the sender computed
// none.
func (h UDP) Checksum() uint16 { return binary.BigEndian.Uint16(h[UDPChecksumOffset:UDPLen]) }

// SetSrcPort sets the source port.
func (h UDP) SetSrcPort(v uint16) { binary.BigEndian.PutUint16(h[udpSrcPort:udpDstPort], v) }

// SetDstPort sets the destination port.
func (h UDP) SetDstPort(v uint16) { binary.BigEndian.PutUint16(h[udpDstPort:udpLength], v) }

// SetLength sets the length of header and payload in bytes.
func (h UDP) SetLength(n uint16) { binary.BigEndian.PutUint16(h[udpLength:UDPChecksumOffset], n) }

// SetChecksum sets the checksum as it goes on the wire: a computed 0 must be given as 0xffff.
func (h UDP) SetChecksum(v uint16) { binary.BigEndian.PutUint16(h[UDPChecksumOffset:UDPLen], v) }
