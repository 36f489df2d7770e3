package underlay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/inject"
)

const wholeSegment = 1000

// injector opens a device for superframes here.
func (h *hosts) injector(t *testing.T) *inject.Device {
	t.Helper()
	d, err := inject.Open(nil)
	if err != nil {
		if os.Getenv("CI") != "true" {
			t.Skipf("this kernel cannot: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// whole gives a destination its way for superframes.
func whole(t *testing.T, d *Destination, dev *inject.Device, from, to netip.Addr) {
	t.Helper()
	var err error
	d.Whole, err = dev.NewPath(inject.PathConfig{
		Local: from, Peer: to, Port: port, TTL: 64, Checksum: true, Device: eth0(t).Attrs().Index,
	})
	must(t, err)
}

// whole appends a superframe of n segments, to be sent uncut.
func (x *traffic) whole(to fdb.VTEPID, bucket, n int) {
	o, f := frametest.TCP4(frametest.Opts{Payload: n * wholeSegment, Seq: uint32(len(x.sent))}).Offload(wholeSegment)
	b := append(make([]byte, header.VXLANLen), f...)
	header.VXLAN(b).Encode(42)
	o.CsumStart += header.VXLANLen
	o.HdrLen += header.VXLANLen
	o.InnerNetwork = header.VXLANLen + header.EthernetLen
	x.sends = append(x.sends, forward.Send{
		VTEP: to, Bucket: bucket, Size: len(b), First: len(x.pieces), End: len(x.pieces) + 1, PerDatagram: 1,
		Frames: n, Bytes: len(b), Whole: true, Offload: o,
	})
	x.pieces = append(x.pieces, b)
	x.sent = append(x.sent, string(b))
}

// What goes whole arrives whole, from the port that everything of its flow comes from, and in order with what goes
// by the sockets.
func TestWholeKeepsTheOrder(t *testing.T) {
	h := newHosts(t)
	dev := h.injector(t)
	// What the veth makes of a sender that moves from core to core is no matter of ours.
	var before, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &before))
	for i := range len(before) * 64 {
		if before.IsSet(i) {
			one.Set(i)
			break
		}
	}
	must(t, unix.SchedSetaffinity(0, &one))
	defer func() { must(t, unix.SchedSetaffinity(0, &before)) }()
	for family, ends := range families {
		h.enter(t, there)
		fd := plainSocket(t, ends[1], port, false)
		must(t, setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, 64<<20))
		h.enter(t, here)
		for _, sources := range []int{0, 8} {
			c := all(ends[0])
			c.Sources = sources
			a := h.openAt(t, here, c)
			dest := destinations(a, ends[1])
			whole(t, &dest[0], dev, ends[0], ends[1])
			s := NewSender()
			for range 20 {
				var x traffic
				for i := range 10 {
					x.add(0, 3, 0, 1, 120)
					x.whole(0, 3, 2+i%40)
					x.add(0, 3, 0, 1, 100, 100, 100)
					if i%3 == 0 {
						x.whole(0, 3, 44)
						x.whole(0, 3, 3)
					}
				}
				frames := 0
				for i := range x.sends {
					frames += x.sends[i].Frames
				}
				x.send(s, dest).want(t, map[forward.DropReason]int{forward.NotDropped: frames})
				b := make([]byte, 1<<16)
				for i, want := range x.sent {
					n, from, err := next(fd, b)
					must(t, err)
					if string(b[:n]) != want {
						t.Fatalf("%s: datagram %d has %d bytes, want %d, or is another", family, i, n, len(want))
					}
					if p := sourcePort(from); p != a.ports[3&(len(a.ports)-1)] {
						t.Fatalf("%s: datagram %d, of %d bytes, came from port %d, want one of %v", family, i, n, p, a.ports)
					}
				}
			}
			must(t, a.Close())
		}
	}
}

func sourcePort(a unix.Sockaddr) uint16 {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

// The outer headers of both ways differ in nothing that a router could tell flows apart by.
func TestWholeLooksLikeTheRest(t *testing.T) {
	h := newHosts(t)
	dev := h.injector(t)
	for family, ends := range families {
		a := h.openAt(t, here, all(ends[0]))
		dest := destinations(a, ends[1])
		whole(t, &dest[0], dev, ends[0], ends[1])
		wire := h.listen(t)
		var x traffic
		x.whole(0, 5, 2)
		x.add(0, 5, 0, 1, 300)
		x.send(NewSender(), dest)
		var heads [][]byte
		for len(heads) < 3 { // the superframe is cut, since listen turns checksums off
			b := wire()
			if p, err := frametest.Verify(b); err != nil || p.UDP == nil || uint16(p.UDP.DstPort) != port {
				continue
			}
			ip := b[header.EthernetLen:]
			udp := ip[header.IPv6Len:]
			if ends[0].Is4() {
				udp = ip[header.IPv4MinLen:]
				clear(ip[2:6])   // total length, identification
				clear(ip[10:12]) // checksum
			} else {
				clear(ip[4:6])
			}
			binary.BigEndian.PutUint32(udp[4:], 0) // length, checksum
			heads = append(heads, b[:len(b)-len(udp)+header.UDPLen])
		}
		if !bytes.Equal(heads[0], heads[1]) || !bytes.Equal(heads[1], heads[2]) {
			t.Errorf("%s: headers\n% x\n% x\n% x", family, heads[0], heads[1], heads[2])
		}
	}
}

// What cannot be sent whole is counted, and for the reason that the kernel gives.
func TestWholeSendsThatFail(t *testing.T) {
	h := newHosts(t)
	dev := h.injector(t)
	a := h.openAt(t, here, all(here4))
	dest := destinations(a, there4, silent4)
	whole(t, &dest[0], dev, here4, there4)
	s := NewSender()
	fails := func(what string, to fdb.VTEPID, spoil func(*forward.Send), reason forward.DropReason) {
		t.Helper()
		var x traffic
		x.whole(to, 0, 7)
		spoil(&x.sends[0])
		x.send(s, dest).want(t, map[forward.DropReason]int{reason: 7})
	}
	nothing := func(*forward.Send) {}
	fails("no way", 1, nothing, forward.SendFailed)
	fails("no such peer", 9, nothing, forward.SendUnreachable)
	fails("headers that contradict each other", 0, func(s *forward.Send) { s.Offload.CsumStart++ }, forward.SendFailed)
	fails("nothing wrong", 0, nothing, forward.NotDropped)
}
