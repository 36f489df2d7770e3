package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// bare is hosts on an underlay, and nothing on it.
func bare(t *testing.T, text string) Scenario {
	t.Helper()
	sc, err := Parse([]byte("name: test-" + newID() + "\nabout: A test.\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	return sc
}

// answers reports whether there is an answer to a ping. Where one is expected, a busy machine may have lost the first, or be
// late with it; where none is, it is not waited for long.
func answers(t *testing.T, expected bool, c load.PingConfig) bool {
	t.Helper()
	tries := 1
	if c.Timeout = 200 * time.Millisecond; expected {
		tries, c.Timeout = 5, 2*time.Second
	}
	for range tries {
		r, err := load.Ping(within(t), c)
		if err != nil && !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EHOSTUNREACH) {
			t.Fatal(err)
		}
		if r.Received > 0 {
			return true
		}
	}
	return false
}

// largest is the largest packet that arrives without being cut, of those about the expected size; 0 if none does. Sizes are
// asked one by one, from below.
func largest(t *testing.T, from load.Namespace, to netip.Addr, expected int) int {
	t.Helper()
	headers := 20 + 8
	if to.Is6() {
		headers = 40 + 8
	}
	found := 0
	for size := expected - 1; size <= expected+2; size++ {
		if answers(t, size <= expected, load.PingConfig{From: from, To: to, Size: size - headers, DontFragment: true}) {
			found = size
		}
	}
	return found
}

// TestHopMTU is exact to the byte, in both directions and families, and can be changed.
func TestHopMTU(t *testing.T) {
	root(t)
	l := up(t, bare(t, `
router: {mtu: 1400, drop_icmp: too-big}
hosts:
  - {name: h1, underlay: [192.0.2.1/24, "2001:db8:1::1/64"]}
  - {name: h2, underlay: [198.51.100.1/24, "2001:db8:2::1/64"]}
`), Options{})
	for _, size := range []mtu.UnderlayMTU{1400, 1281, 0} {
		if size != 1400 {
			if err := l.SetHopMTU(size); err != nil {
				t.Fatal(err)
			}
		}
		want := int(size)
		if size == 0 {
			want = 1500
		}
		for _, way := range [][2]*Host{{l.Host("h1"), l.Host("h2")}, {l.Host("h2"), l.Host("h1")}} {
			for _, to := range way[1].Underlay() {
				if got := largest(t, way[0], to.Addr(), want); got != want {
					t.Errorf("a hop of %d passes %d bytes on from %s to %v", size, got, way[0].Name(), to.Addr())
				}
			}
		}
	}
	filtered, err := l.Filtered()
	if err != nil || filtered[routerName] == 0 {
		t.Errorf("the router held back %d ICMP errors, %v", filtered[routerName], err)
	}
	if err := l.Cut("h1", "h2"); err == nil {
		t.Error("routed hosts were cut apart")
	}
}

// TestFloating reaches a host at its floating address, also while the subnet is cut.
func TestFloating(t *testing.T) {
	root(t)
	l := up(t, bare(t, floatingHosts), Options{})
	a, b := l.Host("h1"), l.Host("h2")
	reach := func(to string, want bool) {
		t.Helper()
		for _, way := range []struct {
			from *Host
			to   string
		}{{a, to + "2"}, {b, to + "1"}} {
			if got := answers(t, want, load.PingConfig{From: way.from, To: netip.MustParseAddr(way.to), Count: 2}); got != want {
				t.Errorf("%s to %s: answers: %v, want %v", way.from.Name(), way.to, got, want)
			}
		}
	}
	const inner, outer = "192.0.2.", "203.0.113."
	reach(inner, true)
	reach(outer, true)
	if err := l.Cut("h1", "h2"); err != nil {
		t.Fatal(err)
	}
	reach(inner, false)
	reach(outer, true)
	if err := errors.Join(l.Restore(), l.Restore()); err != nil {
		t.Fatal(err)
	}
	reach(inner, true)
	if err := l.Cut("h1", "h3"); err == nil {
		t.Error("a host was cut off from one that there is not")
	}
}

const floatingHosts = `
topology: bridged
hosts:
  - {name: h1, underlay: [192.0.2.1/24], floating: 203.0.113.1}
  - {name: h2, underlay: [192.0.2.2/24], floating: 203.0.113.2}
`

// TestStoryRefused changes one thing at a time.
func TestStoryRefused(t *testing.T) {
	const good = `
name: t
story: narrow
router: {mtu: 1400}
hosts:
  - {name: a, underlay: [192.0.2.1/24]}
  - {name: b, underlay: [198.51.100.1/24]}
networks:
  - name: blue
    vni: 42
    subnets: [10.42.0.0/24]
    members: {a: overlayd, b: overlayd}
`
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{"story: narrow", "story: bliss", "none of"},
		{"{mtu: 1400}", "{}", "router.mtu"},
		{"{mtu: 1400}", "{mtu: 500}", "576"},
		{"192.0.2.1/24", "2001:db8::1/64", "no address family"},
		{"{mtu: 1400}", "{mtu: 1279}\ntopology: bridged", "no hop"},
		{"b: overlayd", "b: kernel", "overlayd on each"},
		{", b: overlayd", "", "all hosts"},
		{"story: narrow", "story: floating", "floating"},
		{"[192.0.2.1/24]}", "[192.0.2.1/24], floating: 203.0.113.1}", "bridged"},
	} {
		if _, err := Parse([]byte(strings.Replace(good, c.old, c.new, 1))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.new, err, c.want)
		}
	}
	for _, c := range []struct{ old, new, want string }{
		{"203.0.113.2", "203.0.113.1", "h1"},
		{"203.0.113.2", "2001:db8::2", "IPv4"},
		{"192.0.2.2/24", "192.0.2.254/24", "router"},
		{"bridged", "bridged\nstory: narrow", "first network"},
	} {
		if _, err := Parse([]byte("name: t\n" + strings.Replace(floatingHosts, c.old, c.new, 1))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.new, err, c.want)
		}
	}
}

// TestFlow measures how long nothing arrives, and sees that a byte is another one.
func TestFlow(t *testing.T) {
	root(t)
	l := up(t, kernelScenario(t, nil), Options{})
	all := l.stations("blue")
	a, b := all[0], all[1]
	f, err := startFlow(within(t), a, b, b.addrs[0], 3<<20, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.wait(); err != nil || got != [2]int64{3 << 20, 3 << 20} {
		t.Errorf("%v, %v", got, err)
	}

	if f, err = startFlow(within(t), a, b, b.addrs[0], 0, 0); err != nil {
		t.Fatal(err)
	}
	const still = 500 * time.Millisecond
	dev, err := l.router.nl.LinkByName("h2")
	if err == nil {
		err = l.router.nl.LinkSetDown(dev)
	}
	if err == nil {
		err = pause(within(t), still)
	}
	if err == nil {
		err = l.router.nl.LinkSetUp(dev)
	}
	if err != nil {
		t.Fatal(err)
	}
	before := f.arrived()
	if err := await(within(t), "more", func(context.Context) (bool, error) {
		now := f.arrived()
		return now[0] > before[0] && now[1] > before[1], nil
	}); err != nil {
		t.Fatal(err)
	}
	if longest := f.pause(); longest < still/2 {
		t.Errorf("nothing arrived for %v at the longest, though a link was down for %v", longest, still)
	}
	if _, err := f.end(); err != nil {
		t.Error(err)
	}

	// Other bytes than the pattern has.
	var w way
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		chunk := pattern(7)
		stamp(chunk, 0)
		chunk[flowChunk-1]++
		_, _ = theirs.Write(chunk)
	}()
	if err := w.receive(ours, 7); err == nil || !strings.Contains(err.Error(), "others than were sent") {
		t.Errorf("a damaged byte: %v", err)
	}

	ctx, cancel := context.WithCancel(within(t))
	if f, err = startFlow(ctx, a, b, b.addrs[0], 0, 0); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := f.wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("a flow that was cut short: %v", err)
	}
}
