// Package statev1 holds the generated code of what the managers agree on and what is stored of it: the commands of
// the Raft log, snapshots, and the changes that travel to all nodes. See state.proto, which is its documentation.
package statev1
