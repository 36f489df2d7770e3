package cluster

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep"
)

// nowhere is a host without routes.
type nowhere struct{}

func (nowhere) HasAddress(netip.Addr) (string, bool)    { return "", false }
func (nowhere) SourceTo(netip.Addr) (netip.Addr, error) { return netip.Addr{}, errFake }
func (nowhere) RouteWithin(netip.Prefix) string         { return "" }

// A fixed MTU that a path does not carry is refused, with the narrowest named, and nothing is made of it.
func TestCreateNetworkThatDoesNotFit(t *testing.T) {
	cp, v := plane(t), newFake()
	f := newFollower(t, cp, v, filepath.Join(t.TempDir(), "attachments.json"))
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	self, _ := cp.Self()
	f.take(controlplane.Update{Index: 100, Reset: true, Deltas: []*statev1.Delta{{Node: cp.Tables().Node(self)}}})
	s := NewService(cp, f, nowhere{}, "", slog.New(slog.NewTextHandler(io.Discard, nil)))
	for i, name := range []string{"h2", "h3"} {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + i)})
		n := &statev1.Node{
			Id: "000000000000000" + name[1:], Name: name, Role: statev1.Role_ROLE_WORKER, Availability: statev1.Availability_AVAILABILITY_ACTIVE,
			Addresses: []string{a.String()}, ControlPort: 7789, GossipPort: 7790, VxlanPort: 4789, PublicKey: []byte(name),
		}
		res, err := cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_AddNode{AddNode: &statev1.AddNode{Node: n}}})
		if err != nil {
			t.Fatal(err)
		}
		f.take(controlplane.Update{Index: 101 + uint64(i), Deltas: []*statev1.Delta{{Node: res.Node}}})
	}
	path := func(last byte, change func(*vtep.PathStatus)) vtep.PathStatus {
		a := netip.AddrFrom4([4]byte{192, 0, 2, last})
		p := vtep.PathStatus{
			Peer: a, Remote: a, Device: "eth0", UnderlayMTU: 1500, PathMTU: 1500, Learned: vtep.LearnedProbe, Settled: true, OverlayMTU: 1450,
			Candidates: []vtep.CandidateStatus{{Remote: a, State: "reachable", Chosen: true}},
		}
		change(&p)
		return p
	}
	same := func(*vtep.PathStatus) {}
	to := func(path int) func(*vtep.PathStatus) {
		return func(p *vtep.PathStatus) { setPath(p, path) }
	}
	for name, c := range map[string]struct {
		paths []vtep.PathStatus
		mtu   uint32
		want  string // "" = it is made
	}{
		"derived":       {[]vtep.PathStatus{path(2, to(1400)), path(3, to(1300))}, 0, ""},
		"just fits":     {[]vtep.PathStatus{path(2, to(1400)), path(3, same)}, 1350, ""},
		"too large":     {[]vtep.PathStatus{path(2, to(1400)), path(3, same)}, 1351, "1351 does not fit: the path to node h2 at 192.0.2.2 was proven to carry packets of 1400 bytes, and leaves 1350; choose that or less, or leave it out to have it derived from what each path carries"},
		"the narrowest": {[]vtep.PathStatus{path(2, to(1400)), path(3, to(1337))}, 9000, "9000 does not fit: the path to node h3 at 192.0.2.3 was proven to carry packets of 1337 bytes, and leaves 1287; "},
		"by the second address": {
			[]vtep.PathStatus{path(2, func(p *vtep.PathStatus) { setPath(p, 1400); p.Remote = netip.MustParseAddr("203.0.113.2") }), path(3, same)}, 1400,
			"the path to node h2 at 203.0.113.2 was proven",
		},
		"still searched for": {[]vtep.PathStatus{path(2, func(p *vtep.PathStatus) { setPath(p, 1280); p.Settled = false }), path(3, same)}, 1450, ""},
		"above the device": {
			[]vtep.PathStatus{path(2, func(p *vtep.PathStatus) { setPath(p, 1280); p.Settled = false }), path(3, same)}, 1451,
			"1451 does not fit: the route to node h2 at 192.0.2.2 by eth0 sends packets of at most 1500 bytes, and leaves 1450; ",
		},
		"silent": {
			[]vtep.PathStatus{path(2, func(p *vtep.PathStatus) { p.Learned, p.UnderlayMTU = vtep.LearnedRoute, 1450 }), path(3, same)}, 1401,
			"the route to node h2 at 192.0.2.2 by eth0 sends packets of at most 1450 bytes, and leaves 1400; ",
		},
		"lost":     {[]vtep.PathStatus{path(2, func(p *vtep.PathStatus) { setPath(p, 1300); p.Candidates[0].State = "lost" }), path(3, same)}, 1450, ""},
		"no route": {[]vtep.PathStatus{path(2, func(p *vtep.PathStatus) { setPath(p, 1300); p.Problem = "no route" }), path(3, same)}, 1450, ""},
	} {
		t.Run(name, func(t *testing.T) {
			v.mu.Lock()
			v.paths = c.paths
			v.mu.Unlock()
			before := cp.Tables().Index()
			res, err := s.CreateNetwork(ctx, &overlaydv1.CreateNetworkRequest{Name: "blue", Subnets: []string{"10.42.0.0/24"}, Mtu: c.mtu})
			if c.want == "" {
				if err != nil || res.Network.Mtu != c.mtu {
					t.Fatalf("%v, %v", res, err)
				}
				if _, err := s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveNetwork{RemoveNetwork: &statev1.RemoveNetwork{Id: res.Network.Id}}}); err != nil {
					t.Fatal(err)
				}
				return
			}
			kind, field := api.Info(err)
			if err == nil || kind != api.Invalid || field != "mtu" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, of kind %v at %q; want %s", err, kind, field, c.want)
			}
			if len(cp.Tables().Networks()) != 0 || cp.Tables().Index() != before {
				t.Errorf("the state has changed: %v", cp.Tables().Networks())
			}
		})
	}
}

// Whoever makes a network is told of paths that carry less than one would expect, the first few by name.
func TestTightPaths(t *testing.T) {
	cp, v := plane(t), newFake()
	f := newFollower(t, cp, v, filepath.Join(t.TempDir(), "attachments.json"))
	self, _ := cp.Self()
	f.take(controlplane.Update{Index: 100, Reset: true, Deltas: []*statev1.Delta{{Node: cp.Tables().Node(self)}}})
	s := NewService(cp, f, nowhere{}, "", slog.New(slog.NewTextHandler(io.Discard, nil)))
	path := func(last byte, device mtu.UnderlayMTU, carries int) vtep.PathStatus {
		a := netip.AddrFrom4([4]byte{192, 0, 2, last})
		p := vtep.PathStatus{Peer: a, Device: "eth0", UnderlayMTU: device, Learned: vtep.LearnedProbe, Settled: true}
		setPath(&p, carries)
		return p
	}
	lost := path(9, 1500, 1300)
	lost.Candidates = []vtep.CandidateStatus{{Chosen: true, State: "lost"}}
	v.mu.Lock()
	v.paths = []vtep.PathStatus{path(2, 1500, 1500), lost, path(3, 1500, 1400), path(4, 9000, 9000), path(5, 1450, 1450), path(6, 9000, 1500), path(7, 1500, 1300), path(8, 1500, 1300)}
	v.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	res, err := s.CreateNetwork(ctx, &overlaydv1.CreateNetworkRequest{Name: "blue", Subnets: []string{"10.42.0.0/24"}})
	want := []string{
		"the path to 192.0.2.3 carries packets of 1400 bytes, of the 1500 that eth0 sends, which leaves 1350 to the overlay; interfaces follow by themselves",
		"eth0 sends packets of at most 1450 bytes to 192.0.2.5, which leaves 1400 to the overlay; interfaces follow by themselves",
		"the path to 192.0.2.6 carries packets of 1500 bytes, of the 9000 that eth0 sends, which leaves 1450 to the overlay; interfaces follow by themselves",
		"2 more paths like that: overlayctl mtu shows all",
	}
	if err != nil || !slices.Equal(res.Warnings, want) {
		t.Errorf("%v, %q", err, res.GetWarnings())
	}
}

// setPath makes a path carry packets of so many bytes.
func setPath(p *vtep.PathStatus, bytes int) {
	p.PathMTU = mtu.PathMTU(bytes)
	p.OverlayMTU = mtu.OverlayMTU(bytes - mtu.Overhead(mtu.IPv4, 0))
}
