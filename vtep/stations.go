package vtep

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
)

// healChunk is how many stations are compared without letting go of the lock.
const healChunk = 4096

// stations is what the tables of one network ought to hold: every station that was stated, behind which VTEP
// it is and which addresses it has. It is kept apart from the tables so that they can be compared with it,
// and small, since there may be a million: 16 bytes a station and as much again for the index.
//
// An address belongs to one station at most: to the one that claimed it last.
type stations struct {
	mu    sync.Mutex
	list  []station
	index map[addr.MAC]uint32       // place in list
	more  map[addr.MAC][]netip.Addr // addresses of the stations that have others than one of IPv4
	ips   int                       // addresses of all stations
}

type station struct {
	mac  addr.MAC
	one  bool // it has one address, ip
	ip   [4]byte
	vtep fdb.VTEPID
}

// set states the station mac, in place of what was said of it, here and in the tables of n.
func (s *stations) set(n *forward.Network, mac addr.MAC, vtep fdb.VTEPID, ips []netip.Addr) {
	ips = plain(ips)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.index == nil {
		s.index, s.more = map[addr.MAC]uint32{}, map[addr.MAC][]netip.Addr{}
	}
	at, known := s.index[mac]
	if known {
		for _, ip := range s.addresses(at) {
			if !slices.Contains(ips, ip) {
				release(n, ip, mac)
			}
		}
	} else {
		at = uint32(len(s.list))
		s.index[mac] = at
		s.list = append(s.list, station{mac: mac})
	}
	for _, ip := range ips {
		if owner, ok := n.Neighbors.Lookup(ip); ok && owner != mac {
			s.take(owner, ip)
		}
		n.Neighbors.Set(ip, mac)
	}
	s.assign(at, ips)
	s.list[at].vtep = vtep
	n.FDB.SetStatic(mac, vtep)
}

// swap is set, and returns what brings back what was said before, of mac and of those that its addresses are taken
// from.
func (s *stations) swap(n *forward.Network, mac addr.MAC, vtep fdb.VTEPID, ips []netip.Addr) (undo func()) {
	type statement struct {
		mac  addr.MAC
		vtep fdb.VTEPID
		ips  []netip.Addr
	}
	var before []statement
	s.mu.Lock()
	_, known := s.index[mac]
	owners := []addr.MAC{mac}
	for _, ip := range plain(ips) {
		if owner, ok := n.Neighbors.Lookup(ip); ok && !slices.Contains(owners, owner) {
			owners = append(owners, owner)
		}
	}
	for _, m := range owners {
		if at, ok := s.index[m]; ok {
			before = append(before, statement{m, s.list[at].vtep, slices.Clone(s.addresses(at))})
		}
	}
	s.mu.Unlock()
	s.set(n, mac, vtep, ips)
	return func() {
		if !known {
			s.remove(n, mac, vtep == fdb.Local)
		}
		for _, b := range before {
			s.set(n, b.mac, b.vtep, b.ips)
		}
	}
}

// plain returns addresses as the table of neighbours knows them, each once.
func plain(ips []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		if ip = ip.Unmap().WithZone(""); ip.IsValid() && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// addresses returns those of the station at a place of the list. The mutex is held.
func (s *stations) addresses(at uint32) []netip.Addr {
	if st := &s.list[at]; st.one {
		return []netip.Addr{netip.AddrFrom4(st.ip)}
	}
	return s.more[s.list[at].mac]
}

// assign gives the station at a place of the list its addresses. The mutex is held.
func (s *stations) assign(at uint32, ips []netip.Addr) {
	st := &s.list[at]
	s.ips += len(ips) - len(s.addresses(at))
	delete(s.more, st.mac)
	st.one = len(ips) == 1 && ips[0].Is4()
	switch {
	case st.one:
		st.ip = ips[0].As4()
	case len(ips) > 0:
		s.more[st.mac] = ips
	}
}

// take takes an address away from the station that had it. The mutex is held.
func (s *stations) take(mac addr.MAC, ip netip.Addr) {
	if at, ok := s.index[mac]; ok {
		s.assign(at, slices.DeleteFunc(slices.Clone(s.addresses(at)), func(have netip.Addr) bool { return have == ip }))
	}
}

// release removes ip from the neighbours if it is that of mac.
func release(n *forward.Network, ip netip.Addr, mac addr.MAC) {
	if owner, ok := n.Neighbors.Lookup(ip); ok && owner == mac {
		n.Neighbors.Delete(ip)
	}
}

// remove forgets the station mac, here and in the tables of n, if it is local or not as stated.
func (s *stations) remove(n *forward.Network, mac addr.MAC, local bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.index[mac]
	if !ok || (s.list[at].vtep == fdb.Local) != local {
		return
	}
	for _, ip := range s.addresses(at) {
		release(n, ip, mac)
	}
	s.assign(at, nil)
	last := len(s.list) - 1
	s.list[at] = s.list[last]
	s.index[s.list[at].mac] = at
	s.list = s.list[:last]
	delete(s.index, mac)
	n.FDB.Delete(mac)
}

// of returns the addresses of the station mac.
func (s *stations) of(mac addr.MAC) []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.index[mac]; ok {
		return slices.Clone(s.addresses(at))
	}
	return nil
}

// heal makes the tables of n hold what they ought to, and returns how many entries were missing, wrong or too
// many.
func (s *stations) heal(n *forward.Network) int {
	healed := 0
	for at, more := 0, true; more; {
		s.mu.Lock()
		for end := min(at+healChunk, len(s.list)); at < end; at++ {
			healed += s.healOne(n, uint32(at))
		}
		more = at < len(s.list)
		s.mu.Unlock()
	}
	return healed + s.sweep(n)
}

// healOne is heal for one station. The mutex is held.
func (s *stations) healOne(n *forward.Network, at uint32) int {
	st, healed := &s.list[at], 0
	if id, ok := n.FDB.LookupStatic(st.mac); !ok || id != st.vtep {
		n.FDB.SetStatic(st.mac, st.vtep)
		healed++
	}
	if st.one { // without making a list: there may be a million
		return healed + healAddress(n, netip.AddrFrom4(st.ip), st.mac)
	}
	for _, ip := range s.more[st.mac] {
		healed += healAddress(n, ip, st.mac)
	}
	return healed
}

func healAddress(n *forward.Network, ip netip.Addr, mac addr.MAC) int {
	if owner, ok := n.Neighbors.Lookup(ip); ok && owner == mac {
		return 0
	}
	n.Neighbors.Set(ip, mac)
	return 1
}

// sweep removes entries that nobody stated.
func (s *stations) sweep(n *forward.Network) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	healed := 0
	if n.FDB.Len() > len(s.list) {
		for e := range n.FDB.All() {
			if _, stated := s.index[e.MAC]; e.Static && !stated {
				n.FDB.Delete(e.MAC)
				healed++
			}
		}
	}
	if n.Neighbors.Len() > s.ips {
		for ip, mac := range n.Neighbors.All() {
			if at, stated := s.index[mac]; !stated || !slices.Contains(s.addresses(at), ip) {
				n.Neighbors.Delete(ip)
				healed++
			}
		}
	}
	return healed
}
