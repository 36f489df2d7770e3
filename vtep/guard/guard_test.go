package guard

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

var (
	mac, other   = frametest.MAC(1), frametest.MAC(2)
	ip4, other4  = frametest.IP4(1), frametest.IP4(2)
	ip6, other6  = frametest.IP6(1), frametest.IP6(2)
	local6       = netip.AddrFrom16([16]byte(linkLocal(mac)))
	nobody4      = netip.IPv4Unspecified()
	nobody6      = netip.IPv6Unspecified()
	allNodes     = netip.MustParseAddr("ff02::1")
	broadcast    = addr.Broadcast
	routers      = netip.MustParseAddr("ff02::2")
	groupMAC     = addr.MAC{0x33, 0x33, 0, 0, 0, 1}
	otherLocal6  = netip.AddrFrom16([16]byte(linkLocal(other)))
	ndHopLimit   = func(l *layers.IPv6) { l.HopLimit = header.NDHopLimit }
	destinations = []byte{1, 4, 0, 0, 0, 0} // options: PadN
)

// station is a container's veth: what goes in at its end comes out at the host's, behind the guard.
type station struct {
	send, receive int
}

// newStation moves the test to a namespace with a veth. Both ends are in it: nothing but the guard stands between.
func newStation(t *testing.T) *station {
	t.Helper()
	linktest.Enter(t)
	quiet(t)
	return wire(t)
}

func wire(t *testing.T) *station {
	t.Helper()
	linktest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "c0"}, PeerName: "h0"}))
	for _, name := range []string{"c0", "h0"} {
		linktest.Must(t, netlink.LinkSetUp(linktest.Device(t, name)))
	}
	// A packet socket sees a frame before the guard does; a bridge port behind it is what counts.
	linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	bridge := linktest.Device(t, "br0")
	linktest.Must(t, netlink.LinkSetMaster(linktest.Device(t, "h0"), bridge), netlink.LinkSetUp(bridge), netlink.SetPromiscOn(bridge))
	linktest.Await(t, "carrier", func() bool { return linktest.Device(t, "br0").Attrs().OperState == netlink.OperUp })
	return &station{send: packetSocket(t, "c0"), receive: packetSocket(t, "br0")}
}

// quiet keeps the kernel from sending on its own.
func quiet(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"all", "default"} {
		linktest.Setting(t, "net/ipv6/conf/"+kind+"/disable_ipv6", "1")
	}
}

func packetSocket(t *testing.T, dev string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	linktest.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	timeout := unix.NsecToTimeval(int64(linktest.Patience))
	all := uint16(unix.ETH_P_ALL)
	linktest.Must(t,
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: linktest.Device(t, dev).Attrs().Index}))
	return fd
}

// passes reports whether frame comes out. A sound one that is sent behind it ends the wait.
func (s *station) passes(t *testing.T, frame []byte) bool {
	t.Helper()
	end := frametest.Ethernet(broadcast, mac).IPv4(ip4, other4).UDP(7, 7).Data([]byte(time.Now().String())).Bytes()
	for _, f := range [][]byte{frame, end} {
		_, err := unix.Write(s.send, f)
		linktest.Must(t, err)
	}
	passed := false
	for buf := make([]byte, 4096); ; {
		n, err := unix.Read(s.receive, buf)
		if err == unix.EINTR {
			continue // the Go runtime interrupts threads by signals
		}
		linktest.Must(t, err)
		switch {
		case bytes.Equal(buf[:n], frame):
			passed = true
		case bytes.Equal(buf[:n], end):
			return passed
		}
	}
}

func port() Port { return Port{Device: "h0", MAC: mac, Addresses: []netip.Addr{ip4, ip6}} }

// nd is a neighbour discovery message, with whatever options.
func nd(src, dst netip.Addr, kind uint8, body []byte) []byte {
	return frametest.Ethernet(groupMAC, mac).IPv6(src, dst, ndHopLimit).ICMPv6(kind, 0).Data(body).Bytes()
}

func neighbor(target netip.Addr, options ...byte) []byte {
	b := make([]byte, 4, 28)
	return append(append(b, target.AsSlice()...), options...)
}

func linkOption(kind uint8, m addr.MAC) []byte { return append([]byte{kind, 1}, m[:]...) }

func TestRules(t *testing.T) {
	s := newStation(t)
	if changed, err := Apply([]Port{port()}); err != nil || !changed {
		t.Fatalf("Apply: %v, %v", changed, err)
	}
	nonce := []byte{header.NDOptionNonce, 1, 1, 2, 3, 4, 5, 6}
	for _, c := range []struct {
		name   string
		frame  []byte
		reason forward.DropReason
	}{
		{"IPv4", frametest.Ethernet(other, mac).IPv4(ip4, other4).UDP(1, 2).Bytes(), forward.NotDropped},
		{"IPv6", frametest.Ethernet(other, mac).IPv6(ip6, other6).UDP(1, 2).Bytes(), forward.NotDropped},
		{"link-local", frametest.Ethernet(other, mac).IPv6(local6, otherLocal6).UDP(1, 2).Bytes(), forward.NotDropped},
		{"ARP request", frametest.ARPRequest(mac, ip4, other4).Bytes(), forward.NotDropped},
		{"ARP reply", frametest.ARPReply(mac, ip4, other, other4).Bytes(), forward.NotDropped},
		{"ARP probe", frametest.ARPRequest(mac, nobody4, ip4).Bytes(), forward.NotDropped},
		{"solicitation", frametest.NeighborSol(mac, ip6, other6).Bytes(), forward.NotDropped},
		{"advertisement", frametest.NeighborAdv(mac, ip6, other, other6, ip6, header.NDFlagOverride).Bytes(), forward.NotDropped},
		{"duplicate address detection", nd(nobody6, allNodes, header.ICMPv6NeighborSol, neighbor(ip6)), forward.NotDropped},
		{"the same with a nonce", nd(nobody6, allNodes, header.ICMPv6NeighborSol, neighbor(ip6, nonce...)), forward.NotDropped},
		{"router solicitation", nd(local6, routers, header.ICMPv6RouterSol, append(make([]byte, 4), linkOption(1, mac)...)), forward.NotDropped},
		{"listener report", nd(nobody6, routers, header.ICMPv6MLDv2Report, make([]byte, 4)), forward.NotDropped},
		{"ping", frametest.Ethernet(other, mac).IPv6(ip6, other6).ICMPv6(header.ICMPv6Echo, 0).Data(make([]byte, 60)).Bytes(), forward.NotDropped},

		{"MAC of another", frametest.Ethernet(other, other).IPv4(ip4, other4).UDP(1, 2).Bytes(), forward.SourceSpoofed},
		{"VLAN", frametest.Ethernet(other, mac).VLAN(7).IPv4(other4, ip4).UDP(1, 2).Bytes(), forward.ProtocolRefused},
		{"VLAN 0", frametest.Ethernet(other, mac).VLAN(0).IPv4(ip4, other4).UDP(1, 2).Bytes(), forward.ProtocolRefused},
		{"unknown protocol", append(slices.Concat(other[:], mac[:]), append([]byte{0x88, 0xb5}, make([]byte, 46)...)...), forward.ProtocolRefused},
		{"IPv4 of another", frametest.Ethernet(other, mac).IPv4(other4, ip4).UDP(1, 2).Bytes(), forward.SourceIPSpoofed},
		{"IPv4 of nobody", frametest.Ethernet(broadcast, mac).IPv4(nobody4, ip4).UDP(68, 67).Bytes(), forward.SourceIPSpoofed},
		{"IPv6 of another", frametest.Ethernet(other, mac).IPv6(other6, ip6).UDP(1, 2).Bytes(), forward.SourceIPSpoofed},
		{"link-local of another", frametest.Ethernet(other, mac).IPv6(otherLocal6, ip6).UDP(1, 2).Bytes(), forward.SourceIPSpoofed},
		{"IPv6 of nobody", frametest.Ethernet(other, mac).IPv6(nobody6, ip6).UDP(1, 2).Bytes(), forward.SourceIPSpoofed},
		{"ping of nobody", nd(nobody6, allNodes, header.ICMPv6Echo, make([]byte, 4)), forward.SourceIPSpoofed},
		{"ARP for another", frametest.ARPReply(mac, other4, other, ip4).Bytes(), forward.ARPSpoofed},
		{"ARP with the MAC of another", arpWithMAC(other), forward.ARPSpoofed},
		{"ARP reply of nobody", frametest.ARPReply(mac, nobody4, other, ip4).Bytes(), forward.ARPSpoofed},
		{"ARP of another kind", arpOfKind(6), forward.ProtocolRefused},
		{"advertisement for another", frametest.NeighborAdv(mac, ip6, other, other6, other6, 0).Bytes(), forward.NDSpoofed},
		{"advertisement with the MAC of another", nd(ip6, allNodes, header.ICMPv6NeighborAdv, neighbor(ip6, linkOption(2, other)...)), forward.NDSpoofed},
		{"solicitation with the MAC of another", nd(ip6, allNodes, header.ICMPv6NeighborSol, neighbor(other6, linkOption(1, other)...)), forward.NDSpoofed},
		{"router solicitation with the MAC of another", nd(ip6, routers, header.ICMPv6RouterSol, append(make([]byte, 4), linkOption(1, other)...)), forward.NDSpoofed},
		{"MAC of another behind a nonce", nd(ip6, allNodes, header.ICMPv6NeighborAdv, neighbor(ip6, append(nonce, linkOption(2, other)...)...)), forward.NDSpoofed},
		{"MAC of another in a long option", nd(ip6, allNodes, header.ICMPv6NeighborAdv, neighbor(ip6, 2, 2, other[0], other[1], other[2], other[3], other[4], other[5])), forward.NDSpoofed},
		{"advertisement behind an extension header", frametest.Ethernet(groupMAC, mac).IPv6(ip6, allNodes, ndHopLimit).
			Extension(unix.IPPROTO_DSTOPTS, destinations).ICMPv6(header.ICMPv6NeighborAdv, 0).Data(neighbor(other6)).Bytes(), forward.NDSpoofed},
		{"router advertisement", nd(local6, allNodes, header.ICMPv6RouterAdv, make([]byte, 8)), forward.RogueRouter},
		{"redirect", nd(local6, ip6, header.ICMPv6Redirect, make([]byte, 32)), forward.RogueRouter},
		{"DHCP", frametest.Ethernet(broadcast, mac).IPv4(ip4, other4).UDP(67, 68).Payload(240).Bytes(), forward.RogueDHCP},
		{"DHCPv6", frametest.Ethernet(other, mac).IPv6(ip6, other6).UDP(547, 546).Payload(40).Bytes(), forward.RogueDHCP},
	} {
		before, err := Counts()
		linktest.Must(t, err)
		passed := s.passes(t, c.frame)
		after, err := Counts()
		linktest.Must(t, err)
		var counted []string
		for _, r := range reasons {
			if n := after[r].Frames - before[r].Frames; n != 0 {
				counted = append(counted, r.String())
			}
		}
		want := ""
		if c.reason != forward.NotDropped {
			want = c.reason.String()
		}
		if passed != (want == "") || strings.Join(counted, " ") != want {
			t.Errorf("%s: passed %v, counted %v, want %q", c.name, passed, counted, want)
		}
	}
}

func arpWithMAC(sender addr.MAC) []byte {
	f := frametest.ARPRequest(mac, ip4, other4).Bytes()
	copy(f[header.EthernetLen+arpSenderMAC:], sender[:])
	return f
}

func arpOfKind(kind byte) []byte {
	f := frametest.ARPRequest(mac, ip4, other4).Bytes()
	f[header.EthernetLen+1] = kind
	return f
}

// TestNoAddresses takes a container without addresses of a family at its word: it has none.
func TestNoAddresses(t *testing.T) {
	s := newStation(t)
	_, err := Apply([]Port{{Device: "h0", MAC: mac, Addresses: []netip.Addr{ip4}}})
	linktest.Must(t, err)
	if s.passes(t, frametest.Ethernet(other, mac).IPv6(ip6, other6).UDP(1, 2).Bytes()) {
		t.Error("a packet from an address that was not given passed")
	}
}

// TestApply changes the rules: only what is otherwise is written, and what was counted stays.
func TestApply(t *testing.T) {
	s := newStation(t)
	apply := func(want bool, ports ...Port) {
		t.Helper()
		if changed, err := Apply(ports); err != nil || changed != want {
			t.Errorf("Apply: %v, %v; want %v", changed, err, want)
		}
	}
	spoofed := frametest.Ethernet(other, mac).IPv4(other4, ip4).UDP(1, 2).Bytes()
	if counts, err := Counts(); err != nil || len(counts) != 0 {
		t.Errorf("before: %v, %v", counts, err)
	}
	apply(true, port())
	apply(false, port())
	if s.passes(t, spoofed) {
		t.Error("a packet from the address of another passed")
	}
	more := port()
	more.Addresses = append(more.Addresses, other4)
	apply(true, more)
	apply(false, more)
	if !s.passes(t, spoofed) {
		t.Error("a packet from an address that was added does not pass")
	}
	if counts, err := Counts(); err != nil || counts[forward.SourceIPSpoofed] == (Count{}) || counts[forward.SourceIPSpoofed].Frames != 1 {
		t.Errorf("counted %v, %v", counts, err)
	}
	// What is not mentioned keeps its rules while it is there; what is not there needs none.
	apply(true, port(), Port{Device: "nosuch0", MAC: other})
	apply(false)
	if s.passes(t, spoofed) {
		t.Error("a port that was not mentioned has lost its rules")
	}

	// Made anew under its name, a device has no rules with some kernels, and with others it has the old ones.
	linktest.Must(t, netlink.LinkDel(linktest.Device(t, "h0")), netlink.LinkDel(linktest.Device(t, "br0")))
	apply(false, more)
	conn, err := nftables.New()
	linktest.Must(t, err)
	if chains, err := chainsOf(conn); err != nil || len(chains) != 0 {
		t.Errorf("the device is gone, and %d chains of it are left, %v", len(chains), err)
	}
	s = wire(t)
	_, err = Apply([]Port{port()})
	linktest.Must(t, err)
	if s.passes(t, spoofed) {
		t.Error("through a device that was made anew, a packet from the address of another passed")
	}
	apply(false, port())
	linktest.Must(t, Remove(), Remove())
	if counts, err := Counts(); err != nil || len(counts) != 0 {
		t.Errorf("after: %v, %v", counts, err)
	}
}

// TestManyPorts writes the rules of as many containers as a large host has.
func TestManyPorts(t *testing.T) {
	linktest.Enter(t)
	var ports []Port
	for i := range uint16(60) {
		p := Port{Device: fmt.Sprintf("h%d", i), MAC: frametest.MAC(i), Addresses: []netip.Addr{frametest.IP4(i), frametest.IP6(i)}}
		linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: p.Device}}))
		ports = append(ports, p)
	}
	chain := func() uint64 {
		conn, err := nftables.New()
		linktest.Must(t, err)
		chains, err := chainsOf(conn)
		linktest.Must(t, err)
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == ports[0].Device })
		rules, err := conn.GetRules(chains[i].Table, chains[i])
		linktest.Must(t, err)
		return rules[0].Handle
	}
	first := uint64(0)
	for _, n := range []int{3, len(ports), 1} {
		if n == 1 {
			n = len(ports)
			ports[n-1].MAC = frametest.MAC(1000)
		}
		if changed, err := Apply(ports[:n]); err != nil || !changed {
			t.Fatalf("%d ports: %v, %v", n, changed, err)
		}
		if changed, err := Apply(ports[:n]); err != nil || changed {
			t.Errorf("%d ports, again: %v, %v", n, changed, err)
		}
		if h := chain(); first == 0 {
			first = h
		} else if h != first {
			t.Errorf("%d ports: the rules of one that was there are written anew", n)
		}
	}
}

// Two that remove the rules at once, or one beside another that writes them, do not get into each other's way.
func TestRemoveBesideOthers(t *testing.T) {
	linktest.Enter(t)
	linktest.Must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "h0"}}))
	ns, err := netns.Get()
	linktest.Must(t, err)
	defer ns.Close()
	var all sync.WaitGroup
	beside := func(f func() error) {
		all.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if err := netns.Set(ns); err != nil {
				t.Error(err)
				return
			}
			for range 50 {
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	beside(Remove)
	beside(Remove)
	beside(func() error { _, err := Apply([]Port{port()}); return err })
	all.Wait()
}

// TestNamespaces looks at whether the calling thread's namespace is meant.
func TestNamespaces(t *testing.T) {
	newStation(t)
	_, err := Apply([]Port{port()})
	linktest.Must(t, err)
	here, err := netns.Get()
	linktest.Must(t, err)
	defer here.Close()
	linktest.New(t)
	if counts, err := Counts(); err != nil || len(counts) != 0 {
		t.Errorf("another namespace has the rules: %v, %v", counts, err)
	}
	linktest.Must(t, netns.Set(here))
	if changed, err := Apply([]Port{port()}); err != nil || changed {
		t.Errorf("back: %v, %v", changed, err)
	}
}
