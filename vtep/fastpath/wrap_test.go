package fastpath

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// TestWrap takes apart what the program makes of each kind of frame, with each ECN field.
func TestWrap(t *testing.T) {
	r := newRig(t)
	for ecn := range uint8(4) {
		for _, payload := range []int{0, 1, 1300} {
			for _, s := range plain(frametest.Opts{Payload: payload, TOS: 0xb8 | ecn}) {
				r.reopen()
				slot := r.keep(s.frame, s.from, way(), roomy)
				got := r.leaves(s.frame, 0)
				if err := got.sent(nil); err != nil {
					t.Fatalf("%s: %v", s.name, err)
				}
				if err := same(got.packet[encapsulated:], s.frame); err != nil {
					t.Errorf("%s: the inner frame: %v", s.name, err)
				}
				outer, _ := frametest.CheckVXLAN(t, got.packet, vni) // lengths and checksums too
				ip, udp := outer.IPv4, outer.UDP
				if ip == nil || len(ip.Options) != 0 || ip.TOS != ecn || ip.TTL != ttl || ip.Flags != layers.IPv4DontFragment || ip.FragOffset != 0 ||
					!ip.SrcIP.Equal(here4.AsSlice()) || !ip.DstIP.Equal(there4.AsSlice()) {
					t.Errorf("%s: the outer IP header is %+v", s.name, ip)
				}
				if udp.SrcPort != source || udp.DstPort != port || udp.Checksum != 0 {
					t.Errorf("%s: the outer UDP header is %+v", s.name, udp)
				}
				if frames, bytes, lost := r.Count(slot); frames != 1 || bytes != uint64(len(s.frame)) || lost != 0 {
					t.Errorf("%s: counted as %d frames, %d bytes, %d lost", s.name, frames, bytes, lost)
				}
			}
		}
	}
}

// TestWrapChecksum looks that the checksum of the outer header is right whatever is in there.
func TestWrapChecksum(t *testing.T) {
	r := newRig(t)
	rapid.Check(t, func(t *rapid.T) {
		r.t = t
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "bytes")))
		})
		w := way()
		w.Local, w.Peer = address.Draw(t, "local"), address.Draw(t, "peer")
		w.TTL = rapid.IntRange(1, 255).Draw(t, "TTL")
		s := plain(frametest.Opts{Payload: rapid.IntRange(0, 1400).Draw(t, "payload"), TOS: rapid.Byte().Draw(t, "class")})[0]
		slot := r.keep(s.frame, s.from, w, roomy)
		defer r.FreeSlot(slot)
		got := r.leaves(s.frame, 0)
		if err := got.sent(nil); err != nil {
			t.Fatal(err)
		}
		outer, err := frametest.Verify(got.packet)
		if err != nil {
			t.Fatal(err)
		}
		if ip := outer.IPv4; !ip.SrcIP.Equal(w.Local.AsSlice()) || !ip.DstIP.Equal(w.Peer.AsSlice()) || int(ip.TTL) != w.TTL {
			t.Fatalf("from %v to %v, TTL %d", ip.SrcIP, ip.DstIP, ip.TTL)
		}
	})
}

// TestWrapCarries is TestWrapChecksum where adding the carries has a carry itself, which is rare.
func TestWrapCarries(t *testing.T) {
	r := newRig(t)
	s := plain(frametest.Opts{})[0]
	wrapped := func(low uint16) []byte {
		w := way()
		w.Local, w.Peer = netip.MustParseAddr("198.51.100.255"), netip.AddrFrom4([4]byte{203, 255, byte(low >> 8), byte(low)})
		r.keep(s.frame, s.from, w, roomy)
		got := r.leaves(s.frame, 0)
		r.must(got.sent(nil))
		return got.packet
	}
	b := wrapped(0)
	var sum uint32
	for i := ipAt; i < udpAt; i += 2 {
		if i != ipAt+10 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	if sum>>16 < 2 {
		t.Fatalf("the sum %#x has too few carries", sum)
	}
	for less := range uint16(8) {
		if _, err := frametest.Verify(wrapped(0xffff - uint16(sum) - less)); err != nil {
			t.Errorf("%d below a carry: %v", less, err)
		}
	}
}

// TestSourcePort looks that a flow has the source port that it has on the slow path.
func TestSourcePort(t *testing.T) {
	r := newRig(t)
	for _, n := range []int{1, 2, 16} {
		w := way()
		w.Sources = nil
		for i := range n {
			w.Sources = append(w.Sources, uint16(49152+257*i))
		}
		used := map[uint16]bool{}
		for i := range uint16(40) {
			for _, s := range plain(frametest.Opts{SrcPort: 1000 + i, Payload: int(i)}) {
				slot := r.keep(s.frame, s.from, w, roomy)
				r.reopen()
				got := r.leaves(s.frame, 0)
				if err := got.sent(nil); err != nil {
					t.Fatalf("%s: %v", s.name, err)
				}
				var p frame.Parsed
				if fault := p.Parse(s.frame); fault != frame.Sound {
					t.Fatalf("%s: fault %d", s.name, fault)
				}
				port := binary.BigEndian.Uint16(got.packet[header.EthernetLen+header.IPv4MinLen:])
				if want := w.Sources[int(p.FlowHash(s.frame))&(n-1)]; port != want {
					t.Errorf("%s: one of %d ports: %d, want %d", s.name, n, port, want)
				}
				used[port] = true
				r.FreeSlot(slot)
			}
		}
		if len(used) != n {
			t.Errorf("%d of %d ports are used", len(used), n)
		}
	}
}

// stay is a frame that must stay with userspace although there is an entry for its stations.
type stay struct {
	reason  string
	frame   []byte
	limit   Limit
	uncount bool // it is of a kind that the gates do not count
}

// stays returns frames that are left to userspace whichever way they go.
func stays() (all []stay) {
	samples := odd()
	tight, full := roomy, frametest.Opts{Payload: 1400}
	for name, b := range map[string][]byte{
		"longer than the path carries": frametest.TCP4(full).Bytes(), "longer than the path carries, IPv6": frametest.TCP6(full).Bytes(),
		"datagram longer than the path carries": frametest.UDP4(full).Bytes(), "ping longer than the path carries": frametest.Ping6(full).Bytes(),
	} {
		tight.MaxFrame = len(b) - 1
		all = append(all, stay{name, b, tight, false})
	}
	for name, options := range synOptions() {
		if name == "the MSS first" || name == "an MSS that fits" {
			continue
		}
		for _, flags := range []uint8{header.TCPSyn, header.TCPSyn | header.TCPAck} {
			o := frametest.Opts{Flags: flags, Options: options}
			all = append(all, stay{"SYN with " + name, frametest.TCP4(o).Bytes(), roomy, false}, stay{"SYN over IPv6 with " + name, frametest.TCP6(o).Bytes(), roomy, false})
		}
	}
	for _, name := range []string{
		"tag", "two tags", "first fragment", "last fragment", "IPv6 fragment", "IPv6 atomic fragment", "hop-by-hop options",
		"destination options", "IPv4 options", "IPv4 options, UDP", "GRE", "SCTP, IPv6", "UDP-Lite, IPv6", "ICMP unreachable", "ICMPv6 packet too big",
		"IPv6 says IPv4", "IPv4 says IPv6", "TCP header too short", "UDP to port 4789", "UDP over IPv6 to port 4789", "UDP to port 68",
		"UDP over IPv6 to port 546",
	} {
		all = append(all, stay{name, samples[name], roomy, true})
	}
	for name, change := range map[string]func([]byte){
		"another destination station": func(b []byte) { b[5]++ }, "another source station": func(b []byte) { b[11]++ },
		"another source address": func(b []byte) { b[header.EthernetLen+15]++ },
	} {
		b := frametest.TCP4(frametest.Opts{}).Bytes()
		change(b)
		all = append(all, stay{name, b, roomy, false})
	}
	long, short := frametest.TCP4(frametest.Opts{Payload: 9}).Bytes(), frametest.TCP6(frametest.Opts{Payload: 9}).Bytes()
	long[header.EthernetLen+3]++
	short[header.EthernetLen+5]--
	return append(all, stay{"IP length beyond the frame", long, roomy, false}, stay{"IPv6 length short of the frame", short, roomy, false},
		stay{"padded", samples["padded"], roomy, false}, stay{"IPv6 padded", samples["IPv6 padded"], roomy, false})
}

// keepAll adds entries of both directions for the stations of all samples, with every EtherType that matters to b.
func (r *rig) keepAll(b []byte, l Limit) {
	r.t.Helper()
	var like [header.EthernetLen]byte
	copy(like[:], frametest.TCP4(frametest.Opts{}).Bytes())
	for _, etherType := range []uint16{header.EtherTypeIPv4, header.EtherTypeIPv6, binary.BigEndian.Uint16(b[12:])} {
		binary.BigEndian.PutUint16(like[12:], etherType)
		for _, from := range []netip.Addr{frametest.IP4(1), frametest.IP6(1)} {
			r.keep(like[:], from, way(), l)
			r.await(like[:], from, l)
		}
	}
}

// TestStays looks that what the entry was not made for stays as it is, and is counted if it is of a kind that counts.
func TestStays(t *testing.T) {
	r := newRig(t)
	for _, s := range stays() {
		r.reopen()
		r.keepAll(s.frame, s.limit)
		_, hash, ok := r.Leaving(outlet, s.frame)
		want := map[uint32]uint64{}
		if !s.uncount {
			want[gateOf(hash)] = 1
		}
		if ok == s.uncount {
			t.Errorf("%s: Leaving says %v", s.reason, ok)
		}
		got := r.leaves(s.frame, 0)
		if err := got.untouched(s.frame, want); err != nil {
			t.Errorf("%s: leaving: %v", s.reason, err)
		}
		b := carry(s.frame)
		got = r.arrives(b, 0)
		if err := got.untouched(b, map[uint32]uint64{gateOf(outerHash(there4, source)): uint64(len(b) - header.EthernetLen - header.IPv4MinLen - header.UDPLen)}); err != nil {
			t.Errorf("%s: arriving: %v", s.reason, err)
		}
	}
	// The entry is there, after all.
	for _, s := range plain(frametest.Opts{}) {
		r.reopen()
		r.keepAll(s.frame, roomy)
		out := r.leaves(s.frame, 0)
		in := r.arrives(carry(s.frame), 0)
		if out.verdict != redirected || in.verdict != redirected {
			t.Errorf("%s: verdicts %d and %d", s.name, out.verdict, in.verdict)
		}
	}
}

// TestLongest looks that what just fits the limits is not left to userspace.
func TestLongest(t *testing.T) {
	r := newRig(t)
	for name, options := range synOptions() {
		if name != "an MSS that fits" && name != "the MSS first" {
			continue
		}
		o := frametest.Opts{Flags: header.TCPSyn, Options: options}
		for _, b := range [][]byte{frametest.TCP4(o).Bytes(), frametest.TCP6(o).Bytes()} {
			r.reopen()
			r.keepAll(b, roomy)
			got := r.leaves(b, 0)
			if err := got.sent(nil); err != nil {
				t.Errorf("%s: leaving: %v", name, err)
			}
			got = r.arrives(carry(b), 0)
			if err := got.sent(b); err != nil {
				t.Errorf("%s: arriving: %v", name, err)
			}
		}
	}
	for _, s := range plain(frametest.Opts{Payload: 1000}) {
		r.reopen()
		r.keepAll(s.frame, Limit{MaxFrame: len(s.frame), MSS: mtu.MSS(0)})
		got := r.leaves(s.frame, 0)
		if err := got.sent(nil); err != nil {
			t.Errorf("%s: leaving: %v", s.name, err)
		}
		got = r.arrives(carry(s.frame), 0)
		if err := got.sent(s.frame); err != nil {
			t.Errorf("%s: arriving: %v", s.name, err)
		}
	}
}

// TestOtherOutlet looks that an entry is for one TAP alone.
func TestOtherOutlet(t *testing.T) {
	r := newRig(t)
	b := frametest.TCP4(frametest.Opts{}).Bytes()
	k, hash, _ := r.Leaving(outlet+1, b)
	r.must(r.SetLeave(k, r.slot(), way(), roomy))
	got := r.leaves(b, 0)
	if err := got.untouched(b, map[uint32]uint64{gateOf(hash): 1}); err != nil {
		t.Error(err)
	}
}

// TestSuperframeCounts looks at which gate a superframe is counted that does not fit: once, as userspace reads it.
func TestSuperframeCounts(t *testing.T) {
	r := newRig(t)
	w := way()
	w.MaxSuper = 0
	for _, s := range plain(frametest.Opts{Payload: 2000}) {
		r.reopen()
		r.keep(s.frame, s.from, w, roomy)
		_, hash, _ := r.Leaving(outlet, s.frame)
		got := r.leaves(s.frame, 1000)
		if err := got.untouched(s.frame, map[uint32]uint64{gateOf(hash): 1}); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		b := carry(s.frame)
		got = r.arrives(b, 1000)
		bytes := uint64(len(b) - header.EthernetLen - header.IPv4MinLen - header.UDPLen)
		if slow := slices.Collect(maps.Values(got.slow)); got.verdict != next || !slices.Equal(slow, []uint64{bytes}) {
			t.Errorf("%s: arriving: verdict %d, counted %v, want %d", s.name, got.verdict, slow, bytes)
		}
	}
}
