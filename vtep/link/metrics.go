//go:build linux

package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

// routeKey names one route of a device among the others.
type routeKey struct {
	dst                  netip.Prefix
	table, priority, tos int
}

// routeSizes is what a route states of sizes, in bytes; 0 = nothing.
type routeSizes struct{ mtu, advMSS int }

// Lowered holds the routes of a device that stated sizes which its MTU does not carry, and what they stated. The zero
// Lowered holds none.
type Lowered struct{ routes map[routeKey]lowered }

type lowered struct {
	was routeSizes // as others stated it
	set routeSizes // by us
}

// fitRoutes makes the routes of the device l that state a path MTU or an MSS state none that is above what an MTU of limit
// bytes carries: TCP would take them at their word. Those that were lowered before, as before says, and that nobody has
// changed since, grow back as far as that carries. What others state of smaller sizes is left alone. It returns what is
// lowered now.
func fitRoutes(l netlink.Link, limit int, before Lowered) (Lowered, error) {
	now := Lowered{routes: map[routeKey]lowered{}}
	filter := &netlink.Route{LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_UNSPEC}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return now, fmt.Errorf("device %q: list its routes: %w", l.Attrs().Name, err)
	}
	for i := range routes {
		r := &routes[i]
		key, ok := keyOf(r)
		have := routeSizes{r.MTU, r.AdvMSS}
		if !ok || have == (routeSizes{}) {
			continue
		}
		was := have
		if old, ok := before.routes[key]; ok && old.set == have {
			was = old.was
		}
		set := routeSizes{min(was.mtu, limit), min(was.advMSS, int(mtu.MSSOf(mtu.OverlayMTU(limit), mtu.FamilyOf(key.dst.Addr()))))}
		if set != have {
			r.MTU, r.AdvMSS = set.mtu, set.advMSS
			if err := netlink.RouteReplace(r); err != nil {
				return now, fmt.Errorf("device %q: set the sizes of its route to %v to %d and %d: %w", l.Attrs().Name, key.dst, set.mtu, set.advMSS, err)
			}
		}
		if set != was {
			now.routes[key] = lowered{was: was, set: set}
		}
	}
	return now, nil
}

func keyOf(r *netlink.Route) (routeKey, bool) {
	key := routeKey{table: r.Table, priority: r.Priority, tos: r.Tos}
	if r.Dst == nil {
		return key, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	key.dst = netip.PrefixFrom(a.Unmap(), bits)
	return key, ok && key.dst.IsValid()
}
