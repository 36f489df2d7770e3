package underlay

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/inject"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// load is what the benchmarks send.
type load struct {
	name  string
	calls int  // of Send between two looks at the clock
	batch bool // whether a receive may fill several buffers
	fill  func(x *traffic)
	whole bool // a superframe that is not cut
}

// loads are a superframe cut into a train, as many small datagrams as one send takes, as many as one system call takes
// one by one, a single one, and a superframe of 62 segments that is not cut. The datagrams of a train are in two pieces
// each, as segments are.
var loads = []load{
	{"44x1400B", 1, true, func(x *traffic) { x.add(0, 3, 0, 2, slices.Repeat([]int{1400}, 44)...) }, false},
	{"63x64B", 1, true, func(x *traffic) { x.add(0, 3, 0, 2, slices.Repeat([]int{64}, MaxSegments)...) }, false},
	{"32 times 64B", 1, true, func(x *traffic) {
		for range maxBatch {
			x.add(0, 3, 0, 1, 64)
		}
	}, false},
	{"64B", 16, false, func(x *traffic) { x.add(0, 3, 0, 1, 64) }, false},
	{"62x1000B whole", 1, true, func(x *traffic) { x.whole(0, 3, 62) }, true},
}

// wire is a sender with something to send, and the peer that it reaches over a veth pair.
type wire struct {
	traffic
	sender *Sender
	dest   []Destination
	peer   *Receiver
	batch  []forward.Received
	told   tally
}

// newWire makes it. It ends with the benchmark. Without arrive, the peer is not whom the datagrams are addressed to.
func newWire(b *testing.B, l load, arrive bool) *wire {
	b.Helper()
	linktest.Lock(b)
	w := &wire{sender: NewSender(), batch: make([]forward.Received, maxBatch)}
	l.fill(&w.traffic)
	there := linktest.New(b)
	here := linktest.New(b)
	mac, to := frametest.MAC(2), frametest.MAC(2)
	if !arrive {
		to = frametest.MAC(3)
	}
	linktest.Must(b, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(there), PeerHardwareAddr: mac[:],
	}))
	c := all(there4)
	c.Batch = l.batch
	linktest.Must(b, netns.Set(there), link.AddAddress("eth0", netip.PrefixFrom(there4, 24)), link.SetUp("eth0"))
	w.peer = benchEndpoint(b, c).Receivers[0]
	linktest.Must(b, netns.Set(here), link.AddAddress("eth0", netip.PrefixFrom(here4, 24)), link.SetUp("eth0"))
	eth0 := linktest.Device(b, "eth0").Attrs().Index
	linktest.Must(b, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: eth0, State: netlink.NUD_PERMANENT, IP: there4.AsSlice(), HardwareAddr: to[:],
	}))
	linktest.Await(b, "carrier", func() bool { return linktest.Device(b, "eth0").Attrs().OperState == netlink.OperUp })
	w.dest = destinations(benchEndpoint(b, all(here4)), there4)
	if l.whole {
		dev, err := inject.Open(nil)
		if err != nil {
			b.Skipf("this kernel takes no superframes uncut: %v", err)
		}
		b.Cleanup(func() { linktest.Must(b, dev.Close()) })
		w.dest[0].Whole, err = dev.NewPath(inject.PathConfig{Local: here4, Peer: there4, Port: port, TTL: 64, Checksum: true, Device: eth0})
		linktest.Must(b, err)
	}
	return w
}

func benchEndpoint(b *testing.B, c Config) *Endpoint {
	b.Helper()
	e, err := Open(c)
	linktest.Must(b, err)
	b.Cleanup(func() { linktest.Must(b, e.Close()) })
	return e
}

// send sends all that often, and fails if anything was refused.
func (w *wire) send(b *testing.B, times int) {
	for range times {
		w.sender.Send(w.sends, w.pieces, w.dest, &w.told)
	}
	if w.told.dropped != 0 {
		b.Fatalf("%d datagrams were refused", w.told.dropped)
	}
}

// receive takes n datagrams, and returns how many calls of Receive gave some, and whether none gave nothing.
func (w *wire) receive(b *testing.B, n int) (calls int, all bool) {
	for all = true; n > 0; {
		k, err := w.peer.Receive(w.batch)
		if err == unix.EAGAIN {
			all = false
			// A signal may end it early, but not often.
			fds := []unix.PollFd{{Fd: int32(w.peer.FD()), Events: unix.POLLIN}}
			if r, err := unix.Poll(fds, int(patience.Milliseconds())); r == 0 && err != unix.EINTR {
				b.Fatalf("%d datagrams are missing, %v", n, err)
			}
			continue
		}
		if err != nil {
			b.Fatal(err)
		}
		calls++
		for _, r := range w.batch[:k] {
			if r.Stride == 0 {
				n--
				continue
			}
			n -= (len(r.Data) + r.Stride - 1) / r.Stride
		}
	}
	return calls, all
}

// reportMedian prints the median of the times that equal runs of calls took, in place of ns/op: a mean would hold what else
// the machine does. Each took that many calls, for that many datagrams and bytes.
func reportMedian(b *testing.B, took []time.Duration, call string, calls, datagrams, bytes int) {
	b.Helper()
	if len(took) == 0 {
		b.Fatal("nothing arrived in time to be measured: the machine does too much else")
	}
	slices.Sort(took)
	median := float64(took[len(took)/2].Nanoseconds())
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median/float64(calls), call)
	if datagrams > 0 {
		b.ReportMetric(median/float64(datagrams), "ns/datagram")
		b.ReportMetric(float64(bytes)/median*1e3, "MB/s")
	}
}

// bytes returns how many bytes of UDP payload there are.
func (x *traffic) bytes() (n int) {
	for _, s := range x.sent {
		n += len(s)
	}
	return n
}

// BenchmarkSend measures one Send: filling in the messages, the system call, the copy of the pieces, UDP, IP, route and
// neighbour, the veth pair, and what the kernel does for the peer, since it does that on the sender's time. "dropped" is
// addressed to another MAC, so that the peer's IP drops it at once: nothing behind that is in it. "delivered" holds all of
// the way in, up to the socket's queue. Receiving, which the benchmark does beside the timer, is in neither, nor is waking
// a reader. A train is not cut on the way. The pieces are hot. A superframe takes the way of package inject.
func BenchmarkSend(b *testing.B) {
	for _, l := range loads {
		for _, arrive := range []bool{false, true} {
			b.Run(l.name+"/"+map[bool]string{false: "dropped", true: "delivered"}[arrive], func(b *testing.B) {
				w := newWire(b, l, arrive)
				n := l.calls * len(w.sent)
				var took []time.Duration
				for b.Loop() {
					start := time.Now()
					w.send(b, l.calls)
					took = append(took, time.Since(start))
					if arrive {
						w.receive(b, n)
					}
				}
				if _, err := w.peer.Receive(w.batch); err != unix.EAGAIN {
					b.Fatalf("there is more than was sent, or %v", err)
				}
				reportMedian(b, took, "ns/send", l.calls, n, l.calls*w.bytes())
			})
		}
	}
}

// BenchmarkReceive measures the Receives that take what was sent beside the timer: the system call, the copy, the
// control messages and reading those. Of the kernel's way to the socket's queue nothing is in it: see BenchmarkSend. Nor is
// the wake-up of the reader. A train comes in one buffer. "64B" is received one datagram a call, "32 times 64B" all in one
// call. What is received is hot, since the same core has just sent it. "empty" is a call that finds nothing.
func BenchmarkReceive(b *testing.B) {
	for _, l := range loads {
		b.Run(l.name, func(b *testing.B) {
			w := newWire(b, l, true)
			n := l.calls * len(w.sent)
			// Until the receiver has found out how many buffers it needs.
			for range 8 {
				w.send(b, l.calls)
				w.receive(b, n)
			}
			var took []time.Duration
			calls := 0
			for b.Loop() {
				w.send(b, l.calls)
				start := time.Now()
				k, all := w.receive(b, n)
				if d := time.Since(start); all {
					took, calls = append(took, d), k
				}
			}
			reportMedian(b, took, "ns/receive", calls, n, l.calls*w.bytes())
		})
	}
	b.Run("empty", func(b *testing.B) {
		w := newWire(b, loads[0], true)
		const calls = 64
		var took []time.Duration
		for b.Loop() {
			start := time.Now()
			for range calls {
				if _, err := w.peer.Receive(w.batch); err != unix.EAGAIN {
					b.Fatalf("a datagram from nobody, or %v", err)
				}
			}
			took = append(took, time.Since(start))
		}
		reportMedian(b, took, "ns/receive", calls, 0, 0)
	})
}
