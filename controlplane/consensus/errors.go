package consensus

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/hashicorp/raft"
)

var (
	// ErrUnknownOutcome is the error of a proposal that may have been, or may still be, applied. Repeat it only if
	// applying it twice does no harm.
	ErrUnknownOutcome = errors.New("it is not known whether the managers agreed: the proposal may or may not take effect")
	// ErrStopped is the error of calls after Stop.
	ErrStopped = errors.New("this node takes no part in Raft: it was stopped")
	// ErrHasState is the error of Bootstrap on a node that belongs to a cluster.
	ErrHasState = errors.New("this node has a Raft log already: it can only be made the first manager of a new cluster with an empty directory")
	// ErrLocked is the error when another process uses the directory.
	ErrLocked = errors.New("another overlayd holds this directory, see `lslocks`: stop it, or choose another --data-dir")
)

// NotLeaderError is the error of calls that only the leader answers. Nothing was changed.
type NotLeaderError struct {
	LeaderID      string // "" if none is known, as during an election
	LeaderAddress string // host:port
}

func (e *NotLeaderError) Error() string {
	if e.LeaderID == "" {
		return "this manager does not lead, and knows of no leader: try again in a few seconds; if that does not help, most managers are down or out of reach"
	}
	return fmt.Sprintf("this manager does not lead: ask %s at %s", e.LeaderID, e.LeaderAddress)
}

// DamagedError says that something on disk cannot be used as it is.
type DamagedError struct {
	Path string // of the file
	What string // is wrong with it
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged: %s; nothing was changed. While other managers work, remove this one there (`overlayctl node rm`), "+
		"empty the directory and join again; if none is left, `overlayctl cluster recover` keeps what can be read, and "+
		"`overlayctl restore` puts a backup into a new cluster", e.Path, e.What)
}

func damaged(path, format string, args ...any) error {
	return &DamagedError{Path: path, What: fmt.Sprintf(format, args...)}
}

// fatal marks the error of a session after which there must be no other one in this process.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// isFatal says whether opening again is of no use, or not safe.
func isFatal(err error) bool {
	_, damage := errors.AsType[*DamagedError](err)
	_, marked := errors.AsType[fatal](err)
	return damage || marked
}

// isPassing says whether an error is likely to go away when somebody makes room on the disk.
func isPassing(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// outcome turns the error of a future of hashicorp/raft into one of this package.
func (r *Raft) outcome(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return r.notLeader()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return &NotLeaderError{} // this one still leads, but not for long, and the next one is not known
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
		return fmt.Errorf("%w (%w)", ErrUnknownOutcome, err)
	}
	return err
}

func (r *Raft) notLeader() error {
	id, address := r.Leader()
	if id == r.cfg.ID {
		id, address = "", "" // it is just losing or winning an election
	}
	return &NotLeaderError{LeaderID: id, LeaderAddress: address}
}
