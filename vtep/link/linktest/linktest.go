//go:build linux

package linktest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/netname"
)

// Patience is how long a test waits for what must come.
const Patience = 10 * time.Second

// Await rests that long between two looks: at first the shorter time, then twice as long each time, up to the longer.
const (
	shortRest = time.Millisecond
	longRest  = 20 * time.Millisecond
)

// Must ends the test at an error.
func Must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Await waits until what is there.
func Await(t testing.TB, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(Patience)
	for rest := shortRest; !is(); rest = min(2*rest, longRest) {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, Patience)
		}
		time.Sleep(rest)
	}
}

// Lock gives the test its thread for itself, and takes that home at the end.
func Lock(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	Must(t, err)
	t.Cleanup(func() {
		defer home.Close()
		// A thread that cannot go home is not given back: it ends with the test.
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
	})
}

// Enter moves the test to a new network namespace with its loopback device up. Threads that the runtime starts
// meanwhile inherit nothing: they are cloned from one that never leaves home.
func Enter(t testing.TB) {
	t.Helper()
	Lock(t)
	New(t)
}

// New is Enter for a test that has its thread already. The namespace has no name and lasts until the test ends.
func New(t testing.TB) netns.NsHandle {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
			t.Skip("needs root: network namespaces")
		}
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	Must(t, netlink.LinkSetUp(Device(t, "lo")))
	return ns
}

// Named makes a network namespace with a name in /run/netns that no other test has, and returns the name. The test,
// which must have its thread for itself, stays where it is.
func Named(t testing.TB, hint string) string {
	t.Helper()
	name := fmt.Sprintf("test-%08x-%s", rand.Uint32(), hint)
	err := netname.Make(name)
	if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
		t.Skip("needs root: network namespaces")
	}
	Must(t, err)
	t.Cleanup(func() { Delete(t, name) })
	In(t, name, func() { Must(t, netlink.LinkSetUp(Device(t, "lo"))) })
	return name
}

// Delete takes the name away from a namespace, if it has one.
func Delete(t testing.TB, name string) {
	t.Helper()
	unlock, err := netname.Lock()
	Must(t, err)
	defer unlock()
	Must(t, netname.Clear(name))
}

// In calls f with the test in the namespace of that name, and takes it back where it was.
func In(t testing.TB, name string, f func()) {
	t.Helper()
	Return(t, func() {
		ns, err := netns.GetFromName(name)
		Must(t, err)
		defer ns.Close()
		Must(t, netns.Set(ns))
		f()
	})
}

// Return calls f, which may move the test to other namespaces, and takes it back where it was.
func Return(t testing.TB, f func()) {
	t.Helper()
	here, err := netns.Get()
	Must(t, err)
	defer func() {
		err := netns.Set(here)
		here.Close()
		if err != nil {
			t.Errorf("go back to the network namespace: %v", err)
		}
	}()
	f()
}

// Device finds a device of the namespace that the test is in.
func Device(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	Must(t, err)
	return l
}

// Devices returns the names of all devices of the namespace that the test is in.
func Devices(t testing.TB) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // something came or went meanwhile
		links, err = netlink.LinkList()
	}
	Must(t, err)
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// Setting sets a kernel variable of the namespace that the test is in, such as net/ipv4/ip_forward.
func Setting(t testing.TB, name, value string) {
	t.Helper()
	Must(t, os.WriteFile("/proc/sys/"+name, []byte(value), 0))
}

// Believed returns the MTU that the kernel goes by towards an address, with what it was told by ICMP messages.
func Believed(t testing.TB, to netip.Addr) int {
	t.Helper()
	routes, err := netlink.RouteGet(to.AsSlice())
	Must(t, err)
	if len(routes) != 1 {
		t.Fatalf("%d routes to %v", len(routes), to)
	}
	if routes[0].MTU > 0 {
		return routes[0].MTU
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	Must(t, err)
	return l.Attrs().MTU
}

// UDP opens a UDP socket in the namespace that the test is in.
func UDP(t testing.TB, a netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
	Must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}
