package vtep

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// routerOf has the addresses of the router of a routed pair.
var routerOf = map[string]netip.Addr{"IPv4": netip.MustParseAddr("192.0.2.254"), "IPv6": netip.MustParseAddr("2001:db8::fe")}

// directs are the addresses of the hosts of a routed pair on the wire that joins them without the router.
var directs = [2]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}

// routed is a pair whose hosts are joined by a router that says nothing of what it drops, and, from their eth1, by a wire
// of their own.
type routed struct {
	*pair
	router netns.NsHandle
	speak  func() // has the router say what it drops
}

// newRouted makes a routed pair. Its hosts' devices have an MTU of 1500, and the router's of hop bytes.
func newRouted(t *testing.T, hop int) *routed {
	t.Helper()
	linktest.Lock(t)
	r := &routed{pair: new(pair), router: linktest.New(t)}
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		linktest.Setting(t, s, "1")
	}
	linktest.Setting(t, "net/ipv6/conf/default/accept_dad", "0")
	r.hush(t)
	for i := range r.ns {
		r.ns[i] = linktest.New(t)
		linktest.Setting(t, "net/ipv6/conf/default/accept_dad", "0")
		host, err := link.NamespaceID()
		linktest.Must(t, err)
		t.Cleanup(func() { removeSandboxes(t, host) })
	}
	for i := range r.ns {
		r.enter(t, i)
		linktest.Must(t, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500}, PeerName: wireTo(i), PeerNamespace: netlink.NsFd(r.router),
		}))
	}
	linktest.Must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth1", MTU: 1500}, PeerName: "eth1", PeerNamespace: netlink.NsFd(r.ns[0]),
	}))
	r.inRouter(t, func() {
		for i := range r.ns {
			up(t, wireTo(i))
			for family, ends := range underlays {
				linktest.Must(t, link.AddAddress(wireTo(i), netip.PrefixFrom(routerOf[family], routerOf[family].BitLen())))
				route(t, wireTo(i), ends[i], netip.Addr{})
			}
		}
	})
	for i := range r.ns {
		r.enter(t, i)
		up(t, "eth0")
		up(t, "eth1")
		for family, ends := range underlays {
			linktest.Must(t, link.AddAddress("eth0", netip.PrefixFrom(ends[i], ends[i].BitLen())))
			route(t, "eth0", ends[1-i], routerOf[family])
		}
		linktest.Must(t, link.AddAddress("eth1", netip.PrefixFrom(directs[i], 24)))
	}
	r.narrow(t, hop)
	for i := range r.ns {
		r.enter(t, i)
		for _, ends := range underlays {
			linktest.Await(t, "route", func() bool {
				to, err := link.RouteTo(ends[1-i])
				return err == nil && to.Src == ends[i] && linktest.Device(t, "eth0").Attrs().OperState == netlink.OperUp &&
					linktest.Device(t, "eth1").Attrs().OperState == netlink.OperUp
			})
		}
	}
	r.enter(t, 0)
	return r
}

// wireTo is the name of the router's device towards host i.
func wireTo(i int) string { return fmt.Sprintf("to%d", i) }

func up(t *testing.T, dev string) {
	t.Helper()
	linktest.Must(t, link.SetUp(dev))
}

// route adds a route to one address, by way of a router unless that is the zero Addr.
func route(t *testing.T, dev string, to, by netip.Addr) {
	t.Helper()
	r := &netlink.Route{
		LinkIndex: linktest.Device(t, dev).Attrs().Index,
		Dst:       &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())},
	}
	if by.IsValid() {
		r.Gw, r.Flags = by.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	linktest.Must(t, netlink.RouteAdd(r))
}

// inRouter calls f with the test in the router.
func (r *routed) inRouter(t *testing.T, f func()) {
	t.Helper()
	linktest.Return(t, func() {
		linktest.Must(t, netns.Set(r.router))
		f()
	})
}

// narrow gives both devices of the router an MTU of hop bytes: what it sends on is no larger, in either direction.
func (r *routed) narrow(t *testing.T, hop int) {
	t.Helper()
	r.inRouter(t, func() {
		for i := range r.ns {
			linktest.Must(t, link.SetMTU(wireTo(i), hop))
		}
		if hop < 1280 {
			return
		}
		// The kernel takes IPv6 off a device whose MTU is too small for it, and does not bring back what it had.
		for i, a := range underlays["IPv6"] {
			linktest.Must(t, link.AddAddress(wireTo(i), netip.PrefixFrom(routerOf["IPv6"], 128)))
			if to, err := link.RouteTo(a); err != nil || to.Device != wireTo(i) {
				route(t, wireTo(i), a, netip.Addr{})
			}
		}
	})
}

// hush makes the router keep ICMP "fragmentation needed" and ICMPv6 "packet too big" to itself.
func (r *routed) hush(t *testing.T) {
	t.Helper()
	var rules [][]expr.Any
	for _, m := range []struct{ protocol, kind, code byte }{{unix.IPPROTO_ICMP, 3, 4}, {unix.IPPROTO_ICMPV6, 2, 0}} {
		rules = append(rules, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{m.protocol}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{m.kind, m.code}},
		})
	}
	r.inRouter(t, func() { r.speak = filter(t, nftables.ChainHookOutput, rules...) })
}

// filter drops what matches one of the rules, in the namespace that the test is in. The function that it returns takes
// that back.
func filter(t *testing.T, hook *nftables.ChainHook, rules ...[]expr.Any) (open func()) {
	t.Helper()
	here, err := netns.Get()
	linktest.Must(t, err)
	t.Cleanup(func() { here.Close() })
	conn, err := nftables.New(nftables.WithNetNSFd(int(here)))
	linktest.Must(t, err)
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "test"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "drop", Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
	})
	for _, r := range rules {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(r, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	linktest.Must(t, conn.Flush())
	return func() {
		conn.DelTable(table)
		linktest.Must(t, conn.Flush())
	}
}

// cut has both hosts lose, without a word, what comes in by one of their devices, and what comes from the addresses that
// they have there, by whatever way. The function that it returns takes that back.
func (r *routed) cut(t *testing.T, dev string, addresses [2]netip.Addr) (mend func()) {
	t.Helper()
	wide := make([]byte, unix.IFNAMSIZ)
	copy(wide, dev)
	var open []func()
	for i := range r.ns {
		r.enter(t, i)
		open = append(open, filter(t, nftables.ChainHookInput, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: wide},
		}, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addresses[1-i].AsSlice()},
		}))
	}
	return func() {
		for _, f := range open {
			f()
		}
	}
}

// path returns how the only peer is reached.
func (h *host) path() PathStatus {
	h.t.Helper()
	all := h.tell("paths").Paths
	if len(all) != 1 {
		h.t.Fatalf("%d paths: %+v", len(all), all)
	}
	return all[0]
}
