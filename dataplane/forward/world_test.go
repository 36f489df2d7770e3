package forward

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

const testVNI addr.VNI = 42

var (
	peerA = netip.MustParseAddr("192.0.2.1")
	peerB = netip.MustParseAddr("192.0.2.2")
	peerC = netip.MustParseAddr("2001:db8::3")
	full  = Offload{Checksum: true, Super: gro.Kinds{TCP: true, UDP: true}}
)

// world is one host: a network with its tables and both halves of a worker.
type world struct {
	tables  *Tables
	net     *Network
	samples *Samples
	stray   Drops
	egress  *Egress
	ingress *Ingress
}

// newWorld makes a host whose TAP takes what tap says, with these peers on paths of 1500 bytes.
func newWorld(t testing.TB, tap Offload, peers ...netip.Addr) *world {
	t.Helper()
	w := &world{tables: NewTables(), samples: NewSamples(64)}
	w.net = &Network{
		Name: "blue", VNI: testVNI, Learning: true, TAP: tap,
		LocalMAC:  addr.MAC{2, 0xff, 0, 0, 0, 1},
		FDB:       fdb.NewTable(1000),
		Neighbors: fdb.NewNeighbors(),
		Counters:  new(Counters),
	}
	var ids []fdb.VTEPID
	for _, p := range peers {
		ids = append(ids, w.tables.AddVTEP(p, 1500))
	}
	w.net.SetMembers(ids)
	w.net.SetMTU(1450)
	if err := w.tables.AddNetwork(w.net); err != nil {
		t.Fatal(err)
	}
	opt := Options{Port: header.VXLANPort, Buckets: 16, MaxSegments: 63, Arena: NewArena()}
	w.egress = NewEgress(w.tables, w.net, w.samples, opt)
	w.ingress = NewIngress(w.tables, &w.stray, w.samples, opt)
	return w
}

func (w *world) id(t testing.TB, a netip.Addr) fdb.VTEPID {
	t.Helper()
	id, ok := w.tables.Lookup(a)
	if !ok {
		t.Fatalf("%v is not a VTEP", a)
	}
	return id
}

// fromTAP wraps a frame as a queue would deliver it.
func fromTAP(h header.VirtioNet, b []byte) frame.Frame {
	buf := make([]byte, frame.Headroom+len(b))
	copy(buf[frame.Headroom:], b)
	return frame.Frame{Buf: buf, Offload: h}
}

// plain is fromTAP for a frame without offload.
func plain(b []byte) frame.Frame { return fromTAP(header.VirtioNet{}, b) }

// wire returns the datagrams of send i of e, and reports it as sent.
func wire(e *Egress, i int) [][]byte {
	s := &e.Sends[i]
	var out [][]byte
	for p := s.First; p < s.End; p += s.PerDatagram {
		out = append(out, bytes.Join(e.Pieces[p:p+s.PerDatagram], nil))
	}
	return out
}

// send runs frames through the egress half and returns what goes on the wire; all sends succeed.
func (w *world) send(t testing.TB, frames ...frame.Frame) [][]byte {
	t.Helper()
	w.egress.Process(frames, 1e9)
	var out [][]byte
	for i := range w.egress.Sends {
		s := &w.egress.Sends[i]
		d := wire(w.egress, i)
		if len(d) != s.Frames {
			t.Fatalf("send %d says %d frames and has %d datagrams", i, s.Frames, len(d))
		}
		for j, b := range d {
			if len(b) != s.Size && (j != len(d)-1 || len(b) > s.Size) {
				t.Fatalf("send %d: datagram %d has %d bytes, the send says %d", i, j, len(b), s.Size)
			}
		}
		out = append(out, d...)
		w.egress.Report(s, s.Frames, s.Bytes, NotDropped)
	}
	return out
}

// encap puts a VXLAN header in front of a frame.
func encap(vni addr.VNI, b []byte) []byte {
	d := make([]byte, header.VXLANLen, header.VXLANLen+len(b))
	header.VXLAN(d).Encode(vni)
	return append(d, b...)
}

// receive runs buffers through the ingress half and returns what is written to the TAP; all writes succeed.
func (w *world) receive(buffers ...Received) []gro.Item {
	w.ingress.Process(buffers, 2e9)
	var out []gro.Item
	for _, d := range w.ingress.Deliveries {
		for i := range d.Items {
			w.ingress.Report(d.Net, &d.Items[i], NotDropped)
		}
		out = append(out, d.Items...)
	}
	return out
}

// train joins datagrams as UDP_GRO does.
func train(from netip.Addr, datagrams ...[]byte) Received {
	r := Received{From: from, Data: bytes.Join(datagrams, nil)}
	if len(datagrams) > 1 {
		r.Stride = len(datagrams[0])
	}
	return r
}

func (w *world) dropped(r DropReason) uint64 {
	n, _ := w.net.Counters.Drops.Get(r)
	m, _ := w.stray.Get(r)
	return n + m
}

// wantDropped checks that exactly frames were dropped, all for reason, and that a sample was kept.
func (w *world) wantDropped(t testing.TB, reason DropReason, frames uint64) {
	t.Helper()
	if got, sum := w.dropped(reason), w.net.Counters.Drops.Sum()+w.stray.Sum(); got != frames || sum != frames {
		t.Errorf("dropped %d as %v and %d in all, want %d", got, reason, sum, frames)
		for r := range NumReasons {
			if n := w.dropped(r); n > 0 {
				t.Logf("  %v: %d", r, n)
			}
		}
	}
	s := w.samples.After(0)
	if len(s) == 0 || s[len(s)-1].Reason != reason || s[len(s)-1].Kept == 0 {
		t.Errorf("no sample of %v was kept", reason)
	}
}

// checkLaw checks that every frame that came in has gone out or has been counted as dropped.
func (w *world) checkLaw(t interface{ Errorf(string, ...any) }) {
	c := w.net.Counters
	in := c.TAPIn.Frames.Load() + c.UnderlayIn.Frames.Load() + c.Created.Load()
	out := c.TAPOut.Frames.Load() + c.UnderlayOut.Frames.Load() + c.Drops.Sum()
	if in != out {
		t.Errorf("frames are not conserved: TAP in %d + underlay in %d + created %d = %d, but TAP out %d + underlay out %d + dropped %d = %d",
			c.TAPIn.Frames.Load(), c.UnderlayIn.Frames.Load(), c.Created.Load(), in,
			c.TAPOut.Frames.Load(), c.UnderlayOut.Frames.Load(), c.Drops.Sum(), out)
	}
}

func (w *world) setPath(t testing.TB, a netip.Addr, p mtu.PathMTU) {
	t.Helper()
	w.tables.SetPath(w.id(t, a), p)
}
