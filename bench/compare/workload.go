package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
)

// path is where the traffic of a contender goes.
type path struct {
	from, to load.Namespace
	address  netip.Addr // of to
}

// timing is how long things take.
type timing struct {
	warmup, duration time.Duration
}

// workload is one kind of traffic. run returns a value for each metric, in their order.
type workload struct {
	report.Workload
	run func(ctx context.Context, s *stand, t timing) ([]float64, error)
	// scene, if set, is a lab of its own that the workload needs of a contender. It is up for one measurement only.
	scene func(c *contender) lab.Scenario
}

// suits reports whether the workload can be measured with a contender. Scenes are of hosts.
func (w *workload) suits(c *contender) bool {
	return w.scene == nil || c.kind != "" && !c.containers && c.wire.name == wireOffload.name
}

// Names that floors refer to.
const (
	oneFlow    = "tcp-1"
	throughput = "throughput"
	cpuPerGB   = "cpu_per_gb"
)

// workloads are all that there are, in the order in which they are run and shown.
func workloads() []workload {
	return []workload{
		bulk(oneFlow, 1, load.Forward), bulk("tcp-4", 4, load.Forward), bulk("tcp-16", 16, load.Forward),
		bulk("tcp-1-back", 1, load.Reverse), bulk("tcp-4-back", 4, load.Reverse), bulk("tcp-16-back", 16, load.Reverse),
		packets("udp-64", 64, 1), packets("udp-512", 512, 1), packets("udp-mtu", fullDatagram, 1), packets("udp-64-flows", 64, 64),
		roundTrips("rtt-tcp", false), roundTrips("rtt-tcp-busy", true),
		connections(),
		peers("peers-16", 16),
		table("table-1m", 1_000_000, 100_000),
	}
}

// chooseWorkloads returns those that are named, all when none is.
func chooseWorkloads(names []string) ([]workload, error) {
	all := workloads()
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for _, w := range all {
		known = append(known, w.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no workload %q: choose from %s", name, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(w workload) bool { return !slices.Contains(names, w.Name) }), nil
}

// errNothing says that a path is dead though nobody complained.
var errNothing = errors.New("nothing arrived")
