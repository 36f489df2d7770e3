package vtep

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// New does all its work on the thread that calls it, so that these tests need no other process.

// red is a second network.
func red(i int, family string) Network {
	n := blue(i, family)
	n.Name, n.VNI, n.Device, n.Addresses = "red", 43, "red0", nil
	return n
}

// me is how the error about a taken port calls this process.
func me() string {
	comm, _ := os.ReadFile("/proc/self/comm")
	return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(comm)), os.Getpid())
}

// ports lists the UDP sockets of the namespace that the test is in.
func ports(t *testing.T) (lines []string) {
	t.Helper()
	for _, name := range []string{"udp", "udp6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + name)
		linktest.Must(t, err)
		for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n")[1:] {
			lines = append(lines, strings.Fields(l)[1])
		}
	}
	slices.Sort(lines)
	return lines
}

// Every step of New can fail. Then it says which field of the file the host stands against, and leaves nothing.
func TestNewLeavesNothingBehindWhenItFails(t *testing.T) {
	both := Config{Networks: []Network{blue(0, "IPv4"), red(0, "IPv6")}, Log: slog.New(slog.DiscardHandler)}
	taken := func(a netip.Addr) func(t *testing.T) {
		return func(t *testing.T) { linktest.UDP(t, netip.AddrPortFrom(a, 4789)) }
	}
	for name, c := range map[string]struct {
		change func(c *Config)
		before func(t *testing.T)
		field  string
		errno  error
		words  string
	}{
		"port taken":                    {nil, taken(underlays["IPv4"][0]), "underlay.port", unix.EADDRINUSE, "4789 of 192.0.2.1 is taken by " + me()},
		"port of the second taken":      {nil, taken(underlays["IPv6"][0]), "underlay.port", unix.EADDRINUSE, "4789 of 2001:db8::1"},
		"port taken, several receivers": {func(c *Config) { c.Queues = 3 }, taken(underlays["IPv6"][0]), "underlay.port", unix.EADDRINUSE, "another port"},
		"port of the kernel": {nil, func(t *testing.T) {
			linktest.Must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx0"}, VxlanId: 42, Port: 4789}))
			linktest.Must(t, link.SetUp("vx0"))
		}, "underlay.port", unix.EADDRINUSE, "vxlan device vx0"},
		"foreign address": {func(c *Config) {
			c.Underlay.Addresses = []netip.Addr{underlays["IPv4"][0], netip.MustParseAddr("2001:db8::77")}
		}, nil, "underlay.addresses", unix.EADDRNOTAVAIL, "2001:db8::77"},
		"no route": {func(c *Config) {
			c.Networks = c.Networks[:1]
			c.Networks[0].Peers = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
		}, nil, "underlay.addresses", unix.ENETUNREACH, "203.0.113.1"},
		"device taken": {nil, func(t *testing.T) {
			linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "red0"}}))
		}, "networks[1].device", unix.EBUSY, "a device of type bridge"},
		"device taken, water": {func(c *Config) { c.Disable = FeatureNames() }, func(t *testing.T) {
			linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "red0"}}))
		}, "networks[1].device", unix.EEXIST, "a device of type bridge"},
		"device name too long": {func(c *Config) { c.Networks[1].Device = "0123456789abcdef" }, nil, "networks[1].device", nil, "15 bytes"},
		"MTU that no TAP has":  {func(c *Config) { c.Networks[1].MTU = 1 << 20 }, nil, "networks[1].mtu", unix.EINVAL, "1048576"},
		"underlay too narrow": {func(c *Config) { c.Networks[1] = red(0, "IPv4") }, func(t *testing.T) {
			linktest.Must(t, link.SetMTU("eth0", 100))
		}, "networks[0].mtu", nil, "192.0.2.2"},
		"no address": {func(c *Config) { c.Networks[1].Addresses = make([]netip.Prefix, 1) }, nil, "networks[1].address[0]", nil, "red0"},
	} {
		t.Run(name, func(t *testing.T) {
			newPair(t)
			cfg := both
			cfg.Networks = slices.Clone(both.Networks)
			if c.change != nil {
				c.change(&cfg)
			}
			if c.before != nil {
				c.before(t)
			}
			open, err := descriptors()
			linktest.Must(t, err)
			devs, socks := linktest.Devices(t), ports(t)
			v, err := New(cfg)
			if v != nil || err == nil {
				t.Fatal("it was made: ", v.Close())
			}
			var host *HostError
			if !errors.As(err, &host) || host.Field != c.field || c.errno != nil && !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("New: %v\nwant %s, %v, %q", err, c.field, c.errno, c.words)
			}
			if s := err.Error(); strings.Contains(s, "\n") {
				t.Errorf("more than one line: %q", s)
			}
			if now := linktest.Devices(t); !slices.Equal(now, devs) {
				t.Errorf("devices %v, %v before", now, devs)
			}
			if now := ports(t); !slices.Equal(now, socks) {
				t.Errorf("sockets %v, %v before", now, socks)
			}
			if now, err := descriptors(); err != nil || now != open {
				t.Errorf("descriptors %s, %s before; %v", now, open, err)
			}
		})
	}
}

func TestNewWithoutPermission(t *testing.T) {
	newPair(t)
	devs, socks := linktest.Devices(t), ports(t)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, without [2]unix.CapUserData
	linktest.Must(t, unix.Capget(&header, &have[0]))
	without = have
	without[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	linktest.Must(t, unix.Capset(&header, &without[0]))
	v, err := New(Config{Networks: []Network{blue(0, "IPv4")}})
	linktest.Must(t, unix.Capset(&header, &have[0]))
	if v != nil {
		t.Fatal("it was made: ", v.Close())
	}
	var host *HostError
	if !errors.As(err, &host) || host.Field != "networks[0].device" || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("New: %v", err)
	}
	if !slices.Equal(linktest.Devices(t), devs) || !slices.Equal(ports(t), socks) {
		t.Errorf("devices %v, sockets %v", linktest.Devices(t), ports(t))
	}
}

// Between New and Close there is a device for each network, ready for use, and the sockets.
func TestNewMakesAndCloseRemoves(t *testing.T) {
	newPair(t)
	devs, socks := linktest.Devices(t), ports(t)
	second := red(0, "IPv6")
	second.MTU = 1300
	v, err := New(Config{Networks: []Network{blue(0, "IPv4"), second}, Queues: 2})
	linktest.Must(t, err)
	for name, mtu := range map[string]int{"blue0": 1450, "red0": 1300} {
		a := linktest.Device(t, name).Attrs()
		if a.MTU != mtu || a.TxQLen != queueLength || a.RawFlags&unix.IFF_UP == 0 || a.NumTxQueues < 2 {
			t.Errorf("%s: MTU %d, queue %d, flags %v, %d queues", name, a.MTU, a.TxQLen, a.Flags, a.NumTxQueues)
		}
		if a.GSOMaxSize != uint32(gsoMaxSize(v.networks[0].fwd.MTU())) && name == "blue0" {
			t.Errorf("%s: gso_max_size %d", name, a.GSOMaxSize)
		}
	}
	if dev, ok := link.HasAddress(overlay(0)); !ok || dev != "blue0" {
		t.Errorf("%v is an address of %q", overlay(0), dev)
	}
	if n := len(ports(t)) - len(socks); n != 2*(2*lanes+sourcePorts) {
		t.Errorf("%d sockets", n)
	}
	all := v.Networks()
	if len(all) != 2 || all[0].Name != "blue" || all[1].Name != "red" || all[1].MTU != 1300 || all[1].MTUDerived || all[0].Queues != 2*lanes {
		t.Errorf("networks %+v", all)
	}
	if peers := v.Peers(); len(peers) != 2 || peers[0].Address != underlays["IPv4"][1] || peers[1].Address != underlays["IPv6"][1] || peers[1].Overhead != 70 || !peers[0].Heard.IsZero() {
		t.Errorf("peers %+v", peers)
	}
	if s := v.Status(); len(s.Addresses) != 2 || len(v.Drops()) != 0 || len(v.Samples(0)) != 0 {
		t.Errorf("status %+v, drops %v", s, v.Drops())
	}
	linktest.Must(t, v.Close())
	if !slices.Equal(linktest.Devices(t), devs) || !slices.Equal(ports(t), socks) {
		t.Errorf("devices %v, sockets %v", linktest.Devices(t), ports(t))
	}
	linktest.Must(t, v.Close())
}

// Two hosts behind two NATs may have the same underlay address, and still need a MAC each.
func TestMACDiffersBetweenMachines(t *testing.T) {
	local := underlays["IPv4"][0]
	a, b := stationMAC(42, local, []byte("a")), stationMAC(42, local, []byte("b"))
	if a == b || a != stationMAC(42, local, []byte("a")) || a.IsMulticast() || a[0]&2 == 0 {
		t.Errorf("MACs %v and %v", a, b)
	}
}

// The MAC of a TAP is the same after every restart, and no other host or network has it.
func TestMACIsStable(t *testing.T) {
	newPair(t)
	seen := map[addr.MAC]string{}
	for _, c := range []struct {
		network Network
		who     string
	}{{blue(0, "IPv4"), "blue over IPv4"}, {blue(0, "IPv4"), "blue over IPv4"}, {red(0, "IPv4"), "red over IPv4"}, {blue(0, "IPv6"), "blue over IPv6"}} {
		v, err := New(Config{Networks: []Network{c.network}})
		linktest.Must(t, err)
		mac := v.Networks()[0].MAC
		if got := linktest.Device(t, c.network.Device).Attrs().HardwareAddr; got.String() != mac.String() || mac.IsMulticast() || mac[0]&2 == 0 {
			t.Errorf("%s has %v, and is said to have %v", c.who, got, mac)
		}
		linktest.Must(t, v.Close())
		if other, ok := seen[mac]; ok && other != c.who {
			t.Errorf("%s and %s have %v", other, c.who, mac)
		}
		seen[mac] = c.who
	}
	if len(seen) != 3 {
		t.Errorf("%d addresses: %v", len(seen), seen)
	}
}

// A VTEP that is a peer in several networks has one entry, with all of them.
func TestPeersOfSeveralNetworks(t *testing.T) {
	newPair(t)
	v, err := New(Config{Networks: []Network{blue(0, "IPv4"), red(0, "IPv4")}})
	linktest.Must(t, err)
	defer v.Close()
	if p := v.Peers(); len(p) != 1 || fmt.Sprint(p[0].Networks) != "[blue red]" {
		t.Errorf("peers %+v", p)
	}
}

// A peer that is this host itself is a mistake in the file, though no address is stated there.
func TestNewRefusesItselfAsPeer(t *testing.T) {
	newPair(t)
	n := blue(0, "IPv4")
	n.Peers = append(n.Peers, underlays["IPv4"][0])
	v, err := New(Config{Networks: []Network{red(0, "IPv4"), n}})
	if v != nil {
		t.Fatal("it was made: ", v.Close())
	}
	var config *ConfigError
	if !errors.As(err, &config) || config.Field != "networks[1].peers[1]" || !strings.Contains(err.Error(), "this host's own") {
		t.Errorf("New: %v", err)
	}
}

// A peer behind the overlay itself would be a loop, and is called one.
func TestPeerInsideTheOverlayIsAProblem(t *testing.T) {
	newPair(t)
	n := blue(0, "IPv4")
	n.Peers = []netip.Addr{netip.MustParseAddr("10.42.0.9")}
	v, err := New(Config{Networks: []Network{red(0, "IPv4"), n}, Underlay: Underlay{Addresses: []netip.Addr{underlays["IPv4"][0]}}})
	linktest.Must(t, err)
	defer v.Close()
	linktest.Must(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: linktest.Device(t, "blue0").Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(10, 42, 0, 9).To4(), Mask: net.CIDRMask(32, 32)},
	}))
	v.readRoutes()
	if p := v.Peers()[0]; !strings.Contains(p.Problem, "into the overlay itself") {
		t.Errorf("peer %+v", p)
	}
}

// What the file alone shows to be wrong is found before anything is made.
func TestConfigErrors(t *testing.T) {
	good := func() Config {
		return Config{Networks: []Network{blue(0, "IPv4"), red(0, "IPv4")}, Underlay: Underlay{TTL: 64, Addresses: []netip.Addr{underlays["IPv4"][0]}}}
	}
	for name, c := range map[string]struct {
		change func(*Config)
		field  string
		words  string
	}{
		"TTL":               {func(c *Config) { c.Underlay.TTL = 256 }, "underlay.ttl", "256"},
		"negative TTL":      {func(c *Config) { c.Underlay.TTL = -1 }, "underlay.ttl", "-1"},
		"busy poll":         {func(c *Config) { c.BusyPoll = 11 * time.Millisecond }, "busy_poll", "11ms"},
		"queues":            {func(c *Config) { c.Queues = 65 }, "queues", "65"},
		"feature":           {func(c *Config) { c.Disable = []string{FeatureUDPGRO, "speed"} }, "disable[1]", `"speed"`},
		"address twice":     {func(c *Config) { c.Underlay.Addresses = append(c.Underlay.Addresses, underlays["IPv4"][0]) }, "underlay.addresses[1]", "twice"},
		"peer second own":   {func(c *Config) { c.Underlay.Addresses = append(c.Underlay.Addresses, underlays["IPv4"][1]) }, "networks[0].peers[0]", "own"},
		"MSS":               {func(c *Config) { c.Networks[1].MSS = 87 }, "networks[1].mss", "87 is out of range"},
		"large MSS":         {func(c *Config) { c.Networks[1].MSS = 65446 }, "networks[1].mss", "65446"},
		"MSS above the MTU": {func(c *Config) { c.Networks[1].MTU, c.Networks[1].MSS = 1300, 1261 }, "networks[1].mss", "1260"},
		"no address":        {func(c *Config) { c.Underlay.Addresses[0] = netip.Addr{} }, "underlay.addresses[0]", "missing"},
		"any address":       {func(c *Config) { c.Underlay.Addresses[0] = netip.IPv4Unspecified() }, "underlay.addresses[0]", "one host"},
		"mapped address":    {func(c *Config) { c.Underlay.Addresses[0] = netip.MustParseAddr("::ffff:192.0.2.1") }, "underlay.addresses[0]", "write 192.0.2.1"},
		"name twice":        {func(c *Config) { c.Networks[1].Name = "blue" }, "networks[1].name", "networks[0]"},
		"VNI twice":         {func(c *Config) { c.Networks[1].VNI = 42 }, "networks[1].vni", "networks[0]"},
		"device twice":      {func(c *Config) { c.Networks[1].Device = "blue0" }, "networks[1].device", "networks[0]"},
		"VNI too large":     {func(c *Config) { c.Networks[1].VNI = 1 << 24 }, "networks[1].vni", "16777216"},
		"peer of no family": {func(c *Config) { c.Networks[1].Peers = blue(0, "IPv6").Peers }, "networks[1].peers[0]", "IPv6"},
		"peer twice":        {func(c *Config) { c.Networks[1].Peers = append(c.Networks[1].Peers, underlays["IPv4"][1]) }, "networks[1].peers[1]", "twice"},
		"peer itself":       {func(c *Config) { c.Networks[1].Peers = blue(1, "IPv4").Peers }, "networks[1].peers[0]", "own"},
		"peer multicast":    {func(c *Config) { c.Networks[1].Peers[0] = netip.MustParseAddr("239.0.0.1") }, "networks[1].peers[0]", "one host"},
		"peer broadcast":    {func(c *Config) { c.Networks[1].Peers[0] = netip.MustParseAddr("255.255.255.255") }, "networks[1].peers[0]", "one host"},
		"peer with zone":    {func(c *Config) { c.Networks[1].Peers[0] = netip.MustParseAddr("fe80::1%eth0") }, "networks[1].peers[0]", "zone"},
		"endpoint's VTEP": {func(c *Config) {
			c.Networks[1].Mappings = []addr.Mapping{{MAC: frametest.MAC(1), VTEP: underlays["IPv4"][0]}}
		}, "networks[1].endpoints[0].vtep", "peers"},
		"endpoint's MAC": {func(c *Config) { c.Networks[1].Mappings = []addr.Mapping{{VTEP: underlays["IPv4"][1]}} }, "networks[1].endpoints[0].mac", "one station"},
	} {
		cfg := good()
		c.change(&cfg)
		v, err := New(cfg)
		if v != nil {
			t.Errorf("%s: it was made: %v", name, v.Close())
		}
		var config *ConfigError
		if !errors.As(err, &config) || config.Field != c.field || !strings.Contains(err.Error(), c.words) || !strings.HasPrefix(err.Error(), c.field+": ") {
			t.Errorf("%s: New: %v\nwant %s, %q", name, err, c.field, c.words)
		}
	}
	cfg := good()
	if err := cfg.validate(); err != nil {
		t.Errorf("the good one: %v", err)
	}
}
