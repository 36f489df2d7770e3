// Package controlplane is one host's part in a cluster: it composes the replicated state, Raft, gossip and the
// identity of nodes, which do not know each other.
//
// Truth and spread are two things. The managers agree on every change by Raft: a command is proposed to the leader, and
// what it changed is a batch with the index of its Raft entry. Every node, managers included, keeps a copy of what is
// public of the state. The leader signs each batch and gossips it, which is fast; a node that finds a gap, or hears that
// others are further, asks a manager for what it lacks over mutually authenticated TLS, which is certain. Gossip is
// transport and not authority: a batch that no manager signed is dropped. The copy lies on disk too, so that a restarted
// daemon forwards before it has spoken to anyone, and all that is here may fail without touching what is forwarded.
//
//	overlayctl ─> Node.Propose ─> leader: consensus ─> state.Store ─┬─> gossip, signed ─┐
//	                                                                └─> Sync over TLS ──┴─> state.Replica ─> Watch ─> vtep
//
// A node is a member from Init or Join to Leave or its removal. A manager has a seat besides: its Raft server. The state
// says who is to have one: roleLoop takes and leaves it, and the leader brings the servers of Raft in line.
//
// Node.Run is the goroutine that owns a membership. It starts, for as long as that lasts: the listener of the control port
// and the HTTP server on it, acceptRaft, the gossip, and the loops role, sync, copy, keys and renewal; a seat adds the loop
// lead, a goroutine that waits for Raft to fail, and those of Raft itself; the loop meet has one for its first exchange of the
// gossip. All of them end with Run.
//
// Beside the services of the API between nodes the control port answers two short questions in JSON: whether a node is a
// member still, which may be asked without a certificate (removed.go), and of managers how new the secrets are (secrets.go).
//
// The package must not import vtep: the seam is Node.Watch, whose updates are serialisable.
package controlplane
