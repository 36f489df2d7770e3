package forward

// DropReason says why a frame was dropped. There is one counter for each in every network, and one set
// for datagrams that cannot be attributed to a network.
type DropReason uint8

// The reasons, in the order in which the path of a frame meets them. NotDropped is no reason: it is what
// the stages return for a frame that goes on.
const (
	NotDropped DropReason = iota

	// Outer datagram.
	VXLANTruncated // shorter than a VXLAN header and an Ethernet header
	VXLANBadFlags  // the I flag is not set (RFC 7348, section 5)
	VXLANBadTrain  // a receive of several datagrams whose parts do not agree with their length
	VNIUnknown     // no network here has this VNI
	VTEPUnknown    // the outer source is not a member VTEP of this network
	ECNBroken      // congestion mark on a flow that does not speak ECN (RFC 6040, section 4.2)

	// Inner frame.
	FrameRunt      // shorter than its own Ethernet, VLAN, ARP, IP, TCP or UDP header
	FrameBadLength // an inner length field that contradicts the frame
	FrameBadSource // source MAC is a group address or zero
	IPBadHeader    // version or header length that cannot be
	IPBadOption    // malformed IP option or extension header, or source routing
	IPBadFragment  // fragment that cannot be part of a valid packet (RFC 1858, RFC 3128)
	TCPBadOption   // option list that runs over its header
	NestedVXLAN    // VXLAN inside VXLAN, on a network that does not allow it
	BadChecksum    // inner TCP or UDP checksum is wrong
	SourceSpoofed  // source MAC is registered behind another VTEP, or is ours
	BadOffload     // virtio-net header that contradicts the frame
	GSOUnsupported // superframe of a kind that cannot be segmented

	// Inner frame on an isolated network.
	SourceMACUnknown // source MAC is not registered
	ProtocolRefused  // neither ARP nor IP, or tagged: who it is from cannot be verified
	SourceIPSpoofed  // source IP address is not registered for the source MAC
	ARPSpoofed       // sender of an ARP packet is not who sent the frame
	NDSpoofed        // link-layer or target address in a neighbour discovery message is not the sender's
	RogueRouter      // router advertisement or redirect
	RogueDHCP        // message to a DHCP client
	NeighborUnknown  // ARP request or neighbor solicitation for an address that nobody has

	// Destination.
	DestinationLocal   // for a station behind this host's own bridge, which has delivered it
	DestinationUnknown // isolated network: the destination MAC is not registered, or not here
	NoPeers            // to be flooded, but the network has no peer
	BUMRateLimited     // to be flooded, but more than the network may flood
	ExceedsPathMTU     // does not fit the path to the VTEP

	// The kernel would not take it.
	SendNoBuffer    // ENOBUFS, or EAGAIN: the socket's buffer is full
	SendDenied      // EPERM, EACCES: a firewall rule said no
	SendUnreachable // ENETUNREACH, EHOSTUNREACH, ENETDOWN, EADDRNOTAVAIL
	SendTooBig      // EMSGSIZE: the underlay's MTU shrank
	SendFailed      // any other error of the send
	TAPDown         // the TAP is not up
	TAPFull         // the TAP's queue is full
	TAPRejected     // any other error of the write to the TAP

	NumReasons // how many there are; not a reason
)
