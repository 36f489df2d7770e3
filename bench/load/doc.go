// Package load makes traffic between network namespaces and checks what arrives: ICMP and ICMPv6 echo, TCP
// in bulk with throughput and SHA-256, UDP streams with loss, reorder, duplicates and corruption counted,
// UDP of every size echoed, broadcast and multicast, request-response round trips, connections, and stations
// that announce themselves to a VTEP. It needs no external tool. Both ends of a measurement live in this
// process: each opens its socket inside its namespace, and works on it from anywhere afterwards.
//
// What is measured includes the cost of the generators, which share the CPUs with the overlay. They are
// kept small: TCP moves 256 KB a call, UDP 64 datagrams a call, round trips use blocking system calls
// rather than the scheduler's poller, and nothing is allocated for each read or datagram.
//
// # Concurrency
//
// Each function runs one measurement and has ended all its goroutines when it returns; several may run at
// once. Goroutines: for TCP a sender and a receiver for each flow and direction, and one watchdog that ends
// transfers that stall or are cancelled; for UDP one sender, the receiver being the caller's; for Sweep and
// RoundTrip one echoer. Blocking calls wake up every 50 ms to see whether the context has ended.
//
// Linux only. The package imports nothing of this module; a namespace is whatever runs a function inside it.
package load
