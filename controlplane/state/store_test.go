package state

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

func TestBootstrap(t *testing.T) {
	w := newWorld(t)
	if w.ClusterID() != cluster || w.Index() != 2 || len(w.Nodes()) != 2 {
		t.Fatalf("cluster %q at %d with %v", w.ClusterID(), w.Index(), w.Nodes())
	}
	n := w.Node(id(1))
	if n.Index != 1 || !proto.Equal(n.Joined, at(0)) || n.Role != manager {
		t.Errorf("first node: %v", n)
	}
	b := w.batches[0]
	if b.ClusterId != cluster || b.Previous != 0 || b.Index != 1 || len(b.Deltas) != 1 || !proto.Equal(b.Deltas[0].Node, n) {
		t.Errorf("first batch: %v", b)
	}
	want := testSecrets()
	want.Index = 1
	if !proto.Equal(w.Secrets(), want) {
		t.Error("the secrets are others")
	}
}

func TestReadersGetCopies(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.42.0.0/24")
	web := w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(2), Name: "web", LeaseEnd: at(9)}).Endpoint
	before := snapshotOf(t, w.Snapshot())
	for _, m := range []proto.Message{
		w.Network(blue.Id), w.NetworkByName("blue"), w.Networks()[0], w.Node(id(1)), w.NodeByName("node-1"), w.Nodes()[0],
		w.Endpoint(web.Id), w.EndpointByName(blue.Id, "web"), w.Endpoints("", "")[0], w.Leases()[0], w.Secrets(),
	} {
		if m.ProtoReflect().IsValid() {
			proto.Reset(m)
		} else {
			t.Errorf("%T is missing", m)
		}
	}
	w.Secrets().CaKey[0]++
	w.Node(id(1)).Addresses[0] = "x"
	w.Endpoint(web.Id).Mac[0]++
	if !bytes.Equal(snapshotOf(t, w.Snapshot()), before) {
		t.Error("the state changed through what was read")
	}
	for _, missing := range []bool{
		w.Network("x") == nil, w.Network(id(5)) == nil, w.NetworkByName("red") == nil, w.Node("") == nil, w.Node(id(5)) == nil, w.NodeByName("x") == nil,
		w.Endpoint("x") == nil, w.Endpoint(id(5)) == nil, w.EndpointByName(blue.Id, "") == nil, w.EndpointByName("x", "web") == nil, w.EndpointByName(blue.Id, "db") == nil,
		w.Endpoints("x", "") == nil, w.Endpoints("", "x") == nil, w.Endpoints(id(5), "") == nil,
	} {
		if !missing {
			t.Error("what is not there was found")
		}
	}
}

func TestEndpointListings(t *testing.T) {
	w := newWorld(t)
	blue, red := w.network("blue", "10.42.0.0/24"), w.network("red", "10.43.0.0/24")
	for i := range 60 {
		network := blue
		if i%3 == 0 {
			network = red
		}
		w.must(&statev1.AddEndpoint{Network: network.Id, Node: id(1 + i%2)})
	}
	for _, c := range []struct {
		network, node string
		want          int
	}{{"", "", 60}, {blue.Id, "", 40}, {red.Id, "", 20}, {"", id(1), 30}, {"", id(2), 30}, {red.Id, id(1), 10}, {blue.Id, id(2), 20}} {
		list := w.Endpoints(c.network, c.node)
		if len(list) != c.want {
			t.Errorf("%q %q: %d endpoints, want %d", c.network, c.node, len(list), c.want)
		}
		for i, e := range list {
			if c.network != "" && e.Network != c.network || c.node != "" && e.Node != c.node || i > 0 && list[i-1].Id >= e.Id {
				t.Errorf("%q %q: %v at %d", c.network, c.node, e, i)
			}
		}
	}
}

// TestNothingChanges applies what is so already: no batch, no new index.
func TestNothingChanges(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.42.0.0/24")
	web := w.endpoint(blue, "web")
	index, batches := w.Index(), len(w.batches)
	for _, c := range []proto.Message{
		&statev1.AddNode{Node: testNode(2, worker)},
		&statev1.UpdateNode{Id: id(2)},
		&statev1.UpdateNode{Id: id(2), Role: worker, Name: "node-2", Availability: statev1.Availability_AVAILABILITY_ACTIVE},
		&statev1.ConfirmEndpoint{Id: web.Id, Node: id(2)},
		&statev1.MoveEndpoint{Id: web.Id, Node: id(2)},
		&statev1.RemoveEndpoint{Id: id(5)},
		&statev1.CollectLeases{},
		&statev1.SetSecrets{Secrets: &statev1.Secrets{ManagerToken: bytes.Repeat([]byte{9}, 20)}},
	} {
		w.must(c)
		if w.Index() != index || len(w.batches) != batches {
			t.Fatalf("%T changed something", c)
		}
	}
}

func TestNodeComesAgain(t *testing.T) {
	w := newWorld(t)
	w.must(&statev1.UpdateNode{Id: id(2), Availability: statev1.Availability_AVAILABILITY_DRAIN})
	w.seconds = 50
	n := testNode(2, worker)
	n.Availability = 0
	n.Addresses = []string{"198.51.100.2", "192.0.2.2"}
	got := w.must(&statev1.AddNode{Node: n}).Node
	if got.Availability != statev1.Availability_AVAILABILITY_DRAIN || !proto.Equal(got.Joined, at(0)) || got.Addresses[0] != "198.51.100.2" || got.Index != w.at {
		t.Errorf("%v", got)
	}
	// The address that it gave up is free for others.
	other := testNode(4, worker)
	other.Addresses = []string{"2001:db8::2"}
	w.must(&statev1.AddNode{Node: other})
}

func TestAddressesAreCanonical(t *testing.T) {
	w := newWorld(t)
	n := testNode(4, worker)
	n.Addresses = []string{"2001:DB8:0:0::F"}
	if got := w.must(&statev1.AddNode{Node: n}).Node; got.Addresses[0] != "2001:db8::f" {
		t.Error(got.Addresses)
	}
	net := w.must(&statev1.CreateNetwork{Name: "blue", Subnets: []string{"2001:DB8:42:0::/64", "10.42.0.0/24"}, Gateways: []string{"", "10.42.0.1"}}).Network
	if fmt.Sprint(net.Subnets, net.Gateways) != "[2001:db8:42::/64 10.42.0.0/24] [ 10.42.0.1]" {
		t.Error(net)
	}
	e := w.must(&statev1.AddEndpoint{Network: net.Id, Node: id(2), Ips: []string{"2001:DB8:42::0:7", "10.42.0.9"}}).Endpoint
	if fmt.Sprint(e.Ips) != "[10.42.0.9 2001:db8:42::7]" {
		t.Error(e.Ips)
	}
}

func TestMove(t *testing.T) {
	w := newWorld(t)
	web := w.endpoint(w.network("blue", "10.42.0.0/24"), "web")
	moved := w.must(&statev1.MoveEndpoint{Id: web.Id, Node: id(1), Generation: 1}).Endpoint
	if moved.Node != id(1) || moved.Generation != 2 || moved.Index != w.at || moved.Ips[0] != web.Ips[0] || !bytes.Equal(moved.Mac, web.Mac) {
		t.Errorf("%v", moved)
	}
	if len(w.Endpoints("", id(2))) != 0 || len(w.Endpoints("", id(1))) != 1 {
		t.Error("the listings of nodes are not those after the move")
	}
	if d := w.batches[len(w.batches)-1].Deltas; len(d) != 1 || !proto.Equal(d[0].Endpoint, moved) {
		t.Errorf("the batch has %v", d)
	}
}

func TestForcedRemovalTakesEndpoints(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.42.0.0/24")
	for range 3 {
		w.endpoint(blue, "")
	}
	w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(1)})
	w.must(&statev1.RemoveNode{Id: id(2), Force: true})
	if len(w.Endpoints("", "")) != 1 || w.Node(id(2)) != nil {
		t.Error(w.Endpoints("", ""), w.Nodes())
	}
	d := w.batches[len(w.batches)-1].Deltas
	if len(d) != 4 || d[0].RemovedEndpoint == "" || d[3].RemovedNode != id(2) {
		t.Errorf("the batch has %v", d)
	}
	// Its name, key and addresses are free.
	again := testNode(5, worker)
	again.Name, again.PublicKey, again.Addresses = "node-2", []byte("key-2"), []string{"192.0.2.2"}
	w.must(&statev1.AddNode{Node: again})
}

// TestLeases walks through the life of leases, with a clock that also goes back.
func TestLeases(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.42.0.0/24")
	lease := func(name string, end int) *statev1.Endpoint {
		return w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(2), Name: name, LeaseEnd: at(end)}).Endpoint
	}
	collect := func(seconds int, want uint32) {
		t.Helper()
		w.seconds = seconds
		if got := w.must(&statev1.CollectLeases{}).Collected; got != want {
			t.Errorf("%d collected at %d, want %d", got, seconds, want)
		}
	}
	late, early, kept := lease("late", 60), lease("early", 30), lease("kept", 30)
	w.endpoint(blue, "fixed")
	if l := w.Leases(); len(l) != 3 || l[2].Id != late.Id {
		t.Errorf("leases: %v", l)
	}
	if e := w.must(&statev1.ConfirmEndpoint{Id: kept.Id, Node: id(2)}).Endpoint; e.LeaseEnd != nil || e.Index != w.at {
		t.Errorf("confirmed: %v", e)
	}
	collect(30, 0) // it ends then, and did not end before
	collect(31, 1)
	if w.Endpoint(early.Id) != nil || w.Endpoint(late.Id) == nil {
		t.Error("another one was collected than the one that was due")
	}
	if d := w.batches[len(w.batches)-1].Deltas; len(d) != 1 || d[0].RemovedEndpoint != early.Id {
		t.Errorf("the batch has %v", d)
	}
	collect(-1000, 0) // a leader whose clock is behind
	if w.Endpoint(early.Id) != nil {
		t.Error("what was collected is back")
	}
	if res := w.do(&statev1.ConfirmEndpoint{Id: early.Id, Node: id(2)}); res.Error.GetKind() != kNotFound {
		t.Errorf("what was collected is confirmed: %v", res)
	}
	early = lease("early", -990) // by that clock it is in the future
	collect(61, 2)
	if w.Endpoint(early.Id) != nil || w.Endpoint(kept.Id) == nil || len(w.Endpoints("", "")) != 2 {
		t.Errorf("left: %v", w.Endpoints("", ""))
	}
	w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(2), Name: "late", Ips: late.Ips, Mac: late.Mac}) // all of it is free again
}

// TestLeasesWithinASecond are told apart.
func TestLeasesWithinASecond(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.42.0.0/24")
	for i := range 20 {
		end := at(1)
		end.Nanos = int32(20-i) * 10_000_000
		w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(2), LeaseEnd: end})
	}
	c := withKind(&statev1.CollectLeases{})
	c.Version, c.Time, c.Seed = 1, at(1), make([]byte, seedLen)
	c.Time.Nanos = 100_000_000
	if got := w.apply(wire(c)).Collected; got != 9 {
		t.Errorf("%d collected, want 9", got)
	}
	if l := w.Leases(); len(l) != 11 || l[0].LeaseEnd.Nanos != 100_000_000 || l[10].LeaseEnd.Nanos != 200_000_000 {
		t.Errorf("left: %v", l)
	}
}

func TestCollectIsBounded(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.0.0.0/16")
	for i := range MaxCollected + 10 {
		w.must(&statev1.AddEndpoint{Network: blue.Id, Node: id(2), LeaseEnd: at(1 + i%7)})
	}
	w.seconds = 100
	for _, want := range []uint32{MaxCollected, 10, 0} {
		if got := w.must(&statev1.CollectLeases{}).Collected; got != want {
			t.Errorf("%d collected, want %d", got, want)
		}
	}
}

// TestRequestsAreAppliedOnce repeats requests, those that were refused too.
func TestRequestsAreAppliedOnce(t *testing.T) {
	w := newWorld(t)
	blue := w.network("blue", "10.42.0.0/24")
	request := func(rid string, kind proto.Message) *statev1.Result {
		c := withKind(kind)
		c.Version, c.Time, c.Seed, c.RequestId = 1, at(0), bytes.Repeat([]byte{byte(w.at)}, 16), rid
		return w.apply(wire(c))
	}
	add := &statev1.AddEndpoint{Network: blue.Id, Node: id(2)}
	first := request("r", add)
	batches := len(w.batches)
	refused := request("s", &statev1.RemoveNetwork{Id: blue.Id})
	if refused.Error.GetKind() != kInUse {
		t.Fatal(refused)
	}
	w.must(&statev1.RemoveEndpoint{Id: first.Endpoint.Id})
	again := request("r", add)
	if !proto.Equal(again, first) || len(w.Endpoints("", "")) != 0 || len(w.batches) != batches+1 {
		t.Errorf("repeated: %v, want %v", again, first)
	}
	want := proto.CloneOf(first)
	first.Endpoint.Name, again.Endpoint.Name = "x", "x" // the caller's own
	if first = request("r", add); !proto.Equal(first, want) {
		t.Errorf("changed from outside: %v, want %v", first, want)
	}
	if again := request("s", &statev1.RemoveNetwork{Id: blue.Id}); !proto.Equal(again, refused) {
		t.Errorf("repeated: %v, want %v", again, refused)
	}

	// The memory survives a snapshot, and then forgets the oldest first.
	restored := &world{t: t, Store: NewStore(), at: w.at}
	if err := restored.Restore(bytes.NewReader(snapshotOf(t, w.Snapshot()))); err != nil {
		t.Fatal(err)
	}
	w = restored
	if again := request("r", add); !proto.Equal(again, first) {
		t.Errorf("repeated after a snapshot: %v, want %v", again, first)
	}
	for i := range maxRequests - 2 {
		request(fmt.Sprint("fill ", i), &statev1.CollectLeases{})
	}
	if again := request("r", add); !proto.Equal(again, first) {
		t.Errorf("forgotten too early: %v", again)
	}
	request("one more", &statev1.CollectLeases{})
	if again := request("s", &statev1.RemoveNetwork{Id: blue.Id}); !proto.Equal(again, refused) {
		t.Errorf("not the oldest was forgotten: %v", again)
	}
	if again := request("r", add); proto.Equal(again, first) || again.Error != nil {
		t.Errorf("not forgotten: %v", again)
	}
	if n := len(w.requests.byID); n != maxRequests {
		t.Errorf("%d requests are remembered", n)
	}
	full := snapshotOf(t, w.Snapshot())
	if err := restored.Restore(bytes.NewReader(full)); err != nil || !bytes.Equal(snapshotOf(t, restored.Snapshot()), full) {
		t.Errorf("a snapshot with all of them, restored, is another one (%v)", err)
	}
	parts := partsOf(t, full)
	if oldest := parts[len(parts)-1-maxRequests].GetRequest(); oldest.GetRequestId() != "fill 0" {
		t.Errorf("the oldest request in the snapshot is %v", oldest)
	}
}

// TestSeedsRepeat: a proposer whose randomness is broken still makes no ID, MAC or IPv6 address twice.
func TestSeedsRepeat(t *testing.T) {
	w := newWorld(t)
	net := w.network("blue", "2001:db8:42::/64")
	seen := map[string]bool{}
	for range 20 {
		c := withKind(&statev1.AddEndpoint{Network: net.Id, Node: id(2)})
		c.Version, c.Time, c.Seed = 1, at(0), make([]byte, seedLen)
		e := w.apply(wire(c)).Endpoint
		for _, s := range []string{e.Id, string(e.Mac), e.Ips[0]} {
			if seen[s] {
				t.Errorf("%q comes twice", s)
			}
			seen[s] = true
		}
		w.must(&statev1.RemoveEndpoint{Id: e.Id})
	}
}

func TestSetSecrets(t *testing.T) {
	w := newWorld(t)
	token, keys := bytes.Repeat([]byte{7}, 32), [][]byte{bytes.Repeat([]byte{8}, 32), bytes.Repeat([]byte{3}, 32)}
	w.must(&statev1.SetSecrets{Secrets: &statev1.Secrets{WorkerToken: token}})
	w.must(&statev1.SetSecrets{Secrets: &statev1.Secrets{GossipKeys: keys}})
	want := testSecrets()
	want.WorkerToken, want.GossipKeys, want.Index = token, keys, w.at
	if !proto.Equal(w.Secrets(), want) {
		t.Error("not what was set and what was there before")
	}
}

// TestSince follows the ring past its bound of batches.
func TestSince(t *testing.T) {
	w := newWorld(t)
	check := func(index uint64, want int, ok bool) {
		t.Helper()
		got, is := w.Since(index)
		if is != ok || len(got) != want {
			t.Fatalf("Since(%d) at %d = %d batches, %v, want %d, %v", index, w.Index(), len(got), is, want, ok)
		}
		for _, b := range got {
			if b.Previous != index {
				t.Fatalf("Since(%d) is no chain", index)
			}
			index = b.Index
		}
		if ok && index != w.Index() {
			t.Fatalf("Since leads to %d, not %d", index, w.Index())
		}
	}
	check(0, 2, true)
	blue := w.network("blue", "10.0.0.0/8") // at 3
	check(2, 1, true)
	check(3, 0, true)
	check(4, 0, false) // the future
	w.must(&statev1.CollectLeases{})
	w.endpoint(blue, "")
	check(3, 1, true)
	check(4, 0, false) // nothing changed there
	for range maxBatches - 1 {
		w.endpoint(blue, "")
	}
	check(3, maxBatches, true)
	check(2, 0, false)

	if err := w.Restore(bytes.NewReader(snapshotOf(t, w.Snapshot()))); err != nil {
		t.Fatal(err)
	}
	check(w.Index(), 0, true)
	check(w.Index()-1, 0, false)
}

// TestRingIsBoundedByDeltas: a batch of many deltas drives out as many as it takes, be it all.
func TestRingIsBoundedByDeltas(t *testing.T) {
	var r ring
	index := uint64(0)
	add := func(deltas int) {
		r.add(&statev1.Batch{Previous: index, Index: index + 10, Deltas: make([]*statev1.Delta, deltas)})
		index += 10
	}
	for range 100 {
		add(maxDeltas / 100)
	}
	for _, c := range []struct{ deltas, left int }{{maxDeltas / 10, 91}, {maxDeltas * 2, 1}, {1, 1}, {1, 2}} {
		add(c.deltas)
		if r.count != c.left {
			t.Errorf("%d batches are left behind one of %d deltas, want %d", r.count, c.deltas, c.left)
		}
		if got, ok := r.since(index - 10); !ok || len(got) != 1 {
			t.Error("the newest batch is missing")
		}
		if got, ok := r.since(r.at(0).Previous); !ok || len(got) != c.left {
			t.Errorf("%d batches, want %d", len(got), c.left)
		}
		if _, ok := r.since(index - 5); ok {
			t.Error("there is something since an index at which nothing changed")
		}
	}
}
