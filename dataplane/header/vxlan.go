package header

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// VXLANLen is the length of a VXLAN header in bytes.
const VXLANLen = 8

// VXLANPort is the UDP port that IANA assigned to VXLAN.
const VXLANPort uint16 = 4789

// VXLANFlagVNI is the I flag: the VNI is valid. It must be set, and all others are reserved (RFC 7348,
// section 5).
const VXLANFlagVNI uint8 = 0x08

const (
	vxlanFlags = 0
	vxlanVNI   = 4
)

// VXLAN is a VXLAN header, and the frame after it (RFC 7348, section 5).
type VXLAN []byte

// Flags returns the byte of flags.
func (h VXLAN) Flags() byte { return h[vxlanFlags] }

// ValidVNI reports whether the I flag is set. A header without it is to be dropped; the reserved bits
// are not looked at, as RFC 7348 demands of a receiver.
func (h VXLAN) ValidVNI() bool { return h[vxlanFlags]&VXLANFlagVNI != 0 }

// VNI returns the network identifier as it is on the wire, which may be 0.
func (h VXLAN) VNI() addr.VNI { return addr.VNI(binary.BigEndian.Uint32(h[vxlanVNI:VXLANLen]) >> 8) }

// Encode writes all VXLANLen bytes: the I flag, the VNI, and zeros in all that is reserved.
func (h VXLAN) Encode(vni addr.VNI) {
	binary.BigEndian.PutUint64(h[:VXLANLen], uint64(VXLANFlagVNI)<<56|uint64(vni&addr.MaxVNI)<<8)
}
