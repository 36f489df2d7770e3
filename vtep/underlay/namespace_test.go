package underlay

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link"
)

const (
	port = 4789
	// patience is how long a test waits for what must come.
	patience = 10 * time.Second
)

var (
	here4, there4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	here6, there6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	// silent are addresses of the other host where nobody listens.
	silent4, silent6 = netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::3")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hosts is two network namespaces joined by a veth pair, whose end is called eth0 in both. The test's thread is
// in one of them at a time, and sockets belong to the one that they were made in.
type hosts struct{ ns [2]netns.NsHandle }

// The hosts of a test.
const (
	here  = 0
	there = 1
)

// newHosts makes the pair, with addresses of both families, and leaves the test here. The namespaces have no
// names and end with the test.
func newHosts(t *testing.T) *hosts {
	t.Helper()
	lockThread(t)
	h := &hosts{ns: [2]netns.NsHandle{netns.None(), netns.None()}}
	t.Cleanup(func() {
		for _, ns := range h.ns {
			if ns.IsOpen() {
				ns.Close()
			}
		}
	})
	var err error
	for i := range h.ns {
		if h.ns[i], err = netns.New(); err != nil {
			if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
				t.Skip("needs root: network namespaces")
			}
			t.Fatalf("make a network namespace: %v", err)
		}
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0), link.SetUp("lo"))
	}
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.ns[here]),
	}))
	for i := range h.ns {
		h.enter(t, i)
		must(t, link.SetUp("eth0"))
	}
	for i, addresses := range [2][]netip.Addr{{here4, here6}, {there4, there6, silent4, silent6}} {
		h.enter(t, i)
		await(t, "a carrier", func() bool { return eth0(t).Attrs().OperState == netlink.OperUp })
		for _, a := range addresses {
			must(t, link.AddAddress("eth0", netip.PrefixFrom(a, map[bool]int{false: 24, true: 64}[a.Is6()])))
		}
		await(t, "addresses that can be used", func() bool { return usable(t) })
	}
	// Known beforehand, so that no datagram has to wait for an answer.
	for i, far := range [2][]netip.Addr{{there4, there6, silent4, silent6}, {here4, here6}} {
		h.enter(t, 1-i)
		mac := eth0(t).Attrs().HardwareAddr
		h.enter(t, i)
		for _, a := range far {
			must(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: eth0(t).Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
			}))
		}
	}
	h.enter(t, there)
	awaitRoute(t, here6)
	h.enter(t, here)
	awaitRoute(t, there6)
	return h
}

// lockThread gives the test its thread for itself, and takes that home to the namespace of the others at the end.
func lockThread(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	t.Cleanup(func() {
		defer home.Close()
		// A thread that cannot go home is not given back: it ends with the test.
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
	})
}

// await waits until what is true.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, patience)
		}
	}
}

// awaitRoute waits until there is a route: those of IPv6 come and go some time after what causes them.
func awaitRoute(t *testing.T, to netip.Addr) {
	t.Helper()
	await(t, "route to "+to.String(), func() bool {
		_, err := link.RouteTo(to)
		return err == nil
	})
}

// usable reports whether the kernel has done with all that it does before an address can be used.
func usable(t *testing.T) bool {
	t.Helper()
	addresses, err := netlink.AddrList(eth0(t), netlink.FAMILY_V6)
	must(t, err)
	for _, a := range addresses {
		if r, err := link.RouteTo(netip.AddrFrom16([16]byte(a.IP))); a.Flags&unix.IFA_F_TENTATIVE != 0 || !a.IP.IsLinkLocalUnicast() && (err != nil || r.Device != "lo") {
			return false
		}
	}
	return len(addresses) > 0
}

// enter moves the test to one of the hosts.
func (h *hosts) enter(t *testing.T, i int) {
	t.Helper()
	must(t, netns.Set(h.ns[i]))
}

func eth0(t *testing.T) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName("eth0")
	must(t, err)
	return l
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// all is a Config with everything on.
func all(local netip.Addr) Config {
	return Config{
		Local: local, Port: port, TTL: 64, Checksum: true, Receivers: 1, Sources: 8,
		GSO: true, GRO: true, Batch: true, Log: slog.New(slog.DiscardHandler),
	}
}

// openAt opens an endpoint on a host, which is closed with the test, and leaves the test here.
func (h *hosts) openAt(t *testing.T, host int, c Config) *Endpoint {
	t.Helper()
	h.enter(t, host)
	defer h.enter(t, here)
	e, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, e.Close()) })
	return e
}

// plainSocket opens a UDP socket of somebody else.
func plainSocket(t *testing.T, a netip.Addr, port uint16, reuse bool) int {
	t.Helper()
	fd, err := udpSocket(Config{Local: a})
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	if reuse {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	must(t,
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}),
		bind(fd, a, port))
	return fd
}

// next waits for what comes next to a blocking socket, as long as that allows. The Go runtime interrupts threads by
// signals, and the kernel does not begin anew a wait that has a limit (signal(7)).
func next(fd int, b []byte) (n int, from unix.Sockaddr, err error) {
	for err = unix.EINTR; err == unix.EINTR; {
		n, from, err = unix.Recvfrom(fd, b, 0)
	}
	return n, from, err
}

// sockets counts the open sockets of this process.
func sockets(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	n := 0
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && len(to) > 6 && to[:6] == "socket" {
			n++
		}
	}
	return n
}

// awaitEvent waits until poll(2) reports one of the events for the descriptor.
func awaitEvent(t *testing.T, fd int, events int16) {
	t.Helper()
	if !ready(t, fd, events, patience) {
		t.Fatalf("no event within %v", patience)
	}
}

// ready reports whether poll(2) reports one of the events within that time.
func ready(t *testing.T, fd int, events int16, within time.Duration) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		must(t, err)
		return n > 0
	}
}
