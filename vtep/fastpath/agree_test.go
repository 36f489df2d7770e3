package fastpath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// odd returns frames that are unlike plain ones in some way, by what that is.
func odd() map[string][]byte {
	ip4 := func(edit ...func(*layers.IPv4)) *frametest.Builder {
		return frametest.Ethernet(frametest.MAC(2), frametest.MAC(1)).IPv4(frametest.IP4(1), frametest.IP4(2), edit...)
	}
	ip6 := func() *frametest.Builder {
		return frametest.Ethernet(frametest.MAC(2), frametest.MAC(1)).IPv6(frametest.IP6(1), frametest.IP6(2))
	}
	o := frametest.Opts{Payload: 32}
	m := map[string][]byte{
		"ARP":                     frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)).Bytes(),
		"neighbor solicitation":   frametest.NeighborSol(frametest.MAC(1), frametest.IP6(1), frametest.IP6(2)).Bytes(),
		"ICMP unreachable":        ip4().ICMP(3, 1, 0, 0).Payload(32).Bytes(),
		"ICMPv6 packet too big":   ip6().ICMPv6(2, 0).Payload(32).Bytes(),
		"tag":                     frametest.TCP4(frametest.Opts{VLANs: []uint16{5}}).Bytes(),
		"two tags":                frametest.UDP6(frametest.Opts{VLANs: []uint16{5, 6}}).Bytes(),
		"first fragment":          ip4(func(l *layers.IPv4) { l.Flags = layers.IPv4MoreFragments }).UDP(1, 2).Payload(32).Bytes(),
		"last fragment":           ip4(func(l *layers.IPv4) { l.Flags, l.FragOffset = 0, 4 }).UDP(1, 2).Payload(32).Bytes(),
		"reserved flag":           ip4(func(l *layers.IPv4) { l.Flags = layers.IPv4EvilBit }).UDP(1, 2).Payload(32).Bytes(),
		"IPv6 fragment":           ip6().Fragment6(0, true, 7).UDP(1, 2).Payload(32).Bytes(),
		"IPv6 atomic fragment":    ip6().Fragment6(0, false, 7).UDP(1, 2).Payload(32).Bytes(),
		"hop-by-hop options":      ip6().Extension(header.ProtoHopByHop, nil).TCP(1, 2).Bytes(),
		"destination options":     ip6().Extension(header.ProtoDestOpts, nil).UDP(1, 2).Bytes(),
		"IPv4 options":            ip4(func(l *layers.IPv4) { l.Options = []layers.IPv4Option{{OptionType: 1, OptionLength: 1}} }).TCP(1, 2).Bytes(),
		"IPv4 options, UDP":       ip4(func(l *layers.IPv4) { l.Options = []layers.IPv4Option{{OptionType: 1, OptionLength: 1}} }).UDP(1, 2).Payload(32).Bytes(),
		"GRE":                     ip4(func(l *layers.IPv4) { l.Protocol = layers.IPProtocolGRE }).Payload(32).Bytes(),
		"SCTP, IPv6":              proto6(header.ProtoUDP+115, 32),
		"UDP-Lite, IPv6":          proto6(136, 32),
		"ICMPv6 in IPv4":          ip4(func(l *layers.IPv4) { l.Protocol = layers.IPProtocolICMPv6 }).Data([]byte{header.ICMPv6Echo, 0, 0, 0}).Bytes(),
		"ICMP in IPv6":            append(proto6(header.ProtoICMP, 0), header.ICMPEcho, 0, 0, 0),
		"IPv6 says IPv4":          versionOf(frametest.TCP6(o).Bytes(), 4),
		"IPv4 says IPv6":          versionOf(frametest.TCP4(o).Bytes(), 6),
		"TCP header too short":    tcpOffset(frametest.TCP4(o).Bytes(), 4),
		"TCP header past the end": tcpOffset(frametest.TCP4(frametest.Opts{}).Bytes(), 15),
		"padded":                  append(frametest.TCP4(frametest.Opts{}).Bytes(), make([]byte, 6)...),
		"IPv6 padded":             append(frametest.UDP6(frametest.Opts{}).Bytes(), 0),
		"long":                    frametest.TCP4(frametest.Opts{Payload: 2500}).Bytes(),
		"all congestion bits":     frametest.TCP6(frametest.Opts{TOS: 0xff}).Bytes(),
	}
	for name, options := range synOptions() {
		m["SYN with "+name] = frametest.TCP4(frametest.Opts{Flags: header.TCPSyn, Options: options}).Bytes()
		m["SYN over IPv6 with "+name] = frametest.TCP6(frametest.Opts{Flags: header.TCPSyn | header.TCPAck, Options: options}).Bytes()
	}
	for _, p := range []uint16{port, dhcp4, dhcp6, dhcp4 - 1, dhcp6 + 1, port >> 8, port&0xff<<8 | port>>8} {
		m[fmt.Sprint("UDP to port ", p)] = frametest.UDP4(frametest.Opts{DstPort: p, Payload: 9}).Bytes()
		m[fmt.Sprint("UDP over IPv6 to port ", p)] = frametest.UDP6(frametest.Opts{DstPort: p, Payload: 9}).Bytes()
		m[fmt.Sprint("UDP from port ", p)] = frametest.UDP6(frametest.Opts{SrcPort: p, Payload: 9}).Bytes()
		m[fmt.Sprint("TCP to port ", p)] = frametest.TCP6(frametest.Opts{DstPort: p, Payload: 9}).Bytes()
	}
	for _, s := range plain(o) {
		m[s.name] = s.frame
	}
	return m
}

// synOptions are lists of options by what they are.
func synOptions() map[string][]layers.TCPOption {
	return map[string][]layers.TCPOption{
		"no options":        nil,
		"the MSS first":     {frametest.MSS(1300), frametest.Nop(), frametest.Nop(), frametest.Timestamps(1, 0)},
		"the MSS last":      {frametest.Nop(), frametest.Nop(), frametest.Timestamps(1, 0), frametest.MSS(1300)},
		"no MSS":            {frametest.Nop(), frametest.Nop(), frametest.Timestamps(1, 0)},
		"an MSS too large":  {frametest.MSS(1401)},
		"an MSS that fits":  {frametest.MSS(1400)},
		"the MSS after one": {frametest.Nop(), frametest.Nop(), frametest.Nop(), frametest.Nop(), frametest.MSS(1300)},
	}
}

func proto6(proto uint8, payload int) []byte {
	b := frametest.Ethernet(frametest.MAC(2), frametest.MAC(1)).IPv6(frametest.IP6(1), frametest.IP6(2)).Payload(payload).Bytes()
	binary.BigEndian.PutUint16(b[12:], header.EtherTypeIPv6)
	b[header.EthernetLen+6] = proto
	return b
}

func versionOf(b []byte, v byte) []byte {
	b[header.EthernetLen] = v<<4 | b[header.EthernetLen]&0xf
	return b
}

func tcpOffset(b []byte, words byte) []byte {
	b[header.EthernetLen+header.IPv4MinLen+12] = words << 4
	return b
}

// agreeLeaving runs the program of a TAP on a frame that has no entry, and returns how it and Leaving disagree on whether
// and where that is counted.
func (r *rig) agreeLeaving(b []byte) error {
	_, hash, ok := r.Leaving(outlet, b)
	want := map[uint32]uint64{}
	if ok {
		want[gateOf(hash)] = 1
		var p frame.Parsed
		if fault := p.Parse(b); fault == frame.Sound && p.FlowHash(b) != hash {
			return fmt.Errorf("the hash is %#x, that of the slow path %#x", hash, p.FlowHash(b))
		}
	}
	if !runs(b) {
		if ok {
			return fmt.Errorf("there is no packet")
		}
		return nil
	}
	got := r.leaves(b, 0)
	return got.untouched(b, want)
}

// runs reports whether the kernel runs a program on a frame that is on no device, which it does not if that lacks its IP
// header. The programs leave those alone.
func runs(b []byte) bool {
	least := header.EthernetLen + 1
	if len(b) >= header.EthernetLen {
		switch binary.BigEndian.Uint16(b[12:]) {
		case header.EtherTypeIPv4:
			least = header.EthernetLen + header.IPv4MinLen
		case header.EtherTypeIPv6:
			least = header.EthernetLen + header.IPv6Len
		}
	}
	return len(b) >= least
}

// agreeArriving runs the program of an underlay device on a datagram with this payload that has no entry, and returns how
// it and ArrivedDone disagree.
func (r *rig) agreeArriving(payload []byte, from uint16) error {
	want := map[uint32]uint64{}
	if len(payload) >= header.VXLANLen+header.EthernetLen && header.VXLAN(payload).ValidVNI() {
		want[gateOf(outerHash(there4, from))] = uint64(len(payload))
	}
	b := carryData(payload, from)
	got := r.arrives(b, 0)
	if err := got.untouched(b, want); err != nil {
		return err
	}
	r.ArrivedDone(there4, from, payload)
	if g, is := closed(&r.arriveGates); is {
		r.reopen()
		return fmt.Errorf("gate %d stays closed", g)
	}
	r.Arriving(there4, here4, payload) // whatever it is
	return nil
}

// agree is both, with the frame as the one that leaves and in what arrives.
func (r *rig) agree(b []byte) error {
	if err := r.agreeLeaving(b); err != nil {
		return fmt.Errorf("leaving: %w", err)
	}
	if err := r.agreeArriving(append([]byte{8, 0, 0, 0, 1, 2, 3, 0}, b...), source); err != nil {
		return fmt.Errorf("arriving: %w", err)
	}
	return nil
}

// TestAgree runs the programs on frames of all kinds, whole and cut off at every place, and looks that they and this process
// count the same ones at the same gates. A flow of which they do not waits at its gate.
func TestAgree(t *testing.T) {
	r := newRig(t)
	for name, b := range odd() {
		for n := range min(len(b), 150) {
			if err := r.agree(b[:n:n]); err != nil {
				t.Fatalf("%s, the first %d of %d bytes: %v\n%x", name, n, len(b), err, b)
			}
		}
		if err := r.agree(b); err != nil {
			t.Fatalf("%s: %v\n%x", name, err, b)
		}
	}
}

// TestAgreeOnKind looks that nothing is left out of what may take the fast path, and nothing of what may not is in.
func TestAgreeOnKind(t *testing.T) {
	r := newRig(t)
	for _, s := range plain(frametest.Opts{Payload: 5}) {
		k, _, ok := r.Leaving(outlet, s.frame)
		if p := k.Pair(); !ok || k.Outlet != outlet || p.From != s.from || p.Src != frametest.MAC(1) || p.Dst != frametest.MAC(2) {
			t.Errorf("%s: leaving as %+v, %v", s.name, k, ok)
		}
		d := carry(s.frame)[header.EthernetLen+header.IPv4MinLen+header.UDPLen:]
		a, ok := r.Arriving(there4, here4, d)
		if p := a.Pair(); !ok || a.Network() != vni || p.From != s.from || p.Src != frametest.MAC(1) || p.Dst != frametest.MAC(2) ||
			a.Outer != there4.As4() || a.Local != here4.As4() {
			t.Errorf("%s: arriving as %+v, %v", s.name, a, ok)
		}
		six := netip.MustParseAddr("2001:db8::1")
		for _, pair := range [][2]netip.Addr{{six, here4}, {there4, six}} {
			if _, ok := r.Arriving(pair[0], pair[1], d); ok {
				t.Errorf("%s: arriving from %v at %v", s.name, pair[0], pair[1])
			}
		}
	}
	for _, name := range []string{
		"ARP", "neighbor solicitation", "ICMP unreachable", "ICMPv6 packet too big", "tag", "two tags", "first fragment",
		"last fragment", "IPv6 fragment", "IPv6 atomic fragment", "hop-by-hop options", "destination options", "IPv4 options",
		"IPv4 options, UDP", "GRE", "SCTP, IPv6", "UDP-Lite, IPv6", "IPv6 says IPv4", "IPv4 says IPv6",
		"TCP header too short", "UDP to port 4789", "UDP over IPv6 to port 4789", "UDP to port 68", "UDP over IPv6 to port 546",
	} {
		b := odd()[name]
		if b == nil {
			t.Fatalf("no sample is called %s", name)
		}
		_, _, leaving := r.Leaving(outlet, b)
		_, arriving := r.Arriving(there4, here4, append(make([]byte, header.VXLANLen), b...))
		if leaving || arriving {
			t.Errorf("%s: leaving %v, arriving %v", name, leaving, arriving)
		}
	}
}

// TestAgreeAnyhow is TestAgree for frames with other addresses and ports, and with what errors and attackers make of them.
func TestAgreeAnyhow(t *testing.T) {
	r := newRig(t)
	all := odd()
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	rapid.Check(t, func(t *rapid.T) {
		b := append([]byte(nil), all[rapid.SampledFrom(names).Draw(t, "sample")]...)
		if rapid.Bool().Draw(t, "other addresses and ports") {
			// Behind Ethernet's header and what says how long and what it is; for IPv6 the ports too.
			for i := header.EthernetLen + 12; i < min(len(b), header.EthernetLen+24); i++ {
				b[i] = rapid.Byte().Draw(t, "byte")
			}
		}
		for range rapid.IntRange(0, 4).Draw(t, "changes") {
			b[rapid.IntRange(0, min(len(b), 80)-1).Draw(t, "place")] = rapid.Byte().Draw(t, "value")
		}
		switch n := rapid.IntRange(-40, 20).Draw(t, "longer"); {
		case n > 0:
			b = append(b, make([]byte, n)...)
		case n < 0:
			b = b[:max(0, len(b)+n)]
		}
		if err := r.agreeLeaving(b); err != nil {
			t.Fatalf("leaving: %v\n%x", err, b)
		}
		v := rapid.SliceOfN(rapid.Byte(), header.VXLANLen, header.VXLANLen).Draw(t, "VXLAN")
		if err := r.agreeArriving(append(v, b...), rapid.Uint16().Draw(t, "port")); err != nil {
			t.Fatalf("arriving: %v\n%x", err, b)
		}
	})
}

// TestFindsEntry looks that the programs look up the entry that this process has named: the fast path is closed otherwise.
func TestFindsEntry(t *testing.T) {
	r := newRig(t)
	rapid.Check(t, func(t *rapid.T) {
		r.t = t
		o := frametest.Opts{
			SrcPort: rapid.Uint16Range(1, 65535).Draw(t, "from"), DstPort: rapid.Uint16Range(1, 60).Draw(t, "to"),
			SrcMAC: frametest.MAC(rapid.Uint16().Draw(t, "source")), DstMAC: frametest.MAC(rapid.Uint16().Draw(t, "destination")),
			Payload: rapid.IntRange(0, 900).Draw(t, "payload"), TOS: rapid.Byte().Draw(t, "class"),
		}
		for _, s := range plain(o) {
			k, _, ok := r.Leaving(outlet, s.frame)
			slot := r.slot()
			if err := r.SetLeave(k, slot, way(), roomy); !ok || err != nil {
				t.Fatalf("%s: %v, %v", s.name, ok, err)
			}
			r.reopen()
			got := r.leaves(s.frame, 0)
			if err := got.sent(nil); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			b := carry(s.frame, func(l *layers.IPv4) { l.TOS = o.TOS & 3 })
			back, ok := r.Arriving(there4, here4, b[header.EthernetLen+header.IPv4MinLen+header.UDPLen:])
			if err := r.SetArrive(back, slot, Target{Device: 1}, roomy); !ok || err != nil {
				t.Fatalf("%s: %v, %v", s.name, ok, err)
			}
			got = r.arrives(b, 0)
			if err := got.sent(s.frame); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			r.must(r.UnsetLeave(k))
			r.must(r.UnsetArrive(back))
			r.FreeSlot(slot)
		}
	})
}

// FuzzAgree takes any bytes for a frame, and for what a datagram holds.
func FuzzAgree(f *testing.F) {
	for _, b := range odd() {
		f.Add(b)
	}
	r := newRig(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 3000 {
			t.Skip("the kernel runs no program on so much")
		}
		r.t = t
		if err := r.agreeLeaving(b); err != nil {
			t.Fatalf("leaving: %v", err)
		}
		if err := r.agreeArriving(b, source); err != nil {
			t.Fatalf("arriving: %v", err)
		}
		if err := r.agreeArriving(append([]byte{8, 0, 0, 0, 1, 2, 3, 0}, b...), source); err != nil {
			t.Fatalf("arriving in VXLAN: %v", err)
		}
	})
}
