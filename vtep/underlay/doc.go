// Package underlay sends and receives VXLAN datagrams over UDP, on IPv4 and IPv6.
//
// Terms. An Endpoint is one local address: one or several receiving sockets on the VXLAN port, and a pool
// of sending sockets, the sources, whose port numbers give routers and network cards the entropy that RFC
// 7348, section 5 asks for. A bucket names a source. A train is several equal datagrams that the kernel takes
// (UDP_SEGMENT) or delivers (UDP_GRO) as one buffer.
//
// Every datagram has DF set and ignores what strangers say of the path's MTU (IP_PMTUDISC_PROBE): the size
// is the VTEP's to decide. Sends fail loudly: with IP_RECVERR the kernel reports a full device queue
// (ENOBUFS) instead of discarding the datagram.
//
// The package starts no goroutines. A Receiver and a Sender belong to one goroutine each; the sockets of an
// Endpoint are shared by all Senders. It imports dataplane and vtep/inject. Linux only.
package underlay
