// Package mtu holds the units in which sizes of packets are counted, a type for each so that no two can
// be confused, and the one function that knows what the encapsulation costs.
//
// From the outside inwards: an UnderlayMTU is what the interface or route towards a peer can send; a
// PathMTU is what has been proven to reach that peer, at most the former; an OverlayMTU is what is left
// for the IP packet of a container; an MSS is what is left for its TCP payload.
//
//	|<--------------------------- PathMTU ---------------------------->|
//	+----------+-----+-------+----------------+----------+-----+---------+
//	| outer IP | UDP | VXLAN | inner Ethernet | inner IP | TCP | payload |
//	+----------+-----+-------+----------------+----------+-----+---------+
//	                         |<--------------- MaxFrame -------------->|
//	                                          |<----- OverlayMTU ----->|
//	                                                           |<-MSS->|
//
// Everything here is a pure function of its arguments: safe for concurrent use, no goroutines, no
// allocation apart from errors. The package imports nothing of this module; the terms of the overhead are
// written nowhere else.
package mtu
