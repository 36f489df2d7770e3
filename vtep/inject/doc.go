// Package inject hands whole superframes to the kernel, which segments them where the hardware does, or not at
// all: what the kernel's own VXLAN device does with its packets.
//
// Terms. An injection is one write to a TAP of this package's own: a virtio-net header in its 24-byte form, which
// describes a tunnelled superframe; Ethernet, IP and UDP headers made here; and, uncut and with its checksum left
// to hardware, the superframe behind its VXLAN header. A Path is the way of injections to one peer: the headers,
// and the underlay device that they leave by.
//
// The TAP leads nowhere. What is written to it comes to a BPF program at its tc ingress, which has the kernel
// resolve route and neighbour on the underlay device and put the packet into that device's queue
// (bpf_redirect_neigh). All of that happens within the write. No forwarding has to be on, and no rule of a
// forwarding firewall is met; nor is one of the output chains, which only packets of sockets pass.
//
// The source address in the Ethernet header tells the program which device to use; bytes 2 to 5 hold its
// index. It never leaves the host: the kernel writes an Ethernet header of its own. Where the index is that of
// the TAP, the program sends the packet back to the reader of the TAP, which is how Open finds out whether the
// kernel can do all this.
//
// TAP and program are held by descriptors and go with the process, however it ends.
//
// Kernels before 6.16 could be brought down by a tunnelled superframe whose headers contradict each other.
// Writer.Write therefore looks at every header and refuses what does not agree, whoever calls it.
//
// The package starts no goroutines. A Writer belongs to one goroutine; Device and Path may be used by any. It
// imports dataplane and nothing else of this module. Linux only.
package inject
