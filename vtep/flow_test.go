package vtep

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// flow is a TCP connection from one container to the next on which bytes never stop, until stop.
type flow struct {
	in       net.Conn // its receiving end
	received atomic.Int64
	ended    atomic.Pointer[error]
	stop     func()
}

// startFlow opens a flow from host 0 of the cluster to host 1, in the containers.
func (c *cluster) startFlow(t *testing.T) *flow {
	t.Helper()
	var in, out net.Conn
	linktest.In(t, c.containers[1], func() {
		l, err := net.Listen("tcp", netip.AddrPortFrom(inside4(1), 0).String())
		linktest.Must(t, err)
		defer l.Close()
		linktest.In(t, c.containers[0], func() {
			out, err = net.DialTimeout("tcp", l.Addr().String(), linktest.Patience)
			linktest.Must(t, err)
		})
		in, err = l.Accept()
		linktest.Must(t, err)
	})
	return runFlow(t, out, in)
}

// runFlow keeps a connection busy, from its end out to its end in.
func runFlow(t *testing.T, out, in net.Conn) *flow {
	t.Helper()
	f := &flow{in: in}
	var wait sync.WaitGroup
	f.stop = sync.OnceFunc(func() { in.Close(); out.Close(); wait.Wait() })
	t.Cleanup(f.stop)
	end := func(err error) { f.ended.CompareAndSwap(nil, &err) }
	wait.Go(func() {
		// Slower than what the machine can do, so that it can do other things.
		for data := make([]byte, 32<<10); ; time.Sleep(5 * time.Millisecond) {
			if _, err := out.Write(data); err != nil {
				end(err)
				return
			}
		}
	})
	wait.Go(func() {
		for data := make([]byte, 64<<10); ; {
			n, err := in.Read(data)
			f.received.Add(int64(n))
			if err != nil {
				end(err)
				return
			}
		}
	})
	return f
}

// goesOn waits until another megabyte has come.
func (f *flow) goesOn(t *testing.T) {
	t.Helper()
	want := f.received.Load() + 1<<20
	linktest.Await(t, "another megabyte", func() bool {
		if err := f.ended.Load(); err != nil {
			t.Fatalf("the connection ended: %v", *err)
		}
		time.Sleep(time.Millisecond) // the machine has better to do than to look
		return f.received.Load() >= want
	})
}

// patiently is linktest.Await for what takes its time.
func patiently(t *testing.T, what string, is func() bool) {
	t.Helper()
	const patience = time.Minute
	for end := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// chatter sends datagrams through the overlay from either host to the other all the time. What it returns waits until
// some have come to each since.
func (r *routed) chatter(t *testing.T) func(*testing.T) {
	t.Helper()
	var s [2]*net.UDPConn
	var got [2]atomic.Int64
	for i := range s {
		r.enter(t, i)
		s[i] = linktest.UDP(t, netip.AddrPortFrom(overlay(i), 7))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		s[0].Close()
		s[1].Close()
		wait.Wait()
	})
	for i := range s {
		wait.Go(func() {
			for ctx.Err() == nil {
				_, _ = s[i].WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(overlay(1-i), 7)) // lost ones do not matter
				time.Sleep(10 * time.Millisecond)
			}
		})
		wait.Go(func() {
			for b := make([]byte, 9); ; {
				if _, _, err := s[i].ReadFromUDPAddrPort(b); err != nil {
					return
				}
				got[i].Add(1)
			}
		})
	}
	return func(t *testing.T) {
		t.Helper()
		for i := range got {
			want := got[i].Load() + 20
			linktest.Await(t, "datagrams", func() bool {
				time.Sleep(time.Millisecond)
				return got[i].Load() >= want
			})
		}
	}
}
