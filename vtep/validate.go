package vtep

import (
	"errors"
	"fmt"
	"net/netip"

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
	local := map[mtu.Family]netip.Addr{}
	for i, a := range c.Underlay.Addresses {
		field := fmt.Sprintf("underlay.addresses[%d]", i)
		if err := unicast(a); err != nil {
			return &ConfigError{field, err}
		}
		if other := local[mtu.FamilyOf(a)]; other.IsValid() {
			return &ConfigError{field, fmt.Errorf("%v is a second %v address beside %v: state one of each family", a, mtu.FamilyOf(a), other)}
		}
		local[mtu.FamilyOf(a)] = a
	}
	names, devices, vnis := map[string]int{}, map[string]int{}, map[addr.VNI]int{}
	for i := range c.Networks {
		n := &c.Networks[i]
		at := fmt.Sprintf("networks[%d].", i)
		if err := errors.Join(
			unique(at+"name", n.Name, i, names),
			unique(at+"device", n.Device, i, devices),
			unique(at+"vni", n.VNI, i, vnis)); err != nil {
			return firstConfigError(err)
		}
		if _, err := addr.NewVNI(uint64(n.VNI)); err != nil {
			return &ConfigError{at + "vni", err}
		}
		if err := n.validatePeers(at, local); err != nil {
			return err
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

func (n *Network) validatePeers(at string, local map[mtu.Family]netip.Addr) error {
	seen := map[netip.Addr]bool{}
	for j, p := range n.Peers {
		field := fmt.Sprintf("%speers[%d]", at, j)
		if err := unicast(p); err != nil {
			return &ConfigError{field, err}
		}
		l, ok := local[mtu.FamilyOf(p)]
		switch {
		case seen[p]:
			return &ConfigError{field, fmt.Errorf("%v stands there twice: remove one", p)}
		case len(local) > 0 && !ok:
			return &ConfigError{field, fmt.Errorf("%v is an %v address, but underlay.addresses has none of that family: add one, or remove the peer", p, mtu.FamilyOf(p))}
		case l == p:
			return &ConfigError{field, fmt.Errorf("%v is this host's own underlay address: state remote hosts alone", p)}
		}
		seen[p] = true
	}
	for j, m := range n.Mappings {
		field := fmt.Sprintf("%sendpoints[%d]", at, j)
		if !seen[m.VTEP] {
			return &ConfigError{field + ".vtep", fmt.Errorf("%v is not one of the network's peers: add it there", m.VTEP)}
		}
		if m.MAC.IsMulticast() || m.MAC.IsZero() {
			return &ConfigError{field + ".mac", fmt.Errorf("%v is not the address of one station", m.MAC)}
		}
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
