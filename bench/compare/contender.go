package compare

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/vtep"
)

// wire is a kind of link between the two hosts.
type wire struct {
	name, about string
	offloads    map[string]bool // what differs from a veth as the kernel makes it; see lab.HostSpec
}

// The wires.
var (
	wireOffload = wire{name: "offload", about: "wire with tunnel offload, as a veth is by default"}
	wireBare    = wire{name: "bare", about: "wire without tunnel offload", offloads: map[string]bool{"tunnel": false}}
)

// contender is one way to join two hosts.
type contender struct {
	name, about string
	wire        wire
	kind        lab.Kind // what speaks VXLAN; "" = nothing, the traffic goes over the wire itself
	containers  bool     // the traffic is between containers behind a bridge, and not between the hosts themselves
	disable     []string // features of overlayd
	busyPoll    int      // of overlayd, in microseconds
	baseline    string   // what it is compared with: the kernel's VXLAN on the same wire, attached in the same way
	byDefault   bool
}

const (
	kernelName         = "kernel"
	kernelContainers   = "kernel-containers"
	kernelBareName     = "kernel-bare"
	overlaydName       = "overlayd"
	overlaydContainers = "overlayd-containers"
	overlaydBare       = "overlayd-bare"
)

// contenders are all that there are, in the order of the tables: wire by wire.
func contenders() []contender {
	out := []contender{
		{name: "veth", about: "no overlay, the wire itself", wire: wireOffload, baseline: kernelName, byDefault: true},
		{name: kernelName, about: "the kernel's vxlan device", wire: wireOffload, kind: lab.Kernel, baseline: kernelName, byDefault: true},
		{name: overlaydName, about: "overlayd with all that this kernel can do", wire: wireOffload, kind: lab.Overlayd, baseline: kernelName, byDefault: true},
		{name: "overlayd-water", about: "overlayd with the portable TAP backend, one frame a read", wire: wireOffload,
			kind: lab.Overlayd, disable: []string{vtep.FeatureTAPVNet}, baseline: kernelName, byDefault: true},
		{name: "overlayd-busy-poll", about: "overlayd whose workers look on for 100 us before they sleep (busy_poll)", wire: wireOffload,
			kind: lab.Overlayd, busyPoll: 100, baseline: kernelName, byDefault: true},
	}
	for _, feature := range vtep.FeatureNames() {
		if feature == vtep.FeatureTAPVNet { // without it, it is overlayd-water
			continue
		}
		out = append(out, contender{name: "overlayd-no-" + feature, about: "overlayd without " + feature, wire: wireOffload,
			kind: lab.Overlayd, disable: []string{feature}, baseline: kernelName})
	}
	return append(out,
		contender{name: kernelContainers, about: "containers on a bridge with the kernel's vxlan device", wire: wireOffload,
			kind: lab.Kernel, containers: true, baseline: kernelContainers, byDefault: true},
		contender{name: overlaydContainers, about: "containers of a cluster of overlayd, with all that this kernel can do", wire: wireOffload,
			kind: lab.Overlayd, containers: true, baseline: kernelContainers, byDefault: true},
		contender{name: kernelBareName, about: "the kernel's vxlan device, on a wire without tunnel offload", wire: wireBare, kind: lab.Kernel, baseline: kernelBareName, byDefault: true},
		contender{name: overlaydBare, about: "overlayd with all that this kernel can do, on a wire without tunnel offload", wire: wireBare, kind: lab.Overlayd, baseline: kernelBareName, byDefault: true})
}

// Words that stand for several contenders.
const (
	wordDefault = "default"
	wordAll     = "all"
)

// chooseContenders returns those that are named, and those that they are compared with, in the order of the
// tables.
func chooseContenders(names []string) ([]contender, error) {
	all := contenders()
	chosen := make(map[string]bool)
	for _, name := range names {
		found := false
		for _, c := range all {
			if name == c.name || name == wordAll || name == wordDefault && c.byDefault {
				chosen[c.name], chosen[c.baseline], found = true, true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no contender %q: choose from %s, %s, %s", name, wordDefault, wordAll, contenderNames())
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no contender is named: choose from %s, %s, %s", wordDefault, wordAll, contenderNames())
	}
	return slices.DeleteFunc(all, func(c contender) bool { return !chosen[c.name] }), nil
}

func contenderNames() string {
	var names []string
	for _, c := range contenders() {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// The one network of a contender, and the device that carries the underlay on each host.
const (
	network        = "blue"
	underlayDevice = "eth0"
)

// networkVNI is that of the network.
const networkVNI = 42

// subnetOf is the subnet of the network with this VNI, of 255 at most.
func subnetOf(vni uint32) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(vni), 0, 0}), 24)
}

// hosts is a lab of so many hosts, without a network.
func (c *contender) hosts(name string, n int, t lab.Topology) lab.Scenario {
	sc := lab.Scenario{Name: name, About: c.about, Topology: t}
	for i := range n {
		sc.Hosts = append(sc.Hosts, lab.HostSpec{
			Name:     fmt.Sprintf("h%d", i+1),
			Underlay: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 24)},
			Offloads: c.wire.offloads,
			Overlayd: lab.OverlaydSettings{Disable: c.disable, BusyPoll: c.busyPoll},
		})
	}
	return sc
}

// network is one of which these hosts are members, all of the contender's kind.
func (c *contender) network(name string, vni uint32, members ...lab.HostSpec) lab.NetworkSpec {
	n := lab.NetworkSpec{Name: name, VNI: vni, Subnets: []netip.Prefix{subnetOf(vni)}, Members: make(map[string]lab.Kind)}
	for _, h := range members {
		n.Members[h.Name] = c.kind
	}
	return n
}

// scenario is the lab of a contender: two hosts.
func (c *contender) scenario() lab.Scenario {
	sc := c.hosts("bench-"+c.name, 2, lab.Direct)
	switch {
	case c.kind == "", c.containers && c.kind == lab.Kernel: // what there is in the way of networks is made of cabins
	case c.containers:
		n := lab.NetworkSpec{Name: network, VNI: networkVNI, Subnets: []netip.Prefix{subnetOf(networkVNI)}}
		for i, role := range []lab.Role{lab.Manager, lab.Worker} {
			name := fmt.Sprintf("c%d", i+1)
			sc.Hosts[i].Cluster, sc.Hosts[i].Containers = role, []string{name}
			n.Endpoints = append(n.Endpoints, lab.EndpointSpec{Container: name})
		}
		sc.Networks = []lab.NetworkSpec{n}
	default:
		sc.Networks = []lab.NetworkSpec{c.network(network, networkVNI, sc.Hosts...)}
	}
	return sc
}

// entry is how the contender stands in the report.
func (c *contender) entry() report.Contender {
	return report.Contender{Name: c.name, About: c.about, Wire: c.wire.name, Baseline: c.baseline}
}
