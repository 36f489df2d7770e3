// Package fdb holds the tables that say where a frame goes: Table, from a MAC to the VTEP behind which it
// lives, and Neighbors, from an IP address to the MAC of its owner. There is one of each for a network.
//
// A station behind this host's own bridge has an entry too, with Local in place of a VTEP.
//
// Any number of goroutines may read while others write. Readers take no lock and never wait. Neither does
// the refresh of an entry that is already known, which is what nearly every received frame asks for. Changes
// are serialised by a mutex in each table.
//
// Both tables are open-addressing hash tables that keep these promises by three rules:
//
//   - A slot that has been given a key keeps it for as long as its array lives. Removing an entry marks its
//     value as dead; no other key ever takes the slot. So a reader that has found its key cannot be shown the
//     value of another.
//   - Everything about an entry that can change is one 64-bit word, read and written atomically.
//   - Dead slots go away, and room is made, by copying an array into a new one which is then published.
//
// A table is divided into 256 parts by hash, each with an array of its own, so that making room in a table of
// a million entries moves a few thousand of them at a time. The arrays that were too small on the way there took
// three times as much memory as those that remain: they are garbage, but have no pointers, and so cost little to
// collect. The hash is keyed with random numbers: a station that picks its addresses cannot make them collide.
//
// The package starts no goroutines, reads no clock (times are handed in) and imports only dataplane/addr of
// this module.
package fdb
