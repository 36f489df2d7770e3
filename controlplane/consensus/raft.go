package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	firstBackoff = time.Second      // before a session is opened again
	maxBackoff   = 30 * time.Second // it doubles up to this
	goodAfter    = time.Minute      // a session that lasts so long starts the backoff anew
	probeSize    = 1 << 20          // bytes that have to fit on the disk before a session is opened again
)

// Raft is this node's part in the agreement of the managers. Make one with Open; Stop ends it.
type Raft struct {
	cfg      Config
	raftConf *raft.Config
	machine  *machine
	openDB   func(path string, readOnly bool) (database, error)

	stopping chan struct{} // closed by Stop
	stopOnce sync.Once
	done     chan struct{} // closed when all goroutines have ended
	failures chan error    // for Failed; holds the newest one that nobody took
	servers  chan struct{} // capacity 1: look at the servers, and at who leads, again

	mu       sync.Mutex
	session  *session // nil while there is none
	err      error    // why there is none
	stopErr  error    // of the end
	watchers map[chan Leadership]struct{}
	told     Leadership
}

// State is the part that a node plays.
type State string

// The states. A node that is stopped has no session; Err says why.
const (
	Follower  State = "follower"
	Candidate State = "candidate"
	Leader    State = "leader"
	Stopped   State = "stopped"
)

// Leadership is who leads, as far as this node knows.
type Leadership struct {
	State         State  // of this node
	LeaderID      string // "" if no leader is known
	LeaderAddress string
}

// Open checks and opens what is in Config.Dir and takes part from then on. A node without state waits for Bootstrap, or
// for a leader that calls AddNonvoter for it. Open refuses a directory that another process uses (ErrLocked) and one
// with damaged content (*DamagedError). If the disk is full, it returns a Raft that is stopped and
// tries again until there is room.
func Open(cfg Config) (*Raft, error) { return open(cfg, openBolt) }

func open(cfg Config, openDB func(string, bool) (database, error)) (*Raft, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("set up Raft: %w", err)
	}
	r := &Raft{
		cfg: cfg, raftConf: cfg.raftConfig(), machine: &machine{fsm: cfg.FSM}, openDB: openDB,
		stopping: make(chan struct{}), done: make(chan struct{}), failures: make(chan error, 1),
		servers:  make(chan struct{}, 1),
		watchers: map[chan Leadership]struct{}{}, told: Leadership{State: Stopped},
	}
	r.machine.onServers = func() { poke(r.servers) }
	r.machine.onHalt = func(err error) {
		// Called while hashicorp/raft waits for the FSM; the session may not be there yet.
		r.mu.Lock()
		s := r.session
		r.mu.Unlock()
		if s != nil {
			s.fail(err)
		}
	}
	leftovers, err := filepath.Glob(filepath.Join(cfg.Dir, restorePattern))
	if err != nil {
		return nil, fmt.Errorf("set up Raft in %q: %w", cfg.Dir, err)
	}
	s, err := r.openSession()
	if err != nil && (isFatal(err) || !isPassing(err)) {
		return nil, fmt.Errorf("open the Raft store: %w", err)
	}
	for _, f := range leftovers {
		_ = os.Remove(f) // of a restore that the end of the process broke off
	}
	r.set(s, err)
	go r.accept()
	go r.supervise(s, err)
	return r, nil
}

// accept hands the connections of other managers to the session.
func (r *Raft) accept() {
	for {
		c, err := r.cfg.Stream.Accept()
		if err != nil {
			select {
			case <-r.stopping:
				return
			case <-time.After(100 * time.Millisecond): // no descriptors, perhaps
				continue
			}
		}
		if s := r.current(); s == nil || !s.trans.stream.offer(c) {
			_ = c.Close()
		}
	}
}

// supervise opens a new session when one ends, until Stop.
func (r *Raft) supervise(s *session, err error) {
	defer close(r.done)
	defer r.unwatch()
	wait := firstBackoff
	for {
		if s != nil {
			opened := time.Now()
			if r.machineHalted() != nil {
				s.fail(fatal{r.machineHalted()}) // before there was a session to tell
			}
			select {
			case err = <-s.failed:
			case <-r.stopping:
				r.set(nil, ErrStopped)
				cerr := s.close()
				r.mu.Lock()
				r.stopErr = cerr
				r.mu.Unlock()
				return
			}
			r.report(err)
			if cerr := s.close(); cerr != nil {
				r.cfg.Log.Warn("Raft did not end in order", "error", cerr)
			}
			if time.Since(opened) > goodAfter {
				wait = firstBackoff
			}
		} else {
			r.report(err)
		}
		if isFatal(err) {
			<-r.stopping
			return
		}
		if s, err = r.reopen(&wait); s == nil && err == nil {
			return
		}
	}
}

// reopen waits and opens a session. It returns nothing if Stop was called meanwhile.
func (r *Raft) reopen(wait *time.Duration) (*session, error) {
	t := time.NewTimer(*wait)
	defer t.Stop()
	*wait = min(2**wait, maxBackoff)
	select {
	case <-t.C:
	case <-r.stopping:
		return nil, nil
	}
	err := r.probe()
	if err != nil {
		return nil, err
	}
	s, err := r.openSession()
	if err != nil {
		return nil, err
	}
	r.set(s, nil)
	r.cfg.Log.Info("this manager takes part in Raft again")
	return s, nil
}

// probe finds out whether there is room on the disk. bbolt can open a file on a full disk, only to fail later.
func (r *Raft) probe() error {
	f, err := os.CreateTemp(r.cfg.Dir, "probe-*"+temporary)
	if err != nil {
		return fmt.Errorf("find out whether the disk works: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, probeSize))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("find out whether the disk has room for %d bytes: %w", probeSize, err)
	}
	return nil
}

// report makes a failure known.
func (r *Raft) report(err error) {
	err = fmt.Errorf("this manager takes no part in Raft: %w", err)
	if r.Err() == nil || r.Err().Error() != err.Error() {
		r.cfg.Log.Error("this manager stopped taking part in Raft; forwarding goes on", "error", err, "for good", isFatal(err))
	}
	r.set(nil, err)
	for {
		select {
		case r.failures <- err:
			return
		default:
		}
		select { // make room: the newest one counts
		case <-r.failures:
		default:
		}
	}
}

func (r *Raft) set(s *session, err error) {
	r.mu.Lock()
	r.session, r.err = s, err
	r.mu.Unlock()
	r.tell()
}

// poke wakes the goroutine that waits for c.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (r *Raft) machineHalted() error {
	r.machine.mu.Lock()
	defer r.machine.mu.Unlock()
	return r.machine.halted
}

func (r *Raft) current() *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.session
}

// use returns the session, or why there is none.
func (r *Raft) use() (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == nil {
		return nil, r.err
	}
	return r.session, nil
}

// Err returns why this node takes no part in Raft at the moment; nil if it does.
func (r *Raft) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session != nil {
		return nil
	}
	return r.err
}

// Failed delivers an error each time that this node stops taking part, except by Stop. It takes part again by itself
// when the cause is gone, unless what is on disk is damaged or the FSM could not apply an entry. Only
// the newest error is kept for a slow reader.
func (r *Raft) Failed() <-chan error { return r.failures }

// Stop hands leadership over, if this node leads and ctx leaves time for it, and ends all of it. It closes
// Config.Stream. When ctx ends first, it returns an error, and the end goes on in the background.
func (r *Raft) Stop(ctx context.Context) error {
	if s := r.current(); s != nil && s.isLeader() && s.hasOtherVoters() {
		bounded, cancel := context.WithTimeout(ctx, 2*r.cfg.Timing.Election)
		if err := s.transfer(bounded); err != nil {
			r.cfg.Log.Warn("leadership was not handed over: the other managers elect a leader when they miss this one", "error", err)
		}
		cancel()
	}
	r.stopOnce.Do(func() {
		close(r.stopping)
		_ = r.cfg.Stream.Close()
	})
	select {
	case <-r.done:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.stopErr
	case <-ctx.Done():
		return fmt.Errorf("stop Raft in %s: %w: a write to the disk may hang", r.cfg.Dir, ctx.Err())
	}
}

// HasState says whether this node has a log, a snapshot or a vote.
func (r *Raft) HasState() (bool, error) {
	s, err := r.use()
	if err != nil {
		return false, err
	}
	return raft.HasExistingState(s.store, s.store, s.snaps)
}

// Bootstrap makes this node the first manager, with a vote, of a new cluster. ErrHasState if it is in one.
func (r *Raft) Bootstrap() error {
	s, err := r.use()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = s.await(ctx, func() error {
		return s.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(r.cfg.ID), Address: raft.ServerAddress(r.cfg.Address)}}}).Error()
	})
	if errors.Is(err, raft.ErrCantBootstrap) {
		return ErrHasState
	}
	if err != nil {
		return fmt.Errorf("make this node the first manager: %w", err)
	}
	return nil
}
