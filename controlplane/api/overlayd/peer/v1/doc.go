// Package peerv1 holds the generated code of what nodes of a cluster say to each other on the control port. See
// peer.proto, which is its documentation.
package peerv1
