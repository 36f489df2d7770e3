package inject

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// benchHosts makes two hosts on a veth, and returns the way from the one to the other and a socket there. All
// ends with the benchmark.
func benchHosts(b *testing.B) (p *Path, socket int) {
	b.Helper()
	linktest.Lock(b)
	there := linktest.New(b)
	here := linktest.New(b)
	mac := frametest.MAC(2)
	far := net.HardwareAddr(mac[:])
	linktest.Must(b, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(there), PeerHardwareAddr: far,
	}), netns.Set(there))
	benchAddress(b, there4)
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	linktest.Must(b, err)
	b.Cleanup(func() { unix.Close(socket) })
	linktest.Must(b, unix.Bind(socket, &unix.SockaddrInet4{Port: port, Addr: there4.As4()}), limit(socket),
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20), netns.Set(here))
	benchAddress(b, here4)
	eth0 := linktest.Device(b, "eth0").Attrs().Index
	linktest.Must(b, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: eth0, State: netlink.NUD_PERMANENT, IP: there4.AsSlice(), HardwareAddr: far,
	}))
	linktest.Await(b, "carrier", func() bool { return linktest.Device(b, "eth0").Attrs().OperState == netlink.OperUp })
	dev, err := Open(nil)
	if err != nil {
		b.Skipf("this kernel takes no superframes uncut: %v", err)
	}
	b.Cleanup(func() { linktest.Must(b, dev.Close()) })
	p, err = dev.NewPath(PathConfig{Local: here4, Peer: there4, Port: port, TTL: 64, Checksum: true, Device: eth0})
	linktest.Must(b, err)
	return p, socket
}

// benchAddress gives eth0 an address and sets it up.
func benchAddress(b *testing.B, a netip.Addr) {
	b.Helper()
	l := linktest.Device(b, "eth0")
	linktest.Must(b, netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}}), netlink.LinkSetUp(l))
}

// BenchmarkWrite measures one Write of a superframe of 62 KB: the check of its headers, making the outer ones, the system
// call, the copy of the payload, the BPF program, route and neighbour, the veth, and, since the kernel does that on the
// sender's time, all of the peer's way in up to the queue of a UDP socket. Nothing is cut on the way. Taking it from there,
// which the benchmark does beside the timer, is not in it, nor is waking a reader. The payload is hot. The figure is the
// median; a mean would hold what else the machine does.
func BenchmarkWrite(b *testing.B) {
	p, socket := benchHosts(b)
	const payload = 46 * segment
	offload, d := superframe(false, payload, frametest.Opts{})
	var (
		w    Writer
		took []time.Duration
		one  [1]byte // what does not fit is discarded
	)
	for b.Loop() {
		start := time.Now()
		errno := w.Write(p, source, 0, &offload, d)
		took = append(took, time.Since(start))
		if errno != 0 {
			b.Fatal(errno)
		}
		_, err := unix.Read(socket, one[:])
		for err == unix.EINTR { // the Go runtime interrupts threads by signals
			_, err = unix.Read(socket, one[:])
		}
		if err != nil {
			b.Fatalf("it does not arrive: %v", err)
		}
	}
	slices.Sort(took)
	median := float64(took[len(took)/2].Nanoseconds())
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median, "ns/write")
	b.ReportMetric(float64(len(d))/median*1e3, "MB/s")
}
