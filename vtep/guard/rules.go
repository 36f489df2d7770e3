package guard

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Where the fields are that rules look at, in bytes from the beginning of their header.
const (
	ethSource, ethType = 6, 12

	arpKind, arpKindLen                     = 0, 6 // hardware and protocol, and the lengths of their addresses
	arpOperation, arpSenderMAC, arpSenderIP = 6, 8, 14

	ipv4Source                = 12
	ipv6PayloadLen, ipv6Proto = 4, 6
	ipv6Source                = 8

	udpDestination = 2

	ndTarget = 8
)

// The link, network and transport headers.
const (
	link      = expr.PayloadBaseLLHeader
	network   = expr.PayloadBaseNetworkHeader
	transport = expr.PayloadBaseTransportHeader
)

// arpEthernetIPv4 is how an ARP packet for IPv4 over Ethernet begins (RFC 826).
var arpEthernetIPv4 = []byte{0, 1, 8, 0, 6, 4}

// writer writes the rules of one port. The first error stays.
type writer struct {
	conn  *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
	err   error
}

// addPort writes the rules of one port, in the order in which forward has them.
func addPort(conn *nftables.Conn, t *nftables.Table, p *Port) error {
	accept := nftables.ChainPolicyAccept
	w := &writer{conn: conn, table: t, chain: conn.AddChain(&nftables.Chain{
		Table: t, Name: p.Device, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Device: p.Device, Policy: &accept,
	})}
	w.drop(forward.SourceSpoofed, not(link, ethSource, p.MAC[:]))
	w.drop(forward.ProtocolRefused, w.outside(link, ethType, u16(header.EtherTypeIPv4), u16(header.EtherTypeARP), u16(header.EtherTypeIPv6)))
	w.ipv4(p)
	w.arp(p)
	w.ipv6(p)
	if w.err != nil {
		return fmt.Errorf("making the rules for %s: %w", p.Device, w.err)
	}
	return nil
}

func (w *writer) ipv4(p *Port) {
	ipv4 := is(link, ethType, u16(header.EtherTypeIPv4))
	w.drop(forward.SourceIPSpoofed, ipv4, w.outside(network, ipv4Source, p.addresses(netip.Addr.Is4)...))
	w.drop(forward.RogueDHCP, ipv4, upper(unix.IPPROTO_UDP), is(transport, udpDestination, u16(header.DHCPClientPort)))
}

// arp lets a probe pass, which names no sender (RFC 5227, section 1.1): the owner of the address will answer.
func (w *writer) arp(p *Port) {
	arp := is(link, ethType, u16(header.EtherTypeARP))
	nobody := make([]byte, 4)
	w.drop(forward.ProtocolRefused, arp, not(network, arpKind, arpEthernetIPv4))
	w.drop(forward.ARPSpoofed, arp, not(network, arpSenderMAC, p.MAC[:]))
	w.drop(forward.ARPSpoofed, arp, w.outside(network, arpSenderIP, append(p.addresses(netip.Addr.Is4), nobody)...))
	w.drop(forward.ARPSpoofed, arp, is(network, arpSenderIP, nobody), not(network, arpOperation, u16(header.ARPRequest)))
}

func (w *writer) ipv6(p *Port) {
	ipv6 := is(link, ethType, u16(header.EtherTypeIPv6))
	own := append(p.addresses(netip.Addr.Is6), linkLocal(p.MAC))
	nobody := make([]byte, 16)
	nameless := is(network, ipv6Source, nobody)
	icmp := upper(unix.IPPROTO_ICMPV6)
	w.drop(forward.SourceIPSpoofed, ipv6, w.outside(network, ipv6Source, append(own, nobody)...))
	w.drop(forward.SourceIPSpoofed, ipv6, nameless, notUpper(unix.IPPROTO_ICMPV6))
	w.drop(forward.SourceIPSpoofed, ipv6, nameless, icmp, w.outside(transport, 0,
		[]byte{header.ICMPv6MLDReport}, []byte{header.ICMPv6MLDDone}, []byte{header.ICMPv6MLDv2Report},
		[]byte{header.ICMPv6RouterSol}, []byte{header.ICMPv6NeighborSol}))
	w.drop(forward.RogueDHCP, ipv6, upper(unix.IPPROTO_UDP), is(transport, udpDestination, u16(header.DHCPv6ClientPort)))
	for _, kind := range []uint8{header.ICMPv6RouterAdv, header.ICMPv6Redirect} {
		w.drop(forward.RogueRouter, ipv6, icmp, is(transport, 0, []byte{kind}))
	}
	w.drop(forward.NDSpoofed, ipv6, icmp, is(transport, 0, []byte{header.ICMPv6NeighborAdv}), w.outside(transport, ndTarget, own...))
	for _, m := range []struct {
		kind  uint8
		fixed int
	}{
		{header.ICMPv6RouterSol, header.NDRouterSolLen},
		{header.ICMPv6NeighborSol, header.NDNeighborLen},
		{header.ICMPv6NeighborAdv, header.NDNeighborLen},
	} {
		message := func(more ...[]expr.Any) [][]expr.Any {
			return append([][]expr.Any{ipv6, icmp, is(transport, 0, []byte{m.kind})}, more...)
		}
		w.options(message, m.fixed, p.MAC)
	}
}

// options allows a neighbour discovery message one option of 8 bytes, which must not name another link-layer address
// than the sender's. A message that came in fragments, or behind extension headers, has another length than that.
func (w *writer) options(message func(...[]expr.Any) [][]expr.Any, fixed int, mac addr.MAC) {
	plain, one := u16(uint16(fixed)), u16(uint16(fixed+header.NDLinkAddrLen))
	w.drop(forward.NDSpoofed, message(w.outside(network, ipv6PayloadLen, plain, one))...)
	w.drop(forward.NDSpoofed, message(not(network, ipv6Proto, []byte{unix.IPPROTO_ICMPV6}))...)
	link := [][]byte{{header.NDOptionSourceLinkAddr, 1}, {header.NDOptionTargetLinkAddr, 1}}
	w.drop(forward.NDSpoofed, message(is(network, ipv6PayloadLen, one),
		w.outside(transport, fixed, append(link, []byte{header.NDOptionNonce, 1})...))...)
	for _, option := range link {
		w.drop(forward.NDSpoofed, message(is(network, ipv6PayloadLen, one), is(transport, fixed, option), not(transport, fixed+2, mac[:]))...)
	}
}

// drop adds a rule: what all conditions hold for is counted and dropped.
func (w *writer) drop(reason forward.DropReason, conditions ...[]expr.Any) {
	var all []expr.Any
	for _, c := range conditions {
		all = append(all, c...)
	}
	all = append(all, &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: reason.String()}, &expr.Verdict{Kind: expr.VerdictDrop})
	w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: w.chain, Exprs: all})
}

// setTypes are by the length of the values. The kernel compares bytes and asks for no more than the length.
var setTypes = map[int]nftables.SetDatatype{
	1: nftables.TypeInetProto, 2: nftables.TypeInetService, 4: nftables.TypeIPAddr, 16: nftables.TypeIP6Addr,
}

// outside holds where a field has none of the values, which are of the same length.
func (w *writer) outside(base expr.PayloadBase, offset int, values ...[]byte) []expr.Any {
	if len(values) == 0 {
		return nil // every value is none of them
	}
	size := len(values[0])
	set := &nftables.Set{Table: w.table, Anonymous: true, Constant: true, KeyType: setTypes[size]}
	var elements []nftables.SetElement
	for _, v := range values {
		elements = append(elements, nftables.SetElement{Key: v})
	}
	if err := w.conn.AddSet(set, elements); err != nil && w.err == nil {
		w.err = err
	}
	return []expr.Any{load(base, offset, size), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: true}}
}

func load(base expr.PayloadBase, offset, size int) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: uint32(offset), Len: uint32(size)}
}

func is(base expr.PayloadBase, offset int, value []byte) []expr.Any {
	return []expr.Any{load(base, offset, len(value)), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func not(base expr.PayloadBase, offset int, value []byte) []expr.Any {
	return []expr.Any{load(base, offset, len(value)), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: value}}
}

// upper holds for packets of a protocol, behind whatever extension headers.
func upper(protocol byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}}}
}

func notUpper(protocol byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{protocol}}}
}

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// addresses are those of one family.
func (p *Port) addresses(family func(netip.Addr) bool) [][]byte {
	var out [][]byte
	for _, a := range p.Addresses {
		if family(a) {
			out = append(out, a.AsSlice())
		}
	}
	return out
}

// linkLocal is the address that follows from the MAC (RFC 4291, appendix A).
func linkLocal(m addr.MAC) []byte {
	const local = 2
	return []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ local, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}
}
