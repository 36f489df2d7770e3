package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// settle bounds how long counters may take to agree: frames are under way when they are read.
const settle = 2 * time.Second

// view is what the overlayd of a host says about itself.
type view struct {
	host     *Host
	status   *overlaydv1.NodeStatus
	networks []*overlaydv1.Network
	peers    []*overlaydv1.Peer
	fdb      map[string][]*overlaydv1.FDBEntry // by network
	drops    []*overlaydv1.Drop
}

// look asks the overlayd of a host for everything.
func look(ctx context.Context, h *Host) (*view, error) {
	c := api.NewClient(h.Socket())
	defer c.Close()
	v := &view{host: h, fdb: make(map[string][]*overlaydv1.FDBEntry)}
	steps := []func() error{
		func() error {
			r, err := c.GetStatus(ctx, &overlaydv1.GetStatusRequest{})
			v.status = r.GetStatus()
			return err
		},
		func() error {
			r, err := c.ListPeers(ctx, &overlaydv1.ListPeersRequest{})
			v.peers = r.GetPeers()
			return err
		},
		func() error {
			r, err := c.ListDrops(ctx, &overlaydv1.ListDropsRequest{})
			v.drops = r.GetDrops()
			return err
		},
		func() error {
			var err error
			v.networks, err = settled(ctx, c)
			return err
		},
		func() error {
			for _, n := range v.networks {
				for e, err := range c.FDB(ctx, n.Name) {
					if err != nil {
						return err
					}
					v.fdb[n.Name] = append(v.fdb[n.Name], e)
				}
			}
			return nil
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("ask the overlayd of %s: %s", h.name, api.Message(err))
		}
	}
	return v, nil
}

// settled reads the networks until the counters of each balance, or time is over.
func settled(ctx context.Context, c *api.Client) ([]*overlaydv1.Network, error) {
	deadline := time.NewTimer(settle)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{})
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(r.GetNetworks(), func(n *overlaydv1.Network) bool { return missing(n.GetCounters()) != 0 }) {
			return r.GetNetworks(), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline.C:
			return r.GetNetworks(), nil
		case <-tick.C:
		}
	}
}

// missing is how many frames went in and neither came out nor were counted as dropped.
func missing(k *overlaydv1.Counters) int64 {
	in := k.GetTapIn().GetFrames() + k.GetUnderlayIn().GetFrames() + k.GetFramesCreated()
	out := k.GetTapOut().GetFrames() + k.GetUnderlayOut().GetFrames() + k.GetFramesDropped()
	return int64(in - out)
}

// inspect shows what every overlayd says about itself.
func (d *demo) inspect(ctx context.Context) error {
	var views []*view
	for _, h := range d.lab.hosts {
		if !h.RunsOverlayd() {
			continue
		}
		if !d.check(h.PID() != 0, "overlayd of %s ended%s", h.name, tail(h.LogPath())) {
			continue
		}
		v, err := look(ctx, h)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !d.check(err == nil, "%v", err) {
			continue
		}
		views = append(views, v)
	}
	if len(views) == 0 {
		return nil
	}
	d.showMTU(views)
	if err := d.showFDB(views); err != nil {
		return err
	}
	d.showCounters(views)
	d.showDrops(views)
	return nil
}

func (d *demo) showMTU(views []*view) {
	d.section("MTU", "Nobody has to set it: overlayd takes the MTU of its route to each peer, less the encapsulation, and gives its device the smallest.")
	table := rows{{"HOST", "DEVICE", " MTU", "PEER", " UNDERLAY", " OVERHEAD", " FITS"}}
	for _, v := range views {
		for _, n := range v.networks {
			size := fmt.Sprint(n.Mtu)
			if !n.MtuDerived {
				size += " (set)"
			}
			first := []string{v.host.name, n.Device, size}
			for _, p := range v.peers {
				if !slices.Contains(p.Networks, n.Name) {
					continue
				}
				d.check(n.Mtu <= p.OverlayMtu, "the MTU of %s on %s is %d, but only %d fits towards %s", n.Device, v.host.name, n.Mtu, p.OverlayMtu, p.Address)
				table.add(append(first, p.Address, fmt.Sprint(p.UnderlayMtu), fmt.Sprint(p.Overhead), fmt.Sprint(p.OverlayMtu))...)
				first = []string{"", "", ""}
			}
		}
	}
	d.table(table)
	for _, v := range views {
		for _, p := range v.peers {
			// Not a failure: it may be from when that peer was not up yet, and the traffic has proven the path.
			if p.Problem != "" {
				d.printf("  %s heard about %s not long ago: %s\n", v.host.name, p.Address, p.Problem)
			}
		}
	}
}

func (d *demo) showFDB(views []*view) error {
	d.section("Forwarding database", "Behind which host each MAC address lives, learned from the frames that came from there.")
	table := rows{{"HOST", "NETWORK", "MAC", "VTEP", "WHO", " AGE"}}
	for _, v := range views {
		for _, n := range v.networks {
			owners, err := d.lab.owners(n.Name)
			if err != nil {
				return err
			}
			first := []string{v.host.name, n.Name}
			known := make(map[string]bool)
			for _, e := range v.fdb[n.Name] {
				owner := owners[e.Mac]
				known[owner] = true
				age := fmt.Sprintf("%.0f s", e.Age.AsDuration().Seconds())
				if e.Static {
					age = "static"
				}
				table.add(append(first, e.Mac, e.Vtep, owner, age)...)
				first = []string{"", ""}
			}
			for _, other := range owners {
				if other != v.host.name {
					d.check(known[other], "the FDB of %s on %s does not know %s", n.Name, v.host.name, other)
				}
			}
		}
	}
	d.table(table)
	return nil
}

// owners maps the MAC addresses of a network's devices to the hosts that have them.
func (l *Lab) owners(network string) (map[string]string, error) {
	owners := make(map[string]string)
	for _, h := range l.hosts {
		if h.Kind(network) == "" {
			continue
		}
		dev, err := h.nl.LinkByName(h.Device(network))
		if err != nil {
			return nil, fmt.Errorf("look at %s of %s: %w", h.Device(network), h.name, err)
		}
		owners[dev.Attrs().HardwareAddr.String()] = h.name
	}
	return owners, nil
}

func (d *demo) showCounters(views []*view) {
	d.section("Counters", "In frames as on a wire. What goes in comes out or is counted as dropped: in + created = out + dropped.")
	table := rows{{"HOST", "NETWORK", " FROM TAP", " FROM UNDERLAY", " CREATED", "", " TO TAP", " TO UNDERLAY", " DROPPED", "BALANCE"}}
	for _, v := range views {
		for _, n := range v.networks {
			k := n.GetCounters()
			balance := "ok"
			if lost := missing(k); !d.check(lost == 0, "counters of %s on %s: %d frames are not accounted for", n.Name, v.host.name, lost) {
				balance = fmt.Sprintf("%+d", lost)
			}
			table.add(v.host.name, n.Name, grouped(k.GetTapIn().GetFrames()), grouped(k.GetUnderlayIn().GetFrames()), grouped(k.GetFramesCreated()), "=",
				grouped(k.GetTapOut().GetFrames()), grouped(k.GetUnderlayOut().GetFrames()), grouped(k.GetFramesDropped()), balance)
		}
	}
	d.table(table)
	for _, v := range views {
		if n := v.status.GetUnderlay().GetReceiveOverflow(); n > 0 {
			d.printf("  %s: the kernel dropped %s datagrams before overlayd saw them, its receive buffer being full\n", v.host.name, grouped(n))
		}
		for _, n := range v.networks {
			if n.TapOverflow > 0 {
				d.printf("  %s: the kernel dropped %s frames of %s before overlayd saw them, the queue being full\n", v.host.name, grouped(n.TapOverflow), n.Device)
			}
		}
		var off []string
		for _, f := range v.status.GetFeatures() {
			if !f.On {
				off = append(off, f.Name)
			}
		}
		if len(off) > 0 {
			d.printf("  %s runs without %s\n", v.host.name, strings.Join(off, ", "))
		}
	}
}

func (d *demo) showDrops(views []*view) {
	table := rows{{"HOST", "NETWORK", "REASON", " FRAMES"}}
	help := make(map[string]string) // by reason
	for _, v := range views {
		for _, drop := range v.drops {
			network := drop.Network
			if network == "" {
				network = "-"
			}
			table.add(v.host.name, network, drop.Reason, grouped(drop.Count))
			help[drop.Reason] = drop.Help
		}
	}
	if len(help) == 0 {
		d.section("Drops", "No frame was dropped.")
		return
	}
	d.section("Drops", "Every dropped frame has a reason.")
	d.table(table)
	for _, reason := range slices.Sorted(maps.Keys(help)) {
		d.printf("  %s: %s\n", reason, strings.ReplaceAll(wrap(help[reason], 90), "\n", "\n    "))
	}
}
