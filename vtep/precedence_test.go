package vtep

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What somebody else has set of a thread stays.
func TestPreferThreadLeavesAlone(t *testing.T) {
	for name, c := range map[string]struct {
		policy, nice int
		refused      bool
	}{
		"nice value": {unix.SCHED_NORMAL, 5, false},
		"policy":     {unix.SCHED_IDLE, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
				var param struct{ priority int32 }
				if _, _, errno := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(c.policy), uintptr(unsafe.Pointer(&param))); errno != 0 {
					t.Error(errno)
				}
				if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), c.nice); err != nil {
					t.Error(err)
				}
				if err := preferThread(); (err != nil) != c.refused {
					t.Error(err)
				}
				now, err := unix.SchedGetAttr(0, 0)
				if err != nil || int(now.Policy) != c.policy || int(now.Nice) != c.nice {
					t.Errorf("%+v, %v", now, err)
				}
			}()
			<-done
		})
	}
}

// A worker is patient while much passes, be it in small frames or in large ones. The first packet after a pause, which may have
// waited for one that went to sleep patient, ends it.
func TestPace(t *testing.T) {
	type traffic struct {
		every         time.Duration // from the end of a round to that of the next
		frames, bytes int           // of each round
	}
	var (
		flood      = traffic{8 * time.Microsecond, 1, 106}
		superframe = traffic{200 * time.Microsecond, 2, 124_000}
		middling   = traffic{50 * time.Microsecond, 1, 106}
		question   = traffic{140 * time.Microsecond, 1, 106}
		segments   = traffic{2 * time.Millisecond, 1, 1500}
	)
	for name, steps := range map[string][]struct {
		of      traffic
		patient bool
	}{
		"small frames":              {{flood, true}},
		"superframes":               {{superframe, true}},
		"neither much nor little":   {{middling, false}, {flood, true}, {middling, true}, {question, false}, {middling, false}},
		"questions and answers":     {{question, false}, {flood, true}, {question, false}},
		"superframes, and then few": {{superframe, true}, {segments, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var p pace
			var now int64
			patient := false
			for i, s := range steps {
				for end := now + int64(10*time.Millisecond); now < end; {
					now += int64(s.of.every)
					if p.note(now, s.of.frames, s.of.bytes) {
						patient = !patient
					}
				}
				if patient != s.patient || p.patient != s.patient {
					t.Errorf("step %d: patient %v, or %v, want %v", i, patient, p.patient, s.patient)
				}
			}
		})
	}
	var p pace
	for now := time.Duration(0); now < 5*time.Millisecond; now += flood.every {
		p.note(int64(now), flood.frames, flood.bytes)
	}
	if !p.patient || !p.note(int64(20*time.Millisecond), 1, 106) || p.patient {
		t.Error("a worker is still patient after the first packet after a pause")
	}
}
