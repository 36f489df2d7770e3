//go:build !race

// Under the race detector testing/synctest crashes before Go 1.27. The other tests of this package run the same code there.

package controlplane

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/state"
)

const (
	simCluster  = "00000000c1057e12"
	simManagers = 3
	// simLatency is that of a path, one way, and as much again at random.
	simLatency = 500 * time.Microsecond
	// simDead is how long a question takes to fail that nothing answers: what pings on the connection take to find out.
	simDead = pingAfter + pingTimeout
)

// simulation is a cluster in virtual time. Each node has the gossip, the copy of the state and the loop that asks managers
// as the product has them. Not there are Raft, of which all managers that are not cut off have the results at once, TLS
// and disks.
type simulation struct {
	t         *testing.T
	net       *gossiptest.Network
	nodes     []*simNode
	endpoints []*statev1.Endpoint
	index     uint64 // of the last command
	entries   [][]byte
	arrived   *arrivals
	deaths    atomic.Int64
	results   simResults

	mu     sync.Mutex
	cut    map[netip.Addr]bool // the half without a majority of managers
	random *rand.Rand
}

// simNode is one of them.
type simNode struct {
	*member
	addr    netip.Addr
	applied int          // commands that this manager's store has
	control http.Handler // of a manager: its control port
	tr      *gossiptest.Transport
	asked   simAsked
	stop    func()
}

// TestSimulation runs a cluster of 30 nodes and 1,000 endpoints in virtual time, or of 1,000 and 100,000 if OVERLAYD_SOAK is
// set, and reports what its spread costs and how fast it is. With OVERLAYD_SIMULATION set to a folder, a table and a plot
// are written to it.
func TestSimulation(t *testing.T) {
	nodes, endpoints := 30, 1000
	if os.Getenv("OVERLAYD_SOAK") != "" {
		nodes, endpoints = 1000, 100_000
	}
	s := &simulation{results: simResults{nodes: nodes, endpoints: endpoints}}
	synctest.Test(t, func(t *testing.T) {
		// What memberlist has under way when it is closed ends by itself, within 4 s.
		t.Cleanup(func() { time.Sleep(5 * time.Second) })
		s.t, s.net, s.random = t, gossiptest.NewNetwork(1), rand.New(rand.NewPCG(2, 0))
		s.found(nodes, endpoints)
		s.run()
	})
	if dir := os.Getenv("OVERLAYD_SIMULATION"); dir != "" && !t.Failed() {
		if err := s.results.save(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func simAddr(i int) netip.Addr {
	a := netip.MustParseAddr("2001:db8::").As16()
	a[14], a[15] = byte((i+1)>>8), byte(i+1)
	return netip.AddrFrom16(a)
}

// found makes the state of the cluster, and the nodes, which do not gossip yet.
func (s *simulation) found(nodes, endpoints int) {
	s.t.Helper()
	authority, err := identity.NewAuthority(simCluster, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	records := make([]*statev1.Node, nodes)
	for i := range nodes {
		n := &simNode{addr: simAddr(i)}
		role := worker
		if i < simManagers {
			role = boss
		}
		records[i] = &statev1.Node{
			Id: fmt.Sprintf("%016x", i+1), Name: fmt.Sprintf("node-%d", i), Role: role, Addresses: []string{n.addr.String()},
			ControlPort: DefaultControlPort, GossipPort: DefaultGossipPort, VxlanPort: 4789,
		}
		creds := s.credentials(authority, records[i])
		records[i].PublicKey = creds.PublicKey()
		node := &Node{log: discard(), replica: state.NewReplica()}
		node.hub = newHub(func() (uint64, []*statev1.Delta) { return node.replica.Index(), nil })
		n.member = newMember(node, &local{
			ClusterID: simCluster, NodeID: records[i].Id, Name: records[i].Name, Addresses: []netip.Addr{n.addr},
			ControlPort: DefaultControlPort, GossipPort: DefaultGossipPort,
		}, creds)
		node.member.Store(n.member)
		if i < simManagers {
			seat := &seat{member: n.member, store: state.NewStore(), nodes: make(chan struct{}, 1)}
			n.seat.Store(seat)
			n.control = n.handler()
		}
		s.nodes = append(s.nodes, n)
	}
	s.fill(authority, records, endpoints)
	for _, n := range s.nodes {
		if _, err := n.node.replica.Adopt(s.nodes[0].seat.Load().store); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *simulation) credentials(a *identity.Authority, n *statev1.Node) *identity.Credentials {
	key, err := identity.NewKey()
	if err != nil {
		s.t.Fatal(err)
	}
	csr, err := key.CSR()
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := a.Issue(csr, n.Id, n.Role, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	creds, err := identity.NewCredentials(key, cert, a.CertificateDER())
	if err != nil {
		s.t.Fatal(err)
	}
	return creds
}

// fill has the managers agree on the nodes and the endpoints, of which each node has as many. They have no names: another
// index in a thousand copies would take 2 GB.
func (s *simulation) fill(a *identity.Authority, nodes []*statev1.Node, endpoints int) {
	s.command(&statev1.Command{Kind: &statev1.Command_Bootstrap{Bootstrap: &statev1.Bootstrap{
		ClusterId: simCluster, Node: nodes[0], Secrets: &statev1.Secrets{
			CaCertificate: a.CertificateDER(), CaKey: a.KeyDER(),
			WorkerToken: make([]byte, 16), ManagerToken: append(make([]byte, 15), 1), GossipKeys: [][]byte{simKey()},
		},
	}}})
	for _, n := range nodes[1:] {
		s.command(&statev1.Command{Kind: &statev1.Command_AddNode{AddNode: &statev1.AddNode{Node: n}}})
	}
	var networks []*statev1.Network
	for i := range 8 {
		networks = append(networks, s.command(&statev1.Command{Kind: &statev1.Command_CreateNetwork{CreateNetwork: &statev1.CreateNetwork{
			Name: fmt.Sprintf("net%d", i), Subnets: []string{fmt.Sprintf("10.%d.0.0/16", i)},
		}}}).Network)
	}
	for i := range endpoints {
		s.endpoints = append(s.endpoints, s.command(endpoint(networks[i%8].Id, nodes[i%len(nodes)].Id, "")).Endpoint)
	}
	s.entries = nil // all managers have them
	for _, n := range s.nodes[:simManagers] {
		n.applied = 0
	}
}

func simKey() []byte { return slices.Repeat([]byte{7}, 32) }

// command has the managers that can be reached apply a command. What it changed is theirs to spread.
func (s *simulation) command(c *statev1.Command) *statev1.Result {
	s.t.Helper()
	c.Seed = make([]byte, 16)
	for i := range c.Seed {
		c.Seed[i] = byte(s.random.Uint32())
	}
	if err := complete(c); err != nil {
		s.t.Fatal(err)
	}
	entry, err := proto.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.index++
	s.entries = append(s.entries, entry)
	result := s.agree()
	if result.Error != nil {
		s.t.Fatal(result.Error)
	}
	return result
}

// agree has the managers that can be reached apply what they have not yet, and returns the last result of the leader.
func (s *simulation) agree() (last *statev1.Result) {
	s.t.Helper()
	for i, n := range s.nodes[:simManagers] {
		if s.isCut(n.addr) {
			continue
		}
		for _, entry := range s.entries[n.applied:] {
			seat := n.seat.Load()
			n.applied++
			result, b, err := seat.store.Apply(s.index-uint64(len(s.entries)-n.applied), entry)
			if err != nil {
				s.t.Fatal(err)
			}
			if i == 0 {
				last = result
			}
			if b != nil && n.gossip.Load() != nil {
				if err := n.apply(b); err != nil {
					s.t.Fatal(err)
				}
				if i == 0 {
					s.announce(seat, b)
				}
			}
		}
	}
	return last
}

func (s *simulation) announce(seat *seat, b *statev1.Batch) {
	g := seat.member.gossip.Load()
	if err := seat.announce(g, b); err != nil {
		_ = g.Announce() // what the product does, and does not mind either
	}
}

// connect makes the gossip of a node, and what asks managers.
func (s *simulation) connect(n *simNode) {
	s.t.Helper()
	at := netip.AddrPortFrom(n.addr, DefaultGossipPort)
	var err error
	if n.tr, err = s.net.Transport(at); err != nil {
		s.t.Fatal(err)
	}
	for _, m := range s.nodes[:simManagers] {
		n.peers.byKey[manager{ID: m.local.NodeID, Address: m.local.control()}] = s.way(n, m)
	}
	g, err := gossip.New(gossip.Config{
		NodeID: n.local.NodeID, Cluster: simCluster, Advertise: at, Keys: [][]byte{simKey()}, Transport: n.tr,
		PacketSize: func() int { return leastPath - gossipHeaders },
		Deliver:    n.deliver,
		State: func() gossip.Digest {
			index, sum := n.node.replica.Position()
			return gossip.Digest{Index: index, Sum: sum}
		},
		Behind: n.onBehind,
		Events: func(e gossip.Event) {
			if e.Kind == gossip.Dead {
				s.deaths.Add(1)
			}
		},
		Rejoin: n.gossipManagers,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	n.gossip.Store(g)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = g.Run(ctx) })
	if n.seat.Load() == nil {
		running.Go(func() { _ = n.syncLoop(ctx) })
	}
	w := n.node.Watch()
	running.Go(func() { s.follow(ctx, w) })
	n.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		_ = g.Close()
	})
	s.t.Cleanup(n.stop)
}

// follow tells whoever looks at arrivals at the moment.
func (s *simulation) follow(ctx context.Context, w *Watcher) {
	defer w.Close()
	for {
		u, err := w.Next(ctx)
		if err != nil {
			return
		}
		s.mu.Lock()
		a := s.arrived
		s.mu.Unlock()
		if a != nil {
			a.note(u, time.Now())
		}
	}
}

// move has the managers move an endpoint to another node.
func (s *simulation) move() {
	s.t.Helper()
	i := s.random.IntN(len(s.endpoints))
	e := s.endpoints[i]
	to := e.Node
	for to == e.Node {
		to = s.nodes[s.random.IntN(len(s.nodes))].local.NodeID
	}
	s.arrived.begin(move{e.Id, e.Generation + 1})
	s.endpoints[i] = s.command(&statev1.Command{Kind: &statev1.Command_MoveEndpoint{MoveEndpoint: &statev1.MoveEndpoint{
		Id: e.Id, Node: to, Generation: e.Generation,
	}}}).Endpoint
}

func (s *simulation) isCut(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cut[a]
}

// informed returns how many nodes have all that was decided.
func (s *simulation) informed() (n int) {
	index, sum := s.nodes[0].node.replica.Position()
	for _, x := range s.nodes {
		if i, d := x.node.replica.Position(); i == index && d == sum {
			n++
		}
	}
	return n
}

func (s *simulation) everywhere() bool { return s.informed() == len(s.nodes) }

// known returns which part of all nodes all nodes know of as members.
func (s *simulation) known() float64 {
	sum := 0
	for _, n := range s.nodes {
		sum += n.gossip.Load().Stats().Members
	}
	return float64(sum) / float64(len(s.nodes)*len(s.nodes))
}

// within waits until ok holds, for at most d, and returns how long that took.
func (s *simulation) within(d time.Duration, what string, ok func() bool) time.Duration {
	s.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			s.t.Fatalf("after %v: not so: %s", d, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}
