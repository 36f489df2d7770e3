package api

import (
	"errors"
	"runtime/debug"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

// ErrNoNetwork is what Tables.FDB returns for a network that the node does not have.
var ErrNoNetwork = errors.New("no such network")

// Overview says what a node is and what it forwards. What it returns is a snapshot that belongs to the
// caller.
type Overview interface {
	Status() *overlaydv1.NodeStatus
	Networks() []*overlaydv1.Network
	Peers() []*overlaydv1.Peer
	// Paths are those to the peers, in the order of their addresses.
	Paths() []*overlaydv1.Path
	Probes() *overlaydv1.Probes
}

// Tables are the forwarding tables of a node.
type Tables interface {
	// FDB returns at most limit entries of one network, in the order of their MAC addresses, that come
	// behind the address after; the zero address stands before all. An error for which errors.Is(err,
	// ErrNoNetwork) holds says that there is no such network.
	FDB(network string, after addr.MAC, limit int) ([]*overlaydv1.FDBEntry, error)
}

// DropLog is what a node remembers of the frames that it dropped.
type DropLog interface {
	// Drops returns the rows with a count above zero, without their LastSample.
	Drops() []*overlaydv1.Drop
	// Samples returns those still held with a Seq above after, oldest first.
	Samples(after uint64) []*overlaydv1.DropSample
}

// Node is what a Server serves. Its methods are called by many goroutines at once.
type Node interface {
	Overview
	Tables
	DropLog
}

// BuildVersion describes the running binary by what the Go tool recorded in it.
func BuildVersion() *overlaydv1.Version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return &overlaydv1.Version{Version: "(unknown)"}
	}
	v := &overlaydv1.Version{Version: info.Main.Version, GoVersion: info.GoVersion}
	if v.Version == "" {
		v.Version = "(devel)"
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && v.Revision != "" {
		v.Revision += "-dirty"
	}
	return v
}

// VersionLine puts a version into words for an operator, on one line and without a line end.
func VersionLine(v *overlaydv1.Version) string {
	line := v.GetVersion()
	if v.GetRevision() != "" {
		line += " revision " + v.GetRevision()
	}
	if v.GetGoVersion() != "" {
		line += " " + v.GetGoVersion()
	}
	return line
}
