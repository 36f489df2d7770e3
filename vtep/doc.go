// Package vtep is the tunnel end point: it owns the file descriptors and the goroutines between the TAPs
// of its networks and the UDP sockets of the underlay. What becomes of a frame is decided in
// dataplane/forward.
//
// Goroutines, all started by Run and joined before it returns:
//
//   - worker, as many as Config.Queues says: waits for its share of the TAP queues and the receiving sockets.
//     Of a TAP queue it reads a batch of frames, has forward.Egress turn it into sends, and hands these to the
//     kernel. Of a socket it receives a batch, has forward.Ingress turn it into items, and writes these to
//     the TAPs.
//   - watch, one: on changes of links, addresses and routes derives MTUs anew, moves to another underlay
//     address if need be, and tells the prober.
//   - age, one: forgets learned MAC addresses that have been silent.
//   - announcer, one: tells containers of this host when an address belongs to another station than it did.
//   - pairs, one: decides which pairs of stations the kernel forwards by itself; see package fastpath.
//   - reconcile, one: compares tables with what was stated, every two to four seconds while there are networks, and sandboxes when
//     the kernel says that something has changed there, or some minutes have passed, and heals both. What could not be put
//     right, programs that could not be attached among it, it tries again, less and less often.
//   - "sandbox watch" of package link, two for each network with a sandbox, which reconcile starts and ends: they tell it.
//   - prober, one, of package pathmtu: probes the paths to other VTEPs.
//   - paths, one: makes datagrams go where the prober has found to be best, no larger than it has proven, and the MTUs
//     of networks follow. It is not the prober itself, which must answer at once, whatever else is being changed.
//   - halt, one: wakes the workers when the context ends.
//   - "link watch" of package link, one.
//
// Networks, their peers, the stations behind them and the containers that are attached come and go at any time:
// AddNetwork and its siblings. A network of the host has its TAP among the host's interfaces. A network with a
// sandbox has it in a network namespace of its own, on a bridge that has a port for each container; see package
// link. What concerns a sandbox is done on threads that enter it for that; package link starts a goroutine for each
// such piece of work and waits for it.
//
// What a network ought to hold is kept apart from what it holds (type stations, Network, Attachment), so that the
// two can be compared. All changes are serialised by one mutex, VTEP.change. A worker is told of them by functions
// that it calls between two batches, and what is taken away from it is closed only once it has done so: no frame is
// handed to a TAP that is gone.
//
// A remote VTEP has one name, the address that peers and mappings state, and may be reached at several: see Node. What is
// sent to it goes where the prober says, from a local address that goes with that, and what comes from any of its
// addresses is taken for its own. The interfaces of a network follow what a path is settled on; while it is searched, the
// packet path makes frames fit it.
//
// Workers share forward.Tables, whose reads are lock-free. A queue of a TAP is written under its own mutex,
// since several workers may write to it where a TAP has fewer queues than there are workers; senders hold a
// read lock for the length of a batch, so that sockets can be replaced under way.
//
// The package must not import controlplane, cmd or bench. Linux only.
package vtep
