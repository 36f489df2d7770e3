package vtep

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

// validate checks what can be checked without touching the host.
func (c *Config) validate() error {
	if c.Underlay.TTL < 1 || c.Underlay.TTL > 255 {
		return &ConfigError{"underlay.ttl", fmt.Errorf("%d is out of range: choose 1 to 255", c.Underlay.TTL)}
	}
	if c.Queues < 0 || c.Queues > 64 {
		return &ConfigError{"queues", fmt.Errorf("%d is out of range: choose 1 to 64, or leave it out", c.Queues)}
	}
	if c.BusyPoll < 0 || c.BusyPoll > 10*time.Millisecond {
		return &ConfigError{"busy_poll", fmt.Errorf("%v is out of range: choose 0 to 10ms", c.BusyPoll)}
	}
	if err := validateLocal(c.Underlay.Addresses); err != nil {
		return err
	}
	names, devices, vnis := map[string]int{}, map[string]int{}, map[addr.VNI]int{}
	for i := range c.Networks {
		n := &c.Networks[i]
		at := fmt.Sprintf("networks[%d].", i)
		err := errors.Join(unique(at+"name", n.Name, i, names), unique(at+"vni", n.VNI, i, vnis))
		if !n.Sandbox {
			err = errors.Join(err, unique(at+"device", n.Device, i, devices))
		}
		if err != nil {
			return firstConfigError(err)
		}
		if err := n.validate(at, c.Underlay.Addresses, nil); err != nil {
			return err
		}
	}
	return nil
}

// validateLocal checks the local underlay addresses.
func validateLocal(addresses []netip.Addr) error {
	for i, a := range addresses {
		field := fmt.Sprintf("underlay.addresses[%d]", i)
		if err := unicast(a); err != nil {
			return &ConfigError{field, err}
		}
		if slices.Contains(addresses[:i], a) {
			return &ConfigError{field, fmt.Errorf("%v stands there twice: remove one", a)}
		}
	}
	return nil
}

// unique notes that network i has the value v for a field that no two networks may share.
func unique[T comparable](field string, v T, i int, seen map[T]int) error {
	if other, ok := seen[v]; ok {
		return &ConfigError{field, fmt.Errorf("%v is that of networks[%d] too: choose another", v, other)}
	}
	seen[v] = i
	return nil
}

// firstConfigError returns the first of joined errors, so that the operator gets one line.
func firstConfigError(err error) error {
	var c *ConfigError
	if errors.As(err, &c) {
		return c
	}
	return err
}

// validate checks one network by itself. at is what the names of its fields begin with, local has the underlay
// addresses, as far as they are stated, and nodes what is stated of other hosts.
func (n *Network) validate(at string, local []netip.Addr, nodes map[netip.Addr]Node) error {
	if _, err := addr.NewVNI(uint64(n.VNI)); err != nil {
		return &ConfigError{at + "vni", err}
	}
	if err := n.validateSandbox(at); err != nil {
		return err
	}
	if err := n.validateMSS(at); err != nil {
		return err
	}
	if n.FloodRate < 0 {
		return &ConfigError{at + "flood_rate", fmt.Errorf("%d is out of range: choose frames a second, or 0 for the default", n.FloodRate)}
	}
	if n.FloodBurst < 0 {
		return &ConfigError{at + "flood_burst", fmt.Errorf("%d is out of range: choose a number of frames, or 0 for the default", n.FloodBurst)}
	}
	if err := validatePeers(at, n.Peers, local, nodes); err != nil {
		return err
	}
	for j, m := range n.Mappings {
		field := fmt.Sprintf("%sendpoints[%d]", at, j)
		if !slices.Contains(n.Peers, m.VTEP) {
			return &ConfigError{field + ".vtep", fmt.Errorf("%v is not one of the network's peers: add it there", m.VTEP)}
		}
		if m.MAC.IsMulticast() || m.MAC.IsZero() {
			return &ConfigError{field + ".mac", fmt.Errorf("%v is not the address of one station", m.MAC)}
		}
	}
	return nil
}

func (n *Network) validateMSS(at string) error {
	if n.MSS == 0 {
		return nil
	}
	if err := mtu.CheckMSS(int64(n.MSS), n.MTU); err != nil {
		return &ConfigError{at + "mss", err}
	}
	return nil
}

// validateSandbox checks what goes together with a sandbox and what does not.
func (n *Network) validateSandbox(at string) error {
	if !n.Sandbox {
		if len(n.Gateways) > 0 {
			return &ConfigError{at + "gateways", errors.New("only the bridge of a sandbox has any: leave them out")}
		}
		return nil
	}
	if len(n.Addresses) > 0 {
		return &ConfigError{at + "address", errors.New("the TAP in a sandbox has none: leave it out, or state gateways")}
	}
	return onePerFamily(at+"gateways", n.Gateways)
}

// onePerFamily checks addresses of which there may be one of IPv4 and one of IPv6.
func onePerFamily(field string, addresses []netip.Addr) error {
	seen := map[mtu.Family]netip.Addr{}
	for i, a := range addresses {
		at := fmt.Sprintf("%s[%d]", field, i)
		if err := unicast(a); err != nil {
			return &ConfigError{at, err}
		}
		if a.IsLoopback() || a.IsLinkLocalUnicast() {
			return &ConfigError{at, fmt.Errorf("%v is not an address of a network: choose another", a)}
		}
		if other := seen[mtu.FamilyOf(a)]; other.IsValid() {
			return &ConfigError{at, fmt.Errorf("%v is a second %v address beside %v: state one of each family", a, mtu.FamilyOf(a), other)}
		}
		seen[mtu.FamilyOf(a)] = a
	}
	return nil
}

// setDefaults fills in what was left out.
func (n *Network) setDefaults() {
	if n.Sandbox && n.Device == "" {
		n.Device = sandboxTAP
	}
	if n.Sandbox && n.FloodRate == 0 {
		n.FloodRate = floodRate
	}
	if n.FloodBurst == 0 {
		n.FloodBurst = 2 * n.FloodRate
	}
	n.Peers, n.Mappings = slices.Clone(n.Peers), slices.Clone(n.Mappings)
	n.Addresses, n.Gateways = slices.Clone(n.Addresses), slices.Clone(n.Gateways)
}

func validatePeers(at string, peers, local []netip.Addr, nodes map[netip.Addr]Node) error {
	seen := map[netip.Addr]bool{}
	for j, p := range peers {
		field := fmt.Sprintf("%speers[%d]", at, j)
		if err := unicast(p); err != nil {
			return &ConfigError{field, err}
		}
		meets := func(a netip.Addr) bool {
			return slices.ContainsFunc(local, func(l netip.Addr) bool { return mtu.FamilyOf(l) == mtu.FamilyOf(a) })
		}
		switch {
		case seen[p]:
			return &ConfigError{field, fmt.Errorf("%v stands there twice: remove one", p)}
		case len(local) > 0 && !meets(p) && !slices.ContainsFunc(nodes[p].Candidates, meets):
			return &ConfigError{field, fmt.Errorf("%v is an %v address, but underlay.addresses has none of that family: add one, or remove the peer", p, mtu.FamilyOf(p))}
		case slices.Contains(local, p):
			return &ConfigError{field, fmt.Errorf("%v is this host's own underlay address: state remote hosts alone", p)}
		}
		seen[p] = true
	}
	return nil
}

// unicast refuses addresses that no VTEP can have.
func unicast(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("the address is missing")
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%v is not the address of one host", a)
	case a.Is4In6():
		return fmt.Errorf("%v is an IPv4 address in IPv6 form: write %v", a, a.Unmap())
	case a.Zone() != "":
		return fmt.Errorf("%v is link-local with a zone: use a global address", a)
	}
	return nil
}
