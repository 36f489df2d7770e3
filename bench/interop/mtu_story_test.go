package interop

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// soakEnv makes tests send as much, and look for as long, as is claimed, which takes minutes.
const soakEnv = "OVERLAYD_SOAK"

// slack is for machines that do other things, too: what is measured is in what a failed test shows, and with -v.
const slack = 5

// tell has a story told as "overlayctl lab run" does, and shows it when something was not as expected. A story during which
// the kernel ran out of room for frames says nothing about overlayd, and is told once more: what overlayd itself does
// wrong is wrong then too.
func tell(t *testing.T, sc lab.Scenario) {
	t.Helper()
	ctl, err := buildCtl()
	if err != nil {
		t.Fatal(err)
	}
	o := lab.Options{Overlayd: program(t), Overlayctl: ctl, Slack: slack, Transfer: 128 * megabyte}
	if os.Getenv(soakEnv) != "" {
		o.Transfer = 0
	}
	var out bytes.Buffer
	before := backlogDrops(t)
	err = lab.Demo(within(t), sc, o, &out)
	if full := backlogDrops(t) - before; err != nil && full > 0 {
		t.Logf("told once more: the kernel dropped %d frames of whatever namespace meanwhile, the backlog of a CPU being full; %v\n%s", full, err, out.String())
		out.Reset()
		err = lab.Demo(within(t), sc, o, &out)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	for part := range strings.SplitSeq(out.String(), "expected ") {
		if what, seen, ok := strings.Cut(part, "\n          saw "); ok && strings.Contains(what, "within") {
			seen, _, _ = strings.Cut(seen, "\n")
			t.Logf("%s: %s", what, seen)
		}
	}
}

// backlogDrops is how many frames the kernel has dropped, modulo 2^32 for each CPU, because it got more of them than it
// could look at (net.core.netdev_max_backlog). They may be of any namespace of the machine: nobody counts them apart.
func backlogDrops(t *testing.T) (sum uint32) {
	t.Helper()
	const path, dropped = "/proc/net/softnet_stat", 1 // a line for each CPU, hexadecimal
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines(string(text)) {
		columns := strings.Fields(line)
		if len(columns) <= dropped {
			t.Fatalf("%s: %q", path, line)
		}
		n, err := strconv.ParseUint(columns[dropped], 16, 32)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		sum += uint32(n)
	}
	return sum
}

// told is the scenario that comes with the program, by another name.
func told(t *testing.T, name string) lab.Scenario {
	t.Helper()
	sc, err := lab.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	sc.Name = unique(name + "-")
	return sc
}

// TestMTUStories goes through what "overlayctl lab run" shows.
func TestMTUStories(t *testing.T) {
	root(t)
	for _, name := range []string{"narrow-hop", "shrink", "mtu-live", "floating", "kernel-narrow"} {
		t.Run(name, func(t *testing.T) { tell(t, told(t, name)) })
	}
}

// TestMTUOfContainers looks at interfaces in containers for whose MTU nobody has done anything.
func TestMTUOfContainers(t *testing.T) {
	ctl, err := buildCtl()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		scenario string
		outer    lab.Family
		want     int
	}{
		{"mtu-1450", lab.IPv4, 1400},
		{"mtu-1450", lab.IPv6, 1380},
		{"mtu-9000", lab.IPv4, 8950},
	} {
		t.Run(fmt.Sprintf("%s over %s", c.scenario, c.outer), func(t *testing.T) {
			t.Parallel() // they wait for elections
			sc := told(t, c.scenario)
			if c.outer == lab.IPv6 {
				over6(&sc)
			}
			o := lab.Options{Overlayd: program(t), Overlayctl: ctl} // before the time runs
			l, err := lab.Up(within(t), sc, o)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}()
			for _, container := range l.Containers() {
				eventually(t, fmt.Sprintf("MTU %d in %s", c.want, container.Name()), func() (bool, string) {
					got, err := container.MTU("eth0")
					return err == nil && got == c.want, fmt.Sprint(got, err)
				})
			}
			a, b := l.Containers()[0], l.Containers()[1]
			for _, to := range b.Overlays(network) {
				r, err := load.TCP(within(t), load.TCPConfig{From: a, To: b, Address: to, Direction: load.Both, Bytes: 20 * megabyte, Verify: true})
				if err != nil || r.Forward.Bytes != 20*megabyte || r.Reverse.Bytes != 20*megabyte {
					t.Errorf("%+v, %v", r, err)
				}
			}
		})
	}
}

// over6 gives the hosts of a scenario IPv6 addresses in place of what they have.
func over6(sc *lab.Scenario) {
	for i := range sc.Hosts {
		sc.Hosts[i].Underlay = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::1/64", i+1))}
	}
	for i := range sc.Networks {
		sc.Networks[i].Underlay = ""
	}
}

// byHand is a narrow hop between hosts whose networks are stated in files.
func byHand(outer lab.Family, hop mtu.UnderlayMTU, subnets ...string) lab.Scenario {
	sc := scenario(outer, lab.Overlayd, lab.Overlayd)
	sc.Story = lab.Narrow
	sc.Router = lab.RouterSpec{DropICMP: lab.DropTooBig, MTU: hop}
	sc.Networks[0].Subnets = nil
	for _, s := range subnets {
		sc.Networks[0].Subnets = append(sc.Networks[0].Subnets, netip.MustParsePrefix(s))
	}
	return sc
}

// TestNarrowHops has hops of odd sizes, over either family, with networks stated by hand.
func TestNarrowHops(t *testing.T) {
	const subnet4, subnet6 = "10.42.0.0/24", "fd00:42::/64"
	t.Run("1337 over IPv4", func(t *testing.T) { tell(t, byHand(lab.IPv4, 1337, subnet4, subnet6)) })
	t.Run("1281 over IPv4", func(t *testing.T) { tell(t, byHand(lab.IPv4, 1281, subnet4)) }) // IPv6 needs 1280 inside
	t.Run("1400 over IPv6", func(t *testing.T) { tell(t, byHand(lab.IPv6, 1400, subnet4, subnet6)) })
	t.Run("1281 over IPv6", func(t *testing.T) { tell(t, byHand(lab.IPv6, 1281, subnet4)) })
	// Interfaces that are wider than the path, as in a container whose MTU somebody has set: now the errors come from overlayd.
	t.Run("1400 below a fixed MTU", func(t *testing.T) {
		sc := byHand(lab.IPv4, 1400, subnet4, subnet6)
		sc.Networks[0].MTU = 1450
		tell(t, sc)
	})
	t.Run("1400 with loss", func(t *testing.T) {
		sc := byHand(lab.IPv4, 1400, subnet4)
		// Superframes are cut before the link, so that a loss is that of one datagram.
		for i := range sc.Hosts {
			sc.Hosts[i].Offloads = map[string]bool{"tso": false, "uso": false, "tunnel": false}
		}
		sc.Hosts[1].Loss = 10_000
		tell(t, sc)
	})
}
