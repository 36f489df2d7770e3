package compare

import "github.com/overlayd/overlayd/bench/report"

// floors are what is asked for as multiples of the kernel, and what is aimed at.
func floors() []report.Floor {
	of := func(contender, workload, metric string, must, goal float64) report.Floor {
		return report.Floor{Contender: contender, Workload: workload, Metric: metric, Limit: must, Goal: goal}
	}
	return []report.Floor{
		of(overlaydName, oneFlow, throughput, 0.8, 1),
		of(overlaydBare, oneFlow, throughput, 1.7, 2),
		of(overlaydContainers, oneFlow, throughput, 0.65, 1),
		of(overlaydName, "tcp-4", throughput, 0.55, 0.9),
		of(overlaydName, "udp-64", "received", 1, 1.5),
		of(overlaydName, "udp-64-flows", "received", 0.7, 1),
		of(overlaydName, "rtt-tcp", "p50", 1.6, 1.2),
		of(overlaydName, "rtt-tcp-busy", "p99", 2, 1.2),
		of(overlaydName, oneFlow, cpuPerGB, 2, 1.3),
	}
}

// What a daemon may need.
const (
	mostIdle  = 0.5  // percent of a core
	mostBytes = 80e6 // resident
)

// limits are what is asked of the daemons by themselves.
func limits() []report.Limit {
	var out []report.Limit
	for _, name := range []string{overlaydName, overlaydContainers} {
		out = append(out,
			report.Limit{Contender: name, Quantity: report.Memory, Most: mostBytes},
			report.Limit{Contender: name, Quantity: report.Idle, Most: mostIdle})
	}
	return out
}
