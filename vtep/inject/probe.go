package inject

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/checksum"
	"github.com/overlayd/overlayd/dataplane/header"
)

const (
	probeSegment  = 1000 // bytes of payload
	probeSegments = 3
	probeSource   = 49152
	// probeWait is how long a packet may take to come back.
	probeWait = 100 * time.Millisecond
	// probeReads bounds how many packets of others are passed over: the kernel may say something on a new device.
	probeReads = 16
)

// defaultRPS says which cores deal with what enters by a new interface, instead of the one that wrote it, as a mask
// in hexadecimal digits and commas. It is that of the reader's network namespace; Linux has it since 6.3.
const defaultRPS = "/proc/sys/net/core/rps_default_mask"

var errLate = errors.New("the kernel hands packets on to another core, so that they could overtake those of the sockets: " +
	"RPS is on for new interfaces (net.core.rps_default_mask)")

// synchronous looks that packets are dealt with within the write. To watch a few would not do: another core may be
// so fast that they look as if they were.
func synchronous() error {
	mask, err := os.ReadFile(defaultRPS)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking whether RPS is on for new interfaces: %w", err)
	}
	if strings.Trim(string(mask), "0,\n") != "" {
		return errLate
	}
	return nil
}

// probe sends superframes of every kind through the TAP and the program back to the TAP, and looks whether they
// are still whole.
func (d *Device) probe() error {
	outer := [][2]netip.Addr{
		{netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom4([4]byte{192, 0, 2, 2})}, // RFC 5737
		{documentation(1), documentation(2)},
	}
	for _, o := range outer {
		p, err := d.NewPath(PathConfig{Local: o[0], Peer: o[1], Port: header.VXLANPort, TTL: 1, Checksum: true, Device: d.Index})
		if err != nil {
			return err
		}
		for _, v6 := range []bool{false, true} {
			datagram, offload := probeDatagram(v6)
			if err := d.probeOne(p, datagram, &offload); err != nil {
				return fmt.Errorf("trying a superframe of type %#02x over %v: %w", offload.GSOType, o[0], err)
			}
		}
	}
	return nil
}

// documentation returns an address that belongs to nobody (RFC 3849).
func documentation(last byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: last})
}

// probeDatagram returns a VXLAN header with a TCP superframe, over IPv4 or IPv6, that nobody waits for.
func probeDatagram(v6 bool) ([]byte, header.VirtioNet) {
	l3len, ethertype := header.IPv4MinLen, header.EtherTypeIPv4
	o := header.VirtioNet{
		Flags: header.VirtioFlagNeedsCsum, GSOType: header.GSOTCPv4, GSOSize: probeSegment,
		CsumOffset: header.TCPChecksumOffset, InnerNetwork: innerL3,
	}
	if v6 {
		l3len, ethertype, o.GSOType = header.IPv6Len, header.EtherTypeIPv6, header.GSOTCPv6
	}
	o.CsumStart = uint16(innerL3 + l3len)
	o.HdrLen = o.CsumStart + header.TCPMinLen
	b := make([]byte, int(o.HdrLen)+probeSegment*probeSegments)
	header.VXLAN(b).Encode(1)
	eth := b[header.VXLANLen:]
	eth[0], eth[6] = 2, 2
	binary.BigEndian.PutUint16(eth[12:], ethertype)
	ip := b[innerL3:]
	length := len(ip) - l3len
	tcp := header.TCP(ip[l3len:])
	tcp.SetDataOffset(header.TCPMinLen)
	tcp.SetFlags(header.TCPAck)
	var pseudo uint64
	if v6 {
		ip[0], ip[6], ip[7] = 0x60, header.ProtoTCP, 1
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
		pseudo = checksum.PseudoIPv6(ip[8:24], ip[24:40], header.ProtoTCP, length)
	} else {
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 1, header.ProtoTCP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[10:], ^checksum.Fold(checksum.Sum(ip[:l3len], 0)))
		pseudo = checksum.PseudoIPv4(ip[12:16], ip[16:20], header.ProtoTCP, length)
	}
	binary.BigEndian.PutUint16(tcp[header.TCPChecksumOffset:], checksum.Fold(pseudo))
	return b, o
}

// probeOne injects datagram and takes it when it comes back.
func (d *Device) probeOne(p *Path, datagram []byte, offload *header.VirtioNet) error {
	w := new(Writer)
	if errno := w.Write(p, probeSource, 0, offload, datagram); errno != 0 {
		return fmt.Errorf("writing it: %w", errno)
	}
	b := make([]byte, vnetHeader+maxOuter+len(datagram)+1)
	for range probeReads {
		n, err := unix.Read(d.fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, int(probeWait.Milliseconds())); n == 0 && err == nil {
				return errors.New("the kernel did not redirect it")
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("reading it back: %w", err)
		}
		head := vnetHeader + p.outer
		if n < head || !bytes.Equal(b[vnetHeader:vnetHeader+header.EthernetLen], p.header[:header.EthernetLen]) {
			continue // somebody else's
		}
		var got header.VirtioNet
		got.Decode(b[:vnetHeader])
		if n != head+len(datagram) || got.GSOType != offload.GSOType|p.tunnel || got.GSOSize != offload.GSOSize {
			return fmt.Errorf("the kernel cut it: it came back with %d bytes of %d and type %#02x", n-head, len(datagram), got.GSOType)
		}
		if !bytes.Equal(b[vnetHeader:head], w.head[vnetHeader:head]) || !bytes.Equal(b[head:n], datagram) {
			return errors.New("the kernel changed it on its way")
		}
		return nil
	}
	return fmt.Errorf("it did not come back before %d other packets", probeReads)
}
