package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/state"
)

// Errors that callers decide on.
var (
	ErrNotMember = errors.New("this node is in no cluster: run `overlayctl init` to make one, or `overlayctl join` to enter one")
	ErrMember    = errors.New("this node is in a cluster already: run `overlayctl leave` first")
)

// restartWait bounds the wait before a membership that failed is tried again.
const (
	minRestartWait = time.Second
	maxRestartWait = 30 * time.Second
)

// Node is the control plane of one host. Outside of a cluster it waits for Init or Join.
type Node struct {
	cfg     Config
	log     *slog.Logger
	replica *state.Replica
	hub     *hub         // guards changes of replica
	path    atomic.Int64 // see SetPathMTU

	mu     sync.Mutex // serialises Init, Join and Leave
	member atomic.Pointer[member]
	begin  chan *attempt // to Run
}

// attempt is the first start of a membership.
type attempt struct {
	member  *member
	started chan error // capacity 1
}

// New returns a node with what it knew when it last ran: its copy of the state can be watched at once. It makes
// cfg.Dir. Run has to be called.
func New(cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := cfg.tidy(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Log, replica: state.NewReplica(), begin: make(chan *attempt)}
	n.hub = newHub(n.whole)
	l, err := loadLocal(cfg.localFile())
	if err != nil {
		return nil, err
	}
	if l == nil {
		return n, nil
	}
	creds, err := identity.Load(cfg.identityDir())
	if err != nil {
		return nil, fmt.Errorf("load the identity of node %s: %w", l.Name, err)
	}
	if creds.NodeID() != l.NodeID || creds.ClusterID() != l.ClusterID {
		return nil, fmt.Errorf("%s speaks of node %s of cluster %s, the certificate beside it of node %s of cluster %s: restore both from one backup, or remove the data directory and join again",
			cfg.localFile(), l.NodeID, l.ClusterID, creds.NodeID(), creds.ClusterID())
	}
	if err := n.loadCopy(); err != nil {
		// The copy only shortens the time until the managers have been asked.
		n.log.Warn("cannot use the local copy of the state; it will be fetched anew", "error", err)
	}
	n.member.Store(newMember(n, l, creds))
	return n, nil
}

// Run takes part in the cluster, or waits until it is to, until ctx ends. What fails on the way is logged and tried
// again: forwarding does not depend on it.
func (n *Node) Run(ctx context.Context) error {
	wait := minRestartWait
	for {
		m := n.member.Load()
		started := make(chan error, 1)
		if m == nil {
			select {
			case a := <-n.begin:
				m, started = a.member, a.started
			case <-ctx.Done():
				return nil
			}
		}
		began := time.Now()
		err := m.run(ctx, func(err error) { started <- err })
		switch {
		case ctx.Err() != nil:
			if err != nil && !errors.Is(err, context.Canceled) {
				n.log.Warn("the control plane did not end in order", "error", err)
			}
			return nil
		case errors.Is(err, errGone):
			if err != errGone {
				n.log.Warn("the node left its cluster, but not in order", "error", err)
			}
			continue
		case n.member.Load() == nil:
			continue // the first start failed; whoever asked for it has been told
		}
		if time.Since(began) > maxRestartWait {
			wait = minRestartWait
		}
		n.log.Error("the control plane stopped; forwarding goes on with what is known", "error", err, "retry", wait)
		select {
		case <-time.After(wait):
		case <-m.gone:
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, maxRestartWait)
	}
}

// start has Run begin the membership m, and returns when it stands. If that fails, nothing of it is left.
func (n *Node) start(ctx context.Context, m *member) error {
	if m.found == nil { // or else when the cluster is there: without one, a crash would leave a member of nothing
		if err := m.save(); err != nil {
			return errors.Join(err, n.forget())
		}
	}
	a := &attempt{member: m, started: make(chan error, 1)}
	select {
	case n.begin <- a:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), n.forget())
	}
	// From here on the attempt comes to an end by itself.
	if err := <-a.started; err != nil {
		return errors.Join(err, n.forget())
	}
	return nil
}

// forget removes everything that this node keeps of its cluster. The files go before the membership does: as soon as that
// is gone, Init and Join may write new ones.
func (n *Node) forget() error {
	var errs []error
	// What says that there is a membership goes first, so that a crash on the way leaves none.
	for _, path := range []string{n.cfg.localFile(), n.cfg.identityDir(), n.cfg.raftDir(), n.cfg.copyFile()} {
		errs = append(errs, os.RemoveAll(path))
	}
	n.hub.replace(func() {
		n.member.Store(nil)
		n.replica.Clear()
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove what is left of the membership: %w", err)
	}
	return nil
}

// Watch follows the networks, nodes and endpoints that this node knows of. The watch goes on over leaving one
// cluster and joining another.
func (n *Node) Watch() *Watcher { return n.hub.watch() }

// Self returns the ID of this node and of its cluster; both are "" if it is in none.
func (n *Node) Self() (nodeID, clusterID string) {
	if m := n.member.Load(); m != nil {
		return m.local.NodeID, m.local.ClusterID
	}
	return "", ""
}

// Choice says how this node came to its addresses when it became a member; it is zero if it is none, or became one of an older
// version.
func (n *Node) Choice() Choice {
	if m := n.member.Load(); m != nil {
		return m.local.Choice
	}
	return Choice{}
}

// Tables is this node's copy of the state, for reading. It may be behind the managers; see Fresh.
func (n *Node) Tables() *state.Replica { return n.replica }

func (n *Node) whole() (uint64, []*statev1.Delta) {
	index := n.replica.Index()
	var out []*statev1.Delta
	for _, x := range n.replica.Networks() {
		out = append(out, &statev1.Delta{Index: x.Index, Network: x})
	}
	for _, x := range n.replica.Nodes() {
		out = append(out, &statev1.Delta{Index: x.Index, Node: x})
	}
	for _, x := range n.replica.Endpoints("", "") {
		out = append(out, &statev1.Delta{Index: x.Index, Endpoint: x})
	}
	return index, out
}

func (n *Node) current() (*member, error) {
	if m := n.member.Load(); m != nil {
		return m, nil
	}
	return nil, ErrNotMember
}
