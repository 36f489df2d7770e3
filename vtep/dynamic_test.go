package vtep

import (
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// sandboxVTEP makes a VTEP without networks, which is closed with the test.
func sandboxVTEP(t *testing.T) *VTEP {
	t.Helper()
	v, err := New(Config{Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][0]}}, Log: slog.New(slog.DiscardHandler)})
	linktest.Must(t, err)
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// wantField fails unless err names this field of a configuration.
func wantField(t *testing.T, what string, err error, field string) {
	t.Helper()
	var config *ConfigError
	if !errors.As(err, &config) || config.Field != field {
		t.Errorf("%s: %v, want an error about %s", what, err, field)
	}
}

func TestNetworksThatCannotBeAdded(t *testing.T) {
	newPair(t)
	v := sandboxVTEP(t)
	linktest.Must(t, v.AddNetwork(sandboxed(0)))
	for name, c := range map[string]struct {
		change func(n *Network)
		field  string
	}{
		"no name":          {func(n *Network) { n.Name = "" }, "name"},
		"name taken":       {func(n *Network) { n.Name = "blue" }, "name"},
		"VNI taken":        {func(n *Network) { n.VNI = 42 }, "vni"},
		"no VNI":           {func(n *Network) { n.VNI = 0 }, "vni"},
		"peer is here":     {func(n *Network) { n.Peers = []netip.Addr{underlays["IPv4"][0]} }, "peers[0]"},
		"peer of no use":   {func(n *Network) { n.Peers = []netip.Addr{underlays["IPv6"][1]} }, "peers[0]"},
		"two gateways":     {func(n *Network) { n.Gateways = []netip.Addr{gateway4, inside4(1)} }, "gateways[1]"},
		"no gateway":       {func(n *Network) { n.Gateways = []netip.Addr{{}} }, "gateways[0]"},
		"loopback gateway": {func(n *Network) { n.Gateways = []netip.Addr{netip.MustParseAddr("127.0.0.1")} }, "gateways[0]"},
		"address":          {func(n *Network) { n.Addresses = []netip.Prefix{netip.PrefixFrom(gateway4, 24)} }, "address"},
		"gateway, no room": {func(n *Network) { n.Sandbox, n.Device = false, "red0" }, "gateways"},
		"rate":             {func(n *Network) { n.FloodRate = -1 }, "flood_rate"},
		"burst":            {func(n *Network) { n.FloodBurst = -1 }, "flood_burst"},
	} {
		n := sandboxed(0)
		n.Name, n.VNI = "red", 43
		c.change(&n)
		wantField(t, name, v.AddNetwork(n), c.field)
	}
	// What the host refuses.
	for name, n := range map[string]Network{
		"MTU":        {Name: "red", VNI: 43, Sandbox: true, MTU: 1 << 20},
		"narrow MTU": {Name: "red", VNI: 43, Sandbox: true, MTU: 10},
		"device":     {Name: "red", VNI: 43, Device: "eth0"},
		"device too": {Name: "red", VNI: 43, Sandbox: true, Device: "br0"},
	} {
		var host *HostError
		if err := v.AddNetwork(n); !errors.As(err, &host) || !strings.Contains(err.Error(), "red") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all := v.Networks(); len(all) != 1 || all[0].Name != "blue" {
		t.Errorf("networks %+v", all)
	}
	left, err := link.Sandboxes(v.host)
	if err != nil || !slices.Equal(left, []addr.VNI{42}) {
		t.Errorf("sandboxes %v, %v", left, err)
	}
	for what, err := range map[string]error{
		"remove": v.RemoveNetwork("red"), "peers": v.SetPeers("red", nil), "map": v.SetMapping("red", *mapping(1, 1)),
		"unmap": v.RemoveMapping("red", addr.MAC{}), "detach": v.Detach("red", "1"),
	} {
		if !errors.Is(err, ErrNoNetwork) || !strings.Contains(err.Error(), "red") {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantField(t, "peer twice", v.SetPeers("blue", []netip.Addr{underlays["IPv4"][1], underlays["IPv4"][1]}), "peers[1]")
	wantField(t, "peer is here", v.SetPeers("blue", []netip.Addr{underlays["IPv4"][0]}), "peers[0]")
	if p := v.Networks()[0].Peers; !slices.Equal(p, sandboxed(0).Peers) {
		t.Errorf("peers %v", p)
	}
	linktest.Must(t, v.RemoveNetwork("blue"))
	if p := v.Peers(); len(p) != 0 {
		t.Errorf("peers %+v", p)
	}
}

// A network that was added behaves as one that was there from the start, in the host's namespace too.
func TestHostNetworkComesAndGoes(t *testing.T) {
	p := newPair(t)
	var hosts [2]*host
	for i := range hosts {
		p.enter(t, i)
		hosts[i] = startHost(t)
		hosts[i].start(Config{Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][i]}}, Queues: 2})
	}
	for range 2 {
		for i, h := range hosts {
			n := blue(i, "IPv4")
			n.Peers = nil
			h.must(request{Op: "add", Network: &n})
			h.must(request{Op: "set peers", Name: "blue", Peers: blue(i, "IPv4").Peers})
		}
		p.exchange(t, overlay, 1000)
		p.exchange(t, overlay6, 1000)
		p.stream(t)
		for i, h := range hosts {
			h.settled()
			sent := h.tell("status").Status.DatagramsOut
			h.must(request{Op: "remove", Name: "blue"})
			if now := h.tell("status").Status.DatagramsOut; now < sent || len(h.tell("networks").Networks) != 0 {
				t.Errorf("host %d has sent %d datagrams, %d before", i, now, sent)
			}
			p.enter(t, i)
			if d := linktest.Devices(t); slices.Contains(d, "blue0") {
				t.Errorf("devices %v", d)
			}
		}
	}
}

// Fifty networks that come and go leave nothing, be it in this process or in the kernel.
func TestNetworksLeaveNothing(t *testing.T) {
	newPair(t)
	h := startHost(t)
	h.start(Config{Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][0]}}, Queues: 2})
	names := sandboxNames(t)
	container := linktest.Named(t, "c")
	var before, goroutines = "", 0
	for i := range 50 {
		n := sandboxed(0)
		n.Name, n.VNI = fmt.Sprintf("n%d", i), addr.VNI(1000+i%7)
		h.must(request{Op: "add", Network: &n})
		if i%5 == 0 {
			a := endpoint(0, container)
			h.must(request{Op: "attach", Name: n.Name, Attach: &a})
		}
		h.must(request{Op: "remove", Name: n.Name})
		if i == 7 { // the first ones make what the Go runtime keeps
			before, goroutines = h.descriptors(), h.tell("count goroutines").Number
		}
	}
	linktest.Await(t, "descriptors as before", func() bool { return h.tell("descriptors").Text == before })
	linktest.Await(t, "goroutines as before", func() bool { return h.tell("count goroutines").Number <= goroutines })
	if now := sandboxNames(t); !slices.Equal(now, names) {
		t.Errorf("namespaces %v, %v before", now, names)
	}
	linktest.In(t, container, func() {
		if d := linktest.Devices(t); !slices.Equal(d, []string{"lo"}) {
			t.Errorf("devices of the container %v", d)
		}
	})
}

// sandboxNames lists the named namespaces that are sandboxes of these tests' networks.
func sandboxNames(t *testing.T) (names []string) {
	t.Helper()
	host, err := link.NamespaceID()
	linktest.Must(t, err)
	vnis, err := link.Sandboxes(host)
	linktest.Must(t, err)
	for _, v := range vnis {
		names = append(names, v.String())
	}
	return names
}

// What is changed from several sides under traffic does no harm to it.
func TestChangesUnderTraffic(t *testing.T) {
	c := newCluster(t)
	var socks [2]*net.UDPConn
	for i := range socks {
		linktest.In(t, c.containers[i], func() { socks[i] = linktest.UDP(t, netip.AddrPortFrom(inside4(i), 7000)) })
	}
	reaches(t, c.containers[0], inside4(1), 56)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		buf := make([]byte, 2000)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_, err := socks[0].WriteToUDPAddrPort(frametest.Pattern(1000), netip.AddrPortFrom(inside4(1), 7000))
			if err == nil {
				err = socks[1].SetReadDeadline(time.Now().Add(linktest.Patience))
			}
			if err == nil {
				_, _, err = socks[1].ReadFromUDPAddrPort(buf)
			}
			if err != nil {
				t.Errorf("after %d datagrams: %v", n, err)
				return
			}
			n++
		}
	}()
	for i, h := range c.hosts {
		h.must(request{Op: "churn", Peers: []netip.Addr{underlays["IPv4"][1-i]}})
	}
	close(stop)
	if n := <-done; n == 0 {
		t.Error("nothing was sent meanwhile")
	}
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// The frames that wait in the TAP of a network that is removed are still sent.
func TestRemovalSendsWhatWaits(t *testing.T) {
	p := newPair(t)
	far := udpOn(t, p, 1)
	p.enter(t, 0)
	v, err := New(Config{Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][0]}}, Queues: 1, Log: slog.New(slog.DiscardHandler)})
	linktest.Must(t, err)
	defer v.Close()
	linktest.Must(t, v.AddNetwork(blue(0, "IPv4")))
	n := v.networks[0]
	// As it is between two turns of a worker: frames have come, and the worker has not looked.
	w, err := newWorker(v, 0)
	linktest.Must(t, err)
	linktest.Must(t, w.serve(n))
	s := linktest.UDP(t, netip.AddrPortFrom(overlay(0), 0))
	l := linktest.Device(t, "blue0")
	mac := frametest.MAC(9)
	linktest.Must(t, netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: overlay(1).AsSlice(), HardwareAddr: mac[:],
	}))
	const frames = 300
	for range frames {
		_, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(overlay(1), 9))
		linktest.Must(t, err)
	}
	linktest.Must(t, link.SetDown("blue0"))
	linktest.Must(t, w.leave(n))
	conserved(t, "blue", v.Networks()[0].Counters)
	if out := n.fwd.Counters.UnderlayOut.Frames.Load(); out < frames {
		t.Errorf("%d of %d frames were sent; drops %+v", out, frames, v.Drops())
	}
	linktest.Must(t, w.set.Close())
	_ = far
}

// udpOn opens the VXLAN port of host i, so that it does not answer with ICMP errors.
func udpOn(t *testing.T, p *pair, i int) *net.UDPConn {
	t.Helper()
	p.enter(t, i)
	return linktest.UDP(t, netip.AddrPortFrom(underlays["IPv4"][i], 4789))
}

// Containers outlive the daemon, however it ends, and the next one takes them on, without a frame lost that could
// have gone.
func TestContainersOutliveTheDaemon(t *testing.T) {
	for name, end := range map[string]func(h *host){
		"stopped": func(h *host) { h.tell("stop"); h.tell("close") },
		"killed":  func(h *host) { h.kill() },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			reaches(t, c.containers[0], inside4(1), 56)
			var index int
			eth0 := func() netlink.Link {
				var l netlink.Link
				linktest.In(t, c.containers[0], func() { l = linktest.Device(t, "eth0") })
				return l
			}
			index = eth0().Attrs().Index
			sandbox := c.hosts[0].network().Sandbox
			end(c.hosts[0])
			linktest.Await(t, "end", func() bool {
				gone := false
				linktest.In(t, sandbox, func() { gone = !slices.Contains(linktest.Devices(t), "tap0") })
				return gone
			})
			if ping(t, c.containers[0], inside4(1), 56, 100*time.Millisecond) {
				t.Error("without a daemon the other host was reached")
			}
			reaches(t, c.containers[0], gateway4, 56)

			c.enter(t, 0)
			h := startHost(t)
			h.start(Config{Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][0]}}})
			if v := h.tell("orphans").VNIs; !slices.Equal(v, []addr.VNI{42}) {
				t.Errorf("orphans %v", v)
			}
			n := sandboxed(0)
			h.must(request{Op: "add", Network: &n})
			h.must(request{Op: "map", Name: "blue", Mapping: mapping(1, 1)})
			if ids := h.must(request{Op: "unclaimed", Name: "blue"}).IDs; !slices.Equal(ids, []string{endpoint(0, "").ID}) {
				t.Errorf("unclaimed %v", ids)
			}
			a := endpoint(0, c.containers[0])
			for range 2 {
				got := h.must(request{Op: "attach", Name: "blue", Attach: &a}).Attached[0]
				if got.Interface != "eth0" || got.MTU != 1450 || got.Problem != "" || eth0().Attrs().Index != index {
					t.Errorf("attached %+v, interface %d, %d before", got, eth0().Attrs().Index, index)
				}
			}
			if ids := h.must(request{Op: "unclaimed", Name: "blue"}).IDs; len(ids) != 0 {
				t.Errorf("unclaimed %v", ids)
			}
			if h.network().Sandbox != sandbox {
				t.Errorf("sandbox %s, %s before", h.network().Sandbox, sandbox)
			}
			for _, to := range []netip.Addr{inside4(1), inside6(1), gateway4, gateway6} {
				reaches(t, c.containers[0], to, 1000)
				reaches(t, c.containers[1], inside4(0), 1000)
			}
		})
	}
}

// Networks that the next daemon does not have go when it says so, and those that it keeps do not.
func TestOrphans(t *testing.T) {
	newPair(t)
	v := sandboxVTEP(t)
	container := linktest.Named(t, "c")
	for i, name := range []string{"a", "b", "c"} {
		linktest.Must(t, v.AddNetwork(Network{Name: name, VNI: addr.VNI(100 + i), Sandbox: true}))
		_, err := v.Attach(name, endpoint(i, container))
		linktest.Must(t, err)
	}
	linktest.Must(t, v.Close())
	v = sandboxVTEP(t)
	linktest.Must(t, v.AddNetwork(Network{Name: "a", VNI: 100, Sandbox: true}))
	if got, err := v.Orphans(); err != nil || !slices.Equal(got, []addr.VNI{101, 102}) {
		t.Errorf("orphans %v, %v", got, err)
	}
	if got, err := v.RemoveOrphans([]addr.VNI{102}); err != nil || !slices.Equal(got, []addr.VNI{101}) {
		t.Errorf("removed %v, %v", got, err)
	}
	linktest.In(t, container, func() {
		if d := linktest.Devices(t); len(d) != 3 { // lo, that of a and that of c
			t.Errorf("devices of the container %v", d)
		}
	})
	if got, err := v.RemoveOrphans(nil); err != nil || !slices.Equal(got, []addr.VNI{102}) {
		t.Errorf("removed %v, %v", got, err)
	}
	if got := sandboxNames(t); !slices.Equal(got, []string{"100"}) {
		t.Errorf("sandboxes %v", got)
	}
}

// The MTU of the containers follows the underlay, and their IPv6 comes and goes with it.
func TestContainersFollowTheMTU(t *testing.T) {
	c := newCluster(t)
	for _, m := range []int{1400, 1200, 1500} {
		for i := range c.hosts {
			c.enter(t, i)
			linktest.Must(t, link.SetMTU("eth0", m))
		}
		want := m - 50
		linktest.Await(t, fmt.Sprintf("MTU of %d", want), func() bool {
			a := c.hosts[0].must(request{Op: "attachments", Name: "blue"}).Attached
			return len(a) == 1 && int(a[0].MTU) == want && a[0].Problem == ""
		})
		linktest.In(t, c.containers[0], func() {
			if got := linktest.Device(t, "eth0").Attrs().MTU; got != want {
				t.Errorf("the container has %d, not %d", got, want)
			}
			_, has := link.HasAddress(inside6(0))
			if has != (want >= 1280) {
				t.Errorf("at %d the container has its IPv6 address: %v", want, has)
			}
		})
		c.inSandbox(t, 0, func() {
			for _, name := range []string{"tap0", "br0", link.HostEnd(endpoint(0, "").ID)} {
				if got := linktest.Device(t, name).Attrs().MTU; got != want {
					t.Errorf("%s has %d, not %d", name, got, want)
				}
			}
		})
		reaches(t, c.containers[0], inside4(1), want-28)
		if want >= 1280 {
			reaches(t, c.containers[0], inside6(1), want-48)
			reaches(t, c.containers[0], gateway6, want-48)
		}
	}
}

// What a container says in the name of another is dropped, and counted as what it is.
func TestSpoofedSourcesAreDropped(t *testing.T) {
	c := newCluster(t)
	reaches(t, c.containers[0], inside4(1), 56)
	count := func(r forward.DropReason) uint64 { return c.hosts[0].network().Counters.Drops[r] }
	stolen := netip.MustParseAddr("10.42.0.200")
	linktest.In(t, c.containers[0], func() { linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(stolen, 24))) })
	var s *net.UDPConn
	linktest.In(t, c.containers[0], func() { s = linktest.UDP(t, netip.AddrPortFrom(stolen, 0)) })
	// The kernel has the neighbour already, so that no ARP goes before.
	_, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(inside4(1), 9))
	linktest.Must(t, err)
	linktest.Await(t, "drop of a stolen address", func() bool { return count(forward.SourceIPSpoofed) > 0 })
	linktest.In(t, c.containers[0], func() { linktest.Must(t, link.SetMAC("eth0", frametest.MAC(222))) })
	before := count(forward.SourceSpoofed)
	linktest.Await(t, "drop of a made-up MAC", func() bool {
		ping(t, c.containers[0], inside4(1), 56, 10*time.Millisecond)
		return count(forward.SourceSpoofed) > before
	})
	// Attaching again puts the MAC right.
	a := endpoint(0, c.containers[0])
	c.hosts[0].must(request{Op: "attach", Name: "blue", Attach: &a})
	reaches(t, c.containers[0], inside4(1), 56)
	c.hosts[0].tell("stop")
	conserved(t, "blue", c.hosts[0].network().Counters)
}
