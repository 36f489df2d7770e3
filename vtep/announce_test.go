package vtep

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// knowTo makes a container believe in the MAC of an address, as if it had spoken with it a moment ago. By itself it would
// doubt that after 15 seconds at the earliest.
func knowTo(t *testing.T, container string, ip netip.Addr, mac addr.MAC) {
	t.Helper()
	linktest.In(t, container, func() {
		linktest.Must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: linktest.Device(t, "eth0").Attrs().Index, State: netlink.NUD_REACHABLE,
			IP: ip.AsSlice(), HardwareAddr: mac[:],
		}))
	})
}

// entire asks for a list until nothing came or went meanwhile.
func entire[T any](list func() ([]T, error)) (all []T, err error) {
	for all, err = list(); errors.Is(err, netlink.ErrDumpInterrupted); {
		all, err = list()
	}
	return all, err
}

// learns waits until a container, which sends nothing, has the MAC of an address.
func learns(t *testing.T, container string, ip netip.Addr, mac addr.MAC) {
	t.Helper()
	family := netlink.FAMILY_V4
	if ip.Is6() {
		family = netlink.FAMILY_V6
	}
	linktest.In(t, container, func() {
		index := linktest.Device(t, "eth0").Attrs().Index
		linktest.Await(t, ip.String()+" in "+container+" to be at "+mac.String(), func() bool {
			neighbors, err := entire(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
			linktest.Must(t, err)
			for _, n := range neighbors {
				if n.IP.Equal(ip.AsSlice()) {
					return bytes.Equal(n.HardwareAddr, mac[:])
				}
			}
			return false
		})
	})
}

// An address that comes back with another MAC is reached by those who knew it at once, and not when their caches age: on
// another host with its old station still there or long gone, and on this one.
func TestAddressesThatChangeTheirMACAreAnnounced(t *testing.T) {
	c := newCluster(t)
	h, near := c.hosts[0], c.containers[0]
	state := func(m *addr.Mapping) { h.must(request{Op: "map", Name: "blue", Mapping: m}) }
	for i, remove := range []bool{true, false} {
		old, now := mapping(1, 1), mapping(1, 1)
		old.MAC, now.MAC = frametest.MAC(uint16(200+2*i)), frametest.MAC(uint16(201+2*i))
		for _, ip := range now.IPs {
			knowTo(t, near, ip, frametest.MAC(199))
		}
		state(old)
		for _, ip := range now.IPs {
			learns(t, near, ip, old.MAC)
			knowTo(t, near, ip, old.MAC)
		}
		if remove {
			h.must(request{Op: "unmap", Name: "blue", Mapping: old})
		}
		state(now)
		for _, ip := range now.IPs {
			learns(t, near, ip, now.MAC)
		}
	}

	// A container of the same host is replaced.
	other := linktest.Named(t, "c2")
	a := endpoint(2, other)
	h.must(request{Op: "attach", Name: "blue", Attach: &a})
	for _, ip := range []netip.Addr{inside4(2), inside6(2)} {
		reaches(t, near, ip, 56)
		knowTo(t, near, ip, a.MAC)
	}
	h.must(request{Op: "detach", Name: "blue", ID: a.ID})
	next := linktest.Named(t, "c3")
	a.ID, a.NetNS, a.MAC = "next", next, frametest.MAC(300)
	h.must(request{Op: "attach", Name: "blue", Attach: &a})
	for _, ip := range []netip.Addr{inside4(2), inside6(2)} {
		learns(t, near, ip, a.MAC)
		reaches(t, near, ip, 56)
		reaches(t, next, mapping(0, 0).IPs[0], 56)
	}
	for _, h := range c.hosts {
		h.tell("stop")
		conserved(t, "blue", h.network().Counters)
	}
}
