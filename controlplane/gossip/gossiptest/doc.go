// Package gossiptest is a network in memory for tests of gossip: packets and streams between transports of
// hashicorp/memberlist, with latency, loss, partitions, and paths that swallow large packets.
//
// It takes its time from package time and waits for nothing else, so that under testing/synctest a cluster
// of a thousand nodes lives in virtual time. What it draws at random comes from a seed. Runs are still not equal to
// the last packet: memberlist draws from the runtime's random source, and the order of goroutines that run at
// the same virtual instant is open. So tests should ask for what holds in every run.
//
// Packets may be lost, and arrive in another order than sent when latency varies. Streams are reliable: loss
// does not touch them, nor does Link.MTU, as TCP segments follow the path. A partition stops both.
//
// Concurrency: all methods may be called by many goroutines. Each packet under way is one timer; there are no
// other goroutines.
//
// The package must not import gossip.
package gossiptest
