package interop

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
)

const (
	idleMost = 40 * megabyte // RSS of an idle daemon
	growMost = 5 * megabyte  // in busyTime of full load
	busyTime = 30 * time.Second
	warmTime = 4 * time.Second
)

// resident is the RSS of a process in bytes.
func resident(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for _, line := range lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

func TestMemory(t *testing.T) {
	l := up(t, scenario(lab.IPv4, lab.Overlayd, lab.Overlayd))
	h1, h2 := l.Host("h1"), l.Host("h2")
	hosts := []*lab.Host{h1, h2}
	for _, h := range hosts {
		size, err := resident(h.PID())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("idle overlayd of %s: %.1f MB", h.Name(), float64(size)/megabyte)
		if size >= idleMost {
			t.Errorf("idle overlayd of %s has %d bytes, want less than %d", h.Name(), size, idleMost)
		}
	}

	done := make(chan error, 1)
	ctx := within(t)
	go func() {
		r, err := load.TCP(ctx, load.TCPConfig{
			From: h1, To: h2, Address: h2.Overlay(network), Direction: load.Both, Flows: 2, Duration: warmTime + busyTime,
		})
		if err == nil && (r.Forward.Bytes == 0 || r.Reverse.Bytes == 0) {
			err = fmt.Errorf("nothing moved: %+v", r)
		}
		done <- err
	}()
	samples := make(map[*lab.Host][]int) // one a tick
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	begin := time.Now()
	for running := true; running; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		case <-tick.C:
			if time.Since(begin) < warmTime {
				continue
			}
			for _, h := range hosts {
				size, err := resident(h.PID())
				if err != nil {
					t.Fatal(err)
				}
				samples[h] = append(samples[h], size)
			}
		}
	}
	for _, h := range hosts {
		// Medians of the first and of the last fifth: a collection of garbage that has just begun or ended is no trend.
		s := samples[h]
		fifth := len(s) / 5
		if fifth < 10 {
			t.Fatalf("only %d samples", len(s))
		}
		before, after := median(s[:fifth]), median(s[len(s)-fifth:])
		t.Logf("busy overlayd of %s: from %.1f to %.1f MB", h.Name(), float64(before)/megabyte, float64(after)/megabyte)
		if grown := after - before; grown >= growMost {
			t.Errorf("overlayd of %s grew by %d bytes, from %d to %d, in %v of full load", h.Name(), grown, before, after, busyTime)
		}
	}
}

func median(v []int) int {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
