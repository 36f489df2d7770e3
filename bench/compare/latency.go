package compare

import (
	"context"
	"errors"
	"time"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
)

// roundTrips is a byte there and a byte back over TCP, one at a time; busy: beside a bulk flow in the same direction,
// which fills whatever queue there is.
func roundTrips(name string, busy bool) workload {
	quantile := func(name, title string) report.Metric {
		return report.Metric{Name: name, Title: title, Unit: "us", Better: report.Less, Compared: true, Digits: 1}
	}
	w := workload{
		Workload: report.Workload{
			Name:    name,
			About:   "Round trip of 1 byte over TCP, there and back, one at a time on an idle path",
			Metrics: []report.Metric{quantile("p50", "p50 us"), quantile("p99", "p99 us"), quantile("p999", "p99.9 us")},
		},
		run: func(ctx context.Context, s *stand, t timing) ([]float64, error) {
			return measureRoundTrips(ctx, s.path, t)
		},
	}
	if busy {
		w.About = "Round trip of 1 byte over TCP, there and back, one at a time beside 1 flow of TCP as fast as it goes"
		w.run = func(ctx context.Context, s *stand, t timing) ([]float64, error) { return besideBulk(ctx, s.path, t) }
	}
	return w
}

func measureRoundTrips(ctx context.Context, p path, t timing) ([]float64, error) {
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
}

// besideBulk measures while a flow runs, which begins before and ends after.
func besideBulk(ctx context.Context, p path, t timing) ([]float64, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		_, err := load.TCP(ctx, load.TCPConfig{From: p.from, To: p.to, Address: p.address, Duration: time.Hour})
		ended <- err
		stop()
	}()
	values, err := measureRoundTrips(ctx, p, t)
	stop()
	if berr := <-ended; berr != nil && !errors.Is(berr, context.Canceled) {
		return nil, berr // the bulk flow ended by itself, and so the measurement is none
	}
	return values, err
}

// connections is TCP connections, opened one after the other.
func connections() workload {
	return workload{
		Workload: report.Workload{
			Name:    "connect",
			About:   "TCP connections opened one after the other: thousands a second",
			Metrics: []report.Metric{{Name: "connections", Title: "OPENED k/s", Unit: "k/s", Better: report.More, Compared: true, Digits: 2}},
		},
		run: func(ctx context.Context, s *stand, t timing) ([]float64, error) {
			p := s.path
			c := load.ConnectConfig{From: p.from, To: p.to, Address: p.address, Duration: t.warmup}
			if t.warmup > 0 {
				if _, err := load.Connect(ctx, c); err != nil {
					return nil, err
				}
			}
			c.Duration = t.duration
			r, err := load.Connect(ctx, c)
			if err != nil {
				return nil, err
			}
			return []float64{r.Rate() / 1e3}, nil
		},
	}
}
