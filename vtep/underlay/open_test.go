package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link"
)

// A port that somebody has is not shared, whatever he may be ready to share.
func TestOpenRefusesATakenPort(t *testing.T) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	h := newHosts(t)
	for _, c := range []struct {
		local, taken netip.Addr
		reuse        bool
	}{
		{here4, here4, false}, {here4, here4, true}, {here4, any4, false}, {here4, any4, true},
		{here6, here6, false}, {here6, here6, true}, {here6, any6, false}, {here6, any6, true},
	} {
		for _, receivers := range []int{1, 2, 4} {
			t.Run(fmt.Sprintf("%v, port of %v, which shares it %v, %d receivers", c.local, c.taken, c.reuse, receivers), func(t *testing.T) {
				h.again(t)
				plainSocket(t, c.taken, port, c.reuse)
				refuses(t, c.local, receivers, unix.EADDRINUSE)
			})
		}
	}
	t.Run("our own", func(t *testing.T) {
		h := h.again(t)
		for _, receivers := range []int{1, 2} {
			c := all(here4)
			c.Receivers = receivers
			t.Run(fmt.Sprint(receivers), func(t *testing.T) {
				h := h.again(t)
				h.openAt(t, here, c)
				refuses(t, here4, 1, unix.EADDRINUSE)
				refuses(t, here4, 2, unix.EADDRINUSE)
			})
		}
	})
	t.Run("the kernel's", func(t *testing.T) {
		h.again(t)
		must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx0"}, VxlanId: 42, Port: port}))
		must(t, link.SetUp("vx0"))
		refuses(t, here4, 1, unix.EADDRINUSE)
		refuses(t, here4, 2, unix.EADDRINUSE)
	})
}

// refuses checks that an endpoint cannot be opened, for that reason, and leaves no socket behind.
func refuses(t *testing.T, local netip.Addr, receivers int, errno unix.Errno) {
	t.Helper()
	before := sockets(t)
	c := all(local)
	c.Receivers = receivers
	e, err := Open(c)
	if err == nil {
		t.Fatal("it was opened: ", e.Close())
	}
	if !errors.Is(err, errno) || !strings.Contains(err.Error(), netip.AddrPortFrom(local, port).String()) {
		t.Errorf("Open: %v", err)
	}
	if n := sockets(t); n != before {
		t.Errorf("%d sockets, %d before", n, before)
	}
}

func TestOpenRefusesAForeignAddress(t *testing.T) {
	newHosts(t)
	for _, a := range []netip.Addr{there4, there6} {
		for _, receivers := range []int{1, 2} {
			refuses(t, a, receivers, unix.EADDRNOTAVAIL)
		}
	}
}

func TestCloseClosesAll(t *testing.T) {
	newHosts(t)
	before := sockets(t)
	for _, a := range []netip.Addr{here4, here6} {
		for _, sources := range []int{0, 1, 16} {
			c := all(a)
			c.Receivers, c.Sources = 3, sources
			e, err := Open(c)
			must(t, err)
			if n := sockets(t); n != before+3+sources {
				t.Errorf("%d sockets, %d before", n, before)
			}
			must(t, e.Close())
			if n := sockets(t); n != before {
				t.Errorf("%d sockets after Close, %d before", n, before)
			}
			must(t, e.Close())
		}
	}
}

// That no source port is free has nothing to do with the port of VXLAN, and must not be taken for that.
func TestNoFreeSourcePort(t *testing.T) {
	newHosts(t)
	c := all(here4)
	c.Sources = 2
	c.Port = lastSource // the one that is left, and no choice for a source
	var held []int
	defer func() {
		for _, fd := range held {
			unix.Close(fd)
		}
	}()
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Max < lastSource-firstSource+1000 {
		t.Skipf("needs %d descriptors, %d are allowed", lastSource-firstSource+1000, limit.Max)
	}
	for p := firstSource; p < lastSource; p++ {
		fd, err := udpSocket(c)
		must(t, err)
		held = append(held, fd)
		must(t, bind(fd, here4, uint16(p)))
	}
	e, err := Open(c)
	if err == nil {
		t.Fatal("it was opened: ", e.Close())
	}
	if errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "source port") {
		t.Errorf("Open: %v", err)
	}
}
