package state

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

const (
	// firstVNI is the smallest VNI that is allocated. Those below are left to networks that are set up by hand.
	firstVNI = 4096

	vniWidth   = 24 // bits
	blockWidth = 16 // bits: the /24 blocks of 10.0.0.0/8
	blockBits  = 24 // prefix length of a block

	// denseBits is up to how many host bits a subnet hands out its addresses one after the other. In larger ones they are
	// derived from the seed, so far apart that nobody finds them by counting (RFC 7721, section 4.1).
	denseBits = 32

	// attempts is how often a derived number is derived anew because it is taken. With a million taken of 2^33, the
	// smallest space, 64 failures in a row do not happen.
	attempts = 64
)

// allocator knows what is free of what the managers hand out. What was given out last is where the search for the next
// begins, so that what is freed comes round again as late as possible: until then, everybody has heard of it.
//
// A nil allocator, that of a replica, takes notes of nothing.
type allocator struct {
	vnis       *bitmap // that are taken
	nextVNI    uint32
	blocks     *bitmap // that a subnet or the address of a node reaches into
	nextSubnet uint32
	pools      map[uint64][]*pool // by network, one for each subnet
}

// pool is the addresses of one subnet, counted from its first.
type pool struct {
	subnet subnet
	taken  *bitmap // nil if addresses are derived
	next   uint64
}

func newAllocator() *allocator {
	return &allocator{vnis: newBitmap(vniWidth), nextVNI: firstVNI, blocks: newBitmap(blockWidth), pools: map[uint64][]*pool{}}
}

func newPool(s subnet) *pool {
	p := &pool{subnet: s, next: 1}
	if width := hostBits(s.prefix); width <= denseBits {
		p.taken = newBitmap(width)
		if s.gateway.IsValid() {
			p.taken.add(p.offset(s.gateway))
		}
	} else {
		p.next = 0
	}
	return p
}

// last is the largest number that an endpoint can have: behind it there is the broadcast address, in IPv4.
func (p *pool) last() uint64 {
	n := uint64(1)<<hostBits(p.subnet.prefix) - 1
	if p.subnet.prefix.Addr().Is4() {
		n--
	}
	return n
}

// offset is the number of an address of a subnet with at most 64 host bits.
func (p *pool) offset(a netip.Addr) uint64 {
	if a.Is4() {
		return uint64(of4(a) - of4(p.subnet.prefix.Addr()))
	}
	b := a.As16()
	n := binary.BigEndian.Uint64(b[8:])
	if width := hostBits(p.subnet.prefix); width < 64 {
		n &= 1<<width - 1
	}
	return n
}

// at is the address with a number: that many after the first, in IPv6 within the last 64 bits.
func (p *pool) at(n uint64) netip.Addr {
	first := p.subnet.prefix.Addr()
	if first.Is4() {
		return number4(of4(first) + uint32(n))
	}
	b := first.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])|n)
	return netip.AddrFrom16(b)
}

// find returns a free address. In a subnet that is handed out in order that is the next one, round and round.
func (p *pool) find(c *content, network uint64, derive func(attempt int) uint64) (netip.Addr, bool) {
	if p.taken != nil {
		n, ok := nextFree(p.taken, p.next, 1, p.last())
		return p.at(n), ok
	}
	for i := range attempts {
		n := derive(i)
		if width := hostBits(p.subnet.prefix); width < 64 {
			n &= 1<<width - 1
		}
		a := p.at(n)
		e := &endpoint{network: network}
		e.setIP(a)
		if p.subnet.reserved(a) == "" && c.byIP6.find(e) == nil {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// nextFree returns the first number from next on, and else from first on, that is not taken and at most last.
func nextFree(taken *bitmap, next, first, last uint64) (uint64, bool) {
	if n, ok := taken.missing(max(next, first)); ok && n <= last {
		return n, true
	}
	n, ok := taken.missing(first)
	return n, ok && n <= last
}

// moveOn makes the next search begin behind an address that was found.
func (p *pool) moveOn(a netip.Addr) {
	if p.taken != nil {
		p.next = p.offset(a) + 1
	}
}

func (al *allocator) addNetwork(n *network) {
	if al == nil {
		return
	}
	pools := make([]*pool, len(n.subnets))
	for i, s := range n.subnets {
		pools[i] = newPool(s)
	}
	al.pools[n.id] = pools
	al.vnis.add(uint64(n.msg.Vni))
}

func (al *allocator) dropNetwork(n *network) {
	if al == nil {
		return
	}
	delete(al.pools, n.id)
	al.vnis.remove(uint64(n.msg.Vni))
}

// take notes that the addresses of e are taken.
func (al *allocator) take(e *endpoint) {
	if al != nil {
		al.each(e, (*bitmap).add)
	}
}

// free notes that they are free.
func (al *allocator) free(e *endpoint) {
	if al != nil {
		al.each(e, (*bitmap).remove)
	}
}

func (al *allocator) each(e *endpoint, do func(*bitmap, uint64)) {
	for _, a := range e.ips() {
		for _, p := range al.pools[e.network] {
			if p.taken != nil && p.subnet.prefix.Contains(a) {
				do(p.taken, p.offset(a))
			}
		}
	}
}

// block is the /24 of 10.0.0.0/8 with this number.
func block(n uint64) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n)}), blockBits)
}

// noteSubnet looks anew which of the blocks that p reaches into are in use.
func (al *allocator) noteSubnet(c *content, p netip.Prefix) {
	if al == nil || !p.Addr().Is4() || p.Addr().As4()[0] != 10 || p.Bits() < 8 {
		return
	}
	first := uint64(of4(p.Addr()) >> 8 & 0xffff)
	count := uint64(1)
	if p.Bits() < blockBits {
		count <<= blockBits - p.Bits()
	}
	for n := first; n < first+count; n++ {
		_, subnet := c.subnetOver(block(n))
		_, node := c.nodeWithin(block(n))
		if subnet || node {
			al.blocks.add(n)
		} else {
			al.blocks.remove(n)
		}
	}
}

// noteAddr is noteSubnet for the address of a node.
func (al *allocator) noteAddr(c *content, a netip.Addr) {
	al.noteSubnet(c, netip.PrefixFrom(a, a.BitLen()))
}

// findVNI returns a free VNI, the next one, round and round.
func (al *allocator) findVNI() (uint32, bool) {
	n, ok := nextFree(al.vnis, uint64(al.nextVNI), firstVNI, uint64(addr.MaxVNI))
	return uint32(n), ok
}

// findSubnet returns a free block, the next one, round and round.
func (al *allocator) findSubnet() (uint32, netip.Prefix, bool) {
	n, ok := nextFree(al.blocks, uint64(al.nextSubnet), 0, 1<<blockWidth-1)
	return uint32(n), block(n), ok
}

// cursors is where the next searches begin, as messages. Pools are in the order of the networks' IDs.
func (al *allocator) cursors() (*statev1.Cursors, []*statev1.Pool) {
	ids := make([]uint64, 0, len(al.pools))
	for id := range al.pools {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	pools := make([]*statev1.Pool, len(ids))
	for i, id := range ids {
		pools[i] = &statev1.Pool{Network: formatID(id)}
		for _, p := range al.pools[id] {
			pools[i].Next = append(pools[i].Next, p.next)
		}
	}
	return &statev1.Cursors{NextVni: al.nextVNI, NextSubnet: al.nextSubnet}, pools
}

// restoreCursors is the inverse of cursors, for the VNIs and subnets.
func (al *allocator) restoreCursors(m *statev1.Cursors) *refusal {
	if m.NextVni < firstVNI || m.NextVni > uint32(addr.MaxVNI)+1 {
		return invalid("next_vni", "%d is out of range", m.NextVni)
	}
	if m.NextSubnet > 1<<blockWidth {
		return invalid("next_subnet", "%d is out of range", m.NextSubnet)
	}
	al.nextVNI, al.nextSubnet = m.NextVni, m.NextSubnet
	return nil
}

// restorePool is the inverse of cursors, for one network.
func (al *allocator) restorePool(m *statev1.Pool) *refusal {
	id, bad := parseID("network", m.Network)
	if bad != nil {
		return bad
	}
	pools := al.pools[id]
	if len(pools) == 0 || len(pools) != len(m.Next) {
		return invalid("next", "there are %d for the %d subnets of network %s", len(m.Next), len(pools), m.Network)
	}
	for i, p := range pools {
		if p.taken == nil && m.Next[i] != 0 || p.taken != nil && (m.Next[i] < 1 || m.Next[i] > p.last()+1) {
			return invalid(element("next", i), "%d is out of range", m.Next[i])
		}
		p.next = m.Next[i]
	}
	return nil
}
