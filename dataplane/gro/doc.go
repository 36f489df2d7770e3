// Package gro joins consecutive frames of one flow into superframes, the inverse of dataplane/gso.
//
// Terms. An item is what one write to a TAP takes: a frame, or a superframe made of several. Its first
// piece is the first frame, headers and all; every further piece is the payload of a further frame, where it
// lies. Payload is never copied.
//
// Order. Within a flow frames leave in the order in which they came: a frame that cannot join the open
// item of its flow closes it. Between flows the order may change, by no more than one batch.
//
// A Coalescer belongs to one goroutine and keeps its memory from batch to batch, so that it allocates
// nothing once warm. The package imports the wire formats, the checksum, the parse result and dataplane/gso.
package gro
