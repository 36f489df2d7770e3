package state

import "math/bits"

const (
	fanout   = 64
	leafBits = 12 // numbers of a leaf, as a power of two: 64 words of 64 bits
)

// bitmap is a set of numbers from 0 to a bound, in which the next number that is missing is found in time that grows
// with the logarithm of the bound, however full the set is. It is a tree of 64-way nodes; a node that holds nothing is
// not there.
type bitmap struct {
	height int // levels above the leaves
	root   *bitNode
}

// bitNode is a leaf with words or a branch with kids. Of full, bit i says that word or kid i holds all it can.
type bitNode struct {
	full  uint64
	used  int // words or kids that hold anything
	words *[fanout]uint64
	kids  *[fanout]*bitNode
}

// newBitmap makes a set for numbers below 2^width.
func newBitmap(width int) *bitmap {
	height := 0
	for leafBits+6*height < width {
		height++
	}
	return &bitmap{height: height}
}

func newBitNode(height int) *bitNode {
	if height == 0 {
		return &bitNode{words: new([fanout]uint64)}
	}
	return &bitNode{kids: new([fanout]*bitNode)}
}

// shift is how far a number is shifted to get the place in a node of this height.
func shift(height int) int { return leafBits + 6*(height-1) }

func (b *bitmap) add(n uint64) {
	if b.root == nil {
		b.root = newBitNode(b.height)
	}
	b.root.add(b.height, n)
}

func (b *bitmap) remove(n uint64) {
	if b.root != nil && b.root.remove(b.height, n) {
		b.root = nil
	}
}

func (b *bitmap) has(n uint64) bool {
	node := b.root
	for h := b.height; node != nil; h-- {
		if h == 0 {
			return node.words[n>>6%fanout]>>(n%64)&1 != 0
		}
		node = node.kids[n>>shift(h)%fanout]
	}
	return false
}

// missing returns the smallest number from n on that is not in the set. It may be beyond the bound; ok is false if
// there is none at all.
func (b *bitmap) missing(n uint64) (found uint64, ok bool) {
	if n>>(leafBits+6*b.height) != 0 {
		return 0, false
	}
	return b.root.missing(b.height, n)
}

func (b *bitNode) add(height int, n uint64) {
	i := n >> 6 % fanout
	if height > 0 {
		i = n >> shift(height) % fanout
		if b.kids[i] == nil {
			b.kids[i] = newBitNode(height - 1)
			b.used++
		}
		b.kids[i].add(height-1, n)
		if b.kids[i].full == ^uint64(0) {
			b.full |= 1 << i
		}
		return
	}
	if b.words[i] == 0 {
		b.used++
	}
	b.words[i] |= 1 << (n % 64)
	if b.words[i] == ^uint64(0) {
		b.full |= 1 << i
	}
}

// remove reports whether the node is empty now.
func (b *bitNode) remove(height int, n uint64) bool {
	if height > 0 {
		i := n >> shift(height) % fanout
		if b.kids[i] == nil {
			return false
		}
		b.full &^= 1 << i // whatever was in it, n is not any more
		if b.kids[i].remove(height-1, n) {
			b.kids[i] = nil
			b.used--
		}
		return b.used == 0
	}
	i := n >> 6 % fanout
	if b.words[i] == 0 {
		return false
	}
	b.words[i] &^= 1 << (n % 64)
	if b.words[i] != ^uint64(0) {
		b.full &^= 1 << i
	}
	if b.words[i] == 0 {
		b.used--
	}
	return b.used == 0
}

// missing counts from the first number of the node. What is above the node's place in n is ignored.
func (b *bitNode) missing(height int, n uint64) (uint64, bool) {
	width := leafBits + 6*height
	n &= 1<<width - 1
	if b == nil {
		return n, true
	}
	if height == 0 {
		i := n >> 6
		if free := ^b.words[i] >> (n % 64) << (n % 64); free != 0 {
			return i<<6 | uint64(bits.TrailingZeros64(free)), true
		}
		later := ^b.full >> 1 >> i << i << 1
		if later == 0 {
			return 0, false
		}
		i = uint64(bits.TrailingZeros64(later))
		return i<<6 | uint64(bits.TrailingZeros64(^b.words[i])), true
	}
	s := shift(height)
	i := n >> s
	if b.full>>i&1 == 0 {
		if found, ok := b.kids[i].missing(height-1, n); ok {
			return i<<s | found, true
		}
	}
	later := ^b.full >> 1 >> i << i << 1
	if later == 0 {
		return 0, false
	}
	i = uint64(bits.TrailingZeros64(later))
	found, ok := b.kids[i].missing(height-1, 0)
	return i<<s | found, ok
}
