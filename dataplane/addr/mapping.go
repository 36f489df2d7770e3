package addr

import "net/netip"

// Mapping says that the station with this MAC, and these IP addresses if any are known, lives behind
// VTEP in the network VNI. It is the unit in which the control plane feeds the tables of the VTEP.
type Mapping struct {
	VNI  VNI
	MAC  MAC
	IPs  []netip.Addr
	VTEP netip.Addr
}
