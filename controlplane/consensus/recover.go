package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

const damagedSuffix = ".damaged"

// Recover makes this node the only server, with a vote, of its cluster, for when so many managers are lost for good that
// no leader can be elected. It keeps the snapshot and the log, which become one new snapshot; entries that were never
// committed take effect too. What the log holds behind a damaged place is lost; then the old
// file stays as raft.db.damaged. fsm has to be empty, and must not be used afterwards. No process may use the directory.
//
// The other managers must not come back with their old directories: they would elect a leader among themselves.
func Recover(dir string, self Server, fsm FSM) error {
	if err := recoverAlone(dir, self, fsm); err != nil {
		return fmt.Errorf("recover the cluster from %s: %w", dir, err)
	}
	return nil
}

func recoverAlone(dir string, self Server, fsm FSM) (err error) {
	if self.ID == "" || fsm == nil {
		return errors.New("the ID of this node or the FSM is missing")
	}
	if err := checkAddress(self.Address); err != nil {
		return err
	}
	if !self.Voter {
		return errors.New("the only server of a cluster has to be a voter")
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return fmt.Errorf("this node was no manager: there is no such directory (%v)", err)
	}
	path := filepath.Join(dir, "raft.db")
	unlock, err := lockExisting(path)
	if err != nil {
		return err
	}
	defer unlock()

	cfg := Config{ID: self.ID, Dir: dir, Address: self.Address, FSM: fsm, Log: slog.Default()}
	cfg.Stream = deaf{}
	if err := cfg.complete(); err != nil {
		return err
	}
	conf := cfg.raftConfig()
	sn, err := openSnapshots(dir, conf.Logger)
	if err != nil {
		return err
	}
	base, err := sn.usable()
	if err != nil {
		return err
	}
	fresh := path + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	defer os.Remove(fresh) // no longer there after success
	lost, err := salvage(path, fresh, base)
	if err != nil {
		return err
	}
	if err := recoverInto(fresh, self, fsm, conf, sn); err != nil {
		return err
	}
	if lost != nil {
		why := lost.Error()
		if d, ok := errors.AsType[*DamagedError](lost); ok {
			why = d.What
		}
		cfg.Log.Warn("part of the log could not be read and is lost", "file", path, "why", why, "kept as", path+damagedSuffix)
		if err := os.Rename(path, path+damagedSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// Until here the old log and the new snapshot lay side by side, which is as good: the snapshot holds all
	// of the log, and the servers that count are those in the snapshot.
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(dir)
}

// lockExisting takes the lock of raft.db, if it is there.
func lockExisting(path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	// Shared, because it is opened for reading once more below.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// usable sets damaged snapshots aside and returns the newest good one.
func (s *snapshots) usable() (newest found, err error) {
	all, err := s.scan()
	if err != nil {
		return found{}, err
	}
	var bad []found
	for _, f := range all {
		switch {
		case f.err != nil:
			bad = append(bad, f)
		case f.index > newest.index:
			newest = f
		}
	}
	for _, f := range bad {
		if newest.id == "" {
			return found{}, fmt.Errorf("no snapshot can be used: %w", f.err)
		}
		slog.Warn("a snapshot cannot be used and is set aside", "snapshot", f.id, "error", f.err)
		if err := s.setAside(f.id); err != nil {
			return found{}, fmt.Errorf("set a damaged snapshot aside: %w", err)
		}
	}
	return newest, nil
}

// salvage copies the entries after a snapshot, up to the first that cannot be read, and the term and the vote, to a
// new file. lost says what could not be read.
func salvage(from, to string, base found) (lost, err error) {
	raw, err := openBolt(to, false)
	if err != nil {
		return nil, err
	}
	out := &store{path: to, db: raw}
	defer func() { err = errors.Join(err, out.close()) }()
	term := base.term
	in := &store{path: from}
	if st, err := os.Stat(from); err == nil && st.Size() > 0 {
		whole := checkWhole(from, st.Size())
		err := in.guard("open", func() (err error) { in.db, err = openBolt(from, true); return err })
		if err != nil {
			lost = err
		} else {
			defer in.close()
			term, lost, err = copyEntries(in, out, base)
			if err != nil {
				return nil, err
			}
			if lost == nil {
				lost = whole // what was found is good, but there may have been more
			}
		}
	}
	if have, err := in.savedTerm(); err == nil {
		term = max(term, have)
	}
	if term == 0 {
		if lost != nil {
			return nil, fmt.Errorf("nothing in it can be used: %w", lost)
		}
		return nil, errors.New("this node was no manager: it has neither a log nor a snapshot")
	}
	// A vote in this term does not matter any more: nobody else takes part, and the next term is a new one.
	return lost, out.SetUint64([]byte(keyTerm), term)
}

func checkWhole(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := checkPages(f, size); err != nil {
		return damaged(path, "%v", err)
	}
	return nil
}

func (s *store) savedTerm() (uint64, error) {
	if s.db == nil {
		return 0, ErrStopped
	}
	return s.GetUint64([]byte(keyTerm))
}

func copyEntries(in, out *store, base found) (term uint64, lost, err error) {
	term = base.term
	last, lost := in.LastIndex()
	for i := base.index + 1; lost == nil && i <= last; i++ {
		var l raft.Log
		if lost = in.entry(i, &l); lost != nil {
			break
		}
		if l.Term < term {
			lost = damaged(in.path, "entry %d has term %d after one of term %d", i, l.Term, term)
			break
		}
		if err := out.StoreLog(&l); err != nil {
			return 0, nil, err
		}
		term = l.Term
	}
	return term, lost, nil
}

// recoverInto makes a snapshot of everything, with one server.
func recoverInto(path string, self Server, fsm FSM, conf *raft.Config, sn *snapshots) error {
	raw, err := openBolt(path, false)
	if err != nil {
		return err
	}
	st := &store{path: path, db: raw}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(self.Address)) // only names addresses
	m := &machine{fsm: fsm}
	defer trans.Close()
	err = raft.RecoverCluster(conf, m, st, st, sn, trans, raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(self.ID), Address: raft.ServerAddress(self.Address)}}})
	return errors.Join(err, m.refusal(), st.close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// deaf is the stream layer of a Raft that never runs.
type deaf struct{ StreamLayer }
