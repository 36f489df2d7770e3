package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/load"
)

// What the demo sends.
const (
	pingCount    = 5
	pingWait     = 300 * time.Millisecond // five of them outlast a lost address resolution
	verifyBytes  = 50 << 20               // each way at once
	tcpTime      = time.Second
	udpSize      = 1200
	udpRate      = 10000 // a second
	udpTime      = time.Second
	bigSize      = 16000
	bigCount     = 20
	bigRate      = 200
	udpTolerance = 0.02 // loss that is put down to a busy machine, on top of what the scenario wants
)

// demo is one run of a scenario for people to watch.
type demo struct {
	*page
	options Options
	lab     *Lab
	start   time.Time
	failed  []string // what was expected and not seen
	checks  int
}

// Demo brings a lab up, sends traffic through it, tells what happened and takes it down. The error says
// what did not work; whatever it is, nothing is left behind.
func Demo(ctx context.Context, sc Scenario, o Options, out io.Writer) error {
	d := &demo{page: newPage(out), start: time.Now(), options: o}
	d.printf("%s\n%s\n", d.style(bold, sc.Name), wrap(sc.About, pageWidth))
	d.section("Bringing it up", sc.explainUp())
	o.Tell = func(host, line string) { d.command(time.Since(d.start), host, line) }
	l, err := Up(ctx, sc, o)
	if err != nil {
		return interrupted(ctx, err)
	}
	d.lab = l
	err = d.show(ctx)
	if cerr := l.Close(); cerr != nil {
		return errors.Join(err, cerr)
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	verdict := d.style(green, fmt.Sprintf("All %d checks passed", d.checks))
	if len(d.failed) > 0 {
		verdict = d.style(red, fmt.Sprintf("%d of %d checks failed", len(d.failed), d.checks))
	}
	d.printf("\n%s in %.1f s; everything is removed again.\n", verdict, time.Since(d.start).Seconds())
	if len(d.failed) > 0 {
		return fmt.Errorf("%s: %s", sc.Name, strings.Join(d.failed, "; "))
	}
	return d.err
}

// explainUp says what the reader is about to see.
func (sc *Scenario) explainUp() string {
	var text strings.Builder
	text.WriteString("Each host is a network namespace of this machine, with one link, eth0. ")
	if sc.Topology == Direct {
		text.WriteString("It leads to the other. ")
	} else {
		text.WriteString("It leads to a router, a namespace too. ")
	}
	text.WriteString("These are the commands that run on them, each with the seconds since the start.")
	if sc.hasCluster() {
		text.WriteString(" DIR and SOCK are paths of each host's own, TOKEN is what token show has printed. A daemon waits until it is told to make a cluster or to join one. A container is a namespace, into which endpoint add puts an interface.")
	}
	return text.String()
}

// interrupted puts the end of the context into words.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted; everything is removed again")
	}
	return err
}

// check shows what was expected and what was seen, and keeps count.
func (d *demo) check(ok bool, expected, seen string) {
	d.checks++
	mark := d.style(green, "ok    ")
	if !ok {
		mark = d.style(red, "FAILED")
		d.failed = append(d.failed, fmt.Sprintf("expected %s, saw %s", expected, seen))
	}
	d.printf("  %s  expected %s\n          saw %s\n", mark, expected, seen)
}

// show goes through all the parts. Its error is one that makes going on pointless.
func (d *demo) show(ctx context.Context) error {
	sc := d.lab.scenario
	if sc.hasCluster() {
		last := d.lab.Host(sc.clusterHosts()[len(sc.clusterHosts())-1].Name)
		out, err := last.Overlayctl(ctx, "node", "ls")
		if err != nil {
			return err
		}
		d.quote(out)
	}
	d.section("What there is now", "")
	d.lab.describe(d.page)
	tell, ok := stories()[sc.Story]
	if ok {
		return errors.Join(tell(d, ctx), d.inspect(ctx), d.err)
	}
	for i := range sc.Networks {
		n := &sc.Networks[i]
		if path := sc.narrowest(n); n.ofCluster() && sc.Topology == Routed {
			d.section("MTU of "+n.Name, fmt.Sprintf("The narrowest link carries %d bytes.", path))
			if err := d.fitted(ctx, n, path); err != nil {
				return err
			}
		}
		for _, part := range []func(context.Context, *NetworkSpec, []station) error{d.ping, d.tcp, d.udp} {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := part(ctx, n, d.lab.stations(n.Name)); err != nil {
				return err
			}
		}
	}
	if err := d.failover(ctx); err != nil {
		return err
	}
	return errors.Join(d.inspect(ctx), d.err)
}

// station is what speaks on a network: a host, or a container of one.
type station struct {
	*Namespace
	host  *Host
	addrs []netip.Addr // one for each subnet
	mac   string       // "" = that of the network's device on the host
}

// stations lists those of a network.
func (l *Lab) stations(network string) []station {
	endpoints := l.endpoints(network)
	var out []station
	for _, h := range l.hosts {
		if h.Kind(network) != "" {
			out = append(out, station{Namespace: &h.Namespace, host: h, addrs: h.Overlays(network)})
		}
		for _, e := range endpoints {
			if c := l.Container(e.Container); c.host == h {
				out = append(out, station{Namespace: &c.Namespace, host: h, addrs: e.IPs, mac: e.MAC})
			}
		}
	}
	return out
}

// in returns the station's address in a subnet.
func (s station) in(subnet netip.Prefix) netip.Addr {
	return s.addrs[slices.IndexFunc(s.addrs, subnet.Contains)]
}

// ping shows the round trips between all pairs, in each address family of the network.
func (d *demo) ping(ctx context.Context, n *NetworkSpec, members []station) error {
	if len(members) < 2 {
		return nil
	}
	d.section("Ping on "+n.Name, fmt.Sprintf("Each asks every other %d times over the overlay; shown is the fastest answer.", pingCount))
	for _, subnet := range n.Subnets {
		titles := []string{"FROM \\ TO " + family(subnet.Addr())}
		for _, to := range members {
			titles = append(titles, " "+to.name)
		}
		table := rows{titles}
		pairs, answered := 0, 0
		var wrong strings.Builder
		for _, from := range members {
			row := []string{from.name}
			for _, to := range members {
				if from.name == to.name {
					row = append(row, "-")
					continue
				}
				r, err := load.Ping(ctx, load.PingConfig{From: from, To: to.in(subnet), Count: pingCount, Timeout: pingWait})
				if ctx.Err() != nil {
					return ctx.Err()
				}
				pairs++
				// One answer proves the path; how many there are is a matter of what the scenario loses.
				if err == nil && r.Received > 0 && r.Corrupt == 0 {
					answered++
					row = append(row, millis(r.Min))
				} else {
					fmt.Fprintf(&wrong, "; from %s to %s %d of %d, %d damaged%s", from.name, to.name, r.Received, r.Sent, r.Corrupt, because(err))
					row = append(row, "none")
				}
			}
			table.add(row...)
		}
		d.table(table)
		d.check(answered == pairs, fmt.Sprintf("answers in all %d pairs %s", pairs, family(subnet.Addr())), fmt.Sprintf("them in %d%s", answered, wrong.String()))
	}
	return nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "(IPv4)"
	}
	return "(IPv6)"
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// tcp compares a transfer both ways by its hash and then measures each direction.
func (d *demo) tcp(ctx context.Context, n *NetworkSpec, members []station) error {
	if len(members) < 2 {
		return nil
	}
	a, b := members[0], members[len(members)-1]
	d.section("TCP on "+n.Name, fmt.Sprintf("One flow in each direction for %v; then %d MB each way at once, compared by SHA-256.", tcpTime, verifyBytes>>20))
	table := rows{{"FROM", "TO", " THROUGHPUT", " MSS", " SENT AGAIN"}}
	var errs []error
	for _, dir := range []load.Direction{load.Forward, load.Reverse} {
		r, err := load.TCP(ctx, load.TCPConfig{From: a, To: b, Address: b.addrs[0], Direction: dir, Duration: tcpTime})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		errs = append(errs, err)
		from, to, t := a, b, r.Forward
		if dir == load.Reverse {
			from, to, t = b, a, r.Reverse
		}
		table.add(from.name, to.name, gigabits(t.BitsPerSecond()), fmt.Sprint(t.MSS), grouped(t.Retransmits)+" segments")
	}
	d.table(table)
	r, err := load.TCP(ctx, load.TCPConfig{From: a, To: b, Address: b.addrs[0], Direction: load.Both, Bytes: verifyBytes, Verify: true})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = errors.Join(append(errs, err)...)
	d.check(err == nil && r.Forward.Bytes == verifyBytes && r.Reverse.Bytes == verifyBytes,
		fmt.Sprintf("%d MB each way between %s and %s, every byte as it was sent", verifyBytes>>20, a.name, b.name),
		fmt.Sprintf("%d MB and %d MB%s", r.Forward.Bytes>>20, r.Reverse.Bytes>>20, because(err)))
	return nil
}

// udp sends a steady stream each way, and then a few datagrams that are larger than the MTU.
func (d *demo) udp(ctx context.Context, n *NetworkSpec, members []station) error {
	if len(members) < 2 {
		return nil
	}
	a, b := members[0], members[len(members)-1]
	d.section("UDP on "+n.Name, fmt.Sprintf("%s datagrams a second of %d bytes for %v each way, then %d of %s bytes, which the sender has to cut in pieces. Each has a sequence number and a checksum in its payload.",
		grouped(udpRate), udpSize, udpTime, bigCount, grouped(bigSize)))
	table := rows{{"FROM", "TO", " BYTES", " SENT", " RECEIVED", " LOST", " REORDERED", " TWICE", " CORRUPT"}}
	lossy := float64(a.host.spec.Loss+b.host.spec.Loss) / 1e6
	limit := 1.5*lossy + udpTolerance
	most := 0.0
	var corrupt uint64
	var errs []error
	for _, c := range []load.UDPConfig{
		{From: a, To: b, Size: udpSize, Rate: udpRate, Duration: udpTime},
		{From: b, To: a, Size: udpSize, Rate: udpRate, Duration: udpTime},
		{From: a, To: b, Size: bigSize, Rate: bigRate, Count: bigCount},
	} {
		from, to := c.From.(station), c.To.(station)
		c.Address = to.addrs[0]
		r, err := load.UDP(ctx, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && r.Received == 0 {
			err = fmt.Errorf("nothing of %d bytes from %s to %s", c.Size, from.name, to.name)
		}
		errs = append(errs, err)
		corrupt += r.Corrupt
		if c.Size == udpSize || lossy == 0 { // what is in many pieces is lost with any of them
			most = max(most, r.Loss())
		}
		table.add(from.name, to.name, grouped(uint64(c.Size)), grouped(r.Sent), grouped(r.Received), percent(r.Loss()), grouped(r.Reordered), grouped(r.Duplicate), grouped(r.Corrupt))
	}
	d.table(table)
	err := errors.Join(errs...)
	d.check(err == nil && corrupt == 0 && most <= limit,
		fmt.Sprintf("no more than %s lost, nothing corrupt", percent(limit)), fmt.Sprintf("%s lost at most, %d corrupt%s", percent(most), corrupt, because(err)))
	return nil
}
