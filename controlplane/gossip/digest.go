package gossip

import (
	"encoding/binary"
	"encoding/hex"
)

// Digest says in few bytes what a node knows.
type Digest struct {
	Index uint64 // of the last change that it has
	Sum   uint64 // over its content; nodes with the same index have the same
}

// aheadOf reports whether a node with digest d has something that one with digest ours lacks, as far as digests
// tell. With the same index, but another sum, one of the two is wrong, and neither knows which.
func (d Digest) aheadOf(ours Digest) bool {
	return d.Index > ours.Index || d.Index == ours.Index && d.Sum != ours.Sum
}

// A claim is a digest with who says so of which cluster, as it travels on acknowledgements, in push/pull and in
// announcements. Its form, big-endian:
//
//	0   1  version, 1
//	1   8  cluster
//	9   8  node
//	17  8  index
//	25  8  sum
type claim struct {
	cluster, node [8]byte
	digest        Digest
}

const (
	claimVersion = 1
	claimLen     = 33
)

func (c claim) append(b []byte) []byte {
	b = append(b, claimVersion)
	b = append(b, c.cluster[:]...)
	b = append(b, c.node[:]...)
	b = binary.BigEndian.AppendUint64(b, c.digest.Index)
	return binary.BigEndian.AppendUint64(b, c.digest.Sum)
}

// parseClaim refuses other versions and lengths. A later version can only be sent once no node is left that
// does not know it, and until then they travel beside each other in messages of another type.
func parseClaim(b []byte) (c claim, ok bool) {
	if len(b) != claimLen || b[0] != claimVersion {
		return c, false
	}
	copy(c.cluster[:], b[1:])
	copy(c.node[:], b[9:])
	c.digest = Digest{Index: binary.BigEndian.Uint64(b[17:]), Sum: binary.BigEndian.Uint64(b[25:])}
	return c, true
}

func (c claim) nodeID() string { return hex.EncodeToString(c.node[:]) }
