package poll

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxReady is how many descriptors one Wait reports; the others are reported by the next.
const maxReady = 64

// bulkBusy is how long Wait looks again and again in the middle of bulk traffic. It is what a superframe takes from one to
// the next at 10 Gbit/s, and twice what it costs to wake a core that sleeps in a virtual machine.
const bulkBusy = 50 * time.Microsecond

// Set is a set of file descriptors to wait for.
type Set struct {
	epoll  int
	wake   int // eventfd
	busy   time.Duration
	quick  bool // the last wait was so short that it would have been worth not to sleep
	events [maxReady]unix.EpollEvent
	ready  [maxReady]int
}

// NewSet makes an empty set. It costs two file descriptors. busy is how long Wait looks again and again before it
// sleeps; 0 = it does so in the middle of bulk traffic only.
func NewSet(busy time.Duration) (*Set, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll instance: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making an eventfd: %w", err), unix.Close(epoll))
	}
	s := &Set{epoll: epoll, wake: wake, busy: busy}
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
// slice is valid until the next Wait. bulk says that what came of the last one was so much that more is likely to follow at once.
func (s *Set) Wait(bulk bool) (ready []int, woken bool, err error) {
	busy := s.busy
	if bulk {
		busy = max(busy, bulkBusy)
	}
	n, errno := s.busily(busy)
	if n == 0 && errno == 0 {
		n, errno = s.briefly(busy)
	}
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

// busily looks for up to busy without sleeping: to wake a core that sleeps takes longer than all that is done for a
// frame. It does so only if the last wait was shorter than that, and lets others run in between.
func (s *Set) busily(busy time.Duration) (n int, errno unix.Errno) {
	if !s.quick || busy == 0 {
		return 0, 0
	}
	for start := time.Now(); s.quick; s.quick = time.Since(start) < busy {
		if n, errno = s.look(0); n != 0 || errno != 0 {
			return n, errno
		}
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it cannot fail
	}
	return 0, 0
}

// briefly waits no longer than a millisecond, which under load is long enough nearly always, and does so
// without telling the Go scheduler. Told, its monitor would find the worker in a system call every few
// milliseconds, take its processor away and itself keep waking up every 20 microseconds. Not told, the
// scheduler can still stop the worker: its signal ends the wait.
func (s *Set) briefly(busy time.Duration) (int, unix.Errno) {
	if busy == 0 {
		return s.look(1)
	}
	start := time.Now()
	n, errno := s.look(1)
	s.quick = n > 0 && time.Since(start) < busy
	return n, errno
}

// look waits up to limit, in milliseconds.
func (s *Set) look(limit uintptr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.epoll), uintptr(unsafe.Pointer(&s.events[0])), maxReady, limit, 0, 0)
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
