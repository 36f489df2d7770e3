package state

import (
	"bytes"
	"errors"
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// replicaOf is a copy of w.
func replicaOf(t testing.TB, w *world) *Replica {
	t.Helper()
	r := NewReplica()
	if _, err := r.Load(bytes.NewReader(snapshotOf(t, w.PublicSnapshot()))); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReplicaChain(t *testing.T) {
	w := smallWorld(t)
	r := NewReplica()
	apply := func(b *statev1.Batch, applied bool, want error) {
		t.Helper()
		before := copyOf(t, r)
		ok, err := r.Apply(b)
		if ok != applied || !errors.Is(err, want) || want == nil && err != nil {
			t.Fatalf("Apply(%d to %d) = %v, %v, want %v, %v", b.Previous, b.Index, ok, err, applied, want)
		}
		if !applied && !bytes.Equal(copyOf(t, r), before) {
			t.Fatal("something changed")
		}
	}
	apply(w.batches[1], false, ErrGap)
	apply(w.batches[0], true, nil)
	apply(w.batches[0], false, nil)
	apply(w.batches[2], false, ErrGap)
	apply(w.batches[1], true, nil)
	apply(w.batches[0], false, nil)

	// The managers went back to a backup at index 1, and went on at 9.
	fork := proto.CloneOf(w.batches[1])
	fork.Index = 9
	for _, d := range fork.Deltas {
		d.Index = 9
		d.Node.Index = 9
	}
	apply(fork, false, ErrDiverged)
	apply(fork, false, ErrGap)
	if errors.Is(ErrGap, ErrDiverged) {
		t.Error("every gap is taken for another line")
	}

	r.Clear()
	if r.ClusterID() != "" || r.Index() != 0 || len(r.Nodes()) > 0 || len(r.Digest()) > 0 {
		t.Error("not cleared")
	}
	apply(w.batches[0], true, nil)
}

// TestReplicaGoesBack: a snapshot of the managers counts, even if it is older. What was added, removed and changed since
// is taken back.
func TestReplicaGoesBack(t *testing.T) {
	w := smallWorld(t)
	old := snapshotOf(t, w.PublicSnapshot())
	blue := w.NetworkByName("blue")
	web, node := w.EndpointByName(blue.Id, "web"), w.Node(id(2))
	added := w.endpoint(blue, "")
	w.must(&statev1.MoveEndpoint{Id: web.Id, Node: id(1)})
	w.must(&statev1.UpdateNode{Id: id(2), Name: "renamed"})
	r := replicaOf(t, w)
	deltas, err := r.Load(bytes.NewReader(old))
	if err != nil || len(deltas) != 3 || deltas[0].RemovedEndpoint != added.Id || !proto.Equal(deltas[1].Node, node) || !proto.Equal(deltas[2].Endpoint, web) {
		t.Errorf("%v, %v", deltas, err)
	}
	if r.Index() != deltas[0].Index || !bytes.Equal(copyOf(t, r), old) {
		t.Error("the copy is not what was loaded")
	}
}

// TestAdopt: a copy that was made what the store is goes its own way from there, and so does the store.
func TestAdopt(t *testing.T) {
	w := smallWorld(t)
	blue := w.NetworkByName("blue")
	gone := w.endpoint(blue, "gone")
	old := replicaOf(t, w)
	w.must(&statev1.RemoveEndpoint{Id: gone.Id})
	web := w.must(&statev1.MoveEndpoint{Id: w.EndpointByName(blue.Id, "web").Id, Node: id(1)}).Endpoint
	deltas, err := old.Adopt(w.Store)
	if err != nil || len(deltas) != 2 || deltas[0].RemovedEndpoint != gone.Id || !proto.Equal(deltas[1].Endpoint, web) {
		t.Errorf("%v, %v", deltas, err)
	}
	r, fresh := NewReplica(), NewReplica()
	for _, x := range []*Replica{r, fresh} {
		if _, err := x.Adopt(w.Store); err != nil {
			t.Fatal(err)
		}
	}
	at := snapshotOf(t, w.PublicSnapshot())
	if !bytes.Equal(copyOf(t, r), at) || !maps.Equal(r.Digest(), w.Digest()) {
		t.Error("the copy is not what the store is")
	}
	from := len(w.batches)
	red := w.network("red", "10.43.0.0/24")
	w.endpoint(red, "db")
	w.endpoint(blue, "db")
	w.must(&statev1.MoveEndpoint{Id: web.Id, Node: id(2)})
	w.must(&statev1.UpdateNode{Id: id(2), Name: "renamed"})
	w.must(&statev1.AddNode{Node: testNode(9, worker)})
	w.must(&statev1.RemoveEndpoint{Id: web.Id})
	if !bytes.Equal(copyOf(t, r), at) {
		t.Error("the copy changed with the store")
	}
	moved := snapshotOf(t, w.PublicSnapshot())
	for _, b := range w.batches[from:] {
		if ok, err := r.Apply(b); !ok || err != nil {
			t.Fatalf("%v, %v", ok, err)
		}
	}
	if !bytes.Equal(copyOf(t, r), moved) || !maps.Equal(r.Digest(), w.Digest()) {
		t.Error("the copy does not follow the store")
	}
	if !bytes.Equal(copyOf(t, fresh), at) || !bytes.Equal(snapshotOf(t, w.PublicSnapshot()), moved) || fresh.EndpointByName(blue.Id, "web") == nil {
		t.Error("one copy changed with another")
	}
	if _, err := r.Adopt(NewStore()); err == nil || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("of another cluster: %v", err)
	}
}

func TestReplicaOfAnotherCluster(t *testing.T) {
	w := smallWorld(t)
	r := replicaOf(t, w)
	before := copyOf(t, r)
	other := NewStore()
	_, b, err := other.Apply(1, entry(1, 0, &statev1.Bootstrap{ClusterId: id(0xc2), Node: testNode(1, manager), Secrets: testSecrets()}))
	if err != nil {
		t.Fatal(err)
	}
	b.Previous, b.Index = r.Index(), r.Index()+1
	if ok, err := r.Apply(b); ok || err == nil || errors.Is(err, ErrGap) || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("%v, %v", ok, err)
	}
	for _, s := range []*Store{other, NewStore()} {
		if _, err := r.Load(bytes.NewReader(snapshotOf(t, s.PublicSnapshot()))); err == nil || !strings.Contains(err.Error(), "cluster") {
			t.Error(err)
		}
	}
	if !bytes.Equal(copyOf(t, r), before) {
		t.Error("something changed")
	}
}

// TestBadBatches have sound changes before one that is none. Nothing of them stays.
func TestBadBatches(t *testing.T) {
	w := smallWorld(t)
	r := replicaOf(t, w)
	before, digest := copyOf(t, r), r.Digest()
	at := w.Index() + 1
	blue := w.NetworkByName("blue")
	web := w.EndpointByName(blue.Id, "web")
	other := w.Endpoints("", "")
	stranger := other[0]
	if stranger.Id == web.Id {
		stranger = other[1]
	}

	delta := func() *statev1.Delta { return &statev1.Delta{Index: at} }
	node := func(change func(*statev1.Node)) *statev1.Delta {
		d := delta()
		d.Node = testNode(7, worker)
		d.Node.Index, d.Node.Joined = at, web.LeaseEnd
		change(d.Node)
		return d
	}
	network := func(change func(*statev1.Network)) *statev1.Delta {
		d := delta()
		d.Network = proto.CloneOf(blue)
		d.Network.Id, d.Network.Name, d.Network.Vni, d.Network.Subnets, d.Network.Gateways, d.Network.Index = id(70), "red", 70, []string{"10.70.0.0/24"}, nil, at
		change(d.Network)
		return d
	}
	endpoint := func(change func(*statev1.Endpoint)) *statev1.Delta {
		d := delta()
		d.Endpoint = proto.CloneOf(web)
		d.Endpoint.Index = at
		change(d.Endpoint)
		return d
	}
	none := func(*statev1.Node) {}
	// Every kind of change, in an order in which each of them has to be taken back in turn.
	sound := []*statev1.Delta{
		node(none),
		node(func(n *statev1.Node) { n.Name = "renamed" }),
		network(func(*statev1.Network) {}),
		network(func(n *statev1.Network) { n.Mtu = 1400; n.Name = "renamed" }),
		endpoint(func(e *statev1.Endpoint) { e.LeaseEnd = nil }),
		endpoint(func(e *statev1.Endpoint) { e.Node = id(7); e.Generation = 2 }),
		endpoint(func(e *statev1.Endpoint) {
			e.Id, e.Network, e.Node = id(71), id(70), id(7)
			e.Ips = []string{"10.70.0.7"}
		}),
		{Index: at, RemovedEndpoint: stranger.Id},
		{Index: at, RemovedEndpoint: web.Id},
		{Index: at, RemovedNetwork: blue.Id},
		{Index: at, RemovedNode: id(2)},
	}
	batch := func(deltas ...*statev1.Delta) *statev1.Batch {
		return &statev1.Batch{ClusterId: cluster, Previous: w.Index(), Index: at, Deltas: deltas}
	}
	for name, c := range map[string]struct {
		deltas   []*statev1.Delta
		diverged bool
	}{
		"nil":                     {[]*statev1.Delta{nil}, false},
		"nothing":                 {[]*statev1.Delta{delta()}, false},
		"two things":              {[]*statev1.Delta{{Index: at, RemovedNode: id(1), RemovedEndpoint: web.Id}}, false},
		"other index":             {[]*statev1.Delta{{Index: at + 1, RemovedEndpoint: web.Id}}, false},
		"malformed node":          {[]*statev1.Delta{node(func(n *statev1.Node) { n.Addresses = nil })}, false},
		"node of another index":   {[]*statev1.Delta{node(func(n *statev1.Node) { n.Index = 1 })}, false},
		"node name taken":         {[]*statev1.Delta{node(func(n *statev1.Node) { n.Name = "node-1" })}, true},
		"malformed network":       {[]*statev1.Delta{network(func(n *statev1.Network) { n.Vni = 1 << 24 })}, false},
		"network of other index":  {[]*statev1.Delta{network(func(n *statev1.Network) { n.Index = 1 })}, false},
		"subnet taken":            {[]*statev1.Delta{network(func(n *statev1.Network) { n.Id = id(72); n.Name = "x"; n.Subnets = []string{"10.42.0.0/16"} })}, true},
		"network reshaped":        {[]*statev1.Delta{network(func(n *statev1.Network) { n.Id = blue.Id; n.Name = "blue" })}, true},
		"malformed endpoint":      {[]*statev1.Delta{endpoint(func(e *statev1.Endpoint) { e.Mac = nil })}, false},
		"endpoint of other index": {[]*statev1.Delta{endpoint(func(e *statev1.Endpoint) { e.Index = 1 })}, false},
		"endpoint of no network":  {[]*statev1.Delta{endpoint(func(e *statev1.Endpoint) { e.Network = id(5) })}, true},
		"endpoint of no node":     {[]*statev1.Delta{endpoint(func(e *statev1.Endpoint) { e.Node = id(5) })}, true},
		"endpoint readdressed":    {[]*statev1.Delta{endpoint(func(e *statev1.Endpoint) { e.Ips[0] = "10.42.0.99" })}, true},
		"IP taken":                {[]*statev1.Delta{endpoint(func(e *statev1.Endpoint) { e.Id = id(72); e.Name = "x"; e.Mac = []byte{2, 9, 9, 9, 9, 9} })}, true},
		"malformed removal":       {[]*statev1.Delta{{Index: at, RemovedNode: "x"}}, false},
		"network not there":       {[]*statev1.Delta{{Index: at, RemovedNetwork: id(5)}}, true},
		"node not there":          {[]*statev1.Delta{{Index: at, RemovedNode: id(5)}}, true},
		"endpoint not there":      {[]*statev1.Delta{{Index: at, RemovedEndpoint: id(5)}}, true},
		"network in use":          {[]*statev1.Delta{{Index: at, RemovedNetwork: blue.Id}}, true},
		"node in use":             {[]*statev1.Delta{{Index: at, RemovedNode: id(2)}}, true},
	} {
		ok, err := r.Apply(batch(c.deltas...))
		if ok || err == nil || errors.Is(err, ErrDiverged) != c.diverged {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
		if !bytes.Equal(copyOf(t, r), before) {
			t.Fatalf("%s: something changed", name)
		}
	}
	for n := range sound {
		ok, err := r.Apply(batch(append(append([]*statev1.Delta{}, sound[:n+1]...), delta())...))
		if ok || err == nil || !strings.Contains(err.Error(), "upgrade") {
			t.Fatalf("%d sound deltas before a bad one: %v, %v", n+1, ok, err)
		}
		if !bytes.Equal(copyOf(t, r), before) {
			t.Fatalf("the first %d deltas left something", n+1)
		}
		for vni, d := range r.Digest() {
			if digest[vni] != d {
				t.Fatalf("the first %d deltas left something in the digest of %d", n+1, vni)
			}
		}
	}
	for name, b := range map[string]*statev1.Batch{
		"nil":        nil,
		"no cluster": {Previous: w.Index(), Index: at, Deltas: sound},
		"backwards":  {ClusterId: cluster, Previous: at, Index: at, Deltas: sound},
		"empty":      {ClusterId: cluster, Previous: w.Index(), Index: at},
	} {
		if ok, err := r.Apply(b); ok || err == nil || !bytes.Equal(copyOf(t, r), before) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	if ok, err := r.Apply(batch(sound...)); !ok || err != nil {
		t.Fatalf("the sound ones alone: %v, %v", ok, err)
	}
	if r.NetworkByName("red") != nil || r.NetworkByName("renamed") == nil || r.NodeByName("node-7") != nil || r.NodeByName("renamed") == nil {
		t.Error("what was renamed is found by the wrong names")
	}
	if err := func() error { _, err := NewReplica().Load(bytes.NewReader(copyOf(t, r))); return err }(); err != nil {
		t.Error(err)
	}
}
