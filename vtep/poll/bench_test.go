package poll

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkWake measures the way from Wake to the return of Wait in another thread, as half of a round trip between two
// sets: the write to the eventfd, the change to the other thread, the return of epoll_wait and the read of the eventfd. On
// the same core, the change is one of the scheduler alone; on another, that core is woken from however deep a sleep it
// has reached within a round trip, which is less than after a long silence. With a busy time, Wait does not sleep between
// round trips, and what is measured is how soon it looks again: between cores that is the way of a cache line, on the same
// core that of sched_yield. The figure is the median; what else the machine does shows up in it only when it does so most
// of the time. Frames are not in it: waking by a TAP or a socket costs what the kernel does on the way besides.
func BenchmarkWake(b *testing.B) {
	cores := allowed(b)
	// Both threads hold a processor of the runtime while they wait briefly.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(3, runtime.GOMAXPROCS(0))))
	for _, where := range []string{"same core", "other core"} {
		for _, busy := range []time.Duration{0, time.Millisecond} {
			b.Run(fmt.Sprintf("%s/busy %v", where, busy), func(b *testing.B) {
				other := cores[0]
				if where == "other core" {
					if len(cores) < 2 {
						b.Skip("needs two cores")
					}
					other = cores[1]
				}
				benchWake(b, cores[0], other, busy)
			})
		}
	}
}

// allowed returns the cores that this process may use.
func allowed(b *testing.B) (cores []int) {
	b.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		b.Fatal(err)
	}
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	return cores
}

// pin binds the goroutine to a thread and that to a core. Both last until the goroutine ends, and the thread with it.
func pin(core int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(core)
	return unix.SchedSetaffinity(0, &set)
}

func benchWake(b *testing.B, core, other int, busy time.Duration) {
	near, far := benchSet(b, busy), benchSet(b, busy)
	var stop atomic.Bool
	ended := make(chan error, 1)
	go func() { ended <- echo(far, near, other, &stop) }()
	b.Cleanup(func() {
		stop.Store(true)
		far.Wake()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	if err := pin(core); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		far.Wake()
		if _, woken, err := near.Wait(false); err != nil || !woken {
			b.Fatalf("woken %v, %v", woken, err)
		}
		took = append(took, time.Since(start))
		if stop.Load() {
			b.Fatal("the other thread gave up")
		}
	}
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/2, "ns/wake")
}

// echo wakes one set whenever the other one is woken, until it is to stop.
func echo(from, to *Set, core int, stop *atomic.Bool) error {
	err := pin(core)
	for err == nil && !stop.Load() {
		if _, _, err = from.Wait(false); err == nil {
			to.Wake()
		}
	}
	// Who waits for an answer that does not come has to find out.
	stop.Store(true)
	to.Wake()
	return err
}

func benchSet(b *testing.B, busy time.Duration) *Set {
	b.Helper()
	s, err := NewSet(busy)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// BenchmarkWait measures a Wait that does not have to wait: one epoll_wait that finds a descriptor ready. That is what a
// turn of a worker costs under load before it reads anything.
func BenchmarkWait(b *testing.B) {
	s := benchSet(b, 0)
	ready, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(ready)
	if err := s.Add(ready); err != nil {
		b.Fatal(err)
	}
	const calls = 64
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		for range calls {
			if fds, _, err := s.Wait(false); err != nil || len(fds) != 1 {
				b.Fatalf("%d descriptors are ready, %v", len(fds), err)
			}
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/calls, "ns/wait")
}
