package state

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// drawn draws a command that has a fair chance not to be refused in s: it picks from few names and addresses, so that
// commands meet.
func drawn(t *rapid.T, s *Store) proto.Message {
	nodeID := func() string {
		return id(rapid.IntRange(1, 9).Draw(t, "node"))
	}
	networkID := func() string {
		list := s.Networks()
		if len(list) == 0 {
			return id(99)
		}
		return rapid.SampledFrom(list).Draw(t, "network").Id
	}
	endpointID := func() string {
		list := s.Endpoints("", "")
		if len(list) == 0 {
			return id(99)
		}
		return rapid.SampledFrom(list).Draw(t, "endpoint").Id
	}
	role := rapid.SampledFrom([]statev1.Role{manager, worker, worker, 0})
	switch k := rapid.IntRange(0, 19).Draw(t, "kind"); k {
	case 0, 1:
		n := testNode(rapid.IntRange(1, 9).Draw(t, "node"), role.Draw(t, "role"))
		if rapid.IntRange(0, 3).Draw(t, "strange") == 0 {
			n.Addresses = []string{fmt.Sprintf("10.0.%d.200", rapid.IntRange(0, 5).Draw(t, "at"))}
		}
		return &statev1.AddNode{Node: n}
	case 2:
		u := &statev1.UpdateNode{Id: nodeID(), Role: role.Draw(t, "role"), Availability: statev1.Availability(rapid.IntRange(0, 3).Draw(t, "availability"))}
		if rapid.Bool().Draw(t, "readdress") {
			u.Addresses = []string{fmt.Sprintf("192.0.2.%d", rapid.IntRange(1, 12).Draw(t, "address"))}
		}
		if rapid.Bool().Draw(t, "rename") {
			u.Name = fmt.Sprintf("node-%d", rapid.IntRange(1, 12).Draw(t, "name"))
		}
		return u
	case 3:
		return &statev1.RemoveNode{Id: nodeID(), Force: rapid.Bool().Draw(t, "force")}
	case 4, 5, 6:
		n := &statev1.CreateNetwork{Name: fmt.Sprint("n", rapid.IntRange(0, 7).Draw(t, "name")), Vni: rapid.SampledFrom([]uint32{0, 0, 1, 2, 4096, 4097}).Draw(t, "vni")}
		n.Subnets = rapid.SampledFrom([][]string{
			nil, nil, {"10.0.0.0/30"}, {"10.0.1.0/24", "2001:db8:1::/64"}, {"10.0.1.128/29"}, {"2001:db8:1::/125"}, {"10.0.0.0/16"}, {"10.1.0.0/30", "2001:db8:2::/126"},
		}).Draw(t, "subnets")
		if len(n.Subnets) == 2 && rapid.Bool().Draw(t, "gateway") {
			n.Gateways = []string{netip.MustParsePrefix(n.Subnets[0]).Addr().Next().String(), ""}
		}
		return n
	case 7:
		return &statev1.RemoveNetwork{Id: networkID()}
	case 8, 9, 10, 11, 12:
		e := &statev1.AddEndpoint{Network: networkID(), Node: nodeID()}
		if rapid.Bool().Draw(t, "named") {
			e.Name = fmt.Sprint("e", rapid.IntRange(0, 7).Draw(t, "name"))
		}
		if rapid.IntRange(0, 3).Draw(t, "leased") != 0 {
			e.LeaseEnd = at(rapid.IntRange(-50, 50).Draw(t, "end"))
		}
		if n := s.Network(e.Network); n != nil && rapid.IntRange(0, 2).Draw(t, "given") == 0 {
			a := netip.MustParsePrefix(n.Subnets[len(n.Subnets)-1]).Addr()
			for range rapid.IntRange(0, 5).Draw(t, "ip") {
				a = a.Next()
			}
			e.Ips = []string{a.String()}
		}
		if rapid.IntRange(0, 3).Draw(t, "MAC given") == 0 {
			e.Mac = []byte{byte(rapid.IntRange(1, 2).Draw(t, "group")), 0, 0, 0, 0, byte(rapid.IntRange(1, 4).Draw(t, "mac"))}
		}
		return e
	case 13, 14:
		return &statev1.ConfirmEndpoint{Id: endpointID(), Node: nodeID()}
	case 15, 16:
		return &statev1.MoveEndpoint{Id: endpointID(), Node: nodeID(), Generation: uint64(rapid.IntRange(0, 3).Draw(t, "generation"))}
	case 17:
		return &statev1.RemoveEndpoint{Id: endpointID()}
	case 18:
		return &statev1.CollectLeases{}
	default:
		return &statev1.SetSecrets{Secrets: &statev1.Secrets{WorkerToken: bytes.Repeat([]byte{byte(rapid.IntRange(2, 5).Draw(t, "token"))}, 16)}}
	}
}

// drawnEntry draws a whole entry. Requests repeat, seeds too, and the clock jumps.
func drawnEntry(t *rapid.T, s *Store) []byte {
	c := withKind(drawn(t, s))
	c.Version, c.Time = 1, at(rapid.IntRange(-60, 60).Draw(t, "time"))
	c.Seed = bytes.Repeat([]byte{byte(rapid.IntRange(0, 3).Draw(t, "seed"))}, seedLen)
	if rapid.IntRange(0, 2).Draw(t, "has request") == 0 {
		c.RequestId = fmt.Sprint(rapid.IntRange(0, 20).Draw(t, "request"))
	}
	return wire(c)
}

func founding() []byte {
	return entry(1, 0, &statev1.Bootstrap{ClusterId: cluster, Node: testNode(1, manager), Secrets: testSecrets()})
}

// TestStoreProperties applies random logs and looks after every command at what always has to hold.
func TestStoreProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, twin, follower, late := NewStore(), NewStore(), NewReplica(), NewReplica()
		step := uint64(rapid.IntRange(1, 3).Draw(t, "step")) // Raft has entries of its own in between
		index := uint64(0)
		loadAt, restoreAt := rapid.IntRange(0, 40).Draw(t, "load at"), rapid.IntRange(0, 40).Draw(t, "restore at")
		for i := range rapid.IntRange(1, 60).Draw(t, "commands") {
			e := founding()
			if i > 0 {
				e = drawnEntry(t, s)
			}
			index += step
			before, beforeIndex := everything(t, s), s.Index()
			res, batch, err := s.Apply(index, e)
			if err != nil {
				t.Fatal(err)
			}
			if res.Error != nil && res.Index == index {
				if res.Error.Kind == 0 || res.Error.Message == "" {
					t.Fatalf("a refusal without a reason: %v", res)
				}
				if batch != nil || everything(t, s) != before || s.Index() != beforeIndex {
					t.Fatalf("the refusal %v left a trace", res)
				}
			}

			// Another store does the same, even if it is restored from a snapshot on the way.
			if i == restoreAt {
				snapshot := frozenBytes(t, twin.Snapshot())
				twin = NewStore()
				if err := twin.Restore(bytes.NewReader(snapshot)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(frozenBytes(t, twin.Snapshot()), snapshot) {
					t.Fatal("a snapshot restored is another one")
				}
			}
			twinRes, twinBatch, err := twin.Apply(index, e)
			if err != nil || !proto.Equal(twinRes, res) || !proto.Equal(twinBatch, batch) {
				t.Fatalf("two stores differ: %v, %v, %v\nand %v, %v", twinRes, twinBatch, err, res, batch)
			}
			if !bytes.Equal(frozenBytes(t, twin.Snapshot()), frozenBytes(t, s.Snapshot())) {
				t.Fatal("two stores with the same log have different snapshots")
			}

			// Copies follow by batches, from the start or from a snapshot.
			public := frozenBytes(t, s.PublicSnapshot())
			if batch != nil {
				if batch.Previous != beforeIndex || batch.Index != index || s.Index() != index {
					t.Fatalf("the batch %v is from %d", batch, beforeIndex)
				}
				follow(t, follower, batch)
			} else if s.Index() != beforeIndex {
				t.Fatal("the index moved without a batch")
			}
			if i == loadAt {
				if _, err := late.Load(bytes.NewReader(public)); err != nil {
					t.Fatal(err)
				}
			} else if i > loadAt && batch != nil {
				follow(t, late, batch)
			}
			for _, r := range []*Replica{follower, late} {
				if r == late && i < loadAt {
					continue
				}
				var b bytes.Buffer
				if _, err := r.WriteTo(&b); err != nil || !bytes.Equal(b.Bytes(), public) || !maps.Equal(r.Digest(), s.Digest()) {
					t.Fatalf("the copy differs from the public view (%v)", err)
				}
			}
			invariants(t, s)
		}
		if digest := digestAnew(s); !maps.Equal(s.Digest(), digest) {
			t.Fatalf("the digests are %v, and made anew %v", s.Digest(), digest)
		}
	})
}

func frozenBytes(t *rapid.T, f *Frozen) []byte {
	var b bytes.Buffer
	if _, err := f.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// everything is the public view with the cursors, pools and secrets.
func everything(t *rapid.T, s *Store) string {
	cursors, pools := s.c.alloc.cursors()
	b, _ := appendPart(nil, &statev1.Snapshot{Part: &statev1.Snapshot_Cursors{Cursors: cursors}})
	for _, p := range pools {
		b, _ = appendPart(b, &statev1.Snapshot{Part: &statev1.Snapshot_Pool{Pool: p}})
	}
	return string(frozenBytes(t, s.PublicSnapshot())) + string(b) + string(wire(s.Secrets()))
}

// follow applies a batch as it came over a wire, and again.
func follow(t *rapid.T, r *Replica, b *statev1.Batch) {
	received := new(statev1.Batch)
	if err := proto.Unmarshal(wire(b), received); err != nil {
		t.Fatal(err)
	}
	if ok, err := r.Apply(received); !ok || err != nil {
		t.Fatalf("the batch %v was not applied: %v", b, err)
	}
	if ok, err := r.Apply(received); ok || err != nil {
		t.Fatalf("a batch that is known = %v, %v", ok, err)
	}
}

// digestAnew adds up the digests of all records.
func digestAnew(s *Store) map[uint32]uint64 {
	out := map[uint32]uint64{}
	s.c.nodes.Ascend(func(n *node) bool { out[0] += n.digest(); return true })
	s.c.networks.Ascend(func(n *network) bool { out[n.msg.Vni] += n.digest(); return true })
	s.c.byID.Ascend(func(e *endpoint) bool { out[s.c.segments[e.network].net.msg.Vni] += e.digest(); return true })
	return out
}

// invariants looks at the state as a reader sees it.
func invariants(t *rapid.T, s *Store) {
	seen := map[string]bool{}
	once := func(what ...any) {
		key := fmt.Sprint(what...)
		if seen[key] {
			t.Fatalf("twice: %s", key)
		}
		seen[key] = true
	}
	managers := 0
	var addrs []netip.Addr
	for _, n := range s.Nodes() {
		once("node ", n.Name)
		once("key ", n.PublicKey)
		for _, a := range n.Addresses {
			once("node address ", a)
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		if n.Role == manager {
			managers++
		}
		if n.Index > s.Index() || !proto.Equal(n, s.NodeByName(n.Name)) {
			t.Fatalf("%v", n)
		}
	}
	if managers < 1 || managers > MaxManagers {
		t.Fatalf("%d managers", managers)
	}
	var subnets []netip.Prefix
	for _, n := range s.Networks() {
		once("network ", n.Name)
		once("VNI ", n.Vni)
		for _, text := range n.Subnets {
			p := netip.MustParsePrefix(text)
			for _, q := range subnets {
				if p.Overlaps(q) {
					t.Fatalf("%v overlaps %v", p, q)
				}
			}
			for _, a := range addrs {
				if p.Contains(a) {
					t.Fatalf("%v holds the node address %v", p, a)
				}
			}
			subnets = append(subnets, p)
		}
		if !proto.Equal(n, s.NetworkByName(n.Name)) {
			t.Fatalf("%v", n)
		}
		pools := s.c.alloc.pools[s.c.netNames[n.Name].id]
		for _, p := range pools {
			if p.taken == nil {
				continue
			}
			for _, e := range s.Endpoints(n.Id, "") {
				for _, ip := range e.Ips {
					if a := netip.MustParseAddr(ip); p.subnet.prefix.Contains(a) && !p.taken.has(p.offset(a)) {
						t.Fatalf("%v is not known to be taken", a)
					}
				}
			}
		}
	}
	for _, e := range s.Endpoints("", "") {
		once("endpoint name ", e.Network, e.Name)
		if e.Name == "" {
			delete(seen, fmt.Sprint("endpoint name ", e.Network, e.Name))
		} else if !proto.Equal(e, s.EndpointByName(e.Network, e.Name)) {
			t.Fatalf("%v", e)
		}
		once("MAC ", e.Network, " ", e.Mac)
		n := s.Network(e.Network)
		if n == nil || s.Node(e.Node) == nil || len(e.Ips) != len(n.Subnets) || e.Index > s.Index() || e.Generation == 0 {
			t.Fatalf("%v on %v", e, n)
		}
		for _, ip := range e.Ips {
			once("IP ", ip) // subnets do not overlap, so in the whole cluster
			for i, g := range n.Gateways {
				p := netip.MustParsePrefix(n.Subnets[i])
				if a := netip.MustParseAddr(ip); ip == g || a == p.Addr() || a.Is4() && p.Addr().Is4() && a == lastOf(p) {
					t.Fatalf("%v is reserved in %v", ip, n)
				}
			}
		}
	}
	count := func(has func(*endpoint) bool) (n int) {
		s.c.byID.Ascend(func(e *endpoint) bool {
			if has(e) {
				n++
			}
			return true
		})
		return n
	}
	for i, c := range [][2]int{
		{s.c.byNode.Len(), s.c.byID.Len()}, {s.c.byNetwork.Len(), s.c.byID.Len()}, {s.c.byMAC.used, s.c.byID.Len()},
		{s.c.byLease.Len(), count(func(e *endpoint) bool { return e.leased })}, {s.c.byIP4.used, count(func(e *endpoint) bool { return e.ip4 != 0 })},
		{s.c.byIP6.used, count(func(e *endpoint) bool { return e.ip6 != [16]byte{} })}, {s.c.byName.used, count(func(e *endpoint) bool { return e.name != "" })},
	} {
		if c[0] != c[1] {
			t.Fatalf("index %d has %d endpoints, and there are %d", i, c[0], c[1])
		}
	}
}

// TestLoadDeltas: the deltas that Load returns lead from any content to any other, and removals come first.
func TestLoadDeltas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Two lines of history that part after a while, as after a recovery.
		s, other := NewStore(), NewStore()
		parting := rapid.IntRange(1, 25).Draw(t, "parting")
		for i := range rapid.IntRange(1, 50).Draw(t, "commands") {
			e := founding()
			if i > 0 {
				e = drawnEntry(t, s)
			}
			if _, _, err := s.Apply(uint64(i+1), e); err != nil {
				t.Fatal(err)
			}
			if i > parting {
				e = drawnEntry(t, other)
			}
			if _, _, err := other.Apply(uint64(i+1), e); err != nil {
				t.Fatal(err)
			}
		}
		r := NewReplica()
		model := map[string]proto.Message{}
		for _, from := range []*Store{s, other, s} {
			deltas, err := r.Load(bytes.NewReader(frozenBytes(t, from.PublicSnapshot())))
			if err != nil {
				t.Fatal(err)
			}
			put := false
			for _, d := range deltas {
				if d.Index != from.Index() {
					t.Fatalf("the index of %v is not %d", d, from.Index())
				}
				removed := d.RemovedNetwork + d.RemovedNode + d.RemovedEndpoint
				switch {
				case removed != "":
					if put || model[removed] == nil {
						t.Fatalf("removal of %s behind an addition, or of nothing", removed)
					}
					delete(model, removed)
					continue
				case d.Network != nil:
					model[d.Network.Id] = d.Network
				case d.Node != nil:
					model[d.Node.Id] = d.Node
				default:
					model[d.Endpoint.Id] = d.Endpoint
				}
				put = true
			}
			count := 0
			check := func(id string, m proto.Message) {
				count++
				if model[id] == nil || !proto.Equal(model[id], m) {
					t.Fatalf("the deltas lead to %v, not to %v", model[id], m)
				}
			}
			for _, n := range from.Networks() {
				check(n.Id, n)
			}
			for _, n := range from.Nodes() {
				check(n.Id, n)
			}
			for _, e := range from.Endpoints("", "") {
				check(e.Id, e)
			}
			if count != len(model) {
				t.Fatalf("the deltas leave %d things too many", len(model)-count)
			}
			if !maps.Equal(r.Digest(), from.Digest()) {
				t.Fatal("the digests differ")
			}
		}
		if deltas, err := r.Load(bytes.NewReader(frozenBytes(t, s.PublicSnapshot()))); err != nil || len(deltas) > 0 {
			t.Fatalf("the same content again gives %v, %v", deltas, err)
		}
	})
}
