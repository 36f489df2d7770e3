package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Story is what a demo does with a scenario, in place of the usual ping, TCP and UDP. It takes place between the first and
// the last host of the first network.
type Story string

const (
	// Narrow proves that a hop is found out that carries less than the links of the hosts, with everything that a container
	// may send, and after each start of a daemon.
	Narrow Story = "narrow"
	// Shrink makes a hop narrower, and wide again, under a transfer.
	Shrink Story = "shrink"
	// Live changes the MTU of the first host's link under a transfer.
	Live Story = "live"
	// Floating cuts the subnet that two hosts share, so that they reach each other at their floating addresses only.
	Floating Story = "floating"
)

// stories are told by these functions, whose error is one that makes going on pointless.
func stories() map[Story]func(*demo, context.Context) error {
	return map[Story]func(*demo, context.Context) error{
		Narrow: (*demo).narrow, Shrink: (*demo).shrink, Live: (*demo).live, Floating: (*demo).floating,
	}
}

// checkStory checks that there is what the story is about.
func (sc *Scenario) checkStory() error {
	if sc.Story == "" {
		return nil
	}
	var floating, daemons int
	if len(sc.Networks) > 0 {
		for i := range sc.Hosts {
			h := &sc.Hosts[i]
			if h.Floating.IsValid() {
				floating++
			}
			if n := &sc.Networks[0]; n.reaches(h) && n.Members[h.Name] != Kernel {
				daemons++
			}
		}
	}
	switch {
	case stories()[sc.Story] == nil:
		return fmt.Errorf("story: %q is none of %s, %s, %s, %s", sc.Story, Narrow, Shrink, Live, Floating)
	case daemons < 2 || daemons != len(sc.Hosts):
		return errors.New("story: it is about the first network, of which all hosts must be, two at least, with overlayd on each")
	case sc.Story == Floating && floating < len(sc.Hosts):
		return errors.New("story: it is about floating addresses, and a host has none")
	case sc.Story != Floating && sc.Topology != Routed:
		return fmt.Errorf("story: hosts that are %s have no hop between them; use the routed topology", sc.Topology)
	case sc.Story == Narrow && sc.Router.MTU == 0:
		return errors.New("story: it is about a narrow hop, and there is none: give router.mtu")
	}
	return nil
}

// What the stories expect of overlayd.
const (
	proveTime  = 3 * time.Second  // from the start of a daemon until it knows what each path carries
	resumeTime = 3 * time.Second  // for which a transfer stands still when the path becomes narrower
	stallTime  = time.Second      // for which it does otherwise
	raiseTime  = 13 * time.Second // until a path that has become wider is known to be: re-validation is every 10 s
	moveTime   = 5 * time.Second  // from the failure of an address until another one is used
	returnTime = 30 * time.Second // until the better one is used again
)

// limit is within which time the demo expects something.
func (d *demo) limit(t time.Duration) time.Duration {
	return t * time.Duration(max(d.options.Slack, 1))
}

// timely checks that something took no longer than it may.
func (d *demo) timely(what string, most, took time.Duration) {
	most = d.limit(most)
	d.check(took <= most, fmt.Sprintf("%s within %v", what, most), fmt.Sprintf("%.2f s", took.Seconds()))
}

// actors are the network of the story and the two stations that have the parts.
func (d *demo) actors() (n *NetworkSpec, from, to station) {
	n = &d.lab.scenario.Networks[0]
	all := d.lab.stations(n.Name)
	return n, all[0], all[len(all)-1]
}

// paths are how the overlayd of the host reaches the others.
func (h *Host) paths(ctx context.Context) ([]*overlaydv1.Path, error) {
	c := api.NewClient(h.Socket())
	defer c.Close()
	r, err := c.ListPaths(ctx, &overlaydv1.ListPathsRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the overlayd of %s for its paths: %s", h.name, api.Message(err))
	}
	return r.GetPaths(), nil
}

// prove waits until these hosts have proven that the paths to all others carry so much. It returns how long that took, and
// the smallest that any of them settled on meanwhile.
func (d *demo) prove(ctx context.Context, hosts []*Host, size mtu.UnderlayMTU) (took time.Duration, least uint32, err error) {
	start := time.Now()
	least = uint32(size)
	last := ""
	err = await(ctx, fmt.Sprintf("proof that all paths carry %d bytes", size), func(ctx context.Context) (bool, error) {
		now := ""
		for _, h := range hosts {
			paths, err := h.paths(ctx)
			if err != nil {
				return false, err
			}
			if n := len(d.lab.hosts) - 1; len(paths) != n {
				now += fmt.Sprintf("; %s has %d paths of %d", h.name, len(paths), n)
			}
			for _, p := range paths {
				if p.Settled && p.Learned == "probe" {
					least = min(least, p.PathMtu)
				}
				if !proven(p, size) {
					now += fmt.Sprintf("; %s to %s: %d, by %s, settled: %v", h.name, p.Peer, p.PathMtu, p.Learned, p.Settled)
				}
			}
		}
		last = now
		return now == "", nil
	})
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimPrefix(last, "; "))
	}
	return time.Since(start), least, err
}

// proven reports whether a path is known to carry exactly so much.
func proven(p *overlaydv1.Path, size mtu.UnderlayMTU) bool {
	return p.Settled && p.Learned == "probe" && p.PathMtu == uint32(size)
}

// showPaths has overlayctl tell what there is to know about a host's paths, and looks that scripts are told the same.
func (d *demo) showPaths(ctx context.Context, h *Host, size mtu.UnderlayMTU) error {
	text, err := h.Overlayctl(ctx, "mtu")
	if err != nil {
		return err
	}
	d.quote(text)
	if text, err = h.Overlayctl(ctx, "mtu", "-o", "json"); err != nil {
		return err
	}
	var told struct {
		Paths []struct {
			PathMtu int
			Learned string
			Settled bool
		}
	}
	if err := json.Unmarshal([]byte(text), &told); err != nil {
		return fmt.Errorf("read what overlayctl mtu -o json writes: %w", err)
	}
	var seen []string
	for _, p := range told.Paths {
		seen = append(seen, fmt.Sprintf("%d by %s, settled: %v", p.PathMtu, p.Learned, p.Settled))
	}
	want := fmt.Sprintf("%d by probe, settled: true", size)
	d.check(len(seen) > 0 && !slices.ContainsFunc(seen, func(s string) bool { return s != want }), want, strings.Join(seen, ", "))
	return nil
}

// mtu is the MTU of the station's interface on a network.
func (s station) mtu(network string) (int, error) {
	if s.mac == "" {
		return s.MTU(s.host.Device(network))
	}
	all, err := s.nl.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list the interfaces of %s: %w", s.name, err)
	}
	for _, dev := range all {
		if dev.Attrs().HardwareAddr.String() == s.mac {
			return dev.Attrs().MTU, nil
		}
	}
	return 0, fmt.Errorf("%s has no interface %s any more", s.name, s.mac)
}

// fitted waits until the interfaces of all stations have the MTU that a path leaves, unless the operator has fixed it.
func (d *demo) fitted(ctx context.Context, n *NetworkSpec, path mtu.UnderlayMTU) error {
	want, err := mtu.OverlayOf(mtu.PathMTU(path), d.lab.scenario.outer(n))
	if err != nil || n.MTU != 0 {
		return err
	}
	var seen []string
	err = await(ctx, "interfaces to follow", func(context.Context) (bool, error) {
		seen = nil
		all := true
		for _, s := range d.lab.stations(n.Name) {
			size, err := s.mtu(n.Name)
			if err != nil {
				return false, err
			}
			seen = append(seen, fmt.Sprintf("%d in %s", size, s.name))
			all = all && size == int(want)
		}
		return all, nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.check(err == nil, fmt.Sprintf("MTU %d on %s, without a word about it in any configuration", want, n.Name), strings.Join(seen, ", "))
	return nil
}
