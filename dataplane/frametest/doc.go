// Package frametest builds and checks frames for tests. What it builds and how it checks is independent of
// the code under test: headers are written and read by gopacket, checksums are verified by the plain loop
// of RFC 1071.
//
// A Builder puts layers on top of each other, outermost first, and joins them by the right type fields:
//
//	frame := frametest.Ethernet(dst, src).VLAN(7).IPv4(a, b).TCP(40000, 80).Payload(1400).Bytes()
//
// Every layer takes edits on the gopacket layer, for the fields that a test is about. Lengths and checksums
// are always computed; a test of hostile input changes the bytes afterwards. TCP4, UDP6 and their like start
// from an Opts that is useful when zero. Offload gives the same frame as a TAP with offloads would: a checksum
// that is only begun, and a virtio-net header. Segments splits a superframe plainly, as an oracle for the code
// that does it fast.
//
// Check decodes a frame strictly and fails the test on any length, checksum or reserved field that is
// wrong. Verify is the same with an error.
//
// Builders panic on a frame that cannot be built, which is a mistake in the test. Nothing here is fast, all of
// it allocates, no goroutines are started, and a Builder belongs to one goroutine. Packages that are not tests
// must not import this one. It imports nothing of this module but dataplane/addr and dataplane/header, and from
// header only constants and the struct of the virtio-net header.
package frametest
