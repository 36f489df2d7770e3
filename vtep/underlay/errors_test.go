package underlay

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep/link"
)

// refusals are the ways in which a kernel may refuse to send. damage makes it do so; heal takes that back.
var refusals = map[string]struct {
	outcome      forward.DropReason
	damage, heal func(t *testing.T, h *hosts, peer netip.Addr)
}{
	"EPERM from a firewall": {
		forward.SendDenied,
		func(t *testing.T, _ *hosts, _ netip.Addr) { denyOutput(t, true) },
		func(t *testing.T, _ *hosts, _ netip.Addr) { denyOutput(t, false) },
	},
	"ENETUNREACH without a route": {
		forward.SendUnreachable,
		func(t *testing.T, _ *hosts, peer netip.Addr) { setRoutes(t, peer, netlink.RouteDel) },
		func(t *testing.T, _ *hosts, peer netip.Addr) { setRoutes(t, peer, netlink.RouteAdd) },
	},
	"EHOSTUNREACH from a route": {
		forward.SendUnreachable,
		func(t *testing.T, _ *hosts, peer netip.Addr) { must(t, netlink.RouteAdd(unreachable(peer))) },
		func(t *testing.T, _ *hosts, peer netip.Addr) { must(t, netlink.RouteDel(unreachable(peer))) },
	},
	"EMSGSIZE from the device": {
		forward.SendTooBig,
		func(t *testing.T, h *hosts, _ netip.Addr) { must(t, link.SetMTU("eth0", 1300)) },
		func(t *testing.T, h *hosts, _ netip.Addr) { must(t, link.SetMTU("eth0", 1500)) },
	},
}

// Each refusal is reported under its reason, for every frame that it hits and no other, and ends with its cause.
func TestRefusedSendsAreReportedAndOver(t *testing.T) {
	for name, c := range refusals {
		for family, ends := range families {
			for _, gso := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %s, GSO %v", name, family, gso), func(t *testing.T) {
					h := newHosts(t)
					from := all(ends[0])
					from.GSO = gso
					a, b := h.openAt(t, here, from), h.openAt(t, there, all(ends[1]))
					s, dest := NewSender(), destinations(a, ends[1])
					var x traffic
					for i := range 5 {
						x.add(0, i, 0, 1, 1400)
						x.train(0, i, 7, 1350)
					}
					// The last of each train is short enough for the small MTU.
					short := 0
					if c.outcome == forward.SendTooBig && !gso {
						short = 5
					}
					want := map[forward.DropReason]int{c.outcome: len(x.sent) - short}
					if short > 0 {
						want[forward.NotDropped] = short
					}
					c.damage(t, h, ends[1])
					for range 3 {
						x.send(s, dest).want(t, want)
					}
					receiveN(t, b.Receivers[0], 3*short)
					c.heal(t, h, ends[1])
					awaitRoute(t, ends[1])
					x.send(s, dest).want(t, map[forward.DropReason]int{forward.NotDropped: len(x.sent)})
					receiveN(t, b.Receivers[0], len(x.sent))
					// None of this came from the peer.
					if e := a.PeerErrors(); len(e) != 0 {
						t.Errorf("errors of peers: %v", e)
					}
				})
			}
		}
	}
}

// In one batch only what is refused is lost.
func TestOneRefusalDoesNotHitTheOthers(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		t.Run(family, func(t *testing.T) {
			h := h.again(t)
			a, b := h.openAt(t, here, all(ends[0])), h.openAt(t, there, all(ends[1]))
			nowhere := netip.MustParseAddr("203.0.113.1")
			if ends[0].Is6() {
				nowhere = netip.MustParseAddr("2001:db8:ffff::1")
			}
			var x traffic
			for i := range 100 {
				size, peer := 200, 0
				switch i % 10 {
				case 3:
					size = 1600
				case 7:
					peer = 1
				}
				x.add(0, i/50, 0, 1, size)
				x.sends[i].VTEP = 0
				if peer == 1 {
					x.sends[i].VTEP = 1
				}
			}
			// A peer of the family that has no endpoint, and one that has no number.
			x.add(2, 0, 0, 1, 200)
			x.add(3, 0, 0, 1, 200)
			dest := append(destinations(a, ends[1], nowhere), Destination{})
			x.send(NewSender(), dest).want(t, map[forward.DropReason]int{
				forward.NotDropped: 80, forward.SendTooBig: 10, forward.SendUnreachable: 12,
			})
			receiveN(t, b.Receivers[0], 80)
		})
	}
}

// An error without a reason of its own is told to the log, once, since there only the operator learns of it.
func TestOtherErrorsAreLoggedOnce(t *testing.T) {
	h := newHosts(t)
	var log bytes.Buffer
	c := all(here4)
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	a := h.openAt(t, here, c)
	var x traffic
	x.add(0, 0, 0, 1, 200)
	dest := []Destination{NewDestination(a, there4, 0)} // EINVAL: there is no port 0
	for range 3 {
		x.send(NewSender(), dest).want(t, map[forward.DropReason]int{forward.SendFailed: 1})
	}
	if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "invalid argument") || !strings.Contains(s, here4.String()) {
		t.Errorf("the log says %q", s)
	}
}

// denyOutput puts up or takes down a firewall rule against datagrams to the VXLAN port.
func denyOutput(t *testing.T, on bool) {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "deny"}
	if !on {
		conn.DelTable(table)
		must(t, conn.Flush())
		return
	}
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{port >> 8, port & 0xff}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	must(t, conn.Flush())
}

// setRoutes adds or removes the route to the peer's network.
func setRoutes(t *testing.T, peer netip.Addr, do func(*netlink.Route) error) {
	t.Helper()
	p, err := peer.Prefix(map[bool]int{false: 24, true: 64}[peer.Is6()])
	must(t, err)
	must(t, do(&netlink.Route{
		LinkIndex: eth0(t).Attrs().Index, Scope: map[bool]netlink.Scope{false: netlink.SCOPE_LINK}[peer.Is6()],
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), peer.BitLen())},
	}))
}

// unreachable is a route that refuses datagrams to the peer.
func unreachable(peer netip.Addr) *netlink.Route {
	return &netlink.Route{
		Dst:  &net.IPNet{IP: peer.AsSlice(), Mask: net.CIDRMask(peer.BitLen(), peer.BitLen())},
		Type: unix.RTN_UNREACHABLE, Priority: 1,
	}
}

// A peer where nobody listens is known by its ICMP errors, and these cost no datagram to anybody.
func TestPortUnreachableIsNotedAndCostsNothing(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		for _, sources := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s, %d sources", family, sources), func(t *testing.T) {
				h := h.again(t)
				silent := silent4
				if ends[0].Is6() {
					silent = silent6
				}
				c := all(ends[0])
				c.Sources = sources
				a, b := h.openAt(t, here, c), h.openAt(t, there, all(ends[1]))
				s, dest := NewSender(), destinations(a, ends[1], silent)
				var lost, good traffic
				lost.add(1, 0, 0, 1, 200)
				good.train(0, 0, 10, 200)
				good.add(0, 0, 0, 1, 300)
				start := time.Now()
				// The kernel sends few of these errors a second, but the first few at once.
				lost.send(s, dest).want(t, map[forward.DropReason]int{forward.NotDropped: 1})
				awaitEvent(t, a.sources[0], 0) // POLLERR is always reported
				good.send(s, dest).want(t, map[forward.DropReason]int{forward.NotDropped: 11})
				receiveN(t, b.Receivers[0], 11)
				e, ok := a.PeerErrors()[silent]
				if !ok || e.Err != unix.ECONNREFUSED || e.Time.Before(start) || time.Since(e.Time) > patience {
					t.Errorf("errors of peers: %v", a.PeerErrors())
				}
				if n := len(a.PeerErrors()); n != 1 {
					t.Errorf("errors of %d peers", n)
				}
			})
		}
	}
}

// Where one socket sends and receives, an error must not keep it readable for ever: its reader would never rest.
func TestErrorsDoNotKeepTheReaderAwake(t *testing.T) {
	h := newHosts(t)
	for family, ends := range families {
		t.Run(family, func(t *testing.T) {
			h := h.again(t)
			silent := silent4
			if ends[0].Is6() {
				silent = silent6
			}
			c := all(ends[0])
			c.Sources = 0
			a := h.openAt(t, here, c)
			var x traffic
			x.add(0, 0, 0, 1, 200)
			x.send(NewSender(), destinations(a, silent)).want(t, map[forward.DropReason]int{forward.NotDropped: 1})
			r := a.Receivers[0]
			awaitEvent(t, r.FD(), unix.POLLIN)
			for range 4 {
				if n, err := r.Receive(make([]forward.Received, 4)); n != 0 || err == nil {
					t.Errorf("Receive = %d, %v", n, err)
				}
			}
			if ready(t, r.FD(), unix.POLLIN, 0) {
				t.Error("the socket still has something to say")
			}
			if e := a.PeerErrors()[silent]; e.Err != unix.ECONNREFUSED {
				t.Errorf("errors of peers: %v", a.PeerErrors())
			}
		})
	}
}

// shape limits eth0 to a rate in bytes a second, with a queue of so many bytes before it.
func shape(t *testing.T, rate uint64, limit uint32) {
	t.Helper()
	must(t, netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0(t).Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Limit: limit, Buffer: netlink.Xmittime(rate, 2000),
	}))
}

// A device that is slower than the traffic makes the kernel drop. That is told, not hidden.
func TestAFullDeviceQueueIsReported(t *testing.T) {
	for family, ends := range families {
		t.Run(family, func(t *testing.T) {
			h := newHosts(t)
			c := all(ends[0])
			c.GSO = false
			a, b := h.openAt(t, here, c), h.openAt(t, there, all(ends[1]))
			shape(t, 100_000, 20_000)
			var x traffic
			for i := range 100 {
				x.add(0, i%8, 0, 1, 1000)
			}
			r := x.send(NewSender(), destinations(a, ends[1]))
			sent := r.frames[forward.NotDropped]
			if sent == 0 || r.frames[forward.SendNoBuffer] == 0 || sent+r.frames[forward.SendNoBuffer] != 100 {
				t.Errorf("reported %v", r.frames)
			}
			// All that was not reported does arrive.
			shape(t, 100_000_000, 1_000_000)
			for n := 0; n < sent; n++ {
				awaitEvent(t, b.Receivers[0].FD(), unix.POLLIN)
				k, err := b.Receivers[0].Receive(make([]forward.Received, 1))
				if err != nil || k != 1 {
					t.Fatalf("%d of %d arrived, then %v", n, sent, err)
				}
			}
		})
	}
}

// A socket whose buffer is full waits for room for a while, and then the datagram is given up, not the sender.
func TestAFullSendBufferIsReported(t *testing.T) {
	h := newHosts(t)
	a := h.openAt(t, here, all(here4))
	for _, fd := range a.sources {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 5000))
	}
	shape(t, 1000, 10_000_000) // a second a datagram, and room for all
	var x traffic
	for range 40 {
		x.add(0, 0, 0, 1, 1000)
	}
	start := time.Now()
	r := x.send(NewSender(), destinations(a, there4))
	spent := time.Since(start)
	full := r.frames[forward.SendNoBuffer]
	if full == 0 || r.frames[forward.NotDropped] == 0 || full+r.frames[forward.NotDropped] != 40 {
		t.Errorf("reported %v", r.frames)
	}
	// It waits once, not for each: those behind it in the worker's queue have waited long enough.
	if spent < sendWait || spent > time.Duration(full)*sendWait {
		t.Errorf("%d of 40 given up after %v", full, spent)
	}
}

// While a sender waits for room, whatever else the process does goes on, also where there is one CPU.
func TestWaitingForRoomHoldsNobodyUp(t *testing.T) {
	h := newHosts(t)
	a := h.openAt(t, here, all(here4))
	for _, fd := range a.sources {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 5000))
	}
	shape(t, 1000, 10_000_000)
	var x traffic
	for range 20 {
		x.add(0, 0, 0, 1, 1000)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var turns atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				turns.Add(1)
				runtime.Gosched()
			}
		}
	}()
	const calls = 20
	s, dest := NewSender(), destinations(a, there4)
	for range calls {
		x.send(s, dest)
	}
	close(stop)
	<-done
	// Between two sends, or when the scheduler interrupts one, it has a turn or two. While one waits, thousands.
	if n := turns.Load(); n < 50*calls {
		t.Errorf("another goroutine had %d turns during %d sends that waited for %v", n, calls, sendWait)
	}
}

func TestPeerErrorsAreBounded(t *testing.T) {
	e := &Endpoint{icmp: map[netip.Addr]PeerError{}}
	a := netip.MustParseAddr("198.18.0.0")
	for range 2 * maxPeerErrors {
		a = a.Next()
		e.notePeerError(a, unix.EHOSTUNREACH)
	}
	if n := len(e.PeerErrors()); n != maxPeerErrors {
		t.Errorf("errors of %d peers are kept", n)
	}
	known := netip.MustParseAddr("198.18.0.1")
	e.notePeerError(known, unix.ECONNREFUSED)
	if got := e.PeerErrors()[known].Err; got != unix.ECONNREFUSED {
		t.Errorf("the error of a peer known before is %v", got)
	}
}
