package compare

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/report"
)

// method says what is done, for those who read the numbers.
func (p *plan) method() report.Method {
	m := report.Method{
		Rounds:   p.Rounds,
		Duration: p.duration.Seconds(),
		Warmup:   p.warmup.Seconds(),
		Quiet:    p.quiet().Seconds(),
		Notes: []string{
			fmt.Sprintf("Rounds: %d. Each takes the workloads one after the other and, within each, all contenders in turn. "+
				"Shown are the median and the extremes of the rounds. x KERNEL is the median as a multiple of that of the kernel's device on the same wire, attached in the same way, of this run.", p.Rounds),
			"Each contender has two network namespaces of its own at the two ends of one veth, without a router or a bridge in between. " +
				"All are up during the whole run; one at a time has traffic. Those with containers have one on each host, joined by a veth to a bridge in a namespace " +
				"that also has the vxlan device or the TAP.",
			fmt.Sprintf("Measured for %v each time, after %v of the same traffic that is left out: in TCP in the same connections, so that no slow start is measured. "+
				"Resolution of addresses and learning are over before.", p.duration, p.warmup),
			"TCP is the payload that reached the receiving program between two looks at the running flows. UDP is sent by sendmmsg, without segmentation offload, " +
				"and without a limit; AT RECEIVER is the part of all that was lost in the receiving program's own socket, behind the contender.",
			"Round trips are whole ones, there and back.",
			fmt.Sprintf("Daemons are watched for %v without traffic before the first round. Memory is what was resident of the process at most during a workload, in any round.", p.quiet()),
			"The traffic is made and counted on the same cores, by overlayctl. CPU seconds are those of the whole machine: of the generators, the contender, " +
				"the kernel, and of whatever else runs. The kernel counts them in ticks of 10 ms, and what the hypervisor gave to others is not in them.",
		},
	}
	if slices.ContainsFunc(p.workloads, func(w workload) bool { return w.scene != nil }) {
		m.Notes = append(m.Notes, "For "+sceneNames(p.workloads)+" hosts of their own, joined by a bridge, are made for each measurement and removed after it. The host that sends is the first.")
	}
	return m
}

// sceneNames are the workloads that have labs of their own.
func sceneNames(all []workload) string {
	var names []string
	for _, w := range all {
		if w.scene != nil {
			names = append(names, w.Name)
		}
	}
	return strings.Join(names, " and ")
}

// What is worth a warning.
const (
	noisyShare      = 0.05 // of all cores, used by others before the start
	stolenShare     = 0.02 // of all cores
	noisyBystanders = 0.02 // of one core
	fullRounds      = 3
	fullDuration    = 2 * time.Second
	floorCores      = 2
)

// warnings are reasons to not believe the numbers.
func (p *plan) warnings(e *report.Environment) []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if p.Rounds < fullRounds || p.duration < fullDuration {
		warn("a short run says that it works, not how fast: use at least %d rounds and %v for figures", fullRounds, fullDuration)
	}
	if e.BusyBefore > noisyShare*float64(e.Cores) {
		warn("%.2f of %d cores were busy before the start: repeat it on a quiet machine", e.BusyBefore, e.Cores)
	}
	if e.Steal > stolenShare*float64(e.Cores) {
		warn("the hypervisor gave %.2f of %d cores to other guests during the run", e.Steal, e.Cores)
	}
	if e.Bystanders > noisyBystanders {
		warn("the contenders that were not in turn used %.3f of a core, at the cost of the one that was", e.Bystanders)
	}
	if e.Cores != floorCores {
		warn("the floors are meant for %d cores, and this machine has %d", floorCores, e.Cores)
	}
	return out
}
