package interop

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/vtep"
)

// TestPrecedence looks at what the workers of a daemon have of the scheduler: the nice value that the documentation states, and
// patience while much passes.
func TestPrecedence(t *testing.T) {
	const normal, batch = "0", "3" // SCHED_OTHER and SCHED_BATCH in linux/sched.h
	sc := scenario(lab.IPv4, lab.Overlayd, lab.Overlayd)
	const workers = 2
	for i := range sc.Hosts {
		sc.Hosts[i].Overlayd.Queues = workers
		sc.Hosts[i].Overlayd.Disable = []string{vtep.FeatureFastPath} // by which packets would pass the workers
	}
	sc.Hosts[1].Overlayd.Disable = append(sc.Hosts[1].Overlayd.Disable, vtep.FeaturePrecedence)
	l := up(t, sc)
	h1, h2 := l.Host("h1"), l.Host("h2")
	talk(t, h1, h2)

	if got := preferred(t, h2.PID()); len(got) > 0 {
		t.Errorf("without the feature, threads have precedence: %q", got)
	}
	eventually(t, fmt.Sprintf("%d threads that have precedence, and are not patient", workers), func() (bool, string) {
		got := preferred(t, h1.PID())
		return len(got) == workers && strings.Count(strings.Join(got, ""), normal) == workers, fmt.Sprintf("policies %q", got)
	})
	for h, want := range map[*lab.Host]string{h1: " nice -10", h2: " nice 0"} {
		group, err := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", h.PID()))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err == nil && !strings.HasSuffix(strings.TrimSpace(string(group)), want) {
			t.Errorf("the scheduling group of %s is %q, want%s", h.Name(), group, want)
		}
	}

	ctx, ended := within(t), make(chan error, 1)
	go func() {
		_, err := load.TCP(ctx, load.TCPConfig{From: h1, To: h2, Address: h2.Overlay(network), Duration: 3 * time.Second})
		ended <- err
	}()
	eventually(t, "a patient worker", func() (bool, string) {
		got := preferred(t, h1.PID())
		return strings.Contains(strings.Join(got, ""), batch), fmt.Sprintf("policies %q", got)
	})
	if err := <-ended; err != nil {
		t.Error(err)
	}
	eventually(t, "no patient worker", func() (bool, string) {
		talk(t, h1, h2)
		got := preferred(t, h1.PID())
		return strings.Count(strings.Join(got, ""), normal) == workers, fmt.Sprintf("policies %q", got)
	})
}

// preferred returns the policies of the threads of a process that have the nice value -10.
func preferred(t *testing.T, pid int) (policies []string) {
	t.Helper()
	for _, s := range threadsOf(t, pid) {
		if s[19-3] == "-10" {
			policies = append(policies, s[41-3])
		}
	}
	return policies
}
