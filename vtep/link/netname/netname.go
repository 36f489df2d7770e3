//go:build linux

package netname

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where the names are.
const Dir = "/run/netns"

// Lock keeps other processes from looking for names and making some until the returned function is called.
func Lock() (unlock func(), err error) {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of named network namespaces: %w", err)
	}
	fd, err := unix.Open(Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", Dir, err)
	}
	for {
		err = unix.Flock(fd, unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lock %s: %w", Dir, err)
	}
	return func() { unix.Close(fd) }, nil
}

// Make makes a network namespace with a name, which must be new. The calling thread stays where it is. The devices of the
// namespace, which are loopback and what some drivers add, are down.
func Make(name string) error {
	err := onSpentThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		unlock, err := Lock()
		if err != nil {
			return err
		}
		defer unlock()
		if _, err := os.Lstat(filepath.Join(Dir, name)); !errors.Is(err, os.ErrNotExist) {
			return errors.Join(unix.EEXIST, err)
		}
		return Set(fd, name)
	})
	if err != nil {
		return fmt.Errorf("make the network namespace %s: %w", name, err)
	}
	return nil
}

// Set gives the network namespace that fd is open on a name. What is left under the name goes.
func Set(fd int, name string) error {
	target := filepath.Join(Dir, name)
	return whereNamesLast(func() error {
		if err := shareNames(); err != nil {
			return err
		}
		if err := unmount(target); err != nil {
			return err
		}
		f, err := unix.Open(target, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("make %s: %w", target, err)
		}
		unix.Close(f)
		if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", fd), target, "none", unix.MS_BIND, ""); err != nil {
			return errors.Join(fmt.Errorf("mount it: %w", err), unix.Unlink(target))
		}
		return nil
	})
}

// Clear takes a name away. It is no error if there is none. The namespace ends when nothing uses it any more.
func Clear(name string) error {
	return whereNamesLast(func() error { return unmount(filepath.Join(Dir, name)) })
}

func unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: nothing is mounted there
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	if err := unix.Unlink(target); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", target, err)
	}
	return nil
}

// shareNames makes mounts in /run/netns show in all mount namespaces, as `ip netns` does.
func shareNames() error {
	err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // it is no mount yet
		if err = unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s with all mount namespaces: %w", Dir, err)
	}
	return nil
}

// whereNamesLast calls f in the mount namespace in which names last.
func whereNamesLast(f func() error) error {
	_, ns, ok := lasting()
	if !ok {
		return f()
	}
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return f() // the process has ended
	}
	defer unix.Close(fd)
	moved := false
	err = onSpentThread(func() error {
		// A thread shares its root and working directory with all others, until it is told not to.
		if unix.Unshare(unix.CLONE_FS) != nil || unix.Setns(fd, unix.CLONE_NEWNS) != nil {
			return nil
		}
		moved = true
		return f()
	})
	if !moved {
		return f()
	}
	return err
}

// Elsewhere returns the root folder of a process that sees names which last, if those that this process sees might not be among
// them.
func Elsewhere() (root string, ok bool) {
	root, _, ok = lasting()
	return root, ok
}

// lasting finds a process in a mount namespace that outlives this process, and other than ours. It returns paths
// to its root and to that namespace; ok is false if there is none, or ours will do.
func lasting() (root, ns string, ok bool) {
	if shared, _ := propagation("self"); shared {
		return "", "", false // mounts reach the others from here
	}
	for pid := range processes() {
		proc := "/proc/" + pid
		shared, follows := propagation(pid)
		if !sameFile(proc+"/root"+Dir, Dir) || follows && !shared {
			continue
		}
		if sameFile(proc+"/ns/mnt", "/proc/self/ns/mnt") {
			return "", "", false
		}
		return proc + "/root", proc + "/ns/mnt", true
	}
	return "", "", false
}

// processes yields process 1, those that we descend from, from the first on, and then all others.
func processes() iter.Seq[string] {
	return func(yield func(pid string) bool) {
		if !yield("1") {
			return
		}
		var line []string
		for pid := parent("self"); pid != "" && pid != "0" && pid != "1"; pid = parent(pid) {
			line = append(line, pid)
		}
		for _, pid := range slices.Backward(line) {
			if !yield(pid) {
				return
			}
		}
		all, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		for _, e := range all {
			if _, err := strconv.Atoi(e.Name()); err == nil && !slices.Contains(line, e.Name()) && !yield(e.Name()) {
				return
			}
		}
	}
}

// parent returns the number of the parent of a process, or "".
func parent(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strings.TrimSpace(n)
		}
	}
	return ""
}

// propagation says of the mount that has /run/netns, as a process sees it, whether what is mounted there shows
// elsewhere, and whether it shows what is mounted elsewhere (proc_pid_mountinfo(5)).
func propagation(pid string) (shared, follows bool) {
	const pointField, optionalField = 4, 6
	b, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return false, false
	}
	longest := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) <= optionalField {
			continue
		}
		point := strings.TrimSuffix(f[pointField], "/") + "/"
		if !strings.HasPrefix(Dir+"/", point) || len(point) < longest {
			continue
		}
		longest, shared, follows = len(point), false, false
		for _, o := range f[optionalField:] {
			if o == "-" {
				break
			}
			shared = shared || strings.HasPrefix(o, "shared:")
			follows = follows || strings.HasPrefix(o, "master:")
		}
	}
	return shared, follows
}

// sameFile reports whether both paths lead to one file.
func sameFile(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// onSpentThread calls f on a thread that is never used again, so that f may change anything of it. It is not the
// first thread of the process, which cannot end.
func onSpentThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// This one is kept busy meanwhile, so that it is not given to us again.
			result <- onSpentThread(f)
			runtime.UnlockOSThread()
			return
		}
		result <- f()
	}()
	return <-result
}
