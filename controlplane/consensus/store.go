package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// What raft-boltdb and hashicorp/raft call things in the file.
const (
	logBucket    = "logs"
	stableBucket = "conf"
	keyTerm      = "CurrentTerm"
	keyVoteTerm  = "LastVoteTerm"
	keyVoteFor   = "LastVoteCand"
)

// database is what a store keeps entries, term and vote in: raft-boltdb.
type database interface {
	raft.LogStore
	Set(key, value []byte) error
	Get(key []byte) ([]byte, error)
	Close() error
}

// openBolt opens raft.db. A read-only database is not changed, and needs no free list.
func openBolt(path string, readOnly bool) (database, error) {
	db, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{
		Timeout:        lockTimeout,
		NoFreelistSync: true, // it is found again at open; writing it would double what an entry costs
		FreelistType:   bbolt.FreelistMapType,
		ReadOnly:       readOnly,
	}})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, ErrLocked
	}
	if err != nil {
		return nil, err
	}
	return db, nil
}

// checksumSize is how many bytes a checksum adds to an entry or a value.
const checksumSize = 8

var crcTable = crc64.MakeTable(crc64.ECMA)

// entrySum covers all of an entry that Raft depends on, its place in the log included.
func entrySum(l *raft.Log, extensions []byte) []byte {
	var head [25]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(l.Data)))
	sum := crc64.Update(0, crcTable, head[:])
	sum = crc64.Update(sum, crcTable, l.Data)
	sum = crc64.Update(sum, crcTable, extensions)
	return binary.BigEndian.AppendUint64(nil, sum)
}

func valueSum(key, value []byte) []byte {
	sum := crc64.Update(0, crcTable, key)
	return binary.BigEndian.AppendUint64(nil, crc64.Update(sum, crcTable, value))
}

// store is raft.LogStore and raft.StableStore over a database that may fail. After the first failed write, nothing
// is written any more and the session ends: hashicorp/raft is not made to go on after one.
type store struct {
	path string
	db   database

	// live is set once hashicorp/raft runs. From then on an error that it would panic on ends the calling goroutine
	// instead, which is one of hashicorp/raft's.
	live    atomic.Bool
	onFail  func(error)
	covered func() uint64 // index of the newest snapshot: entries up to there need not be in the log

	broken atomic.Bool   // bbolt panicked, and may hold its locks for good: it is not called any more
	broke  chan struct{} // closed then; nil in a store that has one user only
	last   atomic.Uint64 // index
	watch  *diskWatch

	mu      sync.Mutex
	err     error     // of the first failure
	writing int       // writes that are under way: bbolt has them wait for each other
	started time.Time // since when none of them has ended
}

var (
	_ raft.LogStore    = (*store)(nil)
	_ raft.StableStore = (*store)(nil)
)

// abandonAfter is how long a call may go on after another one panicked, which may have left it waiting for a lock for ever.
const abandonAfter = time.Second

// guard is guarded for what returns nothing.
func (s *store) guard(what string, f func() error) error {
	_, err := guarded(s, what, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// guarded calls the database. A panic of bbolt, or a fault because its mapped file cannot be read any more, becomes an
// error, of this call and of all that wait for what the one that panicked holds.
func guarded[T any](s *store, what string, f func() (T, error)) (T, error) {
	var none T
	if s.broken.Load() {
		return none, damaged(s.path, "%s: bbolt panicked before", what)
	}
	if s.broke == nil {
		return call(s, what, f)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := call(s, what, f)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-s.broke:
	}
	select {
	case r := <-done: // it is the one that panicked, or had what it needs
		return r.value, r.err
	case <-time.After(abandonAfter):
		return none, damaged(s.path, "%s: bbolt panicked meanwhile", what)
	}
}

// call is guarded in the calling goroutine.
func call[T any](s *store, what string, f func() (T, error)) (value T, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if !s.broken.Swap(true) && s.broke != nil {
				close(s.broke)
			}
			err = damaged(s.path, "%s: bbolt panicked: %v", what, p)
		}
	}()
	if value, err = f(); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, raftboltdb.ErrKeyNotFound) {
			return value, err
		}
		return value, fmt.Errorf("%s: %s: %w", s.path, what, err)
	}
	return value, nil
}

// write is guard for what changes the file.
func (s *store) write(what string, f func() error) error {
	begin := time.Now()
	s.mu.Lock()
	err := s.err
	if err == nil {
		if s.writing == 0 {
			s.started = begin
		}
		s.writing++
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if s.watch != nil {
		poke(s.watch.began)
	}
	err = s.guard(what, f)
	end := time.Now()
	s.mu.Lock()
	s.writing--
	s.started = end
	s.mu.Unlock()
	if s.watch != nil {
		s.watch.wrote(begin, end)
	}
	if err != nil {
		s.fail(err)
	}
	return err
}

// fail records the first failure and ends the session.
func (s *store) fail(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.mu.Unlock()
	if first && s.onFail != nil {
		s.onFail(err)
	}
}

// close closes the database; calls from then on fail. One that is broken stays open, and locked, until the process ends.
func (s *store) close() error {
	s.mu.Lock()
	if s.err == nil {
		s.err = fmt.Errorf("%s: %w", s.path, ErrStopped)
	}
	s.mu.Unlock()
	if s.broken.Load() {
		return nil
	}
	return s.guard("close", s.db.Close)
}

// FirstIndex implements raft.LogStore.
func (s *store) FirstIndex() (uint64, error) {
	return guarded(s, "find the first entry", func() (uint64, error) { return s.db.FirstIndex() })
}

// LastIndex implements raft.LogStore.
func (s *store) LastIndex() (uint64, error) {
	return guarded(s, "find the last entry", func() (uint64, error) { return s.db.LastIndex() })
}

// GetLog implements raft.LogStore. hashicorp/raft panics if it gets an error for a committed entry; it does not if a
// follower wants one that was compacted, or asks about one that was never there. Only those return an error.
func (s *store) GetLog(index uint64, l *raft.Log) error {
	err := s.entry(index, l)
	if err == nil || !s.live.Load() {
		return err
	}
	if errors.Is(err, raft.ErrLogNotFound) {
		if index > s.last.Load() || index <= s.covered() {
			return err
		}
		err = damaged(s.path, "entry %d is missing", index)
	}
	s.fail(err)
	runtime.Goexit()
	return err
}

// entry reads an entry and checks it.
func (s *store) entry(index uint64, l *raft.Log) error {
	read, err := guarded(s, fmt.Sprintf("read entry %d", index), func() (out raft.Log, err error) {
		err = s.db.GetLog(index, &out)
		return out, err
	})
	*l = read
	if err != nil {
		if _, fromSystem := errors.AsType[syscall.Errno](err); fromSystem || isFatal(err) ||
			errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
			return err
		}
		return damaged(s.path, "entry %d cannot be understood: %v", index, err)
	}
	n := len(l.Extensions) - checksumSize
	if n < 0 || l.Index != index || string(entrySum(l, l.Extensions[:n])) != string(l.Extensions[n:]) {
		return damaged(s.path, "the checksum of entry %d is wrong", index)
	}
	l.Extensions = l.Extensions[:n:n]
	return nil
}

// StoreLog implements raft.LogStore.
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		c := *l // the caller's stays as it is: it goes to the followers and to the FSM
		c.Extensions = append(append(make([]byte, 0, len(l.Extensions)+checksumSize), l.Extensions...), entrySum(l, l.Extensions)...)
		sealed[i] = &c
	}
	err := s.write("append to the log", func() error { return s.db.StoreLogs(sealed) })
	if err == nil {
		s.last.Store(logs[len(logs)-1].Index)
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (s *store) DeleteRange(from, to uint64) error {
	return s.write("shorten the log", func() error {
		if err := s.db.DeleteRange(from, to); err != nil {
			return err
		}
		if to >= s.last.Load() {
			last, err := s.db.LastIndex()
			if err != nil {
				return err
			}
			s.last.Store(last)
		}
		return nil
	})
}

// Set implements raft.StableStore. hashicorp/raft panics if it cannot save its term; a goroutine that was about to
// ends here instead.
func (s *store) Set(key, value []byte) error {
	sealed := append(append(make([]byte, 0, len(value)+checksumSize), value...), valueSum(key, value)...)
	err := s.write(fmt.Sprintf("save %s", key), func() error { return s.db.Set(key, sealed) })
	if err != nil && s.live.Load() && string(key) == keyTerm {
		runtime.Goexit()
	}
	return err
}

// Get implements raft.StableStore.
func (s *store) Get(key []byte) ([]byte, error) {
	value, err := guarded(s, fmt.Sprintf("read %s", key), func() ([]byte, error) { return s.db.Get(key) })
	if err != nil {
		return nil, err
	}
	n := len(value) - checksumSize
	if n < 0 || string(valueSum(key, value[:n])) != string(value[n:]) {
		err := damaged(s.path, "the checksum of %s is wrong", key)
		if s.live.Load() {
			s.fail(err)
		}
		return nil, err
	}
	return value[:n], nil
}

// SetUint64 implements raft.StableStore.
func (s *store) SetUint64(key []byte, v uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, v))
}

// GetUint64 implements raft.StableStore. A key that is not there gives the error "not found", by which hashicorp/raft
// knows it.
func (s *store) GetUint64(key []byte) (uint64, error) {
	b, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, damaged(s.path, "%s has %d bytes, not 8", key, len(b))
	}
	return binary.BigEndian.Uint64(b), nil
}
