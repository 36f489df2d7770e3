package suppress

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Station 1 asks, station 2 is the owner of addresses 2, station 3 is not in the table.
var (
	asker, owner, other = frametest.MAC(1), frametest.MAC(2), frametest.MAC(3)

	linkLocal = netip.MustParseAddr("fe80::2")
	mapped    = netip.MustParseAddr("::ffff:10.42.0.2")
	zero4     = netip.IPv4Unspecified()
	zero6     = netip.IPv6Unspecified()
)

func table() *fdb.Neighbors {
	n := fdb.NewNeighbors()
	n.Set(frametest.IP4(1), asker)
	n.Set(frametest.IP6(1), asker)
	n.Set(frametest.IP4(2), owner)
	n.Set(frametest.IP6(2), owner)
	n.Set(linkLocal, owner)
	n.Set(frametest.IP4(4), addr.Broadcast)
	n.Set(frametest.IP6(4), addr.MAC{})
	return n
}

// The tags with which every case is tried: type and tag control information.
var tagStacks = map[string][]byte{
	"untagged":     nil,
	"VLAN":         {0x81, 0x00, 0xa0, 0x2a},
	"VLAN in QinQ": {0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x10, 0x2a},
}

func tagged(frame, tags []byte) []byte { return slices.Insert(slices.Clone(frame), 12, tags...) }

func answer(frame []byte, tags []byte, n *fdb.Neighbors) ([]byte, bool) {
	l3off := header.EthernetLen + len(tags)
	var etherType uint16
	if len(frame) >= l3off {
		etherType = header.Ethernet(frame[len(tags):]).EtherType()
	}
	return Answer(frame, l3off, etherType, n, make([]byte, 0, MaxReplyLen))
}

func TestARPIsAnswered(t *testing.T) {
	for name, c := range map[string]struct {
		frame  *frametest.Builder
		sender netip.Addr
	}{
		"request":                    {frametest.ARPRequest(asker, frametest.IP4(1), frametest.IP4(2)), frametest.IP4(1)},
		"request from unknown":       {frametest.ARPRequest(asker, frametest.IP4(9), frametest.IP4(2)), frametest.IP4(9)},
		"probe for another's (ACD)":  {frametest.ARPRequest(asker, zero4, frametest.IP4(2)), zero4},
		"rubbish as target hardware": {frametest.Ethernet(addr.Broadcast, asker).ARP(1, asker, frametest.IP4(1), other, frametest.IP4(2)), frametest.IP4(1)},
	} {
		for stack, tags := range tagStacks {
			t.Run(name+"/"+stack, func(t *testing.T) {
				for _, padding := range []int{0, 18} {
					reply, ok := answer(append(tagged(c.frame.Bytes(), tags), make([]byte, padding)...), tags, table())
					if !ok {
						t.Fatal("no answer")
					}
					p := frametest.Check(t, reply)
					checkOuter(t, p, reply, tags, asker)
					if a := p.ARP; a == nil || a.Operation != layers.ARPReply ||
						!bytes.Equal(a.SourceHwAddress, owner[:]) || !bytes.Equal(a.SourceProtAddress, frametest.IP4(2).AsSlice()) ||
						!bytes.Equal(a.DstHwAddress, asker[:]) || !bytes.Equal(a.DstProtAddress, c.sender.AsSlice()) {
						t.Fatalf("answered %+v", a)
					}
				}
			})
		}
	}
}

func TestNDIsAnswered(t *testing.T) {
	allNodes := netip.MustParseAddr("ff02::1")
	for name, c := range map[string]struct {
		frame *frametest.Builder
		at    addr.MAC
		to    netip.Addr
		flags uint8
	}{
		"solicitation": {frametest.NeighborSol(asker, frametest.IP6(1), frametest.IP6(2)),
			asker, frametest.IP6(1), header.NDFlagSolicited | header.NDFlagOverride},
		"solicitation from a link-local address": {frametest.NeighborSol(asker, netip.MustParseAddr("fe80::1"), frametest.IP6(2)),
			asker, netip.MustParseAddr("fe80::1"), header.NDFlagSolicited | header.NDFlagOverride},
		"DAD for another's": {frametest.NeighborSol(asker, zero6, frametest.IP6(2)),
			addr.MAC{0x33, 0x33, 0, 0, 0, 1}, allNodes, header.NDFlagOverride},
		"DAD with a nonce (RFC 7527)": {solicit(asker, zero6, frametest.IP6(2), []byte{header.NDOptionNonce, 1, 1, 2, 3, 4, 5, 6}),
			addr.MAC{0x33, 0x33, 0, 0, 0, 1}, allNodes, header.NDFlagOverride},
	} {
		for stack, tags := range tagStacks {
			t.Run(name+"/"+stack, func(t *testing.T) {
				for _, padding := range []int{0, 7} {
					reply, ok := answer(append(tagged(c.frame.Bytes(), tags), make([]byte, padding)...), tags, table())
					if !ok {
						t.Fatal("no answer")
					}
					p := frametest.Check(t, reply)
					checkOuter(t, p, reply, tags, c.at)
					target := frametest.IP6(2)
					want := frametest.NeighborAdv(owner, target, c.at, c.to, target, c.flags).Bytes()
					if !bytes.Equal(reply[14+len(tags):], want[14:]) {
						t.Fatalf("answered\n%s\nwant\n%s", hex.Dump(reply[14+len(tags):]), hex.Dump(want[14:]))
					}
				}
			})
		}
	}
}

// checkOuter checks addresses and tags of a reply that goes to dst.
func checkOuter(t *testing.T, p *frametest.Packet, reply, tags []byte, dst addr.MAC) {
	t.Helper()
	if !bytes.Equal(p.Ethernet.SrcMAC, owner[:]) || !bytes.Equal(p.Ethernet.DstMAC, dst[:]) {
		t.Fatalf("from %v to %v, want from %v to %v", p.Ethernet.SrcMAC, p.Ethernet.DstMAC, owner, dst)
	}
	if !bytes.Equal(reply[12:12+len(tags)], tags) || len(p.VLANs) != len(tags)/4 {
		t.Fatalf("tags % x, want % x", reply[12:12+len(tags)], tags)
	}
}

// solicit is a solicitation with options of the caller's choice.
func solicit(src addr.MAC, sender, target netip.Addr, options []byte, edit ...func(*layers.IPv6)) *frametest.Builder {
	a := target.As16()
	group := solicitedNode(target)
	edit = append([]func(*layers.IPv6){func(l *layers.IPv6) { l.HopLimit = 255 }}, edit...)
	return frametest.Ethernet(addr.MAC{0x33, 0x33, 0xff, a[13], a[14], a[15]}, src).
		IPv6(sender, group, edit...).ICMPv6(header.ICMPv6NeighborSol, 0).
		Data(slices.Concat(make([]byte, 4), a[:], options))
}

func TestGoesOn(t *testing.T) {
	arp := func(dst, src addr.MAC, op uint16, senderMAC addr.MAC, sender, target netip.Addr, edit ...func(*layers.ARP)) []byte {
		return frametest.Ethernet(dst, src).ARP(op, senderMAC, sender, addr.MAC{}, target, edit...).Bytes()
	}
	one4, two4, one6, two6 := frametest.IP4(1), frametest.IP4(2), frametest.IP6(1), frametest.IP6(2)
	sol := frametest.NeighborSol(asker, one6, two6).Bytes()
	mangled := func(offset int, value byte) []byte {
		f := slices.Clone(sol)
		f[offset] = value
		return f
	}
	slla := slices.Concat([]byte{header.NDOptionSourceLinkAddr, 1}, asker[:])
	body := slices.Concat(make([]byte, 4), two6.AsSlice(), slla)
	for name, frame := range map[string][]byte{
		"ARP: target unknown":                 arp(addr.Broadcast, asker, 1, asker, one4, frametest.IP4(3)),
		"ARP: unicast to see who is alive":    arp(owner, asker, 1, asker, one4, two4),
		"ARP: announcement":                   arp(addr.Broadcast, asker, 1, asker, one4, one4),
		"ARP: announcement of another's":      arp(addr.Broadcast, asker, 1, asker, two4, two4),
		"ARP: probe for one's own (ACD)":      arp(addr.Broadcast, asker, 1, asker, zero4, one4),
		"ARP: one's own by another sender":    arp(addr.Broadcast, asker, 1, asker, frametest.IP4(9), one4),
		"ARP: probe for an unknown (ACD)":     arp(addr.Broadcast, asker, 1, asker, zero4, frametest.IP4(3)),
		"ARP: reply":                          arp(addr.Broadcast, asker, 2, asker, one4, two4),
		"ARP: reverse":                        arp(addr.Broadcast, asker, 3, asker, one4, two4),
		"ARP: sender is not the frame's":      arp(addr.Broadcast, asker, 1, other, one4, two4),
		"ARP: from a group":                   arp(addr.Broadcast, addr.Broadcast, 1, addr.Broadcast, one4, two4),
		"ARP: from nobody":                    arp(addr.Broadcast, addr.MAC{}, 1, addr.MAC{}, one4, two4),
		"ARP: the table says a group":         arp(addr.Broadcast, asker, 1, asker, one4, frametest.IP4(4)),
		"ARP: not for IPv4":                   arp(addr.Broadcast, asker, 1, asker, one4, two4, func(l *layers.ARP) { l.Protocol = layers.EthernetTypeIPv6 }),
		"ARP: not of Ethernet":                arp(addr.Broadcast, asker, 1, asker, one4, two4, func(l *layers.ARP) { l.AddrType = 6 }),
		"ND: target unknown":                  frametest.NeighborSol(asker, one6, frametest.IP6(3)).Bytes(),
		"ND: DAD for one's own":               frametest.NeighborSol(asker, zero6, one6).Bytes(),
		"ND: DAD for an unknown":              frametest.NeighborSol(asker, zero6, frametest.IP6(3)).Bytes(),
		"ND: one's own":                       frametest.NeighborSol(asker, frametest.IP6(9), one6).Bytes(),
		"ND: source is target":                frametest.NeighborSol(asker, two6, two6).Bytes(),
		"ND: target link-local":               frametest.NeighborSol(asker, one6, linkLocal).Bytes(),
		"ND: target mapped from IPv4":         frametest.NeighborSol(asker, one6, mapped).Bytes(),
		"ND: target a group":                  frametest.NeighborSol(asker, one6, netip.MustParseAddr("ff02::2")).Bytes(),
		"ND: the table says zero":             frametest.NeighborSol(asker, one6, frametest.IP6(4)).Bytes(),
		"ND: source link address not asker's": solicit(asker, one6, two6, slices.Concat([]byte{header.NDOptionSourceLinkAddr, 1}, other[:])).Bytes(),
		"ND: source link address in DAD":      solicit(asker, zero6, two6, slla).Bytes(),
		"ND: option of length zero":           solicit(asker, one6, two6, []byte{header.NDOptionNonce, 0, 1, 2, 3, 4, 5, 6}).Bytes(),
		"ND: option over the end":             solicit(asker, one6, two6, slices.Concat(slla, []byte{header.NDOptionNonce, 2, 1, 2, 3, 4, 5, 6})).Bytes(),
		"ND: option cut off":                  solicit(asker, one6, two6, slices.Concat(slla, []byte{header.NDOptionNonce, 1, 1})).Bytes(),
		"ND: from off the link":               solicit(asker, one6, two6, slla, func(l *layers.IPv6) { l.HopLimit = 254 }).Bytes(),
		"ND: from a group":                    solicit(asker, netip.MustParseAddr("ff02::2"), two6, slla).Bytes(),
		"ND: to all nodes":                    solicit(asker, one6, two6, slla, func(l *layers.IPv6) { l.DstIP = netip.MustParseAddr("ff02::1").AsSlice() }).Bytes(),
		"ND: unicast to see who is alive":     solicitUnicast(owner, two6),
		"ND: wrong checksum":                  mangled(14+40+2, sol[14+40+2]^1),
		"ND: code 1":                          frametest.Ethernet(addr.Broadcast, asker).IPv6(one6, solicitedNode(two6), func(l *layers.IPv6) { l.HopLimit = 255 }).ICMPv6(header.ICMPv6NeighborSol, 1).Data(body).Bytes(),
		"ND: longer than the frame":           mangled(14+5, 33),
		"ND: shorter than a solicitation":     mangled(14+5, 23),
		"ND: version 5":                       mangled(14, 0x50),
		"ND: extension header":                frametest.Ethernet(addr.Broadcast, asker).IPv6(one6, solicitedNode(two6), func(l *layers.IPv6) { l.HopLimit = 255 }).Extension(0, make([]byte, 6)).ICMPv6(header.ICMPv6NeighborSol, 0).Data(body).Bytes(),
		"ND: advertisement":                   frametest.NeighborAdv(asker, one6, addr.MAC{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("ff02::1"), two6, 0).Bytes(),
		"IPv6: ping":                          frametest.Ping6(frametest.Opts{}).Bytes(),
		"IPv4: broadcast":                     frametest.Ethernet(addr.Broadcast, asker).IPv4(one4, netip.MustParseAddr("255.255.255.255")).UDP(68, 67).Payload(300).Bytes(),
	} {
		for stack, tags := range tagStacks {
			f := tagged(frame, tags)
			before := slices.Clone(f)
			if reply, ok := answer(f, tags, table()); ok || reply != nil {
				t.Errorf("%s, %s: answered\n%s", name, stack, hex.Dump(reply))
			}
			if !bytes.Equal(f, before) {
				t.Errorf("%s, %s: the frame was changed", name, stack)
			}
		}
	}
}

// solicitUnicast is what neighbor unreachability detection sends (RFC 4861, section 7.3.3).
func solicitUnicast(to addr.MAC, target netip.Addr) []byte {
	a := target.As16()
	return frametest.Ethernet(to, asker).IPv6(frametest.IP6(1), target, func(l *layers.IPv6) { l.HopLimit = 255 }).
		ICMPv6(header.ICMPv6NeighborSol, 0).Data(append(make([]byte, 4), a[:]...)).Bytes()
}

// A request is answered only if all of it is there, and only into memory that is large enough.
func TestTruncation(t *testing.T) {
	n := table()
	for name, c := range map[string]struct {
		frame []byte
		reply int
	}{
		"ARP": {frametest.ARPRequest(asker, frametest.IP4(1), frametest.IP4(2)).Bytes(), 14 + 28},
		"ND":  {frametest.NeighborSol(asker, frametest.IP6(1), frametest.IP6(2)).Bytes(), 14 + 40 + 32},
	} {
		for stack, tags := range tagStacks {
			f := tagged(c.frame, tags)
			for i := range f {
				if reply, ok := answer(f[:i:i], tags, n); ok {
					t.Errorf("%s, %s: %d of %d bytes answered: % x", name, stack, i, len(f), reply)
				}
			}
			l3off := header.EthernetLen + len(tags)
			etherType := header.Ethernet(f[len(tags):]).EtherType()
			need := c.reply + len(tags)
			if need > MaxReplyLen {
				t.Errorf("%s, %s: MaxReplyLen is %d, the answer has %d", name, stack, MaxReplyLen, need)
			}
			for room := range need {
				if _, ok := Answer(f, l3off, etherType, n, make([]byte, room)); ok {
					t.Fatalf("%s, %s: answered into %d bytes", name, stack, room)
				}
			}
			out := bytes.Repeat([]byte{0xee}, need+8)
			reply, ok := Answer(f, l3off, etherType, n, out)
			if !ok || len(reply) != need || &reply[0] != &out[0] || !bytes.Equal(out[need:], bytes.Repeat([]byte{0xee}, 8)) {
				t.Errorf("%s, %s: reply of %d bytes, want %d at the start of out and nothing behind it", name, stack, len(reply), need)
			}
			frametest.Check(t, reply)
		}
	}
	for _, l3off := range []int{-1, 0, 13, 1000} {
		if _, ok := Answer(make([]byte, 64), l3off, header.EtherTypeARP, n, make([]byte, 64)); ok {
			t.Errorf("answered with the network header at %d", l3off)
		}
	}
}

func TestAllocatesNothing(t *testing.T) {
	n := table()
	out := make([]byte, MaxReplyLen)
	for name, c := range map[string]struct {
		frame     []byte
		etherType uint16
		want      bool
	}{
		"ARP":         {frametest.ARPRequest(asker, frametest.IP4(1), frametest.IP4(2)).Bytes(), header.EtherTypeARP, true},
		"ND":          {frametest.NeighborSol(asker, frametest.IP6(1), frametest.IP6(2)).Bytes(), header.EtherTypeIPv6, true},
		"DAD":         {frametest.NeighborSol(asker, zero6, frametest.IP6(2)).Bytes(), header.EtherTypeIPv6, true},
		"unknown ARP": {frametest.ARPRequest(asker, frametest.IP4(1), frametest.IP4(3)).Bytes(), header.EtherTypeARP, false},
		"unknown ND":  {frametest.NeighborSol(asker, frametest.IP6(1), frametest.IP6(3)).Bytes(), header.EtherTypeIPv6, false},
	} {
		a := testing.AllocsPerRun(100, func() {
			if _, ok := Answer(c.frame, 14, c.etherType, n, out); ok != c.want {
				t.Fatalf("%s: answered: %v", name, ok)
			}
		})
		if a != 0 {
			t.Errorf("%s: %v allocations", name, a)
		}
	}
}

// FuzzAnswer hands arbitrary frames to Answer: nothing panics, and whatever is answered is a sound frame in the name
// of the owner, is not sent to it, and is not a request that would be answered again.
func FuzzAnswer(f *testing.F) {
	for _, b := range []*frametest.Builder{
		frametest.ARPRequest(asker, frametest.IP4(1), frametest.IP4(2)),
		frametest.ARPRequest(asker, zero4, frametest.IP4(2)),
		frametest.NeighborSol(asker, frametest.IP6(1), frametest.IP6(2)),
		frametest.NeighborSol(asker, zero6, frametest.IP6(2)),
		solicit(asker, zero6, frametest.IP6(2), []byte{header.NDOptionNonce, 1, 1, 2, 3, 4, 5, 6}),
		frametest.Ping6(frametest.Opts{}),
	} {
		for _, tags := range tagStacks {
			f.Add(tagged(b.Bytes(), tags), uint8(len(tags)/4))
		}
	}
	n := table()
	f.Fuzz(func(t *testing.T, frame []byte, tags uint8) {
		l3off := header.EthernetLen + header.VLANLen*int(tags%4)
		if len(frame) < l3off {
			return
		}
		etherType := header.Ethernet(frame[l3off-header.EthernetLen:]).EtherType()
		before := slices.Clone(frame)
		reply, ok := Answer(frame, l3off, etherType, n, make([]byte, 0, MaxReplyLen+header.VLANLen))
		if !bytes.Equal(frame, before) {
			t.Fatal("the frame was changed")
		}
		if !ok {
			if reply != nil {
				t.Fatal("a reply, but not ok")
			}
			return
		}
		if src := header.Ethernet(reply).Src(); src != owner || header.Ethernet(frame).Src() == owner {
			t.Fatalf("answered to %v in the name of %v", header.Ethernet(frame).Src(), src)
		}
		if !bytes.Equal(reply[12:l3off], frame[12:l3off]) {
			t.Fatalf("tags % x, want % x", reply[12:l3off], frame[12:l3off])
		}
		// Tags that are not tags, because the caller said so, are beyond the checker.
		untagged := slices.Delete(slices.Clone(reply), 12, l3off-2)
		if _, err := frametest.Verify(untagged); err != nil {
			t.Fatalf("%v\n%s", err, hex.Dump(reply))
		}
		if again, ok := Answer(reply, l3off, etherType, n, make([]byte, 0, 128)); ok {
			t.Fatalf("the answer is answered\n%s", hex.Dump(again))
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	n := table()
	out := make([]byte, MaxReplyLen)
	b.Run("ARP", func(b *testing.B) {
		f := frametest.ARPRequest(asker, frametest.IP4(1), frametest.IP4(2)).Bytes()
		for b.Loop() {
			Answer(f, 14, header.EtherTypeARP, n, out)
		}
	})
	b.Run("ND", func(b *testing.B) {
		f := frametest.NeighborSol(asker, frametest.IP6(1), frametest.IP6(2)).Bytes()
		for b.Loop() {
			Answer(f, 14, header.EtherTypeIPv6, n, out)
		}
	})
}
