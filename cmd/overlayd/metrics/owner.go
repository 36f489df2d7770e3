package metrics

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// listenerOf names the process that listens on a TCP port in this network namespace, or returns "" if that
// cannot be seen. Only root sees the processes of others.
func listenerOf(port string) string {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return ""
	}
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		for _, inode := range listening(table, uint16(n)) {
			if owner := holder("socket:[" + inode + "]"); owner != "" {
				return owner
			}
		}
	}
	return ""
}

// listening returns the inodes of the sockets that listen on a port (proc_pid_net(5)).
func listening(table string, port uint16) []string {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	var inodes []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		const local, state, inode = 1, 3, 9
		if len(fields) <= inode || fields[state] != "0A" { // 0A: TCP_LISTEN
			continue
		}
		_, hex, _ := strings.Cut(fields[local], ":")
		if p, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(p) == port {
			inodes = append(inodes, fields[inode])
		}
	}
	return inodes
}

// holder names the first process that has a descriptor with this target.
func holder(target string) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != target {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "process " + pid
		}
		return "process " + pid + " (" + strings.TrimSpace(string(comm)) + ")"
	}
	return ""
}
