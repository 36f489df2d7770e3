package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/overlayd/overlayd/dataplane/mtu"
)

const (
	maxName       = 63  // bytes of the name of a node or a network
	maxSocketPath = 107 // sun_path holds 108 with the NUL (unix(7))
	maxQueues     = 64
	maxBusyPoll   = 10000 // microseconds
)

// check applies every rule to what has been decoded, in the order of the keys.
func (c *Config) check(facts Facts) error {
	if err := name(c.Node); err != nil {
		return c.At("node", err)
	}
	if err := socketPath(c.Socket); err != nil {
		return c.At("socket", err)
	}
	if err := listenAddress(c.Metrics); err != nil {
		return c.At("metrics", err)
	}
	for i, f := range c.Disable {
		if !slices.Contains(facts.Features, f) {
			return c.At(fmt.Sprintf("disable[%d]", i), unknown(fmt.Sprintf("feature %q", f), f, facts.Features))
		}
	}
	if c.Queues < 0 || c.Queues > maxQueues {
		return c.failf("queues", "%d is out of range: choose from 1 to %d, or take the key out to have it chosen by the number of CPUs", c.Queues, maxQueues)
	}
	if c.BusyPoll < 0 || c.BusyPoll > maxBusyPoll {
		return c.failf("busy_poll", "%d is out of range: choose from 0 to %d microseconds", c.BusyPoll, maxBusyPoll)
	}
	if err := c.checkUnderlay(facts); err != nil {
		return err
	}
	if err := c.checkCluster(facts); err != nil {
		return err
	}
	seen := taken{names: map[string]string{}, vnis: map[string]string{}, devices: map[string]string{}, addresses: map[netip.Addr]string{}}
	for i := range c.Networks {
		if err := c.checkNetwork(i, facts, seen); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkUnderlay(facts Facts) error {
	u := &c.Underlay
	if u.Port < 1 || u.Port > 65535 {
		return c.failf("underlay.port", "%d is out of range: choose from 1 to 65535; VXLAN's own is %d", u.Port, DefaultPort)
	}
	if u.TTL < 1 || u.TTL > 255 {
		return c.failf("underlay.ttl", "%d is out of range: choose from 1 to 255", u.TTL)
	}
	if policies := []string{"auto", "on", "off"}; !slices.Contains(policies, u.Checksum) {
		return c.failf("underlay.checksum", "%q is not a policy: choose from %s", u.Checksum, strings.Join(policies, ", "))
	}
	used := map[netip.Addr]string{}
	for i, a := range u.Addresses {
		path := fmt.Sprintf("underlay.addresses[%d]", i)
		if err := unicast(a); err != nil {
			return c.At(path, err)
		}
		if err := once(c, used, a, path, "the address"); err != nil {
			return err
		}
		if _, local := facts.HasAddress(a); !local {
			return c.failf(path, "%v is on no interface of this host: give one that `ip address` shows, or take the key out to have it chosen by the route to the peers", a)
		}
	}
	return nil
}

// checkCluster applies the rules for the control plane.
func (c *Config) checkCluster(facts Facts) error {
	if c.DataDir == "" && len(c.Networks) == 0 {
		return c.failf("data_dir", "without a data directory the node takes part in no cluster, and there is no network either: give one of both")
	}
	k := &c.Cluster
	if k.Listen.IsValid() && !k.Listen.IsUnspecified() {
		if _, local := facts.HasAddress(k.Listen); !local && !k.Listen.IsLoopback() {
			return c.failf("cluster.listen", "%v is on no interface of this host: give one that `ip address` shows, or take the key out to listen on all", k.Listen)
		}
	}
	for _, p := range []struct {
		key  string
		port int
	}{{"cluster.control_port", k.ControlPort}, {"cluster.gossip_port", k.GossipPort}} {
		if p.port < 1 || p.port > 65535 {
			return c.failf(p.key, "%d is out of range: choose from 1 to 65535", p.port)
		}
	}
	if k.ControlPort == k.GossipPort {
		return c.failf("cluster.gossip_port", "%d is the control port too, and both use TCP: choose two", k.GossipPort)
	}
	if k.GossipPort == c.Underlay.Port {
		return c.failf("cluster.gossip_port", "%d is the port of VXLAN too, and both use UDP: choose two", k.GossipPort)
	}
	if k.RaftMultiplier < 1 || k.RaftMultiplier > 10 {
		return c.failf("cluster.raft_multiplier", "%d is out of range: choose from 1 to 10", k.RaftMultiplier)
	}
	return nil
}

// checkPeer applies the rules for the address of a remote VTEP.
func (c *Config) checkPeer(a netip.Addr, facts Facts) error {
	if err := unicast(a); err != nil {
		return err
	}
	if a.IsLoopback() {
		return fmt.Errorf("%v is this host itself: list the other hosts only", a)
	}
	if device, local := facts.HasAddress(a); local {
		return fmt.Errorf("%v is an address of this host, on %s: list the other hosts only", a, device)
	}
	local := c.Underlay.Addresses
	if len(local) > 0 && !slices.ContainsFunc(local, func(l netip.Addr) bool { return mtu.FamilyOf(l) == mtu.FamilyOf(a) }) {
		f := mtu.FamilyOf(a)
		return fmt.Errorf("%v is %v, but underlay.addresses holds no %v address: add one, or give the peer's %v address", a, f, f, mtu.FamilyOf(local[0]))
	}
	return nil
}

// unicast checks that an address can be that of one host on the underlay.
func unicast(a netip.Addr) error {
	switch {
	case a.Is4In6():
		return fmt.Errorf("%v is an IPv4 address in IPv6 form: write %v", a, a.Unmap())
	case a.Zone() != "":
		return fmt.Errorf("%v has a zone: give an address that is valid on the whole host", a)
	case a.IsUnspecified():
		return fmt.Errorf("%v stands for no host: give the address of one", a)
	case a.IsMulticast():
		return fmt.Errorf("%v is a multicast group, and overlayd replicates to each host by itself: list the addresses of the hosts", a)
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%v is the broadcast address: give the address of one host", a)
	case a.Is6() && a.IsLinkLocalUnicast():
		return fmt.Errorf("%v is link-local, which says nothing without an interface: give a global or unique local address", a)
	}
	return nil
}

// name checks the name of a node or a network. It goes into labels, logs and file names.
func name(s string) error {
	if s == "" {
		return errors.New("it is missing: give a name")
	}
	if len(s) > maxName {
		return fmt.Errorf("%q has %d bytes: choose a name of at most %d", s, len(s), maxName)
	}
	for i, r := range s {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._-", r)) {
			return fmt.Errorf("%q has %q in it: use letters, digits and, but not first, any of . _ -", s, r)
		}
	}
	return nil
}

func socketPath(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("it is empty: give a path such as %s", DefaultSocket)
	case !filepath.IsAbs(s):
		return fmt.Errorf("%q is not an absolute path: begin it with /", s)
	case len(s) > maxSocketPath:
		return fmt.Errorf("the path has %d bytes, a socket's at most %d: choose a shorter one", len(s), maxSocketPath)
	case strings.HasSuffix(s, "/") || strings.ContainsRune(s, 0):
		return fmt.Errorf("%q does not name a file: give a path such as %s", s, DefaultSocket)
	}
	return nil
}

// listenAddress checks a TCP address to listen on; empty means none.
func listenAddress(s string) error {
	if s == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port: write it such as %s or [::1]:9789, or leave it empty to turn metrics off", s, DefaultMetrics)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("port %q is out of range: choose from 1 to 65535, or 0 to have one chosen", port)
	}
	if host != "" && host != "localhost" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q is not an IP address of this host: write one, localhost, or nothing for all", host)
		}
	}
	return nil
}
