package vtep

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/tap"
)

// attachment is what a container was given. It does not change; a change puts another in its place.
type attachment struct {
	Attachment        // as asked for
	ns         uint64 // ID of the container's network namespace, since its path may lead elsewhere one day
	iface      string
	mtu        mtu.OverlayMTU
	problem    string
	lowered    link.Lowered
	stale      bool // the container's end is not as it ought to be, and could not be reached
}

// Attach gives a container an interface in a network with a sandbox, registers its addresses as being here, and
// returns what it has got. It may be repeated, after a restart for one: an interface that is there is repaired and
// stays what it is. Addresses of IPv6 are given to it once the network's MTU carries that. A default route that the
// container has is left alone, and Attached.Problem says so.
//
// The error wraps ErrNoNetwork, a *ConfigError, or link.ErrNoNamespace. Then there is no interface that was not
// there before, and nothing is registered that was not.
func (v *VTEP) Attach(network string, a Attachment) (Attached, error) {
	v.change.Lock()
	defer v.change.Unlock()
	n, err := v.named(network)
	if err != nil {
		return Attached{}, err
	}
	at, err := v.attach(n, a)
	if err != nil {
		return Attached{}, fmt.Errorf("attaching endpoint %q to network %q: %w", a.ID, network, err)
	}
	return at.status(), nil
}

func (v *VTEP) attach(n *network, a Attachment) (*attachment, error) {
	a.Addresses, a.Gateways = slices.Clone(a.Addresses), slices.Clone(a.Gateways)
	if err := n.checkAttachment(&a); err != nil {
		return nil, err
	}
	ns, err := link.OpenNamespace(a.NetNS)
	if err != nil {
		return nil, &ConfigError{"netns", err}
	}
	defer ns.Close()
	old := n.attached[a.ID]
	if old != nil && old.MAC != a.MAC {
		n.stations.remove(n.fwd, old.MAC, true)
	}
	// Registered before it says its first word, and as before if it comes to nothing.
	fresh := news(n, a.MAC, addressesOf(a.Addresses))
	undo := n.stations.swap(n.fwd, a.MAC, fdb.Local, addressesOf(a.Addresses))
	at := &attachment{Attachment: a, ns: ns.ID(), mtu: n.fwd.MTU()}
	if old != nil {
		at.lowered = old.lowered
	}
	got, err := n.sandbox.Connect(ns, v.veth(n, at), true)
	if err == nil {
		at.iface, at.problem, at.lowered = got.Interface, got.Note, got.Lowered
		n.keep(v, at)
		if err = v.up(n, ""); err != nil && got.Made {
			err = errors.Join(err, n.sandbox.Disconnect(a.ID))
		}
	}
	if err != nil {
		if old == nil {
			n.drop(v, a.ID)
		} else {
			n.keep(v, old)
		}
		undo()
		return nil, err
	}
	v.announce(n, a.MAC, fresh)
	return at, nil
}

// veth describes the interface of a container.
func (v *VTEP) veth(n *network, a *attachment) link.Veth {
	return link.Veth{
		ID: a.ID, Interface: a.Interface, MAC: a.MAC, Addresses: a.Addresses, Gateways: a.Gateways,
		MTU: int(n.fwd.MTU()), TxQueueLen: queueLength, GSOMaxSize: v.gsoMaxSize(n),
		Lowered: a.lowered,
	}
}

// keep and drop publish what is attached. v.change is held.
func (n *network) keep(v *VTEP, a *attachment) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n.attached = maps.Clone(n.attached)
	n.attached[a.ID] = a
}

func (n *network) drop(v *VTEP, id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n.attached = maps.Clone(n.attached)
	delete(n.attached, id)
}

func (n *network) checkAttachment(a *Attachment) error {
	if n.sandbox == nil {
		return &ConfigError{"network", errors.New("its TAP is an interface of the host, to which no container can be attached: create a network in the cluster")}
	}
	if !validID(a.ID) {
		return &ConfigError{"id", fmt.Errorf("%q is not 1 to 64 letters, digits, - or _", a.ID)}
	}
	if a.Interface != "" {
		if err := tap.ValidName(a.Interface); err != nil {
			return &ConfigError{"interface", fmt.Errorf("%q cannot be the name of an interface: %w", a.Interface, err)}
		}
	}
	switch {
	case a.MAC.IsMulticast() || a.MAC.IsZero():
		return &ConfigError{"mac", fmt.Errorf("%v is not the address of one station", a.MAC)}
	case a.MAC == gatewayMAC(n.cfg.VNI) || a.MAC == n.fwd.LocalMAC:
		return &ConfigError{"mac", fmt.Errorf("%v is that of the network's gateway or TAP: choose another", a.MAC)}
	}
	if err := n.checkAddresses(a); err != nil {
		return err
	}
	for id, other := range n.attached {
		if id == a.ID {
			continue
		}
		if other.MAC == a.MAC {
			return &ConfigError{"mac", fmt.Errorf("%v is that of endpoint %s: choose another", a.MAC, id)}
		}
		for i, p := range a.Addresses {
			if slices.Contains(addressesOf(other.Addresses), p.Addr()) {
				return &ConfigError{fmt.Sprintf("addresses[%d]", i), fmt.Errorf("%v is that of endpoint %s: choose another", p.Addr(), id)}
			}
		}
	}
	return nil
}

func (n *network) checkAddresses(a *Attachment) error {
	for i, p := range a.Addresses {
		field := fmt.Sprintf("addresses[%d]", i)
		if !p.IsValid() {
			return &ConfigError{field, errors.New("the address is missing, or its prefix length is out of range")}
		}
		if err := unicast(p.Addr()); err != nil {
			return &ConfigError{field, err}
		}
		switch {
		case p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast():
			return &ConfigError{field, fmt.Errorf("%v is not an address of a network: choose another", p.Addr())}
		case slices.Contains(n.cfg.Gateways, p.Addr()):
			return &ConfigError{field, fmt.Errorf("%v is that of the network's gateway: choose another", p.Addr())}
		case slices.Contains(addressesOf(a.Addresses[:i]), p.Addr()):
			return &ConfigError{field, fmt.Errorf("%v stands there twice: remove one", p.Addr())}
		}
	}
	if err := onePerFamily("gateways", a.Gateways); err != nil {
		return err
	}
	for i, g := range a.Gateways {
		field := fmt.Sprintf("gateways[%d]", i)
		if !slices.ContainsFunc(a.Addresses, func(p netip.Prefix) bool { return p.Contains(g) }) {
			return &ConfigError{field, fmt.Errorf("%v is in the subnet of none of the addresses: it could not be reached", g)}
		}
		if slices.Contains(addressesOf(a.Addresses), g) {
			return &ConfigError{field, fmt.Errorf("%v is an address of the endpoint itself", g)}
		}
	}
	return nil
}

func validID(id string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	return id != "" && len(id) <= 64 && strings.Trim(id, letters) == ""
}

func addressesOf(prefixes []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, p.Addr())
	}
	return out
}

// Detach undoes Attach: the interface goes, if the container still has it, and its addresses are forgotten, unless they
// have been stated to be elsewhere since. An endpoint that is not attached is no error. The error wraps ErrNoNetwork
// if there is no such network, and with it no endpoint.
func (v *VTEP) Detach(network, id string) error {
	v.change.Lock()
	defer v.change.Unlock()
	n, err := v.named(network)
	if err != nil {
		return err
	}
	if n.sandbox == nil {
		return nil
	}
	if err := n.sandbox.Disconnect(id); err != nil {
		return fmt.Errorf("detaching endpoint %q from network %q: %w", id, network, err)
	}
	if a := n.attached[id]; a != nil {
		n.stations.remove(n.fwd, a.MAC, true)
		n.drop(v, id)
		if _, err := v.guard(n); err != nil {
			v.log.Debug("removing the rules of a port that is gone; it is tried again", "network", network, "endpoint", id, "error", err)
			v.stir(n)
		}
	}
	return nil
}

// Attachments returns what is attached to a network, sorted by ID; nothing if there is no such network.
func (v *VTEP) Attachments(network string) []Attached {
	n, err := v.named(network)
	if err != nil {
		return nil
	}
	v.mu.RLock()
	attached := n.attached
	v.mu.RUnlock()
	var out []Attached
	for _, id := range slices.Sorted(maps.Keys(attached)) {
		out = append(out, attached[id].status())
	}
	return out
}

func (a *attachment) status() Attached {
	return Attached{
		ID: a.ID, Name: a.Name, NetNS: a.NetNS, Interface: a.iface, MAC: a.MAC,
		Addresses: slices.Clone(a.Addresses), Gateways: slices.Clone(a.Gateways), MTU: a.mtu, Problem: a.problem,
	}
}

// Unclaimed returns the IDs of endpoints whose interface an earlier VTEP has left in the network's sandbox, and that
// have not been attached since. Their frames are taken for those of strangers; Attach takes them on, Detach removes
// them. The error wraps ErrNoNetwork.
func (v *VTEP) Unclaimed(network string) ([]string, error) {
	v.change.Lock()
	defer v.change.Unlock()
	n, err := v.named(network)
	if err != nil || n.sandbox == nil {
		return nil, err
	}
	ids, err := n.sandbox.Endpoints()
	return slices.DeleteFunc(ids, func(id string) bool { return n.attached[id] != nil }), err
}

// Orphans returns the VNIs of sandboxes that a VTEP on this host has left, and that are of no network now.
func (v *VTEP) Orphans() ([]addr.VNI, error) {
	v.change.Lock()
	defer v.change.Unlock()
	return v.orphans(nil)
}

func (v *VTEP) orphans(keep []addr.VNI) ([]addr.VNI, error) {
	vnis, err := link.Sandboxes(v.host)
	return slices.DeleteFunc(vnis, func(vni addr.VNI) bool {
		return slices.Contains(keep, vni) || slices.ContainsFunc(v.networks, func(n *network) bool {
			return n.sandbox != nil && n.cfg.VNI == vni
		})
	}), err
}

// RemoveOrphans removes the sandboxes that Orphans lists, those of keep apart, with the containers' interfaces in them,
// and returns which it has removed.
func (v *VTEP) RemoveOrphans(keep []addr.VNI) (removed []addr.VNI, err error) {
	v.change.Lock()
	defer v.change.Unlock()
	vnis, err := v.orphans(keep)
	errs := []error{err}
	for _, vni := range vnis {
		if err := link.RemoveSandbox(vni, v.host); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, vni)
	}
	return removed, errors.Join(errs...)
}
