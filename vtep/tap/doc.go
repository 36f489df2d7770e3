// Package tap opens TAP interfaces and moves batches of frames in and out of their queues.
//
// Two implementations stand behind the Queue interface. vnet speaks the virtio-net header, so that whole
// superframes of up to 64 KB cross the kernel boundary in one system call and checksums are left to whoever
// can do them best; it has as many queues as asked for. water, on github.com/songgao/water, takes and gives
// one plain frame a call and works with every kernel that has a TUN/TAP driver; it is the fallback and the
// baseline.
//
// The package starts no goroutines and waits for nothing: that is for package poll. A Queue is read by one
// goroutine and written by any number that take turns. It imports dataplane and nothing else of this module.
// Linux only.
package tap
