package interop

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/capture"
	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// mac returns the MAC address of the container's interface.
func (c *container) mac(t *testing.T) addr.MAC {
	t.Helper()
	var mac addr.MAC
	on(t, c, func() error {
		dev, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = addr.MAC(dev.HardwareAddr)
		}
		return err
	})
	return mac
}

// six returns the IPv6 address of the network that the container has.
func (c *container) six(t *testing.T) netip.Addr {
	t.Helper()
	var found netip.Addr
	on(t, c, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		all, err := netlink.AddrList(l, netlink.FAMILY_V6)
		for _, a := range all {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLinkLocalUnicast() {
				found = ip
			}
		}
		return err
	})
	if !found.IsValid() {
		t.Fatalf("%s has no IPv6 address", c.name)
	}
	return found
}

// forget makes the container forget all neighbours.
func (c *container) forget(t *testing.T) {
	t.Helper()
	on(t, c, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		known, err := netlink.NeighList(l.Attrs().Index, unix.AF_UNSPEC)
		if err != nil {
			return err
		}
		for _, n := range known {
			if n.State&netlink.NUD_NOARP != 0 { // groups
				continue
			}
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget %v: %w", n.IP, err)
			}
		}
		return nil
	})
}

// counted reads what `overlayctl drops` says of the network.
func (m *member) counted() tally {
	m.t.Helper()
	var out struct {
		Drops []struct {
			Reason, Network, Help string
			Count                 string // 64 bits are a string in JSON
		}
	}
	if err := json.Unmarshal([]byte(m.ctl("drops", "-o", "json")), &out); err != nil {
		m.t.Fatal(err)
	}
	sums := tally{}
	for _, d := range out.Drops {
		var n uint64
		if _, err := fmt.Sscan(d.Count, &n); err != nil || d.Help == "" {
			m.t.Fatalf("drops: %+v, %v", d, err)
		}
		sums[d.Reason] += n
	}
	return sums
}

// vniOf returns the number that the cluster gave the network.
func (m *member) vniOf(name string) addr.VNI {
	m.t.Helper()
	var out struct{ Network struct{ Vni uint32 } }
	if err := json.Unmarshal([]byte(m.ctl("network", "inspect", name, "-o", "json")), &out); err != nil || out.Network.Vni == 0 {
		m.t.Fatalf("network inspect: %+v, %v", out, err)
	}
	return addr.VNI(out.Network.Vni)
}

// inject writes a frame to the container's interface as a program with CAP_NET_RAW in it can.
func (c *container) inject(t *testing.T, f []byte) {
	t.Helper()
	on(t, c, func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: binary.NativeEndian.Uint16(f[12:])})
	})
}

// sightseer looks for certain frames at an interface.
type sightseer struct {
	mu     sync.Mutex
	wanted map[string][]byte
	seen   []string
}

func (s *sightseer) packet(p *capture.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.wanted {
		if bytes.Equal(p.Data, f) {
			s.seen = append(s.seen, name)
		}
	}
}

func (s *sightseer) want(name string, f []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted[name] = f
}

// spoof is a frame that is not who it says that it is.
type spoof struct {
	name, reason string
	frame        []byte
}

// spoofsOf are frames by which the station me, at mine, could pose as another one, at theirs, towards a victim.
func spoofsOf(me, other, victim addr.MAC, mine, theirs, to, mine6, theirs6, to6 netip.Addr) []spoof {
	udp := func(src addr.MAC, from netip.Addr) []byte {
		return frametest.UDP4(frametest.Opts{SrcMAC: src, DstMAC: victim, Src: from, Dst: to, Payload: 40}).Bytes()
	}
	all := netip.MustParseAddr("ff02::1")
	router := frametest.Ethernet(addr.MAC{0x33, 0x33, 0, 0, 0, 1}, me).
		IPv6(linkLocal(me), all, hopLimit).ICMPv6(header.ICMPv6RouterAdv, 0).Data(make([]byte, 12)).Bytes()
	return []spoof{
		{"another's IP", "source_ip_spoofed", udp(me, theirs)},
		{"nobody's IP", "source_ip_spoofed", udp(me, netip.MustParseAddr("10.42.0.200"))},
		{"another's IPv6", "source_ip_spoofed", frametest.UDP6(frametest.Opts{SrcMAC: me, DstMAC: victim, Src: theirs6, Dst: to6, Payload: 40}).Bytes()},
		{"another's ARP reply", "arp_spoofed", frametest.ARPReply(me, theirs, victim, to).Bytes()},
		{"another's ARP announcement", "arp_spoofed", frametest.ARPRequest(me, theirs, theirs).Bytes()},
		{"an ARP reply that names another's MAC", "arp_spoofed", frametest.Ethernet(victim, me).ARP(header.ARPReply, other, mine, victim, to).Bytes()},
		{"another's neighbor advertisement", "nd_spoofed", frametest.NeighborAdv(me, mine6, victim, to6, theirs6, 0x20).Bytes()},
		{"a router that is none", "rogue_router", router},
		{"a protocol of its own", "protocol_refused", change(udp(me, mine), 12, 0x88, 0xb5)},
	}
}

// soundness looks whether a frame is wrong in no other way than the one for which it is to be dropped.
func soundness(t *testing.T, f []byte) {
	t.Helper()
	var p frame.Parsed
	if fault := p.Parse(f); fault != frame.Sound {
		t.Fatalf("the frame is not sound: %v", fault)
	}
}

// isolation has containers and hosts pose as what they are not. All of it is dropped where it is met first, counted
// under its name, and reaches nobody. h4 and h5 have containers on the network, h3 has one too, h1 has none, and h6 is
// in no cluster.
func isolation(t *testing.T, l *lab.Lab, all []*member, at map[string]*container) {
	h4, h5 := all[3], all[4]
	c3, c4, c5 := at["h3"], at["h4"], at["h5"]
	number := h4.vniOf(network)
	macs := map[*container]addr.MAC{c3: c3.mac(t), c4: c4.mac(t), c5: c5.mac(t)}

	look := &sightseer{wanted: map[string][]byte{}}
	for _, c := range []*container{c3, c4, c5} {
		watch, err := capture.Open(c, "eth0", capture.Received, look.packet)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := watch.Stop(); err != nil {
				t.Error(err)
			}
		}()
	}
	// refused sends one thing and looks what the daemon of a host says of it.
	refused := func(t *testing.T, at *member, reason string, f []byte, send func()) {
		t.Helper()
		look.want(t.Name(), f)
		before := at.counted()
		send()
		eventually(t, "one more "+reason, func() (bool, string) {
			got := at.counted().since(before)
			return slices.ContainsFunc(strings.Split(reason, " or "), func(r string) bool { return maps.Equal(got, tally{r: 1}) }), got.String()
		})
	}
	t.Run("a container", func(t *testing.T) {
		spoofs := append(spoofsOf(macs[c4], macs[c3], macs[c5], c4.ip, c3.ip, c5.ip, c4.six(t), c3.six(t), c5.six(t)),
			spoof{"another's MAC", "source_spoofed", frametest.UDP4(frametest.Opts{SrcMAC: macs[c3], DstMAC: macs[c5], Src: c3.ip, Dst: c5.ip, Payload: 41}).Bytes()},
			// A bridge that guards its ports knows that it is not that of the container; where it cannot, nobody knows it.
			spoof{"nobody's MAC", "source_spoofed or source_mac_unknown", frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: macs[c5], Src: c4.ip, Dst: c5.ip, Payload: 41}).Bytes()},
			spoof{"to a station that is not there", "destination_unknown", frametest.UDP4(frametest.Opts{SrcMAC: macs[c4], DstMAC: frametest.MAC(667), Src: c4.ip, Dst: c5.ip, Payload: 41}).Bytes()},
			spoof{"a question for nobody", "neighbor_unknown", frametest.ARPRequest(macs[c4], c4.ip, netip.MustParseAddr("10.42.0.201")).Bytes()})
		for _, s := range spoofs {
			t.Run(s.name, func(t *testing.T) {
				soundness(t, s.frame)
				refused(t, h4, s.reason, s.frame, func() { c4.inject(t, s.frame) })
			})
		}
	})
	t.Run("a host", func(t *testing.T) {
		// What a host that was taken over can send, as if by its VTEP: its container c5 poses as c3, which is behind h3.
		conn := sender4789(t, h5.host, h4.host)
		spoofs := append(spoofsOf(macs[c5], macs[c3], macs[c4], c5.ip, c3.ip, c4.ip, c5.six(t), c3.six(t), c4.six(t)),
			spoof{"a station behind another host", "source_spoofed", frametest.UDP4(frametest.Opts{SrcMAC: macs[c3], DstMAC: macs[c4], Src: c3.ip, Dst: c4.ip, Payload: 42}).Bytes()},
			spoof{"the victim itself", "source_spoofed", frametest.UDP4(frametest.Opts{SrcMAC: macs[c4], DstMAC: macs[c4], Src: c4.ip, Dst: c4.ip, Payload: 42}).Bytes()},
			spoof{"a station of nobody", "source_mac_unknown", frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: macs[c4], Src: c5.ip, Dst: c4.ip, Payload: 42}).Bytes()},
			spoof{"to a station that is elsewhere", "destination_unknown", frametest.UDP4(frametest.Opts{SrcMAC: macs[c5], DstMAC: macs[c3], Src: c5.ip, Dst: c3.ip, Payload: 42}).Bytes()})
		for _, s := range spoofs {
			t.Run(s.name, func(t *testing.T) {
				soundness(t, s.frame)
				refused(t, h4, s.reason, s.frame, func() { send(t, conn, encapsulate(number, s.frame)) })
			})
		}
	})
	t.Run("a stranger", func(t *testing.T) {
		// A frame without a fault, but for where it comes from. Each says which it is.
		good := func(name string) []byte {
			return frametest.UDP4(frametest.Opts{SrcMAC: macs[c5], DstMAC: macs[c4], Src: c5.ip, Dst: c4.ip, Data: []byte(name)}).Bytes()
		}
		for name, from := range map[string]*lab.Host{"a host of the cluster without the network": all[0].host, "a host of no cluster": l.Host("h6")} {
			conn := sender4789(t, from, h4.host)
			t.Run(name, func(t *testing.T) {
				f := good(name)
				refused(t, h4, "vtep_unknown", f, func() { send(t, conn, encapsulate(number, f)) })
			})
		}
		conn := sender4789(t, h5.host, h4.host)
		t.Run("a network that is not here", func(t *testing.T) {
			f := good("another network")
			refused(t, h4, "vni_unknown", f, func() { send(t, conn, encapsulate(number+1, f)) })
		})
		// The same from where it belongs arrives, or all of the above would prove nothing.
		look.want("good", good("good"))
		send(t, conn, encapsulate(number, good("good")))
		eventually(t, "a frame without a fault to arrive", func() (bool, string) {
			look.mu.Lock()
			defer look.mu.Unlock()
			return len(look.seen) > 0, "it did not"
		})
	})
	look.mu.Lock()
	defer look.mu.Unlock()
	if strings.Join(look.seen, " ") != "good" {
		t.Errorf("containers have received %q", look.seen)
	}
	for _, c := range []*container{c3, c4, c5} {
		for _, m := range all[2:5] {
			conserved(t, m.socket)
		}
		on(t, c, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			known, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
			for _, n := range known {
				for o, mac := range macs {
					if ip, _ := netip.AddrFromSlice(n.IP.To4()); ip == o.ip && n.HardwareAddr != nil && n.HardwareAddr.String() != mac.String() {
						t.Errorf("%s takes %v for %v, which has %v", c.name, n.HardwareAddr, ip, mac)
					}
				}
			}
			return err
		})
	}
}

// linkLocal is the address that a station makes of its MAC (RFC 4291, appendix A).
func linkLocal(m addr.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

func hopLimit(l *layers.IPv6) { l.HopLimit = header.NDHopLimit }

// questions has all containers forget each other and find each other again, by ARP and neighbour discovery, and looks
// that none of that is on the underlay, where the pings themselves are.
func questions(t *testing.T, l *lab.Lab, all []*member, at []*container) {
	number := all[3].vniOf(network)
	var mu sync.Mutex
	var asked []string
	frames := 0
	for _, m := range all {
		watch, err := capture.Open(l.Router(), m.host.Name(), capture.Received, func(p *capture.Packet) {
			inner, ok := innerOf(p.Data, number)
			if !ok {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			frames++
			if kind := askedBy(inner); kind != "" {
				asked = append(asked, kind+" from "+m.host.Name())
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := watch.Stop(); err != nil {
				t.Error(err)
			}
		}()
	}
	for _, a := range at {
		a.forget(t)
	}
	pings := 0
	for _, a := range at {
		for _, b := range at {
			if a == b {
				continue
			}
			for _, to := range []netip.Addr{b.ip, b.six(t)} {
				if r, err := load.Ping(within(t), load.PingConfig{From: a, To: to, Timeout: 5 * time.Second}); err != nil || r.Received != 1 {
					t.Errorf("ping from %s to %v: %+v, %v", a.name, to, r, err)
				}
				pings++
			}
		}
	}
	eventually(t, "all pings and their answers on the underlay", func() (bool, string) {
		mu.Lock()
		defer mu.Unlock()
		return frames >= 2*pings, fmt.Sprintf("%d frames of %d pings", frames, pings)
	})
	mu.Lock()
	defer mu.Unlock()
	if len(asked) > 0 {
		t.Errorf("on the underlay: %q", asked)
	}
	t.Logf("%d pings, %d frames on the underlay, no question among them", pings, frames)
}

// innerOf cuts the frame out of a VXLAN packet of a network.
func innerOf(b []byte, v addr.VNI) ([]byte, bool) {
	const headers = header.EthernetLen + header.IPv4MinLen + header.UDPLen
	if len(b) < headers+header.VXLANLen+header.EthernetLen || binary.BigEndian.Uint16(b[12:]) != header.EtherTypeIPv4 ||
		b[header.EthernetLen+9] != header.ProtoUDP || binary.BigEndian.Uint16(b[header.EthernetLen+header.IPv4MinLen+2:]) != header.VXLANPort {
		return nil, false
	}
	vx := header.VXLAN(b[headers:])
	return vx[header.VXLANLen:], vx.VNI() == v
}

// askedBy says which question for a neighbour, or answer, a frame is, or "".
func askedBy(f []byte) string {
	switch binary.BigEndian.Uint16(f[12:]) {
	case header.EtherTypeARP:
		return "ARP"
	case header.EtherTypeIPv6:
		if len(f) > header.EthernetLen+header.IPv6Len && f[header.EthernetLen+6] == header.ProtoICMPv6 {
			switch f[header.EthernetLen+header.IPv6Len] {
			case header.ICMPv6NeighborSol:
				return "a neighbor solicitation"
			case header.ICMPv6NeighborAdv:
				return "a neighbor advertisement"
			}
		}
	}
	return ""
}
