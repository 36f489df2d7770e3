package vtep

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

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
	linktest.Lock(t)
	p := new(pair)
	for i := range p.ns {
		p.ns[i] = linktest.New(t)
		linktest.Setting(t, "net/ipv6/conf/default/accept_dad", "0")
		host, err := link.NamespaceID()
		linktest.Must(t, err)
		t.Cleanup(func() { removeSandboxes(t, host) })
	}
	linktest.Must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns[0]),
	}))
	for i := range p.ns {
		p.enter(t, i)
		linktest.Must(t, link.SetUp("eth0"))
	}
	for i := range p.ns {
		p.enter(t, i)
		linktest.Await(t, "carrier", func() bool { return linktest.Device(t, "eth0").Attrs().OperState == netlink.OperUp })
		for _, ends := range underlays {
			linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(ends[i], map[bool]int{false: 24, true: 64}[ends[i].Is6()])))
		}
	}
	for i := range p.ns {
		p.enter(t, i)
		for _, ends := range underlays {
			linktest.Await(t, "route", func() bool {
				own, err := link.RouteTo(ends[i])
				_, err2 := link.RouteTo(ends[1-i])
				return err == nil && err2 == nil && own.Device == "lo"
			})
		}
	}
	p.enter(t, 0)
	return p
}

// enter moves the test to one of the namespaces.
func (p *pair) enter(t *testing.T, i int) {
	t.Helper()
	linktest.Must(t, netns.Set(p.ns[i]))
}

// removeSandboxes removes what tests that failed, or that mean to, leave behind.
func removeSandboxes(t *testing.T, host uint64) {
	vnis, err := link.Sandboxes(host)
	if err != nil {
		t.Error(err)
	}
	for _, vni := range vnis {
		if err := link.RemoveSandbox(vni, host); err != nil {
			t.Error(err)
		}
	}
}
