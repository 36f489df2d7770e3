package poll

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWaitReportsWhatIsReady(t *testing.T) {
	s, r, w := setWithPipes(t, 3, 0)
	for _, i := range []int{0, 2} {
		if _, err := unix.Write(w[i], []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	want := []int{r[0], r[2]}
	for range 2 { // what is not read stays ready
		ready, woken, err := s.Wait(false)
		slices.Sort(ready)
		if err != nil || woken || !slices.Equal(ready, want) {
			t.Fatalf("Wait = %v, %v, %v, want %v", ready, woken, err, want)
		}
	}
	if err := s.Remove(r[0]); err != nil {
		t.Fatal(err)
	}
	if ready, _, err := s.Wait(false); err != nil || !slices.Equal(ready, want[1:]) {
		t.Errorf("after Remove: %v, %v", ready, err)
	}
}

func TestWaitReportsAnErrorAsReady(t *testing.T) {
	s, r, w := setWithPipes(t, 1, 0)
	if err := unix.Close(w[0]); err != nil {
		t.Fatal(err)
	}
	w[0] = -1
	if ready, _, err := s.Wait(false); err != nil || !slices.Equal(ready, r) {
		t.Errorf("Wait on a pipe without writer: %v, %v", ready, err)
	}
}

func TestWakeEndsPresentAndNextWait(t *testing.T) {
	s, _, _ := setWithPipes(t, 1, 0)
	woken := make(chan bool)
	wait := func() {
		_, w, err := s.Wait(false)
		woken <- w && err == nil
	}
	go wait()
	s.Wake()
	if !<-woken {
		t.Error("the present Wait was not woken")
	}
	s.Wake()
	s.Wake()
	go wait()
	if !<-woken {
		t.Error("the next Wait was not woken")
	}
}

// Who is to be busy looks on for a while after short waits, and sleeps after long ones, so that an idle one uses no CPU.
func TestBusyAfterShortWaitsOnly(t *testing.T) {
	const busy = 300 * time.Millisecond
	s, _, _ := setWithPipes(t, 1, busy)
	for i, c := range []struct {
		after time.Duration // until the wait is ended
		quick bool          // whether the next wait is to be busy
	}{{0, true}, {0, true}, {2 * busy, false}, {busy / 10, false}, {0, true}} {
		was, start := s.quick, time.Now()
		if n, errno := s.busily(busy); n != 0 || errno != 0 || s.quick {
			t.Fatalf("wait %d: busily, with nothing to see: %d, %v, next %v", i, n, errno, s.quick)
		}
		if d := time.Since(start); was && d < busy {
			t.Errorf("wait %d: after quick %v, was busy for %v", i, was, d)
		}
		s.quick = was
		if c.after == 0 {
			s.Wake()
		} else {
			time.AfterFunc(c.after, s.Wake)
		}
		if _, woken, err := s.Wait(false); err != nil || !woken || s.quick != c.quick {
			t.Fatalf("wait %d, ended after %v: woken %v, %v, and quick %v", i, c.after, woken, err, s.quick)
		}
	}
	never, _, _ := setWithPipes(t, 1, 0)
	for range 3 {
		never.Wake()
		if _, _, err := never.Wait(false); err != nil || never.quick {
			t.Errorf("busy without being asked to: %v", err)
		}
	}
}

func TestAddAndRemoveReportBadDescriptors(t *testing.T) {
	s, r, _ := setWithPipes(t, 1, 0)
	if err := s.Add(r[0]); err == nil {
		t.Error("adding a descriptor twice gave no error")
	}
	if err := s.Add(-1); err == nil {
		t.Error("adding no descriptor gave no error")
	}
	if err := s.Remove(-1); err == nil {
		t.Error("removing no descriptor gave no error")
	}
}

// setWithPipes returns a set that waits for the read ends of n pipes.
func setWithPipes(t *testing.T, n int, busy time.Duration) (s *Set, r, w []int) {
	t.Helper()
	s, err := NewSet(busy)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		r, w = append(r, p[0]), append(w, p[1])
		if err := s.Add(p[0]); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, fd := range append(r, w...) {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, r, w
}

// In the middle of bulk traffic everybody is busy, and stays so if something else comes in between, but not for ever.
func TestBusyBetweenBulk(t *testing.T) {
	s, _, _ := setWithPipes(t, 1, 0)
	wait := func(bulk bool) {
		t.Helper()
		if _, woken, err := s.Wait(bulk); err != nil || !woken {
			t.Fatalf("woken %v, %v", woken, err)
		}
	}
	for end := time.Now().Add(10 * time.Second); !s.quick; { // a busy machine may be slow to look
		if time.Now().After(end) {
			t.Fatal("not busy after short waits")
		}
		s.Wake()
		wait(true)
	}
	s.Wake()
	if wait(false); !s.quick {
		t.Error("no longer busy because of a wait that was not for bulk")
	}
	time.AfterFunc(100*bulkBusy, s.Wake)
	if wait(true); s.quick {
		t.Error("still busy after a long wait")
	}
}
