//go:build linux

package link

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

func TestRouteTo(t *testing.T) {
	linktest.Enter(t)
	addVeth(t, "eth0", "far0", "192.0.2.1/24", "2001:db8:1::1/64")
	addVeth(t, "eth1", "far1", "198.51.100.1/24", "198.51.100.9/24")
	if err := SetMTU("eth1", 9000); err != nil {
		t.Fatal(err)
	}
	addRoute(t, "eth0", "203.0.113.0/26", "192.0.2.254", 1400)
	addRoute(t, "eth0", "203.0.113.64/26", "192.0.2.254", 9000) // more than the device takes
	addRoute(t, "eth0", "2001:db8:2::/64", "2001:db8:1::fe", 1300)
	addRoute(t, "eth0", "2001:db8:3::/64", "2001:db8:1::fe", 0)
	for _, c := range []struct {
		dst, src, dev string
		mtu           mtu.UnderlayMTU
	}{
		{"192.0.2.2", "192.0.2.1", "eth0", 1500},
		{"::ffff:192.0.2.2", "192.0.2.1", "eth0", 1500},
		{"198.51.100.2", "198.51.100.1", "eth1", 9000},
		{"203.0.113.1", "192.0.2.1", "eth0", 1400},
		{"203.0.113.65", "192.0.2.1", "eth0", 1500},
		{"2001:db8:1::2", "2001:db8:1::1", "eth0", 1500},
		{"2001:db8:2::2", "2001:db8:1::1", "eth0", 1300},
		{"2001:db8:3::2", "2001:db8:1::1", "eth0", 1500},
		{"192.0.2.1", "192.0.2.1", "lo", 65536},
	} {
		r, err := RouteTo(netip.MustParseAddr(c.dst))
		if err != nil {
			t.Errorf("%s: %v", c.dst, err)
			continue
		}
		l, err := linkByName(c.dev)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Route{netip.MustParseAddr(c.src), c.dev, l.Attrs().Index, c.mtu}); r != want {
			t.Errorf("RouteTo(%s) = %+v, want %+v", c.dst, r, want)
		}
	}
	// What has another source may go another way.
	rule := netlink.NewRule()
	rule.Src, rule.Table, rule.Family = ipNet("198.51.100.9/32"), 77, netlink.FAMILY_V4
	linktest.Must(t, netlink.RuleAdd(rule), netlink.RouteAdd(&netlink.Route{
		Dst: ipNet("203.0.113.0/26"), LinkIndex: linktest.Device(t, "eth1").Attrs().Index, Table: 77, MTU: 1600, Scope: netlink.SCOPE_LINK,
	}))
	if r, err := RouteFrom(netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("203.0.113.1")); err != nil ||
		r.Src != netip.MustParseAddr("198.51.100.9") || r.Device != "eth1" || r.MTU != 1600 {
		t.Errorf("by another source: %+v, %v", r, err)
	}
	for dst, kind := range map[string]int{"203.0.113.128/26": unix.RTN_BLACKHOLE, "203.0.113.192/26": unix.RTN_PROHIBIT} {
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Type: kind}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		dst, word string
		errno     error
	}{
		{"203.0.113.130", "forbids", unix.EINVAL},
		{"203.0.113.200", "forbids", unix.EACCES},
		{"192.0.3.1", "add a route", unix.ENETUNREACH},
		{"2001:db8:9::1", "add a route", unix.ENETUNREACH},
		{"fe80::1%eth7", "no such device", nil},
		{"224.0.0.1", "unicast", nil},
		{"0.0.0.0", "unicast", nil},
		{"::", "unicast", nil},
	} {
		dst := netip.MustParseAddr(c.dst)
		r, err := RouteTo(dst)
		if err == nil || r != (Route{}) || !strings.Contains(err.Error(), c.word) || !strings.Contains(err.Error(), c.dst) ||
			c.errno != nil && !errors.Is(err, c.errno) {
			t.Errorf("RouteTo(%s) = %+v, %v; want an error with the address, %q and %v", c.dst, r, err, c.word, c.errno)
		}
	}
	if _, err := RouteTo(netip.Addr{}); err == nil {
		t.Error("a route to nowhere")
	}
}

// A link-local peer is reached through the device in its zone.
func TestRouteToLinkLocal(t *testing.T) {
	linktest.Enter(t)
	addVeth(t, "eth0", "far0", "fe80::a/64")
	addVeth(t, "eth1", "far1", "fe80::b/64")
	for dev, src := range map[string]string{"eth0": "fe80::a", "eth1": "fe80::b"} {
		r, err := RouteTo(netip.MustParseAddr("fe80::99%" + dev))
		if err != nil || r.Device != dev {
			t.Errorf("through %s: %+v, %v", dev, r, err)
			continue
		}
		if where, ok := HasAddress(r.Src); !ok || !r.Src.IsLinkLocalUnicast() || where != dev {
			t.Errorf("through %s: source %v (like %s) of device %q", dev, r.Src, src, where)
		}
	}
}

func TestHasAddress(t *testing.T) {
	linktest.Enter(t)
	addVeth(t, "eth0", "far0", "192.0.2.1/24", "2001:db8:1::1/64", "fe80::a/64")
	for a, want := range map[string]string{
		"192.0.2.1":        "eth0",
		"::ffff:192.0.2.1": "eth0",
		"192.0.2.2":        "",
		"2001:db8:1::1":    "eth0",
		"2001:db8:1::2":    "",
		"fe80::a%eth0":     "eth0",
		"fe80::a%far0":     "",
		"127.0.0.1":        "lo",
		"127.8.9.10":       "lo",
		"::1":              "lo",
		"0.0.0.0":          "",
		"::":               "",
	} {
		dev, ok := HasAddress(netip.MustParseAddr(a))
		if dev != want || ok != (want != "") {
			t.Errorf("HasAddress(%s) = %q, %v, want %q", a, dev, ok, want)
		}
	}
	if dev, ok := HasAddress(netip.Addr{}); ok {
		t.Errorf("%q has no address", dev)
	}
}

func TestDeviceSettings(t *testing.T) {
	linktest.Enter(t)
	openTAP(t, "tap0")
	for _, err := range []error{
		SetMTU("tap0", 1450), SetMAC("tap0", addr.MAC{2, 0x42, 0, 0, 0, 1}), SetTxQueueLen("tap0", 10000), SetUp("tap0"),
		AddAddress("tap0", netip.MustParsePrefix("10.42.0.1/24")),
		AddAddress("tap0", netip.MustParsePrefix("10.42.0.1/24")),
		AddAddress("tap0", netip.MustParsePrefix("2001:db8:42::1/64")),
		AddAddress("tap0", netip.MustParsePrefix("2001:db8:42::1/64")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := linkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	a := l.Attrs()
	if a.MTU != 1450 || a.TxQLen != 10000 || a.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("MTU %d, queue %d, flags %v", a.MTU, a.TxQLen, a.Flags)
	}
	if a.HardwareAddr.String() != "02:42:00:00:00:01" {
		t.Errorf("MAC %v", a.HardwareAddr)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		got = append(got, a.IPNet.String())
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%v cannot be used yet", a.IPNet)
		}
	}
	if s := strings.Join(got, " "); s != "10.42.0.1/24 2001:db8:42::1/64" {
		t.Errorf("addresses %s", s)
	}
}

func TestDeviceErrors(t *testing.T) {
	linktest.Enter(t)
	openTAP(t, "tap0")
	_, _, statsErr := Stats("tap9")
	for what, err := range map[string]error{
		"SetUp": SetUp("tap9"), "SetMTU": SetMTU("tap9", 1500), "SetTxQueueLen": SetTxQueueLen("tap9", 1),
		"SetGSOMaxSize": SetGSOMaxSize("tap9", 65536), "AddAddress": AddAddress("tap9", netip.MustParsePrefix("10.42.0.1/24")),
		"SetMAC": SetMAC("tap9", addr.MAC{2}), "Stats": statsErr,
	} {
		if err == nil || !strings.Contains(err.Error(), `device "tap9"`) || !strings.Contains(err.Error(), "there is no such device") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := SetMTU("tap0", 1<<20); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("an MTU of a megabyte: %v", err)
	}
	if err := AddAddress("tap0", netip.Prefix{}); err == nil {
		t.Error("the zero Prefix was added")
	}
	// Linux takes IPv6 off a device with an MTU below 1280.
	if err := SetMTU("tap0", 1000); err != nil {
		t.Fatal(err)
	}
	if err := AddAddress("tap0", netip.MustParsePrefix("2001:db8:42::1/64")); err == nil || !strings.Contains(err.Error(), "1280") {
		t.Errorf("IPv6 on an MTU of 1000: %v", err)
	}
}

func TestSetGSOMaxSize(t *testing.T) {
	linktest.Enter(t)
	openTAP(t, "tap0")
	err := SetGSOMaxSize("tap0", 62000)
	if errors.Is(err, ErrNoGSOMaxSize) {
		t.Skipf("this kernel cannot: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := linkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	if a := l.Attrs(); a.GSOMaxSize != 62000 || a.GSOIPv4MaxSize != 62000 && a.GSOIPv4MaxSize != 0 {
		t.Errorf("gso_max_size %d, for IPv4 %d", a.GSOMaxSize, a.GSOIPv4MaxSize)
	}
	// More than a TAP takes is the error that callers go on from.
	if err := SetGSOMaxSize("tap0", 1<<24); !errors.Is(err, ErrNoGSOMaxSize) {
		t.Errorf("16 MB: %v", err)
	}
}

// A TAP that nobody reads fills up; what the kernel drops then is what Stats says.
func TestStatsCountsOverflow(t *testing.T) {
	linktest.Enter(t)
	openTAP(t, "tap0")
	for _, err := range []error{SetTxQueueLen("tap0", 2), SetUp("tap0"), AddAddress("tap0", netip.MustParsePrefix("10.42.0.1/24"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		t.Fatal(err)
	}
	_, before, err := Stats("tap0")
	if err != nil {
		t.Fatal(err)
	}
	for range 600 {
		// ENOBUFS is one of the ways in which the kernel says that it dropped.
		if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 42, 0, 255}}); err != nil && err != unix.ENOBUFS {
			t.Fatal(err)
		}
	}
	if _, after, err := Stats("tap0"); err != nil || after <= before {
		t.Errorf("dropped %d before and %d after, %v", before, after, err)
	}
}
