package vtep

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/inject"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
	"github.com/overlayd/overlayd/vtep/pathmtu"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// A node whose name is of a family that this host does not have is reached at another of its addresses, whether that is
// found out by probes or not, and goes by its name all the same.
func TestNodeNamedInAnotherFamily(t *testing.T) {
	for _, disable := range [][]string{nil, {FeaturePathProbes}} {
		t.Run(fmt.Sprint("without ", disable), func(t *testing.T) {
			r := newRouted(t, 1400)
			four, six := underlays["IPv4"], underlays["IPv6"]
			names := [2]netip.Addr{four[0], six[1]}
			of := [2][]netip.Addr{{four[0]}, {six[1], four[1]}}
			want := 1350
			if disable != nil {
				want = 1450
			}
			var hosts [2]*host
			for i := range hosts {
				r.enter(t, i)
				h := startHost(t)
				h.start(Config{Underlay: Underlay{Addresses: of[i]}, Disable: disable})
				n := blue(i, "IPv4")
				n.Peers = names[1-i : 2-i]
				if i == 0 {
					if a := h.ask(request{Op: "add", Network: &n}); a.Field != "peers[0]" || !strings.Contains(a.Err, "none of that family") {
						t.Errorf("a peer of which nothing is known: %s error of %q: %s", a.Kind, a.Field, a.Err)
					}
				}
				h.must(request{Op: "set keys", Node: &Node{Address: names[i]}, Keys: [][]byte{bytes.Repeat([]byte{7}, 32)}})
				h.must(request{Op: "set node", Node: &Node{Address: names[1-i], Candidates: of[1-i]}})
				h.must(request{Op: "add", Network: &n})
				h.must(request{Op: "set peers", Name: "blue", Peers: n.Peers})
				hosts[i] = h
			}
			for i, h := range hosts {
				linktest.Await(t, fmt.Sprintf("path of host %d", i), func() bool {
					at := h.path()
					return at.Peer == names[1-i] && at.Remote == four[1-i] && at.Local == four[i] && at.Settled && int(h.network().MTU) == want
				})
				if c := h.tell("paths").Probes; c.Ignored[pathmtu.IgnoreWrongNode] != 0 || c.ProbesAcked == 0 && disable == nil {
					t.Errorf("host %d: %+v", i, c)
				}
				if text := h.tell("log").Text; strings.Contains(text, "mtu=1430") || strings.Contains(text, "mtu=1330") {
					t.Errorf("host %d took the path for one of IPv6 in between:\n%s", i, text)
				}
			}
			r.exchange(t, overlay, 1300)
			// What is no longer stated can no longer be reached, and says so.
			hosts[0].must(request{Op: "remove node", Node: &Node{Address: six[1]}})
			linktest.Await(t, "problem", func() bool { return strings.Contains(hosts[0].path().Problem, "no IPv6 address") })
		})
	}
}

// A TAP that is to have addresses of IPv6 comes up with those of IPv4 on a path that is too narrow for IPv6, and gets the
// others when there is room.
func TestIPv6ComesWhenThereIsRoom(t *testing.T) {
	p := newPair(t)
	p.enter(t, 0)
	linktest.Must(t, link.SetMTU("eth0", 1300))
	h := p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}})
	has := func() (out []netip.Addr) {
		list, err := entire(func() ([]netlink.Addr, error) {
			return netlink.AddrList(linktest.Device(t, "blue0"), netlink.FAMILY_ALL)
		})
		linktest.Must(t, err)
		for _, a := range list {
			if ip, _ := netip.AddrFromSlice(a.IP); !ip.IsLinkLocalUnicast() {
				out = append(out, ip.Unmap())
			}
		}
		return out
	}
	if got := has(); h.network().MTU != 1250 || !slices.Equal(got, []netip.Addr{overlay(0)}) {
		t.Errorf("MTU of %d, addresses %v", h.network().MTU, got)
	}
	if text := h.tell("log").Text; strings.Count(text, "below IPv6's minimum") != 1 {
		t.Errorf("the log does not say so once:\n%s", text)
	}
	linktest.Must(t, link.SetMTU("eth0", 1500))
	linktest.Await(t, "both addresses", func() bool { return slices.Equal(has(), []netip.Addr{overlay(0), overlay6(0)}) })
}

// When a path is searched anew from another local address, the interfaces stay with what was settled until it is again.
func TestInterfacesFollowOnlyWhatIsSettled(t *testing.T) {
	r := newRouted(t, 1400)
	hosts := r.startBoth(t, "IPv4")
	r.settled(t, hosts, "IPv4", 1400)
	ends, second := underlays["IPv4"], netip.MustParseAddr("192.0.2.11")
	r.enter(t, 0)
	linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(second, 32)))
	r.inRouter(t, func() { route(t, wireTo(0), second, netip.Addr{}) })
	r.enter(t, 1)
	route(t, "eth0", second, routerOf["IPv4"])
	hosts[1].must(request{Op: "set node", Node: &Node{Address: ends[0], Candidates: []netip.Addr{ends[0], second}}})
	r.enter(t, 0)
	linktest.Must(t, netlink.RouteReplace(&netlink.Route{
		LinkIndex: linktest.Device(t, "eth0").Attrs().Index, Dst: &net.IPNet{IP: ends[1].AsSlice(), Mask: net.CIDRMask(32, 32)},
		Gw: routerOf["IPv4"].AsSlice(), Src: second.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
	}))
	linktest.Await(t, "path from the second address", func() bool {
		at := hosts[0].path()
		return at.Local == second && at.Settled && at.PathMTU == 1400 && hosts[0].network().MTU == 1350
	})
	if text := hosts[0].tell("log").Text; strings.Contains(text, "mtu=1450 was=") {
		t.Errorf("the interfaces went up and down:\n%s", text)
	}
}

// What the interfaces are to fit, step by step as a path is found out. Datagrams are what is proven at once.
func TestWhatInterfacesFit(t *testing.T) {
	p := newPair(t)
	p.enter(t, 0)
	ends := underlays["IPv4"]
	v := &VTEP{
		tables: forward.NewTables(), choices: map[netip.Addr]pathmtu.Choice{}, told: map[string]string{},
		endpoints: []*underlay.Endpoint{{Local: ends[0]}}, log: slog.New(slog.DiscardHandler), prober: new(pathmtu.Prober),
	}
	id := v.tables.AddVTEP(ends[1], fallbackPath)
	for _, c := range []struct {
		step       string
		choice     *pathmtu.Choice
		fits, path mtu.PathMTU
	}{
		{"nothing is known", nil, 1500, 1500},
		{"searched, less so far", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1280}, 1500, 1280},
		{"settled", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1400, Settled: true}, 1400, 1400},
		{"narrower, and searched", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1290}, 1400, 1290},
		{"wider, and searched", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1450}, 1400, 1450},
		{"asked anew, from elsewhere", &pathmtu.Choice{State: pathmtu.StateUnanswered, Path: 1500}, 1400, 1500},
		{"settled on more", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1450, Settled: true}, 1450, 1450},
		{"beyond the route", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1600, Settled: true}, 1500, 1500},
		{"settled on less", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1337, Settled: true}, 1337, 1337},
		{"lost", &pathmtu.Choice{State: pathmtu.StateLost, Learned: pathmtu.LearnedProbe, Path: 1337, Settled: true}, 1500, 1337},
		{"less again", &pathmtu.Choice{State: pathmtu.StateReachable, Learned: pathmtu.LearnedProbe, Path: 1337, Settled: true}, 1337, 1337},
		{"nobody answers any more from here", &pathmtu.Choice{State: pathmtu.StateUnanswered, Path: 1500, Settled: true}, 1500, 1500},
	} {
		if c.choice != nil {
			c.choice.Remote = ends[1]
			v.choices[ends[1]] = *c.choice
		}
		s := v.readRoute(id)
		if got := v.remotes[id].fits; got != c.fits || s.PathMTU != c.path || v.tables.VTEP(id).Path != c.path {
			t.Errorf("%s: interfaces fit %d, want %d; packets %d, want %d", c.step, got, c.fits, s.PathMTU, c.path)
		}
	}
}

// Superframes go whole only between the addresses for which it was found out that they can.
func TestWayIsThatOfThePeer(t *testing.T) {
	ends, path := underlays["IPv4"], new(inject.Path)
	v := new(VTEP)
	v.injection.paths = []way{{path: path, config: inject.PathConfig{Local: ends[0], Peer: ends[1]}}}
	e := &underlay.Endpoint{Local: ends[0]}
	for name, c := range map[string]struct {
		got, want *inject.Path
	}{
		"as found out":     {v.wayTo(0, e, ends[1]), path},
		"another peer":     {v.wayTo(0, e, directs[1]), nil},
		"another endpoint": {v.wayTo(0, &underlay.Endpoint{Local: directs[0]}, ends[1]), nil},
		"no endpoint":      {v.wayTo(0, nil, ends[1]), nil},
		"another VTEP":     {v.wayTo(1, e, ends[1]), nil},
	} {
		if c.got != c.want {
			t.Errorf("%s: %p, want %p", name, c.got, c.want)
		}
	}
}

// What path probes find out too late, of a VTEP that is not probed any more, is not kept.
func TestFindingsThatComeTooLate(t *testing.T) {
	ends := underlays["IPv4"]
	v := &VTEP{
		choices: map[netip.Addr]pathmtu.Choice{}, told: map[string]string{}, tables: forward.NewTables(),
		nodes: map[netip.Addr]Node{ends[0]: {Address: ends[0]}},
	}
	v.applyFindings(map[netip.Addr]pathmtu.Choice{ends[0]: {Peer: ends[0]}, ends[1]: {Peer: ends[1]}})
	if _, ok := v.choices[ends[0]]; !ok || len(v.choices) != 1 {
		t.Errorf("choices %+v", v.choices)
	}
}
