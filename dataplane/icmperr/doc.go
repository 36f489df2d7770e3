// Package icmperr writes the errors that tell the sender of a packet how large a packet may be: ICMP "fragmentation
// needed and DF set" (RFC 1191) and ICMPv6 "packet too big" (RFC 4443, section 3.2).
//
// The error comes, as far as its addresses say, from the station that the packet was meant for. The overlay has no
// router that could send it, and an address that is not of the overlay's subnet might be filtered, or not be routed
// back.
//
// Everything is a plain function over memory that the caller owns: no goroutines, no allocation. The package imports the
// wire formats, the checksum, the parse result and the MTU types, nothing else.
package icmperr
