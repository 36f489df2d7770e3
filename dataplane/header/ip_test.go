package header_test

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

func TestIPv4(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.IPv4MaxLen)
		for i := header.IPv4MinLen; i < len(b); i++ {
			b[i] = header.OptionNop
		}
		headerLen := rapid.IntRange(header.IPv4MinLen/4, header.IPv4MaxLen/4).Draw(t, "header words") * 4
		tos, ttl, proto := rapid.Byte().Draw(t, "tos"), rapid.Byte().Draw(t, "ttl"), rapid.Byte().Draw(t, "proto")
		id := rapid.Uint16().Draw(t, "id")
		df, mf := rapid.Bool().Draw(t, "df"), rapid.Bool().Draw(t, "mf")
		offset := rapid.IntRange(0, 8191).Draw(t, "offset") * 8
		src, dst := genIP4(t, "src"), genIP4(t, "dst")

		h := header.IPv4(b)
		h.SetHeaderLen(headerLen)
		h.SetTOS(tos)
		h.SetTotalLen(header.IPv4MaxLen)
		h.SetID(id)
		h.SetFlagsFragment(df, mf, offset)
		h.SetTTL(ttl)
		h.SetProtocol(proto)
		h.SetSrc(src)
		h.SetDst(dst)
		h.UpdateChecksum()

		equal(t, h.Version(), uint8(4), h.HeaderLen(), headerLen, h.TOS(), tos, h.TotalLen(), uint16(header.IPv4MaxLen), h.ID(), id,
			h.DontFragment(), df, h.MoreFragments(), mf, h.FragmentOffset(), offset, h.IsFragment(), mf || offset > 0,
			h.TTL(), ttl, h.Protocol(), proto, h.Src(), src, h.Dst(), dst, len(h.Options()), headerLen-header.IPv4MinLen,
			checksum.Checksum(b[:headerLen]), uint16(0))

		var g layers.IPv4
		mustDecode(t, &g, b)
		want := layers.IPv4Flag(0)
		if df {
			want |= layers.IPv4DontFragment
		}
		if mf {
			want |= layers.IPv4MoreFragments
		}
		equal(t, g.Version, uint8(4), int(g.IHL)*4, headerLen, g.TOS, tos, g.Length, uint16(header.IPv4MaxLen), g.Id, id, g.Flags, want,
			int(g.FragOffset)*8, offset, g.TTL, ttl, uint8(g.Protocol), proto, g.Checksum, h.Checksum(),
			g.SrcIP.String(), src.String(), g.DstIP.String(), dst.String())
		equal(t, bytes.Equal(h.SrcBytes(), src.AsSlice()), true, bytes.Equal(h.DstBytes(), dst.AsSlice()), true)
	})
}

func TestIPv6(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.IPv6Len+64)
		tc, hops := rapid.Byte().Draw(t, "class"), rapid.Byte().Draw(t, "hops")
		next := rapid.ByteRange(1, 255).Draw(t, "next") // 0 makes gopacket look for options
		label := rapid.Uint32().Draw(t, "label")
		src, dst := genIP6(t, "src"), genIP6(t, "dst")
		h := header.IPv6(b)
		set := []func(){
			func() { h.SetVersion() }, func() { h.SetTrafficClass(tc) }, func() { h.SetFlowLabel(label) },
			func() { h.SetPayloadLen(64) }, func() { h.SetNextHeader(next) }, func() { h.SetHopLimit(hops) },
			func() { h.SetSrc(src) }, func() { h.SetDst(dst) },
		}
		for _, i := range rapid.Permutation([]int{0, 1, 2, 3, 4, 5, 6, 7}).Draw(t, "order") {
			set[i]()
		}
		equal(t, h.Version(), uint8(6), h.TrafficClass(), tc, h.FlowLabel(), label&0xfffff, h.PayloadLen(), uint16(64),
			h.NextHeader(), next, h.HopLimit(), hops, h.Src(), src, h.Dst(), dst)

		var g layers.IPv6
		mustDecode(t, &g, b)
		equal(t, g.Version, uint8(6), g.TrafficClass, tc, g.FlowLabel, label&0xfffff, g.Length, uint16(64), uint8(g.NextHeader), next,
			g.HopLimit, hops, bytes.Equal(g.SrcIP, src.AsSlice()), true, bytes.Equal(g.DstIP, dst.AsSlice()), true)
		equal(t, bytes.Equal(h.SrcBytes(), src.AsSlice()), true, bytes.Equal(h.DstBytes(), dst.AsSlice()), true)
	})
}

func TestIPv6Fragment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.IPv6FragmentLen)
		next, more := rapid.Byte().Draw(t, "next"), rapid.Bool().Draw(t, "more")
		offset, id := rapid.IntRange(0, 8191).Draw(t, "offset")*8, rapid.Uint32().Draw(t, "id")
		h := header.IPv6Fragment(b)
		h.Encode(next, offset, more, id)
		equal(t, h.NextHeader(), next, h.Offset(), offset, h.More(), more, h.ID(), id)

		frame := frametest.Ethernet(frametest.MAC(1), frametest.MAC(2)).IPv6(frametest.IP6(1), frametest.IP6(2)).
			Fragment6(offset, more, id).Data(nil).Bytes()
		b[0] = 0
		equal(t, bytes.Equal(frame[header.EthernetLen+header.IPv6Len:], b), true)
	})
}

func TestIPv6ExtensionLen(t *testing.T) {
	for _, c := range []struct {
		kind, field uint8
		want        int
	}{
		{header.ProtoHopByHop, 0, 8}, {header.ProtoHopByHop, 255, 2048}, {header.ProtoDestOpts, 1, 16},
		{header.ProtoRouting, 2, 24}, {header.ProtoAH, 1, 12}, {header.ProtoAH, 4, 24}, {header.ProtoAH, 255, 1028},
	} {
		h := header.IPv6Extension{header.ProtoTCP, c.field, 4, 3, 0, 0, 0, 0}
		if got := h.Len(c.kind); got != c.want {
			t.Errorf("kind %d with length field %d: %d bytes, want %d", c.kind, c.field, got, c.want)
		}
		if h.NextHeader() != header.ProtoTCP || h.RoutingType() != 4 || h.SegmentsLeft() != 3 {
			t.Errorf("next %d, routing type %d, segments left %d", h.NextHeader(), h.RoutingType(), h.SegmentsLeft())
		}
	}
}

func TestICMP(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.ICMPLen)
		typ, code := rapid.Byte().Draw(t, "type"), rapid.Byte().Draw(t, "code")
		sum, id, seq := rapid.Uint16().Draw(t, "sum"), rapid.Uint16().Draw(t, "id"), rapid.Uint16().Draw(t, "seq")
		h := header.ICMP(b)
		h.SetType(typ)
		h.SetCode(code)
		h.SetChecksum(sum)
		h.SetID(id)
		h.SetSeq(seq)
		equal(t, h.Type(), typ, h.Code(), code, h.Checksum(), sum, h.ID(), id, h.Seq(), seq, h.NextHopMTU(), seq)

		var g layers.ICMPv4
		mustDecode(t, &g, b)
		equal(t, g.TypeCode.Type(), typ, g.TypeCode.Code(), code, g.Checksum, sum, g.Id, id, g.Seq, seq)

		h.SetNextHopMTU(seq + 1)
		equal(t, h.NextHopMTU(), seq+1, h.ID(), id)
		equal(t, h.IsError(), typ == 3 || typ == 4 || typ == 5 || typ == 11 || typ == 12)
	})
}

func TestICMPv6(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.ICMPv6Len)
		typ, code := rapid.Byte().Draw(t, "type"), rapid.Byte().Draw(t, "code")
		sum, id, seq := rapid.Uint16().Draw(t, "sum"), rapid.Uint16().Draw(t, "id"), rapid.Uint16().Draw(t, "seq")
		mtu := rapid.Uint32().Draw(t, "mtu")
		h := header.ICMPv6(b)
		h.SetType(typ)
		h.SetCode(code)
		h.SetChecksum(sum)
		h.SetID(id)
		h.SetSeq(seq)
		equal(t, h.Type(), typ, h.Code(), code, h.Checksum(), sum, h.ID(), id, h.Seq(), seq, h.IsError(), typ < 128)

		var g layers.ICMPv6
		mustDecode(t, &g, b)
		equal(t, g.TypeCode.Type(), typ, g.TypeCode.Code(), code, g.Checksum, sum)
		var e layers.ICMPv6Echo
		mustDecode(t, &e, b[4:])
		equal(t, e.Identifier, id, e.SeqNumber, seq)

		h.SetMTU(mtu)
		equal(t, h.MTU(), mtu, h.Type(), typ, h.Checksum(), sum)
	})
}

func TestND(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.NDNeighborLen+header.NDLinkAddrLen)
		flags := rapid.Byte().Draw(t, "flags") & (header.NDFlagRouter | header.NDFlagSolicited | header.NDFlagOverride)
		target, m := genIP6(t, "target"), genMAC(t, "mac")
		h := header.NDNeighbor(b)
		h.SetFlags(flags)
		h.SetTarget(target)
		header.PutNDLinkAddr(b[header.NDNeighborLen:], header.NDOptionTargetLinkAddr, m)
		equal(t, h.Flags(), flags, h.Router(), flags&0x80 != 0, h.Solicited(), flags&0x40 != 0, h.Override(), flags&0x20 != 0, h.Target(), target)

		var g layers.ICMPv6NeighborAdvertisement
		mustDecode(t, &g, b[4:])
		equal(t, g.Flags, flags, bytes.Equal(g.TargetAddress, target.AsSlice()), true, len(g.Options), 1,
			g.Options[0].Type, layers.ICMPv6OptTargetAddress, bytes.Equal(g.Options[0].Data, m[:]), true)

		o := h.OptionList()
		equal(t, o.Next(), true, o.Kind(), header.NDOptionTargetLinkAddr, o.LinkAddr(), m, o.Next(), false, o.Malformed(), false)
	})
}

// What the builders write is what the views read, in place in a whole frame.
func TestNDInFrames(t *testing.T) {
	m, src, dst := frametest.MAC(1), frametest.IP6(1), frametest.IP6(2)
	l4 := header.EthernetLen + header.IPv6Len
	ns := frametest.NeighborSol(m, src, dst).Bytes()[l4:]
	if header.ICMPv6(ns).Type() != header.ICMPv6NeighborSol || header.NDNeighbor(ns).Target() != dst {
		t.Errorf("solicitation % x", ns)
	}
	o := header.NDNeighbor(ns).OptionList()
	if !o.Next() || o.Kind() != header.NDOptionSourceLinkAddr || o.LinkAddr() != m || o.Next() || o.Malformed() {
		t.Errorf("solicitation options % x", ns)
	}
	na := frametest.NeighborAdv(m, src, frametest.MAC(2), dst, src, header.NDFlagSolicited).Bytes()[l4:]
	n := header.NDNeighbor(na)
	if header.ICMPv6(na).Type() != header.ICMPv6NeighborAdv || n.Target() != src || !n.Solicited() || n.Override() || n.Router() {
		t.Errorf("advertisement % x", na)
	}

	opts := []byte{header.NDOptionSourceLinkAddr, 1, 2, 0, 0, 0, 0, 9}
	for name, o := range map[string]header.NDOptions{
		"router solicitation":  header.ICMPv6(append(make([]byte, header.NDRouterSolLen), opts...)).RouterSolOptions(),
		"router advertisement": header.ICMPv6(append(make([]byte, header.NDRouterAdvLen), opts...)).RouterAdvOptions(),
	} {
		if !o.Next() || o.Kind() != header.NDOptionSourceLinkAddr || o.LinkAddr() != frametest.MAC(9) || o.Next() || o.Malformed() {
			t.Errorf("%s: option not found", name)
		}
	}
}
