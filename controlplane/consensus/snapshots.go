package consensus

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// The names that hashicorp/raft gives.
const (
	snapshotDir   = "snapshots"
	temporary     = ".tmp"
	metaName      = "meta.json"
	stateName     = "state.bin"
	asideDir      = "set-aside"
	preambleMagic = "OVLSNAP1"
)

// snapshots is raft.SnapshotStore over files. In front of the state it writes a preamble with what meta.json says,
// because hashicorp/raft covers only the state by a checksum: a digit changed in the index would go unnoticed.
//
// The preamble is "OVLSNAP1", then big endian: index 8, term 8, index of the configuration 8, length 4, and the
// configuration as hashicorp/raft encodes it.
type snapshots struct {
	raft.SnapshotStore
	dir    string // that of the Raft
	newest atomic.Uint64
	// replacing is set while a backup is restored: hashicorp/raft panics if it cannot open the snapshot then.
	replacing atomic.Bool
}

var _ raft.SnapshotStore = (*snapshots)(nil)

func openSnapshots(dir string, log hclog.Logger) (*snapshots, error) {
	path := filepath.Join(dir, snapshotDir)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for snapshots: %w", err)
	}
	// hashicorp/raft never removes what was not finished when the process ended.
	old, err := filepath.Glob(filepath.Join(path, "*"+temporary))
	if err != nil {
		return nil, err
	}
	for _, d := range old {
		if err := os.RemoveAll(d); err != nil {
			return nil, fmt.Errorf("remove an unfinished snapshot: %w", err)
		}
	}
	fs, err := raft.NewFileSnapshotStoreWithLogger(dir, keptSnapshots, log)
	if err != nil {
		return nil, fmt.Errorf("open the directory for snapshots %s: %w", path, err)
	}
	return &snapshots{SnapshotStore: fs, dir: dir}, nil
}

func preamble(m *raft.SnapshotMeta) []byte {
	conf := raft.EncodeConfiguration(m.Configuration)
	b := []byte(preambleMagic)
	b = binary.BigEndian.AppendUint64(b, m.Index)
	b = binary.BigEndian.AppendUint64(b, m.Term)
	b = binary.BigEndian.AppendUint64(b, m.ConfigurationIndex)
	b = binary.BigEndian.AppendUint32(b, uint32(len(conf)))
	return append(b, conf...)
}

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	if _, err := sink.Write(preamble(&raft.SnapshotMeta{Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex})); err != nil {
		_ = sink.Cancel()
		return nil, err
	}
	return &countedSink{SnapshotSink: sink, index: index, to: s}, nil
}

// countedSink notes the index of a snapshot when it is complete.
type countedSink struct {
	raft.SnapshotSink
	index uint64
	to    *snapshots
}

func (c *countedSink) Close() error {
	if err := c.SnapshotSink.Close(); err != nil {
		return err
	}
	c.to.noteNewest(c.index)
	return nil
}

func (s *snapshots) noteNewest(index uint64) {
	for {
		old := s.newest.Load()
		if index <= old || s.newest.CompareAndSwap(old, index) {
			return
		}
	}
}

// openSnapshot is a snapshot that is being read, from behind its preamble.
type openSnapshot struct {
	io.ReadCloser
	id          string
	index, term uint64
}

// Open implements raft.SnapshotStore. The size that it returns is that of the state alone, which is what is sent
// to a follower.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, r, err := s.open(id)
	if err != nil && s.replacing.Load() {
		// The FSM refuses this one, which is something that can be dealt with.
		return &raft.SnapshotMeta{ID: id}, &openSnapshot{ReadCloser: io.NopCloser(failing{err}), id: id, index: ^uint64(0)}, nil
	}
	return m, r, err
}

// failing is a reader that cannot be read.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (s *snapshots) open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	want := preamble(m)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) || m.ID != id {
		_ = r.Close()
		return nil, nil, damaged(filepath.Join(s.dir, snapshotDir, id, metaName), "it does not belong to the state beside it")
	}
	m.Size -= int64(len(want))
	return m, &openSnapshot{ReadCloser: r, id: id, index: m.Index, term: m.Term}, nil
}

// found is a directory that holds a snapshot, or what is left of one.
type found struct {
	id          string
	index, term uint64 // by its name
	err         error  // what is wrong with it
}

// scan looks at all snapshots and reads them to the end.
func (s *snapshots) scan() ([]found, error) {
	dirs, err := os.ReadDir(filepath.Join(s.dir, snapshotDir))
	if err != nil {
		return nil, fmt.Errorf("look for snapshots: %w", err)
	}
	var all []found
	for _, d := range dirs {
		f := found{id: d.Name()}
		parts := strings.Split(f.id, "-")
		if !d.IsDir() || strings.HasSuffix(f.id, temporary) || len(parts) != 3 {
			continue
		}
		var terr, ierr error
		f.term, terr = strconv.ParseUint(parts[0], 10, 64)
		f.index, ierr = strconv.ParseUint(parts[1], 10, 64)
		if terr != nil || ierr != nil {
			continue
		}
		f.err = s.check(f)
		all = append(all, f)
	}
	return all, nil
}

// check reads a snapshot.
func (s *snapshots) check(f found) error {
	dir := filepath.Join(s.dir, snapshotDir, f.id)
	var m struct {
		raft.SnapshotMeta
		CRC []byte
	}
	b, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return damaged(filepath.Join(dir, metaName), "it cannot be read: %v", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return damaged(filepath.Join(dir, metaName), "it cannot be understood: %v", err)
	}
	if m.ID != f.id || m.Index != f.index || m.Term != f.term || m.Version != raft.SnapshotVersionMax {
		return damaged(filepath.Join(dir, metaName), "it describes another snapshot")
	}
	file, err := os.Open(filepath.Join(dir, stateName))
	if err != nil {
		return damaged(filepath.Join(dir, stateName), "it cannot be read: %v", err)
	}
	defer file.Close()
	sum := crc64.New(crcTable)
	n, err := io.Copy(sum, file)
	switch {
	case err != nil:
		return damaged(file.Name(), "it cannot be read: %v", err)
	case n != m.Size:
		return damaged(file.Name(), "it has %d bytes, not %d", n, m.Size)
	case !bytes.Equal(sum.Sum(nil), m.CRC):
		return damaged(file.Name(), "its checksum is wrong")
	}
	_, r, err := s.Open(f.id)
	if err != nil {
		return err
	}
	return r.Close()
}

// setAside takes a snapshot that cannot be used out of the way of hashicorp/raft.
func (s *snapshots) setAside(id string) error {
	to := filepath.Join(s.dir, asideDir)
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return os.Rename(filepath.Join(s.dir, snapshotDir, id), filepath.Join(to, id))
}

// checkContent checks all entries and snapshots. What the log needs and does not have is damage; so is a snapshot that
// cannot be read, unless an older one and the log together hold what was in it: then it is set aside.
func checkContent(st *store, sn *snapshots, log *slog.Logger) error {
	all, err := sn.scan()
	if err != nil {
		return err
	}
	var base uint64 // index of the newest good snapshot
	var need found  // the damaged one with the highest index above that
	for _, f := range all {
		if f.err == nil {
			base = max(base, f.index)
		}
	}
	for _, f := range all {
		if f.err != nil && f.index > max(base, need.index) {
			need = f
		}
	}
	last, err := checkEntries(st, base)
	if err != nil {
		if need.err != nil {
			return errors.Join(need.err, err)
		}
		return err
	}
	if need.err != nil && last < need.index {
		return need.err
	}
	for _, f := range all {
		if f.err == nil {
			continue
		}
		log.Error("a snapshot is damaged; the one before and the log hold all of it, so it is set aside", "snapshot", f.id, "error", f.err)
		if err := sn.setAside(f.id); err != nil {
			return fmt.Errorf("set the damaged snapshot %s aside: %w", f.id, err)
		}
	}
	sn.noteNewest(base)
	st.last.Store(last)
	return nil
}

// checkEntries reads all entries. Those after base, the index of a snapshot, have to be complete. It returns the index
// of the last one.
func checkEntries(st *store, base uint64) (last uint64, err error) {
	first, err := st.FirstIndex()
	if err != nil {
		return 0, err
	}
	if last, err = st.LastIndex(); err != nil {
		return 0, err
	}
	if last > 0 && last > base && first > base+1 {
		return 0, damaged(st.path, "it begins with entry %d, but the newest snapshot that can be used ends at %d", first, base)
	}
	var l raft.Log
	for i := first; i <= last && last > 0; i++ {
		switch err := st.entry(i, &l); {
		case errors.Is(err, raft.ErrLogNotFound) && i > base:
			return 0, damaged(st.path, "entry %d is missing", i)
		case errors.Is(err, raft.ErrLogNotFound):
			// Restoring a backup leaves a hole, which the snapshot covers.
		case err != nil:
			return 0, err
		}
	}
	for _, key := range []string{keyTerm, keyVoteTerm, keyVoteFor} {
		if _, err := st.Get([]byte(key)); err != nil && err.Error() != "not found" {
			return 0, err
		}
	}
	if term, err := st.GetUint64([]byte(keyTerm)); last > 0 && (err != nil || term < l.Term) {
		return 0, damaged(st.path, "the log has entries of term %d, but this node's term is not that far", l.Term)
	}
	return last, nil
}
