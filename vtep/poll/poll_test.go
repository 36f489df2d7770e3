package poll

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWaitEndsWhenReadable(t *testing.T) {
	w, p, _ := pipe(t)
	if _, err := unix.Write(p, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(); err != nil {
		t.Errorf("Wait on a readable pipe: %v", err)
	}
}

func TestWaitEndsWhenTheOtherSideIsGone(t *testing.T) {
	w, p, _ := pipe(t)
	if err := unix.Close(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Wait(); err != nil {
		t.Errorf("Wait on a pipe without writer: %v", err)
	}
}

func TestInterruptEndsPresentAndFutureWaits(t *testing.T) {
	w, _, i := pipe(t)
	done := make(chan error)
	go func() { done <- w.Wait() }()
	i.Interrupt()
	for range 2 {
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Wait after Interrupt: %v", err)
		}
		go func() { done <- w.Wait() }()
	}
	<-done
}

// pipe returns a waiter for one end of a pipe, the other end, and the interrupter.
func pipe(t *testing.T) (*Waiter, int, *Interrupter) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	i, err := NewInterrupter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range []error{unix.Close(p[0]), i.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
		_ = unix.Close(p[1]) // a test may have closed it
	})
	return NewWaiter(p[0], i), p[1], i
}
