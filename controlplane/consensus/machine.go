package consensus

import (
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"github.com/hashicorp/raft"
)

// machine is the FSM as hashicorp/raft sees it. It outlives sessions: when one is opened again, hashicorp/raft restores
// a snapshot and applies the log from there, all of which the FSM has seen. The machine knows how far it
// got and skips that.
type machine struct {
	fsm FSM

	mu        sync.Mutex
	applied   uint64 // index of the last command in the FSM, or of the snapshot that was restored
	term      uint64 // of that entry
	delivered uint64 // index of the last entry that this session brought, whether skipped or not
	halted    error  // why nothing is applied any more
	refused   error  // of the last Restore, if it failed

	onHalt    func(error)
	onServers func() // a change of the servers was committed
	// replacing is set while the leader restores a backup: hashicorp/raft panics on an error then. It is called
	// with that error and the snapshot.
	replacing func(id string, err error)
}

var (
	_ raft.FSM                = (*machine)(nil)
	_ raft.ConfigurationStore = (*machine)(nil)
)

// guardFSM turns a panic of the FSM into an error: it would hit all managers at once, and again at each start.
func guardFSM(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: it panicked, which is a bug: %v\n%s", what, p, debug.Stack())
		}
	}()
	return f()
}

// begin is called before a session is opened.
func (m *machine) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delivered, m.refused = 0, nil
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted != nil {
		return m.halted
	}
	m.delivered = l.Index
	if l.Index <= m.applied {
		return nil // nobody waits for it: its proposer's session is over
	}
	var result any
	err := guardFSM(fmt.Sprintf("apply entry %d", l.Index), func() error {
		result = m.fsm.Apply(l.Index, l.Data)
		if err, bad := result.(error); bad {
			return fmt.Errorf("apply entry %d: %w", l.Index, err)
		}
		return nil
	})
	if err != nil {
		m.halt(err)
		return err
	}
	m.applied, m.term = l.Index, l.Term
	return result
}

// halt is called with mu held.
func (m *machine) halt(err error) {
	m.halted = err
	if m.onHalt != nil {
		m.onHalt(fatal{err})
	}
}

// StoreConfiguration implements raft.ConfigurationStore. Without it hashicorp/raft makes no snapshot while the last
// entry is a change of the servers.
func (m *machine) StoreConfiguration(uint64, raft.Configuration) {
	m.onServers()
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.halted != nil:
		return nil, fmt.Errorf("the state ends before an entry that could not be applied: %w", m.halted)
	case m.delivered < m.applied:
		// It would be labelled with the index of an older entry than it holds.
		return nil, fmt.Errorf("the log is still being read again, at %d of %d", m.delivered, m.applied)
	}
	s, err := m.fsm.Snapshot()
	if err != nil {
		return nil, err
	}
	return frozen{s}, nil
}

// freeze returns the state as it is now and where in the log that is.
func (m *machine) freeze() (s Snapshot, index, term uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted != nil {
		return nil, 0, 0, m.halted
	}
	s, err = m.fsm.Snapshot()
	return s, m.applied, m.term, err
}

func (m *machine) position() (index, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applied, m.term
}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	s := snapshotIn(r)
	if s == nil {
		return fmt.Errorf("restore a snapshot: it was not opened by this package")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted != nil {
		return m.halted
	}
	if s.index > m.applied || s.index == m.applied && s.term != m.term {
		err := guardFSM("restore the snapshot "+s.id, func() error { return m.fsm.Restore(r) })
		if err != nil && m.replacing != nil {
			m.halted = fmt.Errorf("restore a backup: the FSM refused it: %w", err)
			m.replacing(s.id, m.halted)
			return nil // hashicorp/raft would panic
		}
		if err != nil {
			m.refused = fmt.Errorf("restore the snapshot %s: %w", s.id, err)
			return m.refused
		}
		m.applied, m.term = s.index, s.term
	}
	m.delivered = s.index
	return nil
}

// replace sets or clears what is done if the FSM refuses a backup.
func (m *machine) replace(f func(id string, err error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.replacing = f
}

// refusal is why the FSM refused the last snapshot, if it did.
func (m *machine) refusal() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refused
}

// frozen is a Snapshot as hashicorp/raft sees it.
type frozen struct{ Snapshot }

// Persist implements raft.FSMSnapshot. The sink is closed or cancelled by the caller.
func (f frozen) Persist(sink raft.SnapshotSink) error {
	return guardFSM("write a snapshot", func() error {
		_, err := f.WriteTo(sink)
		return err
	})
}

// Release implements raft.FSMSnapshot.
func (f frozen) Release() { release(f.Snapshot) }

func release(s Snapshot) {
	if s, ok := s.(interface{ Release() }); ok {
		s.Release()
	}
}

// snapshotIn finds the snapshot inside of what hashicorp/raft wraps around it.
func snapshotIn(r io.ReadCloser) *openSnapshot {
	for {
		switch v := r.(type) {
		case *openSnapshot:
			return v
		case raft.ReadCloserWrapper:
			r = v.WrappedReadCloser()
		default:
			return nil
		}
	}
}
