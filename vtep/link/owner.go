//go:build linux

package link

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// DeviceOwner describes for an error message what the device is and, when it is a TAP, which processes have it
// open, such as `a TAP that overlayd (process 4711) has open`. It is "" when there is no such device, and
// leaves out what cannot be found out. It looks through all of /proc.
func DeviceOwner(dev string) string {
	l, err := linkByName(dev)
	if err != nil {
		return ""
	}
	t, ok := l.(*netlink.Tuntap)
	if !ok {
		return "a device of type " + l.Type()
	}
	what := "a TAP"
	if t.Mode == netlink.TUNTAP_MODE_TUN {
		what = "a TUN"
	}
	near, far := holdersOf(func(pid, fd string) bool {
		path, err := os.Readlink(filepath.Join("/proc", pid, "fd", fd))
		if err != nil || !strings.HasPrefix(path, "/dev/") || !strings.HasSuffix(path, "/tun") {
			return false
		}
		info, err := os.ReadFile(filepath.Join("/proc", pid, "fdinfo", fd))
		return err == nil && fdinfoDevice(info) == dev
	})
	switch {
	case len(near) > 0:
		return what + " that " + join(near) + " has open"
	// A file tells the name of its device and not whose namespace that is in. This one is held by somebody, so
	// that a process elsewhere may be meant; one that persists need not be, and has namesakes.
	case t.NonPersist && len(far) > 0:
		return what + " that " + join(far) + " has open"
	case t.NonPersist:
		return what + " of a process that cannot be seen from here"
	default:
		return what + " that was made to persist"
	}
}

// UDPPortOwner describes for an error message who has a UDP port, such as `vxlan device vx0` or `coredns
// (process 4711)`: the first one found whose local address is in the way of a. It is "" when nothing is, or it
// cannot be found out. It looks through all of /proc.
func UDPPortOwner(a netip.AddrPort) string {
	inode, found := udpInode(a)
	if !found {
		return ""
	}
	if inode != "0" {
		target := "socket:[" + inode + "]"
		near, far := holdersOf(func(pid, fd string) bool {
			path, err := os.Readlink(filepath.Join("/proc", pid, "fd", fd))
			return err == nil && path == target
		})
		if holders := append(near, far...); len(holders) > 0 {
			return join(holders)
		}
	}
	// No process has it open: a socket of the kernel's own. Its devices say which port is theirs.
	links, err := netlink.LinkList()
	if err == nil {
		for _, l := range links {
			switch d := l.(type) {
			case *netlink.Vxlan:
				if d.Port == int(a.Port()) {
					return "vxlan device " + d.Name
				}
			case *netlink.Geneve:
				if d.Dport == a.Port() {
					return "geneve device " + d.Name
				}
			}
		}
	}
	return "the kernel, or a process that cannot be seen from here"
}

// udpInode finds the socket in this network namespace that is bound to the port of a, and to its address or to
// all addresses, or to any address if a has none.
func udpInode(a netip.AddrPort) (inode string, found bool) {
	for _, name := range []string{"udp", "udp6"} {
		// Not /proc/net, which shows the namespace of the process's first thread.
		table, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(bytes.NewReader(table))
		lines.Scan() // the heading
		for lines.Scan() {
			local, inode, ok := parseUDP(lines.Text())
			if ok && local.Port() == a.Port() && inTheWay(local.Addr(), a.Addr()) {
				return inode, true
			}
		}
	}
	return "", false
}

// inTheWay reports whether a socket bound to have may keep another one from binding to want.
func inTheWay(have, want netip.Addr) bool {
	have, want = have.Unmap(), want.Unmap().WithZone("")
	switch {
	case have == want, !want.IsValid():
		return true
	case have.IsUnspecified():
		return have.Is6() || want.Is4() // an IPv6 socket mostly takes IPv4, too
	case want.IsUnspecified():
		return want.Is6() || have.Is4()
	default:
		return false
	}
}

// parseUDP takes the local address and the inode from a line of /proc/net/udp or udp6. Addresses there are
// numbers of 32 bits in hexadecimal as the CPU reads them from memory, so that their bytes stand the wrong way
// round on a little-endian one.
func parseUDP(line string) (local netip.AddrPort, inode string, ok bool) {
	const localField, inodeField = 1, 9
	f := strings.Fields(line)
	if len(f) <= inodeField {
		return netip.AddrPort{}, "", false
	}
	ip, port, _ := strings.Cut(f[localField], ":")
	words, err := hex.DecodeString(ip)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(words)%4 != 0 {
		return netip.AddrPort{}, "", false
	}
	for w := words; len(w) > 0; w = w[4:] {
		binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
	}
	a, ok := netip.AddrFromSlice(words)
	return netip.AddrPortFrom(a, uint16(p)), f[inodeField], ok
}

// fdinfoDevice takes the name of the device from what /proc/PID/fdinfo says of a TAP queue.
func fdinfoDevice(info []byte) string {
	for line := range bytes.Lines(info) {
		if name, ok := bytes.CutPrefix(line, []byte("iff:")); ok {
			return string(bytes.TrimSpace(name))
		}
	}
	return ""
}

// holdersOf names the processes with a file descriptor that matches: near those in the network namespace of the
// caller, far all others.
func holdersOf(match func(pid, fd string) bool) (near, far []string) {
	here, _ := os.Readlink("/proc/thread-self/ns/net")
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil
	}
	for _, p := range procs {
		pid := p.Name()
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		fds, err := os.ReadDir(filepath.Join("/proc", pid, "fd"))
		if err != nil || !slices.ContainsFunc(fds, func(fd os.DirEntry) bool { return match(pid, fd.Name()) }) {
			continue
		}
		name := "process " + pid
		if comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm")); err == nil {
			name = fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(comm)), pid)
		}
		if ns, err := os.Readlink(filepath.Join("/proc", pid, "ns/net")); err == nil && ns == here {
			near = append(near, name)
		} else {
			far = append(far, name)
		}
	}
	return near, far
}

// join makes one phrase of at most three names.
func join(names []string) string {
	if len(names) > 3 {
		names = append(slices.Clone(names[:3]), "others")
	}
	return strings.Join(names, " and ")
}
