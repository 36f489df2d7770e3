package vtep

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// Underlay addresses of the hosts, by family.
var underlays = map[string][2]netip.Addr{
	"IPv4": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
	"IPv6": {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
}

// pair is two network namespaces joined by a veth pair, whose end is called eth0 in both. The test's thread is
// in one of them at a time. They have no names and end with the test.
type pair struct{ ns [2]netns.NsHandle }

func newPair(t *testing.T) *pair {
	t.Helper()
	lockThread(t)
	p := &pair{ns: [2]netns.NsHandle{netns.None(), netns.None()}}
	t.Cleanup(func() {
		for _, ns := range p.ns {
			if ns.IsOpen() {
				ns.Close()
			}
		}
	})
	for i := range p.ns {
		var err error
		if p.ns[i], err = netns.New(); err != nil {
			if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
				t.Skip("needs root: network namespaces")
			}
			t.Fatalf("make a network namespace: %v", err)
		}
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0), link.SetUp("lo"))
	}
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns[0]),
	}))
	for i := range p.ns {
		p.enter(t, i)
		must(t, link.SetUp("eth0"))
	}
	for i := range p.ns {
		p.enter(t, i)
		await(t, "carrier", func() bool { return device(t, "eth0").Attrs().OperState == netlink.OperUp })
		for _, ends := range underlays {
			must(t, link.AddAddress("eth0", netip.PrefixFrom(ends[i], map[bool]int{false: 24, true: 64}[ends[i].Is6()])))
		}
	}
	for i := range p.ns {
		p.enter(t, i)
		for _, ends := range underlays {
			await(t, "route", func() bool {
				own, err := link.RouteTo(ends[i])
				_, err2 := link.RouteTo(ends[1-i])
				return err == nil && err2 == nil && own.Device == "lo"
			})
		}
	}
	p.enter(t, 0)
	return p
}

// lockThread gives the test its thread for itself, and takes that home at the end.
func lockThread(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	t.Cleanup(func() {
		defer home.Close()
		// A thread that cannot go home is not given back: it ends with the test.
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
	})
}

// enter moves the test to one of the namespaces.
func (p *pair) enter(t *testing.T, i int) {
	t.Helper()
	must(t, netns.Set(p.ns[i]))
}

func device(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

// devices are the names of all devices of the namespace that the test is in.
func devices(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// await waits until what is there.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// udpSocket opens a UDP socket in the namespace that the test is in.
func udpSocket(t *testing.T, a netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}
