package interop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/dataplane/frametest"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/vtep"
)

// attempts is how many frames a test sends while nothing can leave the host.
const attempts = 25

// broken puts the underlay of a host into a state in which sends fail, sends frames of the given size inside
// the overlay, repairs it, and looks that each frame counts under the reason, that nothing else does, and that
// all is well afterwards.
func broken(t *testing.T, l *lab.Lab, reason string, size int, harm, repair func() error) {
	t.Helper()
	h1, h2 := l.Host("h1"), l.Host("h2")
	talk(t, h1, h2)
	pid := h1.PID()
	tap := inject(t, h1, h1.Device(network), false)
	before, was := drops(t, h1.Socket()), conserved(t, h1.Socket())[network].GetCounters()

	on(t, h1, harm)
	frame := frametest.UDP4(frametest.Opts{DstMAC: [6]byte(hardware(t, h2, h2.Device(network))), Payload: size - header.EthernetLen - header.IPv4MinLen - header.UDPLen}).Bytes()
	for range attempts {
		if err := tap.write(frame, header.VirtioNet{}); err != nil {
			t.Error(err)
		}
	}
	var got tally
	eventually(t, fmt.Sprintf("%d drops for %s", attempts, reason), func() (bool, string) {
		got = drops(t, h1.Socket()).since(before)
		return got[reason] >= attempts, got.String()
	})
	on(t, h1, repair)

	k := conserved(t, h1.Socket())[network].GetCounters()
	// Frames that the stack of the host sent meanwhile have met the same fate, and are in both sums.
	if in := k.TapIn.Frames - was.TapIn.Frames; in < attempts || k.FramesDropped-was.FramesDropped > in || got[reason] < attempts || len(got) != 1 {
		t.Errorf("%d frames went in, and dropped are %v", in, got)
	}
	if out := k.UnderlayOut.Frames - was.UnderlayOut.Frames; out > k.TapIn.Frames-was.TapIn.Frames-attempts {
		t.Errorf("%d frames went out of %d in, though %d could not", out, k.TapIn.Frames-was.TapIn.Frames, attempts)
	}
	alive(t, h1, pid)
	whole(t, l)
}

// whole looks that two hosts talk as if nothing had happened, at once and in bulk.
func whole(t *testing.T, l *lab.Lab) {
	t.Helper()
	h1, h2 := l.Host("h1"), l.Host("h2")
	talk(t, h1, h2)
	transfer(t, h1, h2, h2.Overlay(network), 5*megabyte)
	conserved(t, h1.Socket())
	conserved(t, h2.Socket())
}

const sourcePort, destinationPort = 0, 2 // in the headers of UDP and of TCP

// filter makes a table that drops what passes a hook with a port in one of these places.
func filter(hook *nftables.ChainHook, port uint16, places ...uint32) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "deny"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "ports", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter,
	})
	for _, at := range places {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: at, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	return conn.Flush()
}

func filterGone() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "deny"})
	return conn.Flush()
}

// cutRoute removes the default route of the namespace and returns it.
func cutRoute(family int) (netlink.Route, error) {
	routes, err := entire(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
	if err != nil {
		return netlink.Route{}, err
	}
	for _, r := range routes {
		if r.Gw != nil {
			return r, netlink.RouteDel(&r)
		}
	}
	return netlink.Route{}, errors.New("there is no default route")
}

// TestSendErrors lets the kernel refuse what the daemon sends, in each of the ways that it has.
func TestSendErrors(t *testing.T) {
	for _, outer := range []lab.Family{lab.IPv4, lab.IPv6} {
		t.Run("over "+string(outer), func(t *testing.T) {
			sc := scenario(outer, lab.Overlayd, lab.Overlayd)
			// What the kernel sends by itself is refused by nobody.
			sc.Hosts[0].Overlayd = lab.OverlaydSettings{Disable: []string{vtep.FeatureFastPath}}
			l := up(t, sc)
			h1 := l.Host("h1")
			family := netlink.FAMILY_V4
			if outer == lab.IPv6 {
				family = netlink.FAMILY_V6
			}

			t.Run("firewall", func(t *testing.T) {
				broken(t, l, "send_denied", 200, func() error { return filter(nftables.ChainHookOutput, header.VXLANPort, destinationPort) }, filterGone)
			})

			var route netlink.Route
			cut := func() (err error) {
				route, err = cutRoute(family)
				return err
			}
			mend := func() error { return netlink.RouteAdd(&route) }
			t.Run("no route", func(t *testing.T) {
				broken(t, l, "send_unreachable", 200, cut, mend)
			})

			t.Run("peer without a route is named", func(t *testing.T) {
				problem := func(want bool) func() (bool, string) {
					return func() (bool, string) {
						p := peersOf(t, h1.Socket())
						return (p[0].Problem != "") == want, p[0].String()
					}
				}
				on(t, h1, cut)
				eventually(t, "the peer to have a problem", problem(true))
				on(t, h1, mend)
				eventually(t, "the peer to have no problem", problem(false))
			})

			t.Run("device smaller than its route says", func(t *testing.T) {
				tooBig(t, l, outer)
			})

			t.Run("queue of the device full", func(t *testing.T) {
				full(t, l)
			})
		})
	}
}

// tooBig leads the datagrams, and nothing else, over a device with a smaller MTU, of which the route to the peer
// says nothing: the daemon finds out from the error.
func tooBig(t *testing.T, l *lab.Lab, outer lab.Family) {
	t.Helper()
	const table, small = 100, 1300
	h1 := l.Host("h1")
	// The router by its address on the link: for IPv6 the link-local one, since the other is on another device.
	family := netlink.FAMILY_V4
	if outer == lab.IPv6 {
		family = netlink.FAMILY_V6
	}
	var gateway net.IP
	on(t, l.Router(), func() error {
		dev, err := netlink.LinkByName(h1.Name())
		if err != nil {
			return err
		}
		addrs, err := entire(func() ([]netlink.Addr, error) { return netlink.AddrList(dev, family) })
		for _, a := range addrs {
			if outer == lab.IPv4 || a.IP.IsLinkLocalUnicast() {
				gateway = a.IP
			}
		}
		return err
	})
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority, rule.IPProto = family, table, 100, unix.IPPROTO_UDP
	rule.Dport = netlink.NewRulePortRange(header.VXLANPort, header.VXLANPort)
	size := mtuOf(t, h1) + header.EthernetLen
	broken(t, l, "send_too_big", size, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		dev := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "narrow", ParentIndex: eth.Attrs().Index, MTU: small}, Mode: netlink.MACVLAN_MODE_BRIDGE}
		if err := netlink.LinkAdd(dev); err != nil {
			return fmt.Errorf("macvlan: %w", err)
		}
		if err := netlink.LinkSetUp(dev); err != nil {
			return err
		}
		r := netlink.Route{LinkIndex: dev.Index, Gw: gateway, Table: table}
		if outer == lab.IPv4 {
			r.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteAdd(&r); err != nil {
			return fmt.Errorf("route %v: %w", r, err)
		}
		return netlink.RuleAdd(rule)
	}, func() error {
		dev, err := netlink.LinkByName("narrow")
		if err != nil {
			return err
		}
		return errors.Join(netlink.RuleDel(rule), netlink.LinkDel(dev))
	})
}

// full makes the device so slow that its queue fills.
func full(t *testing.T, l *lab.Lab) {
	t.Helper()
	var slow netlink.Qdisc
	broken(t, l, "send_no_buffer", 1000, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		// Its queue has room for one byte.
		slow = &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       100, Limit: 1, Buffer: 1 << 20,
		}
		return netlink.QdiscAdd(slow)
	}, func() error { return netlink.QdiscDel(slow) })
}
