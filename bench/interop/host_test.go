package interop

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
)

// on runs f in the namespace of a host and fails the test with its error. f must not end the test itself.
func on(t *testing.T, h interface{ Do(func() error) error }, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatal(err)
	}
}

// hasDevice reports whether a host has an interface of this name.
func hasDevice(t *testing.T, h *lab.Host, name string) bool {
	t.Helper()
	found := false
	on(t, h, func() error {
		all, err := net.Interfaces()
		found = slices.ContainsFunc(all, func(i net.Interface) bool { return i.Name == name })
		return err
	})
	return found
}

// hardware returns the MAC address of an interface of a host.
func hardware(t *testing.T, h *lab.Host, name string) net.HardwareAddr {
	t.Helper()
	var mac net.HardwareAddr
	on(t, h, func() error {
		dev, err := net.InterfaceByName(name)
		if err == nil {
			mac = dev.HardwareAddr
		}
		return err
	})
	return mac
}

// entire asks for a list until nothing came or went meanwhile, as other processes and the kernel have it.
func entire[T any](list func() ([]T, error)) (all []T, err error) {
	for all, err = list(); errors.Is(err, netlink.ErrDumpInterrupted); {
		all, err = list()
	}
	return all, err
}

// neighbours lists what the kernel of the namespace knows about neighbours on an interface.
func neighbours(name string) ([]netlink.Neigh, error) {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	return entire(func() ([]netlink.Neigh, error) { return netlink.NeighList(dev.Attrs().Index, unix.AF_UNSPEC) })
}

// flush makes a host forget its neighbours on an interface.
func flush(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	on(t, h, func() error {
		known, err := neighbours(name)
		if err != nil {
			return err
		}
		for _, n := range known {
			if n.State&netlink.NUD_NOARP != 0 { // groups
				continue
			}
			// The kernel, too, forgets some meanwhile.
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget %v: %w", n.IP, err)
			}
		}
		return nil
	})
}

// neighbour returns what a host believes to be the MAC of an address; nil when it knows none.
func neighbour(t *testing.T, h *lab.Host, name string, ip netip.Addr) net.HardwareAddr {
	t.Helper()
	var mac net.HardwareAddr
	on(t, h, func() error {
		known, err := neighbours(name)
		for _, n := range known {
			if a, _ := netip.AddrFromSlice(n.IP); a.Unmap() == ip {
				mac = n.HardwareAddr
			}
		}
		return err
	})
	return mac
}

// setting writes a kernel setting of a host; key is a path under /proc/sys/net.
func setting(t *testing.T, h *lab.Host, key, value string) {
	t.Helper()
	on(t, h, func() error { return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0) })
}

// routed waits until the kernel has routes to all addresses of a host: those of IPv6 come later than the address, from a
// worker of the kernel, and the address is tentative until then.
func routed(t *testing.T, h *lab.Host) {
	t.Helper()
	eventually(t, "the addresses of "+h.Name()+" to have routes", func() (ok bool, state string) {
		on(t, h, func() error {
			addrs, err := entire(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
			ok = !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
			state = fmt.Sprint(addrs)
			return err
		})
		return ok, state
	})
}

// findings describes all that a daemon could leave behind on a host: links, addresses, routes, rules, sockets
// and settings of the namespace, and the files of folders, one to a line.
func findings(t *testing.T, h *lab.Host, folders ...string) []string {
	t.Helper()
	routed(t, h)
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	on(t, h, func() error {
		links, err := entire(netlink.LinkList)
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, l := range links {
			a := l.Attrs()
			names[a.Index] = a.Name
			add("link %d %s %s mtu %d flags %v txqlen %d master %d group %d alias %q state %v", a.Index, a.Name, l.Type(), a.MTU, a.Flags, a.TxQLen, a.MasterIndex, a.Group, a.Alias, a.OperState)
		}
		addrs, err := entire(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		for _, a := range addrs {
			add("address %v of %s", a.IPNet, names[a.LinkIndex])
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := entire(func() ([]netlink.Route, error) {
				return netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
			})
			if err != nil {
				return err
			}
			for _, r := range routes {
				add("route %v", r)
			}
			rules, err := entire(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
			if err != nil {
				return err
			}
			for _, r := range rules {
				add("rule %v", r)
			}
		}
		for _, table := range []string{"udp", "udp6", "tcp", "tcp6", "raw", "raw6", "packet", "netlink", "unix"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil {
				return err
			}
			for _, line := range lines(string(text))[1:] {
				add("%s socket %s", table, socketKey(table, line))
			}
		}
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if text, err := os.ReadFile(path); err == nil { // some can only be written
				add("setting %s = %s", path, strings.TrimSpace(string(text)))
			}
			return nil
		})
	})
	for _, folder := range folders {
		if err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				add("file %s %v", path, d.Type())
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(out)
	return out
}

// socketKey leaves out of a line of /proc/net what changes from moment to moment.
func socketKey(table, line string) string {
	f := strings.Fields(line)
	switch {
	case table == "netlink" && len(f) > 3: // protocol, port and groups; the rest is an address and counters
		return strings.Join(f[1:4], " ")
	case table == "packet" && len(f) > 5:
		return strings.Join(f[2:6], " ")
	case table == "unix":
		return strings.Join(f[min(len(f), 3):], " ")
	case len(f) > 3: // local and remote address, state
		return strings.Join(f[1:4], " ")
	}
	return line
}

// differences lists what is in one of two sorted lists and not in the other.
func differences(before, after []string) []string {
	var out []string
	for _, line := range before {
		if !slices.Contains(after, line) {
			out = append(out, "gone: "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			out = append(out, "new: "+line)
		}
	}
	return out
}

// closed reports whether a difference is a socket that is gone. No process closes those of another: it was open for a
// moment, as a daemon that runs there opens some.
func closed(difference string) bool {
	what, gone := strings.CutPrefix(difference, "gone: ")
	_, rest, _ := strings.Cut(what, " ")
	return gone && strings.HasPrefix(rest, "socket ")
}

// unchanged waits until a host is as it was found. Some of it goes with a delay: the kernel removes a device
// after the descriptor was closed.
func unchanged(t *testing.T, h *lab.Host, before []string, folders ...string) {
	t.Helper()
	eventually(t, h.Name()+" to be as it was found", func() (bool, string) {
		d := slices.DeleteFunc(differences(before, findings(t, h, folders...)), closed)
		return len(d) == 0, strings.Join(d, "\n")
	})
}
