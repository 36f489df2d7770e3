package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

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
	run func(ctx context.Context, p path, t timing) ([]float64, error)
}

// Names that floors refer to.
const (
	oneFlow    = "tcp-1"
	throughput = "throughput"
)

// workloads are all that there are, in the order in which they are run and shown.
func workloads() []workload {
	return []workload{
		bulk(oneFlow, 1, load.Forward), bulk("tcp-4", 4, load.Forward), bulk("tcp-16", 16, load.Forward),
		bulk("tcp-1-back", 1, load.Reverse), bulk("tcp-4-back", 4, load.Reverse), bulk("tcp-16-back", 16, load.Reverse),
		packets("udp-64", 64, 1), packets("udp-512", 512, 1), packets("udp-mtu", fullDatagram, 1), packets("udp-64-flows", 64, 64),
		roundTrips("rtt-tcp", false), roundTrips("rtt-tcp-busy", true),
		connections(),
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

// floors are the least that is asked for, and further below what is aimed at.
func floors() []report.Floor {
	return []report.Floor{
		{Contender: overlaydName, Workload: oneFlow, Metric: throughput, Limit: 0.6},
		{Contender: overlaydBare, Workload: oneFlow, Metric: throughput, Limit: 1.2},
		{Contender: overlaydName, Workload: oneFlow, Metric: throughput, Limit: 0.8},
		{Contender: overlaydBare, Workload: oneFlow, Metric: throughput, Limit: 1.7},
		{Contender: overlaydName, Workload: "tcp-4", Metric: throughput, Limit: 0.55},
		{Contender: overlaydName, Workload: "udp-64", Metric: "received", Limit: 1},
		{Contender: overlaydName, Workload: "udp-64-flows", Metric: "received", Limit: 0.7},
		{Contender: overlaydName, Workload: "rtt-tcp", Metric: "p50", Limit: 1.6},
		{Contender: overlaydName, Workload: "rtt-tcp-busy", Metric: "p99", Limit: 2},
		{Contender: overlaydName, Workload: oneFlow, Metric: "cpu_per_gb", Limit: 2},
	}
}
