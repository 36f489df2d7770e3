//go:build !race

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

const asChild = "OVERLAYD_TEST_MONITOR"

// The runtime's monitor is the only thread that goes to sleep again and again while the only processor never rests. In a
// process of its own, where nothing else runs; the race detector has threads besides.
func TestRelaxMonitor(t *testing.T) {
	if os.Getenv(asChild) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestRelaxMonitor$", "-test.v")
		cmd.Env = append(os.Environ(), asChild+"=1", "GOMAXPROCS=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	debug.SetGCPercent(-1)
	runtime.GC()
	id, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	sleeps := func() map[string]int {
		n := map[string]int{}
		for _, dir := range threads {
			status, err := os.ReadFile(filepath.Join(dir, "status"))
			if err != nil {
				t.Fatal(err)
			}
			_, after, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
			line, _, _ := strings.Cut(after, "\n")
			if n[filepath.Base(dir)], err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	before := sleeps()
	for begin := time.Now(); time.Since(begin) < 500*time.Millisecond; {
	}
	for thread, n := range sleeps() {
		if n -= before[thread]; (thread == id) != (n >= 5) {
			t.Errorf("thread %s went to sleep %d times, and the monitor is said to be thread %s", thread, n, id)
		}
	}
	if err := relaxMonitor(); err != nil {
		if os.Getenv("CI") == "true" || os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	slack, err := os.ReadFile(filepath.Join("/proc", id, "timerslack_ns"))
	if err != nil || strings.TrimSpace(string(slack)) != monitorSlack {
		t.Errorf("the slack is %q, %v", slack, err)
	}
}
