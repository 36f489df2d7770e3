// Package mss lowers the MSS option of TCP handshakes, so that neither side sends segments that are too large for
// the way between them, whatever its own interface says (RFC 9293, section 3.7.1).
//
// Everything is a plain function over memory that the caller owns: no goroutines, no allocation. The package imports the
// wire formats, the checksum and the MTU types, nothing else.
package mss
