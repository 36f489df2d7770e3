// Package capture reads packets off an interface together with what the kernel knows about them and the
// bytes do not show: which checksum is still to be completed, and which packet is a superframe that will be
// cut on its way. So a checker can tell an unfinished packet from a wrong one.
//
// It is made for links between namespaces, where both happen all the time: a veth passes on what its sender
// left to the hardware.
//
// # Concurrency
//
// Each Capture has one goroutine, reader, which calls the handler for one packet after the other. It ends
// with Stop. Statistics may be asked for by any goroutine.
//
// Linux only, and needs CAP_NET_RAW in the namespace. The package imports nothing of this module but
// dataplane/header, for the struct of the virtio-net header.
package capture
