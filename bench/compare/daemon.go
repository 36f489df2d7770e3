package compare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// notes are what is known of the daemons of a contender beside what they say at the end.
type notes struct {
	idle *float64          // percent of a core
	peak map[string]uint64 // bytes, by workload: of the daemon that needed most, in the round in which it did
	lost *report.Daemon    // what those of labs that were up for one workload only have lost
}

// watchPeaks has the kernel forget how much memory the daemons have needed at most.
func (s *stand) watchPeaks() error {
	for _, pid := range s.pids() {
		// 5: the peak is what is resident now (proc_pid_clear_refs(5)).
		err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
		if err != nil && !gone(err) {
			return fmt.Errorf("watch the memory of process %d: %w", pid, err)
		}
	}
	return nil
}

// notePeaks keeps what the daemons of the stand in turn have needed at most since then.
func (n *notes) notePeaks(workload string, inTurn *stand) error {
	for _, pid := range inTurn.pids() {
		peak, err := peakMemory(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if n.peak == nil {
			n.peak = make(map[string]uint64)
		}
		n.peak[workload] = max(n.peak[workload], peak)
	}
	return nil
}

// gone reports whether the process has ended meanwhile, of which alive tells.
func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// peakMemory is the most that was resident of a process, in bytes.
func peakMemory(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	peak, err := parsePeak(text)
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	return peak, nil
}

// parsePeak reads VmHWM of proc_pid_status(5), which is in units of 1024 bytes. A zombie has none.
func parsePeak(text []byte) (uint64, error) {
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte("VmHWM:"))
		if !ok {
			continue
		}
		fields := bytes.Fields(rest)
		if len(fields) != 2 || string(fields[1]) != "kB" {
			return 0, fmt.Errorf("%q in /proc/PID/status is not a size", bytes.TrimSpace(line))
		}
		n, err := strconv.ParseUint(string(fields[0]), 10, 53)
		return n << 10, err
	}
	return 0, fmt.Errorf("/proc/PID/status has no VmHWM: %w", os.ErrNotExist)
}

// settle measures what there is while nothing is measured: how many cores are busy, and how much of one each daemon
// uses. Daemons have as long before to find out about their paths, and their cluster to calm down.
func (a *arena) settle(ctx context.Context, d time.Duration) (busy float64, err error) {
	if slices.ContainsFunc(a.stands, func(s *stand) bool { return len(s.pids()) > 0 }) {
		if _, err := busyNow(ctx, d); err != nil {
			return 0, err
		}
	}
	before := make(map[int]time.Duration)
	for _, s := range a.stands {
		for _, pid := range s.pids() {
			before[pid], _ = processCPU(pid) // it may just have ended, which alive tells
		}
	}
	start := time.Now()
	busy, err = busyNow(ctx, d)
	if err != nil {
		return 0, err
	}
	elapsed := time.Since(start)
	for _, s := range a.stands {
		for _, pid := range s.pids() {
			used, err := processCPU(pid)
			if err != nil {
				continue
			}
			percent := 100 * (used - before[pid]).Seconds() / elapsed.Seconds()
			if s.notes.idle == nil || percent > *s.notes.idle {
				s.notes.idle = &percent
			}
		}
	}
	return busy, nil
}

// ask is what the daemons say about themselves; nil when the contender has none. Features, backend and MTU
// are those of the sender, losses those of all.
func (s *stand) ask(ctx context.Context) (*report.Daemon, error) {
	var d *report.Daemon
	for _, h := range s.lab.Hosts() {
		if !h.RunsOverlayd() {
			continue
		}
		if err := askHost(ctx, h, &d); err != nil {
			return nil, fmt.Errorf("ask the overlayd of %s, of %s: %s", h.Name(), s.name, api.Message(err))
		}
	}
	return d, nil
}

func askHost(ctx context.Context, h *lab.Host, d **report.Daemon) error {
	c := api.NewClient(h.Socket())
	defer c.Close()
	status, err := c.GetStatus(ctx, &overlaydv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	networks, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
	if err != nil {
		return err
	}
	drops, err := c.ListDrops(ctx, &overlaydv1.ListDropsRequest{})
	if err != nil {
		return err
	}
	if *d == nil {
		*d = &report.Daemon{Version: api.VersionLine(status.GetStatus().GetVersion()), Drops: make(map[string]uint64)}
		for _, f := range status.GetStatus().GetFeatures() {
			(*d).Features = append((*d).Features, report.Feature{Name: f.GetName(), On: f.GetOn(), Reason: f.GetReason()})
		}
		for _, n := range networks.GetNetworks() { // all are alike
			(*d).Backend, (*d).Queues, (*d).MTU = n.GetBackend(), int(n.GetQueues()), int(n.GetMtu())
		}
	}
	for _, n := range networks.GetNetworks() {
		(*d).TAPOverflow += n.GetTapOverflow()
	}
	(*d).ReceiveOverflow += status.GetStatus().GetUnderlay().GetReceiveOverflow()
	for _, drop := range drops.GetDrops() {
		(*d).Drops[drop.GetReason()] += drop.GetCount()
	}
	return nil
}

// noteLosses adds what the daemons of a lab have lost that is about to be taken down.
func (n *notes) noteLosses(ctx context.Context, s *stand) error {
	d, err := s.ask(ctx)
	if err != nil || d == nil {
		return err
	}
	if n.lost != nil {
		d.AddLosses(n.lost)
	}
	n.lost = d
	return nil
}

// entry is how the contender stands in the report, after the run.
func (s *stand) entry(ctx context.Context) (report.Contender, error) {
	out := s.contender.entry()
	d, err := s.ask(ctx)
	if d == nil || err != nil {
		return out, err
	}
	if s.notes.lost != nil {
		d.AddLosses(s.notes.lost)
	}
	d.IdlePercent, d.PeakBytes = s.notes.idle, s.notes.peak
	out.Daemon = d
	return out, nil
}
