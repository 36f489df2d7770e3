package vtep

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	bpf "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// fastPrograms are the programs of package fastpath.
var fastPrograms = []string{"overlayd_leave", "overlayd_arrive", "overlayd_uplink", "overlayd_down"}

// hooked lists the programs of package fastpath on the devices of the namespace that the test is in, as "device program".
func hooked(t *testing.T) (all []string) {
	t.Helper()
	devices, err := net.Interfaces()
	linktest.Must(t, err)
	for _, d := range devices {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := bpf.QueryPrograms(bpf.QueryOptions{Target: d.Index, Attach: at})
			if err != nil {
				continue // the device has gone meanwhile
			}
			for _, p := range found.Programs {
				prog, err := ebpf.NewProgramFromID(p.ID)
				if err != nil {
					continue // so has the program
				}
				info, err := prog.Info()
				prog.Close()
				if err == nil && slices.Contains(fastPrograms, info.Name) {
					all = append(all, d.Name+" "+info.Name)
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// wantHooks waits until just these programs are attached in the namespace that the test is in.
func wantHooks(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("attached are %q, want %q", got, want)
		}
	}()
	linktest.Await(t, "hooks as wanted", func() bool {
		got = hooked(t)
		return slices.Equal(got, want)
	})
}

// inHand is how many frames may be between two counters of a VTEP that runs, in these tests, where traffic comes at leisure.
const inHand = 1000

// lawful returns the status of the only network, in which the law of the counters holds.
func (h *host) lawful() NetworkStatus {
	h.t.Helper()
	n := h.network()
	if in, out := inAndOut(n.Counters); in > out+inHand || out > in+inHand {
		h.t.Fatalf("%d frames in, %d out: %+v", in, out, n.Counters)
	}
	return n
}

func fastOut(n NetworkStatus) uint64 { return n.FastOut.Frames }
func fastIn(n NetworkStatus) uint64  { return n.FastIn.Frames }

// gains waits until the kernel of a host has forwarded k frames more by itself, as count says. traffic makes some each
// time; nil, when others do.
func (h *host) gains(count func(NetworkStatus) uint64, k uint64, traffic func()) {
	h.t.Helper()
	want := count(h.lawful()) + k
	var n NetworkStatus
	defer func() {
		if h.t.Failed() {
			h.t.Logf("%d pairs, out %+v, in %+v, %+v", n.Pairs, n.FastOut, n.FastIn, n.Counters)
		}
	}()
	linktest.Await(h.t, "growth of what the kernel forwards", func() bool {
		if traffic != nil {
			traffic()
		} else {
			time.Sleep(5 * time.Millisecond) // the machine has better to do than to look
		}
		n = h.lawful()
		return count(n) >= want
	})
}

// bothFast waits until all that passes between two hosts is forwarded by their kernels, both ways.
func bothFast(hosts [2]*host, traffic func()) {
	hosts[0].t.Helper()
	for _, h := range hosts {
		h.gains(fastOut, 10, traffic)
		h.gains(fastIn, 10, traffic)
		if h.network().Pairs == 0 {
			h.t.Error("the kernel forwards, and there are no pairs")
		}
	}
}

// numbered are datagrams that come at a leisurely pace, each with its number in its flow.
type numbered struct {
	t    *testing.T
	stop func() // sending; receiving goes on until the test ends

	mu       sync.Mutex
	sent     int
	received int
	newest   time.Time // when the youngest one that has come was sent
	last     []uint64  // that has come of each flow
	early    []string  // what has come before others, or twice
}

// startNumbered sends from each socket to to, and pauses between two rounds as pause says.
func startNumbered(t *testing.T, pause func(round int) time.Duration, to *net.UDPConn, from ...*net.UDPConn) *numbered {
	t.Helper()
	raw, err := to.SyscallConn()
	linktest.Must(t, err)
	linktest.Must(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	}), err)
	s := &numbered{t: t, last: make([]uint64, len(from))}
	ctx, cancel := context.WithCancel(context.Background())
	var senders, readers sync.WaitGroup
	senders.Go(func() { s.send(ctx, pause, to.LocalAddr().(*net.UDPAddr).AddrPort(), from) })
	readers.Go(func() { s.receive(to) })
	s.stop = sync.OnceFunc(func() { cancel(); senders.Wait() })
	t.Cleanup(func() {
		s.stop()
		to.Close()
		readers.Wait()
	})
	return s
}

func (s *numbered) send(ctx context.Context, pause func(int) time.Duration, to netip.AddrPort, from []*net.UDPConn) {
	var b [24]byte
	for n := 1; ctx.Err() == nil; n++ {
		for flow, c := range from {
			binary.BigEndian.PutUint64(b[0:], uint64(flow))
			binary.BigEndian.PutUint64(b[8:], uint64(n))
			binary.BigEndian.PutUint64(b[16:], uint64(time.Now().UnixNano()))
			s.mu.Lock()
			s.sent++
			s.mu.Unlock()
			if _, err := c.WriteToUDPAddrPort(b[:], to); err != nil {
				s.mu.Lock()
				s.sent--
				s.mu.Unlock()
			}
		}
		if d := pause(n); d > 0 {
			time.Sleep(d)
		}
	}
}

func (s *numbered) receive(c *net.UDPConn) {
	for b := make([]byte, 64); ; {
		k, _, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if k != 24 {
			continue
		}
		flow, n := binary.BigEndian.Uint64(b[0:]), binary.BigEndian.Uint64(b[8:])
		at := time.Unix(0, int64(binary.BigEndian.Uint64(b[16:])))
		s.mu.Lock()
		s.received++
		if at.After(s.newest) {
			s.newest = at
		}
		if n <= s.last[flow] && len(s.early) < 10 {
			s.early = append(s.early, fmt.Sprintf("%d of flow %d after %d", n, flow, s.last[flow]))
		}
		s.last[flow] = max(s.last[flow], n)
		s.mu.Unlock()
	}
}

// state returns how many have been sent, how many have come, and when the youngest of these was sent.
func (s *numbered) state() (sent, received int, newest time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.received, s.newest
}

// goesOn waits until more have come, all sent from now on.
func (s *numbered) goesOn() {
	s.t.Helper()
	now := time.Now()
	linktest.Await(s.t, "further datagrams", func() bool {
		time.Sleep(time.Millisecond)
		_, _, newest := s.state()
		return newest.After(now)
	})
}

// accounted stops sending, waits until each datagram has come or is counted by drops, and looks at their order.
func (s *numbered) accounted(drops func() uint64) {
	s.t.Helper()
	s.stop()
	var sent, received int
	var dropped uint64
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%d sent, %d came, %d dropped", sent, received, dropped)
		}
	}()
	linktest.Await(s.t, "end of all datagrams", func() bool {
		time.Sleep(time.Millisecond)
		dropped = drops()
		sent, received, _ = s.state()
		return sent == received+int(dropped)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.early) > 0 {
		s.t.Errorf("out of order: %q", s.early)
	}
}

// every is a steady pace.
func every(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }

// across starts numbered datagrams from host i of a pair to the other one, in both directions known before.
func (p *pair) across(t *testing.T, i, flows int, pause func(int) time.Duration) *numbered {
	t.Helper()
	p.enter(t, 1-i)
	to := linktest.UDP(t, netip.AddrPortFrom(overlay(1-i), 0))
	p.enter(t, i)
	var from []*net.UDPConn
	for range flows {
		from = append(from, linktest.UDP(t, netip.AddrPortFrom(overlay(i), 0)))
	}
	return startNumbered(t, pause, to, from...)
}

// between is across for the containers of a cluster.
func (c *cluster) between(t *testing.T, i int, pause func(int) time.Duration) *numbered {
	t.Helper()
	var to, from *net.UDPConn
	linktest.In(t, c.containers[1-i], func() { to = linktest.UDP(t, netip.AddrPortFrom(inside4(1-i), 0)) })
	linktest.In(t, c.containers[i], func() { from = linktest.UDP(t, netip.AddrPortFrom(inside4(i), 0)) })
	return startNumbered(t, pause, to, from)
}
