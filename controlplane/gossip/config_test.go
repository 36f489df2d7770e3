package gossip_test

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/gossip/gossiptest"
)

func TestConfigIsChecked(t *testing.T) {
	defer goleak.VerifyNone(t)
	bind := func(as ...string) func(c *gossip.Config) {
		return func(c *gossip.Config) {
			c.Transport, c.Bind = nil, nil
			for _, a := range as {
				c.Bind = append(c.Bind, netip.MustParseAddrPort(a))
			}
		}
	}
	advertise := func(a string) func(c *gossip.Config) {
		return func(c *gossip.Config) { c.Advertise = netip.MustParseAddrPort(a) }
	}
	keys := func(ks ...[]byte) func(c *gossip.Config) {
		return func(c *gossip.Config) { c.Keys = ks }
	}
	many := make([][]byte, 9)
	for i := range many {
		many[i] = testKey(byte(i))
	}
	for name, c := range map[string]struct {
		change func(c *gossip.Config)
		want   string
	}{
		"no node":           {func(c *gossip.Config) { c.NodeID = "" }, "ID of the node"},
		"node in capitals":  {func(c *gossip.Config) { c.NodeID = "00000000000000AB" }, "ID of the node"},
		"long node":         {func(c *gossip.Config) { c.NodeID = strings.Repeat("0", 17) }, "ID of the node"},
		"cluster with path": {func(c *gossip.Config) { c.Cluster = "../../etc/passwd" }, "ID of the cluster"},
		"no advertised":     {func(c *gossip.Config) { c.Advertise = netip.AddrPort{} }, "advertised address is missing"},
		"any advertised":    {advertise("0.0.0.0:7790"), "not one that others can reach"},
		"multicast":         {advertise("[ff02::1]:7790"), "not one that others can reach"},
		"zone":              {advertise("[fe80::1%eth0]:7790"), "zone"},
		"mapped":            {advertise("[::ffff:192.0.2.1]:7790"), "IPv6 form"},
		"port 0":            {advertise("192.0.2.1:0"), "port 0"},
		"no bind":           {bind(), "no address to listen on"},
		"bind port 0":       {bind("192.0.2.1:0"), "port 0"},
		"two of a family":   {bind("192.0.2.1:7790", "192.0.2.2:7790"), "at most one of each"},
		"not this host's":   {bind("203.0.113.77:7790"), "listening on 203.0.113.77:7790"},
		"no keys":           {keys(), "0 gossip keys"},
		"short key":         {keys(testKey(7)[:31]), "31 bytes"},
		"same key twice":    {keys(testKey(7), testKey(8), testKey(7)), "keys 0 and 2 are the same"},
		"too many keys":     {keys(many...), "9 gossip keys"},
		"no deliver":        {func(c *gossip.Config) { c.Deliver = nil }, "Deliver"},
		"no packet size":    {func(c *gossip.Config) { c.PacketSize = nil }, "PacketSize"},
		"negative interval": {func(c *gossip.Config) { c.Timing.Gossip = -1 }, "Gossip"},
		"slow answers":      {func(c *gossip.Config) { c.Timing.ProbeTimeout = time.Second }, "ProbeTimeout"},
		"hasty":             {func(c *gossip.Config) { c.Timing.Suspicion = time.Second }, "uspicion"},
	} {
		net := gossiptest.NewNetwork(1)
		tr, err := net.Transport(addrOf(0))
		if err != nil {
			t.Fatal(err)
		}
		n := &node{id: idOf(0), addr: addrOf(0)}
		cfg := n.config()
		cfg.Transport = tr
		c.change(&cfg)
		g, err := gossip.New(cfg)
		if err == nil {
			t.Errorf("%s: no error", name)
			_ = g.Close()
			continue
		}
		if !strings.Contains(err.Error(), c.want) || name != "not this host's" && !errors.Is(err, gossip.ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig and %q", name, err, c.want)
		}
		if bytes.Contains([]byte(err.Error()), []byte{7, 7}) || strings.Contains(err.Error(), "0707") {
			t.Errorf("%s: the error shows a key: %v", name, err)
		}
	}
}

func TestSetKeysIsChecked(t *testing.T) {
	net := gossiptest.NewNetwork(1)
	tr, err := net.Transport(addrOf(0))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{id: idOf(0), addr: addrOf(0)}
	cfg := n.config()
	cfg.Transport = tr
	g, err := gossip.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close() }()
	for _, keys := range [][][]byte{nil, {testKey(1)[:16]}, {testKey(1), testKey(1)}} {
		if err := g.SetKeys(keys); err == nil {
			t.Errorf("%d keys were taken", len(keys))
		}
	}
	if n, err := g.Join([]netip.AddrPort{{}, netip.MustParseAddrPort("[fe80::1%eth0]:7790")}); n != 0 || err == nil {
		t.Errorf("joining no addresses: %d, %v", n, err)
	}
	if err := g.Leave(0); err == nil {
		t.Error("leaving without a timeout succeeded")
	}
}
