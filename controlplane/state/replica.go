package state

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Errors of Replica.Apply. The copy is as before, and has to catch up from a manager.
var (
	// ErrGap says that batches before this one are missing.
	ErrGap = errors.New("batches are missing before this one: get them, or a snapshot, from a manager")

	// ErrDiverged says that the copy is not one that the batch continues, as after the managers went back to a backup.
	// It is an ErrGap too (errors.Is): what helps is the same, although only a snapshot does.
	ErrDiverged error = divergence{}
)

type divergence struct{}

func (divergence) Error() string {
	return "the copy on this node is not one that the batch continues: get a snapshot from a manager"
}

func (divergence) Is(target error) bool { return target == ErrGap }

// Replica is a node's copy of what every node may know. Make one with NewReplica. Its methods may be called from many
// goroutines.
//
// It checks that what it is given makes sense, but not who gave it: signatures are the caller's to verify.
type Replica struct{ Tables }

// NewReplica returns an empty copy, of no cluster. The first batch or snapshot says which one it is of.
func NewReplica() *Replica { return &Replica{Tables{c: newContent(nil)}} }

// Clear makes the copy an empty one, of no cluster.
func (r *Replica) Clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.c = newContent(nil)
}

// Apply brings the copy forward by one batch. It is false, without an error, for a batch that the copy has already. On
// an error, which may be ErrGap or ErrDiverged, nothing has changed. The batch is not kept.
func (r *Replica) Apply(b *statev1.Batch) (applied bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.c
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("apply the batch from index %d to %d to the copy at index %d: %w", b.GetPrevious(), b.GetIndex(), c.index, err)
	}
	switch _, bad := parseID("cluster_id", b.GetClusterId()); {
	case bad != nil:
		return fail(bad.err())
	case c.clusterID != "" && b.ClusterId != c.clusterID:
		return fail(fmt.Errorf("it is of cluster %s, and the copy of cluster %s: find out who sent it", b.ClusterId, c.clusterID))
	case b.Previous >= b.Index || len(b.Deltas) == 0:
		return fail(errors.New("it leads nowhere: find out who sent it"))
	case b.Index <= c.index:
		return false, nil
	case b.Previous > c.index:
		return fail(ErrGap)
	case b.Previous < c.index:
		return fail(ErrDiverged)
	}
	var undo []func()
	for i, d := range b.Deltas {
		back, err := c.applyDelta(d, b.Index)
		if err != nil {
			for len(undo) > 0 {
				undo[len(undo)-1]()
				undo = undo[:len(undo)-1]
			}
			return fail(fmt.Errorf("deltas[%d]: %w", i, err))
		}
		undo = append(undo, back)
	}
	c.clusterID, c.index = b.ClusterId, b.Index
	return true, nil
}

// applyDelta makes one change and returns what takes it back.
func (c *content) applyDelta(d *statev1.Delta, index uint64) (undo func(), err error) {
	if d.GetIndex() != index {
		return nil, fmt.Errorf("its index is %d: it belongs to another batch", d.GetIndex())
	}
	set := 0
	for _, is := range []bool{d.Network != nil, d.Node != nil, d.Endpoint != nil, d.RemovedNetwork != "", d.RemovedNode != "", d.RemovedEndpoint != ""} {
		if is {
			set++
		}
	}
	if set != 1 {
		return nil, fmt.Errorf("it has %d changes that this node knows, not one: upgrade overlayd if the managers are newer", set)
	}
	switch {
	case d.Network != nil:
		return c.applyNetwork(d.Network, index)
	case d.Node != nil:
		return c.applyNode(d.Node, index)
	case d.Endpoint != nil:
		return c.applyEndpoint(d.Endpoint, index)
	}
	return c.applyRemoval(d)
}

// diverged is the error for a record that is sound but does not go with what the copy has.
func diverged(bad *refusal) error { return fmt.Errorf("%w: %w", bad.err(), ErrDiverged) }

func ofBatch(own, batch uint64) error {
	if own != batch {
		return fmt.Errorf("index: it is %d in the batch of %d", own, batch)
	}
	return nil
}

func (c *content) applyNetwork(m *statev1.Network, index uint64) (func(), error) {
	n, bad := parseNetwork(m)
	if bad != nil {
		return nil, bad.under("network").err()
	}
	if err := ofBatch(m.Index, index); err != nil {
		return nil, err
	}
	if bad := c.networkConflict(n); bad != nil {
		return nil, diverged(bad.under("network"))
	}
	if old := c.putNetwork(n); old != nil {
		return func() { c.putNetwork(old) }, nil
	}
	return func() { c.dropNetwork(n) }, nil
}

func (c *content) applyNode(m *statev1.Node, index uint64) (func(), error) {
	n, bad := parseNode(m)
	if bad != nil {
		return nil, bad.under("node").err()
	}
	if err := ofBatch(m.Index, index); err != nil {
		return nil, err
	}
	if bad := c.nodeConflict(n); bad != nil {
		return nil, diverged(bad.under("node"))
	}
	if old := c.putNode(n); old != nil {
		return func() { c.putNode(old) }, nil
	}
	return func() { c.dropNode(n) }, nil
}

func (c *content) applyEndpoint(m *statev1.Endpoint, index uint64) (func(), error) {
	e, bad := parseEndpoint(m)
	if bad != nil {
		return nil, bad.under("endpoint").err()
	}
	if err := ofBatch(m.Index, index); err != nil {
		return nil, err
	}
	if bad := c.whole(e); bad != nil {
		return nil, diverged(bad.under("endpoint"))
	}
	if old := c.putEndpoint(e); old != nil {
		return func() { c.putEndpoint(old) }, nil
	}
	return func() { c.dropEndpoint(e) }, nil
}

func (c *content) applyRemoval(d *statev1.Delta) (func(), error) {
	field, text := "removed_network", d.RemovedNetwork
	switch {
	case d.RemovedNode != "":
		field, text = "removed_node", d.RemovedNode
	case d.RemovedEndpoint != "":
		field, text = "removed_endpoint", d.RemovedEndpoint
	}
	id, bad := parseID(field, text)
	if bad != nil {
		return nil, bad.err()
	}
	switch field {
	case "removed_network":
		if seg := c.segments[id]; seg != nil && seg.endpoints == 0 {
			c.dropNetwork(seg.net)
			return func() { c.putNetwork(seg.net) }, nil
		}
	case "removed_node":
		used := false
		c.onNode(id, func(*endpoint) bool { used = true; return false })
		if n := c.node(id); n != nil && !used {
			c.dropNode(n)
			return func() { c.putNode(n) }, nil
		}
	default:
		if e := c.byID.find(&endpoint{id: id}); e != nil {
			c.dropEndpoint(e)
			return func() { c.putEndpoint(e) }, nil
		}
	}
	return nil, diverged(invalid(field, "%s is not there, or has endpoints", text))
}

// Load makes the copy what a snapshot that Store.PublicSnapshot or Replica.WriteTo wrote has, and returns the deltas
// that lead there from what it was, removals first. It reads in to its end. The snapshot may be older than the copy, since
// the managers may have gone back to a backup; whether it is to be trusted is for the caller to know. One of another
// cluster is refused. On an error, such as ErrDamaged or a *VersionError, the copy is as before.
func (r *Replica) Load(in io.Reader) ([]*statev1.Delta, error) {
	x, err := readSnapshot(in, true)
	if err != nil {
		return nil, fmt.Errorf("load a snapshot into the copy: %w", err)
	}
	deltas, err := r.become(x.content)
	if err != nil {
		return nil, fmt.Errorf("load a snapshot into the copy: %w", err)
	}
	return deltas, nil
}

// Adopt makes the copy what a store of the same process is, as Load does with its PublicSnapshot. The two share the
// records of endpoints, and what finds them as far as it stays the same, so that a manager has most of it in memory once.
func (r *Replica) Adopt(s *Store) ([]*statev1.Delta, error) {
	s.mu.Lock()
	c := s.c.share()
	s.mu.Unlock()
	deltas, err := r.become(c)
	if err != nil {
		return nil, fmt.Errorf("make the copy what the managers' state is: %w", err)
	}
	return deltas, nil
}

// become replaces the content, and returns the deltas from the old one to the new.
func (r *Replica) become(c *content) ([]*statev1.Delta, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.c.clusterID != "" && c.clusterID != r.c.clusterID {
		return nil, fmt.Errorf("it is of cluster %q, and the copy of cluster %q: find out who sent it", c.clusterID, r.c.clusterID)
	}
	deltas := difference(r.c, c)
	r.c = c
	return deltas, nil
}

// difference returns the deltas from one content to another.
func difference(from, to *content) []*statev1.Delta {
	var out []*statev1.Delta
	add := func(d *statev1.Delta) bool {
		d.Index = to.index
		out = append(out, d)
		return true
	}
	from.byID.Ascend(func(e *endpoint) bool {
		return to.byID.find(e) != nil || add(&statev1.Delta{RemovedEndpoint: formatID(e.id)})
	})
	from.networks.Ascend(func(n *network) bool {
		return to.networks.Has(n) || add(&statev1.Delta{RemovedNetwork: n.msg.Id})
	})
	from.nodes.Ascend(func(n *node) bool {
		return to.nodes.Has(n) || add(&statev1.Delta{RemovedNode: n.msg.Id})
	})
	to.nodes.Ascend(func(n *node) bool {
		old, _ := from.nodes.Get(n)
		return old != nil && proto.Equal(old.msg, n.msg) || add(&statev1.Delta{Node: proto.CloneOf(n.msg)})
	})
	to.networks.Ascend(func(n *network) bool {
		old, _ := from.networks.Get(n)
		return old != nil && proto.Equal(old.msg, n.msg) || add(&statev1.Delta{Network: proto.CloneOf(n.msg)})
	})
	to.byID.Ascend(func(e *endpoint) bool {
		old := from.byID.find(e)
		return old != nil && *old == *e || add(&statev1.Delta{Endpoint: e.message()})
	})
	return out
}

// WriteTo writes the copy as PublicSnapshot does, for Load. It returns the number of bytes written.
func (r *Replica) WriteTo(w io.Writer) (int64, error) {
	r.mu.Lock()
	f := r.c.freeze()
	r.mu.Unlock()
	return f.WriteTo(w)
}
