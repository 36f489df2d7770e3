package controlplane

// Sizes of IP packets in bytes.
const (
	// leastPath is what every path carries that nothing is known of: IPv6 guarantees it (RFC 8200, section 5).
	leastPath = 1280
	// gossipHeaders are those of IPv6 and UDP in front of a gossip packet, which goes to nodes of either family.
	gossipHeaders = 40 + 8
)

// SetPathMTU says how large an IP packet, in bytes with its header, has been proven to reach every other node; 0 means
// that this is not known of all. Packets of the gossip follow, from the next one on. On less than leastPath nothing
// changes: where UDP does not fit it is cut on the way, and what is gossiped has to fit somewhere.
func (n *Node) SetPathMTU(bytes int) { n.path.Store(int64(max(bytes, 0))) }

// gossipPayload is what a UDP payload of the gossip may have, in bytes.
func (n *Node) gossipPayload() int {
	return max(int(n.path.Load()), leastPath) - gossipHeaders
}
