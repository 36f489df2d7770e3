package header_test

import (
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

func TestTCP(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.TCPMaxLen)
		for i := header.TCPMinLen; i < len(b); i++ {
			b[i] = header.OptionNop
		}
		src, dst := rapid.Uint16().Draw(t, "src"), rapid.Uint16().Draw(t, "dst")
		seq, ack := rapid.Uint32().Draw(t, "seq"), rapid.Uint32().Draw(t, "ack")
		offset := rapid.IntRange(header.TCPMinLen/4, header.TCPMaxLen/4).Draw(t, "offset") * 4
		flags := rapid.Byte().Draw(t, "flags")
		win, sum, urg := rapid.Uint16().Draw(t, "window"), rapid.Uint16().Draw(t, "sum"), rapid.Uint16().Draw(t, "urgent")
		reserved := b[12] & 0x0f

		h := header.TCP(b)
		h.SetSrcPort(src)
		h.SetDstPort(dst)
		h.SetSeq(seq)
		h.SetAck(ack)
		h.SetDataOffset(offset)
		h.SetFlags(flags)
		h.SetWindow(win)
		h.SetChecksum(sum)
		h.SetUrgent(urg)
		equal(t, h.SrcPort(), src, h.DstPort(), dst, h.Seq(), seq, h.Ack(), ack, h.DataOffset(), offset, h.Flags(), flags,
			h.Window(), win, h.Checksum(), sum, h.Urgent(), urg, len(h.Options()), offset-header.TCPMinLen, b[12]&0x0f, reserved)

		var g layers.TCP
		mustDecode(t, &g, b)
		equal(t, uint16(g.SrcPort), src, uint16(g.DstPort), dst, g.Seq, seq, g.Ack, ack, int(g.DataOffset)*4, offset,
			g.FIN, flags&header.TCPFin != 0, g.SYN, flags&header.TCPSyn != 0, g.RST, flags&header.TCPRst != 0, g.PSH, flags&header.TCPPsh != 0,
			g.ACK, flags&header.TCPAck != 0, g.URG, flags&header.TCPUrg != 0, g.ECE, flags&header.TCPEce != 0, g.CWR, flags&header.TCPCwr != 0,
			g.Window, win, g.Checksum, sum, g.Urgent, urg)
	})
}

func TestUDP(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := noise(t, header.UDPLen+3)
		src, dst, sum := rapid.Uint16().Draw(t, "src"), rapid.Uint16().Draw(t, "dst"), rapid.Uint16().Draw(t, "sum")
		h := header.UDP(b)
		h.SetSrcPort(src)
		h.SetDstPort(dst)
		h.SetLength(header.UDPLen + 3)
		h.SetChecksum(sum)
		equal(t, h.SrcPort(), src, h.DstPort(), dst, h.Length(), uint16(header.UDPLen+3), h.Checksum(), sum)

		var g layers.UDP
		mustDecode(t, &g, b)
		equal(t, uint16(g.SrcPort), src, uint16(g.DstPort), dst, g.Length, uint16(header.UDPLen+3), g.Checksum, sum)
	})
}

// A checksum computed with the pseudo-header of the views is the one that gopacket computed.
func TestPseudoSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := frametest.Opts{Payload: rapid.IntRange(0, 3000).Draw(t, "payload"), SrcPort: rapid.Uint16Range(1, 0xffff).Draw(t, "port")}
		check := func(b []byte, pseudo func(uint8, int) uint64, proto uint8) {
			if got := checksum.Fold(checksum.Sum(b, pseudo(proto, len(b)))); got != 0xffff {
				t.Fatalf("protocol %d: sum %#04x, want 0xffff", proto, got)
			}
		}
		f := frametest.TCP4(o).Bytes()[header.EthernetLen:]
		check(f[header.IPv4MinLen:], header.IPv4(f).PseudoSum, header.ProtoTCP)
		f = frametest.UDP4(o).Bytes()[header.EthernetLen:]
		check(f[header.IPv4MinLen:], header.IPv4(f).PseudoSum, header.ProtoUDP)
		f = frametest.TCP6(o).Bytes()[header.EthernetLen:]
		check(f[header.IPv6Len:], header.IPv6(f).PseudoSum, header.ProtoTCP)
		f = frametest.Ping6(o).Bytes()[header.EthernetLen:]
		check(f[header.IPv6Len:], header.IPv6(f).PseudoSum, header.ProtoICMPv6)
	})
}

func genVirtioNet(t *rapid.T) header.VirtioNet {
	u16 := rapid.Uint16()
	return header.VirtioNet{
		Flags: rapid.Byte().Draw(t, "flags"), GSOType: rapid.Byte().Draw(t, "type"),
		HdrLen: u16.Draw(t, "hdr"), GSOSize: u16.Draw(t, "size"), CsumStart: u16.Draw(t, "start"), CsumOffset: u16.Draw(t, "offset"),
		NumBuffers: u16.Draw(t, "buffers"), OuterTransport: u16.Draw(t, "outer"), InnerNetwork: u16.Draw(t, "inner"),
	}
}

func TestVirtioNet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genVirtioNet(t)
		for _, n := range []int{header.VirtioNetLen, header.VirtioNetMrgLen, header.VirtioNetTunnelLen} {
			b := noise(t, n)
			want.Encode(b)
			got := header.VirtioNet{NumBuffers: 1, OuterTransport: 2, InnerNetwork: 3} // to be overwritten
			got.Decode(b)
			short := want
			if n < header.VirtioNetMrgLen {
				short.NumBuffers = 0
			}
			if n < header.VirtioNetTunnelLen {
				short.OuterTransport, short.InnerNetwork = 0, 0
			}
			equal(t, got, short)
		}
	})
}

// The three layouts, byte by byte, as in include/uapi/linux/virtio_net.h.
func TestVirtioNetLayout(t *testing.T) {
	h := header.VirtioNet{
		Flags: 1, GSOType: 0x21, HdrLen: 0x0302, GSOSize: 0x0504, CsumStart: 0x0706, CsumOffset: 0x0908,
		NumBuffers: 0x0b0a, OuterTransport: 0x1514, InnerNetwork: 0x1716,
	}
	want := [header.VirtioNetTunnelLen]byte{1, 0x21, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20: 0x14, 0x15, 0x16, 0x17}
	for _, n := range []int{header.VirtioNetLen, header.VirtioNetMrgLen, header.VirtioNetTunnelLen} {
		got := [header.VirtioNetTunnelLen]byte{}
		for i := range got {
			got[i] = 0xee
		}
		h.Encode(got[:n])
		for i := range got {
			w := want[i]
			if i >= n {
				w = 0xee
			}
			if got[i] != w {
				t.Errorf("form of %d bytes: byte %d is %#02x, want %#02x", n, i, got[i], w)
			}
		}
	}
}
