package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// monitorSlack is by how much a sleep of the runtime's monitor thread may be longer than it asks for.
//
// That thread (sysmon in the source of Go's runtime) sleeps while nothing runs, and wakes with the first goroutine and at each
// timer. Then it looks every 20 us until everything sleeps again. But the thread that is to run the timer waits in
// epoll_wait, which counts in milliseconds, and comes up to one too late. So for each timer there were seven to ten looks at
// nothing, some 120 us apart, and with this there are one or two (nanosleep beside futex in `perf trace --tid` of that thread,
// on an idle worker of a cluster). Of the run time of an idle daemon's threads (/proc/PID/task/*/schedstat, over 30 s) they are
// 17 to 21 %, and 35 to 45 % once the kernel's default is written back.
//
// The monitor takes a processor from a goroutine that is in a system call, or has run for 10 ms, that much later. A worker waits
// for that only if it comes back from a long sleep while every other processor (GOMAXPROCS) is held by such a goroutine.
const monitorSlack = "1000000" // ns; the kernel's default is 50,000

// relaxMonitor sets monitorSlack. Threads that the monitor starts later have it too, and may sleep that much longer where they
// sleep for a time: in the first millisecond of a wait for packets, for instance (vtep/poll).
func relaxMonitor() error {
	id, err := monitorThread()
	if err == nil {
		err = os.WriteFile(filepath.Join("/proc", id, "timerslack_ns"), []byte(monitorSlack), 0)
	}
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w; this needs CAP_SYS_NICE", err)
	}
	if err != nil {
		return fmt.Errorf("let the runtime's monitor thread sleep longer: %w", err)
	}
	return nil
}

// monitorThread returns the ID of the runtime's monitor thread. It is the first that the runtime starts, before it runs
// anything of a program, and the kernel lists threads by age. Should that change, another thread sleeps a bit longer.
func monitorThread() (string, error) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return "", err
	}
	defer dir.Close()
	threads, err := dir.Readdirnames(2) // not os.ReadDir, which sorts
	if err != nil {
		return "", err
	}
	if len(threads) < 2 {
		return "", fmt.Errorf("this process has %d thread", len(threads))
	}
	return threads[1], nil
}
