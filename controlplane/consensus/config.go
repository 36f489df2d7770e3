package consensus

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// StreamLayer makes and accepts the connections between managers. Who may connect is its business. A connection has to
// find out by itself when the host at the other end is gone (TCP keepalive, on by default in Go), because
// connections are idle for long between elections. Close ends Accept; Stop calls it.
type StreamLayer = raft.StreamLayer

// FSM is what the commands are applied to, in the same order on every manager. Its methods are called from one
// goroutine at a time.
type FSM interface {
	// Apply applies a command. It has to be deterministic. The result goes to the caller of Propose. A
	// result that is an error means that this copy cannot go on, as when a newer version wrote the command: the node
	// stops taking part for good, applies nothing any more, and nothing of the command may show. The same happens on
	// a panic. What is merely refused is no error but a result.
	Apply(index uint64, command []byte) any
	// Snapshot freezes the state. It has to be fast, because no command is applied meanwhile.
	Snapshot() (Snapshot, error)
	// Restore replaces the whole state, or changes nothing and returns an error.
	Restore(r io.Reader) error
}

// Snapshot is a frozen state. WriteTo may be called several times, each time with the same result, while commands are
// applied. If there is a method Release() it is called in the end.
type Snapshot interface {
	WriteTo(w io.Writer) (int64, error)
}

// Timing says how patient Raft is. The defaults are twice those of hashicorp/raft, for two cores that are shared with
// other work.
type Timing struct {
	Heartbeat time.Duration // without a word from the leader after which a follower stands for election; 0 = 2 s
	Election  time.Duration // after which an election without result is repeated, at least Heartbeat; 0 = 2 s, or Heartbeat if that is longer
	Lease     time.Duration // without contact to a quorum after which a leader steps down, at most Heartbeat; 0 = Heartbeat
	// Commit is the time, once to twice, after which a follower that was sent nothing of the log gets an empty message, by
	// which the leader learns what it lacks. What did not arrive is sent again then, or before, once the follower answers a
	// heartbeat. 0 = Heartbeat, but 2 s at most.
	Commit time.Duration
}

// Retention says how much of the log is kept.
type Retention struct {
	Threshold uint64        // entries after which a snapshot is made; 0 = 8192
	Trailing  uint64        // entries kept before a snapshot, for followers that are a little behind; 0 = 10240
	Interval  time.Duration // between checks of the threshold, drawn from once to twice this; 0 = 2 min
}

// Disk says when the disk is too slow for a leader.
type Disk struct {
	Limit  time.Duration // for one write; 0 = 1 s
	Window time.Duration // during which all writes were slower, or one did not end; 0 = 10 s
}

// Config is what a Raft is made from.
type Config struct {
	ID      string // of this node, the same for all time
	Dir     string // for raft.db and snapshots/; made, with mode 0700, if it is not there
	Address string // host:port under which the other managers reach this one
	Stream  StreamLayer
	FSM     FSM

	// Check says whether FSM.Restore would accept a state, without touching the FSM. Restore asks it before
	// anything is changed. nil = the checksum of the backup has to do.
	Check func(r io.Reader) error
	// ResolveAddress returns the current address of a server, and whether it is known. nil = the addresses that
	// AddNonvoter was called with.
	ResolveAddress func(id string) (address string, ok bool)
	// WantVoter says whether the leader is to promote a non-voter. nil = all of them.
	WantVoter func(id string) bool
	// StabilizeTime is how long a non-voter has to keep up before it is promoted; 0 = 10 s.
	StabilizeTime time.Duration

	Timing    Timing
	Retention Retention
	Disk      Disk
	Log       *slog.Logger // nil = slog.Default()
}

const (
	// maxCommand is the largest command in bytes: up to 64 of them travel in one message.
	maxCommand = 1 << 20
	// keptSnapshots is how many snapshots stay on disk: a damaged one can be done without if the log reaches back
	// to the one before.
	keptSnapshots = 2
	// lockTimeout is how long Open waits for the lock of raft.db, which a daemon that is ending may still hold.
	lockTimeout = 2 * time.Second
	// entriesPerMessage is the most entries that go to a follower at once.
	entriesPerMessage = 64
)

// rpcTimeout is how long one message between managers may take: long enough for a write to a slow disk at the other
// end, short enough to be over soon after a partition has healed.
func (t Timing) rpcTimeout() time.Duration { return max(5*t.Election/2, 500*time.Millisecond) }

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// complete checks a configuration and fills in the defaults.
func (c *Config) complete() error {
	switch {
	case c.ID == "":
		return errors.New("no ID of this node is given")
	case c.Dir == "":
		return errors.New("no directory is given")
	case c.Stream == nil:
		return errors.New("no stream layer is given")
	case c.FSM == nil:
		return errors.New("no FSM is given")
	}
	if err := checkAddress(c.Address); err != nil {
		return fmt.Errorf("the address of this node: %w", err)
	}
	setDefault(&c.Timing.Heartbeat, 2*time.Second)
	setDefault(&c.Timing.Election, max(2*time.Second, c.Timing.Heartbeat))
	setDefault(&c.Timing.Lease, c.Timing.Heartbeat)
	setDefault(&c.Timing.Commit, min(2*time.Second, c.Timing.Heartbeat))
	setDefault(&c.Retention.Threshold, 8192)
	setDefault(&c.Retention.Trailing, 10240)
	setDefault(&c.Retention.Interval, 2*time.Minute)
	setDefault(&c.Disk.Limit, time.Second)
	setDefault(&c.Disk.Window, 10*time.Second)
	setDefault(&c.StabilizeTime, 10*time.Second)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	for _, d := range []struct {
		name string
		d    time.Duration
		min  time.Duration
	}{
		{"Timing.Heartbeat", c.Timing.Heartbeat, 5 * time.Millisecond},
		{"Timing.Election", c.Timing.Election, c.Timing.Heartbeat},
		{"Timing.Lease", c.Timing.Lease, 5 * time.Millisecond},
		{"Timing.Commit", c.Timing.Commit, time.Millisecond},
		{"Retention.Interval", c.Retention.Interval, 5 * time.Millisecond},
		{"Disk.Limit", c.Disk.Limit, time.Millisecond},
		{"Disk.Window", c.Disk.Window, c.Disk.Limit},
		{"StabilizeTime", c.StabilizeTime, time.Millisecond},
	} {
		if d.d < d.min {
			return fmt.Errorf("%s is %v: it has to be at least %v", d.name, d.d, d.min)
		}
	}
	if c.Timing.Lease > c.Timing.Heartbeat {
		return fmt.Errorf("Timing.Lease is %v: it must not be longer than Timing.Heartbeat, which is %v", c.Timing.Lease, c.Timing.Heartbeat)
	}
	return os.MkdirAll(c.Dir, 0o700)
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is no host:port: %w", address, err)
	}
	if host == "" || port == "" || port == "0" {
		return fmt.Errorf("%q lacks a host or a port", address)
	}
	return nil
}

// raftConfig is what hashicorp/raft gets.
func (c *Config) raftConfig() *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.ID)
	rc.HeartbeatTimeout = c.Timing.Heartbeat
	rc.ElectionTimeout = c.Timing.Election
	rc.LeaderLeaseTimeout = c.Timing.Lease
	rc.CommitTimeout = c.Timing.Commit
	rc.MaxAppendEntries = entriesPerMessage
	rc.SnapshotThreshold = c.Retention.Threshold
	rc.TrailingLogs = c.Retention.Trailing
	rc.SnapshotInterval = c.Retention.Interval
	rc.ShutdownOnRemove = false // a manager that was removed may be made one again
	rc.NoLegacyTelemetry = true
	rc.Logger = newLogger(c.Log, c.ID)
	return rc
}
