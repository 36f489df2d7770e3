package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	termPatience = 5 * time.Second // from SIGTERM to SIGKILL
	killPatience = 5 * time.Second // from SIGKILL to giving up
)

// process identifies a process beyond the life of its number: a recycled PID has another start time.
type process struct {
	Host  string `json:"host"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since the boot, field 22 of /proc/PID/stat
}

// startOf reads the start time of a process; false when there is none of this number, or a zombie.
func startOf(pid int) (uint64, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The second field is the command in parentheses, which may itself have spaces and parentheses.
	_, rest, ok := bytes.Cut(text[bytes.LastIndexByte(text, ')')+1:], []byte(" "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return start, err == nil
}

func (p process) alive() bool {
	start, ok := startOf(p.PID)
	return ok && start == p.Start
}

// open returns a pidfd of the process, or -1 when it has ended. The start time is read after the pidfd is
// open, so that both are of one process.
func (p process) open() int {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return -1
	}
	if !p.alive() {
		unix.Close(fd)
		return -1
	}
	return fd
}

// stop ends all of the processes: these signals to each, SIGKILL to those that do not heed them in time.
func stop(processes []process, signals ...unix.Signal) error {
	var fds []int
	for _, p := range processes {
		if fd := p.open(); fd >= 0 {
			fds = append(fds, fd)
			defer unix.Close(fd)
		}
	}
	for _, fd := range fds {
		for _, sig := range signals {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0) // ESRCH: it has ended by itself
		}
	}
	fds = awaitEnd(fds, termPatience)
	for _, fd := range fds {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	if fds = awaitEnd(fds, killPatience); len(fds) > 0 {
		return fmt.Errorf("%d processes do not end though they were killed: look for state D in ps", len(fds))
	}
	return nil
}

// awaitEnd waits until the processes have ended and returns those that have not.
func awaitEnd(pidfds []int, patience time.Duration) []int {
	deadline := time.Now().Add(patience)
	for len(pidfds) > 0 {
		left := time.Until(deadline)
		if left <= 0 {
			return pidfds
		}
		poll := []unix.PollFd{{Fd: int32(pidfds[0]), Events: unix.POLLIN}} // readable when the process has ended
		n, err := unix.Poll(poll, int(left.Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return pidfds
		case n > 0:
			pidfds = pidfds[1:]
		}
	}
	return nil
}

// inside lists the processes that live in any of the namespaces, this one aside.
func inside(inodes []uint64) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		target, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net"))
		if err != nil {
			continue // it has ended
		}
		digits := strings.TrimSuffix(strings.TrimPrefix(target, "net:["), "]")
		inode, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || !slices.Contains(inodes, inode) {
			continue
		}
		if start, ok := startOf(pid); ok {
			out = append(out, process{PID: pid, Start: start})
		}
	}
	return out
}
