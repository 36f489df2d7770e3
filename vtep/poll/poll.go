package poll

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxReady is how many descriptors one Wait reports; the others are reported by the next.
const maxReady = 64

// Set is a set of file descriptors to wait for.
type Set struct {
	epoll  int
	wake   int // eventfd
	events [maxReady]unix.EpollEvent
	ready  [maxReady]int
}

// NewSet makes an empty set. It costs two file descriptors.
func NewSet() (*Set, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making an eventfd: %w", err), unix.Close(epoll))
	}
	s := &Set{epoll: epoll, wake: wake}
	if err := s.Add(wake); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Add puts the descriptor fd, which must be in non-blocking mode, into the set.
func (s *Set) Add(fd int) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return fmt.Errorf("waiting for descriptor %d: %w", fd, err)
	}
	return nil
}

// Remove takes fd out of the set.
func (s *Set) Remove(fd int) error {
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("no longer waiting for descriptor %d: %w", fd, err)
	}
	return nil
}

// Wait blocks until a descriptor can be read from or has an error to report, or until Wake. It returns
// the descriptors that are ready, which stay ready until they are read empty, and whether it was woken. The
// slice is valid until the next Wait.
func (s *Set) Wait() (ready []int, woken bool, err error) {
	n, errno := s.briefly()
	for n == 0 || errno == unix.EINTR {
		n, err = unix.EpollWait(s.epoll, s.events[:], -1)
		errno, _ = err.(unix.Errno)
	}
	if errno != 0 {
		return nil, false, fmt.Errorf("waiting for descriptors: %w", errno)
	}
	ready = s.ready[:0]
	for i := range n {
		if fd := int(s.events[i].Fd); fd != s.wake {
			ready = append(ready, fd)
			continue
		}
		woken = true
		var count [8]byte
		// It can only fail when there is nothing to read, and then there is nothing to clear.
		_, _ = unix.Read(s.wake, count[:])
	}
	return ready, woken, nil
}

// briefly waits no longer than a millisecond, which under load is long enough nearly always, and does so
// without telling the Go scheduler. Told, its monitor would find the worker in a system call every few
// milliseconds, take its processor away and itself keep waking up every 20 microseconds. Not told, the
// scheduler can still stop the worker: its signal ends the wait.
func (s *Set) briefly() (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.epoll), uintptr(unsafe.Pointer(&s.events[0])), maxReady, 1, 0, 0)
	return int(n), errno
}

// Wake ends the present Wait, or else the next one.
func (s *Set) Wake() {
	one := [8]byte{1, 0, 0, 0, 0, 0, 0, 1} // not 0 in either byte order
	// It can only fail when the counter is about to overflow, and then it is readable already.
	_, _ = unix.Write(s.wake, one[:])
}

// Close frees the set. The descriptors in it stay open. No Wait or Wake may be under way.
func (s *Set) Close() error { return errors.Join(unix.Close(s.wake), unix.Close(s.epoll)) }
