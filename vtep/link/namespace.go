//go:build linux

package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/netname"
)

// ErrNoNamespace means that there is no network namespace of that name or at that path.
var ErrNoNamespace = errors.New("no such network namespace")

// Namespace is an open network namespace, which exists at least until Close.
type Namespace struct {
	id   uint64
	path string

	mu sync.RWMutex // held for reading while fd is used
	fd int          // -1 once closed
}

// OpenNamespace opens a network namespace by its name, as `ip netns` shows it, or by a path such as
// /proc/4711/ns/net. The error wraps ErrNoNamespace if there is none.
func OpenNamespace(nameOrPath string) (*Namespace, error) {
	var n *Namespace
	var err error
	switch {
	case nameOrPath == "" || strings.ContainsRune(nameOrPath, 0):
		return nil, fmt.Errorf("open network namespace %q: %w: state a name or a path", nameOrPath, ErrNoNamespace)
	case nameOrPath == ".", nameOrPath == "..":
		return nil, fmt.Errorf("open network namespace %q: %w: that is a folder", nameOrPath, ErrNoNamespace)
	case !strings.ContainsRune(nameOrPath, '/'):
		n, err = openNamed(nameOrPath)
	case !filepath.IsAbs(nameOrPath):
		return nil, fmt.Errorf("open network namespace %q: %w: a path must be absolute", nameOrPath, ErrNoNamespace)
	default:
		n, err = openNamespace(nameOrPath)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace %q: %w: see `ip netns`, or state a path such as /proc/PID/ns/net", nameOrPath, err)
	}
	return n, nil
}

// openNamed opens the network namespace that has a name: here, or in the mount namespace in which names last, should
// ours not listen to that.
func openNamed(name string) (*Namespace, error) {
	path := filepath.Join(netname.Dir, name)
	n, err := openNamespace(path)
	if errors.Is(err, ErrNoNamespace) {
		if root, ok := netname.Elsewhere(); ok {
			if n, err := openNamespace(root + path); err == nil {
				return n, nil
			}
		}
	}
	return n, err
}

// openNamespace opens what is at path if it is a network namespace. That is looked at before it is opened, since to
// open a FIFO or a device may do anything.
func openNamespace(path string) (*Namespace, error) {
	var fs unix.Statfs_t
	switch err := unix.Statfs(path, &fs); err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ESRCH:
		return nil, fmt.Errorf("%w: nothing is at %s", ErrNoNamespace, path)
	default:
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%w: %s is no namespace", ErrNoNamespace, path)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.Join(fmt.Errorf("%w: %s is a namespace of another kind", ErrNoNamespace, path), unix.Close(fd))
	}
	n := &Namespace{fd: fd, path: path}
	if err := n.Do(func() (err error) { n.id, err = NamespaceID(); return err }); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// ID names the namespace: no other has the same until the host starts anew.
func (n *Namespace) ID() uint64 { return n.id }

// NamespaceID returns the ID of the namespace that the calling thread is in.
func NamespaceID() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("name the network namespace: make a socket: %w", err)
	}
	defer unix.Close(fd)
	id, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err == nil {
		return id, nil
	}
	// Before Linux 5.14 the number of its inode has to do, which is given to another once this one is gone.
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("name the network namespace: %w", err)
	}
	return st.Ino, nil
}

// Do calls f on a thread that is in the namespace, and returns its error. What f starts must not outlive it.
func (n *Namespace) Do(f func() error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.fd < 0 {
		return fmt.Errorf("enter network namespace %s: %w", n.path, os.ErrClosed)
	}
	return onThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w%s", n.path, err, privilegeHint(err))
		}
		return f()
	})
}

// Close lets go of the namespace. Further calls do nothing.
func (n *Namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return nil
	}
	fd := n.fd
	n.fd = -1
	return unix.Close(fd)
}

// onThread calls f on a thread of its own, whose network namespace f may change. The thread is given back once it is
// where it was, and otherwise ends with its goroutine.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("remember the network namespace of this thread: %w", err)
			return
		}
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
		result <- err
	}()
	return <-result
}

// privilegeHint says what the operator can do about a refusal.
func privilegeHint(err error) string {
	if errors.Is(err, unix.EPERM) {
		return ": run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN"
	}
	return ""
}
