package interop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// hostile is one frame that must be dropped, and under which reason.
type hostile struct {
	name   string
	reason string
	frame  []byte
}

// change returns a frame with some bytes overwritten.
func change(frame []byte, at int, bytes ...byte) []byte {
	frame = slices.Clone(frame)
	copy(frame[at:], bytes)
	return frame
}

// resum4 makes the header checksum of the IPv4 packet in a frame right again, and leaves all else wrong.
func resum4(frame []byte) []byte {
	h := frame[header.EthernetLen:]
	binary.BigEndian.PutUint16(h[10:], 0)
	sum := uint32(0)
	for i := 0; i < int(h[0]&0xf)*4; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return frame
}

// Offsets in frames without tags and IP options.
const (
	ipAt = header.EthernetLen
	l4At = ipAt + header.IPv4MinLen
	l6At = ipAt + header.IPv6Len
)

// hostileFrames are wrong whichever way they come. Their stations exist nowhere.
func hostileFrames() []hostile {
	o := frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: frametest.MAC(667), Payload: 40}
	tcp, udp, udp6 := frametest.TCP4(o).Bytes(), frametest.UDP4(o).Bytes(), frametest.UDP6(o).Bytes()
	arp := frametest.ARPRequest(o.SrcMAC, frametest.IP4(66), frametest.IP4(67)).Bytes()
	tagged := frametest.UDP4(frametest.Opts{SrcMAC: o.SrcMAC, DstMAC: o.DstMAC, VLANs: []uint16{7}, Payload: 40}).Bytes()
	ethernet := func() *frametest.Builder { return frametest.Ethernet(o.DstMAC, o.SrcMAC) }
	ip4 := func(edit ...func(*layers.IPv4)) *frametest.Builder {
		return ethernet().IPv4(frametest.IP4(66), frametest.IP4(67), edit...)
	}
	option := func(kind byte, data ...byte) func(*layers.IPv4) {
		return func(l *layers.IPv4) {
			l.Options = []layers.IPv4Option{{OptionType: kind, OptionLength: uint8(len(data) + 2), OptionData: data}, {OptionType: 0}}
		}
	}
	fragment := func(offset int, more bool, proto layers.IPProtocol, size int) []byte {
		return ip4(func(l *layers.IPv4) {
			l.Flags, l.FragOffset, l.Protocol = 0, uint16(offset/8), proto
			if more {
				l.Flags = layers.IPv4MoreFragments
			}
		}).Payload(size).Bytes()
	}
	extension := func(kind uint8, body ...byte) []byte {
		return ethernet().IPv6(frametest.IP6(66), frametest.IP6(67)).Extension(kind, body).UDP(1, 2).Payload(8).Bytes()
	}
	options := frametest.TCP4(frametest.Opts{SrcMAC: o.SrcMAC, DstMAC: o.DstMAC, Options: []layers.TCPOption{frametest.MSS(1000)}}).Bytes()
	router := extension(header.ProtoRouting, 0, 1, 0, 0, 0, 0) // type 0, one address left
	return []hostile{
		{"IPv4 that ends after Ethernet", "frame_runt", udp[:ipAt]},
		{"IPv4 header cut", "frame_runt", udp[:ipAt+10]},
		{"IPv6 header cut", "frame_runt", udp6[:ipAt+20]},
		{"ARP cut", "frame_runt", arp[:ipAt+10]},
		{"VLAN tag cut", "frame_runt", tagged[:ipAt+2]},
		{"TCP header cut", "frame_runt", ip4(func(l *layers.IPv4) { l.Protocol = layers.IPProtocolTCP }).Payload(10).Bytes()},
		{"UDP header cut", "frame_runt", ip4(func(l *layers.IPv4) { l.Protocol = layers.IPProtocolUDP }).Payload(4).Bytes()},
		{"ICMP header cut", "frame_runt", ip4(func(l *layers.IPv4) { l.Protocol = layers.IPProtocolICMPv4 }).Payload(4).Bytes()},

		{"IPv4 length beyond the frame", "frame_bad_length", resum4(change(udp, ipAt+2, 0xff, 0xff))},
		{"IPv4 length below its header", "frame_bad_length", resum4(change(udp, ipAt+2, 0, 19))},
		{"IPv6 length beyond the frame", "frame_bad_length", change(udp6, ipAt+4, 0xff, 0xff)},
		{"UDP length beyond the packet", "frame_bad_length", change(udp, l4At+4, 0xff, 0xff)},
		{"UDP length below its header", "frame_bad_length", change(udp, l4At+4, 0, 7)},
		{"UDP length beyond the IPv6 packet", "frame_bad_length", change(udp6, l6At+4, 0xff, 0xff)},
		{"TCP data offset below its header", "frame_bad_length", change(tcp, l4At+12, 0x40)},
		{"TCP data offset beyond the segment", "frame_bad_length", change(frametest.TCP4(frametest.Opts{SrcMAC: o.SrcMAC, DstMAC: o.DstMAC}).Bytes(), l4At+12, 0xf0)},

		{"source MAC zero", "frame_bad_source", change(udp, 6, 0, 0, 0, 0, 0, 0)},
		{"source MAC of a group", "frame_bad_source", change(udp, 6, 1, 0, 0x5e, 1, 2, 3)},

		{"IPv4 with version 5", "ip_bad_header", resum4(change(udp, ipAt, 0x55))},
		{"IPv4 header of 16 bytes", "ip_bad_header", resum4(change(udp, ipAt, 0x44))},
		{"IPv4 header checksum", "ip_bad_header", change(udp, ipAt+10, 0xde, 0xad)},
		{"IPv6 with version 4", "ip_bad_header", change(udp6, ipAt, 0x40)},

		{"loose source route", "ip_bad_option", ip4(option(131, 4, 10, 42, 0, 1)).UDP(1, 2).Payload(8).Bytes()},
		{"strict source route", "ip_bad_option", ip4(option(137, 4, 10, 42, 0, 1)).UDP(1, 2).Payload(8).Bytes()},
		{"IPv4 option over its header", "ip_bad_option", resum4(change(ip4(option(7, 1, 2)).UDP(1, 2).Payload(8).Bytes(), l4At+1, 40))},
		{"IPv4 option of length 1", "ip_bad_option", resum4(change(ip4(option(7, 1, 2)).UDP(1, 2).Payload(8).Bytes(), l4At+1, 1))},
		{"IPv6 hop-by-hop option over its header", "ip_bad_option", extension(header.ProtoHopByHop, 0x3e, 99, 0, 0, 0, 0)},
		{"IPv6 source route", "ip_bad_option", router},
		{"IPv6 extension header over the packet", "ip_bad_option", change(extension(header.ProtoDestOpts, 1, 4, 0, 0, 0, 0), l6At+1, 200)},

		{"fragment beyond 65535 bytes", "ip_bad_fragment", fragment(65528, false, layers.IPProtocolICMPv4, 64)},
		{"fragment that is no multiple of 8", "ip_bad_fragment", fragment(0, true, layers.IPProtocolUDP, 43)},
		{"empty fragment", "ip_bad_fragment", fragment(80, true, layers.IPProtocolUDP, 0)},
		{"TCP header in two fragments", "ip_bad_fragment", fragment(0, true, layers.IPProtocolTCP, 16)},
		{"fragment over the TCP flags", "ip_bad_fragment", fragment(8, false, layers.IPProtocolTCP, 32)},
		{"IPv6 fragment that is no multiple of 8", "ip_bad_fragment", ethernet().IPv6(frametest.IP6(66), frametest.IP6(67)).Fragment6(0, true, 1).UDP(1, 2).Payload(5).Bytes()},

		{"TCP option of length 0", "tcp_bad_option", change(options, l4At+21, 0)},
		{"TCP option over its header", "tcp_bad_option", change(options, l4At+21, 9)},

		{"VXLAN inside VXLAN", "nested_vxlan", frametest.UDP4(frametest.Opts{SrcMAC: o.SrcMAC, DstMAC: o.DstMAC, DstPort: header.VXLANPort, Payload: 60}).Bytes()},
	}
}

// encapsulate puts a VXLAN header before a frame.
func encapsulate(v addr.VNI, frame []byte) []byte {
	b := make([]byte, header.VXLANLen, header.VXLANLen+len(frame))
	header.VXLAN(b).Encode(v)
	return append(b, frame...)
}

// sender4789 is a socket of a host from which a test sends to the VXLAN port of another.
func sender4789(t *testing.T, from, to *lab.Host) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	on(t, from, func() error {
		var err error
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(underlay(to), header.VXLANPort)))
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

func send(t *testing.T, conn *net.UDPConn, datagram []byte) {
	t.Helper()
	if _, err := conn.Write(datagram); err != nil {
		t.Fatal(err)
	}
}

// TestHostileDatagrams sends garbage to a daemon and looks that each counts once, under the right name, and
// that nothing else changes.
func TestHostileDatagrams(t *testing.T) {
	for _, outer := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run("over "+string(outer), func(t *testing.T) {
			l := up(t, scenario(outer, lab.Overlayd, lab.Overlayd, ""))
			h1, h2, stranger := l.Host("h1"), l.Host("h2"), l.Host("h3")
			peer, other := sender4789(t, h2, h1), sender4789(t, stranger, h1)
			talk(t, h1, h2)
			pid, fdb := h1.PID(), fdbOf(t, h1.Socket(), network)
			if len(fdb) != 1 {
				t.Fatalf("the FDB is %q, want the one station of h2", fdb)
			}

			good := frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: frametest.MAC(667), Payload: 40}).Bytes()
			flags := encapsulate(vni, good)
			flags[0] = 0xf7
			own := frametest.UDP4(frametest.Opts{SrcMAC: addr.MAC(hardware(t, h1, h1.Device(network))), DstMAC: frametest.MAC(667)}).Bytes()
			var sum []hostile
			for _, f := range [][]byte{
				frametest.TCP4(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: frametest.MAC(667), Payload: 40}).Bytes(), good,
				frametest.UDP6(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: frametest.MAC(667), Payload: 40}).Bytes(),
			} {
				sum = append(sum, hostile{"inner checksum", "bad_checksum", encapsulate(vni, change(f, len(f)-1, f[len(f)-1]^1))})
			}
			datagrams := append(sum, []hostile{
				{"nothing at all", "vxlan_truncated", nil},
				{"half a VXLAN header", "vxlan_truncated", flags[:4]},
				{"VXLAN without a frame", "vxlan_truncated", encapsulate(vni, nil)},
				{"VXLAN with half an Ethernet header", "vxlan_truncated", encapsulate(vni, good[:13])},
				{"VXLAN without the I flag", "vxlan_bad_flags", append(make([]byte, 8), good...)},
				{"VXLAN with all flags but I", "vxlan_bad_flags", flags},
				{"VNI of no network", "vni_unknown", encapsulate(vni+1, good)},
				{"the last VNI", "vni_unknown", encapsulate(addr.MaxVNI, good)},
				{"frame of this host's own station", "source_spoofed", encapsulate(vni, own)},
			}...)
			for _, f := range hostileFrames() {
				f.frame = encapsulate(vni, f.frame)
				datagrams = append(datagrams, f)
			}
			before := drops(t, h1.Socket())
			for _, d := range datagrams {
				t.Run(d.name, func(t *testing.T) {
					before := drops(t, h1.Socket())
					send(t, peer, d.frame)
					dropped(t, h1.Socket(), before, tally{d.reason: 1})
				})
			}
			want := make(tally)
			for _, d := range datagrams {
				want[d.reason]++
			}

			t.Run("strangers", func(t *testing.T) {
				before := drops(t, h1.Socket())
				send(t, other, encapsulate(vni, good))
				send(t, other, datagrams[0].frame) // who sends comes before what is sent
				dropped(t, h1.Socket(), before, tally{"vtep_unknown": 2})
			})
			want["vtep_unknown"] += 2

			t.Run("congestion marked on what does not know it", func(t *testing.T) {
				before := drops(t, h1.Socket())
				mark(t, peer, outer, header.ECNCE)
				send(t, peer, encapsulate(vni, good))
				mark(t, peer, outer, header.ECNNotECT)
				dropped(t, h1.Socket(), before, tally{"ecn_broken": 1})
			})
			want["ecn_broken"]++

			t.Run("train that does not add up", func(t *testing.T) {
				before := drops(t, h1.Socket())
				long := frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: frametest.MAC(667), Payload: 400}).Bytes()
				train := append(encapsulate(vni, long), make([]byte, 600)...)[:600]
				if err := control(peer, func(fd int) error {
					return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 200)
				}); err != nil {
					t.Fatal(err)
				}
				send(t, peer, train)
				dropped(t, h1.Socket(), before, tally{"vxlan_bad_train": 3})
			})
			want["vxlan_bad_train"] += 3

			dropped(t, h1.Socket(), before, want)
			remembered(t, h1, want)
			alive(t, h1, pid)
			if now := fdbOf(t, h1.Socket(), network); !slices.Equal(now, fdb) {
				t.Errorf("the FDB is now %q, was %q", now, fdb)
			}
			talk(t, h1, h2)
		})
	}
}

// mark sets the ECN field of what a socket sends.
func mark(t *testing.T, conn *net.UDPConn, outer lab.Family, field uint8) {
	t.Helper()
	if err := control(conn, func(fd int) error {
		if outer == lab.IPv4 {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, int(field))
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(field))
	}); err != nil {
		t.Fatal(err)
	}
}

// talk pings over the overlay, both address families.
func talk(t *testing.T, from, to *lab.Host) {
	t.Helper()
	for _, a := range to.Overlays(network) {
		if r, err := load.Ping(within(t), load.PingConfig{From: from, To: a, Count: 2}); err != nil || r.Received != 2 {
			t.Errorf("ping from %s to %v of %s: %+v, %v", from.Name(), a, to.Name(), r, err)
		}
	}
}

// remembered looks that the daemon explains each reason and shows the last frame that it counted.
func remembered(t *testing.T, h *lab.Host, want tally) {
	t.Helper()
	got := make(tally)
	for _, d := range dropsOf(t, h.Socket()) {
		got[d.Reason] += d.Count
		if d.Help == "" || d.LastTime == nil || d.LastSample == nil || d.LastSample.Reason != d.Reason {
			t.Errorf("what is known of %s is not all there: %v", d.Reason, d)
		}
	}
	if !covers(got, want) {
		t.Errorf("the list of drops has %v, want at least %v", got, want)
	}
}

// TestCongestionMark lets a router mark congestion on the outside and looks that the inside has it in the end
// (RFC 6040, section 4.2).
func TestCongestionMark(t *testing.T) {
	for _, outer := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run("over "+string(outer), func(t *testing.T) {
			l := up(t, scenario(outer, lab.Overlayd, lab.Overlayd))
			h1, h2 := l.Host("h1"), l.Host("h2")
			conn := sender4789(t, h2, h1)
			for _, c := range []struct{ outer, inner, want uint8 }{
				{header.ECNCE, header.ECNECT0, header.ECNCE},
				{header.ECNCE, header.ECNECT1, header.ECNCE},
				{header.ECNCE, header.ECNCE, header.ECNCE},
				{header.ECNECT1, header.ECNECT0, header.ECNECT1},
				{header.ECNECT0, header.ECNECT1, header.ECNECT1},
				{header.ECNNotECT, header.ECNECT0, header.ECNECT0},
				{header.ECNNotECT, header.ECNCE, header.ECNCE},
				{header.ECNECT0, header.ECNNotECT, header.ECNNotECT},
			} {
				for i, to := range h1.Overlays(network) {
					t.Run(fmt.Sprintf("outer %d inner %d %s", c.outer, c.inner, inside(to)), func(t *testing.T) {
						listener, err := listenTOS(h1, to)
						if err != nil {
							t.Fatal(err)
						}
						defer listener.Close()
						o := frametest.Opts{
							SrcMAC: addr.MAC(hardware(t, h2, h2.Device(network))), DstMAC: addr.MAC(hardware(t, h1, h1.Device(network))),
							Src: h2.Overlays(network)[i], Dst: to, SrcPort: 9999, DstPort: uint16(listener.LocalAddr().(*net.UDPAddr).Port),
							TOS: c.inner, Payload: 16,
						}
						frame := frametest.UDP4(o).Bytes
						if to.Is6() {
							frame = frametest.UDP6(o).Bytes
						}
						mark(t, conn, outer, c.outer)
						send(t, conn, encapsulate(vni, frame()))
						if got, err := readTOS(listener); err != nil || got != c.want {
							t.Errorf("received with ECN field %d, %v; want %d", got, err, c.want)
						}
					})
				}
			}
		})
	}
}

// injector is a packet socket that writes frames to a device as a program on the host could.
type injector struct {
	fd    int
	index int
	vnet  bool
}

func inject(t *testing.T, h *lab.Host, device string, vnet bool) *injector {
	t.Helper()
	j := &injector{fd: -1, vnet: vnet}
	on(t, h, func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		j.index = dev.Index
		if j.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if vnet {
			err = unix.SetsockoptInt(j.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
		}
		return err
	})
	t.Cleanup(func() { unix.Close(j.fd) })
	return j
}

// write gives the device one frame; o is for an injector with virtio-net headers.
func (j *injector) write(frame []byte, o header.VirtioNet) error {
	b := frame
	if j.vnet {
		b = make([]byte, header.VirtioNetLen, header.VirtioNetLen+len(frame))
		o.Encode(b)
		b = append(b, frame...)
	}
	var to unix.SockaddrLinklayer
	to.Ifindex = j.index
	if len(frame) > 13 {
		to.Protocol = binary.NativeEndian.Uint16(frame[12:])
	}
	return unix.Sendto(j.fd, b, 0, &to)
}

// TestHostileFrames writes garbage to the TAP. A network without peers has nowhere to send.
func TestHostileFrames(t *testing.T) {
	sc := scenario(lab.IPv4, lab.Overlayd, lab.Overlayd)
	sc.Networks = append(sc.Networks, lab.NetworkSpec{
		Name: "lone", VNI: vni + 1, Underlay: lab.IPv4, Members: map[string]lab.Kind{"h1": lab.Overlayd},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/24")},
	})
	l := up(t, sc)
	h1, h2 := l.Host("h1"), l.Host("h2")
	// The stack of the host would send something of its own to the group of all routers now and then.
	setting(t, h1, "ipv6/conf/lone0/disable_ipv6", "1")
	talk(t, h1, h2)
	pid, fdb := h1.PID(), fdbOf(t, h1.Socket(), network)
	tap, super := inject(t, h1, h1.Device(network), false), inject(t, h1, h1.Device(network), true)

	for _, f := range hostileFrames() {
		t.Run(f.name, func(t *testing.T) {
			before := drops(t, h1.Socket())
			if err := tap.write(f.frame, header.VirtioNet{}); err != nil {
				t.Fatal(err)
			}
			dropped(t, h1.Socket(), before, tally{f.reason: 1})
		})
	}
	t.Run("larger than the path", func(t *testing.T) {
		// A tag does not count against the MTU of the interface.
		size := mtuOf(t, h1) - headersOf(h1.Overlay(network))
		f := frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: addr.MAC(hardware(t, h2, h2.Device(network))), VLANs: []uint16{7}, Payload: size}).Bytes()
		before := drops(t, h1.Socket())
		if err := tap.write(f, header.VirtioNet{}); err != nil {
			t.Fatal(err)
		}
		dropped(t, h1.Socket(), before, tally{"exceeds_path_mtu": 1})
	})
	t.Run("superframe of segments of one byte", func(t *testing.T) {
		o, f := frametest.TCP4(frametest.Opts{SrcMAC: frametest.MAC(666), DstMAC: frametest.MAC(667), Payload: 3000}).Offload(1)
		before := drops(t, h1.Socket())
		if err := super.write(f, o); err != nil {
			t.Fatal(err)
		}
		dropped(t, h1.Socket(), before, tally{"bad_offload": 1})
	})
	t.Run("shorter than Ethernet", func(t *testing.T) {
		before := drops(t, h1.Socket())
		if err := tap.write(make([]byte, 13), header.VirtioNet{}); !errors.Is(err, unix.EINVAL) {
			t.Fatalf("the kernel took a frame of 13 bytes: %v", err)
		}
		dropped(t, h1.Socket(), before, tally{})
	})
	t.Run("nobody to send it to", func(t *testing.T) {
		lone := inject(t, h1, "lone0", false)
		before := drops(t, h1.Socket())
		f := frametest.UDP4(frametest.Opts{Payload: 40}).Bytes()
		for range 5 {
			if err := lone.write(f, header.VirtioNet{}); err != nil {
				t.Fatal(err)
			}
		}
		dropped(t, h1.Socket(), before, tally{"no_peers": 5})
	})
	alive(t, h1, pid)
	if now := fdbOf(t, h1.Socket(), network); !slices.Equal(now, fdb) {
		t.Errorf("the FDB is now %q, was %q", now, fdb)
	}
	talk(t, h1, h2)
}
