package apitest

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

// Content is what a Node serves.
type Content struct {
	Status   *overlaydv1.NodeStatus
	Networks []*overlaydv1.Network
	Peers    []*overlaydv1.Peer
	Paths    []*overlaydv1.Path
	Probes   *overlaydv1.Probes
	FDB      map[string][]*overlaydv1.FDBEntry // by network, sorted by MAC
	Drops    []*overlaydv1.Drop
	Samples  []*overlaydv1.DropSample // sorted by Seq
	Cluster  api.Cluster              // nil: not offered
}

// Node is an api.Node with content of the test's choice.
type Node struct {
	mu sync.Mutex
	c  Content
}

var _ api.Node = (*Node)(nil)

// New returns a Node that serves c.
func New(c Content) *Node { return &Node{c: c} }

// Change lets f change the content.
func (n *Node) Change(f func(*Content)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(&n.c)
}

// Serve serves the node on a unix socket in a folder of the test until the test ends, or stop is called.
func (n *Node) Serve(t testing.TB) (socket string, stop func()) {
	t.Helper()
	sock, err := api.Listen(filepath.Join(t.TempDir(), "overlayd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv, err := api.NewServer(n, n.c.Cluster, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, sock) }() // api server
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return sock.Path(), stop
}

// Status implements api.Overview.
func (n *Node) Status() *overlaydv1.NodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return proto.CloneOf(n.c.Status)
}

// Networks implements api.Overview.
func (n *Node) Networks() []*overlaydv1.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	return clones(n.c.Networks)
}

// Peers implements api.Overview.
func (n *Node) Peers() []*overlaydv1.Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return clones(n.c.Peers)
}

// Paths implements api.Overview.
func (n *Node) Paths() []*overlaydv1.Path {
	n.mu.Lock()
	defer n.mu.Unlock()
	return clones(n.c.Paths)
}

// Probes implements api.Overview.
func (n *Node) Probes() *overlaydv1.Probes {
	n.mu.Lock()
	defer n.mu.Unlock()
	return proto.CloneOf(n.c.Probes)
}

// FDB implements api.Tables.
func (n *Node) FDB(network string, after addr.MAC, limit int) ([]*overlaydv1.FDBEntry, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.ContainsFunc(n.c.Networks, func(x *overlaydv1.Network) bool { return x.Name == network }) {
		return nil, api.ErrNoNetwork
	}
	var out []*overlaydv1.FDBEntry
	for _, e := range n.c.FDB[network] {
		mac, err := addr.ParseMAC(e.Mac)
		if err != nil {
			return nil, err
		}
		if mac.Uint64() > after.Uint64() && len(out) < limit {
			out = append(out, proto.CloneOf(e))
		}
	}
	return out, nil
}

// Drops implements api.DropLog.
func (n *Node) Drops() []*overlaydv1.Drop {
	n.mu.Lock()
	defer n.mu.Unlock()
	return clones(n.c.Drops)
}

// Samples implements api.DropLog.
func (n *Node) Samples(after uint64) []*overlaydv1.DropSample {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*overlaydv1.DropSample
	for _, s := range n.c.Samples {
		if s.Seq > after {
			out = append(out, proto.CloneOf(s))
		}
	}
	return out
}

func clones[M proto.Message](in []M) []M {
	var out []M
	for _, m := range in {
		out = append(out, proto.CloneOf(m))
	}
	return out
}
