package poll

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWaitReportsWhatIsReady(t *testing.T) {
	s, r, w := setWithPipes(t, 3)
	for _, i := range []int{0, 2} {
		if _, err := unix.Write(w[i], []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	want := []int{r[0], r[2]}
	for range 2 { // what is not read stays ready
		ready, woken, err := s.Wait()
		slices.Sort(ready)
		if err != nil || woken || !slices.Equal(ready, want) {
			t.Fatalf("Wait = %v, %v, %v, want %v", ready, woken, err, want)
		}
	}
	if err := s.Remove(r[0]); err != nil {
		t.Fatal(err)
	}
	if ready, _, err := s.Wait(); err != nil || !slices.Equal(ready, want[1:]) {
		t.Errorf("after Remove: %v, %v", ready, err)
	}
}

func TestWaitReportsAnErrorAsReady(t *testing.T) {
	s, r, w := setWithPipes(t, 1)
	if err := unix.Close(w[0]); err != nil {
		t.Fatal(err)
	}
	w[0] = -1
	if ready, _, err := s.Wait(); err != nil || !slices.Equal(ready, r) {
		t.Errorf("Wait on a pipe without writer: %v, %v", ready, err)
	}
}

func TestWakeEndsPresentAndNextWait(t *testing.T) {
	s, _, _ := setWithPipes(t, 1)
	woken := make(chan bool)
	wait := func() {
		_, w, err := s.Wait()
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

func TestAddAndRemoveReportBadDescriptors(t *testing.T) {
	s, r, _ := setWithPipes(t, 1)
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
func setWithPipes(t *testing.T, n int) (s *Set, r, w []int) {
	t.Helper()
	s, err := NewSet()
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
