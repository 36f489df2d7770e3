package consensus

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A backup is, in this order:
//
//	overlayd backup 1\n
//	index N term N length N\n   decimal, with single spaces
//	the state                   length bytes
//	SHA-256                     32 bytes, of all before
const (
	backupMagic    = "overlayd backup "
	backupVersion  = 1
	backupHeader   = "index %d term %d length %d\n"
	maxHeader      = 128 // bytes of each of its lines
	restorePattern = "restore-*" + temporary
)

// Backup writes the state with a checksum. It holds all that this node has applied, which on the leader is all that was
// acknowledged, and elsewhere may be a moment behind. It works without a quorum too.
func (r *Raft) Backup(ctx context.Context, w io.Writer) error {
	s, index, term, err := r.machine.freeze()
	if err != nil {
		return fmt.Errorf("back up the state: %w", err)
	}
	defer release(s)
	if index == 0 {
		return errors.New("back up the state: there is none yet")
	}
	write := func(w io.Writer) (n int64, err error) {
		err = guardFSM("write the state", func() error { n, err = s.WriteTo(unlessDone{ctx, w}); return err })
		return n, err
	}
	length, err := write(io.Discard) // the length comes first, and the state may be too large for memory
	if err != nil {
		return fmt.Errorf("back up the state: %w", err)
	}
	sum := sha256.New()
	out := bufio.NewWriter(io.MultiWriter(w, sum))
	fmt.Fprintf(out, "%s%d\n"+backupHeader, backupMagic, backupVersion, index, term, length)
	n, err := write(out)
	if err == nil && n != length {
		err = fmt.Errorf("it was written twice and had %d bytes, then %d, which is a bug", length, n)
	}
	if err == nil {
		err = out.Flush()
	}
	if err == nil {
		_, err = w.Write(sum.Sum(nil))
	}
	if err != nil {
		return fmt.Errorf("back up the state: %w", err)
	}
	return nil
}

// unlessDone writes until its context ends.
type unlessDone struct {
	ctx context.Context
	w   io.Writer
}

func (u unlessDone) Write(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.w.Write(b)
}

// readBackup copies the state out of a backup and verifies all of it.
func readBackup(in io.Reader, state io.Writer) (m raft.SnapshotMeta, err error) {
	sum := sha256.New()
	r := bufio.NewReader(in)
	line := func() (string, error) {
		var b []byte
		for len(b) < maxHeader {
			c, err := r.ReadByte()
			if err != nil {
				return "", fmt.Errorf("it ends in its header: %w", noEOF(err))
			}
			b = append(b, c)
			if c == '\n' {
				sum.Write(b)
				return string(b), nil
			}
		}
		return "", errors.New("it is no backup of overlayd")
	}
	first, err := line()
	if err != nil {
		return m, err
	}
	var version int
	if n, err := fmt.Sscanf(first, backupMagic+"%d\n", &version); n != 1 || err != nil {
		return m, errors.New("it is no backup of overlayd")
	}
	if version != backupVersion {
		return m, fmt.Errorf("it has format %d and this version of overlayd reads %d: use the version that wrote it, or a newer one", version, backupVersion)
	}
	second, err := line()
	if err != nil {
		return m, err
	}
	if n, err := fmt.Sscanf(second, backupHeader, &m.Index, &m.Term, &m.Size); n != 3 || err != nil || m.Size < 0 || m.Index == 0 || m.Term == 0 {
		return m, errors.New("its header cannot be understood")
	}
	n, err := io.Copy(io.MultiWriter(state, sum), io.LimitReader(r, m.Size))
	if err != nil {
		return m, err
	}
	if n != m.Size {
		return m, fmt.Errorf("it is cut off: it holds %d bytes of the state, and there are %d", n, m.Size)
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, want); err != nil {
		return m, fmt.Errorf("it is cut off in its checksum: %w", noEOF(err))
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return m, errors.New("its checksum is wrong: it was changed or damaged")
	}
	if _, err := r.ReadByte(); err != io.EOF {
		return m, errors.New("there is more behind its end: it was changed or damaged")
	}
	m.Version = raft.SnapshotVersionMax
	return m, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Restore replaces the state on all managers by that of a backup. The servers stay those of this cluster. Only the
// leader can. The backup is read and verified before anything is changed; it lies in Config.Dir meanwhile. Proposals
// that are under way end with ErrUnknownOutcome. If ctx ends while the managers change over, so does Restore.
func (r *Raft) Restore(ctx context.Context, in io.Reader) error {
	if err := r.restore(ctx, in); err != nil {
		return fmt.Errorf("restore a backup: %w", err)
	}
	return nil
}

func (r *Raft) restore(ctx context.Context, in io.Reader) error {
	s, err := r.use()
	if err != nil {
		return err
	}
	if !s.isLeader() {
		return r.notLeader()
	}
	f, err := os.CreateTemp(r.cfg.Dir, restorePattern) // mode 0600
	if err != nil {
		return err
	}
	m, err := readBackup(in, f)
	if err == nil && r.cfg.Check != nil {
		if _, err = f.Seek(0, io.SeekStart); err == nil {
			err = guardFSM("check the state", func() error { return r.cfg.Check(bufio.NewReader(f)) })
		}
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return errors.Join(err, discard(f))
	}
	// From here on the file belongs to the call, which may go on after ctx has ended.
	return r.outcome(s.await(ctx, func() error {
		return errors.Join(s.replaceState(&m, f, patience(ctx)), discard(f))
	}))
}

func discard(f *os.File) error {
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// replaceState has hashicorp/raft take a state over as a snapshot. That panics if it is shut down, or if the FSM or the
// disk fails, between the moment when it begins to read the state and the one when the FSM has it.
func (s *session) replaceState(meta *raft.SnapshotMeta, f *os.File, wait time.Duration) error {
	m := s.r.machine
	in := &beginning{r: f}
	// The state gets the index behind all that there is when it begins to be read.
	in.begin = func() { in.index.Store(max(meta.Index, s.raft.LastIndex()) + 1) }
	s.restoreMu.Lock()
	if s.restoring != nil {
		s.restoreMu.Unlock()
		return errors.New("another backup is being restored: try again when that has ended")
	}
	s.restoring = func() bool { return s.raft.AppliedIndex() < in.index.Load() }
	s.restoreMu.Unlock()
	m.replace(func(id string, err error) {
		s.store.fail(fatal{err}) // nothing is appended behind a state that nobody has
		if aside := s.snaps.setAside(id); aside != nil {
			s.r.cfg.Log.Error("a backup that cannot be used stays among the snapshots", "snapshot", id, "error", aside)
		}
	})
	s.snaps.replacing.Store(true)
	defer func() {
		s.snaps.replacing.Store(false)
		m.replace(nil)
		s.restoreMu.Lock()
		s.restoring = nil
		s.restoreMu.Unlock()
	}()
	err := s.raft.Restore(meta, in, wait)
	if halted := s.r.machineHalted(); halted != nil {
		return halted
	}
	return err
}

// beginning tells when a reader is read for the first time.
type beginning struct {
	r     io.Reader
	begin func() // nil after the first read
	index atomic.Uint64
}

func (b *beginning) Read(p []byte) (int, error) {
	if b.begin != nil {
		b.begin()
		b.begin = nil
	}
	return b.r.Read(p)
}
