package fdb

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"github.com/overlayd/overlayd/dataplane/addr"
)

// Neighbors is the neighbour table of one network: it maps an IP address to the MAC of its owner. Entries
// are put by the operator or the control plane and do not age. All methods are safe for concurrent use;
// Lookup never locks.
//
// An IPv4 address mapped into IPv6 is taken as the IPv4 address, and a zone is ignored: the network is the
// zone.
type Neighbors struct {
	v4    store[uint64]    // IPv4 address -> known | MAC
	v6    store[[2]uint64] // IPv6 address, high and low half -> known | MAC
	seeds seeds

	// Changed, if it is not nil, is called after every change of who owns an address, never where Set states what is so
	// already. What is said of Table.Changed holds here too.
	Changed func()
}

// known sets a live value apart from the store's empty and dead, whatever the MAC.
const known = 1 << 48

// NewNeighbors makes an empty table. It takes memory as it fills: at most 29 bytes an IPv4 address and 43 an
// IPv6 address, and 4 KB when empty.
func NewNeighbors() *Neighbors {
	n := &Neighbors{seeds: newSeeds()}
	n.v4.hash = n.seeds.hash64
	n.v6.hash = n.seeds.hash128
	return n
}

func key4(ip netip.Addr) uint64 {
	b := ip.As4()
	return uint64(binary.BigEndian.Uint32(b[:]))
}

func key6(ip netip.Addr) [2]uint64 {
	b := ip.As16()
	return [2]uint64{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func isV4(ip netip.Addr) bool { return ip.Is4() || ip.Is4In6() }

// Lookup returns the MAC of the owner of ip. It takes no lock and does not allocate.
func (n *Neighbors) Lookup(ip netip.Addr) (addr.MAC, bool) {
	var v uint64
	switch {
	case isV4(ip):
		k := key4(ip)
		v = n.v4.get(n.seeds.hash64(k), k)
	case ip.IsValid():
		k := key6(ip)
		v = n.v6.get(n.seeds.hash128(k), k)
	}
	if v <= dead {
		return addr.MAC{}, false
	}
	return addr.MACFromUint64(v), true
}

// Set makes mac the owner of ip, in place of any other. The zero Addr has no owner and is passed over.
func (n *Neighbors) Set(ip netip.Addr, mac addr.MAC) {
	switch v := known | mac.Uint64(); {
	case isV4(ip):
		k := key4(ip)
		n.changed(n.v4.set(n.seeds.hash64(k), k, v))
	case ip.IsValid():
		k := key6(ip)
		n.changed(n.v6.set(n.seeds.hash128(k), k, v))
	}
}

// Delete removes the entry of ip and reports whether there was one.
func (n *Neighbors) Delete(ip netip.Addr) bool {
	switch {
	case isV4(ip):
		k := key4(ip)
		return n.changed(n.v4.delete(n.seeds.hash64(k), k))
	case ip.IsValid():
		k := key6(ip)
		return n.changed(n.v6.delete(n.seeds.hash128(k), k))
	}
	return false
}

// changed tells who asked, if there is something to tell, and returns whether there is.
func (n *Neighbors) changed(something bool) bool {
	if something && n.Changed != nil {
		n.Changed()
	}
	return something
}

// set and delete are put and remove for a table that keeps no accounts of its own. They report whether anything is
// different.
func (s *store[K]) set(h uint64, k K, v uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.get(h, k) == v {
		return false
	}
	s.put(h, k, v)
	return true
}

func (s *store[K]) delete(h uint64, k K) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(h, k) != empty
}

// Len returns the number of entries.
func (n *Neighbors) Len() int { return int(n.v4.live.Load() + n.v6.live.Load()) }

// All yields the entries, IPv4 first, otherwise in no particular order. Entries that are put or removed
// meanwhile may be missed or seen; no address is seen twice.
func (n *Neighbors) All() iter.Seq2[netip.Addr, addr.MAC] {
	return func(yield func(netip.Addr, addr.MAC) bool) {
		more := true
		n.v4.all(func(k, v uint64) bool {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], uint32(k))
			more = yield(netip.AddrFrom4(b), addr.MACFromUint64(v))
			return more
		})
		if !more {
			return
		}
		n.v6.all(func(k [2]uint64, v uint64) bool {
			var b [16]byte
			binary.BigEndian.PutUint64(b[:8], k[0])
			binary.BigEndian.PutUint64(b[8:], k[1])
			return yield(netip.AddrFrom16(b), addr.MACFromUint64(v))
		})
	}
}
