package tap

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// readAny reads the next frame from whichever queue has one, and returns a copy and the queue's index.
func readAny(t *testing.T, d *Device) (frame.Frame, int) {
	t.Helper()
	fds := make([]unix.PollFd, len(d.Queues))
	for i, q := range d.Queues {
		fds[i] = unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN}
	}
	for end := time.Now().Add(linktest.Patience); time.Now().Before(end); {
		if _, err := unix.Poll(fds, 100); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		for i, q := range d.Queues {
			if fds[i].Revents == 0 {
				continue
			}
			one := make([]frame.Frame, 1)
			if n, err := q.Read(one); err != nil || n != 1 {
				t.Fatalf("%d frames of queue %d: %v", n, i, err)
			}
			if one[0].Bytes()[0]&1 != 0 {
				continue // multicast, of which the kernel has its own
			}
			one[0].Buf = append([]byte(nil), one[0].Buf...)
			return one[0], i
		}
	}
	t.Fatalf("nothing to read within %v", linktest.Patience)
	return frame.Frame{}, 0
}

// Flows are spread over the queues, and each keeps to one, whatever queue its other direction is written to.
func TestFlowsKeepTheirQueue(t *testing.T) {
	enterNamespace(t)
	const queues, flows, each = 8, 64, 3
	d := open(t, Config{Name: "tap0", Queues: queues, Readers: 1, VNet: true})
	if err := d.Missing["steering"]; err != nil {
		t.Fatal(err)
	}
	station(t, 1, 2)
	// Frames come by the first queue, and the answers must not all leave by it.
	answers := udpSocket(t, 40000)
	for i := range flows {
		write(t, d.Queues[0], frametest.UDP4(frametest.Opts{
			SrcMAC: frametest.MAC(2), DstMAC: frametest.MAC(1), Src: frametest.IP4(2), Dst: frametest.IP4(1),
			SrcPort: uint16(1000 + i), DstPort: 40000, Payload: 1,
		}).Bytes())
		receive(t, answers, frametest.Pattern(1))
	}
	for name, c := range map[string]struct {
		from, to netip.Addr
		size     int
		one      bool // all flows go by one queue
	}{
		"IPv4":              {frametest.IP4(1), frametest.IP4(2), 100, false},
		"IPv6":              {frametest.IP6(1), frametest.IP6(2), 100, false},
		"fragments of IPv4": {frametest.IP4(1), frametest.IP4(2), 2000, true},
		"fragments of IPv6": {frametest.IP6(1), frametest.IP6(2), 2000, true},
	} {
		queueOf := map[int]int{} // by the number of the flow
		used := map[int]bool{}
		for i := range flows {
			s, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.to, uint16(1000+i))))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			frames := each
			if c.size > 1500 {
				frames = 2 * each
			}
			for range each {
				if _, err := s.Write(make([]byte, c.size)); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			for range frames {
				_, q := readAny(t, d)
				if was, known := queueOf[i]; known && was != q {
					t.Errorf("%s: flow %d went by queue %d and by %d", name, i, was, q)
				}
				queueOf[i], used[q] = q, true
			}
			s.Close()
		}
		// That three of 8 queues get none of 64 flows does not happen by chance.
		if c.one && len(used) != 1 || !c.one && len(used) < queues-2 {
			t.Errorf("%s: %d flows went by %d queues of %d: %v", name, flows, len(used), queues, queueOf)
		}
	}
}

// A frame that ends before its addresses goes by the first queue.
func TestShortFramesAreRead(t *testing.T) {
	enterNamespace(t)
	d := open(t, Config{Name: "tap0", Queues: 4, Readers: 1, VNet: true})
	up(t, "tap0")
	for _, head := range [][]byte{{0x08, 0x00, 0x45}, {0x86, 0xdd, 0x60}, {0x08, 0x06, 0x00}} {
		mac := frametest.MAC(2)
		b := append(append(append([]byte(nil), mac[:]...), mac[:]...), head...)
		s := packetSocket(t, "tap0", 0x0800)
		if _, err := unix.Write(s, b); err != nil {
			t.Fatal(err)
		}
		if f, q := readAny(t, d); string(f.Bytes()) != string(b) || q != 0 {
			t.Errorf("% x came as % x by queue %d", b, f.Bytes(), q)
		}
	}
}
