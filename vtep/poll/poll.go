package poll

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInterrupted is what Wait returns once Interrupt has been called: os.ErrDeadlineExceeded, wrapped.
var ErrInterrupted = fmt.Errorf("interrupted: %w", os.ErrDeadlineExceeded)

// Interrupter ends waits. It cannot be taken back.
type Interrupter struct {
	fd int // eventfd that becomes readable for good
}

// NewInterrupter makes an Interrupter. It costs one file descriptor.
func NewInterrupter() (*Interrupter, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("making an eventfd: %w", err)
	}
	return &Interrupter{fd: fd}, nil
}

// Interrupt makes all present and future waits with i return ErrInterrupted.
func (i *Interrupter) Interrupt() {
	one := [8]byte{1, 0, 0, 0, 0, 0, 0, 1} // not 0 in either byte order
	// It can only fail when the counter is about to overflow, and then it is readable already.
	_, _ = unix.Write(i.fd, one[:])
}

// Close frees the descriptor. No wait may be under way.
func (i *Interrupter) Close() error { return unix.Close(i.fd) }

// Waiter waits for one descriptor.
type Waiter struct {
	fds [2]unix.PollFd
}

// NewWaiter makes a Waiter for the descriptor fd, which should be in non-blocking mode.
func NewWaiter(fd int, i *Interrupter) *Waiter {
	return &Waiter{fds: [2]unix.PollFd{
		{Fd: int32(fd), Events: unix.POLLIN},
		{Fd: int32(i.fd), Events: unix.POLLIN},
	}}
}

// Wait blocks until the descriptor can be read from or has an error to report, or until Interrupt.
func (w *Waiter) Wait() error {
	for {
		_, err := unix.Poll(w.fds[:], -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("waiting for a descriptor: %w", err)
		case w.fds[1].Revents != 0:
			return ErrInterrupted
		}
		return nil
	}
}
