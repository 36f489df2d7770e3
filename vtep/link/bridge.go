//go:build linux

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Bridge says how the bridge of a sandbox ought to be.
type Bridge struct {
	MAC       addr.MAC
	MTU       int
	Addresses []netip.Addr // that it answers for; all else is on-link
}

// Port says how a port of the bridge ought to be.
type Port struct {
	Device     string
	MTU        int
	TxQueueLen int      // frames; 0 = as it is
	GSOMaxSize int      // as in SetGSOMaxSize, where that can be had; 0 = as it is
	Learning   bool     // the bridge learns who is there from the frames that come from there
	Flood      bool     // frames for a station that the bridge does not know go there
	MAC        addr.MAC // of the only station there, which the bridge is told of; zero = none
}

// Layout is what there ought to be in a sandbox.
type Layout struct {
	Bridge Bridge
	Ports  []Port
}

// Missing is an error of Repair: devices that only their owners can make.
type Missing []string

func (m Missing) Error() string { return "there is no device " + strings.Join(m, ", ") }

// Repair compares the sandbox with a layout and makes it so. It returns what it found otherwise, a few words each. The
// error is Missing if nothing else is wrong but that ports are not there.
func (s *Sandbox) Repair(want Layout) (repaired []string, err error) {
	err = s.Do(func() error {
		links, err := whole(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list the devices of sandbox %s: %w", s.name, err)
		}
		byName := make(map[string]netlink.Link, len(links))
		for _, l := range links {
			byName[l.Attrs().Name] = l
		}
		r := repair{links: byName}
		r.bridge(want.Bridge)
		var missing Missing
		for _, p := range want.Ports {
			if l, ok := byName[p.Device]; ok {
				r.port(l, p)
			} else {
				missing = append(missing, p.Device)
			}
		}
		r.stations(want.Ports)
		repaired = r.done
		switch {
		case r.err != nil:
			return fmt.Errorf("sandbox %s: %w", s.name, r.err)
		case len(missing) > 0:
			return missing
		}
		return nil
	})
	return repaired, err
}

// maxInterrupted is how often a list is asked for anew.
const maxInterrupted = 10

// whole asks for a list until nothing came or went meanwhile. One that is not whole would have what is there pass for
// missing, and be made anew.
func whole[T any](list func() ([]T, error)) (out []T, err error) {
	for range maxInterrupted {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// repair is a Repair under way, in the namespace of the sandbox.
type repair struct {
	links map[string]netlink.Link
	br    int // index of the bridge
	done  []string
	err   error // the first; the rest is tried all the same
}

// do calls f and notes what that was about, unless what f would do is so already.
func (r *repair) do(is bool, what string, f func() error) {
	if is {
		return
	}
	if err := f(); err != nil {
		r.fail(err)
		return
	}
	r.done = append(r.done, what)
}

func (r *repair) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *repair) bridge(want Bridge) {
	l, ok := r.links[SandboxBridge]
	if ok && l.Type() != "bridge" {
		r.err = fmt.Errorf("device %q is of type %s: remove it", SandboxBridge, l.Type())
		return
	}
	r.do(ok, "the bridge", func() (err error) {
		if err = addBridge(); err == nil {
			l, err = linkByName(SandboxBridge)
		}
		return err
	})
	if r.err != nil {
		return
	}
	a := l.Attrs()
	r.br = a.Index
	r.do(a.HardwareAddr.String() == want.MAC.String(), "MAC of the bridge", func() error { return SetMAC(SandboxBridge, want.MAC) })
	r.do(a.MTU == want.MTU, "MTU of the bridge", func() error { return SetMTU(SandboxBridge, want.MTU) })
	r.do(a.RawFlags&unix.IFF_UP != 0, "the bridge being up", func() error { return SetUp(SandboxBridge) })
	r.addresses(l, want)
}

// addresses gives the bridge its addresses, and routes to all stations: it need not know the subnet.
func (r *repair) addresses(l netlink.Link, want Bridge) {
	have, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		r.fail(fmt.Errorf("device %q: list its addresses: %w", SandboxBridge, err))
		return
	}
	for _, a := range want.Addresses {
		if a.Is6() {
			if want.MTU < int(mtu.MinIPv6) {
				continue // the kernel has none then; see AddAddress
			}
			if err := setting("net/ipv6/conf/"+SandboxBridge+"/disable_ipv6", "0"); err != nil {
				r.fail(err)
				continue
			}
		}
		is := slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(a.AsSlice()) })
		r.do(is, "address "+a.String(), func() error { return AddAddress(SandboxBridge, netip.PrefixFrom(a, a.BitLen())) })
		// A device that goes down loses its routes.
		d, err := defaultRoute(a)
		r.do(err == nil && d != nil && d.LinkIndex == l.Attrs().Index, "route by "+a.String(), func() error {
			if err != nil {
				return err
			}
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: everything(a), Scope: netlink.SCOPE_LINK}); err != nil {
				return fmt.Errorf("device %q: add a route to everything: %w", SandboxBridge, err)
			}
			return nil
		})
	}
}

// defaultRoute returns the first default route for the family of a, or nil.
func defaultRoute(a netip.Addr) (*netlink.Route, error) {
	family := netlink.FAMILY_V6
	if a.Is4() {
		family = netlink.FAMILY_V4
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			return &r, nil
		}
		if ones, _ := r.Dst.Mask.Size(); ones == 0 && r.Dst.IP.IsUnspecified() {
			return &r, nil
		}
	}
	return nil, nil
}

// everything returns the prefix of all addresses of the family of a.
func everything(a netip.Addr) *net.IPNet {
	if a.Is4() {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func (r *repair) port(l netlink.Link, want Port) {
	a := l.Attrs()
	of := " of " + want.Device
	r.do(a.MTU == want.MTU, "MTU"+of, func() error { return SetMTU(want.Device, want.MTU) })
	r.do(want.TxQueueLen == 0 || a.TxQLen == want.TxQueueLen, "queue length"+of, func() error { return SetTxQueueLen(want.Device, want.TxQueueLen) })
	if want.GSOMaxSize != 0 && a.GSOMaxSize != uint32(want.GSOMaxSize) {
		// Without it all works, only slower.
		if err := SetGSOMaxSize(want.Device, want.GSOMaxSize); !errors.Is(err, ErrNoGSOMaxSize) {
			r.do(false, "gso_max_size"+of, func() error { return err })
		}
	}
	r.do(r.br != 0 && a.MasterIndex == r.br, "bridge"+of, func() error {
		if err := netlink.LinkSetMasterByIndex(l, r.br); err != nil {
			return fmt.Errorf("device %q: make it a port of %s: %w", want.Device, SandboxBridge, err)
		}
		return errors.Join(netlink.LinkSetLearning(l, want.Learning), netlink.LinkSetFlood(l, want.Flood))
	})
	r.do(a.RawFlags&unix.IFF_UP != 0, want.Device+" being up", func() error { return SetUp(want.Device) })
}

// stations tells the bridge who is at which port. The entries are sticky: a frame from elsewhere does not move them.
func (r *repair) stations(ports []Port) {
	if !slices.ContainsFunc(ports, func(p Port) bool { return !p.MAC.IsZero() }) {
		return
	}
	entries, err := whole(func() ([]netlink.Neigh, error) {
		return netlink.NeighListExecute(netlink.Ndmsg{Family: unix.AF_BRIDGE})
	})
	if err != nil {
		r.fail(fmt.Errorf("list what the bridge knows: %w", err))
		return
	}
	for _, p := range ports {
		l, ok := r.links[p.Device]
		if !ok || p.MAC.IsZero() {
			continue
		}
		is := slices.ContainsFunc(entries, func(e netlink.Neigh) bool {
			return e.LinkIndex == l.Attrs().Index && e.State&netlink.NUD_NOARP != 0 && e.Flags&netlink.NTF_STICKY != 0 &&
				e.HardwareAddr.String() == p.MAC.String()
		})
		r.do(is, "station at "+p.Device, func() error {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: p.MAC[:],
				State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER | netlink.NTF_STICKY,
			})
			if err != nil {
				return fmt.Errorf("device %q: tell the bridge that %v is there: %w", p.Device, p.MAC, err)
			}
			return nil
		})
	}
}

// addBridge makes the bridge of the sandbox that the thread is in.
func addBridge() error {
	snooping := false // nobody here asks who listens, so that it would cut off those who do
	l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: SandboxBridge, TxQLen: -1}, MulticastSnooping: &snooping}
	err := netlink.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) { // a kernel that cannot, and so does not
		l.MulticastSnooping = nil
		err = netlink.LinkAdd(l)
	}
	if err != nil {
		return fmt.Errorf("device %q: make it: %w%s", SandboxBridge, err, privilegeHint(err))
	}
	return nil // the spanning tree protocol is off unless asked for
}

// quieten makes the new network namespace of the thread one that forwards frames and does nothing else: no packet
// filter sees them, nothing is routed, and no device says anything of its own.
func quieten() error {
	for _, s := range []struct{ name, value string }{
		{"net/bridge/bridge-nf-call-iptables", "0"},
		{"net/bridge/bridge-nf-call-ip6tables", "0"},
		{"net/bridge/bridge-nf-call-arptables", "0"},
		{"net/ipv4/conf/all/forwarding", "0"},
		{"net/ipv4/conf/default/forwarding", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv6/conf/all/forwarding", "0"},
		{"net/ipv6/conf/default/forwarding", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/default/router_solicitations", "0"},
		{"net/ipv6/conf/default/addr_gen_mode", "1"}, // no link-local address
		{"net/ipv6/conf/default/disable_ipv6", "1"},
	} {
		if err := setting(s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// setting gives a kernel variable of the thread's network namespace a value. One that is not there is passed over.
func setting(name, value string) error {
	path := "/proc/sys/" + name
	have, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set the kernel variable %s to %s: %w: let this process write to /proc/sys", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}
