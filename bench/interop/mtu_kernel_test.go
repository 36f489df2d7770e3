package interop

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// pathsOf lists how a daemon reaches the others, and what it sends to find out.
func pathsOf(t *testing.T, h *lab.Host) *overlaydv1.ListPathsResponse {
	t.Helper()
	return ask(t, h.Socket(), func(c *api.Client) (*overlaydv1.ListPathsResponse, error) {
		return c.ListPaths(within(t), &overlaydv1.ListPathsRequest{})
	})
}

// TestMTUTowardsKernel has the kernel's own VTEP behind a hop of 1400 that says nothing. It answers no probes, so that the
// operator has to state that MTU on the route. Then TCP must not notice anything, though nobody has told the kernel's host.
func TestMTUTowardsKernel(t *testing.T) {
	const path, hop = 1350, 1400
	for _, c := range []struct {
		name  string
		fixed bool
	}{
		{"derived", false},
		{"fixed above it", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			sc := scenario(lab.IPv4, lab.Overlayd, lab.Kernel)
			sc.Router = lab.RouterSpec{DropICMP: lab.DropTooBig, MTU: hop}
			if c.fixed {
				sc.Networks[0].MTU = 1450
			}
			l := up(t, sc)
			h1, h2 := l.Host("h1"), l.Host("h2")
			on(t, h2, func() error {
				dev, err := netlink.LinkByName(h2.Device(network))
				if err != nil {
					return err
				}
				return netlink.LinkSetMTU(dev, 1450)
			})
			on(t, h1, func() error {
				r, err := cutRoute(netlink.FAMILY_V4)
				if err != nil {
					return err
				}
				r.MTU = hop
				return netlink.RouteAdd(&r)
			})
			eventually(t, "the path to have the MTU of the route", func() (bool, string) {
				p := pathsOf(t, h1).Paths[0]
				return p.PathMtu == hop && p.Learned == "route", fmt.Sprint(p)
			})
			want := path
			if c.fixed {
				want = 1450
			}
			hasMTU(t, h1, h1.Socket(), want)
			talk(t, h1, h2)
			for i, to := range h2.Overlays(network) {
				most := path - 40 - 20*i // MSS over IPv4 and IPv6
				r, err := load.TCP(within(t), load.TCPConfig{From: h1, To: h2, Address: to, Direction: load.Both, Bytes: 30 * megabyte, Verify: true})
				if err != nil || r.Forward.Bytes != 30*megabyte || r.Reverse.Bytes != 30*megabyte {
					t.Errorf("TCP to %v: %+v, %v", to, r, err)
				}
				if r.Forward.MSS > most || r.Reverse.MSS > most || r.Forward.MSS < most-40 {
					t.Errorf("segments of %d and %d bytes to %v; %d fit", r.Forward.MSS, r.Reverse.MSS, to, most)
				}
				// Who sends with DF set is told. IPv6 is cut by its sender alone, who has learned by that.
				if told, err := lab.TooBig(within(t), h1, to, path+1); err != nil || told != path {
					t.Errorf("a packet to %v that does not fit: MTU %d, %v; want %d", to, told, err, path)
				}
				pieces, err := load.UDP(within(t), load.UDPConfig{From: h1, To: h2, Address: to, Size: 8000, Rate: 200, Count: 20})
				if err != nil || pieces.Received != 20 || pieces.Corrupt > 0 {
					t.Errorf("datagrams of 8000 bytes to %v: %+v, %v", to, pieces, err)
				}
			}
			k := conserved(t, h1.Socket())[network].GetCounters()
			if k.MssClamped == 0 || (k.IcmpSent > 0) != c.fixed {
				t.Errorf("%d SYNs clamped, %d errors sent", k.MssClamped, k.IcmpSent)
			}
			if p := pathsOf(t, h1).Paths[0]; p.Candidates[0].State != "unanswered" || p.PathMtu != hop {
				t.Errorf("the kernel's VTEP has become %v", p)
			}
		})
	}
}
