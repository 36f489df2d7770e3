// Package interop proves the daemon from end to end: its real binary in network namespaces, real TAPs, a
// real underlay, next to the kernel's own vxlan device. It has no product code.
//
// The tests ask for what a user would see: the same bytes at the other end, in order, at every size, over
// both address families, with the offloads of the links on and off; wrong input counted under its name and
// nothing else changed; the host after the end as it was before the start. While traffic flows, every packet
// on the wire is captured and decoded by gopacket, which knows nothing of our code, and compared with the
// standards field by field (see wire in wire_test.go).
//
// Labs come from bench/lab, traffic from bench/load. The tests run one after the other, since two at a time
// would only take CPU from each other. They need root; without it they skip themselves, or fail where
// CI=true.
//
// Goroutines: for each capture its reader, see bench/capture; for each daemon that a test starts itself,
// waiter, which reaps it. TestMain fails when any is left at the end.
package interop
