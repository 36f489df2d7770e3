package forward

import (
	"bytes"
	"math"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

func TestLimiter(t *testing.T) {
	const s = int64(1e9)
	l := NewLimiter(10, 4)
	for i, step := range []struct {
		now     int64
		n, want int
	}{
		{0, 1, 1},             // it is full at first
		{0, 9, 3},             // a part
		{0, 1, 0},             //
		{s/10 - 1, 1, 0},      // not yet
		{s / 10, 2, 1},        // one token
		{s/10 - 5, 1, 0},      // another worker's clock, a little behind
		{s * 35 / 100, 5, 2},  // two and a half
		{s * 4 / 10, 1, 1},    // the half was kept
		{100 * s, 1000, 4},    // never more than the burst
		{100 * s, 0, 0},       //
		{100*s + s/2, -1, 0},  //
		{100*s + s/2, 5, 4},   //
		{1000 * s, 3, 3},      //
		{1000*s + s/10, 9, 2}, // one was left
	} {
		if got := l.Allow(step.now, step.n); got != step.want {
			t.Errorf("step %d: %d of %d frames at %v s, want %d", i, got, step.n, float64(step.now)/1e9, step.want)
		}
	}
}

func TestLimiterTakesAnyNumbers(t *testing.T) {
	for _, rate := range []int{0, -1, math.MinInt} {
		if NewLimiter(rate, 10) != nil {
			t.Errorf("a rate of %d makes a limit", rate)
		}
	}
	for _, rate := range []int{1, 7, 1e6, 1e9, math.MaxInt} {
		for _, burst := range []int{math.MinInt, 0, 1, math.MaxInt} {
			l := NewLimiter(rate, burst)
			for _, now := range []int64{-1, 0, 1, 1e18} {
				if got := l.Allow(now, 1); got != 1 && now != 0 && now != 1 {
					t.Errorf("rate %d, burst %d: %d of 1 frame at %d", rate, burst, got, now)
				}
				if got := l.Allow(now, math.MaxInt); got < 0 {
					t.Errorf("rate %d, burst %d: %d frames at %d", rate, burst, got, now)
				}
			}
		}
	}
}

// TestLimiterIsShared has workers draw from one bucket as fast as they can, over three seconds of a clock that they
// advance together.
func TestLimiterIsShared(t *testing.T) {
	l := NewLimiter(1000, 50)
	var now, got atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				at := now.Add(1e5)
				if at > 3e9 {
					return
				}
				got.Add(int64(l.Allow(at, 3)))
			}
		})
	}
	wg.Wait()
	// The last worker to stop may have read the clock early, so a token or so may be left.
	if n := got.Load(); n > 50+3000 || n < 50+3000-10 {
		t.Errorf("%d frames in three seconds, want 3050", n)
	}
}

func BenchmarkLimiter(b *testing.B) {
	for name, rate := range map[string]int{"granted": 1e9, "refused": 1} {
		b.Run(name, func(b *testing.B) {
			l := NewLimiter(rate, 1)
			now := int64(0)
			for b.Loop() {
				now += 10
				l.Allow(now, 1)
			}
		})
	}
}

func TestFloodingIsLimited(t *testing.T) {
	w := newWorld(t, full, peerA, peerC)
	w.net.FDB.SetStatic(frametest.MAC(3), w.id(t, peerA))
	w.net.Neighbors.Set(frametest.IP4(3), frametest.MAC(3))
	w.net.Limit = NewLimiter(10, 3)
	broadcast := frametest.UDP4(frametest.Opts{DstMAC: addr.Broadcast}).Bytes()
	unknown := frametest.UDP4(frametest.Opts{DstMAC: frametest.MAC(9)}).Bytes()
	multicast := frametest.UDP6(frametest.Opts{DstMAC: addr.MAC{0x33, 0x33, 0, 0, 0, 5}}).Bytes()
	known := frametest.UDP4(frametest.Opts{DstMAC: frametest.MAC(3)}).Bytes()
	question := frametest.ARPRequest(frametest.MAC(1), frametest.IP4(1), frametest.IP4(3)).Bytes()
	for i, step := range []struct {
		f    []byte
		want int
	}{
		{known, 1}, {question, 0}, {broadcast, 2}, {unknown, 2}, {multicast, 2}, // three tokens: copies cost none
		{broadcast, 0}, {unknown, 0}, {multicast, 0}, {known, 1}, {question, 0}, // what is not flooded is free
	} {
		if got := w.send(t, plain(step.f)); len(got) != step.want {
			t.Errorf("frame %d made %d datagrams, want %d", i, len(got), step.want)
		}
		for _, a := range w.egress.Answers {
			w.egress.ReportAnswer(a, NotDropped)
		}
	}
	w.wantDropped(t, BUMRateLimited, 3)
	w.checkLaw(t)
	// What comes in is not limited.
	for range 10 {
		w.receive(Received{From: peerA, Data: encap(testVNI, broadcast)})
	}
	if n := w.net.Counters.TAPOut.Frames.Load(); n != 10+2 {
		t.Errorf("%d frames reached the TAP, want 12", n)
	}
	// Nobody to send to: nothing is spent.
	w = newWorld(t, full)
	w.net.Limit = NewLimiter(1, 1)
	w.send(t, plain(broadcast), plain(broadcast))
	w.wantDropped(t, NoPeers, 2)
}

// TestFloodingCutsSuperframesShort floods superframes for which the tokens do not suffice: as many segments leave as
// there are tokens, each as it would have been.
func TestFloodingCutsSuperframesShort(t *testing.T) {
	const size = 1000
	for name, b := range map[string]*frametest.Builder{
		"TCP over IPv4": frametest.TCP4(frametest.Opts{Payload: 9500, Flags: header.TCPAck | header.TCPPsh | header.TCPFin}),
		"TCP over IPv6": frametest.TCP6(frametest.Opts{Payload: 9500}),
		"UDP over IPv4": frametest.UDP4(frametest.Opts{Payload: 9500}),
		"UDP over IPv6": frametest.UDP6(frametest.Opts{Payload: 9500}),
	} {
		for _, tokens := range []int{1, 4, 9, 10} {
			h, f := b.Offload(size)
			want, err := frametest.Segments(f, size)
			if err != nil {
				t.Fatal(err)
			}
			for _, narrow := range []bool{false, true} {
				w := newWorld(t, full, peerA, peerB)
				w.net.Limit = NewLimiter(1, tokens)
				if narrow {
					w.setPath(t, peerB, 1000)
				}
				got := w.send(t, fromTAP(h, f))
				for i := range tokens {
					if !bytes.Equal(got[i], encap(testVNI, want[i])) {
						t.Errorf("%s, %d tokens: datagram %d differs", name, tokens, i)
					}
				}
				if !narrow && len(got) != 2*tokens {
					t.Errorf("%s, %d tokens: %d datagrams", name, tokens, len(got))
				}
				if n := w.dropped(BUMRateLimited); n != uint64(10-tokens) {
					t.Errorf("%s, %d tokens: %d segments dropped", name, tokens, n)
				}
				w.checkLaw(t)
			}
		}
	}
}

func TestRemoveNetwork(t *testing.T) {
	w := newWorld(t, full, peerA)
	d := func() Received {
		return Received{From: peerA, Data: encap(testVNI, frametest.UDP4(frametest.Opts{}).Bytes())}
	}
	w.receive(d())
	if w.tables.RemoveNetwork(testVNI + 1) {
		t.Error("a network that there is not was removed")
	}
	before := w.tables.view.Load()
	if !w.tables.RemoveNetwork(testVNI) || w.tables.RemoveNetwork(testVNI) || len(w.tables.Networks()) != 0 {
		t.Error("the network was not removed once")
	}
	if before.networks[testVNI] != w.net {
		t.Error("the network is gone from under a batch")
	}
	w.tables.AddVTEP(peerB, 1500)
	if items := w.receive(d()); len(items) != 0 {
		t.Error("the network still receives")
	}
	if n := w.dropped(VNIUnknown); n != 1 {
		t.Errorf("%d datagrams for a network that is gone, want 1", n)
	}
	if len(w.ingress.outlets) != 0 {
		t.Error("the worker holds on to the network")
	}
	w.checkLaw(t)
	// Another network takes the VNI.
	n := &Network{Name: "red", VNI: testVNI, FDB: fdb.NewTable(0), Neighbors: fdb.NewNeighbors(), Counters: new(Counters)}
	n.SetMembers([]fdb.VTEPID{w.id(t, peerA)})
	if err := w.tables.AddNetwork(n); err != nil {
		t.Fatal(err)
	}
	w.receive(d())
	if len(w.ingress.Deliveries) != 1 || w.ingress.Deliveries[0].Net != n {
		t.Errorf("delivered to %+v", w.ingress.Deliveries)
	}
}

func TestLocalIsNoIndex(t *testing.T) {
	w := newWorld(t, full, peerA)
	if v := w.tables.VTEP(fdb.Local); v.Addr.IsValid() || v.Heard() != 0 {
		t.Errorf("the local VTEP is %+v", v)
	}
	w.tables.SetPath(fdb.Local, 9000)
	w.net.SetMembers([]fdb.VTEPID{fdb.Local, w.id(t, peerA)})
	if got := w.send(t, plain(frametest.UDP4(frametest.Opts{DstMAC: addr.Broadcast}).Bytes())); len(got) != 1 {
		t.Errorf("%d copies, want 1", len(got))
	}
	if w.net.isMember(fdb.Local) {
		t.Error("this host is a peer of itself")
	}
	w.checkLaw(t)
}

// TestVTEPsYoungerThanTheBatch has the tables name VTEPs that there were not when the batch began.
func TestVTEPsYoungerThanTheBatch(t *testing.T) {
	w := newWorld(t, full, peerA)
	w.egress.Process(nil, 1)
	b := w.tables.AddVTEP(peerB, 1500)
	w.net.FDB.SetStatic(frametest.MAC(2), b)
	f := plain(frametest.UDP4(frametest.Opts{}).Bytes())
	w.egress.one(&f)
	c := w.tables.AddVTEP(peerC, 1500)
	w.net.SetMembers([]fdb.VTEPID{c})
	f = plain(frametest.UDP4(frametest.Opts{DstMAC: addr.Broadcast}).Bytes())
	w.egress.one(&f)
	if s := w.egress.Sends; len(s) != 2 || s[0].VTEP != b || s[1].VTEP != c {
		t.Errorf("sends: %+v", s)
	}
}

// TestTablesChangeUnderWorkers adds and removes VTEPs, stations and networks while workers forward.
func TestTablesChangeUnderWorkers(t *testing.T) {
	w := newIsolated(t, full)
	w.net.Limit = NewLimiter(1e6, 100)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for n := range 2 {
		wg.Go(func() {
			opt := Options{Port: header.VXLANPort, Buckets: 16, MaxSegments: 63, Arena: NewArena()}
			e, in := NewEgress(w.tables, w.net, w.samples, opt), NewIngress(w.tables, &w.stray, w.samples, opt)
			for i := 0; !stop.Load(); i++ {
				to := uint16(100 + i%50)
				own := frametest.UDP4(frametest.Opts{DstMAC: frametest.MAC(to)}).Bytes()
				all := frametest.UDP4(frametest.Opts{DstMAC: addr.Broadcast}).Bytes()
				one := worker{e, in}
				one.send(own, all)
				one.receive(encap(testVNI, frametest.UDP4(frametest.Opts{
					SrcMAC: frametest.MAC(behindB), Src: frametest.IP4(behindB), DstMAC: frametest.MAC(here),
				}).Bytes()), encap(testVNI+1+addr.VNI(n), own))
			}
		})
	}
	members := []fdb.VTEPID{w.id(t, peerA), w.id(t, peerB)}
	for i := range 2000 {
		a := frametest.IP4(uint16(1000 + i/10)) // any address will do
		id := w.tables.AddVTEP(a, 1500)
		w.tables.SetPath(id, 1400+mtu.PathMTU(i%100))
		w.net.FDB.SetStatic(frametest.MAC(uint16(100+i%50)), id)
		w.net.SetMembers(append(members[:2:2], id))
		vni := testVNI + 1 + addr.VNI(i%2)
		if !w.tables.RemoveNetwork(vni) {
			n := &Network{Name: "red", VNI: vni, Isolate: true, FDB: fdb.NewTable(0), Neighbors: fdb.NewNeighbors(), Counters: new(Counters)}
			n.SetMembers(members)
			if err := w.tables.AddNetwork(n); err != nil {
				t.Error(err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	w.checkLaw(t)
}

// worker is one of several of a host. The memory of a batch is its own.
type worker struct {
	e  *Egress
	in *Ingress
}

func (w worker) send(frames ...[]byte) {
	for _, f := range frames {
		w.e.Process(batchOf(f), 1)
		for i := range w.e.Sends {
			s := &w.e.Sends[i]
			w.e.Report(s, s.Frames, s.Bytes, NotDropped)
		}
	}
}

func (w worker) receive(datagrams ...[]byte) {
	for _, d := range datagrams {
		w.in.Process([]Received{{From: peerB, Data: d}}, 1)
		for _, d := range w.in.Deliveries {
			for i := range d.Items {
				w.in.Report(d.Net, &d.Items[i], NotDropped)
			}
		}
	}
}
