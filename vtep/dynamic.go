package vtep

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/vtep/link"
)

// AddNetwork makes what n names, as New does, while Run runs or not: it forwards as soon as AddNetwork returns, if
// Run runs. The sandbox that an earlier VTEP on this host left for this VNI is taken over, with its bridge and the
// interfaces of the containers; what becomes of these is for Attach and Detach to say, and until then Unclaimed
// lists them. The TAP is always a new one: a TAP does not outlive the process that has it open, with its number of
// queues and its offloads, which the next process may want otherwise, and the bridge needs nothing of the old one.
//
// On error nothing is left behind; the error wraps a *ConfigError or *HostError that names the field at fault.
func (v *VTEP) AddNetwork(n Network) error {
	v.change.Lock()
	defer v.change.Unlock()
	if err := v.admit(&n); err != nil {
		return fmt.Errorf("adding network %q: %w", n.Name, err)
	}
	if err := v.addNetwork(n, ""); err != nil {
		return fmt.Errorf("adding network %q: %w", n.Name, err)
	}
	v.followAddresses() // peers of a family that was not used before
	return nil
}

// admit checks a network against those that are there.
func (v *VTEP) admit(n *Network) error {
	if n.Name == "" {
		return &ConfigError{"name", errors.New("the name is missing")}
	}
	for _, o := range v.networks {
		switch {
		case o.cfg.Name == n.Name:
			return &ConfigError{"name", errors.New("there is a network of this name: remove it first, or choose another")}
		case o.cfg.VNI == n.VNI:
			return &ConfigError{"vni", fmt.Errorf("%v is that of network %s: choose another", n.VNI, o.cfg.Name)}
		case !n.Sandbox && !o.cfg.Sandbox && o.cfg.Device == n.Device:
			return &ConfigError{"device", fmt.Errorf("%v is that of network %s: choose another", n.Device, o.cfg.Name)}
		}
	}
	return n.validate("", v.cfg.Underlay.Addresses, v.nodes)
}

// addNetwork is AddNetwork for a network that is valid. at is what the names of its fields begin with in errors.
// v.change is held.
func (v *VTEP) addNetwork(c Network, at string) (err error) {
	c.setDefaults()
	n, err := v.newNetwork(c)
	if err != nil {
		return &HostError{at + "sandbox", err}
	}
	n.fwd.LocalMAC = stationMAC(c.VNI, v.endpoints[0].Local, machineID())
	if err := v.openPort(n); err != nil {
		return errors.Join(&HostError{at + "device", err}, v.discard(n))
	}
	n.fwd.TAP = n.port.Load().offload()
	v.list(n)
	if err := v.begin(n, at); err != nil {
		return errors.Join(err, v.withdraw(n), v.discard(n))
	}
	v.tellStart(n)
	v.stir(n)
	return nil
}

// begin makes a network that is listed forward.
func (v *VTEP) begin(n *network, at string) error {
	if err := v.fillTables(n); err != nil {
		return &HostError{at + "device", err}
	}
	if err := v.applyMTU(n); err != nil {
		return &HostError{at + "mtu", err}
	}
	v.unguard(n)
	if err := v.up(n, at); err != nil {
		return err
	}
	if err := v.onWorkers(func(w *worker) error { return w.serve(n) }); err != nil {
		return err
	}
	return v.tables.AddNetwork(n.fwd)
}

// list publishes a further network.
func (v *VTEP) list(n *network) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.networks = append(slices.Clone(v.networks), n)
	v.names[n.cfg.Name] = n
}

// withdraw takes n away from the workers and the listings. When it returns, nobody uses its TAP any more.
func (v *VTEP) withdraw(n *network) error {
	n.unwatch()
	v.tables.RemoveNetwork(n.fwd.VNI)
	err := v.onWorkers(func(w *worker) error { return w.leave(n) })
	networks := slices.DeleteFunc(slices.Clone(v.networks), func(o *network) bool { return o == n })
	v.mu.Lock()
	v.sent += n.fwd.Counters.UnderlayOut.Frames.Load()
	v.networks = networks
	delete(v.names, n.cfg.Name)
	v.mu.Unlock()
	for _, p := range n.peers {
		delete(v.told, fixedTopic(n.cfg.Name, p))
	}
	delete(v.told, hookTopic(n))
	delete(v.told, watchTopic(n))
	v.feed()
	return err
}

// discard removes the TAP and, unless it was there before, the sandbox of a network that could not be added.
func (v *VTEP) discard(n *network) error {
	err := v.closePort(n)
	switch {
	case n.sandbox == nil:
	case n.adopted:
		err = errors.Join(err, n.sandbox.Close())
	default:
		err = errors.Join(err, n.sandbox.Remove())
	}
	return err
}

// RemoveNetwork removes a network with all that belongs to it: TAP, bridge, sandbox, and the interfaces of the
// containers that are attached. What waits in the TAP is still sent. The error wraps ErrNoNetwork if there is no
// such network; after any other error the network is gone all the same, as far as that could be done.
func (v *VTEP) RemoveNetwork(name string) error {
	v.change.Lock()
	defer v.change.Unlock()
	n, err := v.named(name)
	if err != nil {
		return err
	}
	var errs []error
	if n.port.Load() != nil && !n.lost.Load() {
		// Nothing more comes in, and what is there will be read.
		errs = append(errs, n.in(func() error { return link.SetDown(n.cfg.Device) }))
	}
	errs = append(errs, v.withdraw(n), v.closePort(n))
	if n.sandbox != nil {
		errs = append(errs, n.sandbox.Remove())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing network %q: %w", name, err)
	}
	return nil
}

// named finds a network.
func (v *VTEP) named(name string) (*network, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if n, ok := v.names[name]; ok {
		return n, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNoNetwork, name)
}

// all returns the networks, in the order in which they were added. The slice does not change.
func (v *VTEP) all() []*network {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.networks
}

// SetPeers states which VTEPs take part in a network: broadcast, multicast and unknown unicast frames go to each,
// and only from them frames are taken. The MTU follows. The error wraps ErrNoNetwork or a *ConfigError, and then
// nothing has changed.
func (v *VTEP) SetPeers(network string, peers []netip.Addr) error {
	v.change.Lock()
	defer v.change.Unlock()
	n, err := v.named(network)
	if err != nil {
		return err
	}
	if err := validatePeers("", peers, v.cfg.Underlay.Addresses, v.nodes); err != nil {
		return fmt.Errorf("setting the peers of network %q: %w", network, err)
	}
	for i, p := range peers {
		if v.endpointAt(p) != nil {
			return fmt.Errorf("setting the peers of network %q: %w", network,
				&ConfigError{fmt.Sprintf("peers[%d]", i), fmt.Errorf("%v is this host's own address: state remote hosts alone", p)})
		}
	}
	v.setPeers(n, peers)
	v.followAddresses()
	v.followMTU(n)
	return nil
}

// setPeers gives the peers their numbers and publishes them. v.change is held.
func (v *VTEP) setPeers(n *network, peers []netip.Addr) {
	members := v.number(peers)
	for _, p := range n.peers {
		if !slices.Contains(peers, p) {
			delete(v.told, fixedTopic(n.cfg.Name, p))
		}
	}
	n.fwd.SetMembers(members)
	v.mu.Lock()
	n.peers, n.members = slices.Clone(peers), members
	v.mu.Unlock()
	v.feed()
}

// number returns the numbers of VTEPs. Those that have none yet get one, and a way to be reached. v.change is held.
func (v *VTEP) number(addresses []netip.Addr) []fdb.VTEPID {
	ids, old := make([]fdb.VTEPID, 0, len(addresses)), fdb.VTEPID(v.tables.VTEPs())
	for _, a := range addresses {
		ids = append(ids, v.tables.AddVTEP(a, fallbackPath))
	}
	if added := slices.DeleteFunc(slices.Clone(ids), func(id fdb.VTEPID) bool { return id < old }); len(added) > 0 {
		v.reach(added)
	}
	return ids
}

// SetMapping states a station behind another host, in place of what was said of its MAC before: frames for it go to
// m.VTEP, questions for its addresses are answered, and nobody else may use them if the network is isolated. An
// address belongs to the station that was given it last, and the containers of this host are told of that. m.VTEP need
// not be a peer yet, but frames from there are taken only once it is. The error wraps ErrNoNetwork or a *ConfigError,
// and then nothing has changed.
func (v *VTEP) SetMapping(network string, m addr.Mapping) error {
	n, err := v.named(network)
	if err != nil {
		return err
	}
	if err := v.checkMapping(n, &m); err != nil {
		return fmt.Errorf("stating %v in network %q: %w", m.MAC, network, err)
	}
	id, ok := v.idOf(m.VTEP)
	if !ok {
		v.change.Lock()
		id = v.number([]netip.Addr{m.VTEP})[0]
		v.change.Unlock()
	}
	fresh := news(n, m.MAC, m.IPs)
	n.stations.set(n.fwd, m.MAC, id, m.IPs)
	v.announce(n, m.MAC, fresh)
	return nil
}

func (v *VTEP) checkMapping(n *network, m *addr.Mapping) error {
	switch {
	case m.MAC.IsMulticast() || m.MAC.IsZero():
		return &ConfigError{"mac", fmt.Errorf("%v is not the address of one station", m.MAC)}
	case len(n.cfg.Gateways) > 0 && m.MAC == gatewayMAC(n.cfg.VNI):
		return &ConfigError{"mac", fmt.Errorf("%v is that of the network's gateway: choose another", m.MAC)}
	case m.VNI != 0 && m.VNI != n.cfg.VNI:
		return &ConfigError{"vni", fmt.Errorf("%v is not that of the network, which is %v", m.VNI, n.cfg.VNI)}
	}
	for i, ip := range m.IPs {
		if slices.Contains(n.cfg.Gateways, ip.Unmap()) {
			return &ConfigError{fmt.Sprintf("ips[%d]", i), fmt.Errorf("%v is that of the network's gateway: choose another", ip)}
		}
	}
	if err := unicast(m.VTEP); err != nil {
		return &ConfigError{"vtep", err}
	}
	v.sendMu.RLock()
	defer v.sendMu.RUnlock()
	if v.endpointAt(m.VTEP) != nil {
		return &ConfigError{"vtep", fmt.Errorf("%v is this host's own address: attach the station here", m.VTEP)}
	}
	return nil
}

// RemoveMapping forgets a station behind another host. One that is not known, or is attached here meanwhile, is no
// error. The error wraps ErrNoNetwork.
func (v *VTEP) RemoveMapping(network string, mac addr.MAC) error {
	n, err := v.named(network)
	if err != nil {
		return err
	}
	n.stations.remove(n.fwd, mac, false)
	return nil
}
