package inject

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

const (
	vni     = 42
	segment = 1348 // fits into a datagram of 1500 bytes over IPv6, inner IPv6 and TCP options included
)

// superframe returns a datagram with a TCP superframe of n bytes of payload, as Write takes it.
func superframe(v6 bool, n int, o frametest.Opts) (header.VirtioNet, []byte) {
	o.Payload = n
	b := frametest.TCP4(o)
	if v6 {
		b = frametest.TCP6(o)
	}
	offload, frame := b.Offload(segment)
	d := append(make([]byte, header.VXLANLen), frame...)
	header.VXLAN(d).Encode(vni)
	offload.CsumStart += header.VXLANLen
	offload.HdrLen += header.VXLANLen
	offload.InnerNetwork = innerL3
	return offload, d
}

// each calls f for every combination of address families. These are no subtests, which would have a thread of their
// own, in another namespace.
func each(t *testing.T, f func(outer6, inner6 bool)) {
	for _, outer6 := range []bool{false, true} {
		for _, inner6 := range []bool{false, true} {
			t.Logf("over IPv6: %v, IPv6: %v", outer6, inner6)
			f(outer6, inner6)
		}
	}
}

// reach waits until what is injected arrives. On a busy machine the kernel takes its time until it sends by a device that
// has just come up, and drops what comes before.
func reach(t *testing.T, p *Path, fd int, inner6 bool) {
	t.Helper()
	var w Writer
	offload, d := superframe(inner6, 2*segment, frametest.Opts{})
	for end := time.Now().Add(patience); ; {
		if errno := w.Write(p, source, 1, &offload, d); errno != 0 {
			t.Fatal(errno)
		}
		if comes(t, fd, 100*time.Millisecond) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing arrives")
		}
	}
	// There may be more than one by now, of which the last ones are late.
	for more := true; more; more = comes(t, fd, 20*time.Millisecond) {
		read(t, fd)
	}
}

// TestWhole looks that a superframe of any size reaches a socket of the peer in one piece.
func TestWhole(t *testing.T) {
	h := newHosts(t)
	each(t, func(outer6, inner6 bool) {
		for _, checksum := range []bool{true, false} {
			p := h.path(t, outer6, checksum)
			fd := h.listen(t, outer6)
			reach(t, p, fd, inner6)
			wire := h.sniff(t, "eth0")
			var w Writer
			headers := innerL3 + header.IPv4MinLen + header.TCPMinLen
			if inner6 {
				headers = innerL3 + header.IPv6Len + header.TCPMinLen
			}
			for _, n := range []int{segment + 1, 2 * segment, 10*segment + 7, p.MaxDatagram() - headers} {
				offload, d := superframe(inner6, n, frametest.Opts{})
				if errno := w.Write(p, source, 1, &offload, d); errno != 0 {
					t.Fatalf("%d bytes of payload: %v", n, errno)
				}
				if got := read(t, fd); !bytes.Equal(got, d) {
					t.Fatalf("%d bytes of payload: a datagram of %d bytes came, want %d", n, len(got), len(d))
				}
				looks(t, wire(), d, outer6, checksum)
			}
		}
	})
}

// looks checks the outer headers of the packet b, which carries the datagram d.
func looks(t *testing.T, b, d []byte, outer6, checksum bool) {
	t.Helper()
	ip := b[header.EthernetLen:]
	var udp []byte
	if outer6 {
		udp = ip[header.IPv6Len:]
		if v := binary.BigEndian.Uint32(ip); v != 0x60100000 || ip[6] != header.ProtoUDP || ip[7] != 64 {
			t.Errorf("IPv6 header % x: want traffic class 1, flow label 0, hop limit 64", ip[:header.IPv6Len])
		}
		if string(ip[8:24]) != string(here6.AsSlice()) || string(ip[24:40]) != string(there6.AsSlice()) {
			t.Errorf("IPv6 header % x: wrong addresses", ip[:header.IPv6Len])
		}
	} else {
		udp = ip[header.IPv4MinLen:]
		if ip[1] != 1 || ip[6] != 0x40 || ip[8] != 64 || string(ip[12:20]) != string(append(here4.AsSlice(), there4.AsSlice()...)) {
			t.Errorf("IPv4 header % x: want TOS 1, DF, TTL 64 and the two addresses", ip[:header.IPv4MinLen])
		}
	}
	if binary.BigEndian.Uint16(udp) != source || binary.BigEndian.Uint16(udp[2:]) != port || int(binary.BigEndian.Uint16(udp[4:])) != header.UDPLen+len(d) {
		t.Errorf("UDP header % x", udp[:header.UDPLen])
	}
	if has := binary.BigEndian.Uint16(udp[6:]) != 0; has != (checksum || outer6) {
		t.Errorf("UDP header % x: checksum is on: %v", udp[:header.UDPLen], has)
	}
	if !bytes.Equal(udp[header.UDPLen:], d) {
		t.Error("the datagram is not that which was written")
	}
}

// TestCut looks what comes of a superframe on a device that leaves all to software.
func TestCut(t *testing.T) {
	h := newHosts(t)
	change(t, "eth0", map[string]bool{featureTunnel: false, featureTunnelCsum: false, "tx-checksum-ip-generic": false})
	each(t, func(outer6, inner6 bool) {
		for _, checksum := range []bool{true, false} {
			wire := h.sniff(t, "eth0")
			var w Writer
			o := frametest.Opts{TOS: 2, Seq: 1 << 31, Flags: header.TCPAck | header.TCPPsh | header.TCPCwr}
			offload, d := superframe(inner6, 5*segment+9, o)
			want, err := frametest.Segments(d[header.VXLANLen:], segment)
			must(t, err)
			if errno := w.Write(h.path(t, outer6, checksum), source, 2, &offload, d); errno != 0 {
				t.Fatal(errno)
			}
			for i := range want {
				outer, _ := frametest.CheckVXLAN(t, wire(), vni)
				if got := outer.Payload[header.VXLANLen:]; !bytes.Equal(got, want[i]) {
					t.Errorf("segment %d is\n% x, want\n% x", i, got[:80], want[i][:80])
				}
				if (outer.UDP.Checksum != 0) != (checksum || outer6) {
					t.Errorf("segment %d has outer checksum %#04x", i, outer.UDP.Checksum)
				}
			}
		}
	})
}

// TestUnsound looks that nothing that contradicts itself reaches the kernel.
func TestUnsound(t *testing.T) {
	newSpace(t)
	dev := open(t)
	p, err := dev.NewPath(PathConfig{Local: here4, Peer: there4, Port: port, TTL: 64, Checksum: true, Device: 1})
	must(t, err)
	const ip, tcp4, tcp6 = innerL3, innerL3 + header.IPv4MinLen, innerL3 + header.IPv6Len
	put := binary.BigEndian.PutUint16
	both := map[string]func(o *header.VirtioNet, d []byte) []byte{
		"no checksum":              func(o *header.VirtioNet, d []byte) []byte { o.Flags = 0; return d },
		"no superframe":            func(o *header.VirtioNet, d []byte) []byte { o.GSOType = header.GSONone; return d },
		"fragmentation":            func(o *header.VirtioNet, d []byte) []byte { o.GSOType = header.GSOUDP; return d },
		"UDP":                      func(o *header.VirtioNet, d []byte) []byte { o.GSOType = header.GSOUDPL4; return d },
		"other family":             func(o *header.VirtioNet, d []byte) []byte { o.GSOType ^= header.GSOTCPv4 | header.GSOTCPv6; return d },
		"tunnel in a tunnel":       func(o *header.VirtioNet, d []byte) []byte { o.GSOType |= header.GSOUDPTunnelIPv4; return d },
		"segments of 0":            func(o *header.VirtioNet, d []byte) []byte { o.GSOSize = 0; return d },
		"one segment":              func(o *header.VirtioNet, d []byte) []byte { o.GSOSize = 3 * segment; return d },
		"checksum elsewhere":       func(o *header.VirtioNet, d []byte) []byte { o.CsumOffset = header.UDPChecksumOffset; return d },
		"checksum from elsewhere":  func(o *header.VirtioNet, d []byte) []byte { o.CsumStart++; return d },
		"checksum far behind":      func(o *header.VirtioNet, d []byte) []byte { o.CsumStart = 0xfff0; return d },
		"headers too short":        func(o *header.VirtioNet, d []byte) []byte { o.HdrLen--; return d },
		"headers far too long":     func(o *header.VirtioNet, d []byte) []byte { o.HdrLen = 0xfff0; return d },
		"inner IP elsewhere":       func(o *header.VirtioNet, d []byte) []byte { o.InnerNetwork += 4; return d },
		"no EtherType of IP":       func(_ *header.VirtioNet, d []byte) []byte { put(d[ip-2:], header.EtherTypeARP); return d },
		"a VLAN tag":               func(_ *header.VirtioNet, d []byte) []byte { put(d[ip-2:], header.EtherTypeVLAN); return d },
		"no version of IP":         func(_ *header.VirtioNet, d []byte) []byte { d[ip] = 0x55; return d },
		"a byte missing":           func(_ *header.VirtioNet, d []byte) []byte { return d[:len(d)-1] },
		"a byte too many":          func(_ *header.VirtioNet, d []byte) []byte { return append(d, 0) },
		"headers alone":            func(o *header.VirtioNet, d []byte) []byte { return d[:o.HdrLen] },
		"cut within TCP":           func(o *header.VirtioNet, d []byte) []byte { return d[:o.CsumStart+10] },
		"cut within IP":            func(_ *header.VirtioNet, d []byte) []byte { return d[:ip+10] },
		"cut within Ethernet":      func(_ *header.VirtioNet, d []byte) []byte { return d[:ip-1] },
		"nothing":                  func(_ *header.VirtioNet, d []byte) []byte { return nil },
		"TCP header of 16 bytes":   func(o *header.VirtioNet, d []byte) []byte { d[o.CsumStart+12] = 0x40; return d },
		"TCP header of 60 bytes":   func(o *header.VirtioNet, d []byte) []byte { d[o.CsumStart+12] = 0xf0; return d },
		"TCP header behind itself": func(o *header.VirtioNet, d []byte) []byte { d[o.CsumStart+12] = 0; return d },
	}
	families := map[bool]map[string]func(o *header.VirtioNet, d []byte) []byte{
		false: {
			"IP options":      func(_ *header.VirtioNet, d []byte) []byte { d[ip] = 0x46; return d },
			"no IP header":    func(_ *header.VirtioNet, d []byte) []byte { d[ip] = 0x40; return d },
			"length too much": func(_ *header.VirtioNet, d []byte) []byte { put(d[ip+2:], 0xffff); return d },
			"length 0":        func(_ *header.VirtioNet, d []byte) []byte { put(d[ip+2:], 0); return d },
			"first fragment":  func(_ *header.VirtioNet, d []byte) []byte { put(d[ip+6:], 0x2000); return d },
			"last fragment":   func(_ *header.VirtioNet, d []byte) []byte { put(d[ip+6:], 1); return d },
			"protocol":        func(_ *header.VirtioNet, d []byte) []byte { d[ip+9] = header.ProtoUDP; return d },
		},
		true: {
			"length too much":  func(_ *header.VirtioNet, d []byte) []byte { put(d[ip+4:], 0xffff); return d },
			"length 0":         func(_ *header.VirtioNet, d []byte) []byte { put(d[ip+4:], 0); return d },
			"extension header": func(_ *header.VirtioNet, d []byte) []byte { d[ip+6] = 0; return d },
			"protocol":         func(_ *header.VirtioNet, d []byte) []byte { d[ip+6] = header.ProtoUDP; return d },
		},
	}
	for inner6, own := range families {
		run := func(name string, spoil func(o *header.VirtioNet, d []byte) []byte) {
			t.Run(fmt.Sprintf("%s, IPv6 %v", name, inner6), func(t *testing.T) {
				offload, d := superframe(inner6, 3*segment, frametest.Opts{})
				if at := map[bool]int{false: tcp4, true: tcp6}[inner6]; int(offload.CsumStart) != at {
					t.Fatalf("TCP is at %d, want %d", offload.CsumStart, at)
				}
				var w Writer
				if errno := w.Write(p, source, 0, &offload, spoil(&offload, d)); errno != unix.EINVAL {
					t.Errorf("error %v, want EINVAL", errno)
				}
				if w != (Writer{}) {
					t.Error("it was found out too late")
				}
			})
		}
		for name, spoil := range both {
			run(name, spoil)
		}
		for name, spoil := range own {
			run(name, spoil)
		}
	}
	offload, d := superframe(false, 65000, frametest.Opts{})
	big := append(d, make([]byte, 1000)...)
	if errno := new(Writer).Write(p, source, 0, &offload, big); errno != unix.EMSGSIZE {
		t.Errorf("%d bytes: error %v, want EMSGSIZE", len(big), errno)
	}
}

// FuzzSound looks that nothing makes the check of headers read out of bounds, and that what it lets through is
// what an independent decoder takes for a TCP packet.
func FuzzSound(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		o, d := superframe(v6, 3*segment, frametest.Opts{})
		f.Add(d[:innerL3+100], o.Flags, o.GSOType, o.HdrLen, o.GSOSize, o.CsumStart, o.CsumOffset, o.InnerNetwork)
		f.Add(d, o.Flags, o.GSOType, o.HdrLen, o.GSOSize, o.CsumStart, o.CsumOffset, o.InnerNetwork)
	}
	f.Fuzz(func(t *testing.T, d []byte, flags, typ uint8, hlen, size, start, offset, network uint16) {
		o := header.VirtioNet{Flags: flags, GSOType: typ, HdrLen: hlen, GSOSize: size, CsumStart: start, CsumOffset: offset, InnerNetwork: network}
		if !sound(d, &o) {
			return
		}
		if int(start)+int(offset)+2 > len(d) || int(hlen) >= len(d) || int(hlen)+int(size) >= len(d) {
			t.Errorf("%d bytes pass with %+v", len(d), o)
		}
	})
}

// TestNoAllocations injects for a while.
func TestNoAllocations(t *testing.T) {
	h := newHosts(t)
	p := h.path(t, false, true)
	offload, d := superframe(false, 40*segment, frametest.Opts{})
	w := new(Writer)
	if n := testing.AllocsPerRun(200, func() {
		if errno := w.Write(p, source, 0, &offload, d); errno != 0 {
			t.Fatal(errno)
		}
	}); n != 0 {
		t.Errorf("%v allocations a superframe", n)
	}
}
