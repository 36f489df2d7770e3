package vtep

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/suppress"
)

// maxAnnouncements is how many announcements wait at most, so that whoever states very many stations at once does not
// take all memory. Those that are too many are not made, and caches that they would have set right age as they do.
const maxAnnouncements = 65536

// announcement is an address that belongs to another station than it did. Containers of this host that have spoken with
// the former one would go on to send to its MAC, for a minute or so: until they doubt what they know and ask again.
type announcement struct {
	n   *network
	ip  netip.Addr
	mac addr.MAC
}

// announcements are those that are to be made. Who states a station does not wait for that.
type announcements struct {
	mu      sync.Mutex
	waiting []announcement
	came    chan struct{} // capacity 1: there is one
}

// news returns which of the addresses the tables of n do not know to be those of mac. Whether they belonged to another
// station before is not looked at: it may have been removed long ago, and whoever never asked for them is told in vain.
func news(n *network, mac addr.MAC, ips []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, ip := range plain(ips) {
		if owner, ok := n.fwd.Neighbors.Lookup(ip); !ok || owner != mac {
			out = append(out, ip)
		}
	}
	return out
}

// announce has the containers of a network told that addresses are those of mac now.
func (v *VTEP) announce(n *network, mac addr.MAC, ips []netip.Addr) {
	if len(ips) == 0 {
		return
	}
	a := &v.announcements
	a.mu.Lock()
	for _, ip := range ips[:min(len(ips), maxAnnouncements-len(a.waiting))] {
		a.waiting = append(a.waiting, announcement{n, ip, mac})
	}
	a.mu.Unlock()
	select {
	case a.came <- struct{}{}:
	default:
	}
}

// announcer is the goroutine that makes announcements.
func (v *VTEP) announcer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.announcements.came:
			v.makeAnnouncements()
		}
	}
}

// makeAnnouncements writes those that wait to the TAPs, which are not closed meanwhile. Each stays within its host: what a
// bridge receives from a TAP does not go back there.
func (v *VTEP) makeAnnouncements() {
	v.change.Lock()
	defer v.change.Unlock()
	a := &v.announcements
	a.mu.Lock()
	waiting := a.waiting
	a.waiting = nil
	a.mu.Unlock()
	out := make([]byte, suppress.MaxReplyLen)
	for _, w := range waiting {
		if owner, ok := w.n.fwd.Neighbors.Lookup(w.ip); !ok || owner != w.mac || !slices.Contains(v.networks, w.n) {
			continue // something has changed since
		}
		frame, ok := suppress.Announce(w.ip, w.mac, out)
		if !ok {
			continue
		}
		c := w.n.fwd.Counters
		c.Created.Add(1)
		reason := v.write(w.n, 0, &gro.Item{Pieces: [][]byte{frame}})
		if reason == forward.NotDropped {
			c.TAPOut.Add(1, len(frame))
			continue
		}
		c.Drops.Add(reason, 1, v.now())
		v.samples.Add(forward.Sample{Time: v.now(), Network: w.n.fwd.Name, Reason: reason}, frame)
	}
}
