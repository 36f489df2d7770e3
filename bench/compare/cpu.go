package compare

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of CPU times in /proc: USER_HZ is 100 on every architecture that Linux has a stable ABI for
// in this regard, whatever the kernel's own tick is.
const tick = 10 * time.Millisecond

// cpuTimes is what all CPUs together have done since the boot.
type cpuTimes struct {
	busy  time.Duration // user, nice, system, interrupts; a guest's time is in user already
	steal time.Duration // given to other guests by the hypervisor
}

func (t cpuTimes) since(before cpuTimes) cpuTimes {
	return cpuTimes{busy: t.busy - before.busy, steal: t.steal - before.steal}
}

// readCPU reads /proc/stat.
func readCPU() (cpuTimes, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTimes{}, fmt.Errorf("read the CPU times of this machine: %w", err)
	}
	t, err := parseCPU(text)
	if err != nil {
		return cpuTimes{}, fmt.Errorf("read the CPU times of this machine in /proc/stat: %w", err)
	}
	return t, nil
}

// The numbers of the first line of /proc/stat, see proc_stat(5).
const (
	statUser = iota
	statNice
	statSystem
	statIdle
	statIOWait
	statIRQ
	statSoftIRQ
	statSteal
	statLen
)

func parseCPU(text []byte) (cpuTimes, error) {
	first, _, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(first))
	if len(fields) < 1+statLen || fields[0] != "cpu" {
		return cpuTimes{}, fmt.Errorf("%q is not a line of CPU times", first)
	}
	var n [statLen]uint64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseUint(fields[1+i], 10, 64); err != nil {
			return cpuTimes{}, err
		}
	}
	return cpuTimes{
		busy:  time.Duration(n[statUser]+n[statNice]+n[statSystem]+n[statIRQ]+n[statSoftIRQ]) * tick,
		steal: time.Duration(n[statSteal]) * tick,
	}, nil
}

// processCPU is what a process has used since its start.
func processCPU(pid int) (time.Duration, error) {
	// The number of the clock of a process: its complement above three bits, of which 2 says that the scheduler's own
	// count is meant (CPUCLOCK_SCHED in the kernel's include/linux/posix-timers_types.h).
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|2, &t); err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}
