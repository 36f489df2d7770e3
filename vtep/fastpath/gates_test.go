package fastpath

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// TestGateLeaving sends a frame of a flow the slow way, and looks that the others follow until that is dealt with.
func TestGateLeaving(t *testing.T) {
	r := newRig(t)
	for _, s := range plain(frametest.Opts{}) {
		r.reopen()
		r.keep(s.frame, s.from, way(), roomy)
		_, hash, _ := r.Leaving(outlet, s.frame)
		late := map[uint32]uint64{gateOf(hash): 1}
		fast := func(when string) {
			t.Helper()
			got := r.leaves(s.frame, 0)
			if err := got.sent(nil); err != nil {
				t.Errorf("%s, %s: %v", s.name, when, err)
			}
		}
		slow := func(b []byte, when string) {
			t.Helper()
			got := r.leaves(b, 0)
			if err := got.untouched(b, late); err != nil {
				t.Errorf("%s, %s: %v", s.name, when, err)
			}
		}
		fast("nothing is under way")
		slow(append(s.frame[:len(s.frame):len(s.frame)], 0), "padded")
		slow(s.frame, "one is under way")
		r.LeftDone(hash)
		slow(s.frame, "one of two is dealt with")
		r.LeftDone(hash)
		r.LeftDone(hash)
		fast("all are dealt with")
	}
}

// TestGateArriving is the same for what arrives, where bytes count.
func TestGateArriving(t *testing.T) {
	r := newRig(t)
	for _, s := range plain(frametest.Opts{Payload: 10}) {
		r.reopen()
		r.await(s.frame, s.from, roomy)
		step := func(b []byte, fast bool, when string) {
			t.Helper()
			if got := r.arrives(b, 0); got.verdict == redirected != fast {
				t.Errorf("%s, %s: verdict %d", s.name, when, got.verdict)
			}
		}
		b := carry(s.frame)
		other := carry(frametest.ARPReply(frametest.MAC(1), frametest.IP4(1), frametest.MAC(2), frametest.IP4(2)).Bytes())
		step(b, true, "nothing is under way")
		step(other, false, "not of a kind")
		step(b, false, "one is under way")
		r.ArrivedDone(there4, source, other[vxlanAt:])
		step(b, false, "one of two is dealt with")
		r.ArrivedDone(there4, source, slices.Concat(b[vxlanAt:], b[vxlanAt:])) // a train
		step(b, true, "all are dealt with")
		r.ArrivedDone(there4, source, b[vxlanAt:][:header.VXLANLen+header.EthernetLen-1])
		step(b, true, "what is short does not count")
		r.ArrivedDone(there4, source+1, b[vxlanAt:])
		step(b, true, "what comes from elsewhere does not count")
		probe := slices.Clone(other)
		probe[vxlanAt] = 0
		step(probe, false, "no frame")
		step(b, true, "a probe of the path is under way")
		r.ArrivedDone(there4, source, probe[vxlanAt:])
		step(b, true, "a probe of the path is dealt with")
	}
}

// TestSettle loses packets between a program and userspace, and looks that their gate opens once nothing has moved there from one
// look to the next, and no sooner.
func TestSettle(t *testing.T) {
	r := newRig(t)
	s := plain(frametest.Opts{})[0]
	r.keep(s.frame, s.from, way(), roomy)
	r.await(s.frame, s.from, roomy)
	_, hash, _ := r.Leaving(outlet, s.frame)
	padded := append(s.frame[:len(s.frame):len(s.frame)], 0)
	for name, way := range map[string]struct {
		run          func([]byte, int) outcome
		slow, packet []byte
	}{
		"leaving":  {r.leaves, padded, s.frame},
		"arriving": {r.arrives, append(carry(s.frame), 0), carry(s.frame)},
	} {
		if r.Settle() {
			t.Errorf("%s: closed before anything came", name)
		}
		way.run(way.slow, 0)
		if !r.Settle() {
			t.Errorf("%s: not closed after the first look", name)
		}
		way.run(way.slow, 0) // news: the count begins again
		if !r.Settle() {
			t.Errorf("%s: open although there was news", name)
		}
		if got := way.run(way.packet, 0); got.verdict != next {
			t.Errorf("%s: verdict %d before the gate is open", name, got.verdict)
		}
		if !r.Settle() {
			t.Errorf("%s: open although there was news again", name)
		}
		if r.Settle() {
			t.Errorf("%s: still closed after a look without news", name)
		}
		if got := way.run(way.packet, 0); got.verdict != redirected {
			t.Errorf("%s: verdict %d once the gate is open", name, got.verdict)
		}
		if r.Settle() {
			t.Errorf("%s: closed again", name)
		}
	}
	// More was dealt with than the program has counted, which came some other way.
	r.LeftDone(hash)
	if got := r.leaves(s.frame, 0); got.verdict != next {
		t.Errorf("verdict %d", got.verdict)
	}
	r.LeftDone(hash)
	if r.Settle() {
		t.Error("closed after the first look, though too little was counted")
	}
	if got := r.leaves(s.frame, 0); got.verdict != redirected {
		t.Errorf("verdict %d at a gate that counted too little", got.verdict)
	}
}

// TestSettleWaitsForNone looks that what is dealt with in time leaves nothing to settle.
func TestSettleWaitsForNone(t *testing.T) {
	r := newRig(t)
	s := plain(frametest.Opts{})[0]
	_, hash, _ := r.Leaving(outlet, s.frame)
	for range 3 {
		r.leaves(s.frame, 0)
		r.LeftDone(hash)
		if r.Settle() {
			t.Fatal("closed")
		}
	}
}

// TestBurst looks that a run of datagrams goes the slow way when it is long enough, and no longer after a pause.
func TestBurst(t *testing.T) {
	r := newRig(t)
	for _, s := range plain(frametest.Opts{}) {
		if s.name != "UDP, IPv4" && s.name != "UDP, IPv6" {
			continue
		}
		r.keep(s.frame, s.from, way(), roomy)
		_, hash, _ := r.Leaving(outlet, s.frame)
		g := &r.leaveGates.all[gateOf(hash)]
		// within runs the program so long after the last datagram, in a run of so many, and returns its verdict and how many
		// it counts then. A machine that is busy is late: it tries again until that stays below limit.
		within := func(after, limit time.Duration, run uint64) (verdict int32, count uint64) {
			t.Helper()
			linktest.Await(t, "time without interruption", func() bool {
				r.reopen()
				atomic.StoreUint64(&g.run, run)
				last := monotonic(t) - uint64(after)
				atomic.StoreUint64(&g.last, last)
				verdict = r.again(s.frame, 1)
				count = atomic.LoadUint64(&g.run)
				return atomic.LoadUint64(&g.last)-last < uint64(limit)
			})
			return verdict, count
		}
		for _, c := range []struct {
			when         string
			after, limit time.Duration
			run          uint64
			verdict      int32
			count        uint64
		}{
			{"the run is short", 0, burstGap, burstRun - 2, redirected, burstRun - 1},
			{"the run is long enough", 0, burstGap, burstRun - 1, next, burstRun},
			{"the run goes on", 0, burstGap, burstRun + 5, next, burstRun + 6},
			{"a gap in a long run", burstGap, burstEnd, burstRun, next, burstRun},
			{"a gap in a short run", burstGap, burstEnd, burstRun - 1, redirected, burstRun - 1},
			{"a pause", burstEnd, time.Hour, burstRun + 5, redirected, 0},
		} {
			if verdict, count := within(c.after, c.limit, c.run); verdict != c.verdict || count != c.count {
				t.Errorf("%s, %s: verdict %d, want %d; run %d, want %d", s.name, c.when, verdict, c.verdict, count, c.count)
			}
		}

		// A run as it comes, behind something that is on the slow way, which leaves the packet as it is.
		linktest.Await(t, "burst", func() bool {
			r.reopen()
			r.again(append(s.frame[:len(s.frame):len(s.frame)], 0), 1)
			r.again(s.frame, 2*burstRun)
			atomic.StoreUint64(&g.done, atomic.LoadUint64(&g.slow))
			return r.again(s.frame, 1) == next
		})
		atomic.StoreUint64(&g.done, atomic.LoadUint64(&g.slow))
		time.Sleep(burstEnd) // at least
		if got := r.leaves(s.frame, 0); got.verdict != redirected {
			t.Errorf("%s: verdict %d after a pause", s.name, got.verdict)
		}
	}
}

// again runs the program of a TAP on a frame several times, in quick succession, and returns the last verdict.
func (r *rig) again(frame []byte, times uint32) int32 {
	r.t.Helper()
	verdict, err := r.wrap.Run(&ebpf.RunOptions{Data: frame, Repeat: times})
	r.must(err)
	return int32(verdict)
}

// TestNoBurst looks that only datagrams are counted as such.
func TestNoBurst(t *testing.T) {
	r := newRig(t)
	for _, s := range plain(frametest.Opts{}) {
		if s.name == "UDP, IPv4" || s.name == "UDP, IPv6" {
			continue
		}
		r.keep(s.frame, s.from, way(), roomy)
		for i := range 3 * burstRun {
			got := r.leaves(s.frame, 0)
			if err := got.sent(nil); err != nil {
				t.Fatalf("%s: number %d: %v", s.name, i, err)
			}
		}
	}
}

// monotonic returns the time that programs have.
func monotonic(t *testing.T) uint64 {
	t.Helper()
	var now unix.Timespec
	linktest.Must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return uint64(now.Nano())
}
