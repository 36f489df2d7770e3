// Package probe is the wire format of the probes that measure the path between two VTEPs, and of the
// acknowledgements to them. They travel as UDP datagrams on the VXLAN port, so that they take the way that
// frames take, and are built such that no VTEP mistakes them for a frame.
//
// All integers are big endian:
//
//	 0      0: the I flag (RFC 7348, section 5) is clear, and a VXLAN datagram without it is discarded
//	 1..7   6f 76 6c 70 72 62 31: reserved in a VXLAN header, whose receiver ignores them
//	 8      1 for a probe, 2 for an acknowledgement
//	 9      0
//	10..11  size of the outer IP packet with its IP header, as a probe was sent or as it arrived
//	12..15  key: the first 4 bytes of SHA-256 of the key
//	16..23  nonce, chosen at random for each probe and repeated by its acknowledgement
//	24..39  sender: the address by which others name the node that sends this
//	40..55  observed: where the probe came from, in an acknowledgement; 0 in a probe
//	56..71  tag: HMAC-SHA-256 of all but itself, truncated to 16 bytes (RFC 2104, section 5)
//	72..    zeros that make a probe as large as it is to be
//
// Addresses are 16 bytes, those of IPv4 mapped into IPv6 (RFC 4291, section 2.5.5.2).
//
// Nothing here says when to probe, what a size proves or whom to answer: that is for vtep/pathmtu.
//
// Everything here is a pure function of its arguments and safe for concurrent use; no goroutines. A Keys is
// never changed once made. The package imports nothing of this module, and takes nonces from its caller.
package probe
