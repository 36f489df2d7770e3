package compare

import (
	"context"
	"errors"
	"fmt"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
)

// bulkMetrics are what measureBulk returns.
func bulkMetrics() []report.Metric {
	return []report.Metric{
		{Name: throughput, Title: "Gb/s", Unit: "Gb/s", Better: report.More, Compared: true, Digits: 2},
		{Name: cpuPerGB, Title: "CPU s/GB", Unit: "CPU seconds per 10^9 bytes", Better: report.Less, Compared: true, Digits: 3},
		{Name: "retransmits", Title: "SENT AGAIN", Unit: "segments", Better: report.Less},
	}
}

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
			Name:    name,
			About:   fmt.Sprintf("TCP, %d flow%s %s: payload received, and the CPU time of the whole machine for it", flows, plural, way),
			Metrics: bulkMetrics(),
		},
		run: func(ctx context.Context, s *stand, t timing) ([]float64, error) {
			p := s.path
			return measureBulk(ctx, load.TCPConfig{From: p.from, To: p.to, Address: p.address, Direction: direction, Flows: flows}, t, nil)
		},
	}
}

// measureBulk moves data. If onWindow is set, it is called when what is measured begins and when it ends.
func measureBulk(ctx context.Context, c load.TCPConfig, t timing, onWindow func() error) ([]float64, error) {
	var looks [2]cpuTimes
	var lookErr error
	c.Warmup, c.Duration = t.warmup, t.duration
	c.OnWindow = func(begins bool) {
		which := 1
		if begins {
			which = 0
		}
		var err error
		looks[which], err = readCPU()
		if err == nil && onWindow != nil {
			err = onWindow()
		}
		lookErr = errors.Join(lookErr, err)
	}
	r, err := load.TCP(ctx, c)
	moved := r.Forward
	if c.Direction == load.Reverse {
		moved = r.Reverse
	}
	switch {
	case err != nil:
		return nil, err
	case lookErr != nil:
		return nil, lookErr
	case moved.Bytes == 0:
		return nil, errNothing
	}
	busy := looks[1].since(looks[0]).busy
	return []float64{
		moved.BitsPerSecond() / 1e9,
		busy.Seconds() / (float64(moved.Bytes) / 1e9),
		float64(moved.Retransmits),
	}, nil
}

// peers is TCP from one host to many at the same time, one flow to each.
func peers(name string, many int) workload {
	return workload{
		Workload: report.Workload{
			Name:    name,
			About:   fmt.Sprintf("TCP from one host to %d others at the same time, 1 flow to each, over one bridge: the sum of the payload received", many),
			Metrics: bulkMetrics(),
		},
		scene: func(c *contender) lab.Scenario {
			sc := c.hosts("peers-"+c.name, many+1, lab.Bridged)
			sc.Networks = []lab.NetworkSpec{c.network(network, networkVNI, sc.Hosts...)}
			return sc
		},
		run: func(ctx context.Context, s *stand, t timing) ([]float64, error) {
			c := load.TCPConfig{From: s.path.from, To: s.path.to, Address: s.path.address}
			for _, h := range s.lab.Hosts()[2:] {
				c.Others = append(c.Others, load.Receiver{To: h, Address: h.Overlay(network)})
			}
			return measureBulk(ctx, c, t, nil)
		},
	}
}
