package header_test

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// optionSeeds are lists of options, good and bad.
func optionSeeds(f *testing.F) {
	for _, s := range [][]byte{
		{}, {0}, {1}, {2}, {2, 0}, {2, 1}, {2, 2}, {2, 4, 5, 0xb4}, {1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2},
		{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}, {5, 18, 1, 1}, {131, 7, 4, 10, 0, 0, 1, 0}, {148, 4, 0, 0},
		{7, 255, 4}, bytes.Repeat([]byte{1}, 40), bytes.Repeat([]byte{254, 2}, 20), {0, 255, 255},
	} {
		f.Add(s)
	}
}

// FuzzOptions walks any bytes as the options of TCP and of IPv4, and holds the walk to its word: options lie in the
// list one behind the other, what lies between is padding, and a walk that says that all is well has come to an end
// of list.
func FuzzOptions(f *testing.F) {
	optionSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), 40)&^3]
		h := tcpWith(b)
		o := h.OptionList()
		at := 0
		for o.Next() {
			if !bytes.Equal(b[at:o.Offset()], bytes.Repeat([]byte{header.OptionNop}, o.Offset()-at)) {
				t.Fatalf("% x: option at %d, behind % x", b, o.Offset(), b[at:o.Offset()])
			}
			at = o.Offset()
			if o.Kind() != b[at] || o.Kind() <= header.OptionNop || int(b[at+1]) != len(o.Data())+2 || !bytes.Equal(o.Data(), b[at+2:at+int(b[at+1])]) {
				t.Fatalf("% x: option at %d has kind %d and data % x", b, at, o.Kind(), o.Data())
			}
			at += len(o.Data()) + 2
		}
		rest := bytes.TrimLeft(b[at:], "\x01")
		wellEnded := len(rest) == 0 || rest[0] == header.OptionEnd
		if o.Malformed() == wellEnded {
			t.Fatalf("% x: malformed is %v, but what is left is % x", b, o.Malformed(), rest)
		}
		tcp, tcpOK := collect(h.WalkOptions)
		ip, ipOK := collect(ipv4With(b).WalkOptions)
		if tcpOK != wellEnded || ipOK != wellEnded || len(tcp) != len(ip) {
			t.Fatalf("% x: TCP %v %v, IPv4 %v %v", b, tcp, tcpOK, ip, ipOK)
		}
	})
}

func FuzzNDOptions(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 1, 2, 0, 0, 0, 0, 1})
	f.Add([]byte{1, 0, 2, 0, 0, 0, 0, 1})
	f.Add([]byte{2, 2, 2, 0, 0, 0, 0, 1})
	f.Add([]byte{5, 1, 0, 0, 0, 0, 5, 0xdc, 1, 1, 2, 0, 0, 0, 0, 1, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		h := header.NDNeighbor(append(make([]byte, header.NDNeighborLen), b...))
		at := 0
		o := h.OptionList()
		for o.Next() {
			n := int(b[at+1]) * 8
			if n == 0 || o.Kind() != b[at] || !bytes.Equal(o.Data(), b[at+2:at+n]) || o.LinkAddr() != [6]byte(o.Data()[:6]) {
				t.Fatalf("% x: option at %d has kind %d and data % x", b, at, o.Kind(), o.Data())
			}
			at += n
		}
		if o.Malformed() != (at != len(b)) {
			t.Fatalf("% x: malformed is %v with %d bytes left", b, o.Malformed(), len(b)-at)
		}
		if _, ok := collect(h.WalkOptions); ok == o.Malformed() {
			t.Fatalf("% x: WalkOptions says %v", b, ok)
		}
		// gopacket takes the message if it is well formed.
		var g layers.ICMPv6NeighborSolicitation
		if err := g.DecodeFromBytes(h[4:], new(truncation)); err != nil && !o.Malformed() {
			t.Fatalf("% x: gopacket: %v", b, err)
		}
	})
}

type truncation bool

func (t *truncation) SetTruncated() { *t = true }

// FuzzVirtioNet decodes any header of any form and encodes it again: all bytes come back but those of hash and
// padding, which become zero.
func FuzzVirtioNet(f *testing.F) {
	f.Add(make([]byte, header.VirtioNetLen))
	f.Add([]byte{1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 1, 0})
	f.Add([]byte{1, 0x21, 104, 0, 0xa8, 5, 84, 0, 16, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 34, 0, 64, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		switch {
		case len(b) < header.VirtioNetLen:
			return
		case len(b) < header.VirtioNetMrgLen:
			b = b[:header.VirtioNetLen]
		case len(b) < header.VirtioNetTunnelLen:
			b = b[:header.VirtioNetMrgLen]
		default:
			b = b[:header.VirtioNetTunnelLen]
		}
		var h header.VirtioNet
		h.Decode(b)
		got := bytes.Repeat([]byte{0xee}, len(b))
		h.Encode(got)
		want := bytes.Clone(b)
		if len(b) == header.VirtioNetTunnelLen {
			clear(want[12:20])
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("% x became % x", b, got)
		}
	})
}

// FuzzViews reads every field of every view over any bytes that are long enough for its fixed part, writes them
// back, and expects the bytes unchanged: no accessor reads or writes outside its header, and no two disagree.
func FuzzViews(f *testing.F) {
	for _, b := range []*frametest.Builder{
		frametest.TCP4(frametest.Opts{Payload: 20}), frametest.UDP6(frametest.Opts{Payload: 20}), frametest.Ping4(frametest.Opts{Payload: 40}),
		frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)), frametest.NeighborSol(frametest.MAC(1), frametest.IP6(1), frametest.IP6(2)),
	} {
		f.Add(b.Bytes()[header.EthernetLen:])
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for name, v := range map[string]struct {
			n       int
			rewrite func([]byte)
		}{
			"Ethernet": {header.EthernetLen, func(b []byte) {
				h := header.Ethernet(b)
				h.SetDst(h.Dst())
				h.SetSrc(h.Src())
				h.SetEtherType(h.EtherType())
			}},
			"VLAN": {header.VLANLen, func(b []byte) {
				h := header.VLAN(b)
				h.SetPriority(h.Priority())
				h.SetDropEligible(h.DropEligible())
				h.SetID(h.ID())
				h.SetEtherType(h.EtherType())
			}},
			"ARP": {header.ARPLen, func(b []byte) {
				h := header.ARP(b)
				h.SetOp(h.Op())
				h.SetSenderMAC(h.SenderMAC())
				h.SetSenderIP(h.SenderIP())
				h.SetTargetMAC(h.TargetMAC())
				h.SetTargetIP(h.TargetIP())
			}},
			"IPv4": {header.IPv4MinLen, func(b []byte) {
				h := header.IPv4(b)
				b[6] &^= 0x80 // the reserved flag, which SetFlagsFragment clears
				h.SetTOS(h.TOS())
				h.SetTotalLen(h.TotalLen())
				h.SetID(h.ID())
				h.SetFlagsFragment(h.DontFragment(), h.MoreFragments(), h.FragmentOffset())
				h.SetTTL(h.TTL())
				h.SetProtocol(h.Protocol())
				h.SetChecksum(h.Checksum())
				h.SetSrc(h.Src())
				h.SetDst(h.Dst())
				if h.Version() == 4 {
					h.SetHeaderLen(h.HeaderLen())
				}
			}},
			"IPv6": {header.IPv6Len, func(b []byte) {
				h := header.IPv6(b)
				h.SetTrafficClass(h.TrafficClass())
				h.SetFlowLabel(h.FlowLabel())
				h.SetPayloadLen(h.PayloadLen())
				h.SetNextHeader(h.NextHeader())
				h.SetHopLimit(h.HopLimit())
				h.SetSrc(h.Src())
				h.SetDst(h.Dst())
			}},
			"ICMP": {header.ICMPLen, func(b []byte) {
				h := header.ICMP(b)
				h.SetType(h.Type())
				h.SetCode(h.Code())
				h.SetChecksum(h.Checksum())
				h.SetID(h.ID())
				h.SetSeq(h.Seq())
			}},
			"ICMPv6": {header.ICMPv6Len, func(b []byte) {
				h := header.ICMPv6(b)
				h.SetType(h.Type())
				h.SetCode(h.Code())
				h.SetChecksum(h.Checksum())
				h.SetMTU(h.MTU())
			}},
			"TCP": {header.TCPMinLen, func(b []byte) {
				h := header.TCP(b)
				h.SetSrcPort(h.SrcPort())
				h.SetDstPort(h.DstPort())
				h.SetSeq(h.Seq())
				h.SetAck(h.Ack())
				h.SetDataOffset(h.DataOffset())
				h.SetFlags(h.Flags())
				h.SetWindow(h.Window())
				h.SetChecksum(h.Checksum())
				h.SetUrgent(h.Urgent())
			}},
			"UDP": {header.UDPLen, func(b []byte) {
				h := header.UDP(b)
				h.SetSrcPort(h.SrcPort())
				h.SetDstPort(h.DstPort())
				h.SetLength(h.Length())
				h.SetChecksum(h.Checksum())
			}},
		} {
			if len(in) < v.n {
				continue
			}
			b := bytes.Clone(in[:v.n:v.n])
			v.rewrite(b)
			want := bytes.Clone(in[:v.n])
			if name == "IPv4" {
				want[6] &^= 0x80
			}
			if !bytes.Equal(b, want) {
				t.Fatalf("%s: % x became % x", name, want, b)
			}
		}
	})
}
