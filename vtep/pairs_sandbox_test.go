package vtep

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// relay is the name of the relay of the network of these tests, on its host.
const relay = "ovl-42"

// fastBoth waits until what passes between the containers of a cluster is forwarded by the kernels.
func (c *cluster) fastBoth(t *testing.T) {
	t.Helper()
	bothFast(c.hosts, func() { reaches(t, c.containers[0], inside4(1), 56) })
}

// missing returns how many frames either host has sent that have not come to the other.
func (c *cluster) missing() (frames [2]uint64) {
	a, b := c.hosts[0].lawful().Counters, c.hosts[1].lawful().Counters
	return [2]uint64{a.UnderlayOut.Frames - b.UnderlayIn.Frames, b.UnderlayOut.Frames - a.UnderlayIn.Frames}
}

// dropped returns how many frames both hosts have dropped, but for what their bridges say to all.
func (c *cluster) dropped() (sum uint64) {
	for _, h := range c.hosts {
		for r, n := range h.lawful().Counters.Drops {
			if forward.DropReason(r) != forward.DestinationLocal {
				sum += n
			}
		}
	}
	return sum
}

// dropsOf returns how many frames the network of a host has dropped for a reason.
func (h *host) dropsOf(r forward.DropReason) uint64 { return h.lawful().Counters.Drops[r] }

// Containers become a fast pair, by every protocol and family.
func TestPairsOfContainers(t *testing.T) {
	c := newCluster(t)
	for i := range c.hosts {
		c.enter(t, i)
		wantHooks(t, "eth0 overlayd_arrive", relay+" overlayd_uplink")
		c.inSandbox(t, i, func() { wantHooks(t, "host0 overlayd_down", "tap0 overlayd_leave") })
	}
	for _, to := range []netip.Addr{inside4(1), inside6(1)} {
		bothFast(c.hosts, func() { reaches(t, c.containers[0], to, 56) })
	}
	lost := c.missing() // what one has said before the other was there
	for i := range c.hosts {
		s := c.between(t, i, every(leisure))
		c.hosts[i].gains(fastOut, 50, nil)
		c.hosts[1-i].gains(fastIn, 50, nil)
		s.accounted(func() uint64 { return 0 })
	}
	f := c.startFlow(t)
	c.hosts[0].gains(fastOut, 5*inHand, nil)
	c.hosts[1].gains(fastOut, 20, nil)
	f.goesOn(t)
	f.stop()
	var now [2]uint64
	linktest.Await(t, "everything to arrive that was sent", func() bool {
		now = c.missing()
		return now == lost
	})
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// What is stated otherwise is in force at once though the kernel forwards, and every frame is accounted for. So is what is
// stated again.
func TestPairsObeyWhatIsStated(t *testing.T) {
	// What "at once" means on a machine that does other things, too, and may stand still in one attempt. Whoever is not told of a
	// change finds it within pairsEvery.
	const atOnce, attempts = 100 * time.Millisecond, 3
	c := newCluster(t)
	reaches(t, c.containers[0], inside4(1), 56)
	peers := []netip.Addr{underlays["IPv4"][0]}
	third := netip.MustParseAddr("192.0.2.77")
	other := mapping(0, 0)
	other.IPs = []netip.Addr{netip.MustParseAddr("10.42.0.99")}
	elsewhere := mapping(0, 0)
	elsewhere.VTEP = third
	h := c.hosts[1]
	for _, s := range []struct {
		name     string
		at       *host
		do, undo request
		reason   forward.DropReason
	}{
		{"source removed", h, request{Op: "unmap", Name: "blue", Mapping: mapping(0, 0)}, request{Op: "map", Name: "blue", Mapping: mapping(0, 0)}, forward.SourceMACUnknown},
		{"source with another address", h, request{Op: "map", Name: "blue", Mapping: other}, request{Op: "map", Name: "blue", Mapping: mapping(0, 0)}, forward.SourceIPSpoofed},
		{"source elsewhere", h, request{Op: "map", Name: "blue", Mapping: elsewhere}, request{Op: "map", Name: "blue", Mapping: mapping(0, 0)}, forward.SourceSpoofed},
		{"VTEP no member", h, request{Op: "set peers", Name: "blue", Peers: []netip.Addr{third}}, request{Op: "set peers", Name: "blue", Peers: peers}, forward.VTEPUnknown},
		{"destination removed", c.hosts[0], request{Op: "unmap", Name: "blue", Mapping: mapping(1, 1)}, request{Op: "map", Name: "blue", Mapping: mapping(1, 1)}, forward.DestinationUnknown},
	} {
		// A neighbour that nobody has is nothing that the container's kernel could find out.
		c.settleNeighbors(t)
		flow := c.between(t, 0, every(leisure))
		c.hosts[0].gains(fastOut, 50, nil)
		h.gains(fastIn, 50, nil)
		dropped := c.dropped()
		var took []time.Duration
		for range attempts {
			before, began := s.at.dropsOf(s.reason), time.Now()
			s.at.must(s.do)
			linktest.Await(t, s.name+": drops", func() bool { return s.at.dropsOf(s.reason) >= before+100 })
			_, _, newest := flow.state()
			took = append(took, newest.Sub(began))
			s.at.must(s.undo)
			flow.goesOn()
			c.hosts[0].gains(fastOut, 50, nil)
			h.gains(fastIn, 50, nil)
			if slices.Min(took) <= atOnce {
				break
			}
		}
		if slices.Min(took) > atOnce {
			t.Errorf("%s: in force after %v", s.name, took)
		}
		// While a statement is being changed, a frame may be dropped for what is half of it.
		flow.accounted(func() uint64 { return c.dropped() - dropped })
	}
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// settleNeighbors makes the containers know each other for good, as they cannot ask while nothing passes, and keeps their
// kernels from saying anything of their own.
func (c *cluster) settleNeighbors(t *testing.T) {
	t.Helper()
	for i := range c.hosts {
		mac := endpoint(1-i, "").MAC
		linktest.In(t, c.containers[i], func() {
			linktest.Setting(t, "net/ipv6/conf/eth0/disable_ipv6", "1")
			linktest.Must(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: linktest.Device(t, "eth0").Attrs().Index, State: netlink.NUD_PERMANENT, IP: inside4(1 - i).AsSlice(), HardwareAddr: mac[:],
			}))
		})
	}
}

// A network that is removed takes its pairs, its programs and its relay along. What comes for it is counted as of no network.
func TestPairsEndWithTheNetwork(t *testing.T) {
	c := newCluster(t)
	reaches(t, c.containers[0], inside4(1), 56)
	c.settleNeighbors(t)
	flow := c.between(t, 0, every(leisure))
	c.hosts[0].gains(fastOut, 50, nil)
	c.hosts[1].gains(fastIn, 50, nil)
	c.hosts[1].must(request{Op: "remove", Name: "blue"})
	c.enter(t, 1)
	wantHooks(t, "eth0 overlayd_arrive")
	if d := linktest.Devices(t); slices.Contains(d, relay) {
		t.Errorf("devices %v", d)
	}
	none := func() uint64 { return c.hosts[1].tell("status").Status.Unattributed[forward.VNIUnknown] }
	want := none() + 100
	linktest.Await(t, "datagrams of no network", func() bool { return none() >= want })
	flow.stop()
	n := sandboxed(1)
	c.hosts[1].must(request{Op: "add", Network: &n})
	c.hosts[1].must(request{Op: "map", Name: "blue", Mapping: mapping(0, 0)})
	a := endpoint(1, c.containers[1])
	c.hosts[1].must(request{Op: "attach", Name: "blue", Attach: &a})
	c.fastBoth(t)
	wantHooks(t, "eth0 overlayd_arrive", relay+" overlayd_uplink")
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// overlaid is a datagram that a VTEP would send with this frame in it.
func overlaid(frame []byte) []byte {
	b := make([]byte, header.VXLANLen, header.VXLANLen+len(frame))
	header.VXLAN(b).Encode(42)
	return append(b, frame...)
}

// Who poses as a station of a fast pair is found out as ever, be it a container, its host or a foreign host.
func TestPairsAreNoWayForLiars(t *testing.T) {
	c := newCluster(t)
	reaches(t, c.containers[0], inside4(1), 56)
	c.settleNeighbors(t)
	flow := c.between(t, 0, every(leisure))
	c.hosts[0].gains(fastOut, 50, nil)
	c.hosts[1].gains(fastIn, 50, nil)
	const lies = 50
	stolen, foreign := netip.MustParseAddr("10.42.0.200"), netip.MustParseAddr("192.0.2.66")
	var ear *net.UDPConn
	linktest.In(t, c.containers[1], func() { ear = linktest.UDP(t, netip.AddrPortFrom(inside4(1), 9)) })
	told := func(what string, h *host, r forward.DropReason, tell func()) {
		t.Helper()
		before := h.dropsOf(r)
		for range lies {
			tell()
		}
		linktest.Await(t, what+" to be found out", func() bool { return h.dropsOf(r) >= before+lies })
	}

	var mouth *net.UDPConn
	linktest.In(t, c.containers[0], func() {
		linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(stolen, 24)))
		mouth = linktest.UDP(t, netip.AddrPortFrom(stolen, 0))
	})
	told("a stolen address", c.hosts[0], forward.SourceIPSpoofed, func() {
		_, err := mouth.WriteToUDPAddrPort([]byte("lie"), netip.AddrPortFrom(inside4(1), 9))
		linktest.Must(t, err)
	})

	c.enter(t, 0)
	linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(foreign, 24)))
	for _, lie := range []struct {
		what     string
		outer    netip.Addr
		src, dst addr.MAC
		from     netip.Addr
		reason   forward.DropReason
	}{
		{"a foreign VTEP", foreign, frametest.MAC(100), frametest.MAC(101), inside4(0), forward.VTEPUnknown},
		{"a host that steals an address", underlays["IPv4"][0], frametest.MAC(100), frametest.MAC(101), stolen, forward.SourceIPSpoofed},
		{"a host that makes up a MAC", underlays["IPv4"][0], frametest.MAC(222), frametest.MAC(101), inside4(0), forward.SourceMACUnknown},
		{"a host that poses as our own station", underlays["IPv4"][0], frametest.MAC(101), frametest.MAC(101), inside4(1), forward.SourceSpoofed},
		{"a host that looks for others", underlays["IPv4"][0], frametest.MAC(100), frametest.MAC(7), inside4(0), forward.DestinationUnknown},
	} {
		s := linktest.UDP(t, netip.AddrPortFrom(lie.outer, 0))
		b := overlaid(frametest.Ethernet(lie.dst, lie.src).IPv4(lie.from, inside4(1)).UDP(7, 9).Data([]byte("lie")).Bytes())
		told(lie.what, c.hosts[1], lie.reason, func() {
			_, err := s.WriteToUDPAddrPort(b, netip.AddrPortFrom(underlays["IPv4"][1], header.VXLANPort))
			linktest.Must(t, err)
		})
	}

	flow.accounted(func() uint64 { return 0 })
	linktest.In(t, c.containers[0], func() { linktest.Must(t, link.SetMAC("eth0", frametest.MAC(222))) })
	c.settleNeighbors(t)
	linktest.In(t, c.containers[0], func() { mouth = linktest.UDP(t, netip.AddrPortFrom(inside4(0), 0)) })
	told("a container with another MAC", c.hosts[0], forward.SourceSpoofed, func() {
		_, err := mouth.WriteToUDPAddrPort([]byte("lie"), netip.AddrPortFrom(inside4(1), 9))
		linktest.Must(t, err)
	})
	linktest.Must(t, ear.SetReadDeadline(time.Now()))
	if n, from, err := ear.ReadFromUDPAddrPort(make([]byte, 9)); err == nil {
		t.Errorf("%d bytes of lies have come, from %v", n, from)
	}
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// A relay that somebody takes away comes back, and a connection goes on.
func TestRelaysHeal(t *testing.T) {
	c := newCluster(t)
	f := c.startFlow(t)
	bothFast(c.hosts, nil)
	for i, h := range c.hosts {
		for what, harm := range map[string]func(){
			"removed":        func() { linktest.Must(t, netlink.LinkDel(linktest.Device(t, relay))) },
			"down":           func() { linktest.Must(t, link.SetDown(relay)) },
			"inside down":    func() { c.inSandbox(t, i, func() { linktest.Must(t, link.SetDown("host0")) }) },
			"removed inside": func() { c.inSandbox(t, i, func() { linktest.Must(t, netlink.LinkDel(linktest.Device(t, "host0"))) }) },
		} {
			before := h.network().Healed
			c.enter(t, i)
			harm()
			linktest.Await(t, fmt.Sprintf("relay of host %d that was %s", i, what), func() bool {
				h.must(request{Op: "reconcile"})
				return h.network().Healed > before
			})
			wantHooks(t, "eth0 overlayd_arrive", relay+" overlayd_uplink")
			f.goesOn(t)
			c.fastBoth(t)
			if said := h.tell("log").Text; !strings.Contains(said, "relay to the sandbox") {
				t.Errorf("the log does not tell of it:\n%s", said)
			}
		}
	}
	f.stop()
	if n := c.hosts[0].must(request{Op: "reconcile"}).Number; n != 0 {
		t.Errorf("%d things are healed that are well", n)
	}
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// Nothing is forwarded for the containers of a daemon that is killed, until the next one takes them on.
func TestPairsOfContainersEndWithTheProcess(t *testing.T) {
	c := newCluster(t)
	f := c.startFlow(t)
	bothFast(c.hosts, nil)
	c.hosts[0].kill()
	c.enter(t, 0)
	wantHooks(t)
	linktest.Await(t, "still", func() bool { // what was under way has come
		before := c.hosts[1].network().Counters.UnderlayIn
		time.Sleep(50 * time.Millisecond)
		return c.hosts[1].network().Counters.UnderlayIn == before
	})
	in := c.hosts[1].network().Counters.UnderlayIn
	if ping(t, c.containers[0], inside4(1), 56, 100*time.Millisecond) {
		t.Error("without a daemon the other host was reached")
	}
	if now := c.hosts[1].network().Counters.UnderlayIn; now != in {
		t.Errorf("%+v were forwarded without a daemon, %+v before", now, in)
	}
	c.startAt(t, 0)
	f.goesOn(t)
	bothFast(c.hosts, nil)
	c.enter(t, 0)
	wantHooks(t, "eth0 overlayd_arrive", relay+" overlayd_uplink")
	relays := slices.DeleteFunc(linktest.Devices(t), func(d string) bool { return !strings.HasPrefix(d, "ovl-") })
	if !slices.Equal(relays, []string{relay}) {
		t.Errorf("relays %v", relays)
	}
	f.stop()
	for i, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
		h.tell("close")
		c.enter(t, i)
		wantHooks(t)
		if d := linktest.Devices(t); slices.Contains(d, relay) {
			t.Errorf("devices of host %d: %v", i, d)
		}
	}
}
