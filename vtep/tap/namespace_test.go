package tap

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// enterNamespace moves the test to a new network namespace without IPv6, so that the kernel has nothing of its
// own to say on a TAP. The test keeps its thread; the namespace ends with what holds it.
func enterNamespace(t *testing.T) {
	t.Helper()
	linktest.Enter(t)
	linktest.Setting(t, "net/ipv6/conf/default/disable_ipv6", "1")
}

// open opens a TAP that is closed with the test.
func open(t *testing.T, c Config) *Device {
	t.Helper()
	d, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

// up brings the TAP of this name up as station 1 of the overlay, with station 2 on the other side.
func up(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 1}),
		link.AddAddress(name, netip.PrefixFrom(frametest.IP4(1), 16)),
		link.SetUp(name),
		neighbor(name),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// neighbor tells the kernel where station 2 is, so that it need not ask.
func neighbor(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	mac := frametest.MAC(2)
	return netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: frametest.IP4(2).AsSlice(), HardwareAddr: mac[:],
	})
}

// await waits until the queue can be read from.
func await(t *testing.T, q Queue) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(q.FD()), Events: unix.POLLIN}}
	deadline := time.Now().Add(linktest.Patience)
	for {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("nothing to read within %v: %v", linktest.Patience, err)
		}
		return
	}
}

// read reads until it has n frames, and returns copies of them.
func read(t *testing.T, q Queue, n int) []frame.Frame {
	t.Helper()
	var out []frame.Frame
	for batch := make([]frame.Frame, 16); len(out) < n; {
		await(t, q)
		k, err := q.Read(batch)
		if err != nil {
			t.Fatalf("Read: %v", err)
		}
		for _, f := range batch[:k] {
			out = append(out, frame.Frame{Buf: append([]byte(nil), f.Buf...), Offload: f.Offload})
		}
	}
	if len(out) > n {
		t.Fatalf("%d frames in place of %d", len(out), n)
	}
	return out
}

// write writes a plain frame.
func write(t *testing.T, q Queue, pieces ...[]byte) {
	t.Helper()
	if err := q.Write(&header.VirtioNet{}, pieces); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

// packetSocket opens an AF_PACKET socket for all frames of one EtherType on a device.
func packetSocket(t *testing.T, dev string, etherType uint16) int {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	wire := etherType>>8 | etherType<<8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, err := range []error{
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(linktest.Patience / time.Second)}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: wire, Ifindex: l.Attrs().Index}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

// udpSocket opens a UDP socket of the station that this namespace is.
func udpSocket(t *testing.T, port int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, err := range []error{
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(linktest.Patience / time.Second)}),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: frametest.IP4(1).As4(), Port: port}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

// next waits for what comes next to a blocking socket, as long as that allows. The Go runtime interrupts threads by
// signals, and the kernel does not begin anew a wait that has a limit (signal(7)).
func next(fd int, b []byte) (n int, err error) {
	for err = unix.EINTR; err == unix.EINTR; {
		n, err = unix.Read(fd, b)
	}
	return n, err
}

// exists reports whether there is a device of this name.
func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// descriptors counts the open files of this process that are TAP queues.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range all {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && to == devTun {
			n++
		}
	}
	return n
}

func deadline() time.Time { return time.Now().Add(linktest.Patience) }
