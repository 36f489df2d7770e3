package vtep

import (
	"errors"
	"fmt"
	"net/netip"
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
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
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

// noteMissing tells the features what this kernel's TAPs lack.
func (v *VTEP) noteMissing(dev *tap.Device) {
	if dev.Backend == "water" {
		why := errors.New("needs " + FeatureTAPVNet)
		for _, f := range []string{FeatureTAPTSO, FeatureTAPUSO, FeatureTAPMultiqueue} {
			v.features.missing(f, why)
		}
		return
	}
	v.features.missing(FeatureTAPTSO, dev.Missing["tso"])
	v.features.missing(FeatureTAPUSO, dev.Missing["uso"])
	v.features.missing(FeatureTAPMultiqueue, dev.Missing["multiqueue"])
	if !dev.Offload.TSO {
		v.features.missing(FeatureTAPUSO, errors.New("needs "+FeatureTAPTSO))
	}
}

func (n *network) init(v *VTEP) error {
	mac, err := link.MAC(n.cfg.Device)
	if err != nil {
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
