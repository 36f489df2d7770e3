// Package vtep is the tunnel end point: it owns the file descriptors and the goroutines between the TAPs
// of its networks and the UDP sockets of the underlay. What becomes of a frame is decided in
// dataplane/forward.
//
// Goroutines, all started by Run and joined before it returns:
//
//   - egress, one for each queue of each TAP: reads a batch of frames, has forward.Egress turn it into
//     sends, hands these to the kernel.
//   - ingress, one for each receiving socket: receives a batch, has forward.Ingress turn it into items, writes
//     these to the TAPs.
//   - watch, one: on changes of links, addresses and routes derives MTUs anew and moves to another underlay
//     address if need be.
//   - age, one: forgets learned MAC addresses that have been silent.
//
// Workers share forward.Tables, whose reads are lock-free. A queue of a TAP is written under its own mutex,
// since ingress and answers to ARP requests meet there; senders hold a read lock for the length of a batch, so
// that sockets can be replaced under way.
//
// The package must not import controlplane, cmd or bench. Linux only.
package vtep
