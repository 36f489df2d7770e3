package cluster

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a VTEP and its Underlay. It has what it was told, and refuses what a real one does.
type fake struct {
	mu    sync.Mutex
	calls []string
	fail  map[string]error // by the first word of the call, or the call

	open     bool
	at       []netip.Addr // as Open was told
	networks map[string]*fakeNetwork
	left     map[string][]string // unclaimed, by network
	orphans  []addr.VNI          // kept

	nodes  map[netip.Addr]vtep.Node
	keys   [][]byte
	self   netip.Addr
	paths  []vtep.PathStatus
	traced bool // calls about nodes are among the calls
}

type fakeNetwork struct {
	vtep.Network
	peers    []netip.Addr
	mappings map[addr.MAC]addr.Mapping
	attached map[string]vtep.Attachment
}

func newFake() *fake {
	return &fake{fail: map[string]error{}, networks: map[string]*fakeNetwork{}, left: map[string][]string{}, nodes: map[netip.Addr]vtep.Node{}}
}

func (f *fake) call(verb, format string, args ...any) error {
	text := verb + " " + fmt.Sprintf(format, args...)
	f.calls = append(f.calls, text)
	if err := f.fail[text]; err != nil {
		return err
	}
	return f.fail[verb]
}

// took returns the calls since the last time.
func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.calls
	f.calls = nil
	return out
}

func (f *fake) Open(at []netip.Addr) (VTEP, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("open", ""); err != nil {
		return nil, err
	}
	f.open, f.at = true, at
	return f, nil
}

func (f *fake) Move(addresses []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.call("move", "%v", addresses)
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = false
	return f.call("close", "")
}

func (f *fake) AddNetwork(n vtep.Network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("add", "%s %v", n.Name, n.VNI); err != nil {
		return err
	}
	for name, o := range f.networks {
		if name == n.Name || o.VNI == n.VNI {
			return &vtep.ConfigError{Field: "vni", Err: fmt.Errorf("%v or %s is that of network %s: choose another", n.VNI, n.Name, name)}
		}
	}
	x := &fakeNetwork{Network: n, peers: n.Peers, mappings: map[addr.MAC]addr.Mapping{}, attached: map[string]vtep.Attachment{}}
	for _, m := range n.Mappings {
		x.mappings[m.MAC] = m
	}
	f.networks[n.Name] = x
	return nil
}

func (f *fake) on(name string, do func(*fakeNetwork)) error {
	n := f.networks[name]
	if n == nil {
		return vtep.ErrNoNetwork
	}
	do(n)
	return nil
}

func (f *fake) RemoveNetwork(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("remove", "%s", name); err != nil {
		return err
	}
	return f.on(name, func(*fakeNetwork) { delete(f.networks, name) })
}

func (f *fake) SetPeers(name string, peers []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("peers", "%s %v", name, peers); err != nil {
		return err
	}
	return f.on(name, func(n *fakeNetwork) { n.peers = peers })
}

func (f *fake) SetMapping(name string, m addr.Mapping) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("map", "%s %v %v %v", name, m.MAC, m.IPs, m.VTEP); err != nil {
		return err
	}
	return f.on(name, func(n *fakeNetwork) { n.mappings[m.MAC] = m })
}

func (f *fake) RemoveMapping(name string, mac addr.MAC) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("unmap", "%s %v", name, mac); err != nil {
		return err
	}
	return f.on(name, func(n *fakeNetwork) { delete(n.mappings, mac) })
}

func (f *fake) Attach(name string, a vtep.Attachment) (vtep.Attached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("attach", "%s %s %v", name, a.NetNS, a.Addresses); err != nil {
		return vtep.Attached{}, err
	}
	if a.Interface == "" {
		a.Interface = "eth0"
	}
	return attachedOf(a), f.on(name, func(n *fakeNetwork) { n.attached[a.ID] = a })
}

func attachedOf(a vtep.Attachment) vtep.Attached {
	return vtep.Attached{ID: a.ID, Name: a.Name, NetNS: a.NetNS, Interface: a.Interface, MAC: a.MAC, MTU: 1450}
}

func (f *fake) Detach(name, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.call("detach", "%s %s", name, id); err != nil {
		return err
	}
	return f.on(name, func(n *fakeNetwork) { delete(n.attached, id) })
}

func (f *fake) Attachments(name string) (out []vtep.Attached) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.networks[name]; n != nil {
		for _, id := range slices.Sorted(maps.Keys(n.attached)) {
			out = append(out, attachedOf(n.attached[id]))
		}
	}
	return out
}

func (f *fake) Unclaimed(name string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left[name], f.call("unclaimed", "%s", name)
}

func (f *fake) RemoveOrphans(keep []addr.VNI) ([]addr.VNI, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.orphans = keep
	return nil, nil
}

func (f *fake) SetNode(n vtep.Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.traced {
		if err := f.call("node", "%v %v", n.Address, n.Candidates); err != nil {
			return err
		}
	}
	f.nodes[n.Address] = n
	return nil
}

func (f *fake) RemoveNode(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.traced {
		_ = f.call("forget", "%v", a)
	}
	delete(f.nodes, a)
}

func (f *fake) SetProbeKeys(keys [][]byte, self netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.traced {
		if err := f.call("keys", "%d %v", len(keys), self); err != nil {
			return err
		}
	}
	f.keys, f.self = keys, self
	return nil
}

func (f *fake) Paths() []vtep.PathStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.paths
}

var errFake = errors.New("no such luck")

// world is a Follower of a Node in a cluster of its own, to which updates are given by hand.
type world struct {
	*Follower
	t     *testing.T
	v     *fake
	self  string
	index uint64
}

// plane returns a Node that has made a cluster, on a loopback address of its own.
func plane(t *testing.T) *controlplane.Node {
	cp, stop := newPlane(t)
	t.Cleanup(stop)
	return cp
}

func newFollower(t *testing.T, cp *controlplane.Node, v *fake, file string) *Follower {
	f, err := NewFollower(cp, v, file, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newWorld(t *testing.T) *world {
	cp, v := plane(t), newFake()
	self, _ := cp.Self()
	return &world{Follower: newFollower(t, cp, v, filepath.Join(t.TempDir(), "attachments.json")), t: t, v: v, self: self, index: 100}
}

// tell gives an update.
func (w *world) tell(reset bool, deltas ...*statev1.Delta) {
	w.index++
	w.take(controlplane.Update{Index: w.index, Reset: reset, Deltas: deltas})
}

func (w *world) calls(want ...string) {
	w.t.Helper()
	if got := w.v.took(); !slices.Equal(got, want) {
		w.t.Errorf("calls\n%q, want\n%q", got, want)
	}
}

func node(id string, addresses ...string) *statev1.Delta {
	return &statev1.Delta{Node: &statev1.Node{Id: id, Name: id, Addresses: addresses}}
}

func segment(id, name string, vni uint32) *statev1.Delta {
	return &statev1.Delta{Network: &statev1.Network{Id: id, Name: name, Vni: vni, Subnets: []string{"10.42.0.0/24"}, Gateways: []string{"10.42.0.1"}}}
}

func end(id, network, node string, last byte) *statev1.Delta {
	return &statev1.Delta{Endpoint: &statev1.Endpoint{
		Id: id, Network: network, Node: node, Mac: []byte{2, 0, 0, 0, 0, last}, Ips: []string{fmt.Sprintf("10.42.0.%d", last)},
	}}
}

func goneEnd(id string) *statev1.Delta { return &statev1.Delta{RemovedEndpoint: id} }
