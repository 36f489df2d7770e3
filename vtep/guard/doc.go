// Package guard keeps the containers behind one bridge from posing as each other. What passes between two of them
// never reaches the VTEP, so the rules of dataplane/forward for what a station may say of itself are put where it does
// pass: into nftables, at the ingress of the host's end of each container's veth (family netdev).
//
// A frame that breaks a rule is dropped and counted under the forward.DropReason that forward has for it. What the
// rules let pass and is for another host goes through forward all the same, which looks more closely: nftables cannot
// walk a list of options, so here neighbour discovery messages may have one option at most.
//
// All rules are in one table of the sandbox's network namespace. What is new is written in one transaction: there is no
// moment without. Its counters last as long as the namespace.
//
// Functions act on the network namespace of the calling thread, which the caller has locked, and may be called from
// any goroutine, one at a time for a namespace. The package starts no goroutines. It imports dataplane and nothing else
// of this module. Linux only.
package guard
