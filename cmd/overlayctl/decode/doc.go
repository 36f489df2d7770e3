// Package decode puts the first bytes of a dropped frame into words, so that an operator sees at a glance
// what was dropped. It decodes by gopacket, which is fit for people and not for the path of a frame: nothing
// that forwards may import this package.
//
// The bytes come from hostile senders too. Only numbers and names that this package knows itself reach the
// text, never bytes of the frame as they are, so that no frame can send control characters to a terminal.
//
// Concurrency: pure functions, no goroutines.
package decode
