package load

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fresh is a network namespace with nothing but a loopback.
type fresh struct{ handle netns.NsHandle }

func (f fresh) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(f.handle); err != nil {
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// loopback makes a fresh namespace; without root it skips, or fails where CI=true.
func loopback(t *testing.T) fresh {
	t.Helper()
	var f fresh
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		var err error
		if f.handle, err = netns.New(); err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		made <- err
	}()
	if err := <-made; errors.Is(err, unix.EPERM) {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.handle.Close() })
	return f
}

var (
	local4 = netip.MustParseAddr("127.0.0.1")
	local6 = netip.IPv6Loopback()
)

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestPing(t *testing.T) {
	ns := loopback(t)
	for _, to := range []netip.Addr{local4, local6} {
		r, err := Ping(within(t), PingConfig{From: ns, To: to, Count: 20, Size: 1000})
		if err != nil || r.Sent != 20 || r.Received != 20 || r.Corrupt != 0 || r.Duplicate != 0 {
			t.Errorf("%v: %+v, %v", to, r, err)
		}
		if r.Min <= 0 || r.Min > r.Avg || r.Avg > r.Max {
			t.Errorf("%v: times out of order: %+v", to, r)
		}
	}
	// Nobody has this address, and the namespace has a route to it.
	r, err := Ping(within(t), PingConfig{From: ns, To: netip.MustParseAddr("127.0.0.2"), Count: 1})
	if err != nil || r.Received != 1 { // all of 127/8 answers
		t.Errorf("127.0.0.2: %+v, %v", r, err)
	}
	if r, err := Ping(within(t), PingConfig{From: ns, To: netip.MustParseAddr("192.0.2.9")}); err == nil {
		t.Errorf("ping without a route gave no error: %+v", r)
	}
	if _, err := Ping(within(t), PingConfig{From: ns, To: local4, Size: 65508, DontFragment: true}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ping over the MTU: %v, want EMSGSIZE", err)
	}
}

// TestPingLooksBeforeItGivesUp awaits replies whose time is over: the first lies in the socket, behind the late one of an
// earlier request; of the second there is none.
func TestPingLooksBeforeItGivesUp(t *testing.T) {
	in, out := datagrams(t)
	p := &pinger{fd: in, in: make([]byte, 100), out: make([]byte, echoHeaderLen+pingTokenLen)}
	p.out[0] = echoReply6 // the request is of no matter
	for _, seq := range []uint16{0, 1} {
		binary.BigEndian.PutUint16(p.out[6:], seq)
		if err := unix.Send(out, p.out, 0); err != nil {
			t.Fatal(err)
		}
	}
	for seq := uint16(1); seq <= 2; seq++ {
		if err := p.await(within(t), seq, time.Now().Add(-time.Minute), time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if r := p.result(); r.Received != 1 || r.Duplicate != 1 || r.Corrupt != 0 {
		t.Errorf("%+v, want the reply and the late one", r)
	}
}

// datagrams is a pair of sockets; calls to the first return EAGAIN after wake.
func datagrams(t *testing.T) (in, out int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(fds[:]) })
	tv := unix.NsecToTimeval(int64(wake))
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

func TestTCP(t *testing.T) {
	ns := loopback(t)
	for _, to := range []netip.Addr{local4, local6} {
		const size = 20<<20 + 12345
		r, err := TCP(within(t), TCPConfig{From: ns, To: ns, Address: to, Direction: Both, Flows: 3, Bytes: size, Verify: true})
		if err != nil || r.Forward.Bytes != 3*size || r.Reverse.Bytes != 3*size {
			t.Errorf("%v: %+v, %v", to, r, err)
		}
		if r.Forward.BitsPerSecond() <= 0 || r.Forward.MSS == 0 {
			t.Errorf("%v: no rate or MSS: %+v", to, r.Forward)
		}
	}
	start := time.Now()
	r, err := TCP(within(t), TCPConfig{From: ns, To: ns, Address: local4, Direction: Reverse, Duration: 200 * time.Millisecond})
	if err != nil || r.Forward.Bytes != 0 || r.Reverse.Bytes == 0 || time.Since(start) < 200*time.Millisecond {
		t.Errorf("by duration: %+v, %v", r, err)
	}
	t.Logf("loopback: %.1f Gb/s", r.Reverse.BitsPerSecond()/1e9)
}

// TestTCPWindow measures less than what is sent.
func TestTCPWindow(t *testing.T) {
	ns := loopback(t)
	const warmup, duration = 100 * time.Millisecond, 200 * time.Millisecond
	var opened, closed time.Time
	start := time.Now()
	r, err := TCP(within(t), TCPConfig{
		From: ns, To: ns, Address: local4, Flows: 2, Warmup: warmup, Duration: duration,
		OnWindow: func(open bool) {
			if open {
				opened = time.Now()
			} else {
				closed = time.Now()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if opened.Sub(start) < warmup || closed.Sub(opened) < duration {
		t.Errorf("the window opened after %v and was open for %v", opened.Sub(start), closed.Sub(opened))
	}
	f := r.Forward
	if f.Bytes == 0 || f.MSS == 0 || f.Elapsed < duration || f.Elapsed > closed.Sub(opened) || r.Reverse != (Transfer{}) {
		t.Errorf("%+v", r)
	}
	_, err = TCP(within(t), TCPConfig{From: ns, To: ns, Address: local6, Direction: Both, Warmup: time.Millisecond, Duration: time.Millisecond})
	if err != nil {
		t.Error(err)
	}
}

func TestTCPCancelled(t *testing.T) {
	ns := loopback(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := TCP(ctx, TCPConfig{From: ns, To: ns, Address: local4, Duration: time.Hour})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// TestTCPStalls takes the link away under a transfer.
func TestTCPStalls(t *testing.T) {
	ns := loopback(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	cut := make(chan error, 1)
	go func() { cut <- ns.Do(func() error { return downAfter(ctx, "lo", 1<<20) }) }()
	r, err := TCP(ctx, TCPConfig{From: ns, To: ns, Address: local4, Duration: time.Hour, Stall: time.Second})
	if !errors.Is(err, ErrStalled) || r.Forward.Bytes == 0 {
		t.Errorf("a transfer over a dead link: %+v, %v", r, err)
	}
	cancel()
	if err := <-cut; err != nil {
		t.Errorf("take the link down: %v", err)
	}
}

// downAfter takes a device down once it has received that many bytes.
func downAfter(ctx context.Context, device string, bytes uint64) error {
	for {
		dev, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		if dev.Attrs().Statistics.RxBytes >= bytes {
			return netlink.LinkSetDown(dev)
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

func TestUDP(t *testing.T) {
	ns := loopback(t)
	for _, c := range []UDPConfig{
		{Address: local4, Size: 64, Count: 10000, Rate: 50000},
		{Address: local6, Size: 1400, Count: 2000},
		{Address: local4, Size: MinUDP, Count: 1},
		{Address: local4, Size: 9000, Rate: 1000, Duration: 100 * time.Millisecond},
	} {
		c.From, c.To = ns, ns
		r, err := UDP(within(t), c)
		if err != nil || r.Sent == 0 || c.Count > 0 && r.Sent != uint64(c.Count) {
			t.Errorf("%+v: %+v, %v", c, r, err)
		}
		if r.Received != r.Sent || r.Lost+r.Duplicate+r.Reordered+r.Corrupt+r.Refused != 0 {
			t.Errorf("%+v: %+v", c, r)
		}
	}
	if _, err := UDP(within(t), UDPConfig{From: ns, To: ns, Address: local4, Size: MinUDP - 1}); err == nil {
		t.Error("a payload below MinUDP gave no error")
	}
	r, err := UDP(within(t), UDPConfig{From: ns, To: ns, Address: local4, Size: 64, Duration: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("loopback, 64 bytes: %.0f kpps sent, %.0f received, %.1f %% lost", r.SendRate()/1e3, r.Rate()/1e3, 100*r.Loss())
}

// TestUDPLooksBeforeItGivesUp has the receiver stand still while datagrams come: they wait in its socket, and are not
// lost. The third is.
func TestUDPLooksBeforeItGivesUp(t *testing.T) {
	c := UDPConfig{Size: 64, Flows: 1, Drain: 300 * time.Millisecond}
	s := &stream{config: c, token: 7, table: crc32.MakeTable(crc32.Castagnoli), highest: make([]uint64, c.Flows)}
	s.sent.Store(-1)
	b := newBatch(c.Size)
	looks := 0
	err := s.receive(within(t), b, func() (int, error) {
		switch looks++; looks {
		case 1, 3: // nothing is there, and then the machine has other things to do
			time.Sleep(2 * c.Drain)
			s.sent.Store(3)
		case 2, 4:
			buf := b.bufs[0]
			binary.BigEndian.PutUint64(buf[udpTokenOff:], s.token)
			binary.BigEndian.PutUint64(buf[udpSeqOff:], uint64(looks))
			binary.BigEndian.PutUint32(buf[udpCRCOff:], s.crc(buf))
			b.msgs[0].len = uint32(c.Size)
			return 1, nil
		default:
			time.Sleep(time.Millisecond)
		}
		return 0, unix.EAGAIN
	})
	if err != nil || s.result.Received != 2 {
		t.Errorf("%+v after %d looks, %v", s.result, looks, err)
	}
}

// TestUDPCounts offers datagrams of known faults to the receiver.
func TestUDPCounts(t *testing.T) {
	ns := loopback(t)
	var at netip.AddrPort
	rx, err := openSocket(ns, local4, unix.SOCK_DGRAM, 0, func(fd int) (err error) {
		at, err = bindTo(fd, local4)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(rx)
	tx, err := openSocket(ns, local4, unix.SOCK_DGRAM, 0, func(fd int) error { return unix.Connect(fd, sockaddr(at)) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tx)
	s := &stream{highest: make([]uint64, 1), config: UDPConfig{Flows: 1, Size: 100, Drain: 10 * time.Millisecond}, token: 7, table: crc32.MakeTable(crc32.Castagnoli)}
	send := func(seq uint64, change func([]byte) []byte) {
		b := make([]byte, 100)
		binary.BigEndian.PutUint64(b[udpTokenOff:], 7)
		binary.BigEndian.PutUint64(b[udpSeqOff:], seq)
		binary.BigEndian.PutUint32(b[udpCRCOff:], s.crc(b))
		if change != nil {
			b = change(b)
		}
		if err := unix.Send(tx, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, seq := range []uint64{0, 2, 1, 3, 3, 500, 4} { // 1 and 4 late, 3 twice
		send(seq, nil)
	}
	send(5, func(b []byte) []byte { b[99] ^= 1; return b })
	send(6, func(b []byte) []byte { return b[:99] })
	send(7, func(b []byte) []byte { return append(b, 0) })
	send(8, func(b []byte) []byte { b[udpTokenOff]++; return b })
	s.sent.Store(10)
	b := newBatch(s.config.Size)
	if err := s.receive(within(t), b, func() (int, error) { return b.receive(rx) }); err != nil {
		t.Fatal(err)
	}
	r := s.result
	if r.Received != 6 || r.Duplicate != 1 || r.Reordered != 2 || r.Corrupt != 4 {
		t.Errorf("got %+v, want 6 received, 1 duplicate, 2 reordered, 4 corrupt", r)
	}
}

// TestUDPFlows sends from several ports in turn.
func TestUDPFlows(t *testing.T) {
	ns := loopback(t)
	const count = 20 * turn * 3 // no whole number of turns for each flow
	for _, flows := range []int{1, 3, 64} {
		r, err := UDP(within(t), UDPConfig{From: ns, To: ns, Address: local4, Size: 64, Count: count, Flows: flows})
		if err != nil || r.Sent != count || r.Received != count || r.Reordered+r.Duplicate+r.Corrupt != 0 {
			t.Errorf("%d flows: %+v, %v", flows, r, err)
		}
	}
	if _, err := UDP(within(t), UDPConfig{From: ns, To: ns, Address: local4, Size: 64, Flows: maxUDPFlows + 1}); err == nil {
		t.Error("more flows than there can be were accepted")
	}
}

// TestUDPFlowsReorder looks at whether order is that of each flow alone.
func TestUDPFlowsReorder(t *testing.T) {
	ports := map[int]bool{}
	s := stream{config: UDPConfig{Flows: 3}}
	for seq := range uint64(2 * 3 * turn) {
		ports[s.flow(seq)] = true
		if s.flow(seq) != s.flow(seq+3*turn) || seq%turn != 0 && s.flow(seq) != s.flow(seq-1) {
			t.Fatalf("datagram %d is of flow %d", seq, s.flow(seq))
		}
	}
	if len(ports) != 3 {
		t.Errorf("flows %v, want 3", ports)
	}
}

func TestConnect(t *testing.T) {
	ns := loopback(t)
	r, err := Connect(within(t), ConnectConfig{From: ns, To: ns, Address: local4, Duration: 50 * time.Millisecond})
	if err != nil || r.Count == 0 || r.Elapsed < 50*time.Millisecond || r.Rate() <= 0 {
		t.Errorf("%+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Connect(ctx, ConnectConfig{From: ns, To: ns, Address: netip.MustParseAddr("192.0.2.1")}); err == nil {
		t.Error("an address that nobody has was connected to")
	}
}

func TestSweep(t *testing.T) {
	ns := loopback(t)
	for _, to := range []netip.Addr{local4, local6} {
		r, err := Sweep(within(t), SweepConfig{From: ns, To: ns, Address: to, First: 0, Last: 3000})
		if err != nil || r.Sizes != 3001 || len(r.Missing)+len(r.Corrupt)+len(r.Refused) != 0 {
			t.Errorf("%v: %+v, %v", to, r, err)
		}
	}
	if err := ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(lo, 1500)
	}); err != nil {
		t.Fatal(err)
	}
	r, err := Sweep(within(t), SweepConfig{From: ns, To: ns, Address: local4, First: 1470, Last: 1474, DontFragment: true})
	if err != nil || r.Sizes != 3 || len(r.Refused) != 2 || r.Refused[0] != 1473 {
		t.Errorf("around the MTU: %+v, %v; want 3 sizes and 1473, 1474 refused", r, err)
	}
}

// TestSweepLooksBeforeItGivesUp awaits echoes whose time is over: the first lies in the socket, of the second there is none.
func TestSweepLooksBeforeItGivesUp(t *testing.T) {
	in, out := datagrams(t)
	s := &sweeper{fd: in, buf: make([]byte, 100)}
	body, waiting := make([]byte, 20), map[int]bool{10: true, 20: true}
	if err := unix.Send(out, pattern(body, 10), 0); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Minute)
	if size, ok, err := s.reply(within(t), body, waiting, past); err != nil || !ok || size != 10 || s.result.Sizes != 1 {
		t.Errorf("an echo that waits: %d, %v, %v; %+v", size, ok, err, s.result)
	}
	if size, ok, err := s.reply(within(t), body, waiting, past); err != nil || ok {
		t.Errorf("no echo: %d, %v, %v", size, ok, err)
	}
}

func TestRoundTrip(t *testing.T) {
	ns := loopback(t)
	const count = 2000
	late := map[Transport]int{OverUDP: count / 100} // which count as lost: on a busy machine some take longer than udpPatience
	for _, over := range []Transport{OverTCP, OverUDP} {
		for _, to := range []netip.Addr{local4, local6} {
			l, err := RoundTrip(within(t), RoundTripConfig{From: ns, To: ns, Address: to, Transport: over, Count: count})
			if err != nil || l.Count+l.Lost != count || l.Lost > late[over] {
				t.Errorf("%v over %d: %+v, %v", to, over, l, err)
			}
			if l.Min <= 0 || l.Min > l.P50 || l.P50 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
				t.Errorf("quantiles out of order: %+v", l)
			}
			t.Logf("%v over %d: p50 %v p99 %v", to, over, l.P50, l.P99)
		}
	}
}

// TestRoundTripOfOneByte is what request and response are at the least.
func TestRoundTripOfOneByte(t *testing.T) {
	ns := loopback(t)
	l, err := RoundTrip(within(t), RoundTripConfig{From: ns, To: ns, Address: local4, Size: 1, Count: 500})
	if err != nil || l.Count != 500 {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestGroup(t *testing.T) {
	ns := loopback(t)
	if err := ns.Do(func() error {
		a, err := netlink.ParseAddr("192.0.2.1/24")
		if err != nil {
			return err
		}
		d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "d0"}, PeerName: "d1"}
		if err := netlink.LinkAdd(d); err != nil {
			return err
		}
		other, err := netlink.LinkByName("d1")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(d, a), netlink.LinkSetUp(d), netlink.LinkSetUp(other))
	}); err != nil {
		t.Fatal(err)
	}
	// A sender hears its own group by way of the loopback of multicast.
	heard, err := Group(within(t), GroupConfig{From: ns, To: []Namespace{ns}, Group: netip.MustParseAddr("233.252.0.1"), Device: "d0"})
	if err != nil || heard[0] != 10 {
		t.Errorf("multicast: heard %v, %v", heard, err)
	}
}

func TestQuantiles(t *testing.T) {
	var times []time.Duration
	for i := 1000; i >= 1; i-- {
		times = append(times, time.Duration(i))
	}
	var l Latency
	l.summarise(times)
	want := Latency{Count: 1000, Min: 1, Mean: 500, Max: 1000, P50: 501, P99: 991, P999: 1000}
	if l != want {
		t.Errorf("got %+v, want %+v", l, want)
	}
}

func TestChecksumKnown(t *testing.T) {
	// The example of RFC 1071, section 3: the sum is ddf2.
	if got := internetChecksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("got %#x", got)
	}
	if internetChecksum([]byte{1, 2, 3}) != internetChecksum([]byte{1, 2, 3, 0}) {
		t.Error("an odd byte is not padded with zero")
	}
}
