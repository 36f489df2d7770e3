package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/netname"
)

// ErrNotPermitted says that this process may not make network namespaces.
var ErrNotPermitted = errors.New("not permitted to make network namespaces: run as root")

// Namespace is a network namespace of a lab.
type Namespace struct {
	name   string          // in the lab: that of the host, or "router"
	full   string          // in the system: a file in netname.Dir
	inode  uint64          // what /proc/PID/ns/net of those inside says
	handle netns.NsHandle  // keeps the namespace alive until close
	nl     *netlink.Handle // sockets inside it
}

// createNamespace makes a named network namespace and brings its loopback up.
func createNamespace(name, full string) (*Namespace, error) {
	if err := netname.Make(full); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = ErrNotPermitted
		}
		return nil, err
	}
	n, err := openNamespace(name, full)
	if err != nil {
		return nil, err
	}
	if err := n.up("lo"); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// openNamespace attaches to a namespace that exists.
func openNamespace(name, full string) (*Namespace, error) {
	n := &Namespace{name: name, full: full, handle: netns.None()}
	var err error
	if n.inode, err = namespaceInode(full); err != nil {
		return nil, err
	}
	if n.handle, err = netns.GetFromName(full); err != nil {
		return nil, fmt.Errorf("open the network namespace %s: %w", full, err)
	}
	if n.nl, err = netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE); err != nil {
		n.close()
		return nil, fmt.Errorf("open a netlink socket in %s: %w", full, err)
	}
	return n, nil
}

// namespaceInode identifies a namespace as /proc/PID/ns/net does.
func namespaceInode(full string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(netname.Dir, full), &st); err != nil {
		return 0, fmt.Errorf("look at the network namespace %s: %w", full, err)
	}
	return st.Ino, nil
}

// deleteNamespace takes the name away; the kernel removes the namespace with everything in it when nothing
// uses it any more. It is no error if there is none of that name.
func deleteNamespace(full string) error {
	unlock, err := netname.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	return netname.Clear(full)
}

func (n *Namespace) close() {
	if n.nl != nil {
		n.nl.Close()
		n.nl = nil
	}
	if n.handle.IsOpen() {
		_ = n.handle.Close() // nothing was written through it
	}
}

// Name is the name in the scenario: that of the host, or "router".
func (n *Namespace) Name() string { return n.name }

// NetNS is the name in the system, as "ip netns" shows it; unique to the run of the lab.
func (n *Namespace) NetNS() string { return n.full }

// Do runs f in the namespace and returns its error. Sockets that f opens stay in the namespace for good;
// goroutines that f starts do not begin in it. f must not end its goroutine, as testing.T.FailNow does.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := fmt.Errorf("the function that was run in the namespace %s ended its goroutine", n.name)
		defer func() { done <- err }()
		err = n.enter(f)
	}()
	return <-done
}

// enter does the work of Do on the calling goroutine.
func (n *Namespace) enter(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("remember the network namespace of this thread: %w", err)
	}
	defer home.Close()
	if err := netns.Set(n.handle); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace %s: %w", n.full, err)
	}
	defer func() {
		// A thread that cannot get home stays locked, and ends with this goroutine.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// Start starts a command in the namespace. Its files and mounts are those of this process.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	return n.Do(cmd.Start) // the child is forked from the calling thread and has its namespace
}

// sysctl writes kernel settings of the namespace; keys are paths under /proc/sys/net.
func (n *Namespace) sysctl(settings [][2]string) error {
	return n.Do(func() error {
		for _, s := range settings {
			// /proc/sys/net shows the namespace of the thread that opens it.
			err := os.WriteFile(filepath.Join("/proc/sys/net", s[0]), []byte(s[1]), 0)
			if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s[0], "ipv6/") {
				return fmt.Errorf("set %s in %s: this kernel has no IPv6", s[0], n.full)
			}
			if err != nil {
				return fmt.Errorf("set %s in %s: %w", s[0], n.full, err)
			}
		}
		return nil
	})
}
