package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/load"
)

// What the demo sends.
const (
	pingCount    = 5
	pingWait     = 300 * time.Millisecond // five of them outlast a lost address resolution
	verifyBytes  = 50 << 20               // each way at once
	tcpTime      = 3 * time.Second
	udpSize      = 1200
	udpRate      = 10000 // a second
	udpTime      = time.Second
	udpTolerance = 0.02 // loss that is put down to a busy machine, on top of what the scenario wants
)

// demo is one run of a scenario for people to watch.
type demo struct {
	*page
	lab    *Lab
	failed []string // what should have worked and did not
	checks int
}

// Demo brings a lab up, sends traffic through it, tells what happened and takes it down. The error says
// what did not work; whatever it is, nothing is left behind.
func Demo(ctx context.Context, sc Scenario, o Options, out io.Writer) error {
	start := time.Now()
	d := &demo{page: newPage(out)}
	l, err := Up(ctx, sc, o)
	if err != nil {
		return interrupted(ctx, err)
	}
	d.lab = l
	err = d.show(ctx, time.Since(start))
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
	d.printf("\n%s in %.1f s; everything is removed again.\n", verdict, time.Since(start).Seconds())
	if len(d.failed) > 0 {
		return fmt.Errorf("%s: %s", sc.Name, strings.Join(d.failed, "; "))
	}
	return d.err
}

// interrupted puts the end of the context into words.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted; everything is removed again")
	}
	return err
}

// check counts an expectation, and keeps it if it was not met.
func (d *demo) check(ok bool, format string, args ...any) bool {
	d.checks++
	if !ok {
		d.failed = append(d.failed, fmt.Sprintf(format, args...))
	}
	return ok
}

// mark is a word for a check at the end of a line.
func (d *demo) mark(ok bool) string {
	if ok {
		return d.style(green, "ok")
	}
	return d.style(red, "FAILED")
}

// show goes through all the parts. Its error is one that makes going on pointless.
func (d *demo) show(ctx context.Context, took time.Duration) error {
	sc := d.lab.scenario
	d.printf("%s  %s\n\n", d.style(bold, sc.Name), d.style(faint, fmt.Sprintf("up in %.1f s", took.Seconds())))
	d.printf("%s\n\n", wrap(sc.About, 100))
	d.lab.describe(d.page)
	for i := range sc.Networks {
		n := &sc.Networks[i]
		var members []*Host
		for _, h := range d.lab.hosts {
			if h.Kind(n.Name) != "" {
				members = append(members, h)
			}
		}
		for _, part := range []func(context.Context, *NetworkSpec, []*Host) error{d.ping, d.tcp, d.udp} {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := part(ctx, n, members); err != nil {
				return err
			}
		}
	}
	return errors.Join(d.inspect(ctx), d.err)
}

// ping shows the round trips between all pairs, in each address family of the network.
func (d *demo) ping(ctx context.Context, n *NetworkSpec, members []*Host) error {
	d.section("Ping on "+n.Name, fmt.Sprintf("Every host asks every other %d times over the overlay; shown is the fastest answer, without the address resolution before the first.", pingCount))
	for i, subnet := range n.Subnets {
		titles := []string{"FROM \\ TO " + family(subnet.Addr())}
		for _, to := range members {
			titles = append(titles, " "+to.name)
		}
		table := rows{titles}
		for _, from := range members {
			row := []string{from.name}
			for _, to := range members {
				if from == to {
					row = append(row, "-")
					continue
				}
				r, err := load.Ping(ctx, load.PingConfig{From: from, To: to.Overlays(n.Name)[i], Count: pingCount, Timeout: pingWait})
				if ctx.Err() != nil {
					return ctx.Err()
				}
				// One answer proves the path; how many there are is a matter of what the scenario loses.
				if d.check(err == nil && r.Received > 0 && r.Corrupt == 0, "ping from %s to %s over %s (%s): %d of %d answered%s",
					from.name, to.name, n.Name, family(subnet.Addr()), r.Received, r.Sent, because(err)) {
					row = append(row, millis(r.Min))
				} else {
					row = append(row, "FAILED")
				}
			}
			table.add(row...)
		}
		d.table(table)
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
func (d *demo) tcp(ctx context.Context, n *NetworkSpec, members []*Host) error {
	if len(members) < 2 {
		return nil
	}
	a, b := members[0], members[1]
	d.section("TCP on "+n.Name, fmt.Sprintf("First %d MB each way at once, compared by SHA-256; then one flow in each direction for %v.", verifyBytes>>20, tcpTime))
	r, err := load.TCP(ctx, load.TCPConfig{From: a, To: b, Address: b.Overlay(n.Name), Direction: load.Both, Bytes: verifyBytes, Verify: true})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ok := d.check(err == nil && r.Forward.Bytes == verifyBytes && r.Reverse.Bytes == verifyBytes,
		"verified TCP between %s and %s over %s%s", a.name, b.name, n.Name, because(err))
	d.printf("  %s and %s agree on every byte: %s\n", a.name, b.name, d.mark(ok))

	table := rows{{"FROM", "TO", " THROUGHPUT", " MSS", " SENT AGAIN"}}
	for _, dir := range []load.Direction{load.Forward, load.Reverse} {
		r, err := load.TCP(ctx, load.TCPConfig{From: a, To: b, Address: b.Overlay(n.Name), Direction: dir, Duration: tcpTime})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		from, to, t := a, b, r.Forward
		if dir == load.Reverse {
			from, to, t = b, a, r.Reverse
		}
		d.check(err == nil && t.Bytes > 0, "TCP from %s to %s over %s%s", from.name, to.name, n.Name, because(err))
		table.add(from.name, to.name, gigabits(t.BitsPerSecond()), fmt.Sprint(t.MSS), grouped(t.Retransmits)+" segments")
	}
	d.table(table)
	return nil
}

// udp sends a steady stream each way.
func (d *demo) udp(ctx context.Context, n *NetworkSpec, members []*Host) error {
	if len(members) < 2 {
		return nil
	}
	a, b := members[0], members[1]
	d.section("UDP on "+n.Name, fmt.Sprintf("%s datagrams a second of %d bytes for %v, each with a sequence number and a checksum in its payload.", grouped(udpRate), udpSize, udpTime))
	table := rows{{"FROM", "TO", " SENT", " RECEIVED", " LOST", " REORDERED", " TWICE", " CORRUPT"}}
	for _, pair := range [][2]*Host{{a, b}, {b, a}} {
		from, to := pair[0], pair[1]
		r, err := load.UDP(ctx, load.UDPConfig{From: from, To: to, Address: to.Overlay(n.Name), Size: udpSize, Rate: udpRate, Duration: udpTime})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wanted := float64(from.spec.Loss+to.spec.Loss) / 1e6
		d.check(err == nil && r.Received > 0 && r.Corrupt == 0 && r.Loss() <= 1.5*wanted+udpTolerance,
			"UDP from %s to %s over %s: %s lost, %d corrupt%s", from.name, to.name, n.Name, percent(r.Loss()), r.Corrupt, because(err))
		table.add(from.name, to.name, grouped(r.Sent), grouped(r.Received), percent(r.Loss()), grouped(r.Reordered), grouped(r.Duplicate), grouped(r.Corrupt))
	}
	d.table(table)
	return nil
}
