// Package link is what the VTEP knows of and does to network devices, addresses, routes and network namespaces: over
// which device and from which address a peer is reached, when that may have changed, the settings of a TAP, and who it
// is that already has a device or a UDP port that was asked for.
//
// A Sandbox is a network namespace for the bridge of one network. It keeps frames away from the host's packet filters,
// and outlives the daemon by a name in /run/netns. A veth pair joins a container to it. What there ought to be in a
// sandbox is a Layout, and Repair makes it so, at the start as after somebody has meddled.
// A Relay is a veth pair from a sandbox to the host, for packets that BPF programs redirect and for nothing else.
//
// It works on Linux, by rtnetlink and /proc. Every function acts in the network namespace of the calling thread, but
// for the methods of Namespace and Sandbox, which act in theirs; OpenRelay acts in both, and Watch goes on in the one in
// which it was called. All are safe for concurrent use.
//
// Watch starts one goroutine, "link watch", which ends with its context. Sandbox.Watch starts two, "sandbox watch", one where the
// kernel has no nftables; Watching.Close ends and joins them. What happens in another namespace, or on a
// thread that is spent by it, is done by a goroutine that the caller waits for. Nothing else starts any.
//
// The package imports dataplane/addr, dataplane/mtu and vtep/link/netname of this module, and neither vtep nor controlplane.
package link
