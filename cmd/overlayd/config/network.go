package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/mtu"
)

const (
	maxDevice = 15    // bytes: IFNAMSIZ holds 16 with the NUL
	maxPath   = 65535 // bytes of the largest IP packet
)

// taken holds what may be used once only, with the path of the key that uses it.
type taken struct {
	names, vnis, devices map[string]string
	addresses            map[netip.Addr]string
}

// once notes that the key with this path uses a value; the error names the key that does so already.
func once[V comparable](c *Config, used map[V]string, v V, path, what string) error {
	if first, ok := used[v]; ok {
		where, _ := c.where(first)
		return c.failf(path, "%s %v is used by %s already (%s): choose another one, or take this one out", what, v, first, where)
	}
	used[v] = path
	return nil
}

// checkNetwork applies every rule to one network.
func (c *Config) checkNetwork(i int, facts Facts, seen taken) error {
	n := &c.Networks[i]
	base := fmt.Sprintf("networks[%d]", i)
	if err := name(n.Name); err != nil {
		return c.At(base+".name", err)
	}
	if err := once(c, seen.names, n.Name, base+".name", "the name"); err != nil {
		return err
	}
	if n.VNI == 0 {
		return c.failf(base+".vni", "it is missing: choose a number from 1 to %d", addr.MaxVNI)
	}
	if err := once(c, seen.vnis, n.VNI.String(), base+".vni", "VNI"); err != nil {
		return err
	}
	if err := device(n.Device); err != nil {
		return c.At(base+".device", err)
	}
	if err := once(c, seen.devices, n.Device, base+".device", "the device"); err != nil {
		return err
	}
	for j, p := range n.Addresses {
		path := fmt.Sprintf("%s.address[%d]", base, j)
		if err := hostPrefix(p); err != nil {
			return c.At(path, err)
		}
		if err := once(c, seen.addresses, p.Addr(), path, "the address"); err != nil {
			return err
		}
	}
	if err := c.checkPeers(n, base, facts); err != nil {
		return err
	}
	if err := c.checkMTU(n, base); err != nil {
		return err
	}
	if err := c.checkMSS(n, base); err != nil {
		return err
	}
	return c.checkEndpoints(n, base)
}

func (c *Config) checkPeers(n *Network, base string, facts Facts) error {
	used := make(map[netip.Addr]string, len(n.Peers))
	for j, a := range n.Peers {
		path := fmt.Sprintf("%s.peers[%d]", base, j)
		if err := c.checkPeer(a, facts); err != nil {
			return c.At(path, err)
		}
		if err := once(c, used, a, path, "the peer"); err != nil {
			return err
		}
	}
	if len(n.Peers) == 0 && len(c.Underlay.Addresses) == 0 {
		return c.failf(base+".peers", "there is no peer, so no route tells the address of this host: list the other hosts, or set underlay.addresses")
	}
	return nil
}

// checkMTU checks an MTU that the operator fixed. Whether the underlay carries it is for the VTEP to say.
func (c *Config) checkMTU(n *Network, base string) error {
	path := base + ".mtu"
	if _, stated := c.places[path]; !stated {
		return nil
	}
	outer := mtu.IPv4
	if slices.ContainsFunc(n.Peers, func(a netip.Addr) bool { return mtu.FamilyOf(a) == mtu.IPv6 }) {
		outer = mtu.IPv6
	}
	most, err := mtu.OverlayOf(maxPath, outer)
	if err != nil {
		return c.At(path, err)
	}
	if n.MTU < mtu.MinIPv4 || n.MTU > most {
		return c.failf(path, "%d is out of range: choose from %d to %d, or take the key out to have it derived from the underlay", n.MTU, mtu.MinIPv4, most)
	}
	for _, p := range n.Addresses {
		if p.Addr().Is6() && !n.MTU.CarriesIPv6() {
			return c.failf(path, "%d is too small for the IPv6 address %v: choose at least %d", n.MTU, p, mtu.MinIPv6)
		}
	}
	for _, e := range n.Endpoints {
		for _, ip := range e.IPs {
			if ip.Is6() && !n.MTU.CarriesIPv6() {
				return c.failf(path, "%d is too small for the IPv6 address %v of an endpoint: choose at least %d", n.MTU, ip, mtu.MinIPv6)
			}
		}
	}
	return nil
}

// checkMSS checks an MSS that the operator fixed, which has to fit into an MTU that is fixed too.
func (c *Config) checkMSS(n *Network, base string) error {
	path := base + ".mss"
	if _, stated := c.places[path]; !stated {
		return nil
	}
	if err := mtu.CheckMSS(int64(n.MSS), n.MTU); err != nil {
		return c.At(path, err)
	}
	return nil
}

func (c *Config) checkEndpoints(n *Network, base string) error {
	macs := make(map[addr.MAC]string, len(n.Endpoints))
	ips := make(map[netip.Addr]string, len(n.Endpoints))
	for j, p := range n.Addresses {
		ips[p.Addr()] = fmt.Sprintf("%s.address[%d]", base, j)
	}
	for j, e := range n.Endpoints {
		at := fmt.Sprintf("%s.endpoints[%d]", base, j)
		if _, stated := c.places[at+".mac"]; !stated {
			return c.failf(at+".mac", "it is missing: give the MAC address of the station")
		}
		if e.MAC.IsZero() || e.MAC.IsMulticast() {
			return c.failf(at+".mac", "%v is not the address of one station: give that one", e.MAC)
		}
		if err := once(c, macs, e.MAC, at+".mac", "the MAC address"); err != nil {
			return err
		}
		for k, ip := range e.IPs {
			path := fmt.Sprintf("%s.ips[%d]", at, k)
			if err := station(ip); err != nil {
				return c.At(path, err)
			}
			if err := once(c, ips, ip, path, "the address"); err != nil {
				return err
			}
		}
		if !e.VTEP.IsValid() {
			return c.failf(at+".vtep", "it is missing: give the address of one of the peers")
		}
		if !slices.Contains(n.Peers, e.VTEP) {
			return c.failf(at+".vtep", "%v is none of the peers of this network: add it to %s.peers, or choose one of them", e.VTEP, base)
		}
	}
	return nil
}

// device checks the name of an interface as the kernel does (dev_valid_name), and what it would take for a
// pattern or for something else.
func device(s string) error {
	switch {
	case s == "":
		return errors.New("it is missing: name the TAP device, such as blue0")
	case len(s) > maxDevice:
		return fmt.Errorf("%q has %d bytes: choose a name of at most %d", s, len(s), maxDevice)
	case s == "." || s == ".." || s == "all" || s == "default":
		return fmt.Errorf("%q means something else to the kernel: choose another name", s)
	}
	for _, r := range s {
		if r <= ' ' || r > '~' || strings.ContainsRune("/:%", r) {
			return fmt.Errorf("%q has %q in it: use letters, digits and any of . _ -", s, r)
		}
	}
	return nil
}

// hostPrefix checks an address that is given to a TAP.
func hostPrefix(p netip.Prefix) error {
	a := p.Addr()
	if err := station(a); err != nil {
		return err
	}
	size := a.BitLen()
	if p.Bits() == 0 {
		return fmt.Errorf("%v would route everything into the network: give the prefix length of its subnet", p)
	}
	// A subnet of two addresses or one has neither a network nor a broadcast address (RFC 3021, RFC 6164).
	if p.Bits() >= size-1 {
		return nil
	}
	if a == p.Masked().Addr() {
		if a.Is4() {
			return fmt.Errorf("%v is the address of the subnet itself: give that of a host in it, such as %v/%d", p, a.Next(), p.Bits())
		}
		return fmt.Errorf("%v is the anycast address of the routers in the subnet (RFC 4291): give that of a host in it, such as %v/%d", p, a.Next(), p.Bits())
	}
	if a.Is4() && !p.Contains(a.Next()) {
		return fmt.Errorf("%v is the broadcast address of its subnet: give that of a host in it", p)
	}
	return nil
}

// station checks that an address can be that of one station inside the overlay.
func station(a netip.Addr) error {
	switch {
	case a.Is4In6():
		return fmt.Errorf("%v is an IPv4 address in IPv6 form: write %v", a, a.Unmap())
	case a.Zone() != "":
		return fmt.Errorf("%v has a zone: write it without", a)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%v is not the address of one host: give that", a)
	}
	return nil
}
