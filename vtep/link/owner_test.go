//go:build linux

package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// self is how this process is described.
func self(t *testing.T) string {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(comm)), os.Getpid())
}

func TestDeviceOwner(t *testing.T) {
	linktest.Enter(t)
	addVeth(t, "eth0", "far0")
	name := fmt.Sprintf("tap%d", os.Getpid())
	tap := openTAP(t, name)
	for dev, want := range map[string]string{
		"eth0":    "a device of type veth",
		"lo":      "a device of type device",
		name:      "a TAP that " + self(t) + " has open",
		"missing": "",
	} {
		if got := DeviceOwner(dev); got != want {
			t.Errorf("DeviceOwner(%s) = %q, want %q", dev, got, want)
		}
	}
	if err := unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	tap.Close()
	if got := DeviceOwner(name); got != "a TAP that was made to persist" {
		t.Errorf("left behind: %q", got)
	}
}

func TestUDPPortOwner(t *testing.T) {
	linktest.Enter(t)
	addVeth(t, "eth0", "far0", "192.0.2.1/24", "192.0.2.9/24", "2001:db8::1/64")
	me := self(t)
	listen := func(network, address string) {
		t.Helper()
		// Not by the net package, which may ask for sockets on another thread.
		ap := netip.MustParseAddrPort(address)
		family, sa := unix.AF_INET, unix.Sockaddr(nil)
		if ap.Addr().Is6() {
			family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
		} else {
			sa = &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
			err = unix.Bind(fd, sa)
		}
		if err != nil {
			t.Fatalf("%s %s: %v", network, address, err)
		}
	}
	listen("udp4", "192.0.2.1:4001")
	listen("udp4", "0.0.0.0:4002")
	listen("udp6", "[2001:db8::1]:4003")
	listen("udp6", "[::]:4004")
	vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx0"}, VxlanId: 42, Port: 4789, SrcAddr: net.IPv4(192, 0, 2, 1)}
	if err := netlink.LinkAdd(vx); err != nil {
		t.Fatal(err)
	}
	if err := SetUp("vx0"); err != nil {
		t.Fatal(err)
	}
	for a, want := range map[string]string{
		"192.0.2.1:4001":     me,
		"192.0.2.9:4001":     "", // another address
		"0.0.0.0:4001":       me,
		"[::]:4001":          me,
		"[2001:db8::1]:4001": "",
		"192.0.2.1:4002":     me,
		"0.0.0.0:4002":       me,
		"[2001:db8::1]:4002": "",
		"[2001:db8::1]:4003": me,
		"[::]:4003":          me,
		"192.0.2.1:4003":     "",
		"192.0.2.1:4004":     me, // takes both families
		"[2001:db8::1]:4004": me,
		"192.0.2.1:4005":     "",
		"192.0.2.1:4789":     "vxlan device vx0",
		"0.0.0.0:4789":       "vxlan device vx0",
	} {
		if got := UDPPortOwner(netip.MustParseAddrPort(a)); got != want {
			t.Errorf("UDPPortOwner(%s) = %q, want %q", a, got, want)
		}
	}
}

func TestParseUDP(t *testing.T) {
	const rest = " 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0"
	// number writes the words of an address as the kernel does.
	number := func(a string) string {
		b := netip.MustParseAddr(a).AsSlice()
		var s strings.Builder
		for ; len(b) > 0; b = b[4:] {
			fmt.Fprintf(&s, "%08X", binary.NativeEndian.Uint32(b))
		}
		return s.String()
	}
	for line, want := range map[string]string{
		"  12: " + number("127.0.0.1") + ":12B5" + rest:              "127.0.0.1:4789",
		"12: " + number("192.0.2.1") + ":0035" + rest:                "192.0.2.1:53",
		"1: " + number("2001:db8::1") + ":12B5" + rest:               "[2001:db8::1]:4789",
		"1: " + number("::") + ":FFFF" + rest:                        "[::]:65535",
		"1: " + number("::ffff:192.0.2.1") + ":12B5" + rest:          "[::ffff:192.0.2.1]:4789",
		"1: " + number("127.0.0.1") + ":12B5" + rest + " and others": "127.0.0.1:4789",
	} {
		got, inode, ok := parseUDP(line)
		if !ok || got.String() != want || inode != "4711" {
			t.Errorf("parseUDP(%q) = %v, %q, %v, want %s", line, got, inode, ok, want)
		}
	}
	for _, line := range []string{
		"", "sl  local_address rem_address", "1: 0100007F" + rest, "1: 0100007F:FFFFF" + rest, "1: 0100007:12B5" + rest,
		"1: 010000:12B5" + rest, "1: 0100007F00000000:12B5" + rest, "1: GG00007F:12B5" + rest, "1: 0100007F:12B5 00000000:0000",
	} {
		if got, _, ok := parseUDP(line); ok {
			t.Errorf("parseUDP(%q) = %v", line, got)
		}
	}
}

func TestFdinfoDevice(t *testing.T) {
	for info, want := range map[string]string{
		"pos:\t0\nflags:\t0100002\nmnt_id:\t22\niff:\tblue0\n": "blue0",
		"iff:\tblue0":   "blue0",
		"iff:\t\n":      "",
		"pos:\t0\n":     "",
		"":              "",
		"xiff:\tblue0 ": "",
	} {
		if got := fdinfoDevice([]byte(info)); got != want {
			t.Errorf("fdinfoDevice(%q) = %q, want %q", info, got, want)
		}
	}
}
