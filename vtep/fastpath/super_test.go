package fastpath

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// nobody has these addresses, so that nobody answers.
var nobody = [2]netip.Addr{netip.MustParseAddr("10.42.0.9"), netip.MustParseAddr("fd42::9")}

// superframe returns a frame from the first to the second host, with this payload in segments of so many bytes, or in one if that
// is 0, and what goes in front of it.
func superframe(h [2]*host, build func(frametest.Opts) *frametest.Builder, v6 bool, payload, segment int) (header.VirtioNet, []byte) {
	o := frametest.Opts{SrcMAC: addr.MAC(h[here].mac), DstMAC: addr.MAC(h[there].mac), Data: frametest.Pattern(payload)}
	o.Src, o.Dst = h[here].inner[0], nobody[0]
	if v6 {
		o.Src, o.Dst = h[here].inner[1], nobody[1]
	}
	return build(o).Offload(segment)
}

// send gives a superframe to a socket of packets.
func send(t *testing.T, fd int, v header.VirtioNet, frame []byte) {
	t.Helper()
	b := make([]byte, header.VirtioNetLen, header.VirtioNetLen+len(frame))
	v.Encode(b)
	b = append(b, frame...)
	_, err := unix.Write(fd, b)
	for err == unix.EINTR { // the Go runtime interrupts threads by signals
		_, err = unix.Write(fd, b)
	}
	if err != nil {
		t.Fatalf("sending a packet: %v", err)
	}
}

// TestSuperframes sends superframes of known lengths, looks at what comes out, and that each counts as its segments.
func TestSuperframes(t *testing.T) {
	const size = 1000
	for name, k := range map[string]kind{"TAP": plainTAP, "sandbox": sandboxed} {
		t.Run(name, func(t *testing.T) {
			h := newHosts(t, k, k)
			var in, out int
			h[here].inside(t, func() { in = packets(t, "tap0") })
			h[there].inside(t, func() { out = packets(t, "tap0") })
			for _, payload := range []int{1, size - 1, size, size + 1, 20 * size, 60*size + 1} {
				for _, v6 := range []bool{false, true} {
					build, headers, segment := frametest.TCP4, header.EthernetLen+header.IPv4MinLen+header.TCPMinLen, size
					if v6 {
						build, headers = frametest.TCP6, header.EthernetLen+header.IPv6Len+header.TCPMinLen
					}
					if payload <= size {
						segment = 0
					}
					v, frame := superframe(h, build, v6, payload, segment)
					var before [2][2]uint64
					for i, x := range h {
						before[i][0], before[i][1], _ = x.counted()
					}
					send(t, in, v, frame)
					got, f := nextPacket(t, out, h[there].mac, h[here].mac)
					if err := same(f, frame); err != nil {
						t.Errorf("%d bytes, IPv6 %v: %v", payload, v6, err)
					}
					if got.GSOSize != v.GSOSize || got.GSOType != v.GSOType || got.Flags != v.Flags || got.CsumStart != v.CsumStart || got.CsumOffset != v.CsumOffset {
						t.Errorf("%d bytes, IPv6 %v: came as %+v, want %+v", payload, v6, got, v)
					}
					segments := (payload + size - 1) / size
					want := [2]uint64{uint64(segments), uint64(payload + segments*headers)}
					for i, x := range h {
						frames, bytes, lost := x.counted()
						if n := [2]uint64{frames - before[i][0], bytes - before[i][1]}; n != want || lost != 0 {
							t.Errorf("%d bytes, IPv6 %v: host %d counts %d frames and bytes, want %d; %d lost", payload, v6, i, n, want, lost)
						}
					}
				}
			}
		})
	}
}

// TestSuperframesStay sends superframes that the entry was not made for, and looks that each is counted once at its gate.
func TestSuperframesStay(t *testing.T) {
	const size = 1000
	h := newHosts(t, plainTAP, plainTAP)
	x := h[here]
	fd := packets(t, "tap0")
	w := &Way{Device: x.eth0, Local: here4, Peer: there4, VNI: vni, TTL: ttl, Sources: []uint16{source}}
	var left [gates]uint64
	news(&x.table.leaveGates, &left)
	for name, c := range map[string]struct {
		build    func(frametest.Opts) *frametest.Builder
		v6       bool
		payload  int
		maxSuper int // less than the superframe has
		maxFrame int // less than a segment of it has
		fast     bool
	}{
		"just right":             {build: frametest.TCP4, payload: 5 * size, fast: true},
		"just right, IPv6":       {build: frametest.TCP6, v6: true, payload: 5*size + 1, fast: true},
		"too long":               {build: frametest.TCP4, payload: 5 * size, maxSuper: 1},
		"too long, IPv6":         {build: frametest.TCP6, v6: true, payload: 5 * size, maxSuper: 1},
		"long segments":          {build: frametest.TCP4, payload: 5 * size, maxFrame: 1},
		"long segments, IPv6":    {build: frametest.TCP6, v6: true, payload: 5 * size, maxFrame: 1},
		"datagrams":              {build: frametest.UDP4, payload: 5 * size},
		"datagrams, IPv6":        {build: frametest.UDP6, v6: true, payload: 5 * size},
		"too long for the wire":  {build: frametest.TCP4, payload: 65480},
		"one of them with a tag": {build: tagged, payload: 5 * size},
	} {
		v, frame := superframe(h, c.build, c.v6, c.payload, size)
		from, headers := x.inner[0], header.EthernetLen+header.IPv4MinLen+header.TCPMinLen
		if c.v6 {
			from, headers = x.inner[1], header.EthernetLen+header.IPv6Len+header.TCPMinLen
		}
		k := LeaveKey{Outlet: x.outlet, Ethernet: [header.EthernetLen]byte(frame)}
		copy(k.From[:], from.AsSlice())
		slot, err := x.table.NewSlot()
		if err != nil {
			t.Fatal(err)
		}
		w.MaxSuper = min(len(frame), MaxSuper(65535)) - c.maxSuper
		if err := x.table.SetLeave(k, slot, w, Limit{MaxFrame: headers + size - c.maxFrame, MSS: mtu.MSS(0)}); err != nil {
			t.Fatal(err)
		}
		want := map[uint32]uint64{}
		if _, hash, ok := x.table.Leaving(x.outlet, frame); ok && !c.fast {
			want[gateOf(hash)] = 1
		}
		send(t, fd, v, frame)
		frames, _, lost := x.table.Count(slot)
		if got := news(&x.table.leaveGates, &left); !maps.Equal(got, want) || (frames != 0) != c.fast || lost != 0 {
			t.Errorf("%s: %d frames went, %d were lost, the gates counted %v, want %v", name, frames, lost, got, want)
		}
		for g := range want { // it is dealt with
			x.table.LeftDone(g << 4)
		}
	}
}

// TestTagged has frames come with tags that the kernel keeps beside them, not in them: on the underlay device, as on all that
// comes in, and at a TAP that is a bridge's port. They are not of the stations that have the same addresses without a tag.
func TestTagged(t *testing.T) {
	h := newHosts(t, plainTAP, plainTAP)
	var left, arrived [gates]uint64
	h[there].enter(t)
	out := packets(t, "tap0")
	h[here].enter(t)
	eth0 := linktest.Device(t, "eth0").Attrs().HardwareAddr
	h[there].enter(t)
	far := linktest.Device(t, "eth0").Attrs().HardwareAddr
	h[here].enter(t)

	// From the underlay: once with a tag, once without one.
	_, frame := superframe(h, frametest.TCP4, false, 100, 0)
	b := carry(frame)
	copy(b, far)
	copy(b[6:], eth0)
	copy(b[ipAt+12:], here4.AsSlice())
	copy(b[ipAt+16:], there4.AsSlice())
	wire := packets(t, "eth0")
	send(t, wire, header.VirtioNet{}, slices.Insert(slices.Clone(b), 12, 0x81, 0, 0, 5))
	send(t, wire, header.VirtioNet{}, b)
	_, got := nextPacket(t, out, h[there].mac, h[here].mac)
	if err := same(got, frame); err != nil {
		t.Error(err)
	}
	if frames, _, _ := h[there].counted(); frames != 1 || len(news(&h[there].table.arriveGates, &arrived)) != 0 {
		t.Errorf("%d frames were unwrapped, want 1; or the gates counted some", frames)
	}

	// From a container, by way of a bridge.
	linktest.Must(t,
		netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}), netlink.LinkSetUp(linktest.Device(t, "br0")),
		netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "port0"}, PeerName: "far0"}))
	for _, name := range []string{"port0", "tap0"} {
		linktest.Must(t, netlink.LinkSetMaster(linktest.Device(t, name), linktest.Device(t, "br0")))
	}
	linktest.Must(t, netlink.LinkSetUp(linktest.Device(t, "port0")), netlink.LinkSetUp(linktest.Device(t, "far0")))
	container := packets(t, "far0")
	// admit adds an entry for the frame from another station.
	admit := func(station byte) ([]byte, Slot) {
		f := slices.Clone(frame)
		copy(f[6:], []byte{2, 0, 0, 0, 0, station})
		k := LeaveKey{Outlet: h[here].outlet, Ethernet: [header.EthernetLen]byte(f)}
		copy(k.From[:], h[here].inner[0].AsSlice())
		w := &Way{Device: h[here].eth0, Local: here4, Peer: there4, VNI: vni, TTL: ttl, Sources: []uint16{source}}
		slot, err := h[here].table.NewSlot()
		linktest.Must(t, err, h[here].table.SetLeave(k, slot, w, fitting))
		return f, slot
	}
	counts := func(s Slot) uint64 { frames, _, _ := h[here].table.Count(s); return frames }
	first, probe := admit(76)
	linktest.Await(t, "bridge that forwards", func() bool { send(t, container, header.VirtioNet{}, first); return counts(probe) > 0 })
	news(&h[here].table.leaveGates, &left)
	f, slot := admit(77)
	send(t, container, header.VirtioNet{}, slices.Insert(slices.Clone(f), 12, 0x81, 0, 0, 5))
	send(t, container, header.VirtioNet{}, f)
	linktest.Await(t, "frame without a tag", func() bool { return counts(slot) > 0 })
	if n := counts(slot); n != 1 || len(news(&h[here].table.leaveGates, &left)) != 0 {
		t.Errorf("%d frames were wrapped, want 1; or the gates counted some", n)
	}
}

// tagged is frametest.TCP4 behind a tag.
func tagged(o frametest.Opts) *frametest.Builder {
	o.VLANs = []uint16{5}
	return frametest.TCP4(o)
}
