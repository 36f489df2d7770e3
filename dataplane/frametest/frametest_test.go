package frametest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
)

// samples is one frame of each kind that the package builds.
func samples() map[string]*Builder {
	return map[string]*Builder{
		"tcp4":          TCP4(Opts{Payload: 100, Options: []layers.TCPOption{Nop(), Nop(), Timestamps(1, 2)}}),
		"tcp4 empty":    TCP4(Opts{}),
		"tcp4 odd":      TCP4(Opts{Payload: 1399}),
		"tcp4 syn":      TCP4(Opts{Flags: header.TCPSyn, Options: []layers.TCPOption{MSS(1460)}}),
		"tcp4 vlan":     TCP4(Opts{VLANs: []uint16{7}, Payload: 9}),
		"tcp4 largest":  TCP4(Opts{Payload: 65535 - 40}),
		"tcp6":          TCP6(Opts{Payload: 101}),
		"tcp6 qinq":     Ethernet(MAC(2), MAC(1)).QinQ(5).VLAN(6).IPv6(IP6(1), IP6(2)).TCP(1, 2).Payload(33),
		"tcp6 hopopts":  Ethernet(MAC(2), MAC(1)).IPv6(IP6(1), IP6(2)).Extension(header.ProtoHopByHop, []byte{5, 2, 0, 0, 1, 0}).Extension(header.ProtoDestOpts, nil).TCP(1, 2).Payload(33),
		"tcp6 atomic":   Ethernet(MAC(2), MAC(1)).IPv6(IP6(1), IP6(2)).Fragment6(0, false, 7).TCP(1, 2).Payload(33),
		"udp6 fragment": Ethernet(MAC(2), MAC(1)).IPv6(IP6(1), IP6(2)).Fragment6(1232, true, 7).Data(Pattern(1232)),
		"udp4":          UDP4(Opts{Payload: 1}),
		"udp6":          UDP6(Opts{Payload: 1452}),
		"ping4":         Ping4(Opts{Payload: 56}),
		"ping6":         Ping6(Opts{Payload: 56}),
		"arp request":   ARPRequest(MAC(1), IP4(1), IP4(2)),
		"arp reply":     ARPReply(MAC(2), IP4(2), MAC(1), IP4(1)),
		"ns":            NeighborSol(MAC(1), IP6(1), IP6(2)),
		"ns dad":        NeighborSol(MAC(1), netip.IPv6Unspecified(), IP6(2)),
		"na":            NeighborAdv(MAC(2), IP6(2), MAC(1), IP6(1), IP6(2), header.NDFlagSolicited|header.NDFlagOverride),
		"vxlan4":        Ethernet(MAC(2), MAC(1)).IPv4(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")).UDP(50000, 4789).VXLAN(42).InnerEthernet(MAC(4), MAC(3)).IPv6(IP6(3), IP6(4)).TCP(9, 10).Payload(77),
	}
}

func TestSamplesVerify(t *testing.T) {
	for name, b := range samples() {
		if _, err := Verify(b.Bytes()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(b.Bytes(), b.Bytes()) {
			t.Errorf("%s: built twice, the frames differ", name)
		}
	}
}

// A frame with any bit of a checked part turned over must not verify.
func TestVerifySeesDamage(t *testing.T) {
	for name, b := range samples() {
		frame := b.Bytes()
		p, err := Verify(frame)
		if err != nil {
			t.Fatal(err)
		}
		if p.IPv4 == nil && p.IPv6 == nil || p.Fragment {
			continue
		}
		l3 := header.EthernetLen + header.VLANLen*len(p.VLANs)
		for i := l3; i < len(frame); i += max(1, len(frame)/200) {
			for bit := range 8 {
				if p.IPv6 != nil && i-l3 < 8 && (i-l3 < 4 || i-l3 == 7) {
					continue // traffic class, flow label, hop limit: under no checksum
				}
				if len(p.Extensions) > 0 && (i-l3 == 6 || i-l3 >= 40 && i-l3 < 40+len(p.Extensions)*8) {
					continue // the chain of extension headers: likewise
				}
				frame[i] ^= 1 << bit
				q, err := Verify(frame)
				// What is no longer TCP, UDP or ICMP has no checksum that could be wrong.
				lost := err == nil && (q.Fragment || q.TCP == nil && q.UDP == nil && q.ICMP == nil && q.ICMPv6 == nil)
				if err == nil && !lost {
					t.Errorf("%s: verifies with bit %d of byte %d turned over", name, bit, i)
				}
				frame[i] ^= 1 << bit
			}
		}
	}
}

func TestVerifySeesLengths(t *testing.T) {
	for name, b := range samples() {
		frame := b.Bytes()
		for _, n := range []int{0, 13, 14, 20, len(frame) / 2, len(frame) - 1} {
			if n >= len(frame) {
				continue
			}
			if p, err := Verify(frame[:n]); err == nil && (p.IPv4 != nil || p.IPv6 != nil || p.ARP != nil) {
				t.Errorf("%s: verifies when cut to %d of %d bytes", name, n, len(frame))
			}
		}
		if len(frame) > minFrame+8 {
			if _, err := Verify(append(frame, 0)); err == nil {
				t.Errorf("%s: verifies with a byte behind it", name)
			}
		} else if len(frame) < minFrame {
			if _, err := Verify(append(frame, make([]byte, minFrame-len(frame))...)); err != nil {
				t.Errorf("%s: padded to %d bytes: %v", name, minFrame, err)
			}
		}
	}
}

// A whole decode by gopacket, chained by itself, must come to the layers that were asked for.
func TestLayersAreJoined(t *testing.T) {
	frame := Ethernet(MAC(2), MAC(1)).QinQ(5).VLAN(6).IPv6(IP6(1), IP6(2)).Extension(header.ProtoHopByHop, []byte{5, 2, 0, 0, 1, 0}).UDP(50000, 4789).VXLAN(42).
		InnerEthernet(MAC(4), MAC(3)).VLAN(7).IPv4(IP4(1), IP4(2)).TCP(1, 2).Payload(5).Bytes()
	var got []string
	pkt := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	for _, l := range pkt.Layers() {
		got = append(got, l.LayerType().String())
	}
	want := "Ethernet Dot1Q Dot1Q IPv6 IPv6HopByHop UDP VXLAN Ethernet Dot1Q IPv4 TCP Payload"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("layers %s, want %s", s, want)
	}
	outer, inner := CheckVXLAN(t, frame, 42)
	if len(outer.VLANs) != 2 || outer.VLANs[0].VLANIdentifier != 5 || len(inner.VLANs) != 1 || !bytes.Equal(inner.Payload, Pattern(5)) {
		t.Errorf("outer tags %v, inner tags %v, payload % x", outer.VLANs, inner.VLANs, inner.Payload)
	}
}

func TestDatagramIsStrict(t *testing.T) {
	good := []byte{8, 0, 0, 0, 0, 0, 42, 0, 1, 2, 3}
	if vni, p, err := Datagram(good); err != nil || vni != 42 || len(p) != 3 {
		t.Errorf("Datagram = %v, % x, %v", vni, p, err)
	}
	for _, i := range []int{0, 1, 2, 3, 7} {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, _, err := Datagram(bad); err == nil {
			t.Errorf("no error with byte %d turned over", i)
		}
	}
	if _, _, err := Datagram(good[:7]); err == nil {
		t.Error("no error for 7 bytes")
	}
}

func TestOffload(t *testing.T) {
	for _, c := range []struct {
		name string
		b    *Builder
		size int
		want header.VirtioNet
	}{
		{"tcp4", TCP4(Opts{Payload: 60000}), 1448, header.VirtioNet{Flags: 1, GSOType: header.GSOTCPv4, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}},
		{"tcp6 cwr", TCP6(Opts{Payload: 3000, VLANs: []uint16{3}, Flags: header.TCPAck | header.TCPCwr}), 1400, header.VirtioNet{Flags: 1, GSOType: header.GSOTCPv6 | header.GSOECN, HdrLen: 78, GSOSize: 1400, CsumStart: 58, CsumOffset: 16}},
		{"udp4", UDP4(Opts{Payload: 3000}), 1000, header.VirtioNet{Flags: 1, GSOType: header.GSOUDPL4, HdrLen: 42, GSOSize: 1000, CsumStart: 34, CsumOffset: 6}},
		{"udp6 plain", UDP6(Opts{Payload: 3}), 0, header.VirtioNet{Flags: 1, CsumStart: 54, CsumOffset: 6}},
	} {
		h, frame := c.b.Offload(c.size)
		if h != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, h, c.want)
		}
		CheckPartial(t, frame)
		if _, err := Verify(frame); err == nil {
			t.Errorf("%s: a partial checksum verifies", c.name)
		}
		// Completed as the virtio specification says, the frame is right.
		sum := ^plainSum(frame[h.CsumStart:], 0)
		binary.BigEndian.PutUint16(frame[h.CsumStart+h.CsumOffset:], sum)
		Check(t, frame)
	}
}

func TestSegments(t *testing.T) {
	const flags = header.TCPAck | header.TCPPsh | header.TCPFin | header.TCPCwr
	for name, b := range map[string]*Builder{
		"tcp4":     TCP4(Opts{Seq: 0xfffff000, Payload: 10000, Flags: flags, VLANs: []uint16{9}, TOS: 2, Options: []layers.TCPOption{Nop(), Nop(), Timestamps(1, 2)}}),
		"tcp6":     TCP6(Opts{Payload: 9800, Flags: flags}),
		"tcp6 ext": Ethernet(MAC(2), MAC(1)).IPv6(IP6(1), IP6(2)).Extension(header.ProtoDestOpts, nil).TCP(1, 2, TCPFlags(flags)).Payload(9000),
		"udp4":     UDP4(Opts{Payload: 4001}),
		"udp6":     UDP6(Opts{Payload: 4001}),
	} {
		_, frame := b.Offload(1400)
		whole := CheckPartial(t, frame)
		segs, err := Segments(frame, 1400)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := (len(whole.Payload) + 1399) / 1400; len(segs) != want {
			t.Fatalf("%s: %d segments, want %d", name, len(segs), want)
		}
		var joined []byte
		for i, s := range segs {
			p := Check(t, s)
			if fmt.Sprint(p.VLANs != nil, len(p.Extensions)) != fmt.Sprint(whole.VLANs != nil, len(whole.Extensions)) {
				t.Errorf("%s: segment %d lost tags or extension headers", name, i)
			}
			if p.IPv4 != nil && p.IPv4.Id != whole.IPv4.Id+uint16(i) {
				t.Errorf("%s: segment %d has identification %#x", name, i, p.IPv4.Id)
			}
			if p.TCP != nil {
				first, last := i == 0, i == len(segs)-1
				if p.TCP.Seq != whole.TCP.Seq+uint32(len(joined)) || p.TCP.CWR != first || p.TCP.FIN != last || p.TCP.PSH != last || !p.TCP.ACK {
					t.Errorf("%s: segment %d: %+v", name, i, p.TCP)
				}
				if len(p.TCP.Options) != len(whole.TCP.Options) {
					t.Errorf("%s: segment %d has options %v", name, i, p.TCP.Options)
				}
			}
			joined = append(joined, p.Payload...)
		}
		if !bytes.Equal(joined, whole.Payload) {
			t.Errorf("%s: the payloads do not make up the whole", name)
		}
	}
	if _, err := Segments(ARPRequest(MAC(1), IP4(1), IP4(2)).Bytes(), 100); err == nil {
		t.Error("ARP was split")
	}
}

// What stands behind an end of the list of TCP options stays as it is.
func TestSegmentsKeepAllOptions(t *testing.T) {
	const at = header.EthernetLen + header.IPv4MinLen + header.TCPMinLen
	frame := TCP4(Opts{Payload: 100, Options: []layers.TCPOption{Timestamps(1, 2), MSS(1000)}}).Bytes()
	frame[at] = 0 // in place of the timestamps' kind
	segs, err := Segments(frame, 60)
	if err != nil || len(segs) != 2 {
		t.Fatalf("%d segments, %v", len(segs), err)
	}
	for i, s := range segs {
		if Check(t, s); !bytes.Equal(s[at:at+16], frame[at:at+16]) {
			t.Errorf("segment %d has the options % x, want % x", i, s[at:at+16], frame[at:at+16])
		}
	}
}

// A UDP checksum that computes to zero is sent as all ones. The two bytes of payload are chosen so.
func TestUDPChecksumZero(t *testing.T) {
	frame := UDP4(Opts{Data: []byte{0, 0}}).Bytes()
	sum := header.UDP(frame[34:]).Checksum()
	frame = UDP4(Opts{Data: binary.BigEndian.AppendUint16(nil, sum)}).Bytes()
	if got := header.UDP(frame[34:]).Checksum(); got != 0xffff {
		t.Errorf("checksum %#04x, want 0xffff", got)
	}
	Check(t, frame)
}

func TestBuilderPanics(t *testing.T) {
	for name, build := range map[string]func(){
		"payload too long for IPv4": func() { TCP4(Opts{Payload: 65535 - 39}).Bytes() },
		"payload too long for IPv6": func() { TCP6(Opts{Payload: 65535 - 19}).Bytes() },
		"IPv6 address in IPv4":      func() { TCP4(Opts{Src: IP6(1)}).Bytes() },
		"TCP on Ethernet":           func() { Ethernet(MAC(1), MAC(2)).TCP(1, 2).Bytes() },
		"offloaded ARP":             func() { ARPRequest(MAC(1), IP4(1), IP4(2)).Offload(0) },
		"odd fragment offset":       func() { Ethernet(MAC(1), MAC(2)).IPv6(IP6(1), IP6(2)).Fragment6(7, true, 1).Bytes() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			build()
		}()
	}
}

func TestStations(t *testing.T) {
	if MAC(0x102) != (addr.MAC{2, 0, 0, 0, 1, 2}) || IP4(0x102).String() != "10.42.1.2" || IP6(0x102).String() != "fd42::102" {
		t.Error(MAC(0x102), IP4(0x102), IP6(0x102))
	}
}
