// Package addr holds the vocabulary that all planes share: the VXLAN network identifier (VNI), the
// Ethernet address (MAC) and the Mapping that says behind which VTEP a container lives.
//
// Everything here is a plain value: no I/O, no goroutines, safe to copy and to compare with ==. The
// package imports nothing of this module.
package addr
