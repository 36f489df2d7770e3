package vtep

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// A station that is heard elsewhere is answered there from its first packet on, though the kernel sends to where it was.
func TestPairsFollowStations(t *testing.T) {
	p := newPair(t)
	ends, away := underlays["IPv4"], netip.MustParseAddr("192.0.2.66")
	p.enter(t, 1)
	linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(away, 24)))
	near := blue(0, "IPv4")
	near.Peers = append(near.Peers, away)
	hosts := [2]*host{p.startAt(t, 0, Config{Networks: []Network{near}, Queues: 2}), p.startAt(t, 1, Config{Networks: []Network{blue(1, "IPv4")}, Queues: 2})}
	here, station := hosts[0].network().MAC, hosts[1].network().MAC
	p.enter(t, 1)
	vtep := linktest.UDP(t, netip.AddrPortFrom(away, header.VXLANPort))
	// A host that is no neighbour yet is found by path probes, before there is a station behind it.
	patiently(t, "probe", func() bool {
		_, _, err := vtep.ReadFromUDPAddrPort(make([]byte, 1<<16))
		return err == nil
	})
	answer := make([]byte, 1<<16)
	for round := range uint16(10) {
		bothFast(hosts, func() { echo(t, overlay(0)) })
		question := frametest.Ethernet(here, station).IPv4(overlay(1), overlay(0)).ICMP(header.ICMPEcho, 0, 99, round).Payload(64).Bytes()
		_, err := vtep.WriteToUDPAddrPort(overlaid(question), netip.AddrPortFrom(ends[0], header.VXLANPort))
		linktest.Must(t, err, vtep.SetReadDeadline(time.Now().Add(linktest.Patience)))
		for {
			n, _, err := vtep.ReadFromUDPAddrPort(answer)
			if err != nil {
				t.Fatalf("round %d: the first answer went elsewhere: %v", round, err)
			}
			_, frame, err := frametest.Datagram(answer[:n])
			if err != nil {
				continue // a probe of the path
			}
			const at = header.EthernetLen + header.IPv4MinLen
			if len(frame) > at+8 && frame[23] == header.ProtoICMP && frame[at] == header.ICMPEchoReply && frame[at+5] == 99 && frame[at+7] == byte(round) {
				break
			}
		}
		// It comes back with its first packet, too: this one is sent once.
		echo(t, overlay(0))
	}
	for _, h := range hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// sentBy returns how many packets a device has sent, of the namespace that the test is in.
func sentBy(t *testing.T, device string) uint64 {
	t.Helper()
	return linktest.Device(t, device).Attrs().Statistics.TxPackets
}

// A peer to which another way leads is sent to by that way.
func TestPairsFollowRoutes(t *testing.T) {
	r := newRouted(t, 1500)
	hosts := r.startBoth(t, "IPv4")
	s := r.across(t, 0, 1, every(leisure))
	back := r.across(t, 1, 1, every(leisure))
	bothFast(hosts, nil)
	ends := underlays["IPv4"]
	for _, way := range []struct {
		device string
		by     [2]netip.Addr
	}{
		{"eth1", [2]netip.Addr{directs[1], directs[0]}},
		{"eth0", [2]netip.Addr{routerOf["IPv4"], routerOf["IPv4"]}},
	} {
		for i := range hosts {
			r.enter(t, i)
			linktest.Must(t, netlink.RouteReplace(&netlink.Route{
				LinkIndex: linktest.Device(t, way.device).Attrs().Index, Src: ends[i].AsSlice(), Gw: way.by[i].AsSlice(), Flags: int(netlink.FLAG_ONLINK),
				Dst: &net.IPNet{IP: ends[1-i].AsSlice(), Mask: net.CIDRMask(32, 32)},
			}))
		}
		for i, h := range hosts {
			linktest.Await(t, "peer by "+way.device, func() bool { return h.tell("peers").Peers[0].Device == way.device })
			r.enter(t, i)
			wantHooks(t, "blue0 overlayd_leave", way.device+" overlayd_arrive")
			bothFast(hosts, nil)
			before, fast := sentBy(t, way.device), h.network().FastOut.Frames
			h.gains(fastOut, 100, nil)
			fast = h.network().FastOut.Frames - fast
			if now := sentBy(t, way.device); now-before < fast*9/10 {
				t.Errorf("of %d frames that host %d sent, %d went out by %s", fast, i, now-before, way.device)
			}
		}
		s.goesOn()
		back.goesOn()
	}
	s.stop()
	back.stop()
	for _, h := range hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}

// Where the peer's underlay address has to be resolved anew, packets of fast pairs wait for that like any others.
func TestPairsResolveTheirPeer(t *testing.T) {
	p := newPair(t)
	hosts := p.startBoth(t, "IPv4")
	s := p.across(t, 0, 1, every(leisure))
	bothFast(hosts, func() { p.exchange(t, overlay, 100) })
	p.enter(t, 0)
	peer := underlays["IPv4"][1].AsSlice()
	for range 10 {
		linktest.Must(t, netlink.NeighDel(&netlink.Neigh{LinkIndex: linktest.Device(t, "eth0").Attrs().Index, IP: peer}))
		s.goesOn()
	}
	s.accounted(func() uint64 { return 0 })
}

// An underlay device that is made anew is taken up again, whatever number it has.
func TestPairsFollowTheDevice(t *testing.T) {
	for name, same := range map[string]bool{"another index": false, "the same index": true} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			hosts := p.startBoth(t, "IPv4")
			s := p.across(t, 0, 1, every(leisure))
			back := p.across(t, 1, 1, every(leisure))
			bothFast(hosts, nil)
			p.enter(t, 1)
			index := linktest.Device(t, "eth0").Attrs().Index
			linktest.Must(t, netlink.LinkDel(linktest.Device(t, "eth0")))
			attrs := netlink.LinkAttrs{Name: "eth0", MTU: 1500}
			if same {
				attrs.Index = index
			}
			linktest.Must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns[0])}))
			for i := range hosts {
				p.enter(t, i)
				linktest.Must(t, link.SetUp("eth0"))
				for _, ends := range underlays {
					linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(ends[i], map[bool]int{false: 24, true: 64}[ends[i].Is6()])))
				}
			}
			s.goesOn()
			back.goesOn()
			bothFast(hosts, nil)
			for i := range hosts {
				p.enter(t, i)
				wantHooks(t, "blue0 overlayd_leave", "eth0 overlayd_arrive")
			}
			s.stop()
			back.stop()
			for _, h := range hosts {
				h.tell("stop")
				conserved(t, "blue", h.network().Counters)
			}
		})
	}
}
