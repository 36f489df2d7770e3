// Package frame finds its way through an Ethernet frame in one pass and keeps what it found as offsets.
//
// Parse is the only place in the packet path that bounds-checks inner headers: what comes after it indexes
// freely. It is also the place that tells hostile frames from sound ones, so that nothing behind it has
// to.
//
// A Parsed is meant to be reused for frame after frame; it holds no memory of the frame. There are no
// goroutines, and values may be used from several of them as long as each has its own. The package imports
// only the wire formats in dataplane/header.
package frame
