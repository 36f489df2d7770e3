package fastpath

import (
	"errors"
	"testing"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
)

// TestFull fills both tables, and looks that they say so, and take more once something is gone.
func TestFull(t *testing.T) {
	r := newRig(t)
	s := r.slot()
	leave := func(i int) LeaveKey { return LeaveKey{Outlet: uint32(i)} }
	arrive := func(i int) ArriveKey { return ArriveKey{Outer: [4]byte{byte(i >> 8), byte(i)}} }
	for i := range maxPairs {
		r.must(r.SetLeave(leave(i), s, way(), roomy))
		r.must(r.SetArrive(arrive(i), s, Target{Device: 1}, roomy))
	}
	if err := r.SetLeave(leave(maxPairs), s, way(), roomy); !errors.Is(err, ErrFull) {
		t.Errorf("leaving, one too many: %v", err)
	}
	if err := r.SetArrive(arrive(maxPairs), s, Target{Device: 1}, roomy); !errors.Is(err, ErrFull) {
		t.Errorf("arriving, one too many: %v", err)
	}
	// What is there may change still, and makes room.
	r.must(r.SetLeave(leave(5), s, way(), Limit{}))
	r.must(r.SetArrive(arrive(5), s, Target{Device: 2, Relay: true}, Limit{}))
	r.must(r.UnsetLeave(leave(5)))
	r.must(r.UnsetArrive(arrive(5)))
	r.must(r.SetLeave(leave(maxPairs), s, way(), roomy))
	r.must(r.SetArrive(arrive(maxPairs), s, Target{Device: 1}, roomy))
}

// TestUnset takes away what is there and what is not, and looks what the programs make of it.
func TestUnset(t *testing.T) {
	r := newRig(t)
	s := plain(frametest.Opts{})[0]
	k, hash, _ := r.Leaving(outlet, s.frame)
	b := carry(s.frame)
	a, _ := r.Arriving(there4, here4, b[vxlanAt:])
	r.must(r.UnsetLeave(k))
	r.must(r.UnsetArrive(a))
	slot := r.slot()
	r.must(r.SetLeave(k, slot, way(), roomy))
	r.must(r.SetArrive(a, slot, Target{Device: 1}, roomy))
	if out, in := r.leaves(s.frame, 0), r.arrives(b, 0); out.verdict != redirected || in.verdict != redirected {
		t.Errorf("with entries: verdicts %d and %d", out.verdict, in.verdict)
	}
	r.must(r.UnsetLeave(k))
	r.must(r.UnsetArrive(a))
	out, in := r.leaves(s.frame, 0), r.arrives(b, 0)
	if err := out.untouched(s.frame, map[uint32]uint64{gateOf(hash): 1}); err != nil {
		t.Errorf("leaving: %v", err)
	}
	if err := in.untouched(b, map[uint32]uint64{gateOf(outerHash(there4, source)): uint64(len(b) - vxlanAt)}); err != nil {
		t.Errorf("arriving: %v", err)
	}
	r.must(r.UnsetLeave(k))
	r.must(r.UnsetArrive(a))
}

// TestChange looks that an entry that is there already follows what it is set to.
func TestChange(t *testing.T) {
	r := newRig(t)
	s := plain(frametest.Opts{Payload: 10})[0]
	slot := r.keep(s.frame, s.from, way(), Limit{})
	if got := r.leaves(s.frame, 0); got.verdict != next {
		t.Errorf("verdict %d", got.verdict)
	}
	r.reopen()
	k, _, _ := r.Leaving(outlet, s.frame)
	w := way()
	w.Peer, w.VNI, w.Sources = elsewhere4, vni+1, []uint16{source + 1}
	r.must(r.SetLeave(k, slot, w, Limit{MaxFrame: len(s.frame)}))
	got := r.leaves(s.frame, 0)
	if err := got.sent(nil); err != nil {
		t.Fatal(err)
	}
	outer, _ := frametest.CheckVXLAN(t, got.packet, vni+1)
	if !outer.IPv4.DstIP.Equal(elsewhere4.AsSlice()) || outer.UDP.SrcPort != source+1 {
		t.Errorf("to %v from port %d", outer.IPv4.DstIP, outer.UDP.SrcPort)
	}
}

// TestSlots looks that counters begin at nothing, and that there are so many and no more.
func TestSlots(t *testing.T) {
	r := newRig(t)
	s := plain(frametest.Opts{})[0]
	first := r.keep(s.frame, s.from, way(), roomy)
	r.leaves(s.frame, 0)
	if frames, bytes, _ := r.Count(first); frames != 1 || bytes != uint64(len(s.frame)) {
		t.Errorf("%d frames, %d bytes", frames, bytes)
	}
	r.FreeSlot(first)
	if again := r.slot(); again != first {
		t.Errorf("got %d, want %d, which was used last", again, first)
	}
	if frames, bytes, lost := r.Count(first); frames != 0 || bytes != 0 || lost != 0 {
		t.Errorf("a new one has %d frames, %d bytes, %d lost", frames, bytes, lost)
	}
	seen := map[Slot]bool{first: true}
	for {
		s, err := r.NewSlot()
		if errors.Is(err, ErrFull) {
			break
		}
		r.must(err)
		if seen[s] || s >= maxSlots {
			t.Fatalf("%d is given out twice, or is too large", s)
		}
		seen[s] = true
	}
	if len(seen) != maxSlots {
		t.Errorf("%d counters, want %d", len(seen), maxSlots)
	}
}

// TestOpenLeavesNothing looks that trying the programs leaves no entry, no address and no closed gate.
func TestOpenLeavesNothing(t *testing.T) {
	table := newTable(t)
	var leave LeaveKey
	var arrive ArriveKey
	var local [4]byte
	var value []byte
	if table.leave.Iterate().Next(&leave, &value) || table.arrive.Iterate().Next(&arrive, &value) || table.locals.Iterate().Next(&local, &value) {
		t.Error("there are entries or addresses")
	}
	for name, g := range map[string]*gateways{"leaving": &table.leaveGates, "arriving": &table.arriveGates} {
		if n, is := closed(g); is {
			t.Errorf("%s: gate %d is closed", name, n)
		}
	}
	if table.Settle() {
		t.Error("there is something to settle")
	}
}

// TestMaxSuper looks that a wrapped superframe is no longer than the device takes, and than IPv4 can state.
func TestMaxSuper(t *testing.T) {
	for packet, want := range map[int]int{0: 0, 40: 0, encapLen: 0, 1514: 1514 - encapLen, 65536: 65536 - encapLen, 1 << 20: 65535 + header.EthernetLen - encapLen} {
		if got := MaxSuper(packet); got != want {
			t.Errorf("%d: %d, want %d", packet, got, want)
		}
	}
}

// TestSameWay changes each field in turn.
func TestSameWay(t *testing.T) {
	for name, change := range map[string]func(*Way){
		"device": func(w *Way) { w.Device++ }, "local": func(w *Way) { w.Local = elsewhere4 },
		"peer": func(w *Way) { w.Peer = elsewhere4 }, "VNI": func(w *Way) { w.VNI++ }, "TTL": func(w *Way) { w.TTL++ }, "MaxSuper": func(w *Way) { w.MaxSuper++ },
	} {
		w := way()
		change(w)
		if w.Same(way()) {
			t.Errorf("%s makes no difference", name)
		}
	}
	w := way()
	w.Sources = append(w.Sources, 7)
	if !w.Same(way()) {
		t.Error("source ports make a difference")
	}
}

// TestNoAllocations looks that what is done for each packet allocates nothing.
func TestNoAllocations(t *testing.T) {
	r := newRig(t)
	for _, s := range plain(frametest.Opts{Payload: 22}) {
		d := carry(s.frame)[vxlanAt:]
		var sum int
		if n := testing.AllocsPerRun(100, func() {
			k, hash, _ := r.Leaving(outlet, s.frame)
			r.LeftDone(hash)
			a, _ := r.Arriving(there4, here4, d)
			sum += int(k.Ethernet[0]) + int(a.Ethernet[0]) + int(r.ArrivedDone(there4, source, d))
			f, b, l := r.Count(0)
			sum += int(f + b + l)
		}); n != 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
	}
}
