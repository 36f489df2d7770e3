// Package fastpath has the kernel forward, by BPF programs, what userspace has decided on.
//
// A packet that passes a TAP costs four copies and, where cores sleep, wake-ups that take longer than all else
// (docs/performance.md). Nearly all packets need neither: they are plain packets of two stations about which nothing new is
// to be said. So the packet path decides once on a pair of stations (forward.Tables.Leave and Arrive), and puts an entry into a
// table, and from then on two programs wrap and unwrap the pair's packets where they are. The programs decide nothing. What
// has no entry, or is in any way unlike what the entry was made for, they let pass, to userspace: other protocols than TCP, UDP
// and ICMP echo; fragments, options and extension headers; what is longer than the path carries; a SYN whose MSS has to be
// lowered; congestion marks that have to be brought inside; UDP in quick succession, of which userspace makes trains. They
// never drop a packet but one that the kernel leaves neither as it was nor as it should be; these are counted.
//
//	                     TAP, in the host's namespace            TAP, in a sandbox
//	leave (at the TAP)   wrap, and out by the underlay device    wrap, and to the relay; there, uplink: out by the device
//	arrive (underlay)    unwrap, and up from the TAP             unwrap, and to the relay; there, downlink: up from the TAP
//
// Packets pass between network namespaces by a relay, a veth pair of its own: see link.Relay.
//
// # Order
//
// A packet on the fast path would overtake those of its flow that are still on the slow one. Therefore flows go through
// gates, thousands of them, by a hash. A gate counts what was left to userspace, but for what is no frame, such as probes
// of the path, and userspace counts what of that it has dealt with; while the two differ the fast path is closed for the flows of that gate. As programs and userspace must agree on what is
// counted, the little parsing that there is exists twice, in BPF (program.inner) and in Go (Table.inner). What the
// kernel drops in between would close a gate for good: see Table.Settle. What opens a gate is that userspace has handed a packet to the
// kernel. If another core than the sender's is still busy with that, the next packet may come first, as it may whenever the
// kernel moves a sender from core to core.
//
// # The outer headers
//
// They are those of the slow path (RFC 7348, section 5), from the same source port, but without a UDP checksum, which
// no program can have computed for segments that do not exist yet. Only IPv4 is wrapped, where that is allowed by all.
//
// # Concurrency
//
// Leaving, LeftDone, Arriving, ArrivedDone and Count may be called from any goroutine and take no lock. All else is for one
// goroutine at a time. The package starts none.
//
// The programs are written down with cilium/ebpf's assembler, as nothing that has to be compiled beforehand is in the
// repository. leave.go and arrive.go read from top to bottom; program.go has what they share. The package imports dataplane
// for names and types, and nothing else of overlayd.
package fastpath
