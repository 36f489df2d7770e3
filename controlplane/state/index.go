package state

import "slices"

// index finds the endpoint that has a key: a name, an address, all on one network. It is a hash table with linear probing
// of nothing but pointers: the key is looked up in the endpoint. That takes 11 to 22 bytes an endpoint, where a map that
// holds the keys takes three times as much.
//
// Nobody sees the order of what is in it, so that its hash may be another one in each process: whoever picks names or
// addresses cannot make them collide.
type index struct {
	slots []*endpoint // as many as a power of two, at least a quarter empty
	used  int
	hash  func(*endpoint) uint64
	same  func(a, b *endpoint) bool // whether they have the same key
}

const minSlots = 16

// place returns where the endpoint with e's key is, or the empty slot where it would be.
func (x *index) place(e *endpoint) int {
	mask := len(x.slots) - 1
	i := int(x.hash(e)) & mask
	for x.slots[i] != nil && !x.same(x.slots[i], e) {
		i = (i + 1) & mask
	}
	return i
}

// find returns the endpoint with e's key, or nil.
func (x *index) find(e *endpoint) *endpoint {
	if x.used == 0 {
		return nil
	}
	return x.slots[x.place(e)]
}

// put makes e the endpoint with its key.
func (x *index) put(e *endpoint) {
	if (x.used+1)*4 > len(x.slots)*3 {
		x.resize(max(minSlots, 2*len(x.slots)))
	}
	i := x.place(e)
	if x.slots[i] == nil {
		x.used++
	}
	x.slots[i] = e
}

// clone returns an index of its own with the same endpoints in it.
func (x *index) clone() *index {
	out := *x
	out.slots = slices.Clone(x.slots)
	return &out
}

// remove takes out the endpoint with e's key.
func (x *index) remove(e *endpoint) {
	if x.find(e) == nil {
		return
	}
	mask := len(x.slots) - 1
	hole := x.place(e)
	// What was pushed on by the one that goes moves up, so that no probe ends early.
	for i := (hole + 1) & mask; x.slots[i] != nil; i = (i + 1) & mask {
		home := int(x.hash(x.slots[i])) & mask
		if (i-home)&mask >= (i-hole)&mask {
			x.slots[hole] = x.slots[i]
			hole = i
		}
	}
	x.slots[hole] = nil
	if x.used--; len(x.slots) > minSlots && x.used*8 < len(x.slots) {
		x.resize(len(x.slots) / 2)
	}
}

func (x *index) resize(n int) {
	old := x.slots
	x.slots = make([]*endpoint, n)
	for _, e := range old {
		if e != nil {
			x.slots[x.place(e)] = e
		}
	}
}
