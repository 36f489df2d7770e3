package interop

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// hasMTU waits until the API and the TAP of a host both have an overlay MTU.
func hasMTU(t *testing.T, h *lab.Host, socket string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("an overlay MTU of %d on %s", want, h.Name()), func() (bool, string) {
		api, tap := networksOf(t, socket)[0].Mtu, mtuOf(t, h)
		return int(api) == want && tap == want, fmt.Sprintf("%d by the API, %d at the TAP", api, tap)
	})
}

// TestMTUFollows changes the MTU of a link, and then that of the route alone.
func TestMTUFollows(t *testing.T) {
	for outer, overhead := range map[lab.Family]int{lab.IPv4: 50, lab.IPv6: 70} {
		t.Run("over "+string(outer), func(t *testing.T) {
			l := up(t, scenario(outer, lab.Overlayd, lab.Overlayd))
			h1, h2 := l.Host("h1"), l.Host("h2")
			pid := h1.PID()
			for _, size := range []int{1500, 1400, 9000, 1450, 1500} {
				for _, h := range l.Hosts() {
					if err := l.SetLinkMTU(h.Name(), mtu.UnderlayMTU(size)); err != nil {
						t.Fatal(err)
					}
				}
				for _, h := range l.Hosts() {
					hasMTU(t, h, h.Socket(), size-overhead)
				}
				if p := peersOf(t, h1.Socket())[0]; int(p.UnderlayMtu) != size || int(p.OverlayMtu) != size-overhead || int(p.Overhead) != overhead {
					t.Errorf("at %d bytes the peer is shown as %v", size, p)
				}
				for _, to := range h2.Overlays(network) {
					pings(t, h1, to)
				}
			}
			route := func(size int) {
				t.Helper()
				on(t, h1, func() error {
					family := netlink.FAMILY_V4
					if outer == lab.IPv6 {
						family = netlink.FAMILY_V6
					}
					r, err := cutRoute(family)
					if err != nil {
						return err
					}
					r.MTU = size
					return netlink.RouteAdd(&r)
				})
			}
			route(1380)
			hasMTU(t, h1, h1.Socket(), 1380-overhead)
			for _, to := range h2.Overlays(network) {
				pings(t, h1, to)
			}
			route(0)
			hasMTU(t, h1, h1.Socket(), 1500-overhead)
			alive(t, h1, pid)
		})
	}
}

// TestMTUUnderLoad shrinks and widens a link while TCP is at full speed. What is lost on the way is counted, and
// every byte arrives.
func TestMTUUnderLoad(t *testing.T) {
	l := up(t, scenario(lab.IPv4, lab.Overlayd, lab.Overlayd))
	h1, h2 := l.Host("h1"), l.Host("h2")
	before, pid := drops(t, h1.Socket()), h1.PID()
	type outcome struct {
		r   load.TCPResult
		err error
	}
	const size = 150 * megabyte
	done := make(chan outcome, 1)
	ctx := within(t)
	go func() {
		r, err := load.TCP(ctx, load.TCPConfig{From: h1, To: h2, Address: h2.Overlay(network), Bytes: size, Verify: true})
		done <- outcome{r, err}
	}()
	changes, want := 0, 1450
	var o outcome
	for running := true; running; {
		select {
		case o = <-done:
			running = false
		default:
			sizes := []int{1400, 1500, 1300, 1500}
			next := sizes[changes%len(sizes)]
			changes++
			if err := l.SetLinkMTU("h1", mtu.UnderlayMTU(next)); err != nil {
				t.Fatal(err)
			}
			want = next - 50
			hasMTU(t, h1, h1.Socket(), want)
		}
	}
	if o.err != nil || o.r.Forward.Bytes != size {
		t.Errorf("%+v, %v", o.r, o.err)
	}
	if changes < 4 {
		t.Errorf("the MTU changed only %d times", changes)
	}
	alive(t, h1, pid)
	conserved(t, h1.Socket())
	conserved(t, h2.Socket())
	lost := drops(t, h1.Socket()).since(before)
	t.Logf("%d changes; dropped %v; %d segments sent again", changes, lost, o.r.Forward.Retransmits)
	for reason := range lost {
		if !slices.Contains([]string{"send_too_big", "exceeds_path_mtu", "send_no_buffer"}, reason) {
			t.Errorf("dropped %v", lost)
		}
	}
	if err := l.SetLinkMTU("h1", 1500); err != nil {
		t.Fatal(err)
	}
	hasMTU(t, h1, h1.Socket(), 1450)
	whole(t, l)
}

// TestMTUFixed shrinks a link below an MTU that the operator has fixed: the TAP keeps it, what does not fit
// is counted, and what fits passes.
func TestMTUFixed(t *testing.T) {
	sc := scenario(lab.IPv4, lab.Overlayd, lab.Overlayd)
	sc.Networks[0].MTU = 1450
	l := up(t, sc)
	h1, h2 := l.Host("h1"), l.Host("h2")
	if n := networksOf(t, h1.Socket())[0]; n.Mtu != 1450 || n.MtuDerived {
		t.Errorf("a fixed MTU is shown as %d, derived %v", n.Mtu, n.MtuDerived)
	}
	talk(t, h1, h2)
	if err := l.SetLinkMTU("h1", 1400); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the path to the peer to be known as narrower", func() (bool, string) {
		p := peersOf(t, h1.Socket())[0]
		return p.UnderlayMtu == 1400, p.String()
	})
	if got := mtuOf(t, h1); got != 1450 {
		t.Errorf("the TAP has an MTU of %d", got)
	}
	before := drops(t, h1.Socket())
	to := h2.Overlay(network)
	most := 1350 - headersOf(to)
	if r, err := load.Ping(within(t), load.PingConfig{From: h1, To: to, Count: 3, Size: most, DontFragment: true}); err != nil || r.Received != 3 {
		t.Errorf("what fits: %+v, %v", r, err)
	}
	if r, err := load.Ping(within(t), load.PingConfig{From: h1, To: to, Count: 3, Size: most + 1, DontFragment: true, Timeout: 50 * time.Millisecond}); err != nil || r.Received != 0 {
		t.Errorf("what does not fit: %+v, %v", r, err)
	}
	dropped(t, h1.Socket(), before, tally{"exceeds_path_mtu": 3})
}

// derived is a configuration that leaves the choice of the underlay address to the daemon.
func derived(address string, peers ...netip.Addr) string {
	return fmt.Sprintf(`networks:
  - name: %s
    vni: %d
    device: %s0
    address: [%s/24]
    peers: %v
`, network, vni, network, address, list(peers))
}

// list writes a list as YAML does.
func list(all []netip.Addr) string {
	out := "["
	for i, a := range all {
		if i > 0 {
			out += ", "
		}
		out += `"` + a.String() + `"`
	}
	return out + "]"
}

// TestAddressChanges moves a host to another underlay address under a daemon that was not told one.
func TestAddressChanges(t *testing.T) {
	for _, outer := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run("over "+string(outer), func(t *testing.T) {
			l := up(t, scenario(outer, "", ""))
			h1, h2 := l.Host("h1"), l.Host("h2")
			first := h1.Underlay()[0]
			second := netip.PrefixFrom(netip.MustParseAddr("192.0.2.77"), first.Bits())
			family := netlink.FAMILY_V4
			if outer == lab.IPv6 {
				second, family = netip.PrefixFrom(netip.MustParseAddr("2001:db8:1::77"), first.Bits()), netlink.FAMILY_V6
			}
			d1 := start(t, h1, derived("10.42.0.1", underlay(h2)))
			d2 := start(t, h2, derived("10.42.0.2", first.Addr(), second.Addr()))
			address := func(want netip.Addr) {
				t.Helper()
				eventually(t, "the underlay address "+want.String(), func() (bool, string) {
					all := statusOf(t, d1.socket).GetUnderlay().GetAddresses()
					local := peersOf(t, d1.socket)[0].LocalAddress
					return slices.Equal(all, []string{want.String()}) && local == want.String(), fmt.Sprintf("%v, towards the peer %s", all, local)
				})
			}
			both := func() {
				t.Helper()
				for from, to := range map[*lab.Host]string{h1: "10.42.0.2", h2: "10.42.0.1"} {
					reachable(t, from, netip.MustParseAddr(to))
				}
			}
			address(first.Addr())
			both()
			move := func(from, to netip.Prefix) {
				t.Helper()
				on(t, h1, func() error {
					eth, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					route, err := cutRoute(family)
					if err != nil {
						return err
					}
					if err := netlink.AddrDel(eth, addressOf(from)); err != nil {
						return fmt.Errorf("remove %v: %w", from, err)
					}
					if err := netlink.AddrAdd(eth, addressOf(to)); err != nil {
						return fmt.Errorf("add %v: %w", to, err)
					}
					return netlink.RouteAdd(&route)
				})
			}
			move(first, second)
			address(second.Addr())
			both()
			conserved(t, d1.socket)
			move(second, first)
			address(first.Addr())
			both()
			conserved(t, d1.socket)
			conserved(t, d2.socket)
			for _, d := range []*running{d1, d2} {
				if code := d.terminate(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
		})
	}
}

func addressOf(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
}

// reachable pings until an answer comes: the other side may have to learn the new place first.
func reachable(t *testing.T, from *lab.Host, to netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	eventually(t, "an answer from "+to.String(), func() (bool, string) {
		r, err := load.Ping(ctx, load.PingConfig{From: from, To: to, Count: 1, Timeout: 200 * time.Millisecond})
		return err == nil && r.Received == 1, fmt.Sprintf("%+v, %v", r, err)
	})
}
