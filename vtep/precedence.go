package vtep

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// precedence is the nice value of the threads that forward (setpriority(2)): beside programs that use up the CPUs, they get
// nine times as much as each of these. The kernel's own devices forward in interrupts, before any process; a thread on the
// level of the programs whose packets it carries would wait for them. It is the value that Open vSwitch gives its own
// (ovs-ctl(8), --ovs-vswitchd-priority).
const precedence = -10

// openPrecedence finds out whether workers can have precedence, if that is wanted.
func (v *VTEP) openPrecedence() {
	if !v.features.on(FeaturePrecedence) {
		return
	}
	stated, err := tryPrecedence()
	if err == nil && !stated {
		err = preferGroup()
	}
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w; this needs CAP_SYS_NICE", err)
	}
	v.features.missing(FeaturePrecedence, err)
}

// tryPrecedence gives the calling thread precedence and takes it away again. stated says that it has a nice value of somebody
// else, which holds for the whole process then.
func tryPrecedence() (stated bool, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return false, fmt.Errorf("reading how a thread is scheduled: %w", err)
	}
	if err = preferThread(); err == nil {
		err = setPatient(false)
	}
	return before.Nice != 0, errors.Join(err, unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), int(before.Nice)))
}

// preferThread gives the calling thread precedence. What somebody else has set stays: with a nice value a thread can be patient
// all the same, with a policy it is left alone, which is an error.
func preferThread() error {
	now, err := unix.SchedGetAttr(0, 0)
	switch {
	case err != nil:
		return fmt.Errorf("reading how a thread is scheduled: %w", err)
	case now.Policy != unix.SCHED_NORMAL:
		return fmt.Errorf("somebody has given this process another scheduling policy (%d; see chrt(1)), which stays", now.Policy)
	case now.Nice != 0:
		return nil
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), precedence); err != nil {
		return fmt.Errorf("giving a thread the nice value %d: %w", precedence, err)
	}
	return nil
}

// setPatient says whether the calling thread, when a packet wakes it, waits until the program that runs there has had its turn
// (SCHED_BATCH in sched(7)), or runs at once.
func setPatient(patient bool) error {
	policy := unix.SCHED_NORMAL
	if patient {
		policy = unix.SCHED_BATCH
	}
	var param struct{ priority int32 } // struct sched_param
	// Not sched_setattr(2), whose policy is in memory, where a filter of system calls such as systemd's RestrictRealtime= does
	// not see that it is none of real time.
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(policy), uintptr(unsafe.Pointer(&param)))
	if errno != 0 {
		return fmt.Errorf("giving a thread the scheduling policy %d: %w", policy, errno)
	}
	return nil
}

// preferGroup gives precedence to the group in which the kernel schedules this process against those of other sessions, if it
// does that (sched(7), autogroup): the nice values of its threads count only within it. What somebody else has set stays, and
// so does the group of a session that somebody else has begun, such as a shell: others are in it, too.
func preferGroup() error {
	const file = "/proc/self/autogroup"
	group, err := os.ReadFile(file) // such as "/autogroup-17 nice 0"
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the scheduling group of this process: %w", err)
	}
	session, err := unix.Getsid(0)
	if err != nil {
		return fmt.Errorf("finding the session of this process: %w", err)
	}
	if session != os.Getpid() || !bytes.HasSuffix(bytes.TrimSpace(group), []byte(" nice 0")) {
		return nil
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(precedence)), 0); err != nil {
		return fmt.Errorf("giving the scheduling group of this process the nice value %d: %w", precedence, err)
	}
	return nil
}

const (
	// paceEvery is over how long a worker looks back at how much it had to do.
	paceEvery = time.Millisecond
	// From paceMany units of work in that time on, a worker is patient, and until there are less than paceFew.
	paceMany, paceFew = 40, 10
	// paceUnit is how many bytes are as much work as a frame.
	paceUnit = 2 << 10
)

// pace decides when a worker with precedence is patient: where much passes. If each packet interrupted the program that sends
// or receives it, each would be a batch of its own, and changing between the two would take more time than the packets.
// Where little passes, nobody is made to wait.
type pace struct {
	start   int64 // of the time that is looked back at
	units   int   // of work in it
	patient bool
}

// note adds what a round had to do, which ended at now, in nanoseconds of the packet path's clock. It reports whether the
// worker is to become patient, or no longer to be.
func (p *pace) note(now int64, frames, bytes int) (changed bool) {
	p.units += frames + bytes/paceUnit
	past := now - p.start
	if past < int64(paceEvery) {
		return false
	}
	enough := int64(paceMany)
	if p.patient {
		enough = paceFew
	}
	busy := int64(p.units)*int64(paceEvery) >= enough*past
	changed = busy != p.patient
	p.start, p.units, p.patient = now, 0, busy
	return changed
}
