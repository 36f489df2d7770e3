package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// session is one life of hashicorp/raft.
type session struct {
	r     *Raft
	raft  *raft.Raft
	store *store
	snaps *snapshots
	trans *transport

	failOnce sync.Once
	failed   chan error    // gets the error that ends the session
	gone     chan struct{} // closed when hashicorp/raft answers nobody any more
	end      context.CancelFunc
	routines sync.WaitGroup

	verifier verifier
	beats    beats

	callsMu sync.Mutex
	calls   int           // pending
	quiet   chan struct{} // closed when the last pending call ends, if somebody waits for that

	restoreMu sync.Mutex
	restoring func() bool // whether hashicorp/raft would panic on a shutdown now; nil = no
}

// file is the path of raft.db.
func (c *Config) file() string { return filepath.Join(c.Dir, "raft.db") }

// checkFile looks at raft.db before bbolt does. It waits for the lock, so that it does not read what a daemon
// that is ending writes. A file is empty if it is not there or nothing was ever written to it.
func checkFile(path string) (empty bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close() // gives the lock back
	deadline := time.Now().Add(lockTimeout)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EINTR && err != unix.EWOULDBLOCK {
			return false, fmt.Errorf("lock %s: %w", path, err)
		}
		if time.Now().After(deadline) {
			return false, fmt.Errorf("%s: %w", path, ErrLocked)
		}
		time.Sleep(20 * time.Millisecond)
	}
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	if st.Size() == 0 {
		return true, nil // made by a process that was killed at once; bbolt makes a new database of it
	}
	if empty, err = checkPages(f, st.Size()); err != nil {
		return false, damaged(path, "%v", err)
	}
	return empty, nil
}

// openStore checks raft.db and the snapshots and opens them. It changes nothing before all is found good: opening a
// database for writing writes to it.
func (r *Raft) openStore() (*store, *snapshots, error) {
	path := r.cfg.file()
	empty, err := checkFile(path)
	if err != nil {
		return nil, nil, err
	}
	sn, err := openSnapshots(r.cfg.Dir, r.raftConf.Logger)
	if err != nil {
		return nil, nil, err
	}
	st := &store{path: path, broke: make(chan struct{}), watch: &diskWatch{limit: r.cfg.Disk.Limit, window: r.cfg.Disk.Window, began: make(chan struct{}, 1)}, covered: sn.newest.Load}
	for _, readOnly := range []bool{true, false} {
		if readOnly && empty {
			continue
		}
		if err := st.guard("open", func() (err error) { st.db, err = r.openDB(path, readOnly); return err }); err != nil {
			return nil, nil, err
		}
		if !readOnly && !empty {
			break // its content was checked
		}
		if err := checkContent(st, sn, r.cfg.Log); err != nil {
			return nil, nil, errors.Join(err, st.close())
		}
		if readOnly {
			if err := st.guard("close", st.db.Close); err != nil {
				return nil, nil, err
			}
		}
	}
	return st, sn, nil
}

// openSession opens the stores and starts hashicorp/raft.
func (r *Raft) openSession() (_ *session, err error) {
	st, sn, err := r.openStore()
	if err != nil {
		return nil, err
	}
	s := &session{r: r, store: st, snaps: sn, failed: make(chan error, 1), gone: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.close())
		}
	}()
	if err := r.checkPosition(st, sn); err != nil {
		return nil, err
	}
	st.onFail = s.fail
	s.trans = newTransport(newSessionStream(r.cfg.Stream, r.cfg.Address, r.cfg.Timing.rpcTimeout()), r.cfg.Timing.rpcTimeout(), r.cfg.ResolveAddress, r.raftConf.Logger)
	r.machine.begin()
	if s.raft, err = s.start(); err != nil {
		return nil, errors.Join(err, s.trans.Close())
	}
	st.live.Store(true)
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.Background())
	s.verifier.init(s)
	s.beats.init()
	s.routines.Go(func() { s.observe(ctx) })
	s.routines.Go(func() { s.beat(ctx) })
	s.routines.Go(func() { s.autopilot(ctx) })
	s.routines.Go(func() { s.watchDisk(ctx) })
	s.routines.Go(func() { s.verifier.run(ctx) })
	s.routines.Go(func() { s.tellCommits(ctx) })
	return s, nil
}

// start calls raft.NewRaft, which panics on some of what it does not like to read.
func (s *session) start() (out *raft.Raft, err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		out = nil
		if err = s.refusal(); err != nil {
			return // it then takes an older snapshot, from which the log need not reach on
		}
		if err = s.store.failure(); err != nil {
			return // it saves its term before anything else
		}
		if cause, ok := p.(error); ok && isFatal(cause) {
			err = cause // an entry that cannot be read
			return
		}
		s.r.cfg.Log.Error("hashicorp/raft panicked at start", "panic", p, "stack", string(debug.Stack()))
		err = damaged(s.store.path, "Raft cannot start from it: %v", p)
	}()
	conf := *s.r.raftConf
	out, err = raft.NewRaft(&conf, s.r.machine, s.store, s.store, s.snaps, s.trans)
	if refused := s.refusal(); refused != nil {
		if err == nil {
			_ = out.Shutdown().Error()
		}
		return nil, refused
	}
	if err != nil {
		return nil, fmt.Errorf("start Raft from %s: %w", s.r.cfg.Dir, err)
	}
	return out, nil
}

// refusal is the error to report if the FSM refused a snapshot while hashicorp/raft was started.
func (s *session) refusal() error {
	if refused := s.r.machine.refusal(); refused != nil {
		return fatal{fmt.Errorf("%s: %w; if a newer overlayd wrote it, install that version again", filepath.Join(s.r.cfg.Dir, snapshotDir), refused)}
	}
	return nil
}

// checkPosition makes sure that the FSM, which may have lived through an earlier session, has applied what is in
// the stores, and no other history. Somebody may have recovered the directory in between.
func (r *Raft) checkPosition(st *store, sn *snapshots) error {
	index, term := r.machine.position()
	if index == 0 {
		return nil
	}
	list, err := sn.List()
	if err != nil {
		return err
	}
	if len(list) > 0 && (list[0].Index > index || list[0].Index == index && list[0].Term == term) {
		return nil // the snapshot replaces, or is, what the FSM holds
	}
	var l raft.Log
	if err := st.entry(index, &l); err != nil || l.Term != term {
		return fatal{fmt.Errorf("%s was changed by another process while this one could not use it: restart overlayd on this node", r.cfg.Dir)}
	}
	return nil
}

// fail ends the session. It may be called from any goroutine and does not block.
func (s *session) fail(err error) {
	s.failOnce.Do(func() {
		s.failed <- err
		// Nothing that this node says from now on may rest on a write that did not happen.
		s.trans.cut.Store(true)
	})
}

// close ends hashicorp/raft and closes the stores. It blocks for as long as a write does.
func (s *session) close() error {
	s.end()
	s.r.cfg.Log.Debug("closing Raft", "dir", s.r.cfg.Dir)
	err := s.trans.Close() // a leader without contact steps down, which answers the pending calls
	s.settle()
	err = errors.Join(err, s.raft.Shutdown().Error())
	s.trans.stream.wait()
	close(s.gone)
	s.routines.Wait()
	return errors.Join(err, s.store.close())
}

// settle waits until hashicorp/raft may be shut down: during a restore it would panic, and it would not answer
// calls whose entries are on their way to the FSM. The latter does no harm, so that wait is bounded.
func (s *session) settle() {
	limit := time.NewTimer(2*s.r.cfg.Timing.Lease + s.r.cfg.Timing.Commit)
	defer limit.Stop()
	select {
	case <-s.idle():
	case <-limit.C:
	}
	for {
		s.restoreMu.Lock()
		busy := s.restoring != nil && s.restoring()
		s.restoreMu.Unlock()
		if !busy {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// await calls f, which waits for an answer of hashicorp/raft, and returns what it returns, or when ctx or the session
// ends. Then it is not known whether f had an effect.
func (s *session) await(ctx context.Context, f func() error) error {
	s.callsMu.Lock()
	s.calls++
	s.callsMu.Unlock()
	done := make(chan error, 1)
	go func() {
		done <- f()
		s.callsMu.Lock()
		defer s.callsMu.Unlock()
		if s.calls--; s.calls == 0 && s.quiet != nil {
			close(s.quiet)
			s.quiet = nil
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", ErrUnknownOutcome, context.Cause(ctx))
	case <-s.gone:
		select {
		case err := <-done:
			return err
		default:
			return fmt.Errorf("%w (this node stopped taking part)", ErrUnknownOutcome)
		}
	}
}

// idle returns a channel that is closed when no call is pending.
func (s *session) idle() <-chan struct{} {
	s.callsMu.Lock()
	defer s.callsMu.Unlock()
	if s.quiet == nil {
		s.quiet = make(chan struct{})
	}
	quiet := s.quiet
	if s.calls == 0 {
		close(quiet)
		s.quiet = nil
	}
	return quiet
}

// patience is for how long hashicorp/raft may take to take a request on: what is left of ctx, but not without end.
func patience(ctx context.Context) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return max(time.Until(d), time.Millisecond)
	}
	return time.Minute
}
