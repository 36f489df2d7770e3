package vtep

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep/guard"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// inSandbox calls f with the test in the sandbox of host i.
func (c *cluster) inSandbox(t *testing.T, i int, f func()) {
	t.Helper()
	linktest.In(t, c.hosts[i].network().Sandbox, f)
}

// Whatever is taken away from a network, or changed, comes back within a few seconds, and is counted.
func TestNetworksHeal(t *testing.T) {
	c := newCluster(t)
	h := c.hosts[0]
	remote, own := mapping(1, 1), mapping(0, 0)
	change := func(name string, f func(l netlink.Link) error) func() {
		return func() { c.inSandbox(t, 0, func() { linktest.Must(t, f(linktest.Device(t, name))) }) }
	}
	spoil := func(m *addr.Mapping, id string) func() {
		return func() { h.must(request{Op: "spoil", Name: "blue", Mapping: m, ID: id}) }
	}
	port := link.HostEnd(endpoint(0, "").ID)
	for _, s := range []struct {
		name  string
		spoil func()
		wait  bool // for Run to do it
	}{
		{"entries of a station elsewhere", spoil(remote, ""), true},
		{"entries of a station here", spoil(own, ""), false},
		{"strays", spoil(&addr.Mapping{}, "stray"), false},
		{"TAP down", change("tap0", netlink.LinkSetDown), true},
		{"TAP out of the bridge", change("tap0", netlink.LinkSetNoMaster), false},
		{"MTU of the TAP", change("tap0", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1000) }), false},
		{"TAP deleted", change("tap0", netlink.LinkDel), true},
		{"bridge down", change("br0", netlink.LinkSetDown), false},
		{"bridge deleted", change("br0", netlink.LinkDel), false},
		{"MAC of the bridge", change("br0", func(l netlink.Link) error {
			return netlink.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 9})
		}), false},
		{"gateway", change("br0", func(l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: netlink.NewIPNet(gateway4.AsSlice())})
		}), true},
		{"station of the bridge", change(port, func(l netlink.Link) error {
			mac := endpoint(0, "").MAC
			return netlink.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: mac[:], Flags: netlink.NTF_MASTER})
		}), false},
		{"port down", change(port, netlink.LinkSetDown), false},
		{"port out of the bridge", change(port, netlink.LinkSetNoMaster), false},
		{"relay", func() { c.enter(t, 0); linktest.Must(t, netlink.LinkDel(linktest.Device(t, relay))) }, false},
		{"end of the relay on the host down", func() { c.enter(t, 0); linktest.Must(t, link.SetDown(relay)) }, true},
		{"rules at the ports", func() { c.inSandbox(t, 0, func() { linktest.Must(t, guard.Remove()) }) }, true},
		{"name of the sandbox", func() { linktest.Delete(t, h.network().Sandbox) }, true},
	} {
		t.Run(s.name, func(t *testing.T) {
			before := h.network().Healed
			s.spoil()
			// Run takes up to reconcileMost after the turn that is under way; lookEvery is more than is waited for here.
			linktest.Await(t, "healing", func() bool {
				if !s.wait {
					h.must(request{Op: "reconcile"})
				}
				return h.network().Healed > before
			})
			for _, to := range []netip.Addr{inside4(1), inside6(1), gateway4} {
				reaches(t, c.containers[0], to, 1000)
			}
		})
	}
	linktest.Await(t, "nothing left to heal", func() bool { return h.must(request{Op: "reconcile"}).Number == 0 })
	before := h.network().Healed
	if n := h.must(request{Op: "reconcile"}).Number; n != 0 || h.network().Healed != before {
		t.Errorf("%d things were healed that were well", n)
	}
	if s := h.tell("attachments"); len(s.Attached) != 0 { // of the network "", which is not there
		t.Errorf("attachments of no network: %+v", s.Attached)
	}
	h.tell("stop")
	conserved(t, "blue", h.network().Counters)
}

// A container that vanishes is noticed by itself, and so is that it is back.
func TestVanishedContainers(t *testing.T) {
	c := newCluster(t)
	h := c.hosts[0]
	problem := func() string {
		all := h.must(request{Op: "attachments", Name: "blue"}).Attached
		if len(all) != 1 {
			t.Fatalf("attached are %+v", all)
		}
		return all[0].Problem
	}
	for range 2 {
		linktest.Delete(t, c.containers[0])
		linktest.Await(t, "word of the container that is gone", func() bool { return problem() == interfaceGone })
		c.containers[0] = linktest.Named(t, "again")
		a := endpoint(0, c.containers[0])
		h.must(request{Op: "attach", Name: "blue", Attach: &a})
		if p := problem(); p != "" {
			t.Errorf("a container that is back has the problem %q", p)
		}
		reaches(t, c.containers[0], inside4(1), 56)
	}
}

// Where nothing changes, nobody looks into the sandbox, and the tables are compared all the same.
func TestIdleSandboxesAreLeftAlone(t *testing.T) {
	c := newCluster(t)
	h := c.hosts[0]
	reaches(t, c.containers[0], inside4(1), 56)
	next := func() int { return h.must(request{Op: "next look", Name: "blue"}).Number }
	const rest = reconcileMost + time.Second // the time for one look more if it went by the clock
	last, since := next(), time.Now()
	for end := since.Add(3 * linktest.Patience); time.Since(since) < rest; time.Sleep(20 * time.Millisecond) {
		if now := next(); now != last {
			last, since = now, time.Now()
		}
		if time.Now().After(end) {
			t.Fatal("the sandbox is looked into again and again")
		}
	}
	before := h.network().Healed
	h.must(request{Op: "spoil", Name: "blue", Mapping: mapping(1, 1)})
	linktest.Await(t, "healing of the tables", func() bool { return h.network().Healed > before })
	if next() != last {
		t.Error("the sandbox was looked into because of the tables")
	}
	c.inSandbox(t, 0, func() { linktest.Must(t, link.SetDown("tap0")) })
	linktest.Await(t, "a look", func() bool { return next() != last })
}

// A station that was stated to be elsewhere leaves nothing of itself where it was.
func TestMappingsMove(t *testing.T) {
	c := newCluster(t)
	h := c.hosts[0]
	third := netip.MustParseAddr("192.0.2.77")
	m := mapping(7, 1)
	fdb := func() (rows []FDBEntry) {
		rows = h.must(request{Op: "fdb", Name: "blue"}).FDB
		return slices.DeleteFunc(rows, func(e FDBEntry) bool { return e.MAC != m.MAC })
	}
	h.must(request{Op: "map", Name: "blue", Mapping: m})
	if rows := fdb(); len(rows) != 1 || rows[0].VTEP != m.VTEP || !rows[0].Static || rows[0].Local || !slices.Equal(rows[0].IPs, m.IPs) {
		t.Errorf("FDB %+v", rows)
	}
	m.VTEP, m.IPs = third, m.IPs[:1] // that of a host that is no peer yet
	h.must(request{Op: "map", Name: "blue", Mapping: m})
	if rows := fdb(); len(rows) != 1 || rows[0].VTEP != third || !slices.Equal(rows[0].IPs, m.IPs) {
		t.Errorf("FDB %+v", rows)
	}
	if p := h.tell("peers").Peers; len(p) != 1 {
		t.Errorf("peers %+v", p)
	}
	h.must(request{Op: "set peers", Name: "blue", Peers: []netip.Addr{underlays["IPv4"][1], third}})
	if p := h.tell("peers").Peers; len(p) != 2 || p[1].Address != third || p[1].OverlayMTU != 1450 {
		t.Errorf("peers %+v", p)
	}
	for range 2 {
		h.must(request{Op: "unmap", Name: "blue", Mapping: m})
		if rows := fdb(); len(rows) != 0 {
			t.Errorf("FDB %+v", rows)
		}
	}
	// What is here is not removed by news of its having been elsewhere.
	h.must(request{Op: "unmap", Name: "blue", Mapping: mapping(0, 1)})
	reaches(t, c.containers[0], inside4(1), 56)
}

func TestBadMappings(t *testing.T) {
	newPair(t)
	v := sandboxVTEP(t)
	linktest.Must(t, v.AddNetwork(sandboxed(0)))
	good := mapping(1, 1)
	for name, c := range map[string]struct {
		change func(m *addr.Mapping)
		field  string
	}{
		"no MAC":        {func(m *addr.Mapping) { m.MAC = addr.MAC{} }, "mac"},
		"group":         {func(m *addr.Mapping) { m.MAC = addr.Broadcast }, "mac"},
		"gateway":       {func(m *addr.Mapping) { m.MAC = gatewayMAC(42) }, "mac"},
		"gateway's IP":  {func(m *addr.Mapping) { m.IPs = []netip.Addr{inside4(1), gateway4} }, "ips[1]"},
		"other network": {func(m *addr.Mapping) { m.VNI = 43 }, "vni"},
		"no VTEP":       {func(m *addr.Mapping) { m.VTEP = netip.Addr{} }, "vtep"},
		"here":          {func(m *addr.Mapping) { m.VTEP = underlays["IPv4"][0] }, "vtep"},
	} {
		m := *good
		c.change(&m)
		wantField(t, name, v.SetMapping("blue", m), c.field)
	}
	n, _ := v.named("blue")
	if rows, err := v.FDB("blue"); err != nil || len(rows) != 1 || !rows[0].Local || rows[0].VTEP != underlays["IPv4"][0] || n.fwd.FDB.Len() != 1 {
		t.Errorf("FDB %+v, %v; only the gateway should be there", rows, err)
	}
	if d := v.Drops(); len(d) != 0 {
		t.Errorf("drops %+v", d)
	}
}
