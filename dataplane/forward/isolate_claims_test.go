package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/dataplane/header"
)

type claim struct {
	inner []byte
	want  DropReason
}

// claims lists what station self may, and may not, say of itself. All of it is meant for station to, or for all.
func claims(self, to uint16) map[string]claim {
	const victim = behindA
	me, you, them := frametest.MAC(self), frametest.MAC(to), frametest.MAC(victim)
	my4, your4, their4 := frametest.IP4(self), frametest.IP4(to), frametest.IP4(victim)
	my6, your6, their6 := frametest.IP6(self), frametest.IP6(to), frametest.IP6(victim)
	all6, allRouters := netip.IPv6LinkLocalAllNodes(), netip.IPv6LinkLocalAllRouters()
	group := addr.MAC{0x33, 0x33, 0, 0, 0, 1}

	o := func(edit func(o *frametest.Opts)) frametest.Opts {
		o := frametest.Opts{SrcMAC: me, DstMAC: you, Payload: 30}
		edit(&o)
		return o
	}
	o4 := func(src netip.Addr) frametest.Opts {
		return o(func(o *frametest.Opts) { o.Src, o.Dst = src, your4 })
	}
	o6 := func(src netip.Addr) frametest.Opts {
		return o(func(o *frametest.Opts) { o.Src, o.Dst = src, your6 })
	}
	edit := func(b *frametest.Builder, do func(f []byte)) []byte {
		f := b.Bytes()
		do(f)
		return f
	}
	type builder = *frametest.Builder
	tagged := func(tags ...uint16) []byte {
		return frametest.UDP4(o(func(o *frametest.Opts) { o.Src, o.Dst, o.VLANs = my4, your4, tags })).Bytes()
	}
	port := func(p uint16, o frametest.Opts) frametest.Opts { o.SrcPort, o.DstPort = 9, p; return o }
	ip6 := func(src, dst netip.Addr) builder {
		return frametest.Ethernet(group, me).IPv6(src, dst, func(l *layers.IPv6) { l.HopLimit = 255 })
	}
	icmp6 := func(src netip.Addr, typ uint8, body ...byte) []byte {
		return ip6(src, all6).ICMPv6(typ, 0).Data(append(make([]byte, 4), body...)).Bytes()
	}
	link := func(kind uint8, m addr.MAC) []byte {
		b := make([]byte, header.NDLinkAddrLen)
		header.PutNDLinkAddr(b, kind, m)
		return b
	}
	target := func(a netip.Addr, options ...byte) []byte { return append(a.AsSlice(), options...) }
	// hidden is an upper layer in the first fragment of a packet, with or without another header before it.
	hidden := func(proto layers.IPProtocol, options bool, data []byte) []byte {
		b := ip6(linkLocal(self), all6).Fragment6(0, true, 7)
		if options {
			b = b.Extension(header.ProtoDestOpts, nil)
		}
		f := b.Data(data).Bytes()
		at := 14 + 40
		if options {
			f[at] = header.ProtoDestOpts
			at += 8
		}
		f[at] = byte(proto)
		return f
	}
	advert := append([]byte{134, 0, 0, 0}, make([]byte, 12)...)
	toClient := append([]byte{0, 67, 0, 68, 0, 40, 0, 0}, make([]byte, 32)...)
	toClient6 := append([]byte{2, 35, 2, 34, 0, 40, 0, 0}, make([]byte, 32)...)
	fragment4 := func(offset uint16, data []byte) []byte {
		return frametest.Ethernet(you, me).IPv4(my4, your4, func(l *layers.IPv4) {
			l.Protocol, l.FragOffset, l.Flags = layers.IPProtocolUDP, offset/8, layers.IPv4MoreFragments
		}).Data(data).Bytes()
	}
	return map[string]claim{
		"IPv4":               {frametest.UDP4(o4(my4)).Bytes(), NotDropped},
		"IPv6":               {frametest.TCP6(o6(my6)).Bytes(), NotDropped},
		"link-local":         {frametest.Ping6(o6(linkLocal(self))).Bytes(), NotDropped},
		"registered by hand": {frametest.Ping6(o6(byHand)).Bytes(), NotDropped},
		"later fragment":     {fragment4(1480, toClient), NotDropped},
		"first fragment":     {fragment4(0, frametest.Pattern(64)), NotDropped},
		"fragmented ping":    {hidden(58, false, append([]byte{128, 0, 0, 0}, make([]byte, 60)...)), NotDropped},

		"MAC of nobody, IPv4":   {frametest.UDP4(o(func(o *frametest.Opts) { o.SrcMAC, o.Src = frametest.MAC(nobody), my4 })).Bytes(), SourceMACUnknown},
		"MAC of nobody, IPv6":   {frametest.UDP6(o(func(o *frametest.Opts) { o.SrcMAC, o.Src = frametest.MAC(nobody), my6 })).Bytes(), SourceMACUnknown},
		"MAC of nobody, ARP":    {frametest.ARPRequest(frametest.MAC(nobody), my4, your4).Bytes(), SourceMACUnknown},
		"MAC of nobody, opaque": {frametest.Ethernet(you, frametest.MAC(nobody), func(l *layers.Ethernet) { l.EthernetType = 0x88b5 }).Payload(46).Bytes(), SourceMACUnknown},
		"MAC of another, IPv4":  {frametest.UDP4(o(func(o *frametest.Opts) { o.SrcMAC, o.Src = them, their4 })).Bytes(), SourceSpoofed},
		"MAC of another, ARP":   {frametest.ARPReply(them, their4, you, your4).Bytes(), SourceSpoofed},
		"MAC of another, ND":    {frametest.NeighborAdv(them, their6, group, all6, their6, header.NDFlagOverride).Bytes(), SourceSpoofed},

		"IPv4 of another, UDP":      {frametest.UDP4(o4(their4)).Bytes(), SourceIPSpoofed},
		"IPv4 of another, TCP":      {frametest.TCP4(o4(their4)).Bytes(), SourceIPSpoofed},
		"IPv4 of another, ping":     {frametest.Ping4(o4(their4)).Bytes(), SourceIPSpoofed},
		"IPv4 of another, fragment": {edit(frametest.UDP4(o4(their4)), func(f []byte) { f[20], f[21] = 0, 9; header.IPv4(f[14:]).UpdateChecksum() }), SourceIPSpoofed},
		"IPv4 of nobody":            {frametest.UDP4(o4(frametest.IP4(nobody))).Bytes(), SourceIPSpoofed},
		"IPv4 of none":              {frametest.UDP4(port(67, o4(none4))).Bytes(), SourceIPSpoofed},
		"IPv6 of another, UDP":      {frametest.UDP6(o6(their6)).Bytes(), SourceIPSpoofed},
		"IPv6 of another, TCP":      {frametest.TCP6(o6(their6)).Bytes(), SourceIPSpoofed},
		"IPv6 of another, NS":       {frametest.NeighborSol(me, their6, your6).Bytes(), SourceIPSpoofed},
		"IPv6 of nobody":            {frametest.UDP6(o6(frametest.IP6(nobody))).Bytes(), SourceIPSpoofed},
		"IPv6 of none, UDP":         {frametest.UDP6(o6(none6)).Bytes(), SourceIPSpoofed},
		"IPv6 of none, ping":        {frametest.Ping6(o6(none6)).Bytes(), SourceIPSpoofed},
		"IPv6 that is IPv4":         {frametest.UDP6(o6(netip.AddrFrom16(my4.As16()))).Bytes(), SourceIPSpoofed},
		"link-local of another":     {frametest.UDP6(o6(linkLocal(victim))).Bytes(), SourceIPSpoofed},
		"link-local of no MAC":      {frametest.UDP6(o6(netip.MustParseAddr("fe80::1"))).Bytes(), SourceIPSpoofed},
		"link-local, other subnet": {frametest.UDP6(o6(func() netip.Addr {
			a := linkLocal(self).As16()
			a[7] = 1
			return netip.AddrFrom16(a)
		}())).Bytes(), SourceIPSpoofed},

		"ARP: reply":                  {frametest.ARPReply(me, my4, you, your4).Bytes(), NotDropped},
		"ARP: announcement":           {frametest.ARPRequest(me, my4, my4).Bytes(), NotDropped},
		"ARP: gratuitous reply":       {frametest.ARPReply(me, my4, addr.Broadcast, my4).Bytes(), NotDropped},
		"ARP: probe":                  {frametest.ARPRequest(me, none4, my4).Bytes(), NotDropped},
		"ARP: IP of another asks":     {frametest.ARPRequest(me, their4, your4).Bytes(), ARPSpoofed},
		"ARP: IP of another replies":  {frametest.ARPReply(me, their4, you, your4).Bytes(), ARPSpoofed},
		"ARP: IP of another, to all":  {frametest.ARPReply(me, their4, addr.Broadcast, their4).Bytes(), ARPSpoofed},
		"ARP: another is announced":   {frametest.ARPRequest(me, their4, their4).Bytes(), ARPSpoofed},
		"ARP: IP of nobody":           {frametest.ARPRequest(me, frametest.IP4(nobody), your4).Bytes(), ARPSpoofed},
		"ARP: MAC of another":         {frametest.Ethernet(you, me).ARP(header.ARPReply, them, my4, you, your4).Bytes(), ARPSpoofed},
		"ARP: MAC of another, probes": {frametest.Ethernet(addr.Broadcast, me).ARP(header.ARPRequest, them, none4, addr.MAC{}, my4).Bytes(), ARPSpoofed},
		"ARP: reply from nobody":      {frametest.ARPReply(me, none4, you, my4).Bytes(), ARPSpoofed},
		"ARP: another kind":           {edit(frametest.ARPReply(me, my4, you, your4), func(f []byte) { f[14+1] = 6 }), ProtocolRefused},

		"ND: solicitation":             {frametest.NeighborSol(me, my6, your6).Bytes(), NotDropped},
		"ND: from link-local":          {frametest.NeighborSol(me, linkLocal(self), your6).Bytes(), NotDropped},
		"ND: advertisement":            {frametest.NeighborAdv(me, my6, you, your6, my6, header.NDFlagSolicited).Bytes(), NotDropped},
		"ND: unsolicited":              {frametest.NeighborAdv(me, my6, group, all6, my6, header.NDFlagOverride).Bytes(), NotDropped},
		"ND: advertises link-local":    {frametest.NeighborAdv(me, linkLocal(self), group, all6, linkLocal(self), header.NDFlagOverride).Bytes(), NotDropped},
		"ND: DAD":                      {frametest.NeighborSol(me, none6, my6).Bytes(), NotDropped},
		"ND: DAD of link-local":        {frametest.NeighborSol(me, none6, linkLocal(self)).Bytes(), NotDropped},
		"ND: router solicitation":      {ip6(linkLocal(self), allRouters).ICMPv6(133, 0).Data(append(make([]byte, 4), link(1, me)...)).Bytes(), NotDropped},
		"ND: router sol. without IP":   {ip6(none6, allRouters).ICMPv6(133, 0).Data(make([]byte, 4)).Bytes(), NotDropped},
		"MLD report without IP":        {icmp6(none6, 143, make([]byte, 20)...), NotDropped},
		"ND: another is advertised":    {frametest.NeighborAdv(me, my6, group, all6, their6, header.NDFlagOverride).Bytes(), NDSpoofed},
		"ND: nobody is advertised":     {frametest.NeighborAdv(me, my6, group, all6, frametest.IP6(nobody), header.NDFlagOverride).Bytes(), NDSpoofed},
		"ND: link-local of another":    {frametest.NeighborAdv(me, my6, group, all6, linkLocal(victim), header.NDFlagOverride).Bytes(), NDSpoofed},
		"ND: at the MAC of another":    {icmp6(my6, 136, target(my6, link(2, them)...)...), NDSpoofed},
		"ND: second option":            {icmp6(my6, 136, target(my6, append(link(2, me), link(2, them)...)...)...), NDSpoofed},
		"ND: advertised from nowhere":  {icmp6(none6, 136, target(my6, link(2, me)...)...), NDSpoofed},
		"ND: asks as another MAC":      {icmp6(my6, 135, target(your6, link(1, them)...)...), NDSpoofed},
		"ND: router sol., other MAC":   {icmp6(linkLocal(self), 133, link(1, them)...), NDSpoofed},
		"ND: option of length 0":       {icmp6(my6, 136, target(my6, 2, 0, 0, 0, 0, 0, 0, 0)...), NDSpoofed},
		"ND: cut":                      {icmp6(my6, 136, 1, 2, 3, 4), NDSpoofed},
		"ND: behind options":           {ip6(my6, all6).Extension(header.ProtoDestOpts, nil).ICMPv6(136, 0).Data(append(make([]byte, 4), target(their6)...)).Bytes(), NDSpoofed},
		"ND: in a fragment":            {hidden(58, false, append([]byte{136, 0, 0, 0, 0, 0, 0, 0}, target(my6, link(2, me)...)...)), NDSpoofed},
		"router advertisement":         {icmp6(linkLocal(self), 134, make([]byte, 8)...), RogueRouter},
		"redirect":                     {icmp6(linkLocal(self), 137, make([]byte, 32)...), RogueRouter},
		"advert., behind options":      {ip6(linkLocal(self), all6).Extension(header.ProtoHopByHop, nil).ICMPv6(134, 0).Data(make([]byte, 12)).Bytes(), RogueRouter},
		"advert., in a fragment":       {hidden(58, false, advert), RogueRouter},
		"advert., in both":             {hidden(58, true, advert), RogueRouter},
		"fragment ends in options":     {hidden(60, true, nil), IPBadFragment},
		"fragment without upper layer": {hidden(58, true, nil), IPBadFragment},

		"DHCP reply":               {frametest.UDP4(port(68, o4(my4))).Bytes(), RogueDHCP},
		"DHCP reply in a fragment": {fragment4(0, toClient), RogueDHCP},
		"DHCPv6 reply":             {frametest.UDP6(port(546, o6(linkLocal(self)))).Bytes(), RogueDHCP},
		"DHCPv6 reply, hidden":     {hidden(17, true, toClient6), RogueDHCP},
		"to these ports over TCP":  {frametest.TCP4(port(68, o4(my4))).Bytes(), NotDropped},
		"to the other's port":      {frametest.UDP4(port(546, o4(my4))).Bytes(), NotDropped},
		"tag":                      {tagged(5), ProtocolRefused},
		"tag with VLAN 0":          {tagged(0), ProtocolRefused},
		"three tags":               {tagged(0, 0, 0), ProtocolRefused},
		"another protocol":         {frametest.Ethernet(you, me, func(l *layers.Ethernet) { l.EthernetType = 0x88b5 }).Payload(46).Bytes(), ProtocolRefused},
		"LLC":                      {frametest.Ethernet(you, me, func(l *layers.Ethernet) { l.EthernetType = 46 }).Payload(46).Bytes(), ProtocolRefused},
		"broadcast":                {frametest.UDP4(o(func(o *frametest.Opts) { o.DstMAC, o.Src, o.Dst = addr.Broadcast, my4, your4 })).Bytes(), NotDropped},
		"broadcast, IP of another": {frametest.UDP4(o(func(o *frametest.Opts) { o.DstMAC, o.Src, o.Dst = addr.Broadcast, their4, your4 })).Bytes(), SourceIPSpoofed},
		"to a MAC that nobody has": {frametest.UDP4(o(func(o *frametest.Opts) { o.DstMAC, o.Src, o.Dst = frametest.MAC(nobody), my4, your4 })).Bytes(), DestinationUnknown},
		"to nobody, IPv6":          {frametest.UDP6(o(func(o *frametest.Opts) { o.DstMAC, o.Src, o.Dst = frametest.MAC(nobody), my6, your6 })).Bytes(), DestinationUnknown},
		"VXLAN, as on any network": {frametest.UDP4(port(header.VXLANPort, o4(my4))).Bytes(), NestedVXLAN},
		"runt, as on any network":  {frametest.UDP4(o4(my4)).Bytes()[:20], FrameRunt},
		"source is a group":        {edit(frametest.UDP4(o4(my4)), func(f []byte) { f[6] |= 1 }), FrameBadSource},
		"source is all stations":   {edit(frametest.UDP4(o4(my4)), func(f []byte) { copy(f[6:12], addr.Broadcast[:]) }), FrameBadSource},
	}
}

func TestIsolatedEgress(t *testing.T) {
	for name, c := range claims(here, behindB) {
		t.Run(name, func(t *testing.T) {
			w := newIsolated(t, full)
			w.net.Neighbors.Set(byHand, frametest.MAC(here))
			got := w.send(t, plain(c.inner))
			for _, a := range w.egress.Answers {
				w.egress.ReportAnswer(a, NotDropped)
			}
			w.wantClaim(t, c, len(got)+len(w.egress.Answers))
		})
	}
}

func TestIsolatedIngress(t *testing.T) {
	for name, c := range claims(behindB, here) {
		t.Run(name, func(t *testing.T) {
			w := newIsolated(t, full)
			w.net.Neighbors.Set(byHand, frametest.MAC(behindB))
			n := w.net.FDB.Len()
			w.wantClaim(t, c, len(w.receive(Received{From: peerB, Data: encap(testVNI, c.inner)})))
			if w.net.FDB.Len() != n {
				t.Error("something was learned")
			}
		})
	}
}

// TestIsolatedOffloads has a station ask for its checksum to be written over its own, honest, source address, after
// which that of another stands there.
func TestIsolatedOffloads(t *testing.T) {
	const field = 14 + 8 + 14 // the last two bytes of the IPv6 source
	w := newIsolated(t, full)
	f := frametest.UDP6(frametest.Opts{Payload: 64}).Bytes()
	tune := f[len(f)-2:]
	clear(tune)
	want := uint16(behindA)
	binary.BigEndian.PutUint16(tune, checksum.Fold(uint64(^want)+uint64(^checksum.Fold(checksum.Sum(f[field:], 0)))))
	h := header.VirtioNet{Flags: header.VirtioFlagNeedsCsum, CsumStart: field}
	lie := bytes.Clone(f)
	if gso.CompleteOffload(lie, &h); header.IPv6(lie[14:]).Src() != frametest.IP6(behindA) {
		t.Fatalf("the source becomes %v", header.IPv6(lie[14:]).Src())
	}
	if got := w.send(t, fromTAP(h, f)); len(got) != 0 {
		t.Errorf("%d datagrams left", len(got))
	}
	w.wantDropped(t, SourceIPSpoofed, 1)
	w.checkLaw(t)
}

// TestIsolatedProbesOfAnother offers what this host's table would have answered on the way out: from the underlay,
// nobody honest sends it.
func TestIsolatedProbesOfAnother(t *testing.T) {
	me := frametest.MAC(behindB)
	for name, c := range map[string]claim{
		"ARP, behind another": {frametest.ARPRequest(me, none4, frametest.IP4(behindA)).Bytes(), ARPSpoofed},
		"ARP, here":           {frametest.ARPRequest(me, none4, frametest.IP4(here)).Bytes(), ARPSpoofed},
		"ARP, nobody":         {frametest.ARPRequest(me, none4, frametest.IP4(nobody)).Bytes(), ARPSpoofed},
		"DAD, behind another": {frametest.NeighborSol(me, none6, frametest.IP6(behindA)).Bytes(), NDSpoofed},
		"DAD, here":           {frametest.NeighborSol(me, none6, frametest.IP6(here)).Bytes(), NDSpoofed},
		"DAD, link-local":     {frametest.NeighborSol(me, none6, linkLocal(here)).Bytes(), NDSpoofed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newIsolated(t, full)
			w.wantClaim(t, c, len(w.receive(Received{From: peerB, Data: encap(testVNI, c.inner)})))
		})
	}
}

// wantClaim checks the outcome of one frame of claims, out of which came this many.
func (w *world) wantClaim(t *testing.T, c claim, passed int) {
	t.Helper()
	w.checkLaw(t)
	if c.want != NotDropped {
		if passed != 0 {
			t.Errorf("it passed %d times", passed)
		}
		w.wantDropped(t, c.want, 1)
		return
	}
	if sum := w.net.Counters.Drops.Sum(); passed == 0 || sum != 0 {
		t.Errorf("it passed %d times and was dropped %d times", passed, sum)
		for r := range NumReasons {
			if w.dropped(r) > 0 {
				t.Logf("  %v", r)
			}
		}
	}
}
