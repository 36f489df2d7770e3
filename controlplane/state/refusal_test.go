package state

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

const (
	kInvalid   = statev1.Error_KIND_INVALID
	kNotFound  = statev1.Error_KIND_NOT_FOUND
	kExists    = statev1.Error_KIND_EXISTS
	kConflict  = statev1.Error_KIND_CONFLICT
	kExhausted = statev1.Error_KIND_EXHAUSTED
	kInUse     = statev1.Error_KIND_IN_USE
	kRefused   = statev1.Error_KIND_REFUSED
)

const manager, worker = statev1.Role_ROLE_MANAGER, statev1.Role_ROLE_WORKER

// refusalWorld has the network blue with IPv4, IPv6 and gateways, full with two addresses, both taken; the endpoint web on
// blue; the drained node 3.
type refusalWorld struct {
	*world
	blue, full *statev1.Network
	web        *statev1.Endpoint
}

func newRefusalWorld(t *testing.T) refusalWorld {
	w := refusalWorld{world: newWorld(t)}
	w.must(&statev1.AddNode{Node: testNode(3, worker)})
	w.must(&statev1.UpdateNode{Id: id(3), Availability: statev1.Availability_AVAILABILITY_DRAIN})
	w.blue = w.must(&statev1.CreateNetwork{
		Name: "blue", Vni: 42, Subnets: []string{"10.42.0.0/24", "2001:db8:42::/64"}, Gateways: []string{"10.42.0.1", "2001:db8:42::1"},
	}).Network
	w.web = w.must(&statev1.AddEndpoint{
		Network: w.blue.Id, Node: id(2), Name: "web", Ips: []string{"10.42.0.10", "2001:db8:42::10"}, Mac: []byte{2, 0, 0, 0, 0, 1}, LeaseEnd: at(60),
	}).Endpoint
	w.full = w.network("full", "10.43.0.0/30")
	w.endpoint(w.full, "a")
	w.endpoint(w.full, "b")
	return w
}

// TestRefusals has every refusal once: its kind, its field, advice, and no trace in the state.
func TestRefusals(t *testing.T) {
	w := newRefusalWorld(t)
	node := func(change func(*statev1.Node)) *statev1.AddNode {
		n := testNode(4, worker)
		change(n)
		return &statev1.AddNode{Node: n}
	}
	network := func(change func(*statev1.CreateNetwork)) *statev1.CreateNetwork {
		n := &statev1.CreateNetwork{Name: "red", Vni: 43, Subnets: []string{"10.99.0.0/24"}}
		change(n)
		return n
	}
	endpoint := func(change func(*statev1.AddEndpoint)) *statev1.AddEndpoint {
		e := &statev1.AddEndpoint{Network: w.blue.Id, Node: id(2), Name: "db", LeaseEnd: at(60)}
		change(e)
		return e
	}
	ip := func(ips ...string) *statev1.AddEndpoint {
		return endpoint(func(e *statev1.AddEndpoint) { e.Ips = ips })
	}
	subnet := func(list ...string) *statev1.CreateNetwork {
		return network(func(n *statev1.CreateNetwork) { n.Subnets = list })
	}
	gateway := func(g string) *statev1.CreateNetwork {
		return network(func(n *statev1.CreateNetwork) { n.Gateways = []string{g} })
	}
	address := func(list ...string) *statev1.AddNode {
		return node(func(n *statev1.Node) { n.Addresses = list })
	}
	secrets := func(change func(*statev1.Secrets)) *statev1.SetSecrets {
		s := &statev1.Secrets{}
		change(s)
		return &statev1.SetSecrets{Secrets: s}
	}
	long := strings.Repeat("x", 64<<10)

	for _, c := range []struct {
		name  string
		cmd   proto.Message
		kind  statev1.Error_Kind
		field string
		says  string
	}{
		{"second cluster", &statev1.Bootstrap{ClusterId: id(9), Node: testNode(9, manager), Secrets: testSecrets()}, kRefused, "bootstrap", "join it"},

		{"no node", &statev1.AddNode{}, kInvalid, "add_node.node", "missing"},
		{"node ID short", node(func(n *statev1.Node) { n.Id = "12" }), kInvalid, "add_node.node.id", "16 lower-case"},
		{"node ID upper", node(func(n *statev1.Node) { n.Id = "00000000000000AB" }), kInvalid, "add_node.node.id", "16 lower-case"},
		{"node ID zero", node(func(n *statev1.Node) { n.Id = id(0) }), kInvalid, "add_node.node.id", "not all 0"},
		{"node name empty", node(func(n *statev1.Node) { n.Name = "" }), kInvalid, "add_node.node.name", "use 1 to 63"},
		{"node name taken", node(func(n *statev1.Node) { n.Name = "node-1" }), kExists, "add_node.node.name", "choose another"},
		{"node role", node(func(n *statev1.Node) { n.Role = 0 }), kInvalid, "add_node.node.role", "worker or manager"},
		{"node role unknown", node(func(n *statev1.Node) { n.Role = 7 }), kInvalid, "add_node.node.role", "worker or manager"},
		{"node availability", node(func(n *statev1.Node) { n.Availability = 9 }), kInvalid, "add_node.node.availability", "active or drain"},
		{"node without address", address(), kInvalid, "add_node.node.addresses", "give an address"},
		{"node address malformed", address("192.0.2.9", "192.0.2.300"), kInvalid, "add_node.node.addresses[1]", "write it as"},
		{"node address with port", address("192.0.2.9:7789"), kInvalid, "add_node.node.addresses[0]", "write it as"},
		{"node address huge", address(long), kInvalid, "add_node.node.addresses[0]", "65536 bytes"},
		{"node address unspecified", address("::"), kInvalid, "add_node.node.addresses[0]", "unicast"},
		{"node address multicast", address("224.0.0.1"), kInvalid, "add_node.node.addresses[0]", "unicast"},
		{"node address broadcast", address("255.255.255.255"), kInvalid, "add_node.node.addresses[0]", "unicast"},
		{"node address link-local", address("169.254.1.1"), kInvalid, "add_node.node.addresses[0]", "link-local"},
		{"node address with zone", address("fe80::1%eth0"), kInvalid, "add_node.node.addresses[0]", "zone"},
		{"node address mapped", address("::ffff:192.0.2.9"), kInvalid, "add_node.node.addresses[0]", "write 192.0.2.9"},
		{"node address twice", address("192.0.2.9", "192.0.2.9"), kInvalid, "add_node.node.addresses[1]", "twice"},
		{"node address taken", address("192.0.2.9", "192.0.2.1"), kExists, "add_node.node.addresses[1]", "node-1"},
		{"node address in a subnet", address("10.42.0.77"), kExists, "add_node.node.addresses[0]", "network blue"},
		{"node addresses too many", address(strings.Split(strings.Repeat("192.0.2.9,", 17), ",")...), kInvalid, "add_node.node.addresses", "at most 16"},
		{"node port none", node(func(n *statev1.Node) { n.ControlPort = 0 }), kInvalid, "add_node.node.control_port", "1 to 65535"},
		{"node port large", node(func(n *statev1.Node) { n.GossipPort = 65536 }), kInvalid, "add_node.node.gossip_port", "1 to 65535"},
		{"node port max", node(func(n *statev1.Node) { n.VxlanPort = 1<<32 - 1 }), kInvalid, "add_node.node.vxlan_port", "1 to 65535"},
		{"node key none", node(func(n *statev1.Node) { n.PublicKey = nil }), kInvalid, "add_node.node.public_key", "give the key"},
		{"node key large", node(func(n *statev1.Node) { n.PublicKey = []byte(long) }), kInvalid, "add_node.node.public_key", "at most 1024"},
		{"node key taken", node(func(n *statev1.Node) { n.PublicKey = []byte("key-1") }), kExists, "add_node.node.public_key", "make a new one"},
		{"node with another key", node(func(n *statev1.Node) { n.Id = id(2) }), kConflict, "add_node.node.public_key", "remove that node"},
		{"last manager joins as a worker", &statev1.AddNode{Node: testNode(1, worker)}, kRefused, "add_node.node.role", "promote another"},

		{"update malformed", &statev1.UpdateNode{Id: "../../etc"}, kInvalid, "update_node.id", "16 lower-case"},
		{"update unknown", &statev1.UpdateNode{Id: id(77)}, kNotFound, "update_node.id", "node ls"},
		{"last manager demoted", &statev1.UpdateNode{Id: id(1), Role: worker}, kRefused, "update_node.role", "promote another"},
		{"update role", &statev1.UpdateNode{Id: id(2), Role: 9}, kInvalid, "update_node.role", "worker or manager"},
		{"update availability", &statev1.UpdateNode{Id: id(2), Availability: -1}, kInvalid, "update_node.availability", "active or drain"},
		{"update address", &statev1.UpdateNode{Id: id(2), Addresses: []string{"x"}}, kInvalid, "update_node.addresses[0]", "write it as"},
		{"update address taken", &statev1.UpdateNode{Id: id(2), Addresses: []string{"192.0.2.3"}}, kExists, "update_node.addresses[0]", "node-3"},
		{"update name", &statev1.UpdateNode{Id: id(2), Name: "Ünicode"}, kInvalid, "update_node.name", "lower-case letters"},
		{"update name taken", &statev1.UpdateNode{Id: id(2), Name: "node-3"}, kExists, "update_node.name", "choose another"},

		{"remove malformed", &statev1.RemoveNode{}, kInvalid, "remove_node.id", "16 lower-case"},
		{"remove unknown", &statev1.RemoveNode{Id: id(77)}, kNotFound, "remove_node.id", "node ls"},
		{"remove the last manager", &statev1.RemoveNode{Id: id(1), Force: true}, kRefused, "remove_node.id", "promote another"},
		{"remove in use", &statev1.RemoveNode{Id: id(2)}, kInUse, "remove_node.id", "use force"},

		{"network name empty", network(func(n *statev1.CreateNetwork) { n.Name = "" }), kInvalid, "create_network.name", "use 1 to 63"},
		{"network name upper", network(func(n *statev1.CreateNetwork) { n.Name = "Red" }), kInvalid, "create_network.name", "lower-case"},
		{"network name hyphen", network(func(n *statev1.CreateNetwork) { n.Name = "red-" }), kInvalid, "create_network.name", "hyphen"},
		{"network name path", network(func(n *statev1.CreateNetwork) { n.Name = "../red" }), kInvalid, "create_network.name", "lower-case"},
		{"network name 64", network(func(n *statev1.CreateNetwork) { n.Name = strings.Repeat("a", 64) }), kInvalid, "create_network.name", "1 to 63"},
		{"network name 64 KiB", network(func(n *statev1.CreateNetwork) { n.Name = long }), kInvalid, "create_network.name", "65536 bytes"},
		{"network name like an ID", network(func(n *statev1.CreateNetwork) { n.Name = "0123456789abcdef" }), kInvalid, "create_network.name", "form of an ID"},
		{"network name taken", network(func(n *statev1.CreateNetwork) { n.Name = "blue" }), kExists, "create_network.name", "another name"},
		{"VNI large", network(func(n *statev1.CreateNetwork) { n.Vni = 1 << 24 }), kInvalid, "create_network.vni", "16777215"},
		{"VNI taken", network(func(n *statev1.CreateNetwork) { n.Vni = 42 }), kExists, "create_network.vni", "0 to have one allocated"},
		{"subnet malformed", subnet("10.99.0.0"), kInvalid, "create_network.subnets[0]", "write it as"},
		{"subnet with host bits", subnet("10.99.0.1/24"), kInvalid, "create_network.subnets[0]", "write 10.99.0.0/24"},
		{"subnet too small", subnet("10.99.0.0/31"), kInvalid, "create_network.subnets[0]", "/30"},
		{"subnet too small, IPv6", subnet("10.99.0.0/24", "2001:db8:99::/127"), kInvalid, "create_network.subnets[1]", "/126"},
		{"subnet of all", subnet("0.0.0.0/0"), kInvalid, "create_network.subnets[0]", "unicast"},
		{"subnet multicast", subnet("224.1.0.0/16"), kInvalid, "create_network.subnets[0]", "unicast"},
		{"subnet reserved", subnet("240.0.0.0/8"), kInvalid, "create_network.subnets[0]", "unicast"},
		{"subnet loopback", subnet("127.1.0.0/16"), kInvalid, "create_network.subnets[0]", "unicast"},
		{"subnet link-local", subnet("169.254.7.0/24"), kInvalid, "create_network.subnets[0]", "unicast"},
		{"subnet link-local, IPv6", subnet("fe80::/64"), kInvalid, "create_network.subnets[0]", "unicast"},
		{"subnet multicast, IPv6", subnet("ff02::/64"), kInvalid, "create_network.subnets[0]", "unicast"},
		{"subnet mapped", subnet("::ffff:10.99.0.0/120"), kInvalid, "create_network.subnets[0]", "as in 10.42.0.0/24"},
		{"subnets overlap", subnet("10.42.0.128/25"), kExists, "create_network.subnets[0]", "network blue"},
		{"subnets overlap, larger", subnet("10.40.0.0/13"), kExists, "create_network.subnets[0]", "choose another"},
		{"subnets overlap, IPv6", subnet("10.99.0.0/24", "2001:db8:42::/48"), kExists, "create_network.subnets[1]", "network blue"},
		{"two of a family", subnet("10.99.0.0/24", "10.99.0.0/25"), kInvalid, "create_network.subnets[1]", "at most one"},
		{"three subnets", subnet("10.99.0.0/24", "10.98.0.0/24", "10.97.0.0/24"), kInvalid, "create_network.subnets", "at most one"},
		{"subnet over the underlay", subnet("192.0.2.0/24"), kExists, "create_network.subnets[0]", "underlay address 192.0.2.1"},
		{"gateway malformed", gateway("gw"), kInvalid, "create_network.gateways[0]", "write it as"},
		{"gateway outside", gateway("10.98.0.1"), kInvalid, "create_network.gateways[0]", "outside"},
		{"gateway is the network", gateway("10.99.0.0"), kInvalid, "create_network.gateways[0]", "network address"},
		{"gateway is the broadcast", gateway("10.99.0.255"), kInvalid, "create_network.gateways[0]", "broadcast address"},
		{"gateways without subnets", &statev1.CreateNetwork{Name: "red", Gateways: []string{"10.0.0.1"}}, kInvalid, "create_network.gateways", "give subnets"},
		{"gateways too many", network(func(n *statev1.CreateNetwork) { n.Gateways = []string{"", ""} }), kInvalid, "create_network.gateways", "one for each subnet"},
		{"MTU small", network(func(n *statev1.CreateNetwork) { n.Mtu = 67 }), kInvalid, "create_network.mtu", "68"},
		{"MTU small for IPv6", network(func(n *statev1.CreateNetwork) { n.Mtu = 1279; n.Subnets = []string{"2001:db8:99::/64"} }), kInvalid, "create_network.mtu", "1280"},
		{"MTU large", network(func(n *statev1.CreateNetwork) { n.Mtu = 65486 }), kInvalid, "create_network.mtu", "65485"},
		{"MSS too small", &statev1.CreateNetwork{Name: "red", Mss: 87}, kInvalid, "create_network.mss", "88"},
		{"MSS max", &statev1.CreateNetwork{Name: "red", Mss: 1<<32 - 1}, kInvalid, "create_network.mss", "65445"},
		{"MSS above a fixed MTU", &statev1.CreateNetwork{Name: "red", Subnets: []string{"10.77.0.0/24"}, Mtu: 1400, Mss: 1361}, kInvalid, "create_network.mss", "1360"},
		{"MTU max", &statev1.CreateNetwork{Name: "red", Mtu: 1<<32 - 1}, kInvalid, "create_network.mtu", "65485"},
		{"remove network malformed", &statev1.RemoveNetwork{Id: "blue"}, kInvalid, "remove_network.id", "16 lower-case"},
		{"remove network unknown", &statev1.RemoveNetwork{Id: id(5)}, kNotFound, "remove_network.id", "network ls"},
		{"remove network in use", &statev1.RemoveNetwork{Id: w.blue.Id}, kInUse, "remove_network.id", "web"},

		{"endpoint network", endpoint(func(e *statev1.AddEndpoint) { e.Network = "blue" }), kInvalid, "add_endpoint.network", "16 lower-case"},
		{"endpoint network unknown", endpoint(func(e *statev1.AddEndpoint) { e.Network = id(5) }), kNotFound, "add_endpoint.network", "network ls"},
		{"endpoint node", endpoint(func(e *statev1.AddEndpoint) { e.Node = "" }), kInvalid, "add_endpoint.node", "16 lower-case"},
		{"endpoint node unknown", endpoint(func(e *statev1.AddEndpoint) { e.Node = id(77) }), kNotFound, "add_endpoint.node", "node ls"},
		{"endpoint node drained", endpoint(func(e *statev1.AddEndpoint) { e.Node = id(3) }), kRefused, "add_endpoint.node", "activate"},
		{"endpoint name", endpoint(func(e *statev1.AddEndpoint) { e.Name = "a b" }), kInvalid, "add_endpoint.name", "lower-case"},
		{"endpoint name taken", endpoint(func(e *statev1.AddEndpoint) { e.Name = "web" }), kExists, "add_endpoint.name", "choose another"},
		{"IP malformed", ip("10.42.0.0.1"), kInvalid, "add_endpoint.ips[0]", "write it as"},
		{"IP outside", ip("10.44.0.9"), kInvalid, "add_endpoint.ips[0]", "10.42.0.0/24"},
		{"IP is the network", ip("10.42.0.0"), kInvalid, "add_endpoint.ips[0]", "network address"},
		{"IP is the broadcast", ip("10.42.0.255"), kInvalid, "add_endpoint.ips[0]", "broadcast address"},
		{"IP is the gateway", ip("10.42.0.1"), kInvalid, "add_endpoint.ips[0]", "gateway"},
		{"IP is the routers' anycast", ip("2001:db8:42::"), kInvalid, "add_endpoint.ips[0]", "anycast"},
		{"IP is the gateway, IPv6", ip("10.42.0.9", "2001:db8:42::1"), kInvalid, "add_endpoint.ips[1]", "gateway"},
		{"IP taken", ip("10.42.0.10"), kExists, "add_endpoint.ips[0]", "web"},
		{"IP taken, IPv6 first", ip("2001:db8:42::9", "10.42.0.10"), kExists, "add_endpoint.ips[1]", "web"},
		{"IP twice in a family", ip("10.42.0.8", "10.42.0.9"), kInvalid, "add_endpoint.ips[1]", "at most one"},
		{"three IPs", ip("10.42.0.8", "2001:db8:42::8", "10.42.0.9"), kInvalid, "add_endpoint.ips", "at most one"},
		{"MAC short", endpoint(func(e *statev1.AddEndpoint) { e.Mac = []byte{2} }), kInvalid, "add_endpoint.mac", "give 6"},
		{"MAC long", endpoint(func(e *statev1.AddEndpoint) { e.Mac = []byte(long) }), kInvalid, "add_endpoint.mac", "65536 bytes"},
		{"MAC zero", endpoint(func(e *statev1.AddEndpoint) { e.Mac = make([]byte, 6) }), kInvalid, "add_endpoint.mac", "first byte is even"},
		{"MAC multicast", endpoint(func(e *statev1.AddEndpoint) { e.Mac = []byte{1, 0, 0x5e, 0, 0, 1} }), kInvalid, "add_endpoint.mac", "first byte is even"},
		{"MAC taken", endpoint(func(e *statev1.AddEndpoint) { e.Mac = []byte{2, 0, 0, 0, 0, 1} }), kExists, "add_endpoint.mac", "web"},
		{"pool exhausted", endpoint(func(e *statev1.AddEndpoint) { e.Network = w.full.Id }), kExhausted, "add_endpoint.ips", "larger subnet"},
		{"lease past", endpoint(func(e *statev1.AddEndpoint) { e.LeaseEnd = at(0) }), kInvalid, "add_endpoint.lease_end", "later"},
		{"lease long", endpoint(func(e *statev1.AddEndpoint) { e.LeaseEnd = at(24*60*60 + 1) }), kInvalid, "add_endpoint.lease_end", "earlier"},
		{"lease no time", endpoint(func(e *statev1.AddEndpoint) { e.LeaseEnd = &timestamppb.Timestamp{Nanos: -1} }), kInvalid, "add_endpoint.lease_end", "no time"},
		{"confirm malformed", &statev1.ConfirmEndpoint{Id: "web", Node: id(2)}, kInvalid, "confirm_endpoint.id", "16 lower-case"},
		{"confirm unknown", &statev1.ConfirmEndpoint{Id: id(5), Node: id(2)}, kNotFound, "confirm_endpoint.id", "add it again"},
		{"confirm node malformed", &statev1.ConfirmEndpoint{Id: w.web.Id}, kInvalid, "confirm_endpoint.node", "16 lower-case"},
		{"confirm by another node", &statev1.ConfirmEndpoint{Id: w.web.Id, Node: id(1)}, kConflict, "confirm_endpoint.node", "moved"},
		{"move malformed", &statev1.MoveEndpoint{}, kInvalid, "move_endpoint.id", "16 lower-case"},
		{"move unknown", &statev1.MoveEndpoint{Id: id(5), Node: id(1)}, kNotFound, "move_endpoint.id", "add it again"},
		{"move node malformed", &statev1.MoveEndpoint{Id: w.web.Id, Node: "x"}, kInvalid, "move_endpoint.node", "16 lower-case"},
		{"move to nobody", &statev1.MoveEndpoint{Id: w.web.Id, Node: id(77)}, kNotFound, "move_endpoint.node", "node ls"},
		{"move to a drained node", &statev1.MoveEndpoint{Id: w.web.Id, Node: id(3)}, kRefused, "move_endpoint.node", "activate"},
		{"move of an old generation", &statev1.MoveEndpoint{Id: w.web.Id, Node: id(1), Generation: 7}, kConflict, "move_endpoint.generation", "meanwhile"},
		{"remove endpoint malformed", &statev1.RemoveEndpoint{Id: "web"}, kInvalid, "remove_endpoint.id", "16 lower-case"},

		{"no secrets", &statev1.SetSecrets{}, kInvalid, "set_secrets.secrets", "missing"},
		{"certificate without key", secrets(func(s *statev1.Secrets) { s.CaCertificate = []byte("c") }), kInvalid, "set_secrets.secrets.ca_key", "both or neither"},
		{"key of the CA large", secrets(func(s *statev1.Secrets) { s.CaCertificate, s.CaKey = []byte("c"), []byte(long) }), kInvalid, "set_secrets.secrets.ca_key", "16384"},
		{"token short", secrets(func(s *statev1.Secrets) { s.WorkerToken = make([]byte, 15) }), kInvalid, "set_secrets.secrets.worker_token", "16"},
		{"token long", secrets(func(s *statev1.Secrets) { s.ManagerToken = make([]byte, 65) }), kInvalid, "set_secrets.secrets.manager_token", "64"},
		{"tokens alike", secrets(func(s *statev1.Secrets) { s.WorkerToken = bytes.Repeat([]byte{2}, 16) }), kInvalid, "set_secrets.secrets.manager_token", "another"},
		{"gossip key short", secrets(func(s *statev1.Secrets) { s.GossipKeys = [][]byte{make([]byte, 16)} }), kInvalid, "set_secrets.secrets.gossip_keys[0]", "32"},
		{"gossip key twice", secrets(func(s *statev1.Secrets) { s.GossipKeys = [][]byte{make([]byte, 32), make([]byte, 32)} }), kInvalid, "set_secrets.secrets.gossip_keys[1]", "twice"},
		{"gossip keys many", secrets(func(s *statev1.Secrets) { s.GossipKeys = make([][]byte, 17) }), kInvalid, "set_secrets.secrets.gossip_keys", "16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			before, digest, index := contentOf(t, w.Store), fmt.Sprint(w.Digest()), w.Index()
			batches := len(w.batches)
			res := w.do(c.cmd)
			if res.Error == nil {
				t.Fatalf("it was applied: %v", res)
			}
			if res.Error.Kind != c.kind || res.Error.Field != c.field || !strings.Contains(res.Error.Message, c.says) {
				t.Errorf("refused with %v at %q: %s\nwant %v at %q with %q", res.Error.Kind, res.Error.Field, res.Error.Message, c.kind, c.field, c.says)
			}
			if len(res.Error.Message) > 400 {
				t.Errorf("the message has %d bytes", len(res.Error.Message))
			}
			if contentOf(t, w.Store) != before || fmt.Sprint(w.Digest()) != digest || w.Index() != index || len(w.batches) != batches {
				t.Error("the refusal left a trace")
			}
		})
	}
}

// TestRefusalsBeforeBootstrap looks at a store of no cluster.
func TestRefusalsBeforeBootstrap(t *testing.T) {
	boot := func(change func(*statev1.Bootstrap)) *statev1.Bootstrap {
		b := &statev1.Bootstrap{ClusterId: cluster, Node: testNode(1, manager), Secrets: testSecrets()}
		change(b)
		return b
	}
	w := &world{t: t, Store: NewStore()}
	for _, c := range []struct {
		cmd   proto.Message
		kind  statev1.Error_Kind
		field string
	}{
		{&statev1.AddNode{Node: testNode(1, manager)}, kRefused, ""},
		{&statev1.CollectLeases{}, kRefused, ""},
		{boot(func(b *statev1.Bootstrap) { b.ClusterId = "" }), kInvalid, "bootstrap.cluster_id"},
		{boot(func(b *statev1.Bootstrap) { b.Node = nil }), kInvalid, "bootstrap.node"},
		{boot(func(b *statev1.Bootstrap) { b.Node.Role = worker }), kInvalid, "bootstrap.node.role"},
		{boot(func(b *statev1.Bootstrap) { b.Node.Name = "" }), kInvalid, "bootstrap.node.name"},
		{boot(func(b *statev1.Bootstrap) { b.Secrets = nil }), kInvalid, "bootstrap.secrets.ca_certificate"},
		{boot(func(b *statev1.Bootstrap) { b.Secrets.CaKey = nil }), kInvalid, "bootstrap.secrets.ca_key"},
		{boot(func(b *statev1.Bootstrap) { b.Secrets.WorkerToken = nil }), kInvalid, "bootstrap.secrets.worker_token"},
		{boot(func(b *statev1.Bootstrap) { b.Secrets.GossipKeys = nil }), kInvalid, "bootstrap.secrets.gossip_keys"},
		{boot(func(b *statev1.Bootstrap) { b.Secrets.WorkerToken = b.Secrets.ManagerToken }), kInvalid, "bootstrap.secrets.manager_token"},
	} {
		if res := w.do(c.cmd); res.Error.GetKind() != c.kind || res.Error.GetField() != c.field {
			t.Errorf("%v\ngave %v, want %v at %q", c.cmd, res.Error, c.kind, c.field)
		}
	}
	if w.ClusterID() != "" || w.Index() != 0 || w.Secrets() != nil || len(w.batches) > 0 || len(w.Nodes()) > 0 {
		t.Error("refusals left traces")
	}
	// A snapshot of nothing is one, too.
	if err := NewStore().Restore(bytes.NewReader(snapshotOf(t, w.Snapshot()))); err != nil {
		t.Error(err)
	}
	w.must(boot(func(*statev1.Bootstrap) {}))
}

// TestEnvelope looks at what all commands have.
func TestEnvelope(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		change func(*statev1.Command)
		field  string
	}{
		"no version":      {func(c *statev1.Command) { c.Version = 0 }, "version"},
		"no time":         {func(c *statev1.Command) { c.Time = nil }, "time"},
		"time of no year": {func(c *statev1.Command) { c.Time = &timestamppb.Timestamp{Seconds: 1 << 60} }, "time"},
		"no seed":         {func(c *statev1.Command) { c.Seed = nil }, "seed"},
		"long seed":       {func(c *statev1.Command) { c.Seed = make([]byte, 17) }, "seed"},
		"long request ID": {func(c *statev1.Command) { c.RequestId = strings.Repeat("x", 129) }, "request_id"},
	} {
		cmd := withKind(&statev1.CreateNetwork{Name: "red"})
		cmd.Version, cmd.Time, cmd.Seed = 1, at(0), make([]byte, 16)
		c.change(cmd)
		if res := w.apply(wire(cmd)); res.Error.GetKind() != kInvalid || res.Error.GetField() != c.field {
			t.Errorf("%s: %v", name, res)
		}
	}
	if len(w.Networks()) > 0 {
		t.Error("a network was made")
	}
}

// TestNotUnderstood looks at entries that are errors: they leave everything as it was, the index too.
func TestNotUnderstood(t *testing.T) {
	w := newWorld(t)
	before := snapshotOf(t, w.Snapshot())
	newer := withKind(&statev1.CreateNetwork{Name: "red"})
	newer.Version = RulesVersion + 1
	unknown := append(wire(&statev1.Command{Version: 1, Time: at(0), Seed: make([]byte, 16)}), 0xca, 0x3e, 0) // field 1001
	for name, c := range map[string]struct {
		index uint64
		entry []byte
		says  []string
	}{
		"newer":       {w.at + 1, wire(newer), []string{"index 3", "needs version 2", "knows version 1", "upgrade"}},
		"garbage":     {w.at + 1, []byte("garbage"), []string{"index 3", "decoded"}},
		"empty":       {w.at + 1, nil, []string{"index 3", "kind", "upgrade"}},
		"newer kind":  {w.at + 1, unknown, []string{"index 3", "kind", "upgrade"}},
		"out of turn": {w.at, entry(w.at, 0, &statev1.CollectLeases{}), []string{"index 2"}},
		"index 0":     {0, entry(0, 0, &statev1.CollectLeases{}), []string{"index 0"}},
	} {
		res, batch, err := w.Apply(c.index, c.entry)
		if err == nil || res != nil || batch != nil {
			t.Errorf("%s: Apply = %v, %v, %v", name, res, batch, err)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not say %q", name, err, s)
			}
		}
		if v, ok := errors.AsType[*VersionError](err); ok != (name == "newer") || ok && v.Needs != 2 {
			t.Errorf("%s: %#v", name, err)
		}
	}
	for name, c := range map[string]*statev1.Command{"newer": newer, "nil": nil, "no kind": {Version: 1}} {
		if Understood(c) == nil {
			t.Errorf("%s is understood", name)
		}
	}
	if err := Understood(withKind(&statev1.CollectLeases{})); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(snapshotOf(t, w.Snapshot()), before) {
		t.Error("an entry that is an error changed the state")
	}
}

// TestManagersAreFew promotes up to the limit and one more.
func TestManagersAreFew(t *testing.T) {
	w := newWorld(t)
	for n := 3; n <= MaxManagers+1; n++ {
		w.must(&statev1.AddNode{Node: testNode(n, manager)})
	}
	if res := w.do(&statev1.AddNode{Node: testNode(20, manager)}); res.Error.GetKind() != kRefused || res.Error.Field != "add_node.node.role" {
		t.Errorf("one manager too many: %v", res)
	}
	if res := w.do(&statev1.UpdateNode{Id: id(2), Role: manager}); res.Error.GetKind() != kRefused || res.Error.Field != "update_node.role" {
		t.Errorf("one promotion too many: %v", res)
	}
	// All but one can go, be they demoted or removed.
	for n := 3; n <= MaxManagers+1; n++ {
		w.must(&statev1.UpdateNode{Id: id(n), Role: worker})
	}
	w.must(&statev1.UpdateNode{Id: id(2), Role: manager})
	w.must(&statev1.RemoveNode{Id: id(1)})
	if res := w.do(&statev1.RemoveNode{Id: id(2)}); res.Error.GetKind() != kRefused {
		t.Errorf("the last manager: %v", res)
	}
}
