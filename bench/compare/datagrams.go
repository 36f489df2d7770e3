package compare

import (
	"context"
	"fmt"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
)

// fullDatagram is the payload that fills a packet of any contender here, in bytes: the overlay's MTU of 1450 less the
// headers of IPv4 and UDP.
const fullDatagram = 1450 - 20 - 8

// packets is datagrams, as many as the sender can.
func packets(name string, size, flows int) workload {
	from := "1 flow"
	if flows > 1 {
		from = fmt.Sprintf("%d flows", flows)
	}
	return workload{
		Workload: report.Workload{
			Name:  name,
			About: fmt.Sprintf("UDP, %s of datagrams with %d bytes, sent as fast as the sender can: thousands a second, and what was lost", from, size),
			Metrics: []report.Metric{
				{Name: "received", Title: "RECEIVED k/s", Unit: "k/s", Better: report.More, Compared: true, Digits: 1},
				{Name: "sent", Title: "SENT k/s", Unit: "k/s", Better: report.More, Digits: 1},
				{Name: "loss", Title: "LOST %", Unit: "%", Better: report.Less, Digits: 2},
				{Name: "overflow", Title: "AT RECEIVER %", Unit: "%", Better: report.Less, Digits: 2},
				{Name: "reordered", Title: "REORDERED", Unit: "datagrams", Better: report.Less},
			},
		},
		run: func(ctx context.Context, s *stand, t timing) ([]float64, error) {
			p := s.path
			c := load.UDPConfig{From: p.from, To: p.to, Address: p.address, Size: size, Flows: flows, Duration: t.warmup}
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
				float64(r.Reordered),
			}, nil
		},
	}
}
