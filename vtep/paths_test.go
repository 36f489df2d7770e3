package vtep

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// What a hop carries that says nothing of what it drops is known to the byte, and the TAP follows.
func TestPathIsExact(t *testing.T) {
	for family := range underlays {
		for _, hop := range []int{1400, 1337, 1281} {
			t.Run(fmt.Sprintf("%s, %d", family, hop), func(t *testing.T) {
				r := newRouted(t, hop)
				hosts := r.startBoth(t, family)
				r.settled(t, hosts, family, hop)
				r.stream(t)
				if hop-mtu.Overhead(mtu.FamilyOf(underlays[family][0]), 0) >= 1280 {
					r.exchange(t, overlay6, int(hosts[0].network().MTU)-48)
				}
				r.exchange(t, overlay, int(hosts[0].network().MTU)-28)
				// A network that comes later begins with what is known.
				n := Network{Name: "late", VNI: 77, Device: "late0", Peers: blue(1, family).Peers}
				r.enter(t, 1)
				hosts[1].must(request{Op: "add", Network: &n})
				if text := hosts[1].tell("log").Text; !strings.Contains(text, fmt.Sprintf("network=late mtu=%d", hosts[0].network().MTU)) {
					t.Errorf("no word of the narrow path of a new network:\n%s", text)
				}
			})
		}
	}
}

// settled waits until both hosts know what the path carries, and their TAPs have followed.
func (p *routed) settled(t *testing.T, hosts [2]*host, family string, carries int) {
	t.Helper()
	want := carries - mtu.Overhead(mtu.FamilyOf(underlays[family][0]), 0)
	for i, h := range hosts {
		p.enter(t, i)
		linktest.Await(t, fmt.Sprintf("path of %d bytes", carries), func() bool {
			at := h.path()
			if int(at.PathMTU) > carries && at.Learned == LearnedProbe {
				t.Fatalf("host %d believes in a path of %d bytes", i, at.PathMTU)
			}
			return at.Settled && at.Learned == LearnedProbe && int(at.PathMTU) == carries &&
				int(h.network().MTU) == want && linktest.Device(t, "blue0").Attrs().MTU == want
		})
	}
}

// A VTEP of the kernel answers no probes: its path is that of the route, and the log says so.
func TestKernelPeerKeepsTheRoute(t *testing.T) {
	p := newPair(t)
	p.enter(t, 1)
	linktest.Must(t, netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "blue0", MTU: 1400}, VxlanId: 42, Port: 4789, Learning: true,
		SrcAddr: underlays["IPv4"][1].AsSlice(), Group: underlays["IPv4"][0].AsSlice(),
	}))
	linktest.Must(t, link.AddAddress("blue0", netip.PrefixFrom(overlay(1), 24)))
	up(t, "blue0")
	h := p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}})
	p.exchange(t, overlay, 1300)
	linktest.Await(t, "word of it", func() bool {
		return strings.Contains(h.tell("log").Text, "does not answer path probes")
	})
	a := h.tell("paths")
	at := a.Paths[0]
	if at.Learned != LearnedRoute || at.PathMTU != 1500 || at.OverlayMTU != 1450 || !at.Settled || at.Remote != underlays["IPv4"][1] ||
		len(at.Candidates) != 1 || at.Candidates[0].State != "unanswered" || at.Problem != "" {
		t.Errorf("path %+v", at)
	}
	if a.Probes.ProbesSent == 0 || a.Probes.ProbesAcked != 0 {
		t.Errorf("counters %+v", a.Probes)
	}
	// The kernel took none of them for a frame of anybody's.
	p.enter(t, 1)
	if s := linktest.Device(t, "blue0").Attrs().Statistics; s.RxErrors != 0 || s.RxFrameErrors != 0 {
		t.Errorf("the kernel's device counts %+v", s)
	}
	p.enter(t, 0)
	linktest.Must(t, link.SetMTU("eth0", 1400))
	linktest.Await(t, "MTU of 1350", func() bool { return h.network().MTU == 1350 && h.path().PathMTU == 1400 })
}

// Without path probes nobody asks, nobody answers, and all is as the route says.
func TestWithoutProbes(t *testing.T) {
	p := newPair(t)
	hosts := [2]*host{
		p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}, Disable: []string{FeaturePathProbes}}),
		p.startAt(t, 1, Config{Networks: []Network{blue(1, "IPv4")}}),
	}
	linktest.Await(t, "end of waiting for an answer", func() bool { return hosts[1].path().Settled })
	p.exchange(t, overlay, 1000)
	for i, h := range hosts {
		a := h.tell("paths")
		state := []string{StateNotProbed, "unanswered"}[i]
		if at := a.Paths[0]; at.Learned != LearnedRoute || at.PathMTU != 1500 || at.Candidates[0].State != state || !at.Candidates[0].Chosen {
			t.Errorf("host %d: %+v", i, at)
		}
		if a.Probes.ProbesAcked != 0 || a.Probes.AcksSent != 0 || a.Probes.ProbesSent != 0 && i == 0 {
			t.Errorf("host %d: %+v", i, a.Probes)
		}
	}
	p.enter(t, 0)
	hosts[0].must(request{Op: "set node", Node: &Node{Address: underlays["IPv4"][1], Candidates: []netip.Addr{directs[1], underlays["IPv4"][1]}}})
	hosts[0].must(request{Op: "set keys", Node: &Node{}, Keys: [][]byte{make([]byte, 32)}})
	if at := hosts[0].path(); at.Remote != underlays["IPv4"][1] {
		t.Errorf("reached at %v", at.Remote)
	}
	p.exchange(t, overlay, 1000)
}

// What is said of a host has to make sense.
func TestSetNodeErrors(t *testing.T) {
	newPair(t)
	h := startHost(t)
	h.start(Config{Networks: []Network{blue(0, "IPv4")}})
	peer := underlays["IPv4"][1]
	many := []netip.Addr{peer}
	for a := netip.MustParseAddr("203.0.113.1"); len(many) <= maxCandidates; a = a.Next() {
		many = append(many, a)
	}
	for name, c := range map[string]struct {
		node         Node
		field, words string
	}{
		"no address":      {Node{}, "address", "missing"},
		"own address":     {Node{Address: underlays["IPv4"][0]}, "address", "own"},
		"multicast":       {Node{Address: netip.MustParseAddr("239.0.0.1")}, "address", "one host"},
		"not among them":  {Node{Address: peer, Candidates: []netip.Addr{directs[1]}}, "candidates", "add it"},
		"twice":           {Node{Address: peer, Candidates: []netip.Addr{peer, directs[1], peer}}, "candidates[2]", "twice"},
		"bad candidate":   {Node{Address: peer, Candidates: []netip.Addr{peer, netip.IPv6Unspecified()}}, "candidates[1]", "one host"},
		"many candidates": {Node{Address: peer, Candidates: many}, "candidates", "at most 16"},
	} {
		a := h.ask(request{Op: "set node", Node: &c.node})
		if a.Kind != "config" || a.Field != c.field || !strings.Contains(a.Err, c.words) {
			t.Errorf("%s: %s error of %q: %s", name, a.Kind, a.Field, a.Err)
		}
	}
	if a := h.ask(request{Op: "set keys", Node: &Node{}, Keys: [][]byte{make([]byte, 31)}}); !strings.Contains(a.Err, "31 bytes") {
		t.Errorf("a short key: %q", a.Err)
	}
	// A host that is known and shares no network is probed all the same, until it is forgotten.
	other := netip.MustParseAddr("192.0.2.77")
	h.must(request{Op: "set node", Node: &Node{Address: other}})
	linktest.Await(t, "path to it", func() bool {
		all := h.tell("paths").Paths
		return len(all) == 2 && all[1].Peer == other && all[1].Networks == nil && all[1].PathMTU == 1500 && all[1].Device == "eth0"
	})
	h.must(request{Op: "remove node", Node: &Node{Address: other}})
	linktest.Await(t, "end of that", func() bool { return len(h.tell("paths").Paths) == 1 })
}

// carry waits until everything on both hosts is of that MTU: network, TAP, and the container's interface.
func (c *cluster) carry(t *testing.T, m int) {
	t.Helper()
	for i, h := range c.hosts {
		linktest.Await(t, fmt.Sprintf("MTU of %d on host %d", m, i), func() bool {
			if at := h.path(); !at.Settled || at.Learned != LearnedProbe || int(h.network().MTU) != m || int(h.must(request{Op: "attachments", Name: "blue"}).Attached[0].MTU) != m {
				return false
			}
			of := 0
			linktest.In(t, c.containers[i], func() { of = linktest.Device(t, "eth0").Attrs().MTU })
			return of == m
		})
	}
}

// newRoutedCluster is newCluster over a router.
func newRoutedCluster(t *testing.T, hop int) (*cluster, *routed) {
	t.Helper()
	r := newRouted(t, hop)
	c := &cluster{pair: r.pair}
	for i := range c.hosts {
		c.containers[i] = linktest.Named(t, fmt.Sprintf("c%d", i))
		c.startAt(t, i)
	}
	return c, r
}

// A path that shrinks and grows under a running connection takes the containers with it, and not the connection.
func TestPathShrinksAndGrowsUnderAFlow(t *testing.T) {
	c, r := newRoutedCluster(t, 1500)
	c.carry(t, 1450)
	f := c.startFlow(t)
	f.goesOn(t)
	r.narrow(t, 1280)
	f.goesOn(t)
	c.carry(t, 1230)
	f.goesOn(t)
	for i, h := range c.hosts {
		if at := h.path(); at.PathMTU != 1280 || !at.Settled {
			t.Errorf("host %d: %+v", i, at)
		}
		if text := h.tell("log").Text; strings.Count(text, "underlay_mtu=1500 path_mtu=1280") != 1 {
			t.Errorf("host %d does not say, once, that the path is narrow:\n%s", i, text)
		}
	}
	if n := c.hosts[0].path().BlackHoles; n == 0 {
		t.Errorf("no black hole was counted:\n%s%+v", c.hosts[0].tell("log").Text, c.hosts[0].tell("paths"))
	}
	r.narrow(t, 1500)
	for i := range c.hosts { // so that there is reason to look before it is time to
		r.enter(t, i)
		linktest.Must(t, link.SetMTU("eth0", 1600))
	}
	c.carry(t, 1450)
	f.goesOn(t)
	f.stop()
	for i, h := range c.hosts {
		h.tell("stop")
		conserved(t, fmt.Sprint("host ", i), h.network().Counters)
		h.tell("goroutines")
	}
}

// A change of the underlay device's MTU takes the containers with it, and what their routes state of sizes, and not the
// connections.
func TestContainersFollowTheUnderlayDevice(t *testing.T) {
	c := newCluster(t)
	c.carry(t, 1450)
	f := c.startFlow(t)
	f.goesOn(t)
	linktest.In(t, c.containers[0], func() {
		at := linktest.Device(t, "eth0").Attrs().Index
		for to, s := range sizesStated {
			linktest.Must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: at, Dst: ipNet(to), MTU: s.mtu, AdvMSS: s.advMSS, Scope: netlink.SCOPE_LINK}))
		}
	})
	for _, m := range []int{1400, 1300, 1500} {
		for i := range c.hosts {
			c.enter(t, i)
			linktest.Must(t, link.SetMTU("eth0", m))
		}
		c.carry(t, m-50)
		f.goesOn(t)
		linktest.In(t, c.containers[0], func() {
			for to, s := range sizesStated {
				have, err := entire(func() ([]netlink.Route, error) {
					return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(to)}, netlink.RT_FILTER_DST)
				})
				linktest.Must(t, err)
				if len(have) != 1 || have[0].MTU != min(s.mtu, m-50) || have[0].AdvMSS != min(s.advMSS, m-50-40) {
					t.Errorf("at %d the route to %s is %+v", m, to, have)
				}
			}
		})
	}
}

// sizesStated are routes that state sizes.
var sizesStated = map[string]struct{ mtu, advMSS int }{
	"203.0.113.1/32": {1430, 0}, "203.0.113.2/32": {0, 1380}, "203.0.113.3/32": {1320, 1300}, "203.0.113.4/32": {0, 0},
}

func ipNet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// chosen waits until both hosts reach each other between these addresses, which carry so much.
func (r *routed) chosen(t *testing.T, hosts [2]*host, addresses [2]netip.Addr, carries int) {
	t.Helper()
	for i, h := range hosts {
		patiently(t, fmt.Sprintf("way of host %d to %v", i, addresses[1-i]), func() bool {
			at := h.path()
			return at.Remote == addresses[1-i] && at.Local == addresses[i] && at.Settled && at.Learned == LearnedProbe &&
				int(at.PathMTU) == carries && int(h.network().MTU) == carries-50
		})
		for _, c := range h.path().Candidates {
			if c.Chosen != (c.Remote == addresses[1-i]) || !c.Chosen && c.Why == "" {
				t.Errorf("host %d: %+v", i, c)
			}
		}
		if peers := h.tell("peers").Peers; len(peers) != 1 || peers[0].Address != underlays["IPv4"][1-i] || peers[0].Remote != addresses[1-i] || len(peers[0].Candidates) != 2 {
			t.Errorf("host %d: %+v", i, peers)
		}
	}
}

// Hosts with two addresses each reach each other as long as one pair of them can, and frames are taken from both. Which is
// the better one, where both can be used, is not for this test: on a busy machine it may be either.
func TestTrafficMovesBetweenCandidates(t *testing.T) {
	r := newRouted(t, 1400)
	ends := underlays["IPv4"]
	key := bytes.Repeat([]byte{7}, 32)
	var hosts [2]*host
	for i := range hosts {
		n := blue(i, "IPv4")
		hosts[i] = r.startAt(t, i, Config{
			Networks: []Network{n}, Underlay: Underlay{Addresses: []netip.Addr{directs[i], ends[i]}},
		})
		hosts[i].must(request{Op: "set keys", Node: &Node{Address: ends[i]}, Keys: [][]byte{key}})
		hosts[i].must(request{Op: "set node", Node: &Node{Address: ends[1-i], Candidates: []netip.Addr{directs[1-i], ends[1-i]}}})
	}
	for i, h := range hosts {
		patiently(t, fmt.Sprintf("answer from both addresses on host %d", i), func() bool {
			c := h.path().Candidates
			return len(c) == 2 && c[0].State == "reachable" && c[1].State == "reachable"
		})
	}
	arrives := r.chatter(t)
	for dev, w := range map[string]struct {
		lost, left [2]netip.Addr
		carries    int
	}{"eth1": {directs, ends, 1400}, "eth0": {ends, directs, 1500}} {
		mend := r.cut(t, dev, w.lost)
		r.chosen(t, hosts, w.left, w.carries)
		arrives(t)
		mend()
	}
	for i, h := range hosts {
		if at := h.path(); at.Moves < 1 {
			t.Errorf("host %d: %+v", i, at)
		}
		h.tell("stop")
		conserved(t, fmt.Sprint("host ", i), h.network().Counters)
	}
}

// What routers once told the kernel of the path, or strangers, counts for nothing, whether the peer answers probes or not.
func TestBeliefOfTheKernelCountsForNothing(t *testing.T) {
	for family, ends := range underlays {
		t.Run(family, func(t *testing.T) {
			r := newRouted(t, 1500)
			r.speak()
			r.inRouter(t, func() { linktest.Must(t, link.SetMTU(wireTo(1), 1300)) })
			s := linktest.UDP(t, netip.AddrPortFrom(ends[0], 0))
			linktest.Await(t, "belief of the kernel", func() bool {
				time.Sleep(time.Millisecond)
				_, _ = s.WriteToUDPAddrPort(make([]byte, 1400), netip.AddrPortFrom(ends[1], 9)) // it need not arrive
				return linktest.Believed(t, ends[1]) == 1300
			})
			r.narrow(t, 1500)
			r.enter(t, 0)
			if to, err := link.RouteTo(ends[1]); err != nil || linktest.Believed(t, ends[1]) != 1300 || to.MTU != 1500 {
				t.Fatalf("route %+v, %v", to, err)
			}
			overhead := mtu.Overhead(mtu.FamilyOf(ends[0]), 0)
			h := r.startAt(t, 0, Config{Networks: []Network{blue(0, family)}})
			if m := int(h.network().MTU); m != 1500-overhead {
				t.Errorf("to begin with: MTU of %d", m)
			}
			linktest.Await(t, "end of waiting for an answer", func() bool { return h.path().Settled })
			if m := int(h.network().MTU); m != 1500-overhead {
				t.Errorf("where nobody answers: MTU of %d", m)
			}
			r.startAt(t, 1, Config{Networks: []Network{blue(1, family)}})
			linktest.Await(t, "proof", func() bool {
				at := h.path()
				return at.PathMTU == 1500 && at.Settled && int(h.network().MTU) == 1500-overhead
			})
		})
	}
}

// Where the local addresses are ours to choose, the way to each address of a node has one, as long as the node is stated.
func TestNodesBringLocalAddresses(t *testing.T) {
	r := newRouted(t, 1500)
	ends := underlays["IPv4"]
	h := r.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}})
	h.must(request{Op: "set node", Node: &Node{Address: ends[1], Candidates: []netip.Addr{ends[1], directs[1], ends[0]}}})
	linktest.Await(t, "second address", func() bool {
		return slices.Equal(h.tell("status").Status.Addresses, []netip.Addr{ends[0], directs[0]})
	})
	// Its third address is this host's, too, and leads nowhere else.
	linktest.Await(t, "two candidates", func() bool {
		c := h.path().Candidates
		return len(c) == 2 && c[0].Local == ends[0] && c[1].Local == directs[0]
	})
	linktest.Must(t, netlink.LinkSetDown(linktest.Device(t, "eth1")))
	linktest.Await(t, "end of the way", func() bool {
		return len(h.tell("status").Status.Addresses) == 1 && h.path().Candidates[1].State == "no route"
	})
	linktest.Must(t, netlink.LinkSetUp(linktest.Device(t, "eth1")))
	linktest.Await(t, "second address again", func() bool { return len(h.tell("status").Status.Addresses) == 2 })
	h.must(request{Op: "remove node", Node: &Node{Address: ends[1]}})
	linktest.Await(t, "one address", func() bool {
		return slices.Equal(h.tell("status").Status.Addresses, ends[:1]) && len(h.path().Candidates) == 1
	})
	h.tell("stop")
	h.tell("goroutines")
}
