// Package poll lets a worker wait for a file descriptor in a way that another goroutine can interrupt.
//
// Why not the poller of the Go runtime: there, a packet that ends a wait wakes a thread that looks at all
// descriptors, which makes a goroutine runnable, which wakes further threads to look for work, each at the
// cost of system calls. A worker that waits in poll(2) itself is woken by the kernel and at once has its
// packet. See docs/adr/0002-workers-wait-in-poll.md for the figures.
//
// The package starts no goroutines. A Waiter belongs to one goroutine; an Interrupter may be used from any.
// It imports nothing of this module. Linux only.
package poll
