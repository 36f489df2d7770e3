package header

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// EthernetLen is the length of an Ethernet header without VLAN tags, in bytes.
const EthernetLen = 14

// EtherTypes (IEEE 802 numbers). Below 0x0600 the field is a length (IEEE 802.3, 3.2.6).
const (
	EtherTypeIPv4 uint16 = 0x0800
	EtherTypeARP  uint16 = 0x0806
	EtherTypeVLAN uint16 = 0x8100 // 802.1Q C-tag
	EtherTypeIPv6 uint16 = 0x86dd
	EtherTypeQinQ uint16 = 0x88a8 // 802.1ad S-tag
)

const (
	ethernetDst  = 0
	ethernetSrc  = 6
	ethernetType = 12
)

// Ethernet is a frame without FCS, seen as its first EthernetLen bytes (IEEE 802.3, 3.1.1).
type Ethernet []byte

// Dst returns the destination address.
func (h Ethernet) Dst() addr.MAC { return addr.MAC(h[ethernetDst:ethernetSrc]) }

// Src returns the source address.
func (h Ethernet) Src() addr.MAC { return addr.MAC(h[ethernetSrc:ethernetType]) }

// EtherType returns the type of what follows; EtherTypeVLAN and EtherTypeQinQ mean that a VLAN tag does.
func (h Ethernet) EtherType() uint16 {
	return binary.BigEndian.Uint16(h[ethernetType:EthernetLen])
}

// SetDst sets the destination address.
func (h Ethernet) SetDst(m addr.MAC) { copy(h[ethernetDst:ethernetSrc], m[:]) }

// SetSrc sets the source address.
func (h Ethernet) SetSrc(m addr.MAC) { copy(h[ethernetSrc:ethernetType], m[:]) }

// SetEtherType sets the type of what follows.
func (h Ethernet) SetEtherType(t uint16) {
	binary.BigEndian.PutUint16(h[ethernetType:EthernetLen], t)
}
