// Package compare measures overlayd beside the kernel's VXLAN: the same traffic, over the same kind of wire,
// in one run, in turns. It is "overlayctl bench".
//
// A contender is one way to join two hosts: a lab of its own, two network namespaces at the ends of one veth,
// with overlayd, the kernel's vxlan device or nothing on top, and the traffic between the hosts themselves or
// between containers on them. A workload is one kind of traffic with a few metrics. Every round takes the
// workloads one after the other and, within each, all contenders in turn, so that what a ratio compares was
// measured within seconds. All labs are up during the whole run, so that nothing has to start, resolve or learn
// before a measurement; what those that are not in turn cost is measured too, and reported. A workload that
// needs other hosts has a scene: a lab that is made of the contender for one measurement.
//
// Beside the traffic, the daemons are watched: the CPU time of each while there is no traffic at all, and its
// peak of memory in each workload.
//
// A new contender is a line in contenders, a new workload one in workloads; what is to be reached, one in
// floors or limits. Results go into a report.Report.
//
// # Concurrency
//
// Run measures one thing at a time, on the goroutine of its caller. Beside those of bench/lab and bench/load it
// starts a goroutine for traffic that goes on while something else is measured: the bulk flow of rtt-tcp-busy,
// the stations of table-1m; and one for each namespace that it makes, which ends at once. All have ended when it
// returns.
//
// Linux only, and root. The package may import anything of this module; nothing but cmd imports it.
package compare
