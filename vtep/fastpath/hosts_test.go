package fastpath

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
	"github.com/overlayd/overlayd/vtep/tap"
)

// kind is how a host forwards.
type kind int

const (
	plainTAP  kind = iota // the TAP is in the host's namespace
	sandboxed             // it is in a sandbox
	kernels               // it is none: the kernel's vxlan device has its place
)

// The TAPs' MTU, and what fits into it.
const (
	tapMTU = 1500 - encapLen
	maxMSS = tapMTU - header.IPv4MinLen - header.TCPMinLen
)

var fitting = Limit{MaxFrame: tapMTU + header.EthernetLen, MSS: maxMSS}

// host is a network namespace with an underlay device, eth0, and a TAP, tap0, which nobody reads: what arrives has come by
// the fast path.
type host struct {
	kind    kind
	ns      netns.NsHandle
	sandbox *link.Sandbox
	table   *Table
	outlet  uint32
	target  Target
	eth0    int
	mac     net.HardwareAddr // of tap0
	outer   netip.Addr
	inner   [2]netip.Addr // tap0's, IPv4 and IPv6
	slots   []Slot        // of all its entries
}

// Names of the two hosts of a test.
const (
	here  = 0
	there = 1
)

// newHosts makes two hosts that know each other, with entries for what tap0 of the one says to that of the other. What it makes
// ends with the test, which it leaves in the namespace of the first one.
func newHosts(t *testing.T, kinds ...kind) [2]*host {
	t.Helper()
	newTable(t) // or there is no use
	linktest.Lock(t)
	h := [2]*host{
		{kind: kinds[0], outer: here4, inner: [2]netip.Addr{netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("fd42::1")}},
		{kind: kinds[1], outer: there4, inner: [2]netip.Addr{netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("fd42::2")}},
	}
	for _, x := range h {
		x.ns = linktest.New(t)
	}
	linktest.Must(t, netns.Set(h[here].ns), netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(h[there].ns),
	}))
	for i, x := range h {
		x.enter(t)
		x.eth0 = linktest.Device(t, "eth0").Attrs().Index
		address(t, "eth0", x.outer)
		h[1-i].enter(t)
		mac := linktest.Device(t, "eth0").Attrs().HardwareAddr
		x.enter(t)
		neighbor(t, "eth0", h[1-i].outer, mac)
	}
	id := addr.VNI(12<<20 + rand.Uint32N(4<<20)) // of the sandboxes, whose names the machine shares
	for i, x := range h {
		x.enter(t)
		x.open(t, id, h[1-i])
	}
	for i, x := range h {
		linktest.Await(t, "carrier", func() bool {
			x.enter(t)
			return linktest.Device(t, "eth0").Attrs().OperState == netlink.OperUp
		})
		x.inside(t, func() {
			for _, a := range h[1-i].inner {
				neighbor(t, "tap0", a, h[1-i].mac)
			}
		})
		if x.kind != kernels {
			for f, a := range x.inner {
				x.leaves(t, a, h[1-i], f == 1)
				x.arrives(t, h[1-i].inner[f], h[1-i], f == 1)
			}
		}
	}
	h[here].enter(t)
	return h
}

// open makes tap0 and attaches the programs.
func (h *host) open(t *testing.T, id addr.VNI, peer *host) {
	t.Helper()
	if h.kind == kernels {
		linktest.Must(t, netlink.LinkAdd(&netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: "tap0", MTU: tapMTU}, VxlanId: int(vni), Port: port,
			SrcAddr: h.outer.AsSlice(), Group: peer.outer.AsSlice(), UDPCSum: true, Learning: false,
		}))
		h.prepare(t)
		return
	}
	h.table = newTable(t)
	linktest.Must(t, h.table.SetLocals([]netip.Addr{h.outer}))
	if h.kind == sandboxed {
		self := rand.Uint64()
		s, _, err := link.OpenSandbox(id, self)
		linktest.Must(t, err)
		t.Cleanup(func() { linktest.Must(t, s.Close(), link.RemoveSandbox(id, self)) })
		h.sandbox = s
	}
	var index int
	h.inside(t, func() {
		d, err := tap.Open(tap.Config{Name: "tap0", Queues: 1, VNet: true, TSO: true, USO: true})
		linktest.Must(t, err)
		t.Cleanup(func() { linktest.Must(t, d.Close()) })
		index = linktest.Device(t, "tap0").Attrs().Index
		h.prepare(t)
	})
	hook := func(hook *Hook, err error) *Hook {
		linktest.Must(t, err)
		t.Cleanup(func() { linktest.Must(t, hook.Close()) })
		return hook
	}
	hook(h.table.AttachUnderlay(h.eth0))
	h.target = Target{Device: index}
	relay := new(link.Relay)
	if h.sandbox != nil {
		var err error
		relay, err = h.sandbox.OpenRelay(id)
		linktest.Must(t, err)
		h.target = Target{Device: relay.Outside, Relay: true}
		hook(AttachUplink(relay.Outside))
	}
	h.inside(t, func() {
		h.outlet = h.table.NewOutlet()
		hook(h.table.AttachTAP(h.outlet, index, relay.Inside))
		if h.sandbox != nil {
			hook(AttachDownlink(relay.Inside, index))
		}
	})
}

// prepare gives tap0 what an operator would.
func (h *host) prepare(t *testing.T) {
	t.Helper()
	linktest.Setting(t, "net/ipv6/conf/tap0/disable_ipv6", "0") // in a sandbox it is off
	linktest.Must(t, netlink.LinkSetMTU(linktest.Device(t, "tap0"), tapMTU), link.SetGSOMaxSize("tap0", 60000))
	address(t, "tap0", h.inner[:]...)
	h.mac = linktest.Device(t, "tap0").Attrs().HardwareAddr
}

// leaves adds an entry for packets from an address at tap0 to that of the peer.
func (h *host) leaves(t *testing.T, from netip.Addr, peer *host, v6 bool) {
	t.Helper()
	k := LeaveKey{Outlet: h.outlet, Ethernet: ethernet(peer.mac, h.mac, v6)}
	copy(k.From[:], from.AsSlice())
	w := &Way{
		Device: h.eth0, Local: h.outer, Peer: peer.outer, VNI: vni, TTL: ttl,
		Sources: []uint16{source, source + 1}, MaxSuper: MaxSuper(65535),
	}
	s, err := h.table.NewSlot()
	linktest.Must(t, err, h.table.SetLeave(k, s, w, fitting))
	h.slots = append(h.slots, s)
}

// arrives adds an entry for packets from an address at tap0 of the peer.
func (h *host) arrives(t *testing.T, from netip.Addr, peer *host, v6 bool) {
	t.Helper()
	k := ArriveKey{VNI: [4]byte{0x12, 0x34, 0x56}, Outer: peer.outer.As4(), Local: h.outer.As4(), Ethernet: ethernet(h.mac, peer.mac, v6)}
	copy(k.From[:], from.AsSlice())
	s, err := h.table.NewSlot()
	linktest.Must(t, err, h.table.SetArrive(k, s, h.target, fitting))
	h.slots = append(h.slots, s)
}

func ethernet(dst, src net.HardwareAddr, v6 bool) (b [header.EthernetLen]byte) {
	copy(b[:], dst)
	copy(b[6:], src)
	if header.Ethernet(b[:]).SetEtherType(header.EtherTypeIPv4); v6 {
		header.Ethernet(b[:]).SetEtherType(header.EtherTypeIPv6)
	}
	return b
}

// enter moves the test to the host.
func (h *host) enter(t *testing.T) {
	t.Helper()
	linktest.Must(t, netns.Set(h.ns))
}

// inside calls f with the test where tap0 is.
func (h *host) inside(t *testing.T, f func()) {
	t.Helper()
	linktest.Return(t, func() {
		if h.enter(t); h.sandbox != nil {
			linktest.In(t, h.sandbox.Name(), f)
		} else {
			f()
		}
	})
}

// counted returns what the entries have counted, the frames, their bytes, and those that were lost.
func (h *host) counted() (frames, bytes, lost uint64) {
	for _, s := range h.slots {
		f, b, l := h.table.Count(s)
		frames, bytes, lost = frames+f, bytes+b, lost+l
	}
	return frames, bytes, lost
}

// address gives a device of the namespace that the test is in its addresses, and brings it up.
func address(t *testing.T, name string, addresses ...netip.Addr) {
	t.Helper()
	l := linktest.Device(t, name)
	linktest.Must(t, netlink.LinkSetUp(l))
	for _, a := range addresses {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		linktest.Must(t, netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: unix.IFA_F_NODAD}))
	}
}

func neighbor(t *testing.T, name string, a netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	linktest.Must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: linktest.Device(t, name).Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
	}))
}

// offload turns features of a device of the namespace that the test is in on or off.
func offload(t *testing.T, name string, on bool, features ...string) {
	t.Helper()
	tool, err := ethtool.NewEthtool()
	linktest.Must(t, err)
	defer tool.Close()
	change := map[string]bool{}
	for _, f := range features {
		change[f] = on
	}
	linktest.Must(t, tool.Change(name, change))
}
