package interop

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/header"
)

// offloads are the states of the links that the matrix goes through, from all to nothing: once a socket has
// learned that its device cannot segment, it does not try again.
var offloads = []struct {
	name     string
	set      map[string]bool
	finished bool  // nothing unfinished may be on the wire
	bulk     int64 // bytes of TCP each way
}{
	{"all", map[string]bool{}, false, 200 * megabyte},
	{"no tunnel", map[string]bool{"tunnel": false}, false, 20 * megabyte},
	{"none", map[string]bool{"tunnel": false, "checksum": false, "tso": false, "uso": false}, true, 200 * megabyte},
}

// TestMatrix moves all kinds of traffic between every two kinds of VXLAN speakers, over both address families
// and with the offloads of the links on and off.
func TestMatrix(t *testing.T) {
	for _, outer := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run("over "+string(outer), func(t *testing.T) {
			sc := scenario(outer, lab.Overlayd, lab.Overlayd, lab.Kernel)
			l := up(t, sc)
			h1, h2, h3 := l.Host("h1"), l.Host("h2"), l.Host("h3")
			for _, o := range offloads {
				t.Run(o.name, func(t *testing.T) {
					for _, h := range l.Hosts() {
						if err := l.SetOffloads(h.Name(), o.set); err != nil {
							t.Fatal(err)
						}
					}
					w := watch(t, l, o.finished)
					t.Run("overlayd and overlayd", func(t *testing.T) { pair(t, w, h1, h2, o.bulk) })
					t.Run("overlayd and kernel", func(t *testing.T) { pair(t, w, h1, h3, o.bulk) })
					t.Run("kernel and overlayd", func(t *testing.T) { pair(t, w, h3, h2, 0) })
					t.Run("all at once", func(t *testing.T) { groups(t, w, l) })
					t.Run("ECN", func(t *testing.T) { congestion(t, w, h1, h2, h3) })
					seen := w.end(t)
					if total(seen.unfinished) == 0 != o.finished || total(seen.superframes) == 0 != (len(o.set) > 0) {
						t.Errorf("offloads %s, and %d packets were unfinished, %d superframes", o.name, total(seen.unfinished), total(seen.superframes))
					}
				})
			}
			for _, h := range []*lab.Host{h1, h2} {
				n := conserved(t, h.Socket())[network]
				for reason, count := range n.GetCounters().GetDropsByReason() {
					// TCP at full speed fills the queue of a device, and that is how it learns the speed.
					if reason != "send_no_buffer" {
						t.Errorf("%s dropped %d frames: %s", h.Name(), count, reason)
					}
				}
				for reason, count := range statusOf(t, h.Socket()).GetUnderlay().GetDropsByReason() {
					t.Errorf("%s dropped %d datagrams: %s", h.Name(), count, reason)
				}
			}
		})
	}
}

// pair moves everything between two hosts. bulk is how many bytes of TCP go each way, over IPv4 and a tenth
// of it over IPv6; 0 leaves TCP out.
func pair(t *testing.T, w *wire, a, b *lab.Host, bulk int64) {
	t.Helper()
	for _, to := range b.Overlays(network) {
		t.Run(inside(to), func(t *testing.T) {
			resolve(t, w, a, b, to)
			pings(t, a, to)
			sizes(t, a, b, to)
			bursts(t, a, b, to)
			if bulk > 0 {
				n := bulk
				if to.Is6() {
					n /= 10
				}
				transfer(t, a, b, to, n)
			}
		})
	}
}

// resolve makes both hosts forget each other and finds out whether they find each other again.
func resolve(t *testing.T, w *wire, a, b *lab.Host, to netip.Addr) {
	t.Helper()
	kinds := []string{"arp-request", "arp-reply"}
	if to.Is6() {
		kinds = []string{"nd-solicitation", "nd-advertisement"}
	}
	before := []int{w.soFar(kinds[0]), w.soFar(kinds[1])}
	flush(t, a, a.Device(network))
	flush(t, b, b.Device(network))
	if r, err := load.Ping(within(t), load.PingConfig{From: a, To: to, Count: 1}); err != nil || r.Received != 1 {
		t.Fatalf("the first ping: %+v, %v", r, err)
	}
	if got, want := neighbour(t, a, a.Device(network), to), hardware(t, b, b.Device(network)); !bytes.Equal(got, want) {
		t.Errorf("%s believes that %v is at %v, and %s has %v", a.Name(), to, got, b.Name(), want)
	}
	for i, kind := range kinds {
		eventually(t, "a frame on the wire", func() (bool, string) { return w.soFar(kind) > before[i], "no " + kind })
	}
}

// headersOf is how many bytes of an IP packet without options a UDP or ICMP echo payload leaves.
func headersOf(a netip.Addr) int {
	if a.Is4() {
		return header.IPv4MinLen + header.UDPLen
	}
	return header.IPv6Len + header.UDPLen
}

// mtuOf is the MTU of a host on the overlay.
func mtuOf(t *testing.T, h *lab.Host) int {
	t.Helper()
	size, err := h.MTU(h.Device(network))
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// pings asks with small and with the largest packets.
func pings(t *testing.T, a *lab.Host, to netip.Addr) {
	t.Helper()
	most := mtuOf(t, a) - headersOf(to)
	for _, size := range []int{8, 56, most} {
		r, err := load.Ping(within(t), load.PingConfig{From: a, To: to, Count: 3, Size: size, DontFragment: true})
		if err != nil || r.Received != 3 || r.Corrupt != 0 || r.Duplicate != 0 {
			t.Errorf("ping of %d bytes: %+v, %v", size, r, err)
		}
	}
	if _, err := load.Ping(within(t), load.PingConfig{From: a, To: to, Size: most + 1, DontFragment: true}); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a ping of one byte more than fits: %v, want EMSGSIZE", err)
	}
}

// sizes sends UDP of every size from one byte to the MTU and back, and one beyond: refused where fragments
// are forbidden, and in two fragments where not.
func sizes(t *testing.T, a, b *lab.Host, to netip.Addr) {
	t.Helper()
	most := mtuOf(t, a) - headersOf(to)
	r, err := load.Sweep(within(t), load.SweepConfig{From: a, To: b, Address: to, First: 1, Last: most + 1, DontFragment: true})
	if err != nil || r.Sizes != most || len(r.Missing)+len(r.Corrupt) > 0 || !slices.Equal(r.Refused, []int{most + 1}) {
		t.Errorf("UDP from 1 to %d bytes: %+v, %v", most+1, r, err)
	}
	r, err = load.Sweep(within(t), load.SweepConfig{From: a, To: b, Address: to, First: most + 1, Last: most + 1})
	if err != nil || r.Sizes != 1 || len(r.Corrupt) > 0 {
		t.Errorf("UDP of %d bytes in fragments: %+v, %v", most+1, r, err)
	}
}

// bursts sends UDP as fast as the sender can, each burst short enough for all queues on the way. Whether
// order is kept is for TestOrder to say: when the sender changes its CPU, veths do not.
func bursts(t *testing.T, a, b *lab.Host, to netip.Addr) {
	t.Helper()
	const count, attempts = 400, 3
	for _, size := range []int{64, 500, mtuOf(t, a) - headersOf(to)} {
		var r load.UDPResult
		for range attempts { // the CPUs may be away when a queue fills; nothing else is excused
			var err error
			r, err = load.UDP(within(t), load.UDPConfig{From: a, To: b, Address: to, Size: size, Count: count})
			if err != nil || r.Corrupt+r.Duplicate > 0 {
				t.Fatalf("burst of %d bytes: %+v, %v", size, r, err)
			}
			if r.Received == count {
				break
			}
		}
		if r.Received != count {
			t.Errorf("bursts of %d times %d bytes: each of %d lost some: %+v", count, size, attempts, r)
		}
	}
}

// transfer moves bytes both ways at once and compares them.
func transfer(t *testing.T, a, b *lab.Host, to netip.Addr, bytes int64) {
	t.Helper()
	r, err := load.TCP(within(t), load.TCPConfig{From: a, To: b, Address: to, Direction: load.Both, Bytes: bytes, Verify: true})
	if err != nil || r.Forward.Bytes != bytes || r.Reverse.Bytes != bytes {
		t.Errorf("TCP: %+v, %v", r, err)
	}
	t.Logf("TCP, %d MB each way: %.1f and %.1f Gb/s", bytes/megabyte, r.Forward.BitsPerSecond()/1e9, r.Reverse.BitsPerSecond()/1e9)
}

// groups sends to all hosts at once, from each. What a busy machine loses is not lost in each attempt.
func groups(t *testing.T, w *wire, l *lab.Lab) {
	t.Helper()
	const count, attempts = 10, 3
	broadcasts, multicasts := w.soFar("broadcast"), w.soFar("multicast6")
	for _, from := range l.Hosts() {
		var to []load.Namespace
		for _, h := range l.Hosts() {
			if h != from {
				to = append(to, h)
			}
		}
		for _, group := range []string{"255.255.255.255", "10.42.0.255", "239.42.0.1", "ff02::4242", "ff15::4242"} {
			var tried [][]int
			for range attempts {
				heard, err := load.Group(within(t), load.GroupConfig{
					From: from, To: to, Group: netip.MustParseAddr(group), Device: from.Device(network), Count: count,
				})
				if err != nil {
					t.Fatalf("%s to %s: the others heard %v of %d, %v", from.Name(), group, heard, count, err)
				}
				if tried = append(tried, heard); slices.Min(heard) == count {
					break
				}
			}
			if slices.Min(tried[len(tried)-1]) != count {
				t.Errorf("%s to %s: in each of %d attempts the others heard too little of %d: %v", from.Name(), group, attempts, count, tried)
			}
		}
	}
	for kind, before := range map[string]int{"broadcast": broadcasts, "multicast6": multicasts} {
		eventually(t, kind+" on the wire", func() (bool, string) { // who captures reads at leisure
			return w.soFar(kind) > before, "none was seen"
		})
	}
}

// congestion sends UDP with each ECN field, which the wire compares, and looks that it arrives as it was.
func congestion(t *testing.T, w *wire, from *lab.Host, to ...*lab.Host) {
	t.Helper()
	before := w.ecn()
	for _, h := range to {
		for _, address := range h.Overlays(network) {
			for field := range uint8(header.ECNMask + 1) {
				if got, err := marked(from, h, address, field); err != nil || got != field {
					t.Errorf("ECN field %d from %s to %v of %s: received %d, %v", field, from.Name(), address, h.Name(), got, err)
				}
			}
		}
	}
	for field := range before {
		eventually(t, fmt.Sprintf("ECN field %d on the wire", field), func() (bool, string) {
			return w.ecn()[field] > before[field], "it was not seen"
		})
	}
}

// ecn is how many datagrams have gone by until now, by outer ECN field.
func (w *wire) ecn() [4]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen.ecn
}

// marked sends one datagram with an ECN field inside the overlay and returns the field that it arrived with.
func marked(from, to *lab.Host, address netip.Addr, field uint8) (uint8, error) {
	listener, err := listenTOS(to, address)
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	if err := from.Do(func() error {
		conn, err := net.Dial("udp", listener.LocalAddr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := control(conn.(*net.UDPConn), func(fd int) error {
			if address.Is4() {
				return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, int(field))
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(field))
		}); err != nil {
			return err
		}
		_, err = conn.Write([]byte("marked"))
		return err
	}); err != nil {
		return 0, err
	}
	return readTOS(listener)
}

// listenTOS opens a UDP socket on a host that learns the traffic class of what it receives.
func listenTOS(h *lab.Host, a netip.Addr) (*net.UDPConn, error) {
	var conn *net.UDPConn
	err := h.Do(func() error {
		var err error
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	if err != nil {
		return nil, err
	}
	err = control(conn, func(fd int) error {
		if a.Is4() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// readTOS waits for a datagram and returns its traffic class.
func readTOS(conn *net.UDPConn) (uint8, error) {
	if err := conn.SetReadDeadline(deadline()); err != nil {
		return 0, err
	}
	data, oob := make([]byte, 64), make([]byte, 64)
	_, n, _, _, err := conn.ReadMsgUDP(data, oob)
	if err != nil {
		return 0, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return 0, err
	}
	for _, m := range msgs {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS
		if v4 || v6 {
			return m.Data[0], nil // the byte, or the first of a number in the order of this little-endian host
		}
	}
	return 0, fmt.Errorf("no traffic class in %d control messages", len(msgs))
}

// control runs f on the descriptor of a socket.
func control(conn *net.UDPConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(cerr, err)
}
