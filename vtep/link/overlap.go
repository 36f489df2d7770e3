package link

import (
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteOverlapping says in words which route of this network namespace's main table has destinations in common with p,
// such as "10.42.0.0/16 dev eth1". The default route does not count. It returns "" if there is none, or if the kernel
// does not tell.
func RouteOverlapping(p netip.Prefix) string {
	family := unix.AF_INET
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return ""
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		q := netip.PrefixFrom(a.Unmap(), bits)
		if !ok || bits == 0 || !q.Overlaps(p) {
			continue
		}
		words := []string{q.String()}
		if r.Gw != nil {
			words = append(words, "via "+r.Gw.String())
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			words = append(words, "dev "+l.Attrs().Name)
		}
		return strings.Join(words, " ")
	}
	return ""
}
