package header_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Each protocol is tested both ways against gopacket: what the setters write is what it decodes, over memory
// full of noise, so that a setter which leaves bits standing or touches a neighbour is seen; and the getters
// return what was set.

// decoder is what every gopacket layer of these tests can do.
type decoder interface {
	DecodeFromBytes([]byte, gopacket.DecodeFeedback) error
}

func mustDecode(t *rapid.T, l decoder, b []byte) {
	t.Helper()
	if err := l.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		t.Fatalf("gopacket: %v in % x", err, b)
	}
}

// equal fails the test unless all of its pairs are equal.
func equal(t *rapid.T, pairs ...any) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] != pairs[i+1] {
			t.Fatalf("value %d: %v, want %v", i/2, pairs[i], pairs[i+1])
		}
	}
}

// noise draws n bytes.
func noise(t *rapid.T, n int) []byte { return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "noise") }

func genMAC(t *rapid.T, name string) addr.MAC {
	return addr.MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, name))
}

func genIP4(t *rapid.T, name string) netip.Addr {
	return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
}

func genIP6(t *rapid.T, name string) netip.Addr {
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name)))
}

func TestEthernet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.EthernetLen)
		dst, src := genMAC(t, "dst"), genMAC(t, "src")
		typ := rapid.Uint16Range(0x600, 0xffff).Draw(t, "type")
		h := header.Ethernet(b)
		h.SetDst(dst)
		h.SetSrc(src)
		h.SetEtherType(typ)
		equal(t, h.Dst(), dst, h.Src(), src, h.EtherType(), typ)

		var g layers.Ethernet
		mustDecode(t, &g, b)
		equal(t, g.DstMAC.String(), dst.String(), g.SrcMAC.String(), src.String(), uint16(g.EthernetType), typ)
	})
}

func TestVLAN(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.VLANLen)
		prio, id := rapid.Byte().Draw(t, "priority"), rapid.Uint16().Draw(t, "id")
		dei, typ := rapid.Bool().Draw(t, "dei"), rapid.Uint16().Draw(t, "type")
		h := header.VLAN(b)
		set := []func(){
			func() { h.SetPriority(prio) }, func() { h.SetDropEligible(dei) },
			func() { h.SetID(id) }, func() { h.SetEtherType(typ) },
		}
		for _, i := range rapid.Permutation([]int{0, 1, 2, 3}).Draw(t, "order") {
			set[i]()
		}
		equal(t, h.Priority(), prio&7, h.DropEligible(), dei, h.ID(), id&0xfff, h.EtherType(), typ)

		var g layers.Dot1Q
		mustDecode(t, &g, b)
		equal(t, g.Priority, prio&7, g.DropEligible, dei, g.VLANIdentifier, id&0xfff, uint16(g.Type), typ)
	})
}

func TestARP(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.ARPLen)
		op := rapid.Uint16().Draw(t, "op")
		smac, tmac := genMAC(t, "sender"), genMAC(t, "target")
		sip, tip := genIP4(t, "sender"), genIP4(t, "target")
		h := header.ARP(b)
		h.SetEthernetIPv4()
		h.SetOp(op)
		h.SetSenderMAC(smac)
		h.SetSenderIP(sip)
		h.SetTargetMAC(tmac)
		h.SetTargetIP(tip)
		equal(t, h.IsEthernetIPv4(), true, h.Op(), op, h.SenderMAC(), smac, h.SenderIP(), sip, h.TargetMAC(), tmac, h.TargetIP(), tip,
			h.HardwareType(), uint16(1), h.ProtocolType(), header.EtherTypeIPv4, h.HardwareLen(), uint8(6), h.ProtocolLen(), uint8(4))

		var g layers.ARP
		mustDecode(t, &g, b)
		equal(t, g.AddrType, layers.LinkTypeEthernet, g.Protocol, layers.EthernetTypeIPv4, g.Operation, op)
		equal(t, bytes.Equal(g.SourceHwAddress, smac[:]), true, bytes.Equal(g.DstHwAddress, tmac[:]), true,
			bytes.Equal(g.SourceProtAddress, sip.AsSlice()), true, bytes.Equal(g.DstProtAddress, tip.AsSlice()), true)

		// Any other layout is told apart, by each of its four fields.
		i := rapid.IntRange(0, 5).Draw(t, "byte")
		b[i] ^= rapid.ByteRange(1, 255).Draw(t, "flip")
		equal(t, h.IsEthernetIPv4(), false)
	})
}

func TestVXLAN(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.VXLANLen)
		vni := addr.VNI(rapid.Uint32Range(0, uint32(addr.MaxVNI)).Draw(t, "vni"))
		h := header.VXLAN(b)
		h.Encode(vni)
		equal(t, h.Flags(), header.VXLANFlagVNI, h.ValidVNI(), true, h.VNI(), vni)

		got, rest, err := frametest.Datagram(b) // strict about all that is reserved
		if err != nil || got != vni || len(rest) != 0 {
			t.Fatalf("% x: VNI %v, %v", b, got, err)
		}
		var g layers.VXLAN
		mustDecode(t, &g, b)
		equal(t, g.ValidIDFlag, true, g.VNI, uint32(vni), g.GBPExtension, false)

		// A receiver looks at the I flag and the VNI alone.
		b = noise(t, header.VXLANLen)
		h = header.VXLAN(b)
		equal(t, h.ValidVNI(), b[0]&8 != 0, h.VNI(), addr.VNI(b[4])<<16|addr.VNI(b[5])<<8|addr.VNI(b[6]))
	})
}

func TestVXLANEncodeMasksVNI(t *testing.T) {
	b := make([]byte, header.VXLANLen)
	header.VXLAN(b).Encode(1<<24 | 5)
	if want := []byte{8, 0, 0, 0, 0, 0, 5, 0}; !bytes.Equal(b, want) {
		t.Errorf("% x, want % x", b, want)
	}
}
