package forward

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// FuzzEgress feeds one frame with any offload header to the egress half.
func FuzzEgress(f *testing.F) {
	for _, make := range batches() {
		for _, fr := range make()[:1] {
			var h [header.VirtioNetMrgLen]byte
			fr.Offload.Encode(h[:])
			f.Add(h[:], fr.Bytes())
		}
	}
	for _, h := range hostile() {
		f.Add(make([]byte, header.VirtioNetMrgLen), h.inner)
	}
	for _, c := range claims(here, behindB) {
		f.Add(make([]byte, header.VirtioNetMrgLen), c.inner)
	}
	for _, fr := range tooLarge() {
		var h [header.VirtioNetMrgLen]byte
		fr.Offload.Encode(h[:])
		f.Add(h[:], fr.Bytes())
	}
	f.Fuzz(func(t *testing.T, offload, b []byte) {
		if len(offload) < header.VirtioNetMrgLen || len(b) > 65535+18 {
			return
		}
		var h header.VirtioNet
		h.Decode(offload[:header.VirtioNetMrgLen])
		open := newWorld(t, full, peerA, peerB, peerC)
		open.net.Neighbors.Set(frametest.IP4(3), frametest.MAC(3))
		limited := newWorld(t, full, peerA, peerB, peerC)
		limited.net.Limit = NewLimiter(1, 5)
		isolated := newIsolated(t, full)
		close := narrow(t, 1280)
		close.setPath(t, peerB, 400)
		device := narrow(t, 700)
		device.egress.Whole = []int{65000, 65000}
		for _, w := range []*world{open, limited, isolated, close, device} {
			w.egress.Process([]frame.Frame{fromTAP(h, b)}, 1)
			for i := range w.egress.Sends {
				s := &w.egress.Sends[i]
				most := w.tables.VTEP(s.VTEP).MaxFrame + header.VXLANLen
				if s.Whole {
					most = 65000
					if n := int(s.Offload.HdrLen) + int(s.Offload.GSOSize); n > w.tables.VTEP(s.VTEP).MaxFrame+header.VXLANLen {
						t.Errorf("segments of %d bytes for a path of %d", n, w.tables.VTEP(s.VTEP).Path)
					}
				}
				for _, d := range wire(w.egress, i) {
					if len(d) > most {
						t.Errorf("a datagram of %d bytes for a path of %d", len(d), most)
					}
					var p frame.Parsed
					if fault := p.Parse(d[header.VXLANLen:]); fault != frame.Sound {
						t.Errorf("fault %d in what is sent: % x", fault, d)
					}
					if w == isolated {
						wantHonest(t, d[header.VXLANLen:], here, alsoHere)
					}
				}
				w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
			}
			for _, a := range w.egress.Answers {
				if _, err := frametest.Verify(a); err != nil {
					t.Errorf("answer % x: %v", a, err)
				}
				w.egress.ReportAnswer(a, NotDropped)
			}
			w.checkLaw(t)
		}
	})
}

// wantHonest checks, without the code under test, that f names one of these stations, and no other, as its sender.
func wantHonest(t *testing.T, f []byte, stations ...uint16) {
	t.Helper()
	for _, n := range stations {
		mac, ip4, ip6, own6 := frametest.MAC(n), frametest.IP4(n).As4(), frametest.IP6(n).As16(), linkLocal(n).As16()
		if !bytes.Equal(f[6:12], mac[:]) {
			continue
		}
		ok := false
		switch [2]byte(f[12:14]) {
		case [2]byte{8, 0}:
			ok = bytes.Equal(f[14+12:14+16], ip4[:])
		case [2]byte{8, 6}:
			ok = bytes.Equal(f[14+8:14+14], mac[:]) && (bytes.Equal(f[14+14:14+18], ip4[:]) ||
				bytes.Equal(f[14+14:14+18], make([]byte, 4)) && bytes.Equal(f[14+24:14+28], ip4[:]))
		case [2]byte{0x86, 0xdd}:
			src := f[14+8 : 14+24]
			none := bytes.Equal(src, make([]byte, 16))
			ok = none || bytes.Equal(src, ip6[:]) || bytes.Equal(src, own6[:])
			if next, icmp := f[14+6], f[14+40:]; next == header.ProtoICMPv6 {
				switch icmp[0] {
				case 134, 137:
					ok = false
				case 136:
					ok = ok && (bytes.Equal(icmp[8:24], ip6[:]) || bytes.Equal(icmp[8:24], own6[:]))
				}
			}
		}
		if !ok {
			t.Errorf("a lie got through: %x", f)
		}
		return
	}
	t.Errorf("a frame from a stranger got through: %x", f)
}

// FuzzIngress feeds one buffer with any stride and traffic class to the ingress half, for a TAP with and
// without offloads.
func FuzzIngress(f *testing.F) {
	for _, h := range hostile() {
		f.Add(encap(testVNI, h.inner), 0, uint8(0))
	}
	for _, c := range claims(behindA, here) {
		f.Add(encap(testVNI, c.inner), 0, uint8(0))
	}
	for _, make := range batches() {
		w := newWorld(f, full, peerA)
		w.egress.Process(make(), 1)
		if len(w.egress.Sends) > 0 {
			r := train(peerA, wire(w.egress, 0)...)
			f.Add(r.Data, r.Stride, uint8(rand.IntN(4)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, stride int, tos uint8) {
		if len(b) > 65507 {
			return
		}
		for i, tap := range []Offload{full, {}, full} {
			w := newWorld(t, tap, peerA)
			if i == 2 {
				w = newIsolated(t, tap)
			}
			r := Received{From: peerA, Data: bytes.Clone(b), Stride: stride, TOS: tos}
			for _, item := range w.receive(r) {
				n := 0
				for _, p := range item.Pieces {
					n += len(p)
				}
				if n > 65535+header.EthernetLen+2*header.VLANLen || len(item.Pieces) > 1023 {
					t.Errorf("an item of %d bytes in %d pieces", n, len(item.Pieces))
				}
				if tap == (Offload{}) && item.Offload.GSOType != header.GSONone {
					t.Errorf("a superframe for a TAP that takes none: %+v", item.Offload)
				}
				if i == 2 {
					wantHonest(t, bytes.Join(item.Pieces, nil), behindA)
				}
			}
			w.checkLaw(t)
		}
	})
}
