package gossip_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

const (
	testCluster  = "00000000c1057e12"
	otherCluster = "00000000c1057e13"
)

func testKey(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func idOf(i int) string { return fmt.Sprintf("%016x", i+1) }

func addrOf(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 7790)
}

// cluster is several nodes on a network in memory.
type cluster struct {
	t     testing.TB
	net   *gossiptest.Network
	nodes []*node
}

// node is one Gossip with a caller that remembers what it is told.
type node struct {
	*gossip.Gossip
	id     string
	addr   netip.AddrPort
	cancel context.CancelFunc
	run    sync.WaitGroup

	mu     sync.Mutex
	got    map[string]int // message to how often
	refuse bool           // to spread
	digest gossip.Digest
	behind map[string]gossip.Digest
	events []gossip.Event
}

// newCluster makes n nodes that have not met. change may alter their configuration.
func newCluster(t testing.TB, n int, change func(i int, c *gossip.Config)) *cluster {
	c := &cluster{t: t, net: gossiptest.NewNetwork(1)}
	c.net.SetLink(gossiptest.Link{Latency: time.Millisecond, Jitter: time.Millisecond})
	t.Cleanup(c.close)
	for i := range n {
		c.add(i, addrOf(i), change)
	}
	return c
}

func (c *cluster) add(i int, addr netip.AddrPort, change func(i int, c *gossip.Config)) *node {
	c.t.Helper()
	tr, err := c.net.Transport(addr)
	if err != nil {
		c.t.Fatal(err)
	}
	n := &node{id: idOf(i), addr: addr, got: map[string]int{}, behind: map[string]gossip.Digest{}}
	cfg := n.config()
	cfg.Transport = tr
	if change != nil {
		change(i, &cfg)
	}
	n.open(c.t, cfg)
	c.nodes = append(c.nodes, n)
	return n
}

func (n *node) config() gossip.Config {
	return gossip.Config{
		NodeID: n.id, Cluster: testCluster, Advertise: n.addr, Keys: [][]byte{testKey(1)},
		PacketSize: func() int { return 1472 },
		Deliver: func(m []byte) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.got[string(m)]++
			return !n.refuse && n.got[string(m)] == 1
		},
		State: func() gossip.Digest {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.digest
		},
		Behind: func(id string, d gossip.Digest) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.behind[id] = d
		},
		Events: func(e gossip.Event) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.events = append(n.events, e)
		},
		Rejoin: func() []netip.AddrPort { return nil },
	}
}

func (n *node) open(t testing.TB, cfg gossip.Config) {
	t.Helper()
	g, err := gossip.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Gossip = g
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.run.Go(func() { _ = g.Run(ctx) })
}

func (n *node) stop() {
	n.cancel()
	n.run.Wait()
	_ = n.Close()
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		n.stop()
	}
}

func (c *cluster) join() {
	c.t.Helper()
	for _, n := range c.nodes[1:] {
		if _, err := n.Join([]netip.AddrPort{c.nodes[0].addr}); err != nil {
			c.t.Fatal(err)
		}
	}
}

// within waits until ok holds, for at most d, and returns how long that took.
func within(t testing.TB, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			t.Fatalf("after %v: not so: %s", d, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// in returns how many nodes n takes for members.
func (n *node) in(states ...gossip.Kind) int {
	k := 0
	for _, m := range n.Members() {
		if slices.Contains(states, m.State) {
			k++
		}
	}
	return k
}

// full reports whether all nodes have each other as members.
func full(nodes []*node) bool {
	for _, n := range nodes {
		if s := n.Stats(); s.Members != len(nodes) || s.Suspect != 0 {
			return false
		}
	}
	return true
}

func (n *node) count(message string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.got[message]
}

func (n *node) received() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.got)
}

func (n *node) eventsOf(id string) []gossip.Kind {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []gossip.Kind
	for _, e := range n.events {
		if e.NodeID == id {
			out = append(out, e.Kind)
		}
	}
	return out
}

func (n *node) behindWhom() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.behind))
}

func (n *node) forgetBehind() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.behind)
}

func (n *node) know(d gossip.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.digest = d
}

// message makes a message of a length that is different for each i.
func message(i, length int) []byte {
	m := bytes.Repeat([]byte{'.'}, length)
	copy(m, fmt.Sprintf("message %d", i))
	return m
}
