package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// portOwner names, for an error message, a process that listens on a TCP port in the way of a, such as `nginx (process
// 4711)`. It is "" when none is found, or it cannot be found out. It looks through all of /proc.
func portOwner(a netip.AddrPort) string {
	for _, name := range []string{"tcp", "tcp6"} {
		// Not /proc/net, which is that of the process's first thread, whichever namespace that is in.
		table, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(table) {
			have, inode, ok := parseSocket(string(line))
			if !ok || have.Port() != a.Port() || !overlap(have.Addr(), a.Addr()) {
				continue
			}
			if owner := socketOwner(inode); owner != "" {
				return owner
			}
		}
	}
	return ""
}

// parseSocket takes the local address and the inode of a listening socket from a line of /proc/net/tcp or tcp6.
func parseSocket(line string) (local netip.AddrPort, inode string, ok bool) {
	const (
		localField, stateField, inodeField = 1, 3, 9
		listening                          = "0A"
	)
	f := strings.Fields(line)
	if len(f) <= inodeField || f[stateField] != listening {
		return netip.AddrPort{}, "", false
	}
	ip, port, _ := strings.Cut(f[localField], ":")
	b, err := hex.DecodeString(ip)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, "", false
	}
	for i := 0; i < len(b); i += 4 { // words in the order of this machine's bytes
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	p, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr, uint16(p)), f[inodeField], ok && err == nil
}

// overlap reports whether a socket that is bound to have can be in the way of one to be bound to want.
func overlap(have, want netip.Addr) bool {
	have, want = have.Unmap(), want.Unmap().WithZone("")
	anyOf := func(a, b netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() && (a.Is6() || b.Is4()) }
	return have == want || anyOf(have, want) || anyOf(want, have)
}

// socketOwner names a process that has a socket open.
func socketOwner(inode string) string {
	target := "socket:[" + inode + "]"
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if got, err := os.Readlink(fd); err != nil || got != target {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "process " + pid
		}
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}
