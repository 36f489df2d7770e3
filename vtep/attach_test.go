package vtep

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// The network of these tests has a subnet of each family, and on host i the container i has the addresses .10+i.
var (
	gateway4 = netip.MustParseAddr("10.42.0.1")
	gateway6 = netip.MustParseAddr("fd42::1")
)

func inside4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, 0, byte(10 + i)}) }
func inside6(i int) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 0x42, 15: byte(0x10 + i)}) }

// sandboxed is that network on host i of a pair.
func sandboxed(i int) Network {
	return Network{
		Name: "blue", VNI: 42, Sandbox: true, Isolate: true,
		Peers: []netip.Addr{underlays["IPv4"][1-i]}, Gateways: []netip.Addr{gateway4, gateway6},
	}
}

// endpoint is container i, in the namespace of that name.
func endpoint(i int, netns string) Attachment {
	return Attachment{
		ID: fmt.Sprintf("%016x", i), Name: fmt.Sprintf("c%d", i), NetNS: netns, MAC: frametest.MAC(uint16(100 + i)),
		Addresses: []netip.Prefix{netip.PrefixFrom(inside4(i), 24), netip.PrefixFrom(inside6(i), 64)},
		Gateways:  []netip.Addr{gateway4, gateway6},
	}
}

// mapping is container i as the other hosts know it, behind host h.
func mapping(i, h int) *addr.Mapping {
	return &addr.Mapping{VNI: 42, MAC: frametest.MAC(uint16(100 + i)), IPs: []netip.Addr{inside4(i), inside6(i)}, VTEP: underlays["IPv4"][h]}
}

// cluster is two hosts with that network and a container on each.
type cluster struct {
	*pair
	hosts      [2]*host
	containers [2]string // names of their namespaces
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{pair: newPair(t)}
	for i := range c.hosts {
		c.containers[i] = linktest.Named(t, fmt.Sprintf("c%d", i))
		c.startAt(t, i)
	}
	return c
}

// startAt starts the VTEP of host i as after a restart: with nothing, and then all that is known.
func (c *cluster) startAt(t *testing.T, i int) {
	t.Helper()
	c.enter(t, i)
	h := startHost(t)
	h.start(Config{Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][i]}}, Queues: 2})
	c.hosts[i] = h
	n := sandboxed(i)
	h.must(request{Op: "add", Network: &n})
	h.must(request{Op: "map", Name: "blue", Mapping: mapping(1-i, 1-i)})
	a := endpoint(i, c.containers[i])
	h.must(request{Op: "attach", Name: "blue", Attach: &a})
}

// ping sends an echo request of size bytes of payload from the namespace called from, and reports whether an answer
// came within a while.
func ping(t *testing.T, from string, to netip.Addr, size int, wait time.Duration) bool {
	t.Helper()
	ok := false
	linktest.In(t, from, func() {
		network, proto, kind := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeEcho)
		if to.Is6() {
			network, proto, kind = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest
		}
		c, err := net.ListenPacket(network, "")
		linktest.Must(t, err)
		defer c.Close()
		id := os.Getpid() & 0xffff
		m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: size, Data: frametest.Pattern(size)}}
		b, err := m.Marshal(nil)
		linktest.Must(t, err)
		if _, err = c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return // no route, or the frame is too large
		}
		linktest.Must(t, c.SetReadDeadline(time.Now().Add(wait)))
		buf := make([]byte, 1<<16)
		for {
			n, peer, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			got, err := icmp.ParseMessage(proto, buf[:n])
			if err != nil || got.Type == kind {
				continue
			}
			if e, is := got.Body.(*icmp.Echo); is && e.ID == id && e.Seq == size && bytes.Equal(e.Data, frametest.Pattern(size)) &&
				peer.(*net.IPAddr).IP.Equal(to.AsSlice()) {
				ok = true
				return
			}
		}
	})
	return ok
}

// reaches fails the test unless there is an answer.
func reaches(t *testing.T, from string, to netip.Addr, size int) {
	t.Helper()
	for end := time.Now().Add(linktest.Patience); !ping(t, from, to, size, time.Second); {
		if time.Now().After(end) {
			t.Fatalf("%v does not answer %s", to, from)
		}
	}
}

// Containers on two hosts reach each other and their gateway, at full size, and nothing was broadcast for it.
func TestContainersReachEachOther(t *testing.T) {
	c := newCluster(t)
	for i := range c.hosts {
		for _, to := range []netip.Addr{inside4(1 - i), inside6(1 - i), gateway4, gateway6} {
			reaches(t, c.containers[i], to, 56)
		}
		reaches(t, c.containers[i], inside4(1-i), 1450-28)
		reaches(t, c.containers[i], inside6(1-i), 1450-48)
		linktest.In(t, c.containers[i], func() {
			a := linktest.Device(t, "eth0").Attrs()
			if a.MTU != 1450 || a.HardwareAddr.String() != endpoint(i, "").MAC.String() || a.OperState != netlink.OperUp {
				t.Errorf("container %d has %+v", i, a)
			}
		})
	}
	for i, h := range c.hosts {
		h.tell("stop")
		n := h.network()
		conserved(t, n.Name, n.Counters)
		if n.MTU != 1450 || n.Sandbox == "" || n.Attachments != 1 || n.Healed != 0 || !n.Isolate {
			t.Errorf("host %d: %+v", i, n)
		}
		t.Logf("host %d: %+v", i, h.tell("drops").Drops)
	}
}

// Interfaces get the first free name or the one that was asked for, and keep it.
func TestInterfaceNames(t *testing.T) {
	newPair(t)
	v := sandboxVTEP(t)
	linktest.Must(t, v.AddNetwork(sandboxed(0)))
	container := linktest.Named(t, "c")
	linktest.In(t, container, func() {
		linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}}))
	})
	for i, c := range []struct{ ask, want string }{{"", "eth0"}, {"", "eth2"}, {"net7", "net7"}} {
		a := endpoint(i, container)
		a.Interface, a.Gateways = c.ask, nil
		for range 2 {
			got, err := v.Attach("blue", a)
			if err != nil || got.Interface != c.want || got.Problem != "" || got.MTU != 1450 || got.ID != a.ID || got.NetNS != container {
				t.Errorf("attached %+v, %v, want %s", got, err, c.want)
			}
		}
	}
	// A path will do as well as a name, and what is asked for again under another name keeps its own, and says so.
	a := endpoint(1, "/run/netns/"+container)
	a.Interface, a.Gateways = "other", nil
	if got, err := v.Attach("blue", a); err != nil || got.Interface != "eth2" || !strings.Contains(got.Problem, "eth2") {
		t.Errorf("attached %+v, %v", got, err)
	}
	all := v.Attachments("blue")
	if len(all) != 3 || all[0].Interface != "eth0" || all[2].Interface != "net7" {
		t.Errorf("attachments %+v", all)
	}
	for _, a := range all {
		for range 2 {
			linktest.Must(t, v.Detach("blue", a.ID))
		}
	}
	linktest.In(t, container, func() {
		if d := linktest.Devices(t); !slices.Equal(d, []string{"lo", "eth1"}) {
			t.Errorf("devices %v", d)
		}
	})
	if rows, err := v.FDB("blue"); err != nil || len(rows) != 1 || len(v.Attachments("blue")) != 0 {
		t.Errorf("FDB %+v, %v", rows, err)
	}
}

// A default route that is there stays, and is no reason to fail.
func TestDefaultRouteOfTheContainerStays(t *testing.T) {
	newPair(t)
	v := sandboxVTEP(t)
	linktest.Must(t, v.AddNetwork(sandboxed(0)))
	container := linktest.Named(t, "c")
	linktest.In(t, container, func() {
		d := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}
		linktest.Must(t, netlink.LinkAdd(d), link.SetUp("eth0"), link.AddAddress("eth0", netip.MustParsePrefix("192.0.2.9/24")))
		linktest.Must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: linktest.Device(t, "eth0").Attrs().Index, Gw: net.IPv4(192, 0, 2, 254)}))
	})
	got, err := v.Attach("blue", endpoint(0, container))
	if err != nil || got.Interface != "eth1" || !strings.Contains(got.Problem, "default route already") || !strings.Contains(got.Problem, gateway4.String()) {
		t.Errorf("attached %+v, %v", got, err)
	}
	linktest.In(t, container, func() {
		for _, c := range []struct {
			family int
			dev    string
		}{{netlink.FAMILY_V4, "eth0"}, {netlink.FAMILY_V6, "eth1"}} {
			routes, err := entire(func() ([]netlink.Route, error) { return netlink.RouteList(linktest.Device(t, c.dev), c.family) })
			linktest.Must(t, err)
			if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw != nil }) {
				t.Errorf("no default route by way of %s: %v", c.dev, routes)
			}
		}
	})
}

// An attachment that fails leaves the container, the sandbox and the tables as they were.
func TestFailedAttachmentsLeaveNothing(t *testing.T) {
	newPair(t)
	v := sandboxVTEP(t)
	linktest.Must(t, v.AddNetwork(sandboxed(0)), v.AddNetwork(blueTwin()))
	taken := linktest.Named(t, "c1")
	_, err := v.Attach("blue", endpoint(1, taken))
	linktest.Must(t, err)
	linktest.Must(t, v.SetMapping("blue", *mapping(0, 1)), v.SetMapping("blue", *mapping(5, 1)))
	n, _ := v.named("blue")
	before := tablesOf(n.fwd)
	container := linktest.Named(t, "c0")
	for name, c := range map[string]struct {
		change func(a *Attachment)
		field  string // "" = another error
		words  string
	}{
		"no namespace":        {func(a *Attachment) { a.NetNS = "no-such" }, "netns", "no-such"},
		"no name":             {func(a *Attachment) { a.NetNS = "" }, "netns", "state a name"},
		"folder":              {func(a *Attachment) { a.NetNS = ".." }, "netns", "folder"},
		"relative path":       {func(a *Attachment) { a.NetNS = "../netns/" + container }, "netns", "absolute"},
		"no such process":     {func(a *Attachment) { a.NetNS = "/proc/0/ns/net" }, "netns", "nothing is at"},
		"file":                {func(a *Attachment) { a.NetNS = "/etc/passwd" }, "netns", "no namespace"},
		"other kind":          {func(a *Attachment) { a.NetNS = "/proc/self/ns/mnt" }, "netns", "another kind"},
		"sandbox":             {func(a *Attachment) { a.NetNS = n.sandbox.Name() }, "", "is the sandbox"},
		"ID":                  {func(a *Attachment) { a.ID = "../x" }, "id", "letters"},
		"no ID":               {func(a *Attachment) { a.ID = "" }, "id", "letters"},
		"long interface":      {func(a *Attachment) { a.Interface = "0123456789abcdef" }, "interface", "15 bytes"},
		"interface is a path": {func(a *Attachment) { a.Interface = "../all" }, "interface", "must not"},
		"interface taken":     {func(a *Attachment) { a.Interface = "lo" }, "", `"lo" already`},
		"no MAC":              {func(a *Attachment) { a.MAC = addr.MAC{} }, "mac", "one station"},
		"group MAC":           {func(a *Attachment) { a.MAC = addr.Broadcast }, "mac", "one station"},
		"gateway's MAC":       {func(a *Attachment) { a.MAC = gatewayMAC(42) }, "mac", "gateway"},
		"MAC taken":           {func(a *Attachment) { a.MAC = frametest.MAC(101) }, "mac", "endpoint"},
		"no address":          {func(a *Attachment) { a.Addresses[0] = netip.Prefix{} }, "addresses[0]", "missing"},
		"group address":       {func(a *Attachment) { a.Addresses[1] = netip.MustParsePrefix("ff02::1/64") }, "addresses[1]", "one host"},
		"loopback":            {func(a *Attachment) { a.Addresses[0] = netip.MustParsePrefix("127.0.0.9/8") }, "addresses[0]", "not an address"},
		"link-local":          {func(a *Attachment) { a.Addresses[1] = netip.MustParsePrefix("fe80::9/64") }, "addresses[1]", "not an address"},
		"address taken":       {func(a *Attachment) { a.Addresses[1] = netip.PrefixFrom(inside6(1), 64) }, "addresses[1]", "endpoint"},
		"gateway's address":   {func(a *Attachment) { a.Addresses[0] = netip.PrefixFrom(gateway4, 24) }, "addresses[0]", "gateway"},
		"address twice":       {func(a *Attachment) { a.Addresses = append(a.Addresses, a.Addresses[0]) }, "addresses[2]", "twice"},
		"gateway elsewhere":   {func(a *Attachment) { a.Gateways[0] = netip.MustParseAddr("10.43.0.1") }, "gateways[0]", "subnet"},
		"two gateways":        {func(a *Attachment) { a.Gateways[1] = inside4(9) }, "gateways[1]", "second"},
		"itself the gateway":  {func(a *Attachment) { a.Gateways[0] = inside4(0) }, "gateways[0]", "itself"},
	} {
		a := endpoint(0, container)
		c.change(&a)
		_, err := v.Attach("blue", a)
		var config *ConfigError
		if err == nil || !strings.Contains(err.Error(), c.words) || errors.As(err, &config) != (c.field != "") || config != nil && config.Field != c.field {
			t.Errorf("%s: %v, want an error about %s with %q", name, err, c.field, c.words)
		}
		if c.field == "netns" && !errors.Is(err, link.ErrNoNamespace) {
			t.Errorf("%s: %v is not ErrNoNamespace", name, err)
		}
		if now := tablesOf(n.fwd); !slices.Equal(now, before) {
			t.Errorf("%s: tables %v, %v before", name, now, before)
		}
	}
	// The last step in the container fails: its gateway is itself, by an address that it has elsewhere.
	linktest.In(t, container, func() {
		linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "x0"}}),
			link.SetUp("x0"), link.AddAddress("x0", netip.PrefixFrom(gateway6, 128)))
	})
	if _, err := v.Attach("blue", endpoint(0, container)); err == nil || !strings.Contains(err.Error(), "default route by way of fd42::1") {
		t.Errorf("with itself for a gateway: %v", err)
	}
	linktest.In(t, container, func() {
		if d := linktest.Devices(t); !slices.Equal(d, []string{"lo", "x0"}) {
			t.Errorf("devices of the container %v", d)
		}
		linktest.Must(t, netlink.LinkDel(linktest.Device(t, "x0")))
	})
	if now := tablesOf(n.fwd); !slices.Equal(now, before) {
		t.Errorf("tables %v, %v before", now, before)
	}
	// The last step of all fails, after all others have been done.
	a := endpoint(0, container)
	a.Addresses = append(a.Addresses, netip.PrefixFrom(inside4(5), 24)) // that of a station elsewhere
	linktest.In(t, n.sandbox.Name(), func() { linktest.Must(t, netlink.LinkDel(linktest.Device(t, "br0"))) })
	linktest.In(t, n.sandbox.Name(), func() {
		linktest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "br0"}, PeerName: "far0"}))
	})
	if _, err := v.Attach("blue", a); err == nil || !strings.Contains(err.Error(), "br0") {
		t.Errorf("without a bridge: %v", err)
	}
	if now := tablesOf(n.fwd); !slices.Equal(now, before) {
		t.Errorf("tables %v, %v before", now, before)
	}
	linktest.In(t, n.sandbox.Name(), func() { linktest.Must(t, netlink.LinkDel(linktest.Device(t, "br0"))) })
	linktest.In(t, container, func() {
		if d := linktest.Devices(t); !slices.Equal(d, []string{"lo"}) {
			t.Errorf("devices of the container %v", d)
		}
	})
	if ids, err := n.sandbox.Endpoints(); err != nil || len(ids) != 1 || len(v.Attachments("blue")) != 1 {
		t.Errorf("endpoints %v, %v", ids, err)
	}
	if _, err := v.Attach("blue", a); err != nil {
		t.Errorf("in the end: %v", err)
	}
	if _, err := v.Attach("red", endpoint(0, container)); err == nil || !strings.Contains(err.Error(), "interface of the host") {
		t.Errorf("to a network of the host: %v", err)
	}
	if err := v.Detach("red", "1"); err != nil {
		t.Errorf("from a network of the host: %v", err)
	}
}

// blueTwin is a network of the host beside blue.
func blueTwin() Network { return Network{Name: "red", VNI: 43, Device: "red0"} }

// A container that is gone can be detached, and one whose interface is gone says so.
func TestContainersThatAreGone(t *testing.T) {
	newPair(t)
	v := sandboxVTEP(t)
	linktest.Must(t, v.AddNetwork(sandboxed(0)))
	first, second := linktest.Named(t, "c0"), linktest.Named(t, "c1")
	for i, c := range []string{first, second} {
		_, err := v.Attach("blue", endpoint(i, c))
		linktest.Must(t, err)
	}
	linktest.Delete(t, first)
	linktest.Await(t, "end of the namespace", func() bool {
		ids, err := v.names["blue"].sandbox.Endpoints()
		return err == nil && len(ids) == 1
	})
	if n, err := v.Reconcile(); n != 0 || err != nil {
		t.Errorf("%d healed, %v", n, err)
	}
	all := v.Attachments("blue")
	if len(all) != 2 || !strings.Contains(all[0].Problem, "gone") || all[1].Problem != "" {
		t.Errorf("attachments %+v", all)
	}
	linktest.Must(t, v.Detach("blue", endpoint(0, "").ID), v.Detach("blue", endpoint(0, "").ID))

	// The same endpoint in another container: the old interface goes.
	third := linktest.Named(t, "c2")
	if got, err := v.Attach("blue", endpoint(1, third)); err != nil || got.Interface != "eth0" || got.NetNS != third {
		t.Errorf("attached %+v, %v", got, err)
	}
	for c, want := range map[string]int{second: 1, third: 2} {
		linktest.In(t, c, func() {
			if d := linktest.Devices(t); len(d) != want {
				t.Errorf("devices %v", d)
			}
		})
	}
	// A path that leads elsewhere now is not followed.
	n := v.names["blue"]
	path := "/run/netns/" + third
	linktest.Must(t, unix.Unmount(path, unix.MNT_DETACH), unix.Mount("/run/netns/"+second, path, "", unix.MS_BIND, ""))
	v.refit(n, n.attached[endpoint(1, "").ID])
	if a := v.Attachments("blue"); !strings.Contains(a[0].Problem, "another container") {
		t.Errorf("attachments %+v", a)
	}
	linktest.In(t, second, func() {
		if d := linktest.Devices(t); len(d) != 1 {
			t.Errorf("devices %v", d)
		}
	})
}
