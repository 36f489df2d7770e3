//go:build linux

package link

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// addVeth makes a pair of devices, gives the first addresses, and brings both up.
func addVeth(t *testing.T, name, peer string, addresses ...string) {
	t.Helper()
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500}, PeerName: peer})
	if err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	for _, dev := range []string{name, peer} {
		if err := SetUp(dev); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range addresses {
		if err := AddAddress(name, netip.MustParsePrefix(a)); err != nil {
			t.Fatal(err)
		}
	}
}

// openTAP makes a TAP that lives as long as the file.
func openTAP(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open /dev/net/tun: %v", err)
	}
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	t.Cleanup(func() { f.Close() })
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatalf("make the TAP %s: %v", name, err)
	}
	return f
}

func ipNet(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

func addRoute(t *testing.T, dev, dst, via string, mtu int) {
	t.Helper()
	l, err := linkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst), Gw: net.ParseIP(via), MTU: mtu}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatalf("add a route to %s via %s: %v", dst, via, err)
	}
}
