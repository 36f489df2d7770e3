// Package checksum computes the Internet checksum: the one's complement sum of RFC 1071 over a buffer,
// the pseudo-headers of IPv4 and IPv6, and the incremental update of RFC 1624.
//
// Sum gives a partial sum that is neither folded nor complemented. Partial sums of the parts of a
// packet are added with +, in any order, as long as every part but the last has an even length; Fold
// then makes 16 bits of the total. All sums are over 16-bit words in network byte order, so a folded sum can be
// stored with binary.BigEndian. A packet whose checksum was left to the hardware carries in its
// checksum field the folded, uncomplemented sum of the pseudo-header.
//
// On amd64 with AVX2 long buffers are summed by assembly; everywhere else, and for short buffers, by Go
// that adds 64 bits at a time. Both give the same result as the plain loop of the RFC; the tests compare
// them.
//
// The functions are pure, allocate nothing, start no goroutines and are safe for concurrent use. The
// package imports nothing of this module.
package checksum
