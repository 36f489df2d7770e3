package header

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// ARPLen is the length of an ARP packet that resolves IPv4 addresses to Ethernet addresses, in bytes.
const ARPLen = 28

// Operations (RFC 826).
const (
	ARPRequest uint16 = 1
	ARPReply   uint16 = 2
)

const arpHardwareEthernet = 1

const (
	arpHardwareType = 0
	arpProtocolType = 2
	arpHardwareLen  = 4
	arpProtocolLen  = 5
	arpOp           = 6
	arpSenderMAC    = 8
	arpSenderIP     = 14
	arpTargetMAC    = 18
	arpTargetIP     = 24
)

// ARP is an ARP packet (RFC 826). The fields from Op on lie where the accessors look for them only if
// IsEthernetIPv4.
type ARP []byte

// IsEthernetIPv4 reports whether the packet maps IPv4 addresses to Ethernet addresses: the one layout
// that the address accessors fit.
func (h ARP) IsEthernetIPv4() bool {
	// Hardware type 1, protocol type 0x0800, address lengths 6 and 4: six bytes in a row.
	return binary.BigEndian.Uint32(h[arpHardwareType:arpHardwareLen]) == arpHardwareEthernet<<16|uint32(EtherTypeIPv4) &&
		binary.BigEndian.Uint16(h[arpHardwareLen:arpOp]) == 6<<8|4
}

// HardwareType returns the space of hardware addresses; 1 is Ethernet.
func (h ARP) HardwareType() uint16 {
	return binary.BigEndian.Uint16(h[arpHardwareType:arpProtocolType])
}

// ProtocolType returns the space of protocol addresses, as an EtherType.
func (h ARP) ProtocolType() uint16 {
	return binary.BigEndian.Uint16(h[arpProtocolType:arpHardwareLen])
}

// HardwareLen returns the length of a hardware address in bytes.
func (h ARP) HardwareLen() uint8 { return h[arpHardwareLen] }

// ProtocolLen returns the length of a protocol address in bytes.
func (h ARP) ProtocolLen() uint8 { return h[arpProtocolLen] }

// Op returns the operation, ARPRequest or ARPReply in well-formed traffic.
func (h ARP) Op() uint16 { return binary.BigEndian.Uint16(h[arpOp:arpSenderMAC]) }

// SenderMAC returns the hardware address of the sender.
func (h ARP) SenderMAC() addr.MAC { return addr.MAC(h[arpSenderMAC:arpSenderIP]) }

// SenderIP returns the IPv4 address of the sender; 0.0.0.0 in an address probe (RFC 5227, section 1.1).
func (h ARP) SenderIP() netip.Addr { return netip.AddrFrom4([4]byte(h[arpSenderIP:arpTargetMAC])) }

// TargetMAC returns the hardware address of the target; it means nothing in a request.
func (h ARP) TargetMAC() addr.MAC { return addr.MAC(h[arpTargetMAC:arpTargetIP]) }

// TargetIP returns the IPv4 address of the target.
func (h ARP) TargetIP() netip.Addr { return netip.AddrFrom4([4]byte(h[arpTargetIP:ARPLen])) }

// SetEthernetIPv4 sets the four fields that say that the packet maps IPv4 addresses to Ethernet
// addresses.
func (h ARP) SetEthernetIPv4() {
	binary.BigEndian.PutUint32(h[arpHardwareType:arpHardwareLen], arpHardwareEthernet<<16|uint32(EtherTypeIPv4))
	binary.BigEndian.PutUint16(h[arpHardwareLen:arpOp], 6<<8|4)
}

// SetOp sets the operation.
func (h ARP) SetOp(op uint16) { binary.BigEndian.PutUint16(h[arpOp:arpSenderMAC], op) }

// SetSenderMAC sets the hardware address of the sender.
func (h ARP) SetSenderMAC(m addr.MAC) { copy(h[arpSenderMAC:arpSenderIP], m[:]) }

// SetSenderIP sets the IPv4 address of the sender. It panics if ip is not an IPv4 address.
func (h ARP) SetSenderIP(ip netip.Addr) { put4(h[arpSenderIP:arpTargetMAC], ip) }

// SetTargetMAC sets the hardware address of the target.
func (h ARP) SetTargetMAC(m addr.MAC) { copy(h[arpTargetMAC:arpTargetIP], m[:]) }

// SetTargetIP sets the IPv4 address of the target. It panics if ip is not an IPv4 address.
func (h ARP) SetTargetIP(ip netip.Addr) { put4(h[arpTargetIP:ARPLen], ip) }
