package lab

import (
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

func TestEmbeddedScenarios(t *testing.T) {
	for _, name := range Names() {
		sc, err := Load(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if sc.Name != name || sc.About == "" {
			t.Errorf("%s calls itself %q, about %q", name, sc.Name, sc.About)
		}
		// What is written is what was read.
		text, err := yaml.Marshal(sc)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(text)
		if err != nil {
			t.Errorf("%s does not survive: %v\n%s", name, err, text)
		}
		again, _ := yaml.Marshal(back)
		if string(again) != string(text) {
			t.Errorf("%s became\n%s\nfrom\n%s", name, again, text)
		}
	}
}

const good = `
name: t
about: A test.
hosts:
  - name: a
    underlay: [192.0.2.1/24, "2001:db8:1::1/64"]
    loss: 0.5%
    offloads: {tunnel: off}
  - name: b
    underlay: ["2001:db8:2::1/64"]
    mtu: 1400
networks:
  - name: blue
    vni: 42
    subnets: [10.42.0.0/24]
    members: {a: overlayd, b: kernel}
`

func TestParse(t *testing.T) {
	sc, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	n := &sc.Networks[0]
	if sc.Topology != Routed || sc.Hosts[0].MTU != 1500 || sc.Hosts[0].Loss != 5000 || n.Underlay != IPv6 {
		t.Errorf("got %+v", sc)
	}
	if on, ok := sc.Hosts[0].Offloads["tunnel"]; on || !ok {
		t.Errorf("offloads %v", sc.Hosts[0].Offloads)
	}
	if got, err := sc.kernelMTU(n); err != nil || got != mtu.OverlayMTU(1330) {
		t.Errorf("MTU of the kernel's device: %v, %v", got, err)
	}
}

const clustered = `
name: t
topology: bridged
hosts:
  - name: a
    underlay: [192.0.2.1/24]
    cluster: manager
    containers: [c1]
  - name: b
    underlay: [192.0.2.2/24]
    cluster: worker
    containers: [c2]
networks:
  - name: blue
    subnets: [10.42.0.0/24]
    endpoints:
      - {container: c1, ip: [10.42.0.10]}
      - {container: c2}
`

// TestParseRefuses changes one thing at a time.
func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{good, "", "empty"},
		{"name: t", "name: t\ncolour: red", "colour"},
		{"loss: 0.5%", "los: 1%", "los"},
		{"members: {", "mambers: {", "mambers"},
		{"name: t", "name: ../t", "name"},
		{"0.5%", "0.5", "percentage"},
		{"0.5%", "101%", "percentage"},
		{"0.5%", "NaN%", "percentage"},
		{"vni: 42", "vni: 16777216", "24 bits"},
		{"name: b", "name: a", "twice"},
		{"name: b", "name: router", "taken"},
		{"name: b", "name: far-too-long-a-name", "name"},
		{"2001:db8:2::1/64", "2001:db8:1::2/64", "overlaps"},
		{"192.0.2.1/24", "192.0.2.1/32", "wider subnet"},
		{"192.0.2.1/24", "192.0.2.254/24", "router"},
		{"192.0.2.1/24,", "192.0.2.1/24, 192.0.2.2/24,", "one of each family"},
		{"mtu: 1400", "mtu: 1200", "1280"},
		{"10.42.0.0/24", "10.42.0.1/24", "host bits"},
		{"10.42.0.0/24", "10.42.0.0/31", "no room"},
		{"[10.42.0.0/24]", "['fd00:42::/64']\n    mtu: 1200", "IPv6 needs"},
		{"b: kernel", "b: ovs", "neither"},
		{"b: kernel", "c: kernel", "not one of the hosts"},
		{"vni: 42", "vni: 42\n    underlay: ipv4", "b has no address"},
		{"vni: 42", "vni: 42\n    underlay: ipx", "neither"},
		{"about: A test.", "topology: ring", "topology"},
		{"about: A test.", "topology: bridged", "share one"},
		{"about: A test.", "topology: direct", "router that loses"},
		{"about: A test.", "topology: direct\nrouter: {drop_icmp: all}", "sends ICMP"},
		{"about: A test.", "router: {drop_icmp: some}", "drop_icmp"},
		{"[10.42.0.0/24]", "[10.42.0.0/24]\n    mtu: 1200\n    allow_nested: maybe", "maybe"},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%q is not in the scenario", c.old)
		}
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q in place of %q: %v, want %q", c.new, c.old, err, c.want)
		}
	}
	const direct = `
name: t
topology: direct
hosts:
  - name: a
    underlay: [192.0.2.1/24]
  - name: b
    underlay: [192.0.2.2/24]
`
	for change, want := range map[string]string{
		"":                              "",
		"    mtu: 1400\n":               "share a link",
		"    offloads: {tunnel: off}\n": "share a link",
		"  - name: c\n    underlay: [192.0.2.3/24]\n": "not 3",
	} {
		_, err := Parse([]byte(direct + change))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("direct, with %q: %v, want %q", change, err, want)
		}
	}
	for change, want := range map[string]string{
		"":                                      "",
		"cluster: manager|cluster: worker":      "has to be a manager",
		"cluster: worker|cluster: boss":         "neither",
		"cluster: worker|overlayd: {queues: 2}": "need a cluster",
		"cluster: worker|cluster: worker\n    overlayd: {queues: 2}": "configuration file",
		"192.0.2.2/24|2001:db8::2/64":                                "prefers ipv4",
		"[c2]|[a]":                                                   "a is the name",
		"[c2]|[c1]":                                                  "c1 is the name",
		"[c2]|[c2, router]":                                          "router is the name",
		"[c2]|[C2]":                                                  "small letters",
		"{container: c2}|{container: c3}":                            "no host has it",
		"{container: c2}|{container: c1}":                            "already",
		"{container: c2}|{contaner: c2}":                             "contaner",
		"10.42.0.10|10.43.0.10":                                      "none of the subnets",
		"10.42.0.10|10.42.0.10, 10.42.0.11":                          "two addresses",
		"endpoints:|members: {a: overlayd}\n    endpoints:":          "take either out",
		"endpoints:|underlay: ipv4\n    endpoints:":                  "leave it out",
		"endpoints:|allow_nested: true\n    endpoints:":              "no such setting",
		"10.42.0.0/24|10.42.1.0/24":                                  "none of the subnets",
	} {
		old, replacement, _ := strings.Cut(change, "|")
		if !strings.Contains(clustered, old) {
			t.Fatalf("%q is not in the scenario", old)
		}
		_, err := Parse([]byte(strings.Replace(clustered, old, replacement, 1)))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("in a cluster, %q in place of %q: %v, want %q", replacement, old, err, want)
		}
	}
	if _, err := Parse([]byte(good + "---\n" + good)); err == nil || !strings.Contains(err.Error(), "second") {
		t.Errorf("two documents: %v", err)
	}
}
