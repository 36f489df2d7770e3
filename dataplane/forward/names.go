package forward

// reasons holds what is said of each DropReason, in the order of the constants.
var reasons = [NumReasons]struct{ name, help string }{
	NotDropped:         {"none", "Not dropped."},
	VXLANTruncated:     {"vxlan_truncated", "Datagram too short for a VXLAN header and an Ethernet frame: something else sends to this port."},
	VXLANBadFlags:      {"vxlan_bad_flags", "VXLAN header without the I flag: something else, or another VXLAN dialect, sends to this port."},
	VXLANBadTrain:      {"vxlan_bad_train", "Several datagrams received as one whose parts do not add up: a driver's offload is at fault; try --disable udp-gro."},
	VNIUnknown:         {"vni_unknown", "No network on this host has this VNI: the sender has a network that is missing here."},
	VTEPUnknown:        {"vtep_unknown", "The sender is not a peer of this network: add its address to peers, or it is a stranger."},
	ECNBroken:          {"ecn_broken", "A router marked congestion on a flow that does not speak ECN (RFC 6040): the underlay marks wrongly."},
	FrameRunt:          {"frame_runt", "Frame shorter than its own headers: a broken or hostile sender."},
	FrameBadLength:     {"frame_bad_length", "A length in the inner headers contradicts the frame: a broken or hostile sender, or a driver's offload."},
	FrameBadSource:     {"frame_bad_source", "Source MAC is zero or a group address, which no station may use."},
	IPBadHeader:        {"ip_bad_header", "Inner IP header with a wrong version, header length or checksum."},
	IPBadOption:        {"ip_bad_option", "Malformed inner IP option or extension header, or a source route."},
	IPBadFragment:      {"ip_bad_fragment", "Inner IP fragment that can be part of no valid packet: an evasion attempt (RFC 1858)."},
	TCPBadOption:       {"tcp_bad_option", "Inner TCP option list that runs over its header."},
	NestedVXLAN:        {"nested_vxlan", "VXLAN inside VXLAN: a routing loop, or an overlay inside this one; allow_nested lets the latter pass."},
	BadChecksum:        {"bad_checksum", "Inner TCP or UDP checksum is wrong: corruption on the way, or a driver's checksum offload."},
	SourceSpoofed:      {"source_spoofed", "The source MAC is registered behind another VTEP or is this host's own: spoofing, a loop or a stale entry."},
	BadOffload:         {"bad_offload", "Offload header that contradicts its frame: a broken or hostile program writes to the interface."},
	GSOUnsupported:     {"gso_unsupported", "Superframe of a kind that cannot be segmented."},
	SourceMACUnknown:   {"source_mac_unknown", "Isolated network: the source MAC is not registered: spoofing, an endpoint that is gone, or one that is not known here yet."},
	ProtocolRefused:    {"protocol_refused", "Isolated network: a VLAN tag, or neither ARP nor IP: who such a frame is from cannot be verified."},
	SourceIPSpoofed:    {"source_ip_spoofed", "Isolated network: the source IP address is not registered for the source MAC: spoofing, or an address set by hand or by DHCP."},
	ARPSpoofed:         {"arp_spoofed", "Isolated network: an ARP packet names a sender who is not its sender: spoofing, or an address set by hand."},
	NDSpoofed:          {"nd_spoofed", "Isolated network: a neighbour discovery message names addresses that are not its sender's, or is malformed: spoofing, or an address set by hand."},
	RogueRouter:        {"rogue_router", "Isolated network: IPv6 router advertisement or redirect; routes come from the cluster, and no endpoint may give any."},
	RogueDHCP:          {"rogue_dhcp", "Isolated network: message to a DHCP client; addresses come from the cluster, and no endpoint may give any."},
	NeighborUnknown:    {"neighbor_unknown", "Isolated network: somebody looks for an address that is not registered: a scan, or an endpoint that is gone."},
	DestinationLocal:   {"destination_local", "The destination is behind this host's own bridge, which has delivered the frame there already, or it is the gateway on that bridge that speaks: nothing is wrong."},
	DestinationUnknown: {"destination_unknown", "Isolated network: the destination MAC is not registered, or a frame came in for one that is not on this host: an endpoint that is gone or has moved."},
	BUMRateLimited:     {"bum_rate_limited", "More broadcast, unknown unicast and multicast frames than the network may flood: a loop, a storm, or a limit too low for its multicast traffic."},
	NoPeers:            {"no_peers", "Nowhere to send it: the network has no peers."},
	ExceedsPathMTU:     {"exceeds_path_mtu", "Frame larger than the path to its VTEP carries that could be neither cut nor fragmented: its sender's MTU is above the path's; unless it was flooded, its sender is told by ICMP."},
	SendNoBuffer:       {"send_no_buffer", "The kernel had no room to send (ENOBUFS): the underlay device is slower than the traffic."},
	SendDenied:         {"send_denied", "A local firewall rule refused the datagram (EPERM): allow UDP to the VXLAN port."},
	SendUnreachable:    {"send_unreachable", "No route to the VTEP, or its network is down."},
	SendTooBig:         {"send_too_big", "Datagram larger than the underlay device takes (EMSGSIZE): its MTU shrank a moment ago."},
	SendFailed:         {"send_failed", "The kernel refused the datagram for another reason; the log has it."},
	TAPDown:            {"tap_down", "The TAP is not up: set it up with ip link set DEVICE up."},
	TAPFull:            {"tap_full", "The kernel had no room for the frame behind the TAP."},
	TAPRejected:        {"tap_rejected", "The kernel refused the frame at the TAP; the log has the error."},
}

// String returns the reason as it stands in metrics and listings: snake_case, stable.
func (r DropReason) String() string {
	if r >= NumReasons {
		return "unknown"
	}
	return reasons[r].name
}

// Help returns one sentence for the operator: what it means and what to do.
func (r DropReason) Help() string {
	if r >= NumReasons {
		return ""
	}
	return reasons[r].help
}
