package vtep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/vtep/fastpath"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/tap"
)

const (
	// maxLearned bounds what one network learns, so that a host that makes up addresses cannot take all
	// memory: 2 MB.
	maxLearned = 65536
	// queueLength is how many frames wait in one queue of a TAP before the kernel drops. At its default of 500 one
	// burst of a fast sender overruns it.
	queueLength = 4096
	// lanes is how many queues of a TAP, and sockets of an underlay address, a worker reads in turn. A flow
	// waits behind the others of its lane, and of each other network no longer than a batch of as many lanes.
	lanes = 8
	// sandboxTAP is the name of the TAP in a sandbox, where nobody else chooses names.
	sandboxTAP = "tap0"
	// floodRate is how many frames a second are replicated in a network with a sandbox, unless stated. ARP and ND,
	// which make up most of them, are answered from the table and do not count.
	floodRate = 1000
)

// port is an open TAP.
type port struct {
	*tap.Device
	writing []sync.Mutex // serialises the writers of each queue

	// What the kernel forwards by itself; without hooks, nothing.
	hooks  []*fastpath.Hook
	outlet uint32 // number of the TAP for package fastpath
	target fastpath.Target
	again  backoff // when hooks that could not be attached are tried again; guarded by VTEP.change
}

// network is one VNI of this host: its TAP and its forwarding state.
type network struct {
	cfg      Network // as it was added; Peers and Mappings are not kept up to date
	fwd      *forward.Network
	port     atomic.Pointer[port] // nil while there is no TAP
	lost     atomic.Bool          // the TAP was deleted by somebody
	down     atomic.Bool          // the TAP, an interface of the host, is not up
	refused  sync.Once            // the log has been told of a frame that the TAP refused
	stations stations
	healed   atomic.Uint64
	// Frames, among those that are counted, that the kernel has forwarded by itself.
	fastOut, fastIn forward.Traffic

	sandbox *link.Sandbox // nil: the TAP is an interface of the host
	adopted bool          // the sandbox was there before
	guarded guarded

	attention attention

	// As v.networks: guarded by VTEP.mu, and written with VTEP.change held.
	peers    []netip.Addr
	members  []fdb.VTEPID
	attached map[string]*attachment // by ID
}

// newNetwork makes the tables of c, and its sandbox, or finds the one that was left.
func (v *VTEP) newNetwork(c Network) (*network, error) {
	n := &network{cfg: c, attached: map[string]*attachment{}}
	if c.Sandbox {
		var err error
		if n.sandbox, n.adopted, err = link.OpenSandbox(c.VNI, v.host); err != nil {
			return nil, err
		}
	}
	n.fwd = &forward.Network{
		Name: c.Name, VNI: c.VNI,
		Learning: c.Learning, Isolate: c.Isolate, AllowNested: c.AllowNested,
		FDB:       fdb.NewTable(maxLearned),
		Neighbors: fdb.NewNeighbors(),
		Counters:  new(forward.Counters),
		Limit:     forward.NewLimiter(c.FloodRate, c.FloodBurst),
	}
	v.pairs.watchTables(n)
	n.fwd.SetMSS(c.MSS)
	return n, nil
}

// in calls f in the network namespace in which the TAP is.
func (n *network) in(f func() error) error {
	if n.sandbox == nil {
		return f()
	}
	return n.sandbox.Do(f)
}

// openPort makes the TAP. The interface is not up yet.
func (v *VTEP) openPort(n *network) error {
	var opened *port
	err := n.in(func() error {
		dev, err := v.openTAP(n.cfg.Device)
		if err != nil {
			return err
		}
		if err := link.SetMAC(n.cfg.Device, n.fwd.LocalMAC); err != nil {
			return errors.Join(err, dev.Close())
		}
		opened = &port{Device: dev, writing: make([]sync.Mutex, len(dev.Queues))}
		return nil
	})
	if err == nil {
		v.hookTAP(n, opened)
		n.port.Store(opened)
	}
	return err
}

// closePort removes the TAP. No worker may be using it.
func (v *VTEP) closePort(n *network) error {
	if p := n.port.Swap(nil); p != nil {
		return errors.Join(v.unhookTAP(n, p), p.Close())
	}
	return nil
}

func (v *VTEP) openTAP(name string) (*tap.Device, error) {
	t := tap.Config{
		Name:    name,
		Queues:  v.cfg.Queues * v.lanes(),
		Readers: v.cfg.Queues,
		VNet:    v.features.on(FeatureTAPVNet),
		TSO:     v.features.on(FeatureTAPTSO),
		USO:     v.features.on(FeatureTAPUSO),
	}
	if !v.features.on(FeatureTAPMultiqueue) {
		t.Queues = 1
	}
	dev, err := tap.Open(t)
	if err != nil && t.VNet && !isTaken(err) && !errors.Is(err, tap.ErrNoDevice) && !errors.Is(err, unix.EPERM) {
		// Whatever the kernel has against the virtio-net header, a plain TAP may still do.
		t.VNet = false
		refused := err
		if dev, err = tap.Open(t); err == nil {
			v.features.missing(FeatureTAPVNet, refused)
		}
	}
	if isTaken(err) {
		if owner := link.DeviceOwner(name); owner != "" {
			err = fmt.Errorf("%w (%s): remove it, or choose another device", err, owner)
		}
	}
	if err != nil {
		return nil, err
	}
	v.noteMissing(dev)
	return dev, nil
}

// lanes returns how many queues and sockets a worker reads of each kind.
func (v *VTEP) lanes() int {
	if v.features.on(FeatureFairQueues) {
		return max(1, min(lanes, tap.MaxQueues/v.cfg.Queues))
	}
	return 1
}

// isTaken reports whether err means that there is an interface of this name.
func isTaken(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

// noteMissing tells the features what this kernel's TAPs lack.
func (v *VTEP) noteMissing(dev *tap.Device) {
	if dev.Backend == "water" {
		why := errors.New("needs " + FeatureTAPVNet)
		for _, f := range []string{FeatureTAPTSO, FeatureTAPUSO, FeatureTAPMultiqueue, FeatureFairQueues, FeatureGSOMaxSize} {
			v.features.missing(f, why)
		}
		return
	}
	v.features.missing(FeatureTAPTSO, dev.Missing["tso"])
	v.features.missing(FeatureTAPUSO, dev.Missing["uso"])
	v.features.missing(FeatureTAPMultiqueue, dev.Missing["multiqueue"])
	v.features.missing(FeatureFairQueues, dev.Missing["steering"])
	if !v.features.on(FeatureTAPMultiqueue) {
		v.features.missing(FeatureFairQueues, errors.New("needs "+FeatureTAPMultiqueue))
	}
	if !dev.Offload.TSO {
		v.features.missing(FeatureTAPUSO, errors.New("needs "+FeatureTAPTSO))
		v.features.missing(FeatureGSOMaxSize, errors.New("needs "+FeatureTAPTSO))
	}
}

// offload is what a TAP takes, as the packet path wants to know it.
func (p *port) offload() forward.Offload {
	return forward.Offload{
		Checksum: p.Offload.Checksum,
		Super:    gro.Kinds{TCP: p.Offload.TSO, UDP: p.Offload.USO},
	}
}

// fillTables states what the configuration says: the peers, the stations behind them and the gateways.
func (v *VTEP) fillTables(n *network) error {
	v.setPeers(n, n.cfg.Peers)
	byMAC := map[addr.MAC][]netip.Addr{}
	for _, m := range n.cfg.Mappings {
		id, ok := v.tables.Lookup(m.VTEP)
		if !ok {
			return fmt.Errorf("endpoint %v: %v is not a peer", m.MAC, m.VTEP)
		}
		byMAC[m.MAC] = append(byMAC[m.MAC], m.IPs...)
		n.stations.set(n.fwd, m.MAC, id, byMAC[m.MAC])
	}
	if len(n.cfg.Gateways) > 0 {
		n.fwd.GatewayMAC = gatewayMAC(n.cfg.VNI)
		n.stations.set(n.fwd, n.fwd.GatewayMAC, fdb.Local, n.cfg.Gateways)
	}
	return nil
}

// stationMAC returns the MAC of this host's TAP in the network vni: the same after every restart, so that
// nobody's ARP cache goes stale, and different on every host. The underlay address alone would not do: two hosts
// behind two NATs may have the same one; nor would the machine's ID, which network namespaces share. The MAC
// is locally administered (IEEE 802, 8.2).
func stationMAC(vni addr.VNI, local netip.Addr, machine []byte) addr.MAC {
	h := fnv.New64a()
	_ = binary.Write(h, binary.BigEndian, vni) // a hash takes everything
	_, _ = h.Write(local.AsSlice())
	_, _ = h.Write(machine)
	mac := addr.MACFromUint64(h.Sum64())
	mac[0] = mac[0]&^1 | 2
	return mac
}

// gatewayMAC returns the MAC of the gateway of the network vni, which is the same on every host, so that a
// container that moves finds the gateway where it was. It is locally administered (IEEE 802, 8.2).
func gatewayMAC(vni addr.VNI) addr.MAC {
	return addr.MAC{2, 'o', 'v', byte(vni >> 16), byte(vni >> 8), byte(vni)}
}

// machineID tells this machine from others.
func machineID() []byte {
	// Without the file, as on a host that has no systemd and no D-Bus, the address has to do.
	id, _ := os.ReadFile("/etc/machine-id")
	return id
}

// up gives the interface its addresses and sets it up; in a sandbox, it makes it a port of the bridge. at is what the
// names of the network's fields begin with in errors.
func (v *VTEP) up(n *network, at string) error {
	if n.sandbox != nil {
		if _, err := v.guard(n); err != nil {
			return &HostError{at + "sandbox", err}
		}
		var missing link.Missing // containers that are gone
		if _, err := n.sandbox.Repair(v.layout(n)); err != nil && !errors.As(err, &missing) {
			return &HostError{at + "sandbox", err}
		}
		return nil
	}
	if err := link.SetTxQueueLen(n.cfg.Device, queueLength); err != nil {
		return &HostError{at + "device", err}
	}
	if err := n.giveAddresses(at); err != nil {
		return err
	}
	if err := link.SetUp(n.cfg.Device); err != nil {
		return &HostError{at + "device", err}
	}
	return nil
}

// giveAddresses gives the TAP its addresses, those of IPv6 only if its MTU carries that: the kernel would have none of them.
// Once it does, applyMTU makes up for it.
func (n *network) giveAddresses(at string) error {
	for i, p := range n.cfg.Addresses {
		if p.Addr().Is6() && !n.fwd.MTU().CarriesIPv6() {
			continue
		}
		if err := link.AddAddress(n.cfg.Device, p); err != nil {
			return &HostError{fmt.Sprintf("%saddress[%d]", at, i), err}
		}
	}
	return nil
}

// layout describes the sandbox as it ought to be. In an isolated network the bridge is told of all stations and
// learns nothing, so that whom it does not know is behind the TAP, and no container can draw the frames of another.
func (v *VTEP) layout(n *network) link.Layout {
	m, gso := int(n.fwd.MTU()), v.gsoMaxSize(n)
	l := link.Layout{
		Bridge: link.Bridge{MAC: gatewayMAC(n.cfg.VNI), MTU: m, Addresses: n.cfg.Gateways},
		Ports: []link.Port{{
			Device: n.cfg.Device, MTU: m, TxQueueLen: queueLength, GSOMaxSize: gso, Learning: !n.cfg.Isolate, Flood: true,
		}},
	}
	for id, a := range n.attached {
		l.Ports = append(l.Ports, link.Port{
			Device: link.HostEnd(id), MTU: m, TxQueueLen: queueLength, GSOMaxSize: gso,
			Learning: !n.cfg.Isolate, Flood: !n.cfg.Isolate, MAC: a.MAC,
		})
	}
	return l
}
