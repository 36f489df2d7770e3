package frame

import "github.com/overlayd/overlayd/dataplane/header"

// Headroom is the number of bytes kept free in front of every frame, into which a VXLAN header can be
// written so that header and frame leave the host without a copy.
const Headroom = header.VXLANLen

// Frame is one frame of a batch as a queue delivered it: an Ethernet frame of at most the MTU, or a
// superframe that stands for several.
//
// Buf begins Headroom bytes in front of the Ethernet header. The memory belongs to the queue that filled
// the batch and is valid until that queue is read again; until then the reader of the batch may write to
// all of it.
type Frame struct {
	Buf     []byte
	Offload header.VirtioNet
}

// Bytes returns the frame from its Ethernet header on.
func (f *Frame) Bytes() []byte { return f.Buf[Headroom:] }
