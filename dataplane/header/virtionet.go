package header

import "encoding/binary"

// Lengths of the three forms of the virtio-net header in bytes, as TUNSETVNETHDRSZ sets them.
const (
	VirtioNetLen       = 10 // struct virtio_net_hdr
	VirtioNetMrgLen    = 12 // struct virtio_net_hdr_mrg_rxbuf: with the number of buffers
	VirtioNetTunnelLen = 24 // struct virtio_net_hdr_v1_hash_tunnel: with hash and tunnel offsets, since Linux 6.17
)

// Flags.
const (
	VirtioFlagNeedsCsum  uint8 = 1 // the checksum at CsumStart + CsumOffset is to be completed from CsumStart on
	VirtioFlagDataValid  uint8 = 2 // the checksum has been verified
	VirtioFlagTunnelCsum uint8 = 8 // the outer UDP header of a tunnel needs a checksum
)

// Types of superframes. GSOUDP is fragmentation into IP fragments, GSOUDPL4 segmentation into datagrams. The
// tunnel bits and GSOECN go on top of a type.
const (
	GSONone          uint8 = 0
	GSOTCPv4         uint8 = 1
	GSOUDP           uint8 = 3
	GSOTCPv6         uint8 = 4
	GSOUDPL4         uint8 = 5
	GSOUDPTunnelIPv4 uint8 = 0x20 // the outer header of the tunnel is IPv4
	GSOUDPTunnelIPv6 uint8 = 0x40 // the outer header of the tunnel is IPv6
	GSOECN           uint8 = 0x80 // the first segment alone may carry CWR
)

const (
	virtioFlags          = 0
	virtioGSOType        = 1
	virtioHdrLen         = 2
	virtioGSOSize        = 4
	virtioCsumStart      = 6
	virtioCsumOffset     = 8
	virtioNumBuffers     = 10
	virtioHash           = 12 // hash value, 4 bytes; hash report, 2; padding, 2: all zero on a TAP
	virtioOuterTransport = 20
	virtioInnerNetwork   = 22
)

// VirtioNet is the header that a TAP opened with IFF_VNET_HDR puts before each frame, and wants before each
// frame written to it (virtio 1.3, section 5.1.6; Linux include/uapi/linux/virtio_net.h). All offsets and
// lengths are in bytes; offsets count from the start of the frame, that is from behind this header.
//
// It is decoded into a struct rather than viewed in place, since its form depends on the TAP and since it
// goes to the kernel from other memory than the frame.
type VirtioNet struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // headers that every segment repeats; a hint, not to be trusted
	GSOSize    uint16 // payload of one segment
	CsumStart  uint16
	CsumOffset uint16 // from CsumStart
	NumBuffers uint16 // 12 and 24-byte forms; 0 otherwise

	OuterTransport uint16 // offset of the outer UDP header; 24-byte form, 0 otherwise
	InnerNetwork   uint16 // offset of the inner IP header; 24-byte form, 0 otherwise
}

// Decode reads a header in the form that len(b) names: VirtioNetLen, VirtioNetMrgLen or
// VirtioNetTunnelLen. It sets every field. The order of bytes is little endian, which is the host's on
// all platforms that have both a TAP and this program, or is asked for with TUNSETVNETLE.
func (h *VirtioNet) Decode(b []byte) {
	_ = b[VirtioNetLen-1]
	*h = VirtioNet{
		Flags:      b[virtioFlags],
		GSOType:    b[virtioGSOType],
		HdrLen:     binary.LittleEndian.Uint16(b[virtioHdrLen:]),
		GSOSize:    binary.LittleEndian.Uint16(b[virtioGSOSize:]),
		CsumStart:  binary.LittleEndian.Uint16(b[virtioCsumStart:]),
		CsumOffset: binary.LittleEndian.Uint16(b[virtioCsumOffset:]),
	}
	if len(b) >= VirtioNetMrgLen {
		h.NumBuffers = binary.LittleEndian.Uint16(b[virtioNumBuffers:])
	}
	if len(b) >= VirtioNetTunnelLen {
		h.OuterTransport = binary.LittleEndian.Uint16(b[virtioOuterTransport:])
		h.InnerNetwork = binary.LittleEndian.Uint16(b[virtioInnerNetwork:])
	}
}

// Encode writes the header in the form that len(b) names, every byte of it. Fields that the form lacks
// are left out; hash and padding of the long form become zero.
func (h VirtioNet) Encode(b []byte) {
	_ = b[VirtioNetLen-1]
	b[virtioFlags] = h.Flags
	b[virtioGSOType] = h.GSOType
	binary.LittleEndian.PutUint16(b[virtioHdrLen:], h.HdrLen)
	binary.LittleEndian.PutUint16(b[virtioGSOSize:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[virtioCsumStart:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[virtioCsumOffset:], h.CsumOffset)
	if len(b) >= VirtioNetMrgLen {
		binary.LittleEndian.PutUint16(b[virtioNumBuffers:], h.NumBuffers)
	}
	if len(b) >= VirtioNetTunnelLen {
		binary.LittleEndian.PutUint64(b[virtioHash:], 0)
		binary.LittleEndian.PutUint16(b[virtioOuterTransport:], h.OuterTransport)
		binary.LittleEndian.PutUint16(b[virtioInnerNetwork:], h.InnerNetwork)
	}
}
