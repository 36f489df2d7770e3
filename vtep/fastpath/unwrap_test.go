package fastpath

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// Places in a wrapped packet.
const (
	ipAt    = header.EthernetLen
	udpAt   = ipAt + header.IPv4MinLen
	vxlanAt = udpAt + header.UDPLen
)

// sums makes the checksum of the outer IPv4 header right.
func sums(b []byte) []byte {
	ip := b[ipAt : ipAt+int(b[ipAt]&0xf)*4]
	ip[10], ip[11] = 0, 0
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return b
}

// TestUnwrap looks that every kind of frame comes out as it was, from packets by an encoder that is not ours.
func TestUnwrap(t *testing.T) {
	r := newRig(t)
	for _, payload := range []int{0, 1, 1300} {
		for _, s := range plain(frametest.Opts{Payload: payload, TOS: 0xb9}) {
			slot := r.await(s.frame, s.from, roomy)
			for _, checksum := range []bool{true, false} {
				b := carry(s.frame, func(l *layers.IPv4) { l.TOS = 0xe0 })
				if !checksum {
					b[udpAt+6], b[udpAt+7] = 0, 0
				}
				got := r.arrives(b, 0)
				if err := got.sent(s.frame); err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
			}
			if frames, bytes, lost := r.Count(slot); frames != 2 || bytes != uint64(2*len(s.frame)) || lost != 0 {
				t.Errorf("%s: counted as %d frames, %d bytes, %d lost", s.name, frames, bytes, lost)
			}
		}
	}
}

// figure4 is what RFC 6040 makes of an inner ECN field, the first index, and an outer one. A frame is dropped where it has -1.
var figure4 = [4][4]int{
	header.ECNNotECT: {0, 0, 0, -1},
	header.ECNECT1:   {1, 1, 1, 3},
	header.ECNECT0:   {2, 1, 2, 3},
	header.ECNCE:     {3, 3, 3, 3},
}

// TestUnwrapECN looks that only such frames are unwrapped whose ECN field stays as it is, and without which nobody hears of
// congestion.
func TestUnwrapECN(t *testing.T) {
	r := newRig(t)
	for inner := range uint8(4) {
		for _, s := range plain(frametest.Opts{TOS: 0x20 | inner}) {
			r.await(s.frame, s.from, roomy)
			for outer := range uint8(4) {
				r.reopen()
				b := carry(s.frame, func(l *layers.IPv4) { l.TOS = 0x40 | outer })
				got := r.arrives(b, 0)
				fast := got.verdict == redirected
				if fast && figure4[inner][outer] != int(inner) {
					t.Errorf("%s, inner %d, outer %d: unwrapped as it was", s.name, inner, outer)
				}
				if usual := outer == header.ECNNotECT || outer == inner; usual && !fast {
					t.Errorf("%s, inner %d, outer %d: left to userspace", s.name, inner, outer)
				}
			}
		}
	}
}

// TestArrivesOtherwise changes each thing in turn that a packet must have to be unwrapped.
func TestArrivesOtherwise(t *testing.T) {
	r := newRig(t)
	type row struct {
		reason string
		change func(b []byte) []byte
		count  bool // at the gates, as the kernel gives it to our socket, and it may be a frame of a flow
	}
	insert := func(b []byte, at int, more ...byte) []byte { return slices.Insert(slices.Clone(b), at, more...) }
	set := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return sums(b) }
	}
	longer := func(b []byte) []byte { // something behind the inner packet
		b = append(b, 0, 0)
		binary.BigEndian.PutUint16(b[ipAt+2:], uint16(len(b)-ipAt))
		binary.BigEndian.PutUint16(b[udpAt+4:], uint16(len(b)-udpAt))
		return sums(b)
	}
	rows := []row{
		{"for another host's MAC address", set(5, 1), false},
		{"for a group of MAC addresses", set(0, 1), false},
		{"to all hosts", func(b []byte) []byte { copy(b, []byte{255, 255, 255, 255, 255, 255}); return b }, false},
		{"tagged", func(b []byte) []byte { return insert(b, 12, 0x81, 0, 0, 5) }, false},
		{"IPv6 by its EtherType", func(b []byte) []byte { b[12], b[13] = 0x86, 0xdd; return b }, false},
		{"another IP version", set(ipAt, 0x65), false},
		{"outer options", func(b []byte) []byte {
			b = insert(b, udpAt, 1, 1, 1, 1)
			b[ipAt] = 0x46
			b[ipAt+3] += 4
			return sums(b)
		}, false},
		{"first fragment", set(ipAt+6, 0x20), false},
		{"later fragment", set(ipAt+7, 1), false},
		{"not UDP", set(ipAt+9, header.ProtoTCP), false},
		{"another port", set(udpAt+3, port&0xff+1), false},
		{"another destination address", set(ipAt+19, 77), false},
		{"wrong IP checksum", func(b []byte) []byte { b[ipAt+10]++; return b }, false},
		{"IP checksum of another TTL", func(b []byte) []byte { b[ipAt+8]--; return b }, false},
		{"another source address", set(ipAt+15, 77), true},
		{"no I flag", set(vxlanAt, 0), false},
		{"another flag", set(vxlanAt, 0x0c), true},
		{"a reserved byte", set(vxlanAt+1, 1), true},
		{"another reserved byte", set(vxlanAt+3, 0x80), true},
		{"the last reserved byte", set(vxlanAt+7, 1), true},
		{"another VNI", set(vxlanAt+6, 0x57), true},
		{"another VNI by its first byte", set(vxlanAt+4, 0x13), true},
		{"another inner destination", set(encapsulated+5, 9), true},
		{"another inner source", set(encapsulated+11, 9), true},
		{"another inner source address", set(encapsulated+header.EthernetLen+15, 9), true},
		{"padding behind the inner packet", longer, true},
		{"an IP length that is less", set(ipAt+3, 1), true},
		{"an IP length that is more", set(ipAt+2, 2), true},
		{"padding behind the outer packet", func(b []byte) []byte { return append(b, 0) }, true},
		{"UDP length beyond the packet", func(b []byte) []byte { b[udpAt+5]++; return b }, true},
		{"UDP length short of the packet", func(b []byte) []byte { b[udpAt+5]--; return b }, true},
		{"UDP length 0", func(b []byte) []byte { b[udpAt+4], b[udpAt+5] = 0, 0; return b }, true},
		{"inner length short of the packet", set(encapsulated+header.EthernetLen+3, 40), true},
	}
	frame := frametest.TCP4(frametest.Opts{Payload: 50}).Bytes()
	r.await(frame, frametest.IP4(1), roomy)
	// Of what has something reserved set an entry is not made by hand, but by what userspace reads in it.
	reserved := carry(frame)
	reserved[vxlanAt+7] = 1
	k, _ := r.Arriving(there4, here4, reserved[vxlanAt:])
	r.must(r.SetArrive(k, r.slot(), Target{Device: 1}, roomy))
	for _, row := range rows {
		r.reopen()
		b := row.change(carry(frame))
		want := map[uint32]uint64{}
		if row.count {
			from := netip.AddrFrom4([4]byte(b[ipAt+12:]))
			want[gateOf(outerHash(from, source))] = uint64(len(b) - vxlanAt)
		}
		got := r.arrives(b, 0)
		if err := got.untouched(b, want); err != nil {
			t.Errorf("%s: %v", row.reason, err)
		}
	}
	r.reopen()
	got := r.arrives(carry(frame), 0)
	if err := got.sent(frame); err != nil {
		t.Errorf("with nothing changed: %v", err)
	}
}

// TestArrivesCut cuts a packet off at every place behind its outer IP header.
func TestArrivesCut(t *testing.T) {
	r := newRig(t)
	for _, s := range plain(frametest.Opts{Payload: 20}) {
		r.await(s.frame, s.from, roomy)
		whole := carry(s.frame)
		for n := udpAt; n < len(whole); n++ {
			r.reopen()
			want := map[uint32]uint64{}
			if n >= encapsulated+header.EthernetLen {
				want[gateOf(outerHash(there4, source))] = uint64(n - vxlanAt)
			}
			got := r.arrives(whole[:n:n], 0)
			if err := got.untouched(whole[:n], want); err != nil {
				t.Fatalf("%s: %d of %d bytes: %v", s.name, n, len(whole), err)
			}
		}
	}
}

// TestLocals looks that only packets to the addresses that were stated last are looked at.
func TestLocals(t *testing.T) {
	r := newRig(t)
	frame := frametest.TCP4(frametest.Opts{}).Bytes()
	r.await(frame, frametest.IP4(1), roomy)
	b := carry(frame)
	six := netip.MustParseAddr("2001:db8::1")
	for _, step := range []struct {
		locals []netip.Addr
		ours   bool
	}{
		{[]netip.Addr{elsewhere4, six}, false}, {nil, false}, {[]netip.Addr{elsewhere4, here4}, true}, {[]netip.Addr{here4}, true}, {[]netip.Addr{six}, false},
	} {
		r.must(r.SetLocals(step.locals))
		if got := r.arrives(b, 0); got.verdict == redirected != step.ours || len(got.slow) != 0 {
			t.Errorf("%v: verdict %d, counted %v", step.locals, got.verdict, got.slow)
		}
		var key [4]byte
		var value, n uint32
		for all := r.locals.Iterate(); all.Next(&key, &value); n++ {
			if !slices.Contains(step.locals, netip.AddrFrom4(key)) {
				t.Errorf("%v: %v is noted", step.locals, key)
			}
		}
	}
}
