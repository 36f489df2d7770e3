package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// routed is a host with addresses, from which it sends by the longest prefix that fits.
type routed struct {
	has    []string
	routes map[string]string // source by prefix
}

func (h routed) HasAddress(a netip.Addr) (string, bool) {
	return "eth0", slices.Contains(h.has, a.String())
}

func (h routed) SourceTo(to netip.Addr) (netip.Addr, error) {
	list := []netip.Addr{to}
	if !to.IsValid() {
		list = []netip.Addr{defaultRoute4, defaultRoute6}
	}
	for _, to := range list {
		var best netip.Prefix
		for p := range h.routes {
			if p := netip.MustParsePrefix(p); p.Contains(to) && (!best.IsValid() || p.Bits() > best.Bits()) {
				best = p
			}
		}
		if best.IsValid() {
			return netip.MustParseAddr(h.routes[best.String()]), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no route to %v", list)
}

func (routed) RouteWithin(netip.Prefix) string { return "" }

func TestCandidates(t *testing.T) {
	four := routed{has: []string{"192.0.2.10"}, routes: map[string]string{"0.0.0.0/0": "192.0.2.10"}}
	both := routed{
		has:    []string{"192.0.2.10", "198.51.100.10", "2001:db8:1::10"},
		routes: map[string]string{"0.0.0.0/0": "192.0.2.10", "198.51.100.0/24": "198.51.100.10", "::/0": "2001:db8:1::10"},
	}
	for name, c := range map[string]struct {
		host      routed
		advertise string
		remotes   string
		want      string // or the error, with ! before it
	}{
		"nothing stated":                   {four, "", "", "192.0.2.10"},
		"nothing stated, both families":    {both, "", "", "192.0.2.10 2001:db8:1::10"},
		"by the route to the manager":      {both, "", "m.example.net:7789 198.51.100.1:7789 192.0.2.1:7789", "198.51.100.10 2001:db8:1::10"},
		"by an IPv6 route":                 {both, "", "[2001:db8::5]:7789", "2001:db8:1::10 192.0.2.10"},
		"its own":                          {both, "198.51.100.10", "192.0.2.1:7789", "198.51.100.10"},
		"its own, in another order":        {both, "2001:db8:1::10 192.0.2.10", "", "2001:db8:1::10 192.0.2.10"},
		"floating alone":                   {four, "203.0.113.7", "203.0.113.1:7789", "192.0.2.10 203.0.113.7"},
		"floating first":                   {four, "203.0.113.7 192.0.2.10", "", "192.0.2.10 203.0.113.7"},
		"two floating":                     {both, "203.0.113.7 203.0.113.8", "198.51.100.1:7789", "198.51.100.10 2001:db8:1::10 203.0.113.7 203.0.113.8"},
		"no route":                         {routed{}, "", "", "!none is stated, and none can be derived"},
		"floating alone, and no own":       {routed{}, "203.0.113.7", "", "!none of 203.0.113.7 is on an interface of this host, and its own cannot be derived"},
		"no address":                       {four, "h1", "", `!"h1" is no IP address`},
		"on one host, as for a try":        {routed{routes: map[string]string{"127.0.0.0/8": "127.0.0.1", "::/0": "2001:db8::9"}}, "", "127.0.0.2:7789", "127.0.0.1"},
		"an address that is no one else's": {routed{routes: map[string]string{"0.0.0.0/0": "192.0.2.10", "::/0": "fe80::1"}}, "", "", "192.0.2.10"},
	} {
		got, _, err := candidates(c.host, strings.Fields(c.advertise), strings.Fields(c.remotes))
		if want, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, %v; want %s", name, got, err, want)
			}
			continue
		}
		var have []string
		for _, a := range got {
			have = append(have, a.String())
		}
		if err != nil || strings.Join(have, " ") != c.want {
			t.Errorf("%s: %v, %v; want %s", name, have, err, c.want)
		}
	}
}
