package inject

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/header"
)

const (
	port     = 4789
	patience = 10 * time.Second
	source   = 50000
)

var (
	here4, there4  = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	here6, there6  = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	documentation4 = netip.MustParseAddr("203.0.113.1")
)

func TestMain(m *testing.M) {
	if name := os.Getenv(actEnv); name != "" {
		act(name)
		return
	}
	goleak.VerifyTestMain(m)
}

// hosts is two network namespaces with the two ends of a veth, both called eth0. The test's thread is in one
// of them at a time.
type hosts struct {
	ns  [2]netns.NsHandle
	dev *Device      // of the first one
	udp map[bool]int // sockets of listen, by family
}

// The hosts of a test.
const (
	here  = 0
	there = 1
)

// newHosts makes the two hosts, opens a device on the first one and leaves the test there. What it makes ends
// with the test.
func newHosts(t *testing.T) *hosts {
	t.Helper()
	h := &hosts{ns: [2]netns.NsHandle{newSpace(t), newSpace(t)}, udp: map[bool]int{}}
	h.enter(t, here)
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.ns[there]),
	}))
	for i := range h.ns {
		h.enter(t, i)
		must(t, netlink.LinkSetUp(device(t, "eth0")))
	}
	for i, addresses := range [2][]netip.Addr{{here4, here6}, {there4, there6}} {
		h.enter(t, i)
		// IPv6 begins anew with the carrier, which comes some time after both ends are up.
		for end := time.Now().Add(patience); device(t, "eth0").Attrs().OperState != netlink.OperUp; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no carrier")
			}
		}
		l := device(t, "eth0")
		for _, a := range addresses {
			bits := 24
			if a.Is6() {
				bits = 64
			}
			must(t, netlink.AddrAdd(l, &netlink.Addr{
				IPNet: netlink.NewIPNet(a.AsSlice()), Flags: unix.IFA_F_NODAD,
			}))
			_, subnet, err := net.ParseCIDR(netip.PrefixFrom(a, bits).String())
			must(t, err, netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: subnet, Scope: netlink.SCOPE_LINK}))
		}
	}
	for i, far := range [2][]netip.Addr{{there4, there6}, {here4, here6}} {
		h.enter(t, 1-i)
		mac := device(t, "eth0").Attrs().HardwareAddr
		h.enter(t, i)
		for _, a := range far {
			must(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: device(t, "eth0").Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
			}))
		}
	}
	h.enter(t, here)
	h.dev = open(t)
	return h
}

// newSpace makes a network namespace without a name, moves the test there and takes it home at its end.
func newSpace(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	ns, err := netns.New()
	if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
		t.Skip("needs root: network namespaces")
	}
	must(t, err)
	t.Cleanup(func() {
		// A thread that cannot go home is not given back: it ends with the test.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		must(t, home.Close(), ns.Close())
	})
	return ns
}

// open opens a device in the namespace in which the test is.
func open(t *testing.T) *Device {
	t.Helper()
	d, err := Open(func(err error) { t.Logf("failed: %v", err) })
	if err != nil {
		if os.Getenv("CI") != "true" {
			t.Skipf("this kernel cannot: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// enter moves the test to one of the hosts.
func (h *hosts) enter(t *testing.T, i int) {
	t.Helper()
	must(t, netns.Set(h.ns[i]))
}

// path returns the way from here to there.
func (h *hosts) path(t *testing.T, v6, checksum bool) *Path {
	t.Helper()
	c := PathConfig{Local: here4, Peer: there4, Port: port, TTL: 64, Checksum: checksum, Device: device(t, "eth0").Attrs().Index}
	if v6 {
		c.Local, c.Peer = here6, there6
	}
	p, err := h.dev.NewPath(c)
	must(t, err)
	return p
}

// listen returns the UDP socket there, at the address of the family and the VXLAN port.
func (h *hosts) listen(t *testing.T, v6 bool) int {
	t.Helper()
	if fd, open := h.udp[v6]; open {
		return fd
	}
	h.enter(t, there)
	defer h.enter(t, here)
	family := unix.AF_INET
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: there4.As4()}
	if v6 {
		family, at = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: there6.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.Bind(fd, at), limit(fd))
	h.udp[v6] = fd
	return fd
}

// sniff listens to every frame that comes in there by a device. It returns a function that takes the next one.
// What the kernel says on its own account, which is ICMPv6, is passed over.
func (h *hosts) sniff(t *testing.T, name string) func() []byte {
	t.Helper()
	h.enter(t, there)
	defer h.enter(t, here)
	const everything = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t,
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: device(t, name).Attrs().Index}),
		limit(fd))
	return func() []byte {
		t.Helper()
		for {
			b := read(t, fd)
			proto := b[header.EthernetLen+6]
			if binary.BigEndian.Uint16(b[12:]) != header.EtherTypeIPv6 || proto == header.ProtoUDP || proto == header.ProtoTCP {
				return b
			}
		}
	}
}

// limit bounds how long a read of fd waits.
func limit(fd int) error {
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)})
}

// read reads one packet.
func read(t *testing.T, fd int) []byte {
	t.Helper()
	b := make([]byte, 1<<17)
	n, err := unix.Read(fd, b)
	for err == unix.EINTR { // the Go runtime interrupts threads by signals
		n, err = unix.Read(fd, b)
	}
	if err != nil {
		t.Fatalf("nothing came: %v", err)
	}
	return b[:n]
}

// comes reports whether there is something to read on fd within a time.
func comes(t *testing.T, fd int, within time.Duration) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		return n > 0
	}
}

func device(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}
