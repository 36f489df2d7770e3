package config

import (
	"strings"
	"testing"
)

// one is a file with one network that is right as it stands; each test below spoils it in one way.
const one = `networks:
  - name: blue
    vni: 42
    device: blue0
    peers: [192.0.2.2]
`

// wrong checks the whole message for a file.
func wrong(t *testing.T, text, want string) {
	t.Helper()
	if _, err := parse("f.yaml", []byte(text), nil, facts()); err == nil || err.Error() != want {
		t.Errorf("%s\n got: %v\nwant: %s", text, err, want)
	}
}

func TestOneIsRight(t *testing.T) {
	if _, err := parse("f.yaml", []byte(one), nil, facts()); err != nil {
		t.Fatal(err)
	}
}

func TestBadFile(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"[]", `f.yaml:1: the keys node, socket, metrics, log, disable, queues, busy_poll, data_dir, underlay, cluster, networks are wanted here, not a list`},
		{"hello", `f.yaml:1: the keys node, socket, metrics, log, disable, queues, busy_poll, data_dir, underlay, cluster, networks are wanted here, not a single value`},
		{"a: b: c", `f.yaml: not valid YAML: mapping values are not allowed in this context`},
		{"node: h1\nlog: [", `f.yaml:2: not valid YAML: did not find expected node content`},
		{"networks:\n\t- name: x", `f.yaml:2: not valid YAML: found character that cannot start any token; indent with spaces, not with tabs`},
		{"data_dir: ''", `f.yaml:1: data_dir: without a data directory the node takes part in no cluster, and there is no network either: give one of both`},
		{"networks: {name: x}", `f.yaml:1: networks: a list is wanted here, not a group of keys: begin each item with -`},
		{"networks:\n  - blue\n", `f.yaml:2: networks[0]: the keys name, vni, device, address, peers, learning, allow_nested, mtu, mss, endpoints are wanted here, not a single value`},
		{"networks:\n  - name: blue\n    vnii: 42\n", `f.yaml:3: networks[0].vnii: unknown key: did you mean vni?`},
	} {
		wrong(t, c.text, c.want)
	}
}

// TestBadTop puts a line in front of the file.
func TestBadTop(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"nodee: x", `f.yaml:1: nodee: unknown key: did you mean node?`},
		{"colour: red", `f.yaml:1: colour: unknown key: choose from node, socket, metrics, log, disable, queues, busy_poll, data_dir, underlay, cluster, networks`},
		{"node: a\nlog: info\nnode: b", `f.yaml:3: node: this key is on line 1 already: keep one of the two`},
		{"node: [a]", `f.yaml:1: node: one value is wanted here, not a list`},
		{"node: {a: b}", `f.yaml:1: node: one value is wanted here, not a group of keys`},
		{"node:", `f.yaml:1: node: it is missing: give a name`},
		{"node: héllo", `f.yaml:1: node: "héllo" has 'é' in it: use letters, digits and, but not first, any of . _ -`},
		{"node: -x", `f.yaml:1: node: "-x" has '-' in it: use letters, digits and, but not first, any of . _ -`},
		{"node: " + strings.Repeat("x", 64), "f.yaml:1: node: \"" + strings.Repeat("x", 64) + "\" has 64 bytes: choose a name of at most 63"},
		{"underlay: 3", `f.yaml:1: underlay: the keys port, addresses, ttl, checksum are wanted here, not a single value`},
		{"underlay: [3]", `f.yaml:1: underlay: the keys port, addresses, ttl, checksum are wanted here, not a list`},
		{"queues:", `f.yaml:1: queues: it has no value: give it one, or take it out`},
		{"queues: many", `f.yaml:1: queues: "many" is not a number: write it in decimal digits`},
		{"queues: 010", `f.yaml:1: queues: "010" is not a number: write it in decimal digits`},
		{"queues: -1", `f.yaml:1: queues: -1 is out of range: choose from 1 to 64, or take the key out to have it chosen by the number of CPUs`},
		{"busy_poll: -1", `f.yaml:1: busy_poll: -1 is out of range: choose from 0 to 10000 microseconds`},
		{"busy_poll: 10001", `f.yaml:1: busy_poll: 10001 is out of range: choose from 0 to 10000 microseconds`},
		{"busy_poll: 50us", `f.yaml:1: busy_poll: "50us" is not a number: write it in decimal digits`},
		{"queues: 65", `f.yaml:1: queues: 65 is out of range: choose from 1 to 64, or take the key out to have it chosen by the number of CPUs`},
		{"disable: udp-gso", `f.yaml:1: disable: a list is wanted here: write [udp-gso]`},
		{"disable: {a: b}", `f.yaml:1: disable: a list is wanted here, not a group of keys: begin each item with -`},
		{"disable: [udp-gsp]", `f.yaml:1: disable[0]: unknown feature "udp-gsp": did you mean udp-gso?`},
		{"disable: [nothing-like-it]", `f.yaml:1: disable[0]: unknown feature "nothing-like-it": choose from tap-vnet, udp-gso, udp-gro`},
		{"log: loud", `f.yaml:1: log: "loud" is not a log level: choose from debug, info, warn, error`},
		{"socket:", `f.yaml:1: socket: it is empty: give a path such as /run/overlayd/overlayd.sock`},
		{"socket: a/b", `f.yaml:1: socket: "a/b" is not an absolute path: begin it with /`},
		{"socket: /" + strings.Repeat("x", 107) + "", `f.yaml:1: socket: the path has 108 bytes, a socket's at most 107: choose a shorter one`},
		{"socket: /run/", `f.yaml:1: socket: "/run/" does not name a file: give a path such as /run/overlayd/overlayd.sock`},
		{"metrics: 9789", `f.yaml:1: metrics: "9789" is not host:port: write it such as 127.0.0.1:9789 or [::1]:9789, or leave it empty to turn metrics off`},
		{"metrics: 127.0.0.1:99999", `f.yaml:1: metrics: port "99999" is out of range: choose from 1 to 65535, or 0 to have one chosen`},
		{"metrics: example.org:9789", `f.yaml:1: metrics: "example.org" is not an IP address of this host: write one, localhost, or nothing for all`},
		{"underlay: {port: 0}", `f.yaml:1: underlay.port: 0 is out of range: choose from 1 to 65535; VXLAN's own is 4789`},
		{"underlay: {port: 65536}", `f.yaml:1: underlay.port: 65536 is out of range: choose from 1 to 65535; VXLAN's own is 4789`},
		{"underlay: {ttl: 256}", `f.yaml:1: underlay.ttl: 256 is out of range: choose from 1 to 255`},
		{"underlay: {ttl: 0}", `f.yaml:1: underlay.ttl: 0 is out of range: choose from 1 to 255`},
		{"underlay: {checksum: maybe}", `f.yaml:1: underlay.checksum: "maybe" is not a policy: choose from auto, on, off`},
		{"cluster: {control_port: 0}", `f.yaml:1: cluster.control_port: 0 is out of range: choose from 1 to 65535`},
		{"cluster: {gossip_port: 65536}", `f.yaml:1: cluster.gossip_port: 65536 is out of range: choose from 1 to 65535`},
		{"cluster: {gossip_port: 7789}", `f.yaml:1: cluster.gossip_port: 7789 is the control port too, and both use TCP: choose two`},
		{"cluster: {gossip_port: 4789}", `f.yaml:1: cluster.gossip_port: 4789 is the port of VXLAN too, and both use UDP: choose two`},
		{"cluster: {raft_multiplier: 11}", `f.yaml:1: cluster.raft_multiplier: 11 is out of range: choose from 1 to 10`},
		{"cluster: {listen: 192.0.2.9}", `f.yaml:1: cluster.listen: 192.0.2.9 is on no interface of this host: give one that ` + "`" + `ip address` + "`" + ` shows, or take the key out to listen on all`},
		{"underlay: {mtu: 1500}", `f.yaml:1: underlay.mtu: unknown key: did you mean ttl?`},
		{"underlay:\n  addresses:\n  - 192.0.2.1\n  - 192.0.2.1", `f.yaml:4: underlay.addresses[1]: the address 192.0.2.1 is used by underlay.addresses[0] already (f.yaml:3): choose another one, or take this one out`},
		{"underlay: {addresses: [192.0.2.9]}", `f.yaml:1: underlay.addresses[0]: 192.0.2.9 is on no interface of this host: give one that ` + "`" + `ip address` + "`" + ` shows, or take the key out to have it chosen by the route to the peers`},
		{"underlay: {addresses: [0.0.0.0]}", `f.yaml:1: underlay.addresses[0]: 0.0.0.0 stands for no host: give the address of one`},
		{"underlay: {addresses: [192.0.2.1/24]}", `f.yaml:1: underlay.addresses[0]: "192.0.2.1/24" has a prefix length, where one address is wanted: write 192.0.2.1`},
		{"underlay: {addresses: [host]}", `f.yaml:1: underlay.addresses[0]: "host" is not an IP address: write one such as 192.0.2.1 or 2001:db8::1`},
		{"underlay: {addresses: 192.0.2.1}", `f.yaml:1: underlay.addresses: a list is wanted here: write [192.0.2.1]`},
		{"underlay: {addresses: ['2001:db8::1']}", `f.yaml:6: networks[0].peers[0]: 192.0.2.2 is IPv4, but underlay.addresses holds no IPv4 address: add one, or give the peer's IPv6 address`},
	} {
		wrong(t, c.line+"\n"+one, c.want)
	}
}

// TestBadNetwork replaces something in the network.
func TestBadNetwork(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"vni: 42", "vni: 16777216", `f.yaml:3: networks[0].vni: VNI 16777216 is out of range: choose a number from 1 to 16777215 (24 bits, RFC 7348)`},
		{"vni: 42", "vni: 99999999999999999999", `f.yaml:3: networks[0].vni: VNI "99999999999999999999" is not a number: choose a number from 1 to 16777215`},
		{"vni: 42", "vni: 0", `f.yaml:3: networks[0].vni: VNI 0 is out of range: choose a number from 1 to 16777215 (24 bits, RFC 7348)`},
		{"vni: 42", "vni: -1", `f.yaml:3: networks[0].vni: VNI "-1" is not a number: choose a number from 1 to 16777215`},
		{"vni: 42", "vni: x", `f.yaml:3: networks[0].vni: VNI "x" is not a number: choose a number from 1 to 16777215`},
		{"vni: 42", "vni:", `f.yaml:3: networks[0].vni: it has no value: give it one, or take it out`},
		{"    vni: 42\n", "", `f.yaml:2: networks[0].vni: it is missing: choose a number from 1 to 16777215`},
		{"name: blue", "name: ''", `f.yaml:2: networks[0].name: it is missing: give a name`},
		{"name: blue", "name: a b", `f.yaml:2: networks[0].name: "a b" has ' ' in it: use letters, digits and, but not first, any of . _ -`},
		{"  - name: blue\n    vni", "  - vni", `f.yaml:2: networks[0].name: it is missing: give a name`},
		{"    device: blue0\n", "", `f.yaml:2: networks[0].device: it is missing: name the TAP device, such as blue0`},
		{"blue0", "a-very-long-name", `f.yaml:4: networks[0].device: "a-very-long-name" has 16 bytes: choose a name of at most 15`},
		{"blue0", "blue/0", `f.yaml:4: networks[0].device: "blue/0" has '/' in it: use letters, digits and any of . _ -`},
		{"blue0", "blue%d", `f.yaml:4: networks[0].device: "blue%d" has '%' in it: use letters, digits and any of . _ -`},
		{"blue0", "'blue 0'", `f.yaml:4: networks[0].device: "blue 0" has ' ' in it: use letters, digits and any of . _ -`},
		{"blue0", "all", `f.yaml:4: networks[0].device: "all" means something else to the kernel: choose another name`},
	} {
		if !strings.Contains(one, c.old) {
			t.Errorf("%q is not in the file", c.old)
		}
		wrong(t, strings.Replace(one, c.old, c.new, 1), c.want)
	}
}

// TestBadAddition puts a line below those of the network.
func TestBadAddition(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"address: 10.42.0.1", `f.yaml:6: networks[0].address[0]: "10.42.0.1" has no prefix length: write 10.42.0.1/24, or whatever the length of its subnet is`},
		{"address: fd42::1", `f.yaml:6: networks[0].address[0]: "fd42::1" has no prefix length: write fd42::1/64, or whatever the length of its subnet is`},
		{"address: 10.42.0.0/24", `f.yaml:6: networks[0].address[0]: 10.42.0.0/24 is the address of the subnet itself: give that of a host in it, such as 10.42.0.1/24`},
		{"address: 10.42.0.255/24", `f.yaml:6: networks[0].address[0]: 10.42.0.255/24 is the broadcast address of its subnet: give that of a host in it`},
		{"address: fd42::/64", `f.yaml:6: networks[0].address[0]: fd42::/64 is the anycast address of the routers in the subnet (RFC 4291): give that of a host in it, such as fd42::1/64`},
		{"address: 10.42.0.1/33", `f.yaml:6: networks[0].address[0]: "10.42.0.1/33" is not an address with a prefix length: write one such as 10.42.0.1/24 or fd42::1/64`},
		{"address: 0.0.0.0/0", `f.yaml:6: networks[0].address[0]: 0.0.0.0 is not the address of one host: give that`},
		{"address: 10.0.0.1/0", `f.yaml:6: networks[0].address[0]: 10.0.0.1/0 would route everything into the network: give the prefix length of its subnet`},
		{"address: 224.0.0.1/24", `f.yaml:6: networks[0].address[0]: 224.0.0.1 is not the address of one host: give that`},
		{"address: 127.0.0.2/8", `f.yaml:6: networks[0].address[0]: 127.0.0.2 is not the address of one host: give that`},
		{"address: [10.42.0.1/24, 10.42.0.1/16]", `f.yaml:6: networks[0].address[1]: the address 10.42.0.1 is used by networks[0].address[0] already (f.yaml:6): choose another one, or take this one out`},
		{"learning: yes", `f.yaml:6: networks[0].learning: "yes" is neither true nor false: write one of the two`},
		{"mtu: 67", `f.yaml:6: networks[0].mtu: 67 is out of range: choose from 68 to 65485, or take the key out to have it derived from the underlay`},
		{"mtu: 65486", `f.yaml:6: networks[0].mtu: 65486 is out of range: choose from 68 to 65485, or take the key out to have it derived from the underlay`},
		{"mtu: 0", `f.yaml:6: networks[0].mtu: 0 is out of range: choose from 68 to 65485, or take the key out to have it derived from the underlay`},
		{"mtu: 1279\n    address: fd42::1/64", `f.yaml:6: networks[0].mtu: 1279 is too small for the IPv6 address fd42::1/64: choose at least 1280`},
		{"mtu: 1279\n    endpoints: [{mac: 02:00:00:00:00:02, ips: [10.42.0.2, 'fd42::2'], vtep: 192.0.2.2}]", `f.yaml:6: networks[0].mtu: 1279 is too small for the IPv6 address fd42::2 of an endpoint: choose at least 1280`},
		{"mss: 87", `f.yaml:6: networks[0].mss: 87 is out of range: choose from 88 to 65445, or leave it out to have it follow what each path leaves`},
		{"mss: 0", `f.yaml:6: networks[0].mss: 0 is out of range: choose from 88 to 65445, or leave it out to have it follow what each path leaves`},
		{"mss: 65446", `f.yaml:6: networks[0].mss: 65446 is out of range: choose from 88 to 65445, or leave it out to have it follow what each path leaves`},
		{"mss: -1", `f.yaml:6: networks[0].mss: -1 is out of range: choose from 88 to 65445, or leave it out to have it follow what each path leaves`},
		{"mtu: 1400\n    mss: 1361", `f.yaml:7: networks[0].mss: 1361 does not fit: an mtu of 1400 leaves 1360 at most; choose that or less, or leave it out`},
		{"allow_nested:", `f.yaml:6: networks[0].allow_nested: it has no value: give it one, or take it out`},
		{"allow-nested: true", `f.yaml:6: networks[0].allow-nested: unknown key: did you mean allow_nested?`},
		{"\n  - {name: blue, vni: 43, device: red0}", `f.yaml:7: networks[1].name: the name blue is used by networks[0].name already (f.yaml:2): choose another one, or take this one out`},
		{"\n  - {name: red, vni: 42, device: red0}", `f.yaml:7: networks[1].vni: VNI 42 is used by networks[0].vni already (f.yaml:3): choose another one, or take this one out`},
		{"\n  - {name: red, vni: 43, device: blue0}", `f.yaml:7: networks[1].device: the device blue0 is used by networks[0].device already (f.yaml:4): choose another one, or take this one out`},
		{"\n  - {name: red, vni: 43, device: red0, address: 10.0.0.1/8, peers: [192.0.2.2]}\n  - {name: green, vni: 44, device: green0, address: 10.0.0.1/16, peers: [192.0.2.2]}", `f.yaml:8: networks[2].address[0]: the address 10.0.0.1 is used by networks[1].address[0] already (f.yaml:7): choose another one, or take this one out`},
		{"\n---\nnode: x", `f.yaml:7: a second YAML document begins here: overlayd reads one; take out the line ---`},
	} {
		wrong(t, one+"    "+c.line+"\n", c.want)
	}
}

// TestBadPeers gives the network other peers.
func TestBadPeers(t *testing.T) {
	for _, c := range []struct{ peers, want string }{
		{"192.0.2.1", `f.yaml:5: networks[0].peers[0]: 192.0.2.1 is an address of this host, on eth0: list the other hosts only`},
		{"127.0.0.5", `f.yaml:5: networks[0].peers[0]: 127.0.0.5 is this host itself: list the other hosts only`},
		{"192.0.2.2, 192.0.2.2", `f.yaml:5: networks[0].peers[1]: the peer 192.0.2.2 is used by networks[0].peers[0] already (f.yaml:5): choose another one, or take this one out`},
		{"239.0.0.1", `f.yaml:5: networks[0].peers[0]: 239.0.0.1 is a multicast group, and overlayd replicates to each host by itself: list the addresses of the hosts`},
		{"0.0.0.0", `f.yaml:5: networks[0].peers[0]: 0.0.0.0 stands for no host: give the address of one`},
		{"255.255.255.255", `f.yaml:5: networks[0].peers[0]: 255.255.255.255 is the broadcast address: give the address of one host`},
		{"'fe80::1'", `f.yaml:5: networks[0].peers[0]: fe80::1 is link-local, which says nothing without an interface: give a global or unique local address`},
		{"'fe80::1%eth0'", `f.yaml:5: networks[0].peers[0]: fe80::1%eth0 has a zone: give an address that is valid on the whole host`},
		{"'::ffff:192.0.2.2'", `f.yaml:5: networks[0].peers[0]: ::ffff:192.0.2.2 is an IPv4 address in IPv6 form: write 192.0.2.2`},
		{"'ff02::1'", `f.yaml:5: networks[0].peers[0]: ff02::1 is a multicast group, and overlayd replicates to each host by itself: list the addresses of the hosts`},
		{"'::'", `f.yaml:5: networks[0].peers[0]: :: stands for no host: give the address of one`},
		{"192.0.2", `f.yaml:5: networks[0].peers[0]: "192.0.2" is not an IP address: write one such as 192.0.2.1 or 2001:db8::1`},
		{"192.0.2.2/32", `f.yaml:5: networks[0].peers[0]: "192.0.2.2/32" has a prefix length, where one address is wanted: write 192.0.2.2`},
		{"~", `f.yaml:5: networks[0].peers[0]: it has no value: give it one, or take it out`},
		{"", `f.yaml:5: networks[0].peers: there is no peer, so no route tells the address of this host: list the other hosts, or set underlay.addresses`},
	} {
		wrong(t, strings.Replace(one, "192.0.2.2", c.peers, 1), c.want)
	}
}

// TestBadPeerFamily has an underlay of the other family only.
func TestBadPeerFamily(t *testing.T) {
	text := strings.Replace(one, "192.0.2.2", "2001:db8::2", 1)
	wrong(t, "underlay: {addresses: [192.0.2.1]}\n"+text,
		"f.yaml:6: networks[0].peers[0]: 2001:db8::2 is IPv6, but underlay.addresses holds no IPv6 address: add one, or give the peer's IPv4 address")
}

// TestBadEndpoints gives the network static endpoints.
func TestBadEndpoints(t *testing.T) {
	for _, c := range []struct{ endpoints, want string }{
		{"{vtep: 192.0.2.2}", `f.yaml:7: networks[0].endpoints[0].mac: it is missing: give the MAC address of the station`},
		{"{mac: '01:00:00:00:00:01', vtep: 192.0.2.2}", `f.yaml:7: networks[0].endpoints[0].mac: 01:00:00:00:00:01 is not the address of one station: give that one`},
		{"{mac: '00:00:00:00:00:00', vtep: 192.0.2.2}", `f.yaml:7: networks[0].endpoints[0].mac: 00:00:00:00:00:00 is not the address of one station: give that one`},
		{"{mac: 02, vtep: 192.0.2.2}", `f.yaml:7: networks[0].endpoints[0].mac: MAC address "02" is not six octets such as 02:42:0a:2a:00:01`},
		{"{mac: '02:00:00:00:00:01', vtep: 192.0.2.3}", `f.yaml:7: networks[0].endpoints[0].vtep: 192.0.2.3 is none of the peers of this network: add it to networks[0].peers, or choose one of them`},
		{"{mac: '02:00:00:00:00:01'}", `f.yaml:7: networks[0].endpoints[0].vtep: it is missing: give the address of one of the peers`},
		{"{mac: '02:00:00:00:00:01', ips: [10.42.0.1], vtep: 192.0.2.2}", `f.yaml:7: networks[0].endpoints[0].ips[0]: the address 10.42.0.1 is used by networks[0].address[0] already (f.yaml:6): choose another one, or take this one out`},
		{"{mac: '02:00:00:00:00:01', ips: ['::'], vtep: 192.0.2.2}", `f.yaml:7: networks[0].endpoints[0].ips[0]: :: is not the address of one host: give that`},
		{"{mac: '02:00:00:00:00:01', vtep: 192.0.2.2}, {mac: '02:00:00:00:00:01', vtep: 192.0.2.2}", `f.yaml:7: networks[0].endpoints[1].mac: the MAC address 02:00:00:00:00:01 is used by networks[0].endpoints[0].mac already (f.yaml:7): choose another one, or take this one out`},
	} {
		wrong(t, one+"    address: 10.42.0.1/24\n    endpoints: ["+c.endpoints+"]\n", c.want)
	}
}
