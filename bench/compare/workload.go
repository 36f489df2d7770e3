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

// smallDatagram is the payload of the datagrams of the packet rate, in bytes.
const smallDatagram = 64

// workloads are all that there are, in the order in which they are run and shown.
func workloads() []workload {
	return []workload{bulk(1), bulk(4), packets(), roundTrips()}
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

// bulk is TCP as fast as it goes, in one direction.
func bulk(flows int) workload {
	plural := "s"
	if flows == 1 {
		plural = ""
	}
	return workload{
		Workload: report.Workload{
			Name:  fmt.Sprintf("tcp-%d", flows),
			About: fmt.Sprintf("TCP, %d flow%s in one direction: payload received, and the CPU time of the whole machine for it", flows, plural),
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
				From: p.from, To: p.to, Address: p.address, Flows: flows, Warmup: t.warmup, Duration: t.duration,
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
			switch {
			case err != nil:
				return nil, err
			case cpuErr != nil:
				return nil, cpuErr
			case r.Forward.Bytes == 0:
				return nil, errNothing
			}
			busy := closed.since(open).busy
			return []float64{
				r.Forward.BitsPerSecond() / 1e9,
				busy.Seconds() / (float64(r.Forward.Bytes) / 1e9),
				float64(r.Forward.Retransmits),
			}, nil
		},
	}
}

// packets is small datagrams, as many as the sender can.
func packets() workload {
	return workload{
		Workload: report.Workload{
			Name:  fmt.Sprintf("udp-%d", smallDatagram),
			About: fmt.Sprintf("UDP, 1 flow of datagrams with %d bytes, sent as fast as the sender can: thousands a second, and what was lost", smallDatagram),
			Metrics: []report.Metric{
				{Name: "received", Title: "RECEIVED k/s", Unit: "k/s", Better: report.More, Compared: true, Digits: 1},
				{Name: "sent", Title: "SENT k/s", Unit: "k/s", Better: report.More, Digits: 1},
				{Name: "loss", Title: "LOST %", Unit: "%", Better: report.Less, Digits: 2},
				{Name: "overflow", Title: "AT RECEIVER %", Unit: "%", Better: report.Less, Digits: 2},
			},
		},
		run: func(ctx context.Context, p path, t timing) ([]float64, error) {
			c := load.UDPConfig{From: p.from, To: p.to, Address: p.address, Size: smallDatagram, Duration: t.warmup}
			if t.warmup > 0 {
				if _, err := load.UDP(ctx, c); err != nil {
					return nil, err
				}
			}
			c.Duration = t.duration
			r, err := load.UDP(ctx, c)
			switch {
			case err != nil:
				return nil, err
			case r.Received == 0:
				return nil, errNothing
			case r.Corrupt > 0:
				return nil, fmt.Errorf("%d datagrams came damaged", r.Corrupt)
			}
			return []float64{
				r.Rate() / 1e3,
				r.SendRate() / 1e3,
				100 * r.Loss(),
				100 * float64(r.Overflow) / float64(r.Sent),
			}, nil
		},
	}
}

// roundTrips is a byte there and a byte back over TCP, one at a time.
func roundTrips() workload {
	quantile := func(name, title string) report.Metric {
		return report.Metric{Name: name, Title: title, Unit: "us", Better: report.Less, Compared: true, Digits: 1}
	}
	return workload{
		Workload: report.Workload{
			Name:    "rtt-tcp",
			About:   "Round trip of 1 byte over TCP, there and back, one at a time on an idle path",
			Metrics: []report.Metric{quantile("p50", "p50 us"), quantile("p99", "p99 us"), quantile("p999", "p99.9 us")},
		},
		run: func(ctx context.Context, p path, t timing) ([]float64, error) {
			c := load.RoundTripConfig{From: p.from, To: p.to, Address: p.address, Transport: load.OverTCP, Size: 1, Duration: t.warmup}
			if t.warmup > 0 {
				if _, err := load.RoundTrip(ctx, c); err != nil {
					return nil, err
				}
			}
			c.Duration = t.duration
			l, err := load.RoundTrip(ctx, c)
			if err != nil {
				return nil, err
			}
			if l.Count == 0 {
				return nil, errNothing
			}
			us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
			return []float64{us(l.P50), us(l.P99), us(l.P999)}, nil
		},
	}
}

// floors are the least that is asked for.
func floors() []report.Floor {
	return []report.Floor{
		{Contender: overlaydName, Workload: oneFlow, Metric: throughput, Limit: 0.6},
		{Contender: overlaydBare, Workload: oneFlow, Metric: throughput, Limit: 1.2},
	}
}
