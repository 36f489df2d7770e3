package state

import (
	"crypto/sha256"
	"encoding/binary"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// nodesDigest is where Digest has the nodes: no network has this VNI.
const nodesDigest = 0

// Digest returns, for each VNI, a number that stands for the network and its endpoints, and at 0 one for the nodes. Two
// copies with the same contents have the same numbers, in whatever order the contents came. Copies that differ have
// different ones but for accidents of 1 in 2^64. It takes time for the networks but not for the endpoints.
func (t *Tables) Digest() map[uint32]uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make(map[uint32]uint64, len(t.c.segments)+1)
	if t.c.nodes.Len() > 0 {
		out[nodesDigest] = t.c.nodeSum
	}
	for _, seg := range t.c.segments {
		out[seg.net.msg.Vni] = seg.sum
	}
	return out
}

// Position returns the index, and one number for all that Digest returns, of the same moment. Copies at the same index
// that have different numbers are not the same, which one cannot tell from an index and a digest taken one after the other.
func (t *Tables) Position() (index, sum uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	sum = t.c.nodeSum
	for _, seg := range t.c.segments {
		sum += seg.sum // of networks, in no order
	}
	return t.c.index, sum
}

// The digests of records are added up modulo 2^64, which needs no order and can be taken back. Each is the first 64
// bits of the SHA-256 of a form of the record of this package's own: how protobuf encodes is not fixed over versions.
// Variable parts have their length before them, so that no two records have the same form.

// form is a record on its way to its digest.
type form []byte

func (f form) number(n uint64) form { return binary.BigEndian.AppendUint64(f, n) }
func (f form) text(s string) form   { return append(f.number(uint64(len(s))), s...) }
func (f form) texts(list []string) form {
	f = f.number(uint64(len(list)))
	for _, s := range list {
		f = f.text(s)
	}
	return f
}

func (f form) time(t *timestamppb.Timestamp) form {
	return f.number(uint64(t.GetSeconds())).number(uint64(t.GetNanos()))
}

func (f form) sum() uint64 {
	sum := sha256.Sum256(f)
	return binary.BigEndian.Uint64(sum[:])
}

func (n *node) digest() uint64 {
	m := n.msg
	return make(form, 0, 512).text("node").number(n.id).text(m.Name).number(uint64(m.Role)).number(uint64(m.Availability)).
		texts(m.Addresses).number(uint64(m.ControlPort)).number(uint64(m.GossipPort)).number(uint64(m.VxlanPort)).
		text(string(m.PublicKey)).number(m.Index).time(m.Joined).sum()
}

func (n *network) digest() uint64 {
	m := n.msg
	return make(form, 0, 256).text("network").number(n.id).text(m.Name).number(uint64(m.Vni)).texts(m.Subnets).texts(m.Gateways).
		number(uint64(m.Mtu)).number(uint64(m.Mss)).number(m.Index).time(m.Created).sum()
}

func (e *endpoint) digest() uint64 {
	f := make(form, 0, 192).text("endpoint").number(e.id).number(e.network).number(e.node).text(e.name).
		number(uint64(e.ip4)).number(e.mac.Uint64()).number(e.generation).number(e.index)
	f = append(f, e.ip6[:]...)
	if e.leased {
		f = f.number(uint64(e.leaseSeconds)).number(uint64(e.leaseNanos))
	}
	return f.sum()
}

// derive makes a number out of a command's seed, another one for each purpose and attempt. The index is in it too, so
// that a proposer that repeats a seed does not repeat what comes of it.
func derive(seed []byte, index uint64, purpose string, attempt int) uint64 {
	return make(form, 0, 64).text("overlayd " + purpose).number(index).number(uint64(attempt)).text(string(seed)).sum()
}

// size is the size of a batch for the ring: its deltas, at least 1.
func size(b *statev1.Batch) int { return max(1, len(b.Deltas)) }
