// Package gossip spreads messages to every node of a cluster and says which nodes are there. It wraps
// hashicorp/memberlist.
//
// Gossip is transport and not authority. A message that arrives has been sent by somebody who holds a gossip
// key, which every node does; what it says is to be believed by its signature. Messages get lost, come twice
// and come in any order (memberlist takes the newest of its input queue first). That a node has missed one
// shows in the digests that ride on acknowledgements and on push/pull: then Config.Behind is called, and
// the caller fetches what it lacks elsewhere. A node that is dead is reported, and nothing more.
//
// Terms. A packet is one UDP payload. A message is what Broadcast takes; it is one part of a packet, so it must
// fit into one. To spread a message is to send it to others after it arrived: Config.Deliver decides, so that
// a message with a bad signature goes no further than one hop.
//
// # Sealing
//
// All that memberlist sends and receives passes a transport of this package, which
//
//   - cuts packets to the size that paths carry right now. memberlist reads its own limit without a lock, so
//     it cannot be changed under way; and its packets may exceed it by some bytes (checksum, framing);
//   - seals packets and streams with AES-256 under keys that can be replaced at any time, bound to the ID of
//     the cluster. memberlist has encryption of its own, which is not used: there, taking a key out is a data
//     race, a holder of a key can crash every node (a stream message whose content is empty, or whose padding
//     is longer than it), random nonces of 96 bits are too short for a key shared by a thousand nodes, and a
//     stranger can have 20 MiB buffered for each connection before the first check;
//   - drops what is not sealed, sealed with another key or for another cluster, before memberlist sees it.
//     That is counted and not logged: it costs a stranger nothing to send more;
//   - looks at the suspect, alive and dead parts that go by. memberlist tells its user neither that a node is
//     suspect, nor whether one that is gone has left or died.
//
// Streams carry segments no longer than packets (TCP_MAXSEG), because where ICMP is filtered TCP does not
// find out by itself. UDP goes out without DF and takes no advice by ICMP. Formats are in seal.go and stream.go.
//
// # Concurrency
//
// All methods of Gossip may be called by many goroutines. The functions in Config are called as they say there;
// except for Events and Rejoin they are called inside of memberlist's loops and must not block. No lock is
// held then. State and PacketSize must not call Gossip, and the others none of Close, Leave and Join.
//
// Goroutines:
//
//	packets    opens packets for memberlist                      New to Close
//	streams    takes connections from the network                New to Close
//	greeting   one per incoming connection, at most 128: waits
//	           for the first sealed record, 5 s at most           ends by itself or at Close
//	udp, tcp   one each per address of Config.Bind                New to Close
//	events     calls Config.Events                                Run
//	rejoin     asks for missing managers, forgets the dead        Run
//	join       one per address, at most 8 at a time, in Join      end with Join
//	attempt    one per address of a node that has several: dials   ends by itself, 5 s at most, or at Close
//
// Close joins all of these. memberlist's own goroutines cannot be joined: Shutdown tells its loops to
// end and returns, and a probe that is under way waits for its deadline first (1 s, and up to 4 s on a node
// that has lately lost probes). They touch nothing any more: the transport is closed, and callbacks are cut off.
//
// While nothing happens memberlist's loop of rounds is held up in its question for messages, and its loop of probes at the end
// of each until the next whole Timing.Probe of the clock, see calm.go.
//
// Deadlines of memberlist itself: a node is suspect when a probe fails, and dead when nobody has heard of it
// for Timing.Suspicion more; 30 s later memberlist has forgotten it. Two halves of a cluster that have forgotten
// each other do not find together by themselves, which is what rejoin is for.
//
// The package must not import consensus, identity, state or api, nor vtep: it carries bytes. Linux only.
package gossip
