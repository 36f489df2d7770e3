package forward

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Stations of an isolated network: two here, one each behind B and A. Station 9 is not registered.
const (
	here, alsoHere, behindB, behindA, nobody = 1, 3, 2, 4, 9
)

var (
	none4, none6 = netip.IPv4Unspecified(), netip.IPv6Unspecified()
	// byHand is a link-local address that is no EUI-64; of station 2 and 1 it is registered.
	byHand = netip.MustParseAddr("fe80::42")
)

func newIsolated(t testing.TB, tap Offload) *world {
	w := newWorld(t, tap, peerA, peerB)
	w.net.Isolate = true
	for n, at := range map[uint16]fdb.VTEPID{here: fdb.Local, alsoHere: fdb.Local, behindB: w.id(t, peerB), behindA: w.id(t, peerA)} {
		w.net.FDB.SetStatic(frametest.MAC(n), at)
		w.net.Neighbors.Set(frametest.IP4(n), frametest.MAC(n))
		w.net.Neighbors.Set(frametest.IP6(n), frametest.MAC(n))
	}
	return w
}

// linkLocal is the link-local address of station n by EUI-64.
func linkLocal(n uint16) netip.Addr {
	m := frametest.MAC(n)
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// TestIsolatedSuperframes offers superframes that lie. Each counts as all its segments, either way.
func TestIsolatedSuperframes(t *testing.T) {
	const segments, size = 10, 1300
	for name, c := range map[string]struct {
		make func(frametest.Opts) *frametest.Builder
		six  bool
	}{
		"TCP over IPv4": {frametest.TCP4, false}, "TCP over IPv6": {frametest.TCP6, true},
		"UDP over IPv4": {frametest.UDP4, false}, "UDP over IPv6": {frametest.UDP6, true},
	} {
		ip, overlay := frametest.IP4, mtu.OverlayMTU(size+header.IPv4MinLen+header.TCPMinLen)
		if c.six {
			ip, overlay = frametest.IP6, overlay+header.IPv6Len-header.IPv4MinLen
		}
		for lie, l := range map[string]struct {
			mac, ip uint16
			want    DropReason
		}{
			"the truth":     {0, 0, NotDropped},
			"MAC of nobody": {nobody, 0, SourceMACUnknown},
			"IP of another": {0, behindA, SourceIPSpoofed},
			"IP of nobody":  {0, nobody, SourceIPSpoofed},
		} {
			build := func(self, to uint16) (header.VirtioNet, []byte) {
				o := frametest.Opts{Payload: segments * size, SrcMAC: frametest.MAC(self), DstMAC: frametest.MAC(to), Src: ip(self), Dst: ip(to)}
				if l.mac != 0 {
					o.SrcMAC = frametest.MAC(l.mac)
				}
				if l.ip != 0 {
					o.Src = ip(l.ip)
				}
				return c.make(o).Offload(size)
			}
			check := func(t *testing.T, w *world, passed int) {
				w.checkLaw(t)
				switch {
				case l.want != NotDropped:
					w.wantDropped(t, l.want, segments)
				case passed != segments || w.net.Counters.Drops.Sum() != 0:
					t.Errorf("%d segments passed and %d were dropped", passed, w.net.Counters.Drops.Sum())
				}
			}
			t.Run(name+", "+lie, func(t *testing.T) {
				w := newIsolated(t, full)
				h, b := build(here, behindB)
				check(t, w, len(w.send(t, fromTAP(h, b))))

				w = newIsolated(t, full)
				w.net.SetMTU(overlay) // so that the receiver finds the same segments
				_, b = build(behindB, here)
				frames := 0
				for _, item := range w.receive(kernelSuperframe(b, size)) {
					frames += item.Frames
				}
				check(t, w, frames)
			})
		}
	}
}

func kernelSuperframe(b []byte, size int) Received {
	return Received{From: peerB, Data: encap(testVNI, b), Stride: size}
}

// TestIsolatedTrains sends a train in which one frame lies: the others arrive.
func TestIsolatedTrains(t *testing.T) {
	o := frametest.Opts{Payload: 100, SrcMAC: frametest.MAC(behindB), DstMAC: frametest.MAC(here), Src: frametest.IP4(behindB), Dst: frametest.IP4(here)}
	good := encap(testVNI, frametest.UDP4(o).Bytes())
	o.Src = frametest.IP4(behindA)
	bad := encap(testVNI, frametest.UDP4(o).Bytes())
	w := newIsolated(t, full)
	w.receive(train(peerB, bytes.Clone(good), bad, good))
	w.wantDropped(t, SourceIPSpoofed, 1)
	if n := w.net.Counters.TAPOut.Frames.Load(); n != 2 {
		t.Errorf("%d frames arrived, want 2", n)
	}
	w.checkLaw(t)
}

// TestIsolatedHostsAreHeldToTheirStations has host A send in the name of stations that live elsewhere.
func TestIsolatedHostsAreHeldToTheirStations(t *testing.T) {
	for name, c := range map[string]struct {
		mac, ip, to uint16
		want        DropReason
	}{
		"its own":                    {behindA, behindA, here, NotDropped},
		"station of B":               {behindB, behindB, here, SourceSpoofed},
		"station of this host":       {alsoHere, alsoHere, here, SourceSpoofed},
		"its own, IP of this host":   {behindA, alsoHere, here, SourceIPSpoofed},
		"to a station that is gone":  {behindA, behindA, nobody, DestinationUnknown},
		"to a station of B":          {behindA, behindA, behindB, DestinationUnknown},
		"to a station of its own":    {behindA, behindA, behindA, DestinationUnknown},
		"to another station of this": {behindA, behindA, alsoHere, NotDropped},
	} {
		t.Run(name, func(t *testing.T) {
			w := newIsolated(t, full)
			f := frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(c.mac), Src: frametest.IP4(c.ip), DstMAC: frametest.MAC(c.to)}).Bytes()
			w.wantClaim(t, claim{f, c.want}, len(w.receive(Received{From: peerA, Data: encap(testVNI, f)})))
		})
	}
	t.Run("learned is not registered", func(t *testing.T) {
		w := newIsolated(t, full)
		w.net.FDB.Learn(frametest.MAC(nobody), w.id(t, peerA), 1)
		w.net.Neighbors.Set(frametest.IP4(nobody), frametest.MAC(nobody))
		f := frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(nobody), Src: frametest.IP4(nobody), DstMAC: frametest.MAC(here)}).Bytes()
		w.wantClaim(t, claim{f, SourceMACUnknown}, len(w.receive(Received{From: peerA, Data: encap(testVNI, f)})))
	})
}

// TestIsolatedRegisteredLinkLocal registers one station's EUI-64 address for another, to whom it then belongs.
func TestIsolatedRegisteredLinkLocal(t *testing.T) {
	w := newIsolated(t, full)
	w.net.Neighbors.Set(linkLocal(here), frametest.MAC(alsoHere))
	f := func(n uint16) frame.Frame {
		return plain(frametest.Ping6(frametest.Opts{SrcMAC: frametest.MAC(n), Src: linkLocal(here)}).Bytes())
	}
	if got := w.send(t, f(alsoHere)); len(got) != 1 {
		t.Errorf("the owner sent %d datagrams", len(got))
	}
	w.send(t, f(here))
	w.wantDropped(t, SourceIPSpoofed, 1)
	w.checkLaw(t)
}

// TestIsolatedGatewayStaysOnItsHost has the gateway's bridge speak by itself, as it does for multicast.
func TestIsolatedGatewayStaysOnItsHost(t *testing.T) {
	w := newIsolated(t, full)
	f := func(n uint16) frame.Frame {
		return plain(frametest.Ping6(frametest.Opts{SrcMAC: frametest.MAC(n), Src: linkLocal(n)}).Bytes())
	}
	w.net.GatewayMAC = frametest.MAC(here)
	if got := w.send(t, f(here)); len(got) != 0 {
		t.Errorf("the gateway sent %d datagrams to other hosts", len(got))
	}
	w.wantDropped(t, DestinationLocal, 1)
	if got := w.send(t, f(alsoHere)); len(got) != 1 {
		t.Errorf("a container sent %d datagrams", len(got))
	}
	w.checkLaw(t)
}

// TestIsolationEnds removes a station's registration: from the next frame on it is a stranger.
func TestIsolationEnds(t *testing.T) {
	w := newIsolated(t, full)
	f := frametest.UDP4(frametest.Opts{}).Bytes()
	if got := w.send(t, plain(f)); len(got) != 1 {
		t.Fatalf("%d datagrams, want 1", len(got))
	}
	w.net.Neighbors.Delete(frametest.IP4(here))
	w.send(t, plain(f))
	w.wantDropped(t, SourceIPSpoofed, 1)
	w.net.FDB.Delete(frametest.MAC(here))
	w.send(t, plain(f))
	if w.dropped(SourceMACUnknown) != 1 {
		t.Error("the MAC is still known")
	}
	w.checkLaw(t)
}

// TestLocalStationsOfOpenNetworks has local entries on a network that is not isolated.
func TestLocalStationsOfOpenNetworks(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.net.FDB.SetStatic(frametest.MAC(2), fdb.Local)
	w.net.Neighbors.Set(frametest.IP4(2), frametest.MAC(2))
	// The owner has heard the question itself. An answer from the TAP would move its MAC there, in the bridge's eyes.
	if got := w.send(t, plain(frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(2)).Bytes())); len(got) != 1 || len(w.egress.Answers) != 0 {
		t.Errorf("%d datagrams and %d answers, want 1 and 0", len(got), len(w.egress.Answers))
	}
	h, b := frametest.TCP4(frametest.Opts{Payload: 14000}).Offload(1400)
	w.send(t, fromTAP(h, b))
	w.wantDropped(t, DestinationLocal, 10)
	w.checkLaw(t)
	// From outside, that MAC is no source.
	w.receive(Received{From: peerA, Data: encap(testVNI, frametest.UDP4(frametest.Opts{SrcMAC: frametest.MAC(2)}).Bytes())})
	if w.dropped(SourceSpoofed) != 1 {
		t.Error("a local MAC came in from the underlay")
	}
	w.checkLaw(t)
}
