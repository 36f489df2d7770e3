package header

import "encoding/binary"

// VLANLen is the length of one VLAN tag in bytes, whether C-tag or S-tag.
const VLANLen = 4

const (
	vlanTCI  = 0
	vlanType = 2

	vlanIDMask       = 0x0fff
	vlanDropEligible = 0x1000
	vlanPriority     = 13 // bits to the right of the priority
)

// VLAN is what follows an EtherType of EtherTypeVLAN or EtherTypeQinQ: the tag control information and the
// EtherType of what comes next (IEEE 802.1Q, 9.6).
type VLAN []byte

func (h VLAN) tci() uint16 { return binary.BigEndian.Uint16(h[vlanTCI:vlanType]) }

func (h VLAN) setTCI(v uint16) { binary.BigEndian.PutUint16(h[vlanTCI:vlanType], v) }

// Priority returns the priority code point, 0 to 7.
func (h VLAN) Priority() uint8 { return h[vlanTCI] >> 5 }

// DropEligible returns the drop eligible indicator.
func (h VLAN) DropEligible() bool { return h.tci()&vlanDropEligible != 0 }

// ID returns the VLAN identifier, 0 to 4095; 0 means that the tag carries a priority only.
func (h VLAN) ID() uint16 { return h.tci() & vlanIDMask }

// EtherType returns the type of what follows the tag, which may be another tag.
func (h VLAN) EtherType() uint16 { return binary.BigEndian.Uint16(h[vlanType:VLANLen]) }

// SetPriority sets the priority code point. Only the low 3 bits of p are used.
func (h VLAN) SetPriority(p uint8) { h.setTCI(h.tci()&^(7<<vlanPriority) | uint16(p)<<vlanPriority) }

// SetDropEligible sets the drop eligible indicator.
func (h VLAN) SetDropEligible(on bool) {
	v := h.tci() &^ vlanDropEligible
	if on {
		v |= vlanDropEligible
	}
	h.setTCI(v)
}

// SetID sets the VLAN identifier. Only the low 12 bits of id are used.
func (h VLAN) SetID(id uint16) { h.setTCI(h.tci()&^vlanIDMask | id&vlanIDMask) }

// SetEtherType sets the type of what follows the tag.
func (h VLAN) SetEtherType(t uint16) { binary.BigEndian.PutUint16(h[vlanType:VLANLen], t) }
