package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

const (
	// stationsEach is how many stations a network has. overlayd learns 65,536 in each at most.
	stationsEach = 62_500
	// fillPasses is how often that is tried: announcements get lost.
	fillPasses = 10
)

// bigTable is traffic beside a forwarding database with many stations, which move.
type bigTable struct {
	stations int     // in all networks together
	rate     float64 // moves a second
}

// table is 1 flow of TCP out of a host that has learned many stations on several networks, while they move between two
// other hosts: each announces itself by a gratuitous ARP request (RFC 5227, section 3), as one does that has moved.
func table(name string, stations int, rate float64) workload {
	b := &bigTable{stations: stations, rate: rate}
	return workload{
		Workload: report.Workload{
			Name: name,
			About: fmt.Sprintf("TCP, 1 flow out of a host that has learned %d stations in %d networks, while %.0f a second of them move and announce it; ALONE is before they do",
				stations, b.networks(), rate),
			Metrics: []report.Metric{
				{Name: throughput, Title: "Gb/s", Unit: "Gb/s", Better: report.More, Compared: true, Digits: 2},
				{Name: "alone", Title: "ALONE Gb/s", Unit: "Gb/s", Better: report.More, Compared: true, Digits: 2},
				{Name: "announced", Title: "MOVES SENT k/s", Unit: "k/s", Better: report.More, Digits: 1},
				{Name: "moves", Title: "ARRIVED k/s", Unit: "k/s", Better: report.More, Digits: 1},
				{Name: "stations", Title: "STATIONS", Unit: "entries", Better: report.More},
			},
		},
		scene: b.scene,
		run:   b.run,
	}
}

// networks is how many there have to be. The flow is in the first; in the others, moves can be told from it.
func (b *bigTable) networks() int { return max(2, (b.stations+stationsEach-1)/stationsEach) }

func networkName(i int) string {
	if i == 0 {
		return network
	}
	return fmt.Sprintf("%s%d", network, i)
}

// scene is the host that learns, the one that it sends to, and the two that the stations are behind. These two are
// never asked to do anything, and so have the kernel's devices.
func (b *bigTable) scene(c *contender) lab.Scenario {
	sc := c.hosts("table-"+c.name, 4, lab.Bridged)
	for i := range b.networks() {
		members := sc.Hosts[:1]
		if i == 0 {
			members = sc.Hosts[:2]
		}
		n := c.network(networkName(i), networkVNI+uint32(i), members...)
		for _, h := range sc.Hosts[2:] {
			n.Members[h.Name] = lab.Kernel
		}
		sc.Networks = append(sc.Networks, n)
	}
	return sc
}

func (b *bigTable) run(ctx context.Context, s *stand, t timing) ([]float64, error) {
	hosts := s.lab.Hosts()
	c := load.StationsConfig{
		Behind: []load.Namespace{hosts[2], hosts[3]},
		To:     netip.AddrPortFrom(hosts[0].Underlay()[0].Addr(), vxlanPort),
		Count:  b.stations,
		Rate:   b.rate,
		Limit:  b.stations,
	}
	for i := range b.networks() {
		c.VNIs = append(c.VNIs, networkVNI+uint32(i))
	}
	known, err := b.fill(ctx, hosts[0], &c)
	if err != nil {
		return nil, err
	}
	flow := load.TCPConfig{From: s.path.from, To: s.path.to, Address: s.path.address}
	alone, err := measureBulk(ctx, flow, t, nil)
	if err != nil {
		return nil, err
	}
	c.Limit = 0
	with, err := b.beside(ctx, hosts[0], flow, c, t)
	if err != nil {
		return nil, err
	}
	return []float64{with.throughput, alone[0], with.announced / 1e3, with.moves / 1e3, float64(known)}, nil
}

// fill has the host learn all stations, and returns how many it knows. The next announcement is that of a move.
func (b *bigTable) fill(ctx context.Context, h *lab.Host, c *load.StationsConfig) (known int, err error) {
	for range fillPasses {
		if _, err := load.Stations(ctx, *c); err != nil {
			return 0, err
		}
		c.First += uint64(b.stations)
		if known, err = b.known(ctx, h); known >= b.stations || err != nil {
			return known, err
		}
	}
	return 0, fmt.Errorf("%s knows only %d of %d stations that were announced %d times", h.Name(), known, b.stations, fillPasses)
}

// known is how many entries the forwarding databases of a host have together.
func (b *bigTable) known(ctx context.Context, h *lab.Host) (int, error) {
	if !h.RunsOverlayd() {
		n := 0
		err := h.Do(func() (err error) {
			n, err = countFDB()
			return err
		})
		return n, err
	}
	c := api.NewClient(h.Socket())
	defer c.Close()
	r, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
	if err != nil {
		return 0, fmt.Errorf("ask the overlayd of %s for its networks: %s", h.Name(), api.Message(err))
	}
	n := 0
	for _, one := range r.GetNetworks() {
		n += int(one.GetFdbEntries())
	}
	return n, nil
}

// countFDB counts what the vxlan devices in the namespace of the calling thread know.
func countFDB() (int, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_BRIDGE})
	n := 0
	// One by one, since a million of them decoded would take a gigabyte.
	err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH, func([]byte) bool {
		n++
		return true
	})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return 0, fmt.Errorf("count the entries of the vxlan devices: %w", err)
	}
	return n, nil
}

// beside is what was measured while stations moved.
type beside struct {
	throughput       float64 // Gb/s
	announced, moves float64 // a second: sent, and arrived at the network's device
}

// beside moves data while the stations move.
func (b *bigTable) beside(ctx context.Context, h *lab.Host, flow load.TCPConfig, c load.StationsConfig, t timing) (out beside, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	type outcome struct {
		load.StationsResult
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		r, err := load.Stations(ctx, c)
		ended <- outcome{r, err}
		stop()
	}()
	var seen []uint64 // at the begin and at the end
	var when []time.Time
	values, err := measureBulk(ctx, flow, t, func() error {
		n, err := b.arrived(h)
		seen, when = append(seen, n), append(when, time.Now())
		return err
	})
	stop()
	sent := <-ended
	if sent.err != nil && !errors.Is(sent.err, context.Canceled) {
		return out, sent.err // the stations stopped by themselves, and so the measurement is none
	}
	if err != nil {
		return out, err
	}
	out.throughput = values[0]
	out.announced = float64(sent.Sent) / sent.Elapsed.Seconds()
	// The networks without the flow stand for all: stations take turns by network.
	share := float64(b.networks()-1) / float64(b.networks())
	out.moves = float64(seen[1]-seen[0]) / when[1].Sub(when[0]).Seconds() / share
	return out, nil
}

// arrived is how many frames have come in on the networks without the flow.
func (b *bigTable) arrived(h *lab.Host) (uint64, error) {
	var sum uint64
	err := h.Do(func() error {
		for i := 1; i < b.networks(); i++ {
			l, err := netlink.LinkByName(h.Device(networkName(i)))
			if err != nil {
				return err
			}
			if st := l.Attrs().Statistics; st != nil {
				sum += st.RxPackets
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("count the frames that %s has received: %w", h.Name(), err)
	}
	return sum, nil
}
