// Package pathmtu finds out how to reach remote VTEPs: at which of their addresses, from which of ours, and
// with how large packets. It is Packetization Layer Path MTU Discovery for datagrams (RFC 8899) between VTEPs,
// with probes that travel where the frames do (dataplane/probe).
//
// # Terms
//
// Peer = a remote VTEP, named by one address. Candidate = an address at which it may be reached. Choice = the
// candidate that is used now, with what belongs to it. Size = bytes of an outer IP packet with its IP header.
// Round = probes sent together. Busy = datagrams went to the peer within the last seconds; idle = none did.
//
// # Parts
//
//   - Search (search.go, plan.go, sizes.go, rtt.go): one path from a local to a remote address. Which sizes
//     to send when, and what it means that some came back. A state machine without a clock.
//   - peer and candidate (peer.go, candidate.go): which of the addresses is used.
//   - engine (engine.go, receive.go, status.go): all peers, what is outstanding, what is believed.
//   - Prober (prober.go, queue.go): the goroutine, and the way to and from it.
//
// # What is believed
//
// That a size passes: only an acknowledgement sealed with a key that is known, of a probe that is outstanding,
// of the size that was sent, from the address that was asked and, where there are keys, of the node that was
// asked. That a size no longer passes: only the loss of three probes of it while smaller ones sent with them
// are acknowledged. That a peer may be reached at an address that nobody has stated: only that it has
// acknowledged a probe sent there. ICMP errors and probes of others make something be probed, and no more.
//
// # Concurrency
//
// Prober is for any goroutine. There is one goroutine, that of Run, which its caller starts; it alone calls the
// functions of Config, and holds no lock while it does. All else belongs to it. Status and Counters look at it
// under a lock.
//
// The package must not import anything of vtep: sockets, routes and interfaces come in through Config.
package pathmtu
