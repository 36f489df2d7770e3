package inject

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/header"
)

// innerL3 is where the inner IP header begins in a datagram: behind VXLAN and Ethernet without a tag.
const innerL3 = header.VXLANLen + header.EthernetLen

// Writer holds the memory for the headers of one injection. It belongs to one goroutine; the zero Writer is
// ready for use.
type Writer struct {
	head [vnetHeader + maxOuter]byte
	iov  [2]unix.Iovec
}

// Write injects datagram, a VXLAN header and behind it a TCP superframe, towards the peer of p, from the
// UDP port source and with the outer traffic class tos. offload describes the superframe; its offsets count
// from the beginning of datagram, and the superframe's checksum field must hold the sum of its pseudo-header.
// Neither is changed or kept.
//
// Write does not block. What it returns is 0 or what the kernel has against the packet: EAGAIN when the queues
// of the underlay device are full (see Device.Wait), EINVAL when the headers contradict each other, which is
// found out before the kernel sees them, EMSGSIZE when datagram is larger than p.MaxDatagram.
func (w *Writer) Write(p *Path, source uint16, tos uint8, offload *header.VirtioNet, datagram []byte) unix.Errno {
	if len(datagram) > p.MaxDatagram() {
		return unix.EMSGSIZE
	}
	if !sound(datagram, offload) {
		return unix.EINVAL
	}
	o := *offload
	o.Flags = p.flags
	o.GSOType |= p.tunnel
	o.NumBuffers = 0
	o.HdrLen += uint16(p.outer)
	o.CsumStart += uint16(p.outer)
	o.OuterTransport = uint16(p.outer - header.UDPLen)
	o.InnerNetwork = uint16(p.outer + innerL3)
	o.Encode(w.head[:vnetHeader])
	p.encode(w.head[vnetHeader:vnetHeader+p.outer], source, tos, len(datagram))
	w.iov[0].Base = &w.head[0]
	w.iov[0].SetLen(vnetHeader + p.outer)
	w.iov[1].Base = &datagram[0]
	w.iov[1].SetLen(len(datagram))
	errno := p.dev.writev(w.iov[:])
	w.iov[1].Base = nil // not to be kept
	return errno
}

// sound reports whether datagram is what offload says: a VXLAN header, an untagged Ethernet frame and in it a
// TCP superframe of more than one segment, without IP options or extension headers, whose lengths all agree.
func sound(datagram []byte, o *header.VirtioNet) bool {
	if o.Flags&header.VirtioFlagNeedsCsum == 0 || o.CsumOffset != header.TCPChecksumOffset || int(o.InnerNetwork) != innerL3 ||
		len(datagram) < innerL3+header.IPv4MinLen+header.TCPMinLen {
		return false
	}
	ip := datagram[innerL3:]
	ethertype := binary.BigEndian.Uint16(datagram[innerL3-2:])
	var l3len, total int
	var proto uint8
	switch o.GSOType &^ header.GSOECN {
	case header.GSOTCPv4:
		l3len = header.IPv4MinLen
		total = int(binary.BigEndian.Uint16(ip[2:]))
		proto = ip[9]
		fragment := binary.BigEndian.Uint16(ip[6:])&^0xc000 != 0 // more fragments, or an offset
		if ethertype != header.EtherTypeIPv4 || ip[0] != 0x45 || fragment {
			return false
		}
	case header.GSOTCPv6:
		l3len = header.IPv6Len
		total = header.IPv6Len + int(binary.BigEndian.Uint16(ip[4:]))
		proto = ip[6]
		if ethertype != header.EtherTypeIPv6 || ip[0]>>4 != 6 {
			return false
		}
	default:
		return false
	}
	if proto != header.ProtoTCP || total != len(ip) || len(ip) < l3len+header.TCPMinLen || int(o.CsumStart) != innerL3+l3len {
		return false
	}
	hlen := int(ip[l3len+12]>>4) * 4
	payload := len(ip) - l3len - hlen
	return hlen >= header.TCPMinLen && int(o.HdrLen) == innerL3+l3len+hlen && o.GSOSize > 0 && payload > int(o.GSOSize)
}
