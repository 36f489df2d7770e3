//go:build linux

package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep/link/netname"
)

// SandboxBridge is the name of the bridge in every sandbox.
const SandboxBridge = "br0"

// sandboxPrefix is what the names of sandboxes begin with; the VNI follows, and the ID of the host's namespace if
// that is not the first on this machine that has a sandbox for this VNI.
const sandboxPrefix = "overlayd-"

// Sandbox is the network namespace of one network on one host, with a bridge in it. It is mounted in /run/netns, so
// that it outlives the process and `ip netns` shows it.
type Sandbox struct {
	*Namespace
	name string
	mark string // the alias of its loopback device
}

// OpenSandbox opens the sandbox of a network, or makes it. host is the ID of the network namespace of the host: several
// hosts may be namespaces of one machine, and share /run/netns. adopted says that the sandbox was there.
//
// A new one has its bridge, which is down. It is called overlayd-VNI, or overlayd-VNI-HOST if another host has that
// name.
func OpenSandbox(vni addr.VNI, host uint64) (s *Sandbox, adopted bool, err error) {
	fail := func(err error) (*Sandbox, bool, error) {
		return nil, false, fmt.Errorf("open the sandbox of VNI %v: %w", vni, err)
	}
	unlock, err := netname.Lock()
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if s, err = findSandbox(vni, host); s != nil || err != nil {
		if err != nil {
			return fail(err)
		}
		return s, true, nil
	}
	name := sandboxPrefix + vni.String()
	if taken(name) {
		name = longName(vni, host)
	}
	if s, err = newSandbox(name, vni, host); err != nil {
		return fail(err)
	}
	return s, false, nil
}

// longName is the name of a sandbox where the short one is taken.
func longName(vni addr.VNI, host uint64) string {
	return fmt.Sprintf("%s%v-%d", sandboxPrefix, vni, host)
}

// taken reports whether a live namespace has the name. A file without one is what is left of it, and of no use.
func taken(name string) bool {
	n, err := openNamed(name)
	if err != nil {
		return false
	}
	n.Close()
	return true
}

// findSandbox opens the sandbox that host has for the VNI. It is nil if there is none.
func findSandbox(vni addr.VNI, host uint64) (*Sandbox, error) {
	for _, name := range []string{longName(vni, host), sandboxPrefix + vni.String()} {
		n, err := openNamed(name)
		if err != nil {
			continue // nothing, or nothing of use
		}
		s := &Sandbox{Namespace: n, name: name, mark: mark(vni, host)}
		ours := false
		err = s.Do(func() error {
			owner, err := markOf()
			ours = owner == s.mark
			return err
		})
		if err == nil && ours {
			return s, nil
		}
		n.Close()
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", name, err)
		}
	}
	return nil, nil
}

// mark is what the loopback device of a sandbox, which nobody can delete, has for an alias: it says whose it is.
func mark(vni addr.VNI, host uint64) string { return fmt.Sprintf("overlayd vni %v host %d", vni, host) }

// markOf returns the mark of the sandbox that the thread is in, or "".
func markOf() (string, error) {
	l, err := linkByName("lo")
	if err != nil {
		return "", err
	}
	return l.Attrs().Alias, nil
}

func setMark(text string) error {
	l, err := linkByName("lo")
	if err == nil {
		err = netlink.LinkSetAlias(l, text)
	}
	if err != nil {
		return fmt.Errorf("mark the sandbox: %w", err)
	}
	return nil
}

// newSandbox makes a network namespace with a mark and a bridge, and gives it a name once it is complete.
func newSandbox(name string, vni addr.VNI, host uint64) (*Sandbox, error) {
	var fd int
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w%s", err, privilegeHint(err))
		}
		if err := quieten(); err != nil {
			return err
		}
		if err := errors.Join(setMark(mark(vni, host)), addBridge()); err != nil {
			return err
		}
		var err error
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := netname.Set(fd, name); err != nil {
		return nil, fmt.Errorf("name it %s: %w%s", name, err, privilegeHint(err))
	}
	n, err := openNamed(name)
	if err != nil {
		return nil, errors.Join(err, netname.Clear(name))
	}
	return &Sandbox{Namespace: n, name: name, mark: mark(vni, host)}, nil
}

// Name returns the name of the sandbox in /run/netns.
func (s *Sandbox) Name() string { return s.name }

// Named reports whether the sandbox is seen under its name. It costs next to nothing. False may be wrong where names last in
// another mount namespace than ours: Rename finds out.
func (s *Sandbox) Named() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var there, here unix.Stat_t
	return unix.Stat(filepath.Join(netname.Dir, s.name), &there) == nil && unix.Fstat(s.fd, &here) == nil &&
		there.Dev == here.Dev && there.Ino == here.Ino
}

// Rename gives the sandbox its name back if somebody has taken that away, and reports whether it had to.
func (s *Sandbox) Rename() (bool, error) {
	if s.Named() {
		return false, nil
	}
	if n, err := openNamed(s.name); err == nil {
		defer n.Close()
		if n.ID() == s.ID() {
			return false, nil
		}
		return false, fmt.Errorf("the name %s, that of a sandbox, was given to another network namespace: remove that: ip netns delete %s", s.name, s.name)
	}
	unlock, err := netname.Lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return false, os.ErrClosed
	}
	if err := netname.Set(s.fd, s.name); err != nil {
		return false, fmt.Errorf("name the sandbox %s: %w%s", s.name, err, privilegeHint(err))
	}
	return true, nil
}

// Remove closes the sandbox and removes it, with the bridge and the interfaces of the containers. It ends with the
// last process in it, if there is any.
func (s *Sandbox) Remove() error {
	unlock, err := netname.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	// Devices go at once, where the namespace would take its time, or stay for somebody who looks into it.
	err = s.Do(func() error {
		links, err := whole(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		var errs []error
		for _, l := range links {
			if l.Type() == "veth" || l.Attrs().Name == SandboxBridge {
				if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
					errs = append(errs, fmt.Errorf("device %q: remove it: %w", l.Attrs().Name, err))
				}
			}
		}
		return errors.Join(errs...)
	})
	if err := errors.Join(err, netname.Clear(s.name), s.Close()); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", s.name, err)
	}
	return nil
}

// Sandboxes lists the VNIs for which host has a sandbox.
func Sandboxes(host uint64) ([]addr.VNI, error) {
	entries, err := os.ReadDir(netname.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var out []addr.VNI
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), sandboxPrefix)
		if !ok {
			continue
		}
		number, owner, long := strings.Cut(rest, "-")
		vni, err := addr.ParseVNI(number)
		if err != nil || long && owner != strconv.FormatUint(host, 10) {
			continue
		}
		s, err := findSandbox(vni, host)
		if err != nil || s == nil {
			continue // of another host, or gone meanwhile
		}
		if s.name == e.Name() {
			out = append(out, vni)
		}
		s.Close()
	}
	return out, nil
}

// RemoveSandbox removes the sandbox that host has for the VNI, if there is one.
func RemoveSandbox(vni addr.VNI, host uint64) error {
	unlock, err := netname.Lock()
	if err != nil {
		return err
	}
	s, err := findSandbox(vni, host)
	unlock()
	if s == nil {
		return err
	}
	return s.Remove()
}
