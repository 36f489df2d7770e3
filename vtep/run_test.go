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
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// After Run and Close the host is as it was, and all can begin anew.
func TestNothingIsLeftBehind(t *testing.T) {
	newPair(t)
	h := startHost(t)
	before, devs := "", linktest.Devices(t)
	for range 3 {
		h.start(Config{Networks: []Network{blue(0, "IPv4")}, Queues: 2})
		if len(linktest.Devices(t)) != len(devs)+2 { // the TAP, and the device of tunnel-gso
			t.Errorf("devices %v", linktest.Devices(t))
		}
		h.tell("stop")
		h.tell("goroutines")
		h.tell("close")
		h.tell("close")
		// The first round makes what the Go runtime keeps.
		if now := h.tell("descriptors").Text; before != "" && now != before {
			t.Errorf("descriptors %s, %s before", now, before)
		} else {
			before = now
		}
		if !slices.Equal(linktest.Devices(t), devs) {
			t.Errorf("devices %v, %v before", linktest.Devices(t), devs)
		}
	}
}

// Run ends when a TAP is deleted, says which, and takes its goroutines with it though its context goes on.
func TestRunEndsWithItsDevice(t *testing.T) {
	for _, off := range [][]string{nil, {FeatureTAPVNet}} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			p := newPair(t)
			red := blue(0, "IPv4")
			red.Name, red.VNI, red.Device, red.Addresses = "red", 43, "red0", nil
			h := p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4"), red}, Disable: off})
			linktest.Must(t, netlink.LinkDel(linktest.Device(t, "red0")))
			a := h.ask(request{Op: "wait"})
			if !strings.Contains(a.Err, "red0") || !strings.Contains(a.Err, "deleted") {
				t.Errorf("Run: %q", a.Err)
			}
			h.tell("goroutines")
			h.tell("close")
			if d := linktest.Devices(t); slices.Contains(d, "blue0") {
				t.Errorf("devices %v", d)
			}
		})
	}
}

// An end under full load comes as soon as any.
func TestRunEndsUnderLoad(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	p.enter(t, 0)
	s := linktest.UDP(t, netip.AddrPortFrom(overlay(0), 0))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		to, data := netip.AddrPortFrom(overlay(1), 9), make([]byte, 100)
		for {
			select {
			case <-stop:
				return
			default:
				// It fails once the device is gone.
				_, _ = s.WriteToUDPAddrPort(data, to)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	linktest.Await(t, "load", func() bool { return hosts[1].network().Counters.UnderlayIn.Frames > 5000 })
	for i := range hosts {
		start := time.Now()
		hosts[1-i].tell("stop")
		if d := time.Since(start); d > 5*time.Second { // usually it takes a millisecond
			t.Errorf("host %d took %v to stop", 1-i, d)
		}
		conserved(t, "blue", hosts[1-i].network().Counters)
	}
}

// The MTU follows the underlay both ways, and IPv6 comes back when there is room for it again.
func TestMTUFollowsTheUnderlay(t *testing.T) {
	p := newPair(t)
	h := p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}})
	for _, m := range []int{1400, 1500, 1200, 1300, 1500} {
		linktest.Must(t, link.SetMTU("eth0", m))
		want := m - 50
		linktest.Await(t, fmt.Sprintf("MTU of %d", want), func() bool {
			return int(h.network().MTU) == want && linktest.Device(t, "blue0").Attrs().MTU == want
		})
		peer := h.tell("peers").Peers[0]
		if int(peer.UnderlayMTU) != m || int(peer.OverlayMTU) != want {
			t.Errorf("at %d the peer is %+v", m, peer)
		}
		if want >= int(mtu.MinIPv6) {
			linktest.Await(t, "IPv6 address", func() bool {
				dev, ok := link.HasAddress(overlay6(0))
				return ok && dev == "blue0"
			})
		}
	}
	// The route is the way that a host says that a path is narrow.
	linktest.Must(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: linktest.Device(t, "eth0").Attrs().Index, MTU: 1350,
		Dst: &net.IPNet{IP: underlays["IPv4"][1].AsSlice(), Mask: net.CIDRMask(32, 32)},
	}))
	linktest.Await(t, "MTU of 1300", func() bool { return h.network().MTU == 1300 })
	linktest.Await(t, "word of it in the log", func() bool { return strings.Contains(h.tell("log").Text, "network=blue mtu=1300 was=1450") })
}

// What changed between New and Run is not missed.
func TestRunSeesWhatChangedSinceNew(t *testing.T) {
	newPair(t)
	h := startHost(t)
	if a := h.ask(request{Op: "new", Config: &Config{Networks: []Network{blue(0, "IPv4")}}}); a.Err != "" {
		t.Fatal(a.Err)
	}
	if m := h.network().MTU; m != 1450 {
		t.Fatalf("MTU %d", m)
	}
	linktest.Must(t, link.SetMTU("eth0", 1400))
	h.tell("run")
	linktest.Await(t, "MTU of 1350", func() bool { return h.network().MTU == 1350 })
}

// Where the underlay address is ours to choose, it follows the host's, and leaves no socket behind.
func TestUnderlayAddressFollowsTheHost(t *testing.T) {
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			p := newPair(t)
			moved := netip.MustParseAddr("192.0.2.9")
			far := blue(1, "IPv4")
			far.Peers = append(far.Peers, moved)
			p.startAt(t, 1, Config{Networks: []Network{far}})
			h := p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}, Queues: queues})
			p.exchange(t, overlay, 1000)
			p.enter(t, 0)
			before := h.descriptors()
			for range 2 {
				for _, a := range []netip.Addr{moved, underlays["IPv4"][0]} {
					addresses, err := entire(func() ([]netlink.Addr, error) {
						return netlink.AddrList(linktest.Device(t, "eth0"), netlink.FAMILY_V4)
					})
					linktest.Must(t, err)
					for _, old := range addresses {
						linktest.Must(t, netlink.AddrDel(linktest.Device(t, "eth0"), &old))
					}
					linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(a, 24)))
					linktest.Await(t, "endpoint at "+a.String(), func() bool {
						return slices.Equal(h.tell("status").Status.Addresses, []netip.Addr{a})
					})
					now := ""
					t.Cleanup(func() {
						if t.Failed() {
							t.Logf("descriptors %s, before %s", now, before)
						}
					})
					linktest.Await(t, "descriptors as before", func() bool {
						now = h.tell("descriptors").Text
						return now == before
					})
					linktest.Await(t, "peer reached from it", func() bool { return h.tell("peers").Peers[0].Local == a })
					p.exchange(t, overlay, 1000)
					p.enter(t, 0)
				}
			}
			h.tell("stop")
			conserved(t, "blue", h.network().Counters)
			h.tell("close")
		})
	}
}

// A peer without a VTEP says so, and we with it.
func TestSilentPeerIsAProblem(t *testing.T) {
	for family := range underlays {
		t.Run(family, func(t *testing.T) {
			p := newPair(t)
			h := p.startAt(t, 0, Config{Networks: []Network{blue(0, family)}})
			s := linktest.UDP(t, netip.AddrPortFrom(overlay(0), 0))
			linktest.Await(t, "problem", func() bool {
				_, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(overlay(1), 9)) // begins with ARP
				linktest.Must(t, err)
				return strings.Contains(h.tell("peers").Peers[0].Problem, "nothing listens")
			})
			linktest.Must(t, netlink.LinkSetDown(linktest.Device(t, "eth0")))
			linktest.Await(t, "other problem", func() bool { return strings.Contains(h.tell("peers").Peers[0].Problem, "route") })
		})
	}
}

// Every datagram that is no good lands under its reason, with a sample.
func TestGarbageIsDroppedAndShown(t *testing.T) {
	p := newPair(t)
	ends := underlays["IPv4"]
	h := p.startAt(t, 0, Config{Networks: []Network{blue(0, "IPv4")}})
	p.enter(t, 1)
	peer := linktest.UDP(t, netip.AddrPortFrom(ends[1], 0))
	linktest.Must(t, link.AddAddress("eth0", netip.MustParsePrefix("192.0.2.66/24")))
	stranger := linktest.UDP(t, netip.MustParseAddrPort("192.0.2.66:0"))
	vxlan := func(vni addr.VNI, frame []byte) []byte {
		b := make([]byte, header.VXLANLen, header.VXLANLen+len(frame))
		header.VXLAN(b).Encode(vni)
		return append(b, frame...)
	}
	good := frametest.UDP4(frametest.Opts{Payload: 100}).Bytes()
	noFlag := vxlan(42, good)
	noFlag[0] = 0
	type drop struct {
		from    *net.UDPConn
		data    []byte
		network string
		reason  forward.DropReason
	}
	drops := []drop{
		{peer, []byte("hello"), "", forward.VXLANTruncated},
		{peer, noFlag, "", forward.VXLANBadFlags},
		{peer, vxlan(43, good), "", forward.VNIUnknown},
		{stranger, vxlan(42, good), "blue", forward.VTEPUnknown},
		{peer, vxlan(42, good[:20]), "blue", forward.FrameRunt},
	}
	start, after := time.Now(), uint64(0)
	for i, d := range drops {
		_, err := d.from.WriteToUDPAddrPort(d.data, netip.AddrPortFrom(ends[0], 4789))
		linktest.Must(t, err)
		var row DropCount
		linktest.Await(t, "row for "+d.reason.String(), func() bool {
			rows := h.tell("drops").Drops
			k := slices.IndexFunc(rows, func(r DropCount) bool { return r.Network == d.network && r.Reason == d.reason })
			if k >= 0 {
				row = rows[k]
			}
			return k >= 0
		})
		if row.Count != 1 || row.Last.Before(start) || row.Last.After(time.Now()) {
			t.Errorf("%v: %+v", d.reason, row)
		}
		samples := h.ask(request{Op: "samples", After: after}).Samples
		samples = slices.DeleteFunc(samples, func(s DropSample) bool { return s.Egress })
		if len(samples) != 1 {
			t.Fatalf("%v: %d samples after %d: %+v", d.reason, len(samples), after, samples)
		}
		s := samples[0]
		if s.Reason != d.reason || s.Network != d.network || !s.Outer || s.Length != len(d.data) || s.Seq <= after ||
			s.Peer != d.from.LocalAddr().(*net.UDPAddr).AddrPort().Addr() || !bytes.HasPrefix(d.data, s.Data) || len(s.Data) < min(64, len(d.data)) ||
			s.Time.Before(start) || s.Time.After(time.Now()) {
			t.Errorf("%v: sample %d is %+v", d.reason, i, s)
		}
		after = s.Seq
	}
	if s := h.tell("status").Status; s.DatagramsIn != uint64(len(drops)) {
		t.Errorf("%d datagrams in", s.DatagramsIn)
	} else {
		for r, n := range s.Unattributed {
			if want := slices.ContainsFunc(drops, func(d drop) bool { return d.network == "" && int(d.reason) == r }); (n == 1) != want {
				t.Errorf("%d datagrams of no network dropped as %v", n, forward.DropReason(r))
			}
		}
	}
	// Order: the networks, then what is of none.
	rows := h.tell("drops").Drops
	if k := slices.IndexFunc(rows, func(r DropCount) bool { return r.Network == "" }); k < 0 || slices.ContainsFunc(rows[k:], func(r DropCount) bool { return r.Network != "" }) {
		t.Errorf("rows %+v", rows)
	}
	if a := h.ask(request{Op: "fdb", Name: "green"}); a.Kind != "no network" || !strings.Contains(a.Err, "green") {
		t.Errorf("FDB of no network: %+v", a)
	}
	h.tell("stop")
	conserved(t, "blue", h.network().Counters)
}

// Stated endpoints are answered for, shown, and not learned over.
func TestStatedEndpoints(t *testing.T) {
	p := newPair(t)
	ends := underlays["IPv4"]
	c := blue(0, "IPv4")
	mac, ip := frametest.MAC(7), netip.MustParseAddr("10.42.0.7")
	c.Mappings = []addr.Mapping{{MAC: mac, IPs: []netip.Addr{ip}, VTEP: ends[1]}}
	h := p.startAt(t, 0, Config{Networks: []Network{c}})
	s := linktest.UDP(t, netip.AddrPortFrom(overlay(0), 0))
	_, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(ip, 9))
	linktest.Must(t, err)
	linktest.Await(t, "answer to ARP", func() bool {
		neighbors, err := entire(func() ([]netlink.Neigh, error) {
			return netlink.NeighList(linktest.Device(t, "blue0").Attrs().Index, netlink.FAMILY_V4)
		})
		linktest.Must(t, err)
		return slices.ContainsFunc(neighbors, func(n netlink.Neigh) bool {
			return n.IP.Equal(ip.AsSlice()) && bytes.Equal(n.HardwareAddr, mac[:])
		})
	})
	if n := h.network(); n.Counters.Suppressed != 1 {
		t.Errorf("%d requests answered", n.Counters.Suppressed)
	}
	want := []FDBEntry{{MAC: mac, VTEP: ends[1], Static: true, IPs: []netip.Addr{ip}}}
	if fdb := h.ask(request{Op: "fdb", Name: "blue"}).FDB; fmt.Sprint(fdb) != fmt.Sprint(want) {
		t.Errorf("FDB %v, want %v", fdb, want)
	}
	h.tell("stop")
	conserved(t, "blue", h.network().Counters)
}

// A TAP that somebody set down refuses frames, which is a drop and not an end.
func TestADownTAPDropsAndComesBack(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	p.exchange(t, overlay, 1000)
	p.enter(t, 1)
	linktest.Must(t, netlink.LinkSetDown(linktest.Device(t, "blue0")))
	p.enter(t, 0)
	s := linktest.UDP(t, netip.AddrPortFrom(overlay(0), 0))
	_, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(overlay(1), 9))
	linktest.Must(t, err)
	linktest.Await(t, "drop", func() bool { return hosts[1].network().Counters.Drops[forward.TAPDown] > 0 })
	p.enter(t, 1)
	linktest.Must(t, link.SetUp("blue0"))
	p.exchange(t, overlay, 1000)
	for _, h := range hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// What the kernel refuses to send is counted for the network, and ends nothing.
func TestRefusedSendsAreDrops(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	p.exchange(t, overlay, 1000)
	p.enter(t, 0)
	unreachable := &netlink.Route{
		Dst:  &net.IPNet{IP: underlays["IPv4"][1].AsSlice(), Mask: net.CIDRMask(32, 32)},
		Type: unix.RTN_UNREACHABLE,
	}
	linktest.Must(t, netlink.RouteAdd(unreachable))
	s := linktest.UDP(t, netip.AddrPortFrom(overlay(0), 0))
	linktest.Await(t, "ten drops", func() bool { // of a pair that the kernel knows, only those after it is told
		_, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(overlay(1), 9))
		linktest.Must(t, err)
		return hosts[0].network().Counters.Drops[forward.SendUnreachable] >= 10
	})
	// The samples say where it was to go.
	samples := slices.DeleteFunc(hosts[0].tell("samples").Samples, func(s DropSample) bool { return s.Reason != forward.SendUnreachable })
	if len(samples) == 0 || !samples[0].Egress || samples[0].Peer != underlays["IPv4"][1] || !samples[0].Outer {
		t.Errorf("samples %+v", samples)
	}
	if s := hosts[0].tell("status").Status; s.DatagramsOut != hosts[0].network().Counters.UnderlayOut.Frames {
		t.Errorf("%d datagrams are said to be sent", s.DatagramsOut)
	}
	linktest.Must(t, netlink.RouteDel(unreachable))
	p.exchange(t, overlay, 1000)
	for _, h := range hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}
