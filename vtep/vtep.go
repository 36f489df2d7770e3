package vtep

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/fastpath"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/pathmtu"
	"github.com/overlayd/overlayd/vtep/underlay"
)

const (
	defaultTTL  = 64
	sourcePorts = 16  // sockets a local address; each costs a file descriptor and no memory to speak of
	sampleCount = 256 // recent drops that are kept
)

// ConfigError says which field of a Config is at fault.
type ConfigError struct {
	Field string // such as networks[0].vni
	Err   error
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is wrong with the field.
func (e *ConfigError) Unwrap() error { return e.Err }

// HostError says which field of a Config names something that this host does not give: a port or a device
// that is taken, an address that it does not have.
type HostError struct {
	Field string // such as networks[0].device
	Err   error
}

func (e *HostError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap returns what is in the way.
func (e *HostError) Unwrap() error { return e.Err }

// errNoPeers is why no address of the underlay can be derived.
var errNoPeers = errors.New("no network has a peer")

// ErrNoNetwork means that no network has the name that was asked for.
var ErrNoNetwork = errors.New("no such network")

// VTEP forwards between the TAPs of its networks and the underlay. Its methods may be called from any goroutine,
// New, Run and Close apart.
type VTEP struct {
	cfg      Config
	log      *slog.Logger
	start    time.Time // zero of the packet path's clock
	features *features
	tables   *forward.Tables
	samples  *forward.Samples
	drops    forward.Drops // of datagrams that belong to no network
	received atomic.Uint64 // datagrams
	host     uint64        // names the network namespace that New was called in

	// change is held by whoever changes what there is: networks, attachments, endpoints, MTUs. What is guarded
	// by mu or sendMu is written with change held, too, so that its holder reads it without.
	change  sync.Mutex
	workers []*worker // those that run; guarded by change
	// All of these are guarded by change, too.
	injection injection
	pairs     *pairs                        // nil: the feature is off
	nodes     map[netip.Addr]Node           // as stated, by what names them
	sources   map[netip.Addr][]netip.Addr   // of the routes to each node
	choices   map[netip.Addr]pathmtu.Choice // what path probes say, by what names the VTEP
	remotes   []remote                      // indexed by VTEPID
	told      map[string]string             // what the log has been told last, by topic

	inletsAgain backoff // when programs that could not be attached to underlay devices are tried again

	prober   *pathmtu.Prober // nil: path probes are off
	findings findings

	announcements announcements
	stirred       chan struct{} // holds one while a network is to be looked at

	// sendMu is held for reading while a batch is being sent, and for writing to replace what is below.
	sendMu    sync.RWMutex
	endpoints []*underlay.Endpoint
	dests     []underlay.Destination
	whole     []int           // as forward.Egress wants it
	direct    []*fastpath.Way // indexed by VTEPID: how the kernel sends by itself
	retired   atomic.Uint64   // receive overflow of endpoints that are gone

	mu       sync.RWMutex
	networks []*network // in the order in which they were added; replaced as a whole
	names    map[string]*network
	peers    map[netip.Addr]PeerStatus // by the address of any VTEP, as found at the last look at the routes
	sent     uint64                    // datagrams of networks that are gone
}

// New makes everything that cfg names: sockets, TAPs with their addresses and MTU. What it made is ready to
// forward as soon as Run is called. On error nothing is left behind; the error is a *ConfigError if the
// configuration is at fault. Without any network, the underlay's addresses must be stated.
func New(cfg Config) (*VTEP, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Underlay.Port == 0 {
		cfg.Underlay.Port = header.VXLANPort
	}
	if cfg.Underlay.TTL == 0 {
		cfg.Underlay.TTL = defaultTTL
	}
	if cfg.Queues == 0 {
		cfg.Queues = max(1, min(runtime.NumCPU()/2, 8))
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	f, err := newFeatures(cfg.Disable)
	if err != nil {
		return nil, err
	}
	v := &VTEP{
		cfg: cfg, log: cfg.Log, start: time.Now(),
		features: f,
		tables:   forward.NewTables(),
		samples:  forward.NewSamples(sampleCount),
		names:    map[string]*network{},
		peers:    map[netip.Addr]PeerStatus{},
		nodes:    map[netip.Addr]Node{},
		sources:  map[netip.Addr][]netip.Addr{},
		choices:  map[netip.Addr]pathmtu.Choice{},
		told:     map[string]string{},

		announcements: announcements{came: make(chan struct{}, 1)},
		stirred:       make(chan struct{}, 1),
	}
	if err := v.open(); err != nil {
		return nil, errors.Join(err, v.abandon())
	}
	return v, nil
}

func (v *VTEP) open() error {
	var err error
	if v.host, err = link.NamespaceID(); err != nil {
		return err
	}
	locals, err := v.localAddresses()
	if err != nil {
		return err
	}
	for i := range v.cfg.Networks {
		for j, p := range v.cfg.Networks[i].Peers {
			if slices.Contains(locals, p) {
				return &ConfigError{fmt.Sprintf("networks[%d].peers[%d]", i, j), fmt.Errorf("%v is this host's own address: state remote hosts alone", p)}
			}
		}
	}
	if err := v.openProber(); err != nil {
		return err
	}
	for _, a := range locals {
		e, err := v.openEndpoint(a)
		if err != nil {
			return err
		}
		v.endpoints = append(v.endpoints, e)
	}
	v.change.Lock()
	defer v.change.Unlock()
	v.openInjection()
	v.openPairs()
	for i := range v.cfg.Networks {
		if err := v.addNetwork(v.cfg.Networks[i], fmt.Sprintf("networks[%d].", i)); err != nil {
			return err
		}
	}
	v.openPrecedence()
	return nil
}

// abandon is Close for a VTEP that could not be made: sandboxes that were not there before go, too.
func (v *VTEP) abandon() error {
	var errs []error
	for _, n := range v.networks {
		if n.sandbox != nil && !n.adopted {
			errs = append(errs, v.closePort(n), n.sandbox.Remove())
		}
	}
	return errors.Join(append(errs, v.Close())...)
}

// Close removes the interfaces of the host's own networks and closes all sockets. Of a network with a sandbox
// only the TAP goes: the sandbox, its bridge and the interfaces of the containers stay for the next VTEP on
// this host, which takes them over in AddNetwork; RemoveNetwork and RemoveOrphans remove them. Run must have
// returned, or never been called.
func (v *VTEP) Close() error {
	v.change.Lock()
	defer v.change.Unlock()
	var errs []error
	for _, n := range v.networks {
		if err := v.closePort(n); err != nil {
			errs = append(errs, fmt.Errorf("removing %s: %w", n.cfg.Device, err))
		}
		if n.sandbox != nil {
			if err := n.sandbox.Close(); err != nil {
				errs = append(errs, fmt.Errorf("network %s: %w", n.cfg.Name, err))
			}
		}
	}
	for _, e := range v.endpoints {
		if err := e.Close(); err != nil {
			errs = append(errs, fmt.Errorf("closing the sockets of %v: %w", e.Local, err))
		}
	}
	if err := v.closePairs(); err != nil {
		errs = append(errs, fmt.Errorf("ending the %s: %w", FeatureFastPath, err))
	}
	if err := v.closeInjection(); err != nil {
		errs = append(errs, fmt.Errorf("removing the device of %s: %w", FeatureTunnelGSO, err))
	}
	v.mu.Lock()
	v.networks, v.names = nil, map[string]*network{}
	v.mu.Unlock()
	v.sendMu.Lock()
	v.endpoints = nil
	v.sendMu.Unlock()
	return errors.Join(errs...)
}

// localAddresses returns the configured addresses or, without any, the source address of the route to the
// first peer of each family that has one, and those of the routes to the addresses of stated nodes.
func (v *VTEP) localAddresses() ([]netip.Addr, error) {
	if a := v.cfg.Underlay.Addresses; len(a) > 0 {
		return a, nil
	}
	byFamily := map[mtu.Family]netip.Addr{}
	var order []netip.Addr
	var failed error
	for _, peers := range v.allPeers() {
		for _, p := range peers {
			if byFamily[mtu.FamilyOf(p)].IsValid() {
				continue
			}
			r, err := link.RouteTo(p)
			if err != nil {
				failed = err
				continue
			}
			byFamily[mtu.FamilyOf(p)] = r.Src
			order = append(order, r.Src)
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(v.sources), netip.Addr.Compare) {
		for _, a := range v.sources[name] {
			if len(order) < maxDerived && !slices.Contains(order, a) {
				order = append(order, a)
			}
		}
	}
	if len(order) == 0 {
		if failed == nil {
			failed = errNoPeers
		}
		return nil, &HostError{"underlay.addresses", fmt.Errorf("none is stated, and none can be derived: %w", failed)}
	}
	return order, nil
}

// allPeers returns the peers of each network, and at the start those that the configuration names.
func (v *VTEP) allPeers() [][]netip.Addr {
	var all [][]netip.Addr
	for _, n := range v.networks {
		all = append(all, n.peers)
	}
	if len(v.networks) == 0 {
		for _, n := range v.cfg.Networks {
			all = append(all, n.Peers)
		}
	}
	return all
}

// openEndpoint opens the sockets at the local address a.
func (v *VTEP) openEndpoint(a netip.Addr) (*underlay.Endpoint, error) {
	c := underlay.Config{
		Local: a, Port: v.cfg.Underlay.Port, TTL: v.cfg.Underlay.TTL,
		Checksum:  v.cfg.Underlay.Checksum != ChecksumOff || a.Is6(),
		Receivers: v.cfg.Queues * v.lanes(),
		Readers:   v.cfg.Queues,
		Sources:   v.buckets(),
		GSO:       v.features.on(FeatureUDPGSO),
		GRO:       v.features.on(FeatureUDPGRO),
		Batch:     v.features.on(FeatureUDPBatch),
		Log:       v.log,
		Hint:      v.hint,
	}
	if !v.features.on(FeatureSourcePorts) {
		c.Sources = 0
	}
	e, err := underlay.Open(c)
	switch {
	case err == nil:
	case errors.Is(err, unix.EADDRINUSE):
		owner := link.UDPPortOwner(netip.AddrPortFrom(a, c.Port))
		if owner == "" {
			owner = "another socket"
		}
		return nil, &HostError{"underlay.port", fmt.Errorf("UDP port %d of %v is taken by %s: stop it, or choose another port on all hosts: %w", c.Port, a, owner, err)}
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, &HostError{"underlay.addresses", fmt.Errorf("no interface of this host has the address %v: correct it, or leave it out to have it derived: %w", a, err)}
	default:
		return nil, fmt.Errorf("opening the underlay: %w", err)
	}
	v.features.missing(FeatureUDPGSO, e.Missing["gso"])
	v.features.missing(FeatureUDPGRO, e.Missing["gro"])
	return e, nil
}

// buckets returns how many source ports flows are spread over.
func (v *VTEP) buckets() int {
	if v.features.on(FeatureSourcePorts) {
		return sourcePorts
	}
	return 1
}

// now returns the time of the packet path's clock, in nanoseconds since New.
func (v *VTEP) now() int64 { return int64(time.Since(v.start)) }

// publishDestinations makes senders use the current endpoints for all VTEPs.
func (v *VTEP) publishDestinations() {
	v.replaceDestinations()
	v.hookUnderlay()
}

func (v *VTEP) replaceDestinations() {
	v.sendMu.Lock()
	defer v.sendMu.Unlock()
	v.dests = v.dests[:0:0]
	for id := fdb.VTEPID(0); int(id) < v.tables.VTEPs(); id++ {
		a := v.tables.VTEP(id).Addr
		d := underlay.NewDestination(v.endpointTo(id), a, v.cfg.Underlay.Port)
		d.Whole = v.wayTo(id, d.Endpoint, a)
		v.dests = append(v.dests, d)
	}
	v.whole = wholeLimits(v.dests)
	v.direct = v.directWays(v.dests)
}

// endpointFor returns the first endpoint of a's family, or nil.
func (v *VTEP) endpointFor(a netip.Addr) *underlay.Endpoint {
	for _, e := range v.endpoints {
		if mtu.FamilyOf(e.Local) == mtu.FamilyOf(a) {
			return e
		}
	}
	return nil
}
