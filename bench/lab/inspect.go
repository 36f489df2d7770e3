package lab

import (
	"cmp"
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
		v, err := look(ctx, h)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			d.check(false, "overlayd of "+h.name+" to answer", err.Error()+h.LogTail())
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
	d.section("MTU", "Nobody has to set it: overlayd proves how much of the MTU of its route gets to each peer, and gives its network what that leaves of the smallest, less the encapsulation.")
	table := rows{{"HOST", "NETWORK", " MTU", "PEER", " UNDERLAY", " PATH", " OVERHEAD", " FITS"}}
	paths, fit := 0, 0
	var wrong strings.Builder
	for _, v := range views {
		for _, n := range v.networks {
			size := fmt.Sprint(n.Mtu)
			if !n.MtuDerived {
				size += " (set)"
			}
			first := []string{v.host.name, n.Name, size}
			alike := make(map[string][]string) // peers, by what is said about them
			var order []string
			for _, p := range v.peers {
				if !slices.Contains(p.Networks, n.Name) {
					continue
				}
				paths++
				if n.Mtu <= p.OverlayMtu || !n.MtuDerived {
					fit++
				} else {
					fmt.Fprintf(&wrong, "; %d of %s on %s, but %d towards %s", n.Mtu, n.Name, v.host.name, p.OverlayMtu, p.Address)
				}
				key := fmt.Sprint(p.UnderlayMtu, p.PathMtu, p.Overhead, p.OverlayMtu)
				if alike[key] == nil {
					order = append(order, key)
				}
				alike[key] = append(alike[key], p.Address)
			}
			for _, key := range order {
				peers := alike[key][0]
				if more := len(alike[key]) - 1; more > 0 {
					peers += fmt.Sprintf(" and %d more", more)
				}
				table.add(slices.Concat(first, []string{peers}, strings.Fields(key))...)
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
	d.check(fit == paths, fmt.Sprintf("MTUs that fit on all %d paths", paths), fmt.Sprintf("that on %d%s", fit, wrong.String()))
}

func (d *demo) showFDB(views []*view) error {
	explanation := "Behind which host each MAC address lives, learned from the frames that came from there."
	if d.lab.scenario.hasCluster() {
		explanation = "Behind which host each container lives. Nothing had to be learned: every host has it from the cluster, and overlayd answers ARP from it."
	}
	d.section("Forwarding database", explanation)
	table := rows{{"HOST", "NETWORK", "MAC", "VTEP", "WHO", " AGE"}}
	expected, found := 0, 0
	for _, name := range networksOf(views) {
		owners, err := d.lab.owners(name)
		if err != nil {
			return err
		}
		hosts := make(map[string][]string) // by what is in their databases
		var order []string
		for _, v := range views {
			if !slices.ContainsFunc(v.networks, func(n *overlaydv1.Network) bool { return n.Name == name }) {
				continue
			}
			entries, known := v.entries(name, owners)
			for _, o := range owners {
				if o.host != v.host {
					expected++
					if known[o.name] {
						found++
					}
				}
			}
			if hosts[entries] == nil {
				order = append(order, entries)
			}
			hosts[entries] = append(hosts[entries], v.host.name)
		}
		for _, entries := range order {
			first := []string{strings.Join(hosts[entries], " "), name}
			for line := range strings.Lines(entries) {
				table.add(append(first, strings.Split(strings.TrimSuffix(line, "\n"), "\t")...)...)
				first = []string{"", ""}
			}
		}
	}
	d.table(table)
	d.check(found == expected, fmt.Sprintf("all that live behind other hosts, %d entries", expected), fmt.Sprint(found))
	return nil
}

// networksOf lists the names of the networks that any host has.
func networksOf(views []*view) []string {
	var names []string
	for _, v := range views {
		for _, n := range v.networks {
			if !slices.Contains(names, n.Name) {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// entries are those of the FDB as lines of cells, and whose they are.
func (v *view) entries(network string, owners map[string]station) (lines string, known map[string]bool) {
	var out strings.Builder
	known = make(map[string]bool)
	for _, e := range v.fdb[network] {
		owner := owners[e.Mac].name
		known[owner] = true
		age := fmt.Sprintf("%.0f s", e.Age.AsDuration().Seconds())
		if e.Static {
			age = "static"
		}
		fmt.Fprintf(&out, "%s\t%s\t%s\t%s\n", e.Mac, e.Vtep, owner, age)
	}
	return out.String(), known
}

// owners maps the MAC addresses on a network to the stations that have them.
func (l *Lab) owners(network string) (map[string]station, error) {
	owners := make(map[string]station)
	for _, s := range l.stations(network) {
		if s.mac == "" {
			dev, err := s.nl.LinkByName(s.host.Device(network))
			if err != nil {
				return nil, fmt.Errorf("look at %s of %s: %w", s.host.Device(network), s.name, err)
			}
			s.mac = dev.Attrs().HardwareAddr.String()
		}
		owners[s.mac] = s
	}
	return owners, nil
}

func (d *demo) showCounters(views []*view) {
	d.section("Counters", "In frames as on a wire, since the daemon started. What goes in comes out or is counted as dropped.")
	table := rows{{"HOST", "NETWORK", " FROM TAP", " FROM UNDERLAY", " CREATED", "", " TO TAP", " TO UNDERLAY", " DROPPED", " MISSING"}}
	var wrong strings.Builder
	for _, v := range views {
		for _, n := range v.networks {
			k := n.GetCounters()
			lost := missing(k)
			if lost != 0 {
				fmt.Fprintf(&wrong, "; %d missing of %s on %s", lost, n.Name, v.host.name)
			}
			table.add(v.host.name, n.Name, grouped(k.GetTapIn().GetFrames()), grouped(k.GetUnderlayIn().GetFrames()), grouped(k.GetFramesCreated()), "=",
				grouped(k.GetTapOut().GetFrames()), grouped(k.GetUnderlayOut().GetFrames()), grouped(k.GetFramesDropped()), fmt.Sprint(lost))
		}
	}
	d.table(table)
	d.check(wrong.Len() == 0, "in + created = out + dropped, and so nothing missing", fmt.Sprintf("%d balances%s", len(table)-1, cmp.Or(wrong.String(), ", nothing missing")))
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
