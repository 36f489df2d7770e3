package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketMode    fs.FileMode = 0o660 // of the socket: owner and group
	directoryMode fs.FileMode = 0o750 // of its directory, if it has to be made

	// maxSocketPath is the longest path of a socket in bytes: sun_path holds 108 with the NUL (unix(7)).
	maxSocketPath = 107

	// claimTimeout bounds the wait for another daemon that is claiming a socket in the same directory. A
	// claim takes well under a millisecond.
	claimTimeout = 2 * time.Second
	// probeTimeout bounds the connection to a socket that may be live.
	probeTimeout = 2 * time.Second
)

// Socket is a unix socket that this process listens on. Make one with Listen; give it to Server.Serve, or
// call Close.
type Socket struct {
	path   string
	ln     *net.UnixListener
	file   fs.FileInfo // of the socket as it was made, to know it again
	made   string      // the directory that Listen made, "" if it was there
	closed sync.Once
}

// Listen claims the path for this process. It makes the directory of the path if there is none, takes over
// a socket file whose daemon is gone, and refuses, naming the process, when a live one holds it. Nothing is
// left behind on an error.
func Listen(path string) (*Socket, error) {
	s, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen on the API socket %s: %w", path, err)
	}
	return s, nil
}

func listen(path string) (_ *Socket, err error) {
	if len(path) == 0 || len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, a socket's has 1 to %d: choose another one", len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	s := &Socket{path: path}
	if err := os.Mkdir(dir, directoryMode); err == nil {
		s.made = dir
	} else if !errors.Is(err, fs.ErrExist) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("neither %s nor the directory above it exists: create it, or choose another socket", dir)
		}
		return nil, fmt.Errorf("create its directory: %w", err)
	}
	defer func() {
		if err != nil && s.made != "" {
			_ = os.Remove(s.made)
		}
	}()

	// Two daemons that start at once must not both find a stale file and remove each other's socket.
	unlock, err := lockDirectory(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}

	// The mode is set on the socket before bind gives it a name, so that there is no moment in which the
	// file can be opened by more than owner and group. bind takes the umask off; the chmod puts it back.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(socketMode)) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	s.ln = ln.(*net.UnixListener)
	s.ln.SetUnlinkOnClose(false) // Close does it, and only if the file is still ours
	if err = os.Chmod(path, socketMode); err == nil {
		s.file, err = os.Lstat(path)
	}
	if err != nil {
		_ = s.ln.Close()
		_ = os.Remove(path)
		return nil, err
	}
	return s, nil
}

// Path returns what Listen was called with.
func (s *Socket) Path() string { return s.path }

// Close ends listening and removes the socket file, unless somebody put another one there, and the
// directory if Listen made it and it is empty. It may be called more than once.
func (s *Socket) Close() error {
	var err error
	s.closed.Do(func() {
		// The name goes before the listener: nobody shall find a file that refuses.
		if now, serr := os.Lstat(s.path); serr == nil && os.SameFile(now, s.file) {
			err = os.Remove(s.path)
		}
		if cerr := s.ln.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
		if s.made != "" {
			_ = os.Remove(s.made) // fails, as it should, if something else is in it
		}
	})
	if err != nil {
		return fmt.Errorf("close the API socket %s: %w", s.path, err)
	}
	return nil
}

// lockDirectory takes the exclusive lock of a directory, which is advisory and needs no file of its own.
func lockDirectory(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && !st.IsDir() {
		_ = f.Close()
		return nil, fmt.Errorf("%s is not a directory: choose another socket", dir)
	}
	deadline := time.Now().Add(claimTimeout)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // the lock goes with the last descriptor
		}
		if err != unix.EINTR && (err != unix.EWOULDBLOCK || time.Now().After(deadline)) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w; another process holds the lock, see `lslocks`", dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// removeStale removes a socket file that nobody listens on. It is an error if somebody does, or if the
// file is not a socket.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is not a socket is in the way: remove it, or choose another socket")
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	switch {
	case err == nil:
		defer conn.Close()
		return fmt.Errorf("%s listens on it already: stop that process, or choose another socket", listener(conn))
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	default:
		return fmt.Errorf("find out whether a daemon still uses it: %w", err)
	}
}

// listener names the process that called listen on the other end of a unix connection.
func listener(conn net.Conn) string {
	const unknown = "another process"
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return unknown
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil || cred.Pid == 0 {
		return unknown
	}
	name := "process " + strconv.Itoa(int(cred.Pid))
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid)); err == nil {
		name += " (" + strings.TrimSpace(string(comm)) + ")"
	}
	return name
}
