package interop

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// fast returns what the kernel of a host forwards by itself.
func fast(t *testing.T, socket string) (pairs, out, in uint64) {
	t.Helper()
	n := networksOf(t, socket)
	if len(n) != 1 {
		t.Fatalf("%d networks", len(n))
	}
	return n[0].GetFastPathPairs(), n[0].GetFastPathOut().GetFrames(), n[0].GetFastPathIn().GetFrames()
}

// takeOver makes traffic until the kernels behind the sockets forward it by themselves, both ways. From then on they forward
// whole connections: as long as a path is searched for, SYNs go through userspace, and what is behind them may have to follow.
func takeOver(t *testing.T, traffic func(), sockets ...string) {
	t.Helper()
	for _, s := range sockets {
		settled(t, "the search of the paths to end", func() (bool, string) {
			r := ask(t, s, func(c *api.Client) (*overlaydv1.ListPathsResponse, error) {
				return c.ListPaths(within(t), &overlaydv1.ListPathsRequest{})
			})
			return !slices.ContainsFunc(r.Paths, func(p *overlaydv1.Path) bool { return !p.Settled }), fmt.Sprint(r.Paths)
		})
		_, out, in := fast(t, s)
		settled(t, "the kernel to take over", func() (bool, string) {
			traffic()
			pairs, o, i := fast(t, s)
			return pairs >= 2 && o >= out+10 && i >= in+10, fmt.Sprintf("%d pairs, %d frames out and %d in", pairs, o-out, i-in)
		})
	}
}

// pingOnce sends one ping that has to be answered.
func pingOnce(t *testing.T, from load.Namespace, to netip.Addr) {
	t.Helper()
	if r, err := load.Ping(within(t), load.PingConfig{From: from, To: to}); err != nil || r.Received != 1 {
		t.Fatalf("ping %v: %+v, %v", to, r, err)
	}
}

// bothWays moves bytes by TCP in both directions, looks at every one, and returns.
func bothWays(t *testing.T, from, to load.Namespace, address netip.Addr) {
	t.Helper()
	r, err := load.TCP(within(t), load.TCPConfig{From: from, To: to, Address: address, Direction: load.Both, Bytes: 20 * megabyte, Verify: true})
	if err != nil || r.Forward.Bytes != 20*megabyte || r.Reverse.Bytes != 20*megabyte {
		t.Errorf("TCP to %v: %+v, %v", address, r, err)
	}
}

// TestFastPath has an overlayd forward in the kernel what passes between it and another one, and between it and the kernel's
// own vxlan device. Every packet on the wire is looked at.
func TestFastPath(t *testing.T) {
	l := up(t, scenario(lab.IPv4, lab.Overlayd, lab.Overlayd, lab.Kernel))
	h1 := l.Host("h1")
	for _, name := range []string{"h2", "h3"} {
		other := l.Host(name)
		t.Run("with "+string(other.Kind(network)), func(t *testing.T) {
			settle(t, h1, other)
			w := watch(t, l, false)
			for _, a := range other.Overlays(network) {
				takeOver(t, func() { pingOnce(t, h1, a) }, h1.Socket())
				_, out, in := fast(t, h1.Socket())
				bothWays(t, h1, other, a)
				if _, o, i := fast(t, h1.Socket()); o < out+1000 || i < in+1000 {
					t.Errorf("of 20 MB each way by %s, the kernel forwarded %d frames out and %d in", inside(a), o-out, i-in)
				}
			}
			w.end(t)
			mac := hardware(t, other, network+"0").String()
			if rows := fdbOf(t, h1.Socket(), network); !slices.Contains(rows, mac+" "+underlay(other).String()) {
				t.Errorf("the FDB is %q, without %s", rows, mac)
			}
		})
	}
	for _, h := range []*lab.Host{h1, l.Host("h2")} {
		conserved(t, h.Socket())
		k := networksOf(t, h.Socket())[0]
		if o, i := k.GetFastPathOut().GetFrames(), k.GetFastPathIn().GetFrames(); o > k.GetCounters().GetUnderlayOut().GetFrames() || i > k.GetCounters().GetTapOut().GetFrames() {
			t.Errorf("%s: the kernel has forwarded more than there was: %v", h.Name(), k)
		}
		for reason, n := range drops(t, h.Socket()) {
			if reason != "send_no_buffer" {
				t.Errorf("%s dropped %d frames: %s", h.Name(), n, reason)
			}
		}
	}
}

// TestFastPathOfContainers has the kernels of a cluster take over what passes between two containers, and asks overlayctl
// about it.
func TestFastPathOfContainers(t *testing.T) {
	all, _ := members(t, lab.IPv4, 2, nil)
	join(t, all, 1)
	all[0].ctl("network", "create", network, "--subnet", "10.42.0.0/24")
	containers := attach(t, all)
	meet(t, containers)
	before := tallies(t, all)
	takeOver(t, func() { pingOnce(t, containers[0], containers[1].ip) }, all[0].socket, all[1].socket)
	bothWays(t, containers[0], containers[1], containers[1].ip)
	for i, m := range all {
		if _, out, in := fast(t, m.socket); out < 1000 || in < 1000 {
			t.Errorf("%s: the kernel has forwarded %d frames out and %d in", m.host.Name(), out, in)
		}
		text := m.ctl("status")
		if !strings.Contains(text, "forwarded in the kernel") {
			t.Errorf("overlayctl status does not tell of it:\n%s", text)
		}
		mac := macOf(t, m, fmt.Sprintf("web%d", 2-i))
		if text := m.ctl("fdb", network); !strings.Contains(text, mac) || !strings.Contains(text, all[1-i].address()) {
			t.Errorf("overlayctl fdb, without %s:\n%s", mac, text)
		}
	}
	// Who is removed is not reached any more, and what is still sent to it is counted.
	told := func(m *member) []*overlaydv1.Drop { return dropsOf(t, m.socket) }
	quiet(t, all, before, "traffic by the fast path")
	all[1].ctl("endpoint", "rm", network, "web2")
	settled(t, "the container to be gone", func() (bool, string) {
		r, err := load.Ping(within(t), load.PingConfig{From: containers[0], To: containers[1].ip, Timeout: 100e6})
		return err == nil && r.Received == 0 && len(told(all[0]))+len(told(all[1])) > 0, fmt.Sprint(r, err)
	})
	if text := all[0].ctl("drops"); !strings.Contains(text, network) {
		t.Errorf("overlayctl drops:\n%s", text)
	}
}
