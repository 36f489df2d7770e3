// Package gso cuts a superframe into the frames that it stands for, or into smaller ones, cuts single TCP segments and
// IPv4 packets that are too large for their path, and completes checksums that a kernel left for the hardware.
//
// Terms. A superframe is one TCP segment or UDP datagram larger than the MTU, with a size (the GSO size)
// saying how much payload each frame is to carry. A cut is the result: for each frame one piece of headers,
// freshly written into an Arena, and one piece of payload that still lies in the superframe. Payload is
// read once, for the checksum. Fragments of an IPv4 packet are a cut of the same form, for which the payload is not even
// read. A train is a cut with one piece for each frame, whose payload has been copied.
//
// Everything is a plain function over memory that the caller owns: no goroutines, no allocation. The package
// imports the wire formats, the checksum and the parse result, nothing else.
package gso
