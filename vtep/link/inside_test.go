//go:build linux

package link

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// watched opens a sandbox with one container and a relay, as Repair has them, and a watch of it.
func watched(t *testing.T) (s *Sandbox, container string, relay *Relay, wake chan struct{}, w *Watching) {
	t.Helper()
	vni, id := newVNI(), "one"
	s, _ = open(t, vni, 1<<40)
	container = linktest.Named(t, "inside")
	ns, err := OpenNamespace(container)
	linktest.Must(t, err)
	defer ns.Close()
	veth := Veth{ID: id, MAC: addr.MAC{2, 0, 0, 0, 0, 1}, MTU: 1400, TxQueueLen: 100, Addresses: []netip.Prefix{netip.MustParsePrefix("10.42.0.9/24")}}
	_, err = s.Connect(ns, veth, true)
	linktest.Must(t, err)
	relay = openRelay(t, s, vni)
	repaired(t, s, id)
	wake = make(chan struct{}, 1)
	w, err = s.Watch(slog.New(slog.DiscardHandler), poke(wake))
	linktest.Must(t, err)
	t.Cleanup(w.Close)
	return s, container, relay, wake, w
}

// repaired makes the sandbox of watched what it is to be.
func repaired(t *testing.T, s *Sandbox, id string) {
	t.Helper()
	_, err := s.Repair(Layout{
		Bridge: Bridge{MAC: addr.MAC{2, 0, 0, 0, 0, 2}, MTU: 1400, Addresses: []netip.Addr{netip.MustParseAddr("10.42.0.1")}},
		Ports:  []Port{{Device: HostEnd(id), MTU: 1400, MAC: addr.MAC{2, 0, 0, 0, 0, 1}}},
	})
	linktest.Must(t, err)
}

// Whatever Repair puts right is told of, and so are a container that is gone, both ends of the relay, and rules.
func TestWatchOfASandbox(t *testing.T) {
	linktest.Enter(t)
	s, container, relay, wake, w := watched(t)
	port := HostEnd("one")
	inside := func(f func()) func() { return func() { linktest.In(t, s.Name(), f) } }
	with := func(dev string, f func(netlink.Link) error) func() {
		return inside(func() { linktest.Must(t, f(linktest.Device(t, dev))) })
	}
	neighbor := func(f func(*netlink.Neigh) error, family int, n netlink.Neigh) func() {
		return inside(func() {
			dev := SandboxBridge
			if family == unix.AF_BRIDGE {
				dev = port
			}
			n.Family, n.LinkIndex, n.HardwareAddr = family, linktest.Device(t, dev).Attrs().Index, net.HardwareAddr{2, 0, 0, 0, 0, 1}
			linktest.Must(t, f(&n))
		})
	}
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: "test"}
	rules := func(change func(*nftables.Conn)) func() {
		return inside(func() {
			c, err := nftables.New()
			linktest.Must(t, err)
			change(c)
			linktest.Must(t, c.Flush())
		})
	}
	for _, step := range []struct {
		name  string
		do    func()
		quiet bool // it is none of ours
	}{
		{"route", with(SandboxBridge, func(l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: everything(netip.IPv4Unspecified()), Scope: netlink.SCOPE_LINK})
		}), false},
		{"address", with(SandboxBridge, func(l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: netlink.NewIPNet(net.IPv4(10, 42, 0, 1))})
		}), false},
		{"MTU", with(port, func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1300) }), false},
		{"queue", with(port, func(l netlink.Link) error { return netlink.LinkSetTxQLen(l, 77) }), false},
		{"MAC of the bridge", with(SandboxBridge, func(l netlink.Link) error {
			return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 9})
		}), false},
		{"station", neighbor(netlink.NeighDel, unix.AF_BRIDGE, netlink.Neigh{Flags: netlink.NTF_MASTER}), false},
		{"neighbour of the gateway", neighbor(netlink.NeighSet, unix.AF_INET, netlink.Neigh{IP: net.IPv4(10, 42, 0, 9), State: netlink.NUD_REACHABLE}), true},
		{"rules made", rules(func(c *nftables.Conn) { c.AddTable(table) }), false},
		{"rules removed", rules(func(c *nftables.Conn) { c.DelTable(table) }), false},
		{"port down", with(port, netlink.LinkSetDown), false},
		{"port out of the bridge", with(port, netlink.LinkSetNoMaster), false},
		{"far end of the relay down", func() { linktest.Must(t, SetDown(relay.Name)) }, false},
		{"far end of the relay removed", func() { linktest.Must(t, netlink.LinkDel(linktest.Device(t, relay.Name))) }, false},
		{"bridge removed", with(SandboxBridge, netlink.LinkDel), false},
		{"container gone", func() { linktest.Delete(t, container) }, false},
	} {
		quiet(wake)
		step.do()
		if !step.quiet {
			awaitWake(t, wake, step.name)
			continue
		}
		quietly := time.After(100 * time.Millisecond)
		select {
		case <-wake:
			t.Errorf("%s: woken for nothing", step.name)
		case <-quietly:
		}
	}
	quiet(wake)
	w.Close()
	inside(func() { linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "late"}})) })()
	select {
	case <-wake:
		t.Error("woken after the end")
	case <-time.After(50 * time.Millisecond):
	}
	linktest.Must(t, s.Close())
	if _, err := s.Watch(slog.New(slog.DiscardHandler), func() {}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("watch of a sandbox that is closed: %v", err)
	}
}

// What cannot be read of a message counts.
func TestBridgeStations(t *testing.T) {
	of := func(kind uint16, family byte) []byte {
		b := make([]byte, 32)
		b[4], b[5], b[16] = byte(kind), byte(kind>>8), family
		return b
	}
	for _, c := range []struct {
		message []byte
		want    bool
	}{
		{nil, true}, {make([]byte, 16), true}, {of(unix.RTM_NEWLINK, 0), true}, {of(unix.RTM_DELADDR, unix.AF_INET), true},
		{of(unix.RTM_NEWNEIGH, unix.AF_BRIDGE), true}, {of(unix.RTM_DELNEIGH, unix.AF_BRIDGE), true},
		{of(unix.RTM_NEWNEIGH, unix.AF_INET), false}, {of(unix.RTM_DELNEIGH, unix.AF_INET6), false},
	} {
		if got := bridgeStations(c.message); got != c.want {
			t.Errorf("%v: %v, want %v", c.message, got, c.want)
		}
	}
}

// What does not matter wakes nobody, and what follows it does.
func TestWatchPassesOver(t *testing.T) {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	wake, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		watch(ctx, r, func(b []byte) bool { return slices.Equal(b, []byte("yes")) }, poke(wake), time.Hour, slog.New(slog.DiscardHandler))
	}()
	for _, word := range []string{"no", "no", "yes"} {
		if len(wake) != 0 {
			t.Error("woken for nothing")
		}
		if _, err := w.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
	}
	awaitWake(t, wake, "what matters")
	cancel()
	w.Close()
	<-done
}

// A name is ours only as long as it leads to our sandbox.
func TestNamed(t *testing.T) {
	linktest.Enter(t)
	s, _ := open(t, newVNI(), 1<<40)
	if !s.Named() {
		t.Error("a new sandbox has no name")
	}
	linktest.Delete(t, s.Name())
	if s.Named() {
		t.Error("its name was taken away, and it has it")
	}
	if renamed, err := s.Rename(); !renamed || err != nil || !s.Named() {
		t.Errorf("renamed %v, %v; named %v", renamed, err, s.Named())
	}
	if renamed, err := s.Rename(); renamed || err != nil {
		t.Errorf("renamed %v, %v, once more", renamed, err)
	}
	linktest.Must(t, s.Close())
	if s.Named() {
		t.Error("a closed sandbox has a name")
	}
}

// A relay connects as long as both ends are there and up.
func TestConnects(t *testing.T) {
	linktest.Enter(t)
	vni := newVNI()
	s, _ := open(t, vni, 1<<40)
	r := openRelay(t, s, vni)
	want := func(what string, want bool) {
		t.Helper()
		if Connects(r.Outside) != want {
			t.Errorf("%s: connects is not %v", what, want)
		}
	}
	want("new", true)
	linktest.Must(t, SetDown(r.Name))
	want("down", false)
	linktest.Must(t, SetUp(r.Name))
	want("up", true)
	linktest.In(t, s.Name(), func() { linktest.Must(t, SetDown(relayInside)) })
	want("down inside", false)
	linktest.Must(t, s.CloseRelay())
	want("gone", false)
}
