package interop

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/bench/capture"
	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

var (
	wireA = netip.MustParseAddr("192.0.2.1")
	wireB = netip.MustParseAddr("198.51.100.1")
)

// sample is a good packet: IPv4, UDP, VXLAN, IPv4, UDP with 600 bytes.
func sample(edit ...func(*layers.IPv4)) []byte {
	return frametest.Ethernet(frametest.MAC(8), frametest.MAC(9)).IPv4(wireA, wireB, edit...).UDP(50000, header.VXLANPort).
		VXLAN(vni).InnerEthernet(frametest.MAC(2), frametest.MAC(1)).IPv4(frametest.IP4(1), frametest.IP4(2)).UDP(4000, 4001).Payload(600).Bytes()
}

// Offsets into what sample returns.
const (
	outerIP    = header.EthernetLen
	outerUDP   = outerIP + header.IPv4MinLen
	outerVXLAN = outerUDP + header.UDPLen
	innerFrame = outerVXLAN + header.VXLANLen
	innerIP    = innerFrame + header.EthernetLen
	innerUDP   = innerIP + header.IPv4MinLen
)

// resum makes the outer UDP checksum right again after a change to what is behind it.
func resum(b []byte) []byte {
	binary.BigEndian.PutUint16(b[outerUDP+header.UDPChecksumOffset:], pseudo(b, outerIP, len(b)-outerUDP))
	if err := finish(b, outerUDP, header.UDPChecksumOffset); err != nil {
		panic(err)
	}
	return b
}

// pseudo is the sum of the pseudo-header of the UDP packet in IPv4 at b[ip:], of length bytes.
func pseudo(b []byte, ip, length int) uint16 {
	h := append(bytes.Clone(b[ip+12:ip+20]), 0, header.ProtoUDP, byte(length>>8), byte(length))
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// TestWireSees breaks one thing after the other and looks that the wire complains of just that.
func TestWireSees(t *testing.T) {
	needsCsum := header.VirtioNet{Flags: header.VirtioFlagNeedsCsum, CsumStart: outerUDP, CsumOffset: header.UDPChecksumOffset}
	// train is two datagrams in one packet, the first of size bytes.
	train := func(size int) []byte {
		inner := sample()[outerVXLAN:]
		return frametest.Ethernet(frametest.MAC(8), frametest.MAC(9)).IPv4(wireA, wireB).UDP(50000, header.VXLANPort).
			Data(append(bytes.Clone(inner[:size]), inner...)).Bytes()
	}
	full := len(sample()) - outerVXLAN
	super := func(flags uint8, gsoSize int) *capture.Packet {
		f := frametest.Ethernet(frametest.MAC(8), frametest.MAC(9)).IPv4(wireA, wireB).UDP(50000, header.VXLANPort).
			VXLAN(vni).InnerEthernet(frametest.MAC(2), frametest.MAC(1)).IPv4(frametest.IP4(1), frametest.IP4(2)).TCP(4000, 80).Payload(5000)
		o, b := f.Offload(gsoSize)
		binary.BigEndian.PutUint16(b[outerUDP+header.UDPChecksumOffset:], pseudo(b, outerIP, len(b)-outerUDP))
		o.Flags = flags
		return &capture.Packet{Data: b, Offload: o}
	}
	plain := func(b []byte) *capture.Packet { return &capture.Packet{Data: b} }
	set := func(at int, v byte, again bool) *capture.Packet {
		b := sample()
		b[at] = v
		if again {
			resum(b)
		}
		return plain(b)
	}
	for name, c := range map[string]struct {
		packet   *capture.Packet
		change   func(*wire) // what the wire expects, or has seen before
		want     string      // in the complaint; empty = none
		finished bool
	}{
		"good":                   {packet: plain(sample()), finished: true},
		"outer checksum":         {packet: set(outerUDP+7, 0x77, false), want: "outer: UDP: checksum"},
		"no outer checksum":      {packet: func() *capture.Packet { b := sample(); copy(b[outerUDP+6:], []byte{0, 0}); return plain(b) }(), want: "UDP checksum 0x0000"},
		"outer UDP length":       {packet: set(outerUDP+5, 3, false), want: "outer: UDP"},
		"outer IP length":        {packet: plain(append(sample(), 0)), want: "behind a total length"},
		"DF":                     {packet: plain(sample(func(l *layers.IPv4) { l.Flags = 0 })), want: "DF"},
		"fragment":               {packet: plain(sample(func(l *layers.IPv4) { l.Flags = layers.IPv4MoreFragments })), want: "fragment"},
		"TTL":                    {packet: plain(sample(func(l *layers.IPv4) { l.TTL = 63 })), want: "TTL"},
		"traffic class":          {packet: plain(sample(func(l *layers.IPv4) { l.TOS = 0x10 })), want: "traffic class"},
		"ECN":                    {packet: plain(sample(func(l *layers.IPv4) { l.TOS = 2 })), want: "outer ECN 2, inner 0"},
		"stranger":               {packet: plain(sample(func(l *layers.IPv4) { l.SrcIP = []byte{192, 0, 2, 9} })), want: "not two of the hosts"},
		"source port":            {packet: func() *capture.Packet { b := sample(); b[outerUDP] = 0x20; return plain(resum(b)) }(), want: "dynamic range"},
		"other port":             {packet: set(outerUDP+3, 0x34, true), want: "which nobody here speaks"},
		"another source port":    {packet: plain(sample()), want: "for the same flow", change: func(w *wire) { must(w.check(plain(sample()))); bump(w) }},
		"VXLAN flags":            {packet: set(outerVXLAN, 0x88, true), want: "VXLAN: header"},
		"VXLAN reserved":         {packet: set(outerVXLAN+7, 1, true), want: "VXLAN: header"},
		"VNI":                    {packet: set(outerVXLAN+6, 43, true), want: "VNI"},
		"inner length":           {packet: set(innerIP+3, 0xff, true), want: "inner: IPv4"},
		"inner header checksum":  {packet: set(innerIP+11, 0, true), want: "inner: IPv4: header checksum"},
		"inner checksum":         {packet: set(innerUDP+9, 0, true), want: "inner: UDP: checksum"},
		"outer left to do":       {packet: partial(needsCsum)},
		"though it has to be":    {packet: partial(needsCsum), finished: true, want: "no offloads"},
		"wrongly left to do":     {packet: func() *capture.Packet { p := partial(needsCsum); p.Data[outerUDP+6] ^= 1; return p }(), want: "outer: UDP: checksum"},
		"not said to be left":    {packet: func() *capture.Packet { p := partial(needsCsum); p.Offload = header.VirtioNet{}; return p }(), want: "outer: UDP: checksum"},
		"larger than the link":   {packet: plain(sample()), want: "on a link of 600", change: func(w *wire) { w.senders[wireA] = sender{kind: lab.Overlayd, mtu: 600, entropy: true, checksum: true} }},
		"train":                  {packet: &capture.Packet{Data: train(full), Offload: header.VirtioNet{GSOType: header.GSOUDPL4, GSOSize: uint16(full)}}},
		"train of wrong stride":  {packet: &capture.Packet{Data: train(full), Offload: header.VirtioNet{GSOType: header.GSOUDPL4, GSOSize: uint16(full - 1)}}, want: "in a train"},
		"train of wrong parts":   {packet: &capture.Packet{Data: train(full - 1), Offload: header.VirtioNet{GSOType: header.GSOUDPL4, GSOSize: uint16(full)}}, want: "in a train"},
		"train over the link":    {packet: &capture.Packet{Data: train(full), Offload: header.VirtioNet{GSOType: header.GSOUDPL4, GSOSize: 1473}}, want: "train whose IP packets have 1501 bytes"},
		"superframe":             {packet: super(header.VirtioFlagNeedsCsum, 1398)},
		"superframe over link":   {packet: super(header.VirtioFlagNeedsCsum, 1411), want: "superframe whose IP packets have 1501 bytes"},
		"superframe not partial": {packet: super(0, 1398), want: "inner: TCP: checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWire(c.finished)
			for _, a := range []netip.Addr{wireA, wireB} {
				w.senders[a] = sender{kind: lab.Overlayd, mtu: 1500, entropy: true, checksum: true}
			}
			if c.change != nil {
				c.change(w)
			}
			err := w.check(c.packet)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// partial is a good packet whose outer checksum is only begun.
func partial(o header.VirtioNet) *capture.Packet {
	b := sample()
	binary.BigEndian.PutUint16(b[outerUDP+header.UDPChecksumOffset:], pseudo(b, outerIP, len(b)-outerUDP))
	return &capture.Packet{Data: b, Offload: o}
}

// bump makes the wire believe that all flows had another source port.
func bump(w *wire) {
	for f := range w.ports {
		w.ports[f]++
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
