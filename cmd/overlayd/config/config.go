package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// The defaults of keys that are not in the file.
const (
	DefaultSocket  = "/run/overlayd/overlayd.sock"
	DefaultMetrics = "127.0.0.1:9789"
	DefaultPort    = 4789 // RFC 7348, section 8
	DefaultTTL     = 64
	// DefaultDataDir is where the control plane keeps its state, if it has no networks stated by hand.
	DefaultDataDir = "/var/lib/overlayd"
	DefaultControl = 7789 // TCP
	DefaultGossip  = 7790 // TCP and UDP
)

// maxFile bounds the file, in bytes: enough for some hundred thousand static endpoints.
const maxFile = 32 << 20

// Config is the whole configuration of the daemon.
type Config struct {
	Node     string     `yaml:"node"`    // default: the host name
	Socket   string     `yaml:"socket"`  // of the local API
	Metrics  string     `yaml:"metrics"` // host:port of the Prometheus endpoint; empty = off
	Log      slog.Level `yaml:"log"`
	Disable  []string   `yaml:"disable"`   // features that stay off
	Queues   int        `yaml:"queues"`    // 0 = chosen by the number of CPUs
	BusyPoll int        `yaml:"busy_poll"` // in microseconds; 0 = off
	DataDir  string     `yaml:"data_dir"`  // of the control plane; "" = the node takes part in no cluster
	Underlay Underlay   `yaml:"underlay"`
	Cluster  Cluster    `yaml:"cluster"`
	Networks []Network  `yaml:"networks"`

	file   string
	places map[string]place // by path, such as networks[0].vni
}

// Underlay says how datagrams travel between hosts.
type Underlay struct {
	Port      int          `yaml:"port"`
	Addresses []netip.Addr `yaml:"addresses"` // in order of preference; default: the sources of the routes to the peers
	TTL       int          `yaml:"ttl"`
	Checksum  string       `yaml:"checksum"` // auto, on or off
}

// Cluster says how the nodes of a cluster talk to each other.
type Cluster struct {
	Listen         netip.Addr `yaml:"listen"`          // the only local address for both ports; zero = all
	ControlPort    int        `yaml:"control_port"`    // TCP
	GossipPort     int        `yaml:"gossip_port"`     // TCP and UDP
	RaftMultiplier int        `yaml:"raft_multiplier"` // stretches all timeouts of Raft
}

// Network is one VXLAN network on this host.
type Network struct {
	Name        string         `yaml:"name"`
	VNI         addr.VNI       `yaml:"vni"`
	Device      string         `yaml:"device"`
	Addresses   []netip.Prefix `yaml:"address,single"`
	Peers       []netip.Addr   `yaml:"peers"`
	Learning    bool           `yaml:"learning"` // default: true
	AllowNested bool           `yaml:"allow_nested"`
	MTU         mtu.OverlayMTU `yaml:"mtu"` // default: what the paths to the peers carry
	MSS         mtu.MSS        `yaml:"mss"` // default: what each path carries
	Endpoints   []Endpoint     `yaml:"endpoints"`
}

// Endpoint is a station whose place is stated by hand.
type Endpoint struct {
	MAC  addr.MAC     `yaml:"mac"`
	IPs  []netip.Addr `yaml:"ips"`
	VTEP netip.Addr   `yaml:"vtep"`
}

// setDefaults is called before the keys of the file are read.
func (c *Config) setDefaults() {
	c.Socket = DefaultSocket
	c.Metrics = DefaultMetrics
	c.Underlay = Underlay{Port: DefaultPort, TTL: DefaultTTL, Checksum: "auto"}
	c.Cluster = Cluster{ControlPort: DefaultControl, GossipPort: DefaultGossip, RaftMultiplier: 1}
}

func (n *Network) setDefaults() { n.Learning = true }

// Override is a key of the top level whose value is given by a flag of the command line. It takes the place
// of what the file says.
type Override struct {
	Key    string   // such as "log"
	Flag   string   // such as "--log", for errors
	Values []string // one, or for a list any number
}

// Facts is what the checks need to know about the host and this build.
type Facts struct {
	Hostname   string
	Features   []string                                     // names that `disable` may hold
	HasAddress func(netip.Addr) (device string, local bool) // whether an address is on an interface of this host
}

// place is where a value comes from: a line of the file, or a flag.
type place struct {
	line int
	flag string
}

// Error says what is wrong with the configuration, or went wrong because of it, and where.
type Error struct {
	Where string // FILE:LINE, FILE or a flag
	Key   string // path of the key, such as networks[0].vni; "" when it is no matter of one key
	Err   error
}

func (e *Error) Error() string {
	if e.Key == "" {
		return e.Where + ": " + e.Err.Error()
	}
	return e.Where + ": " + e.Key + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Load reads and checks a file. Every error that it returns is an *Error, the first one met.
func Load(path string, overrides []Override, facts Facts) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		var perr *os.PathError
		if errors.As(err, &perr) {
			err = perr.Err
		}
		return nil, &Error{Where: path, Err: fmt.Errorf("read the configuration: %w; name the file with --config", err)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than %d MiB; is it the right file?", maxFile>>20)
	}
	if err != nil {
		return nil, &Error{Where: path, Err: fmt.Errorf("read the configuration: %w", err)}
	}
	return parse(path, data, overrides, facts)
}

// Defaults is Load for a host without a file.
func Defaults(overrides []Override, facts Facts) (*Config, error) {
	return parse("no configuration file", nil, overrides, facts)
}

// parse is Load for a file that has been read.
func parse(file string, data []byte, overrides []Override, facts Facts) (*Config, error) {
	c := &Config{file: file, places: make(map[string]place), Node: facts.Hostname}
	c.setDefaults()
	if err := c.decode(data); err != nil {
		return nil, err
	}
	for _, o := range overrides {
		if err := c.override(o); err != nil {
			return nil, err
		}
	}
	if _, stated := c.places["data_dir"]; !stated && len(c.Networks) == 0 {
		c.DataDir = DefaultDataDir
	}
	if err := c.check(facts); err != nil {
		return nil, err
	}
	return c, nil
}

// At gives an error about the key with this path its place: the line of the file or the flag.
func (c *Config) At(path string, err error) *Error {
	where, flag := c.where(path)
	if flag {
		path = "" // the flag says which key it is
	}
	return &Error{Where: where, Key: path, Err: err}
}

// failf is At with a format.
func (c *Config) failf(path, format string, args ...any) error {
	return c.At(path, fmt.Errorf(format, args...))
}

// where is the place of a key, and whether that is a flag; of a key that is not there it is that of the
// nearest one above.
func (c *Config) where(path string) (where string, flag bool) {
	for path != "" {
		if p, ok := c.places[path]; ok {
			if p.flag != "" {
				return p.flag, true
			}
			return c.file + ":" + strconv.Itoa(p.line), false
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return c.file, false
}

// NodeStated reports whether the name of the node was stated, and is not just that of the host.
func (c *Config) NodeStated() bool {
	_, ok := c.places["node"]
	return ok
}
