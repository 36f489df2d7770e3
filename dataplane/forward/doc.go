// Package forward decides what becomes of every frame: where it goes, or for what reason it is dropped.
//
// Egress takes batches of frames from a TAP and turns them into sends: one send is what one call of
// sendmsg takes, up to a whole superframe cut into equal datagrams. Ingress takes batches of received
// buffers and turns them into items for TAPs. Both are plain code over memory: no system calls, no clocks
// (time is handed in), no logs.
//
// Counting. The unit is the wire frame; a superframe counts as the number of segments it stands for. For
// every network
//
//	TAPIn + UnderlayIn + Created = TAPOut + UnderlayOut + the sum over all drop reasons
//
// once all sends and writes have been reported to Counters. Created are the copies that head-end
// replication adds, the segments and fragments that are more than what came in, and ICMP errors. A request that is
// answered from the neighbour table comes in from the TAP and goes out to it as the answer.
//
// Paths. What is too large for the path to its VTEP is cut smaller, or fragmented, or its sender is told: see repair.go.
// The MSS of every SYN is lowered to what the path leaves, in both directions.
//
// Isolation. On a network that isolates its stations, all of them are registered, and a frame that claims to be from
// another one than it is, is dropped where it leaves and where it arrives: see isolate.go. A Limiter bounds what a
// network floods.
//
// Pairs. Leave and Arrive say for all plain packets of one station to another at once what Egress and Ingress would do
// with them, so that something faster can forward them, and Tables counts what that did: see pair.go.
//
// Concurrency. An Egress or Ingress belongs to one goroutine. They share Tables, Networks, Limiters and Counters with
// each other and with whoever changes these: all reads on the packet path are lock-free.
//
// The package imports only the other packages of dataplane.
package forward
