// Package link is what the VTEP knows of and does to network devices, addresses and routes: over which device
// and from which address a peer is reached, when that may have changed, the settings of a TAP, and who it is
// that already has a device or a UDP port that was asked for.
//
// It works on Linux, by rtnetlink and /proc. Every function acts in the network namespace of the calling thread;
// Watch goes on in the one in which it was called. All are safe for concurrent use.
//
// Watch starts one goroutine, "link watch", which ends with its context. Nothing else starts any.
//
// The package imports dataplane/addr and dataplane/mtu of this module, and neither vtep nor controlplane.
package link
