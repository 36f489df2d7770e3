//go:build !race

package gossip

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// A packet goes to all addresses of a node until something has come from one of them, and then to that for a moment. What comes
// from elsewhere changes nothing.
func TestRoutes(t *testing.T) {
	const inside, floating, alone = "192.0.2.1:7790", "203.0.113.1:7790", "192.0.2.9:7790"
	synctest.Test(t, func(t *testing.T) {
		r := &routes{all: func(id string, to netip.AddrPort) []netip.AddrPort {
			if id == "a" || id == "" && (to.String() == inside || to.String() == floating) {
				return []netip.AddrPort{netip.MustParseAddrPort(inside), netip.MustParseAddrPort(floating)}
			}
			return nil
		}}
		a := memberlist.Address{Name: "a", Addr: inside}
		from := func(s string) { r.note(net.UDPAddrFromAddrPort(netip.MustParseAddrPort(s))) }
		want := func(what string, to memberlist.Address, want ...string) {
			t.Helper()
			if got := r.to(to); !slices.Equal(got, want) {
				t.Errorf("%s: to %q, want %q", what, got, want)
			}
		}
		want("nothing heard", a, inside, floating)
		want("by an address", memberlist.Address{Addr: floating}, inside, floating)
		want("unknown", memberlist.Address{Name: "b", Addr: alone}, alone)
		from(alone)
		want("something heard from elsewhere", a, inside, floating)
		from("[::ffff:203.0.113.1]:7790")
		want("heard from the second", a, floating)
		from(inside)
		want("heard from both", a, inside)
		time.Sleep(heardFor - time.Millisecond)
		want("a moment ago", a, inside)
		from(floating)
		time.Sleep(time.Millisecond)
		want("the first is silent", a, floating)
		time.Sleep(heardFor)
		want("both are", a, inside, floating)
		// What it remembers is bounded.
		for i := range 3 * maxHeard {
			r.note(net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1)))
		}
		if len(r.heard) > maxHeard {
			t.Errorf("%d addresses are remembered", len(r.heard))
		}
	})
	one := &routes{}
	one.note(net.UDPAddrFromAddrPort(netip.MustParseAddrPort(inside)))
	if got := one.to(memberlist.Address{Name: "a", Addr: inside}); !slices.Equal(got, []string{inside}) || len(one.heard) != 0 {
		t.Errorf("with one address each: %q", got)
	}
}

// A stream goes to the first address that answers.
func TestRoutesDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &routes{all: func(string, netip.AddrPort) []netip.AddrPort {
			return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:7790"), netip.MustParseAddrPort("203.0.113.1:7790")}
		}}
		server, client := net.Pipe()
		defer server.Close()
		c, err := r.dial(memberlist.Address{Addr: "192.0.2.1:7790"}, streamTimeout, func(address string, timeout time.Duration) (net.Conn, error) {
			if address == "203.0.113.1:7790" {
				return client, nil
			}
			time.Sleep(timeout)
			return nil, errors.New("nobody there")
		})
		if err != nil || c != client {
			t.Errorf("%v, %v", c, err)
		}
		time.Sleep(2 * streamTimeout)
		synctest.Wait()
		_ = c.Close() // the pipe's
	})
}
