package compare

import (
	"context"
	"errors"
	"fmt"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
)

// bulk is TCP as fast as it goes, in one direction.
func bulk(name string, flows int, direction load.Direction) workload {
	plural, way := "s", "in one direction"
	if flows == 1 {
		plural = ""
	}
	if direction == load.Reverse {
		way = "in the other direction"
	}
	return workload{
		Workload: report.Workload{
			Name:  name,
			About: fmt.Sprintf("TCP, %d flow%s %s: payload received, and the CPU time of the whole machine for it", flows, plural, way),
			Metrics: []report.Metric{
				{Name: throughput, Title: "Gb/s", Unit: "Gb/s", Better: report.More, Compared: true, Digits: 2},
				{Name: "cpu_per_gb", Title: "CPU s/GB", Unit: "CPU seconds per 10^9 bytes", Better: report.Less, Compared: true, Digits: 3},
				{Name: "retransmits", Title: "SENT AGAIN", Unit: "segments", Better: report.Less},
			},
		},
		run: func(ctx context.Context, p path, t timing) ([]float64, error) {
			var open, closed cpuTimes
			var cpuErr error
			r, err := load.TCP(ctx, load.TCPConfig{
				From: p.from, To: p.to, Address: p.address, Direction: direction, Flows: flows, Warmup: t.warmup, Duration: t.duration,
				OnWindow: func(begins bool) {
					now, err := readCPU()
					cpuErr = errors.Join(cpuErr, err)
					if begins {
						open = now
					} else {
						closed = now
					}
				},
			})
			moved := r.Forward
			if direction == load.Reverse {
				moved = r.Reverse
			}
			switch {
			case err != nil:
				return nil, err
			case cpuErr != nil:
				return nil, cpuErr
			case moved.Bytes == 0:
				return nil, errNothing
			}
			busy := closed.since(open).busy
			return []float64{
				moved.BitsPerSecond() / 1e9,
				busy.Seconds() / (float64(moved.Bytes) / 1e9),
				float64(moved.Retransmits),
			}, nil
		},
	}
}
