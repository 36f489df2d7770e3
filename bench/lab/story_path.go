package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

const (
	defaultTransfer = 1 << 30                // bytes, each way
	lossyStarts     = 5                      // how often a daemon is started where probes are lost
	shrunken        = 1280                   // bytes; see Shrink
	lowered         = 1400                   // see Live
	runUp           = 500 * time.Millisecond // how long a transfer runs before anything happens to it
)

// narrow is the story of a hop that says nothing of what it drops.
func (d *demo) narrow(ctx context.Context) error {
	size := d.lab.scenario.Router.MTU
	n, from, to := d.actors()
	d.section("What the path carries", fmt.Sprintf("The links of the hosts have MTU %d, and the router between them passes %d bytes on and keeps quiet about what is larger. Each daemon has to find that out, to the byte.", from.host.spec.MTU, size))
	took, least, err := d.prove(ctx, d.lab.hosts, size)
	if err != nil {
		return err
	}
	d.timely(fmt.Sprintf("proof that all paths carry %d bytes and no more,", size), proveTime, took)
	if err := d.showPaths(ctx, from.host, size); err != nil {
		return err
	}
	if err := d.fitted(ctx, n, size); err != nil {
		return err
	}
	if err := d.restarts(ctx, to.host, size, least); err != nil {
		return err
	}
	for _, subnet := range n.Subnets {
		if err := d.bulk(ctx, from, to, subnet); err != nil {
			return err
		}
	}
	return d.datagrams(ctx, n, from, to)
}

// restarts kills a daemon and starts it again, which has then forgotten what it had found out.
func (d *demo) restarts(ctx context.Context, h *Host, size mtu.UnderlayMTU, least uint32) error {
	d.section("A daemon starts", "What it knew of the path is gone with the one before.")
	starts := 1
	for _, other := range d.lab.hosts {
		if other.spec.Loss > 0 {
			starts = lossyStarts
		}
	}
	for range starts {
		if err := h.KillOverlayd(); err != nil {
			return err
		}
		start := time.Now()
		if err := h.StartOverlayd(ctx); err != nil {
			return err
		}
		_, low, err := d.prove(ctx, []*Host{h}, size)
		if err != nil {
			return err
		}
		least = min(least, low)
		d.timely(fmt.Sprintf("proof of %d bytes", size), proveTime, time.Since(start))
	}
	d.check(least == uint32(size), "that nobody has settled on less at any time", fmt.Sprintf("%d at least", least))
	return nil
}

// bulk sends much both ways at once.
func (d *demo) bulk(ctx context.Context, from, to station, subnet netip.Prefix) error {
	size := cmp.Or(d.options.Transfer, defaultTransfer)
	d.section("TCP "+family(subnet.Addr()), fmt.Sprintf("%d MB each way at once, on one connection between %s and %s.", size>>20, from.name, to.name))
	start := time.Now()
	f, err := startFlow(ctx, from, to, to.in(subnet), size, 0)
	if err != nil {
		return err
	}
	bytes, err := f.wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	took := time.Since(start)
	d.check(err == nil && bytes == [2]int64{size, size}, fmt.Sprintf("%d MB each way, every byte as it was sent", size>>20),
		fmt.Sprintf("%d MB and %d MB in %.1f s, %s each%s", bytes[0]>>20, bytes[1]>>20, took.Seconds(), gigabits(float64(size)*8/took.Seconds()), because(err)))
	d.timely("that something arrives, at any time,", stallTime, f.pause())
	return nil
}

// datagrams sends UDP that may not be cut and UDP that may, both larger than what fits.
func (d *demo) datagrams(ctx context.Context, n *NetworkSpec, from, to station) error {
	fits, err := mtu.OverlayOf(mtu.PathMTU(d.lab.scenario.Router.MTU), d.lab.scenario.outer(n))
	if err != nil {
		return err
	}
	d.section("UDP", fmt.Sprintf("Packets of %d bytes fit. One byte more with DF set (RFC 1191, RFC 8201) must come back to the sender as an error that has the MTU in it. %d datagrams of %s bytes, which may be cut, must arrive.", fits, bigCount, grouped(bigSize)))
	for _, subnet := range n.Subnets {
		for _, way := range [][2]station{{from, to}, {to, from}} {
			a, b := way[0], way[1]
			told, err := TooBig(ctx, a, b.in(subnet), int(fits)+1)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			d.check(err == nil && told == int(fits), fmt.Sprintf("that %s is told of MTU %d %s", a.name, fits, family(subnet.Addr())), fmt.Sprintf("%d%s", told, because(err)))
			err = whole(ctx, a, b, b.in(subnet), int(fits))
			if ctx.Err() != nil {
				return ctx.Err()
			}
			d.check(err == nil, fmt.Sprintf("a packet of %d bytes that may not be cut to arrive in %s", fits, b.name), map[bool]string{true: "it"}[err == nil]+strings.TrimPrefix(because(err), ": "))
			r, err := load.UDP(ctx, load.UDPConfig{From: a, To: b, Address: b.in(subnet), Size: bigSize, Rate: bigRate, Count: bigCount})
			if ctx.Err() != nil {
				return ctx.Err()
			}
			least := uint64(bigCount)
			if a.host.spec.Loss+b.host.spec.Loss > 0 { // one with any of its pieces
				least = bigCount / 2
			}
			d.check(err == nil && r.Received >= least && r.Corrupt == 0, fmt.Sprintf("%d of %s bytes from %s", least, grouped(bigSize), a.name), fmt.Sprintf("%d, %d corrupt%s", r.Received, r.Corrupt, because(err)))
		}
	}
	return nil
}

// shrink is the story of a path that changes under a transfer.
func (d *demo) shrink(ctx context.Context) error {
	wide := min(d.lab.hosts[0].spec.MTU, d.lab.hosts[len(d.lab.hosts)-1].spec.MTU)
	return d.underTransfer(ctx, "the hop", []change{
		{"becomes narrower", shrunken, shrunken, resumeTime, resumeTime},
		{"is wide again", d.lab.scenario.Router.MTU, wide, raiseTime, stallTime},
	}, d.lab.SetHopMTU)
}

// live is the story of a link whose MTU is changed.
func (d *demo) live(ctx context.Context) error {
	_, from, _ := d.actors()
	return d.underTransfer(ctx, "the link of "+from.host.name, []change{
		{"is made narrower", lowered, lowered, resumeTime, resumeTime},
		{"has its MTU back", from.host.spec.MTU, from.host.spec.MTU, raiseTime, stallTime},
	}, func(size mtu.UnderlayMTU) error { return d.lab.SetLinkMTU(from.host.name, size) })
}

// change is one of those that a transfer has to survive.
type change struct {
	what          string
	set           mtu.UnderlayMTU
	path          mtu.UnderlayMTU // what is to be proven after it
	known, resume time.Duration   // within which it has to be, and the transfer has to go on
}

// underTransfer changes something, step by step, while both stations send as fast as they can.
func (d *demo) underTransfer(ctx context.Context, what string, changes []change, set func(mtu.UnderlayMTU) error) error {
	n, from, to := d.actors()
	first := changes[len(changes)-1].path
	d.section("Before", "")
	if _, _, err := d.prove(ctx, d.lab.hosts, first); err != nil {
		return err
	}
	if err := d.fitted(ctx, n, first); err != nil {
		return err
	}
	f, err := startFlow(ctx, from, to, to.addrs[0], 0, 0)
	if err != nil {
		return err
	}
	d.command(time.Since(d.start), from.name, fmt.Sprintf("(%s and %s send to each other from now on, by one TCP connection)", from.name, to.name))
	for _, c := range changes {
		if err = d.survive(ctx, f, n, what, c, set); err != nil {
			break
		}
	}
	bytes, ferr := f.end()
	if err != nil {
		return errors.Join(err, ferr)
	}
	d.section("After", "")
	d.check(ferr == nil && bytes[0] > 0 && bytes[1] > 0, "the connection to last, and every byte to arrive as it was sent",
		fmt.Sprintf("%s MB and %s MB%s", grouped(uint64(bytes[0]>>20)), grouped(uint64(bytes[1]>>20)), because(ferr)))
	return nil
}

func (d *demo) survive(ctx context.Context, f *flow, n *NetworkSpec, what string, c change, set func(mtu.UnderlayMTU) error) error {
	if err := pause(ctx, runUp); err != nil {
		return err
	}
	d.section(strings.ToUpper(what[:1])+what[1:]+" "+c.what, fmt.Sprintf("From now on it takes %d bytes.", c.path))
	f.mark()
	if err := set(c.set); err != nil {
		return err
	}
	took, _, err := d.prove(ctx, d.lab.hosts, c.path)
	if err != nil {
		return err
	}
	d.timely(fmt.Sprintf("proof of %d bytes on all hosts", c.path), c.known, took)
	if err := d.fitted(ctx, n, c.path); err != nil {
		return err
	}
	before := f.arrived()
	if err := await(ctx, "the transfer to go on", func(context.Context) (bool, error) {
		now := f.arrived()
		return now[0] > before[0] && now[1] > before[1], nil
	}); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.check(false, "the transfer to go on", err.Error())
		return nil
	}
	d.timely("that the transfer goes on, both ways,", c.resume, f.pause())
	return nil
}
