package frametest

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/header"
)

// MAC returns the unicast address of station n: 02:00:00:00:hi:lo.
func MAC(n uint16) addr.MAC { return addr.MAC{2, 0, 0, 0, byte(n >> 8), byte(n)} }

// IP4 returns the overlay address of station n: 10.42.hi.lo.
func IP4(n uint16) netip.Addr { return netip.AddrFrom4([4]byte{10, 42, byte(n >> 8), byte(n)}) }

// IP6 returns the overlay address of station n: fd42::n.
func IP6(n uint16) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0x42, 14: byte(n >> 8), 15: byte(n)})
}

// Pattern returns n bytes that differ from place to place without a short period, so that payload that went
// to the wrong place is seen.
func Pattern(n int) []byte {
	p := make([]byte, n)
	x := uint32(0x9e3779b9)
	for i := range p {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		p[i] = byte(x)
	}
	return p
}

// Opts says what is special about a frame. The zero value is a frame from station 1 to station 2, without
// tags, with no payload.
type Opts struct {
	SrcMAC, DstMAC   addr.MAC   // zero: MAC(1), MAC(2)
	VLANs            []uint16   // 802.1Q tags, outermost first
	Src, Dst         netip.Addr // zero: IP4 or IP6 of 1 and 2
	SrcPort, DstPort uint16     // zero: 40000, 80
	TOS              uint8      // or traffic class
	Fragmentable     bool       // IPv4: DF is clear
	Seq, Ack         uint32     // TCP
	Flags            uint8      // TCP; zero: header.TCPAck
	Options          []layers.TCPOption
	Payload          int    // bytes of Pattern
	Data             []byte // in place of Payload
}

// TCP4 is TCP over IPv4.
func TCP4(o Opts) *Builder { return o.tcp(o.ip4()) }

// TCP6 is TCP over IPv6.
func TCP6(o Opts) *Builder { return o.tcp(o.ip6()) }

// UDP4 is UDP over IPv4.
func UDP4(o Opts) *Builder { return o.udp(o.ip4()) }

// UDP6 is UDP over IPv6.
func UDP6(o Opts) *Builder { return o.udp(o.ip6()) }

// Ping4 is an ICMP echo request.
func Ping4(o Opts) *Builder {
	return o.ip4().ICMP(header.ICMPEcho, 0, 1, 1).Data(o.payload())
}

// Ping6 is an ICMPv6 echo request.
func Ping6(o Opts) *Builder {
	return o.ip6().ICMPv6(header.ICMPv6Echo, 0).Data(append([]byte{0, 1, 0, 1}, o.payload()...))
}

// ARPRequest asks everybody for target.
func ARPRequest(src addr.MAC, sender, target netip.Addr) *Builder {
	return Ethernet(addr.Broadcast, src).ARP(header.ARPRequest, src, sender, addr.MAC{}, target)
}

// ARPReply tells dst that sender is at src.
func ARPReply(src addr.MAC, sender netip.Addr, dst addr.MAC, target netip.Addr) *Builder {
	return Ethernet(dst, src).ARP(header.ARPReply, src, sender, dst, target)
}

// NeighborSol is a neighbor solicitation to the solicited-node address of target, with the source link-layer
// address option unless sender is unspecified, as in duplicate address detection (RFC 4861, section 4.3).
func NeighborSol(src addr.MAC, sender, target netip.Addr) *Builder {
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	dst := addr.MAC{0x33, 0x33, 0xff, t[13], t[14], t[15]}
	body := append(make([]byte, 4), t[:]...)
	if !sender.IsUnspecified() {
		body = appendLinkAddr(body, header.NDOptionSourceLinkAddr, src)
	}
	return Ethernet(dst, src).IPv6(sender, group, ndHopLimit).ICMPv6(header.ICMPv6NeighborSol, 0).Data(body)
}

// NeighborAdv is a neighbor advertisement from src to dst that target is at src, with the target link-layer address
// option (RFC 4861, section 4.4). flags are those of header.NDFlagRouter and its like.
func NeighborAdv(src addr.MAC, sender netip.Addr, dst addr.MAC, to, target netip.Addr, flags uint8) *Builder {
	t := target.As16()
	body := append([]byte{flags, 0, 0, 0}, t[:]...)
	body = appendLinkAddr(body, header.NDOptionTargetLinkAddr, src)
	return Ethernet(dst, src).IPv6(sender, to, ndHopLimit).ICMPv6(header.ICMPv6NeighborAdv, 0).Data(body)
}

func ndHopLimit(l *layers.IPv6) { l.HopLimit = header.NDHopLimit }

func appendLinkAddr(b []byte, kind uint8, m addr.MAC) []byte {
	return append(append(b, kind, 1), m[:]...)
}

// TCPFlags sets all flags of a TCP header at once.
func TCPFlags(f uint8) func(*layers.TCP) {
	return func(l *layers.TCP) {
		l.FIN, l.SYN, l.RST, l.PSH = f&header.TCPFin != 0, f&header.TCPSyn != 0, f&header.TCPRst != 0, f&header.TCPPsh != 0
		l.ACK, l.URG, l.ECE, l.CWR = f&header.TCPAck != 0, f&header.TCPUrg != 0, f&header.TCPEce != 0, f&header.TCPCwr != 0
	}
}

// MSS is the maximum segment size option.
func MSS(n uint16) layers.TCPOption {
	return option(layers.TCPOptionKindMSS, binary.BigEndian.AppendUint16(nil, n))
}

// Timestamps is the timestamps option, which with two NOPs before it is 12 bytes long.
func Timestamps(value, echo uint32) layers.TCPOption {
	return option(layers.TCPOptionKindTimestamps, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, value), echo))
}

// MD5 is the option with the signature of RFC 2385, which is not right: nothing here verifies it.
func MD5() layers.TCPOption { return option(layers.TCPOptionKind(header.TCPOptionMD5), Pattern(16)) }

// AO is the option with the signature of RFC 5925, which is not right either.
func AO() layers.TCPOption { return option(layers.TCPOptionKind(header.TCPOptionAO), Pattern(14)) }

// Nop is the option that pads.
func Nop() layers.TCPOption {
	return layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1}
}

func option(kind layers.TCPOptionKind, data []byte) layers.TCPOption {
	return layers.TCPOption{OptionType: kind, OptionLength: uint8(len(data) + 2), OptionData: data}
}

func (o Opts) ethernet() *Builder {
	if o.SrcMAC.IsZero() {
		o.SrcMAC = MAC(1)
	}
	if o.DstMAC.IsZero() {
		o.DstMAC = MAC(2)
	}
	b := Ethernet(o.DstMAC, o.SrcMAC)
	for _, id := range o.VLANs {
		b.VLAN(id)
	}
	return b
}

func (o Opts) ip4() *Builder {
	src, dst := o.addresses(IP4)
	return o.ethernet().IPv4(src, dst, func(l *layers.IPv4) {
		l.TOS = o.TOS
		if o.Fragmentable {
			l.Flags = 0
		}
	})
}

func (o Opts) ip6() *Builder {
	src, dst := o.addresses(IP6)
	return o.ethernet().IPv6(src, dst, func(l *layers.IPv6) { l.TrafficClass = o.TOS })
}

func (o Opts) addresses(ip func(uint16) netip.Addr) (src, dst netip.Addr) {
	src, dst = o.Src, o.Dst
	if !src.IsValid() {
		src = ip(1)
	}
	if !dst.IsValid() {
		dst = ip(2)
	}
	return src, dst
}

func (o Opts) ports() (src, dst uint16) {
	src, dst = o.SrcPort, o.DstPort
	if src == 0 {
		src = 40000
	}
	if dst == 0 {
		dst = 80
	}
	return src, dst
}

func (o Opts) tcp(b *Builder) *Builder {
	src, dst := o.ports()
	flags := o.Flags
	if flags == 0 {
		flags = header.TCPAck
	}
	return b.TCP(src, dst, TCPFlags(flags), func(l *layers.TCP) {
		l.Seq, l.Ack, l.Options = o.Seq, o.Ack, o.Options
	}).Data(o.payload())
}

func (o Opts) udp(b *Builder) *Builder {
	src, dst := o.ports()
	return b.UDP(src, dst).Data(o.payload())
}

func (o Opts) payload() []byte {
	if o.Data != nil {
		return o.Data
	}
	return Pattern(o.Payload)
}
