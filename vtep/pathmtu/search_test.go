package pathmtu

import (
	"testing"
	"time"
)

// An acknowledgement that was under way while the path became narrower does not make it wide again.
func TestLateAcknowledgement(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := NewSearch(addrB, 1500, false)
	s.SetPace(Pace{Chosen: true, Traffic: true})
	truth := 1500
	var full *Probe
	round := func() {
		for _, p := range s.Poll(now, nil) {
			if p.Size <= truth {
				s.Acked(now.Add(10*ms), p)
			} else if p.Size == 1500 && full == nil {
				full = &p
			}
		}
		now = now.Add(40 * ms)
	}
	round()
	if s.Path() != 1500 || !s.Settled() {
		t.Fatalf("path %d", s.Path())
	}
	now = now.Add(2 * time.Second)
	truth = 1400
	for s.Settled() {
		round()
	}
	s.Acked(now, *full)
	if s.Path() >= 1500 {
		t.Fatalf("path %d after the acknowledgement of what was sent before", s.Path())
	}
	for range 20 {
		round()
	}
	if s.Path() != 1400 || !s.Settled() || s.blackHoles != 1 {
		t.Fatalf("path %d, settled %v", s.Path(), s.Settled())
	}
}

// One acknowledgement too late for its round is enough to take back what was concluded from its loss.
func TestLateProof(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := NewSearch(addrB, 1500, false)
	var late *Probe
	for range 30 {
		for _, p := range s.Poll(now, nil) {
			if p.Size <= 1400 {
				s.Acked(now.Add(10*ms), p)
			} else if p.Size == 1450 {
				late = &p
			}
		}
		now = now.Add(40 * ms)
	}
	if s.Path() != 1400 || !s.Settled() {
		t.Fatalf("path %d", s.Path())
	}
	s.Acked(now, *late)
	if s.Path() != 1450 || s.Settled() {
		t.Fatalf("path %d, settled %v", s.Path(), s.Settled())
	}
}

// The sizes of a round are within what is in question, rising and different, and not more than a round has.
func TestSpread(t *testing.T) {
	for floor := 500; floor < 3000; floor += 7 {
		for bound := floor + 1; bound < 9100; bound += 41 {
			sizes := appendSpread(nil, floor, bound)
			last := floor
			for _, size := range sizes {
				if size <= last || size >= bound {
					t.Fatalf("between %d and %d: %v", floor, bound, sizes)
				}
				last = size
			}
			if len(sizes) > roundMax || len(sizes) == 0 && bound > floor+1 {
				t.Fatalf("between %d and %d: %v", floor, bound, sizes)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		remote addrOf
		route  int
		want   limits
	}{
		{addrB, 1500, limits{100, 576, 1280, 1500}},
		{addrB6, 1500, limits{120, 1280, 1280, 1500}},
		{addrB, 65536, limits{100, 576, 1280, 65535}},
		{addrB6, 65575, limits{120, 1280, 1280, 65535}},
		{addrB, 1000, limits{100, 576, 1000, 1000}},
		{addrB, 400, limits{100, 400, 400, 400}},
		{addrB6, 1000, limits{120, 1000, 1000, 1000}},
		{addrB, 0, limits{100, 100, 100, 100}},
	} {
		if got := limitsOf(c.remote, underlay(c.route)); got != c.want {
			t.Errorf("%v, route of %d: %+v, want %+v", c.remote, c.route, got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for i := range NumIgnores {
		if i.String() == "" {
			t.Errorf("Ignore %d has no name", i)
		}
	}
	for i := range NumHintIgnores {
		if i.String() == "" {
			t.Errorf("HintIgnore %d has no name", i)
		}
	}
}

// A probe of full size that is lost by chance makes others be sent, and one of them that passes ends the doubt.
func TestDoubtEnds(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := NewSearch(addrB, 1500, false)
	s.SetPace(Pace{Chosen: true, Traffic: true})
	round := func(passes func(i int, size int) bool) (sent int) {
		for i, p := range s.Poll(now, nil) {
			if sent++; passes(i, p.Size) {
				s.Acked(now.Add(10*ms), p)
			}
		}
		now = now.Add(50 * ms)
		return sent
	}
	round(func(int, int) bool { return true })
	now = now.Add(2 * time.Second)
	round(func(_, size int) bool { return size < 1500 })
	if n := round(func(i, _ int) bool { return i != 3 }); n != 4 {
		t.Fatalf("%d probes in doubt, want a small one, one of the base and two of full size", n)
	}
	if n := round(func(int, int) bool { return true }); n != 0 || !s.Settled() || s.Path() != 1500 {
		t.Fatalf("%d probes more, path %d", n, s.Path())
	}
}

// Of a peer of which only small probes come back so far, the base is expected to pass, and not the route's MTU.
func TestBaseIsAssumed(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := NewSearch(addrB, 1500, false)
	for _, p := range s.Poll(now, nil) {
		if p.Size < 1280 {
			s.Acked(now.Add(ms), p)
		}
	}
	now = now.Add(time.Second)
	s.Poll(now, nil)
	if s.Path() != 1280 || s.Settled() || s.State() != StateReachable {
		t.Fatalf("path %d, settled %v", s.Path(), s.Settled())
	}
}
