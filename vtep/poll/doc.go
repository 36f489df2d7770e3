// Package poll lets a worker wait for many file descriptors at once, and others wake it.
//
// Why not the poller of the Go runtime: there, a packet that ends a wait wakes a thread that looks at all
// descriptors, which makes a goroutine runnable, which wakes further threads to look for work, each at the
// cost of system calls. A worker that waits in epoll_wait(2) itself is woken by the kernel and at once has
// its packet. See docs/adr/0002-workers-wait-in-epoll.md.
//
// The package starts no goroutines. A Set belongs to one goroutine but for Wake, which any may call. It
// imports nothing of this module. Linux only.
package poll
