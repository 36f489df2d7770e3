package vtep

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// A host whose underlay address changes goes on at the new one, once it and its peers are told.
func TestSetAddresses(t *testing.T) {
	c := newCluster(t)
	reaches(t, c.containers[0], inside4(1), 1000)
	before, after := underlays["IPv4"][1], netip.MustParseAddr("192.0.2.77")
	far, near := c.hosts[1], c.hosts[0]

	// Not the host's: nothing changes, and it is refused for good reasons only.
	for name, bad := range map[string][]netip.Addr{
		"underlay.addresses":    nil,
		"underlay.addresses[0]": {netip.IPv4Unspecified()},
		"underlay.addresses[1]": {before, before},
	} {
		if a := far.ask(request{Op: "set addresses", Peers: bad}); a.Kind != "config" || a.Field != name {
			t.Errorf("%v: %s %s %s", bad, a.Kind, a.Field, a.Err)
		}
	}
	if a := far.ask(request{Op: "set addresses", Peers: []netip.Addr{after}}); a.Err == "" {
		t.Error("an address that the host lacks is taken")
	}
	if got := far.tell("status").Status.Addresses; !slices.Equal(got, []netip.Addr{before}) {
		t.Fatalf("it ends at %v", got)
	}
	reaches(t, c.containers[0], inside4(1), 1000)

	// It comes, and is in force without being stated again.
	c.enter(t, 1)
	linktest.Setting(t, "net/ipv4/conf/eth0/promote_secondaries", "1")
	linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(after, 24)))
	linktest.Await(t, "the new address", func() bool {
		return slices.Equal(far.tell("status").Status.Addresses, []netip.Addr{after})
	})
	l := linktest.Device(t, "eth0")
	old, err := netlink.ParseAddr(before.String() + "/24")
	linktest.Must(t, err, netlink.AddrDel(l, old))
	near.must(request{Op: "set peers", Name: "blue", Peers: []netip.Addr{after}})
	m := mapping(1, 1)
	m.VTEP = after
	near.must(request{Op: "map", Name: "blue", Mapping: m})
	for _, to := range []netip.Addr{inside4(1), inside6(1)} {
		reaches(t, c.containers[0], to, 1000)
	}
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}
