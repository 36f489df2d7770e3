package vtep

import (
	"slices"
	"strings"
	"testing"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// injector is the device of the feature tunnel-gso where the test is.
func injector(t *testing.T) netlink.Link {
	t.Helper()
	for _, name := range linktest.Devices(t) {
		if strings.HasPrefix(name, "overlayd-gso") {
			return linktest.Device(t, name)
		}
	}
	t.Fatal("no such device")
	return nil
}

// The way of superframes follows the device while the VTEP runs, and traffic goes on.
func TestTunnelGSOFollowsTheDevice(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4", FeatureFastPath) // which would leave nothing to it
	if f := hosts[0].tell("status").Status.Features; !slices.ContainsFunc(f, func(f Feature) bool { return f.Name == FeatureTunnelGSO && f.On }) {
		t.Skipf("this kernel cannot: %+v", f)
	}
	log := func(news string, count int) {
		t.Helper()
		linktest.Await(t, news, func() bool { return strings.Count(hosts[0].tell("log").Text, news) == count })
	}
	set := func(on bool) {
		t.Helper()
		tool, err := ethtool.NewEthtool()
		linktest.Must(t, err)
		defer tool.Close()
		linktest.Must(t, tool.Change("eth0", map[string]bool{"tx-udp_tnl-segmentation": on, "tx-udp_tnl-csum-segmentation": on}))
	}
	stream := func(whole bool) {
		t.Helper()
		before := injector(t).Attrs().Statistics.RxPackets
		p.stream(t)
		if n := injector(t).Attrs().Statistics.RxPackets - before; (n > 0) != whole {
			t.Errorf("%d superframes went whole", n)
		}
	}
	p.enter(t, 0)
	log("superframes go out whole", 1)
	stream(true)
	set(false)
	log("superframes are cut here before they go out", 1)
	stream(false)
	set(true)
	log("superframes go out whole", 2)
	stream(true)

	// Without its device the feature is off, for good, and all goes on.
	dev := injector(t)
	linktest.Must(t, netlink.LinkSetDown(dev))
	p.stream(t)
	log("superframes are cut here from now on", 1)
	for _, f := range hosts[0].tell("status").Status.Features {
		if f.Name == FeatureTunnelGSO && (f.On || !strings.Contains(f.Reason, dev.Attrs().Name)) {
			t.Errorf("feature %+v", f)
		}
	}
	for _, h := range hosts {
		h.settled()
	}
}

// A daemon that is killed leaves no device of it behind.
func TestTunnelGSOGoesWithTheProcess(t *testing.T) {
	newPair(t)
	devs := linktest.Devices(t)
	h := startHost(t)
	h.start(Config{Networks: []Network{blue(0, "IPv4")}})
	if len(linktest.Devices(t)) < len(devs)+1 {
		t.Errorf("devices %v", linktest.Devices(t))
	}
	h.kill()
	linktest.Await(t, "end of all devices", func() bool { return slices.Equal(linktest.Devices(t), devs) })
}
