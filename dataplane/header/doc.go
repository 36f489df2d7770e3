// Package header knows the wire formats of the packet path: Ethernet with VLAN tags, ARP, IPv4, IPv6 with
// its extension headers, ICMP, ICMPv6 with Neighbor Discovery, TCP, UDP, VXLAN, and the virtio-net
// header that Linux puts before a frame of a TAP. One protocol, one file.
//
// A header is a view: a []byte type that begins at the first byte of the header and may run on into the
// payload. Views borrow the memory they were made from. Multi-byte fields are big endian on the wire and are
// taken and returned as numbers; only the virtio-net header, which never travels, is little endian.
//
// Accessors do not check lengths. Whoever makes a view has checked that at least the fixed part of the
// header is there (the constants ending in Len or MinLen), and, before anything that depends on a length field
// inside the header is used, that the field is consistent; dataplane/frame does so for frames. An
// accessor on a view that is too short panics: it never reads past the slice. The option walks are the
// exception: they take bytes that nobody has looked at, and report malformed ones.
//
// Nothing here allocates, starts goroutines, or reads a clock. Views may be read concurrently; writing through one
// needs the same exclusion as any other write to its memory. The package imports nothing of this module but
// dataplane/addr and dataplane/checksum.
package header
