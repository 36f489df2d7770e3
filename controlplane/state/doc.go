// Package state is what the managers of a cluster agree on: networks, nodes, endpoints, and who has which address. It is
// plain code over memory. The same commands in the same order make the same state everywhere, to the byte of its
// snapshots.
//
// Store is the managers' copy. The Raft log is fed to Store.Apply, command by command, and nothing else changes it.
// What a command may look at is the state, the command's own time and seed, and its index in the log; there is no
// clock and no other randomness. A command that cannot be followed is refused: its Result then says which field was
// wrong and what to do, and the state is as before, except that the refusal is remembered under its request ID. Only a
// command that this version does not understand is an error. The node must then stop applying, as guessing would make
// its state another one than that of the others.
//
// Replica is every node's copy, without secrets. It follows the Store by the Batch that Apply returns for each change,
// or catches up by a snapshot. Both embed Tables, which has the methods for reading.
//
// Versions: Command.version says which version of the rules is needed, RulesVersion which one this code has. Whoever
// changes what a command does, or adds one, raises RulesVersion and has new commands carry it once all managers know
// it. Fields that this code does not know are dropped, so a field that matters needs a new version too.
//
// Concurrency: any number of goroutines may read a Store or a Replica while one applies; an RWMutex in Tables keeps them
// apart. A snapshot is taken in constant time for the number of endpoints and is written without the lock, as the trees
// behind it are copied when they are next changed. Messages that reading methods return are copies and belong to the
// caller. A Result belongs to the caller too. A Batch is kept for Since and is not to be changed by anyone.
//
// Memory: an endpoint is a fixed record of 96 bytes, its name, and a pointer in each of three B-trees and of two to four
// hash tables. TestMemoryPerEndpoint logs the sum: some 200 bytes for endpoints with a name and one address, or 200 MB
// for a million.
//
// The package starts no goroutines, does no I/O beyond the reader or writer it is given, and of this module imports only
// the generated messages and the vocabulary of dataplane (addr, mtu).
package state
