package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// beat is how often the story of the floating addresses asks whether the other container answers.
const beat = 50 * time.Millisecond

// floating is the story of two hosts that can reach each other in two ways, of which the better one fails.
func (d *demo) floating(ctx context.Context) error {
	n, from, to := d.actors()
	inner := to.host.spec.underlay(IPv4)
	outer := to.host.spec.Floating.Addr
	d.section("Two ways to each other", fmt.Sprintf("%s is to be reached at %v by way of the shared subnet, and at %v by way of the router, which translates. It has advertised the latter.", to.host.name, inner, outer))
	took, err := d.moved(ctx, from.host, to.host, inner)
	if err != nil {
		return err
	}
	// Mostly at once. But if the first question is lost, as when the other host has not heard of this one yet, the other way is
	// taken first, and left after the time that keeps hosts from going to and fro.
	d.timely(fmt.Sprintf("proof of the path to %v, which is to be used,", inner), returnTime, took)
	if took, err = d.spare(ctx, from.host, to.host); err != nil {
		return err
	}
	d.timely("answers from the other addresses as well", returnTime, took)
	if err := d.showCandidates(ctx, from.host, outer); err != nil {
		return err
	}
	f, err := startFlow(ctx, from, to, to.addrs[0], 0, flowPause)
	if err != nil {
		return err
	}
	d.command(time.Since(d.start), from.name, fmt.Sprintf("(%s and %s send to each other from now on, by one TCP connection)", from.name, to.name))
	err = d.detour(ctx, from, to)
	bytes, ferr := f.end()
	if err != nil {
		return errors.Join(err, ferr)
	}
	d.check(ferr == nil && bytes[0] > 0 && bytes[1] > 0, "the connection to last, and every byte to arrive as it was sent",
		fmt.Sprintf("%s MB and %s MB%s", grouped(uint64(bytes[0]>>20)), grouped(uint64(bytes[1]>>20)), because(ferr)))
	return d.ping(ctx, n, d.lab.stations(n.Name))
}

// detour cuts the subnet and restores it, under traffic.
func (d *demo) detour(ctx context.Context, from, to station) error {
	if err := pause(ctx, runUp); err != nil {
		return err
	}
	inner, outer := to.host.spec.underlay(IPv4), to.host.spec.Floating.Addr
	d.section("The subnet fails", "Nothing passes any more between the two, but by way of the router.")
	d.command(time.Since(d.start), routerName, fmt.Sprintf("(drops what goes from %s to %s on the subnet, and back)", from.host.name, to.host.name))
	if err := d.lab.Cut(from.host.name, to.host.name); err != nil {
		return err
	}
	took, err := answered(ctx, from, to)
	if err != nil {
		return err
	}
	d.timely("answers again", moveTime, took)
	if _, err := d.moved(ctx, from.host, to.host, outer); err != nil {
		return err
	}
	if err := d.showCandidates(ctx, from.host, inner); err != nil {
		return err
	}
	d.section("The subnet is back", "")
	if err := d.lab.Restore(); err != nil {
		return err
	}
	if took, err = d.moved(ctx, from.host, to.host, inner); err != nil {
		return err
	}
	d.timely(fmt.Sprintf("both to use the subnet again, at %v,", inner), returnTime, took)
	return d.showCandidates(ctx, from.host, outer)
}

// answered asks until the other station answers, and returns how long that took.
func answered(ctx context.Context, from, to station) (time.Duration, error) {
	start := time.Now()
	err := await(ctx, to.name+" to answer", func(ctx context.Context) (bool, error) {
		r, err := load.Ping(ctx, load.PingConfig{From: from, To: to.addrs[0], Timeout: beat})
		return r.Received > 0, err
	})
	return time.Since(start), err
}

// moved waits until two hosts use this address of the second one, and of the first one the address of the same kind.
func (d *demo) moved(ctx context.Context, a, b *Host, to netip.Addr) (time.Duration, error) {
	back := a.spec.underlay(IPv4)
	if to == b.spec.Floating.Addr {
		back = a.spec.Floating.Addr
	}
	start := time.Now()
	last := ""
	err := await(ctx, fmt.Sprintf("%s to use %v, and %s to use %v", a.name, to, b.name, back), func(ctx context.Context) (bool, error) {
		now := ""
		for h, want := range map[*Host]netip.Addr{a: to, b: back} {
			paths, err := h.paths(ctx)
			if err != nil {
				return false, err
			}
			if len(paths) != 1 || !inUse(paths[0], want) {
				now += fmt.Sprintf("; %s has %v", h.name, paths)
			}
		}
		last = now
		return now == "", nil
	})
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w%s", err, last)
	}
	return time.Since(start), err
}

// spare waits until each of two hosts has had an answer at every address of the other.
func (d *demo) spare(ctx context.Context, hosts ...*Host) (time.Duration, error) {
	start := time.Now()
	err := await(ctx, "answers at all addresses", func(ctx context.Context) (bool, error) {
		for _, h := range hosts {
			paths, err := h.paths(ctx)
			if err != nil {
				return false, err
			}
			for _, p := range paths {
				if len(p.Candidates) < 2 || slices.ContainsFunc(p.Candidates, func(c *overlaydv1.Candidate) bool { return c.State != "reachable" }) {
					return false, nil
				}
			}
		}
		return true, nil
	})
	return time.Since(start), err
}

// inUse reports whether an address is used, and how large packets to it may be is proven.
func inUse(p *overlaydv1.Path, want netip.Addr) bool {
	return p.Remote == want.String() && p.Settled && p.Learned == "probe"
}

// showCandidates has overlayctl tell at which addresses a peer may be reached, and looks that it says why not at this one.
func (d *demo) showCandidates(ctx context.Context, h *Host, loser netip.Addr) error {
	text, err := h.Overlayctl(ctx, "peers")
	if err != nil {
		return err
	}
	d.quote(text)
	paths, err := h.paths(ctx)
	if err != nil {
		return err
	}
	why := ""
	for _, p := range paths {
		for _, c := range p.GetCandidates() {
			if c.Remote == loser.String() {
				why = whyNot(c)
			}
		}
	}
	d.check(why != "" && strings.Contains(text, why), fmt.Sprintf("a reason why not %v", loser), fmt.Sprintf("%q", why))
	return nil
}

// whyNot is what is said of a candidate that is not chosen.
func whyNot(c *overlaydv1.Candidate) string {
	if c.Chosen {
		return ""
	}
	return c.Why
}
