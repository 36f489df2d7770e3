package lab

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

// Scenario describes a lab. Load and Parse return it complete and checked; one that is written in Go is
// checked by Up.
type Scenario struct {
	Name     string        `yaml:"name"`
	About    string        `yaml:"about"` // one or two sentences for people
	Story    Story         `yaml:"story,omitempty"`
	Topology Topology      `yaml:"topology"` // empty = Routed
	Router   RouterSpec    `yaml:"router,omitempty"`
	Hosts    []HostSpec    `yaml:"hosts"`
	Networks []NetworkSpec `yaml:"networks,omitempty"`
}

// Topology says how the router namespace joins the hosts.
type Topology string

const (
	// Routed gives each host a subnet of its own; the router forwards and sends ICMP errors.
	Routed Topology = "routed"
	// Bridged puts all hosts on one subnet, joined by a bridge that drops too-big frames in silence.
	Bridged Topology = "bridged"
	// Direct joins two hosts by one veth, with nothing in between: there is no router namespace. MTU and
	// offloads are those of the link, so both hosts have the same.
	Direct Topology = "direct"
)

// RouterSpec describes the router between the hosts.
type RouterSpec struct {
	DropICMP ICMPFilter `yaml:"drop_icmp,omitempty"` // empty = DropNone
	// MTU is that of a hop between the hosts, which their own links do not show; 0 = there is none narrower than these.
	MTU mtu.UnderlayMTU `yaml:"mtu,omitempty"`
}

// ICMPFilter says which of its own ICMP messages the router keeps to itself.
type ICMPFilter string

const (
	// DropNone lets all ICMP of the router out.
	DropNone ICMPFilter = "none"
	// DropTooBig holds back ICMP "fragmentation needed" (RFC 1191) and ICMPv6 "packet too big" (RFC 8201).
	DropTooBig ICMPFilter = "too-big"
	// DropAll holds back everything but neighbour discovery, without which IPv6 would not work at all.
	DropAll ICMPFilter = "all"
)

// HostSpec describes one host and its link to the router.
type HostSpec struct {
	Name     string           `yaml:"name"`
	Underlay []netip.Prefix   `yaml:"underlay"`           // address and subnet of eth0, at most one of each family
	MTU      mtu.UnderlayMTU  `yaml:"mtu,omitempty"`      // of the link, both ends; 0 = 1500
	Loss     Loss             `yaml:"loss,omitempty"`     // of what crosses the link, in each direction
	Offloads map[string]bool  `yaml:"offloads,omitempty"` // of both ends of the link: kernel feature names or OffloadGroups
	Overlayd OverlaydSettings `yaml:"overlayd,omitempty"`
	// Floating is an address that only leads to the host: the router translates it, for the others on the subnet as well. A
	// host of the cluster advertises that alone, and the others join by that of the first.
	Floating Address `yaml:"floating,omitempty"`
	// Cluster is the part of the host in the cluster, if it is to be in one; its overlayd has no configuration file then.
	// The first of these hosts makes the cluster, the others join, by the commands that an operator would type.
	Cluster    Role     `yaml:"cluster,omitempty"`
	Containers []string `yaml:"containers,omitempty,flow"` // names; only on hosts of the cluster
}

// Role is a host's part in the cluster of the scenario.
type Role string

const (
	// Manager holds the cluster's log.
	Manager Role = "manager"
	// Worker forwards, and holds a copy of the state.
	Worker Role = "worker"
)

// OverlaydSettings go into the configuration of the host's overlayd. On a host of the cluster, which has none, Disable
// and Log become flags, and the others are not possible.
type OverlaydSettings struct {
	Disable  []string `yaml:"disable,omitempty"`   // features that stay off
	Queues   int      `yaml:"queues,omitempty"`    // 0 = overlayd chooses
	BusyPoll int      `yaml:"busy_poll,omitempty"` // microseconds for which workers look on before they sleep
	Checksum string   `yaml:"checksum,omitempty"`  // outer UDP checksum: auto, on or off; empty = auto
	Log      string   `yaml:"log,omitempty"`       // level; empty = overlayd's own
}

// NetworkSpec describes one overlay network. Either it has Members, hosts whose configuration states it by hand, or it
// has Endpoints and is one of the cluster's.
type NetworkSpec struct {
	Name        string          `yaml:"name"`
	VNI         uint32          `yaml:"vni,omitempty"`          // 0 = the cluster chooses
	Subnets     []netip.Prefix  `yaml:"subnets"`                // as a member, host number N of the scenario has the Nth address of each
	Underlay    Family          `yaml:"underlay,omitempty"`     // of the outer header; empty = IPv4 where all members have it
	MTU         mtu.OverlayMTU  `yaml:"mtu,omitempty"`          // 0 = derived from the links
	AllowNested bool            `yaml:"allow_nested,omitempty"` // overlayd only
	Members     map[string]Kind `yaml:"members,omitempty"`      // by host; a host that is not named has no part in it
	Endpoints   []EndpointSpec  `yaml:"endpoints,omitempty"`
}

// EndpointSpec puts an interface on a network into a container. The endpoint is called as the container is.
type EndpointSpec struct {
	Container string       `yaml:"container"`
	IP        []netip.Addr `yaml:"ip,omitempty,flow"` // at most one of each subnet; where there is none the cluster chooses
}

// Kind is what speaks VXLAN for a host on a network.
type Kind string

const (
	// Overlayd is our own daemon; one serves all the networks of a host.
	Overlayd Kind = "overlayd"
	// Kernel is a vxlan device of the Linux kernel, with an all-zero FDB entry for each peer.
	Kernel Kind = "kernel"
)

// Family is an address family, by the word that YAML has for it.
type Family string

const (
	// IPv4 is the family of outer headers of 20 bytes.
	IPv4 Family = "ipv4"
	// IPv6 is the family of outer headers of 40 bytes.
	IPv6 Family = "ipv6"
)

// outer is the same family as the MTU arithmetic knows it.
func (f Family) outer() mtu.Family {
	if f == IPv6 {
		return mtu.IPv6
	}
	return mtu.IPv4
}

// Address is one that may be left out.
type Address struct{ netip.Addr }

// IsZero reports whether it is left out.
func (a Address) IsZero() bool { return !a.IsValid() }

// Loss is a probability in millionths. In YAML it is a percentage such as "0.5%". It applies to what the
// router's netfilter sees: a superframe that crosses a veth in one piece is lost in one piece.
type Loss uint32

// UnmarshalText reads a percentage from "0%" to "100%".
func (l *Loss) UnmarshalText(b []byte) error {
	digits, ok := strings.CutSuffix(strings.TrimSpace(string(b)), "%")
	v, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(v >= 0 && v <= 100) {
		return fmt.Errorf("loss %q is not a percentage such as 0.5%%", b)
	}
	*l = Loss(math.Round(v * 1e4))
	return nil
}

// MarshalText writes the percentage.
func (l Loss) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

func (l Loss) String() string { return strconv.FormatFloat(float64(l)/1e4, 'f', -1, 64) + "%" }

//go:embed scenarios/*.yaml
var embedded embed.FS

// Names lists the scenarios that come with the program.
func Names() []string {
	entries, _ := fs.ReadDir(embedded, "scenarios") // the directory is compiled in
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Load returns the scenario that comes with the program under this name, or the one in the file of this
// path. What has a slash or ends in .yaml or .yml is a path.
func Load(nameOrPath string) (Scenario, error) {
	var text []byte
	var err error
	if strings.ContainsRune(nameOrPath, '/') || strings.HasSuffix(nameOrPath, ".yaml") || strings.HasSuffix(nameOrPath, ".yml") {
		if text, err = os.ReadFile(nameOrPath); err != nil {
			return Scenario{}, fmt.Errorf("read the scenario: %w", err)
		}
	} else if text, err = embedded.ReadFile(path.Join("scenarios", nameOrPath+".yaml")); err != nil {
		return Scenario{}, fmt.Errorf("there is no scenario %q: choose one of %s, or give the path of a file",
			nameOrPath, strings.Join(Names(), ", "))
	}
	sc, err := Parse(text)
	if err != nil {
		return Scenario{}, fmt.Errorf("scenario %s: %w", nameOrPath, err)
	}
	return sc, nil
}

// Parse decodes a scenario strictly, fills in the defaults and checks it.
func Parse(text []byte) (Scenario, error) {
	var sc Scenario
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&sc); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return Scenario{}, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Scenario{}, errors.New("there is a second YAML document: a file holds one scenario")
	}
	if err := sc.complete(); err != nil {
		return Scenario{}, err
	}
	return sc, nil
}
