package vtep

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/tap"
)

const (
	// maxLearned bounds what one network learns, so that a host that makes up addresses cannot take all
	// memory: 2 MB.
	maxLearned = 65536
	// queueLength is how many frames wait at the TAP before the kernel drops. At its default of 500 one
	// burst of a fast sender overruns it.
	queueLength = 10000
)

// network is one VNI of this host: its TAP and its forwarding state.
type network struct {
	cfg     *Network
	dev     *tap.Device
	fwd     *forward.Network
	writing []sync.Mutex // serialises the writers of each queue
	refused sync.Once    // the log has been told of a frame that the TAP refused
	members []fdb.VTEPID
	ips     map[addr.MAC][]netip.Addr // of static entries
}

// openNetwork makes the TAP of c and its tables. The interface is not up yet.
func (v *VTEP) openNetwork(c *Network) (*network, error) {
	t := tap.Config{
		Name:   c.Device,
		Queues: v.cfg.Queues,
		VNet:   v.features.on(FeatureTAPVNet),
		TSO:    v.features.on(FeatureTAPTSO),
		USO:    v.features.on(FeatureTAPUSO),
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
		if owner := link.DeviceOwner(c.Device); owner != "" {
			err = fmt.Errorf("%w (%s): remove it, or choose another device", err, owner)
		}
	}
	if err != nil {
		return nil, err
	}
	v.noteMissing(dev)
	n := &network{cfg: c, dev: dev, writing: make([]sync.Mutex, len(dev.Queues)), ips: map[addr.MAC][]netip.Addr{}}
	if err := n.init(v); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return n, nil
}

// isTaken reports whether err means that there is an interface of this name.
func isTaken(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

// noteMissing tells the features what this kernel's TAPs lack.
func (v *VTEP) noteMissing(dev *tap.Device) {
	if dev.Backend == "water" {
		why := errors.New("needs " + FeatureTAPVNet)
		for _, f := range []string{FeatureTAPTSO, FeatureTAPUSO, FeatureTAPMultiqueue, FeatureGSOMaxSize} {
			v.features.missing(f, why)
		}
		return
	}
	v.features.missing(FeatureTAPTSO, dev.Missing["tso"])
	v.features.missing(FeatureTAPUSO, dev.Missing["uso"])
	v.features.missing(FeatureTAPMultiqueue, dev.Missing["multiqueue"])
	if !dev.Offload.TSO {
		v.features.missing(FeatureTAPUSO, errors.New("needs "+FeatureTAPTSO))
		v.features.missing(FeatureGSOMaxSize, errors.New("needs "+FeatureTAPTSO))
	}
}

func (n *network) init(v *VTEP) error {
	// Without the file, as on a host that has no systemd and no D-Bus, the address has to do.
	machine, _ := os.ReadFile("/etc/machine-id")
	mac := stationMAC(n.cfg.VNI, v.endpoints[0].Local, machine)
	if err := link.SetMAC(n.cfg.Device, mac); err != nil {
		return err
	}
	n.fwd = &forward.Network{
		Name: n.cfg.Name, VNI: n.cfg.VNI,
		Learning: n.cfg.Learning, AllowNested: n.cfg.AllowNested,
		TAP: forward.Offload{
			Checksum: n.dev.Offload.Checksum,
			Super:    gro.Kinds{TCP: n.dev.Offload.TSO, UDP: n.dev.Offload.USO},
		},
		LocalMAC:  mac,
		FDB:       fdb.NewTable(maxLearned),
		Neighbors: fdb.NewNeighbors(),
		Counters:  new(forward.Counters),
	}
	for _, p := range n.cfg.Peers {
		n.members = append(n.members, v.tables.AddVTEP(p, fallbackPath))
	}
	n.fwd.SetMembers(n.members)
	for _, m := range n.cfg.Mappings {
		id, ok := v.tables.Lookup(m.VTEP)
		if !ok {
			return fmt.Errorf("endpoint %v: %v is not a peer", m.MAC, m.VTEP)
		}
		n.fwd.FDB.SetStatic(m.MAC, id)
		for _, ip := range m.IPs {
			n.fwd.Neighbors.Set(ip, m.MAC)
		}
		n.ips[m.MAC] = append(n.ips[m.MAC], m.IPs...)
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

// up gives the interface its addresses and sets it up. index is that of n in the configuration.
func (n *network) up(index int) error {
	at := fmt.Sprintf("networks[%d].", index)
	if err := link.SetTxQueueLen(n.cfg.Device, queueLength); err != nil {
		return &HostError{at + "device", err}
	}
	for i, p := range n.cfg.Addresses {
		if err := link.AddAddress(n.cfg.Device, p); err != nil {
			return &HostError{fmt.Sprintf("%saddress[%d]", at, i), err}
		}
	}
	if err := link.SetUp(n.cfg.Device); err != nil {
		return &HostError{at + "device", err}
	}
	return nil
}
