package controlplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/overlayd/overlayd/controlplane/consensus"
)

// The ports that nodes use unless told otherwise.
const (
	DefaultControlPort = 7789 // TCP
	DefaultGossipPort  = 7790 // TCP and UDP
	DefaultVXLANPort   = 4789 // UDP
)

// Config is what a Node is made from.
type Config struct {
	Dir         string           // holds everything that the node keeps; made, with mode 0700, if it is not there
	Listen      netip.Addr       // the only local address on which to listen; zero = all
	ControlPort uint16           // TCP, for the API between nodes and Raft; 0 = DefaultControlPort
	GossipPort  uint16           // TCP and UDP; 0 = DefaultGossipPort
	VXLANPort   uint16           // UDP, told to the other nodes; 0 = DefaultVXLANPort
	Timing      consensus.Timing // of Raft; zero = its defaults
	Log         *slog.Logger     // nil = slog.Default()
}

func (c *Config) complete() error {
	if c.Dir == "" {
		return errors.New("control plane: no directory is named: state one to keep keys and state in")
	}
	for _, p := range []struct {
		port  *uint16
		other uint16
	}{{&c.ControlPort, DefaultControlPort}, {&c.GossipPort, DefaultGossipPort}, {&c.VXLANPort, DefaultVXLANPort}} {
		if *p.port == 0 {
			*p.port = p.other
		}
	}
	if c.ControlPort == c.GossipPort {
		return fmt.Errorf("control plane: the control port and the gossip port are both %d: both use TCP, choose two", c.ControlPort)
	}
	if c.GossipPort == c.VXLANPort {
		return fmt.Errorf("control plane: the gossip port and the VXLAN port are both %d: both use UDP, choose two", c.GossipPort)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("control plane: make the data directory: %w", err)
	}
	return nil
}

// What lies where below Config.Dir.
func (c *Config) identityDir() string { return filepath.Join(c.Dir, "identity") }
func (c *Config) raftDir() string     { return filepath.Join(c.Dir, "raft") }
func (c *Config) localFile() string   { return filepath.Join(c.Dir, "node.json") }
func (c *Config) copyFile() string    { return filepath.Join(c.Dir, "copy.pb") }

// restorePattern is what a backup is called while it is read.
const restorePattern = "restore.*"

// tidy removes what a crash has left of files that were being written.
func (c *Config) tidy() error {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return fmt.Errorf("control plane: look for unfinished files: %w", err)
	}
	for _, e := range entries {
		for _, pattern := range []string{restorePattern, filepath.Base(c.localFile()) + ".*", filepath.Base(c.copyFile()) + ".*"} {
			if !strings.HasPrefix(e.Name(), strings.TrimSuffix(pattern, "*")) {
				continue
			}
			if err := os.Remove(filepath.Join(c.Dir, e.Name())); err != nil {
				return fmt.Errorf("control plane: remove an unfinished file: %w", err)
			}
		}
	}
	return nil
}

// checkAddresses looks at candidate underlay addresses.
func checkAddresses(addresses []netip.Addr) error {
	if len(addresses) == 0 {
		return errors.New("no address is stated under which the other nodes reach this one")
	}
	seen := map[netip.Addr]bool{}
	for _, a := range addresses {
		switch {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6():
			return fmt.Errorf("%v is no address that other nodes can reach: state a unicast address of this host", a)
		case seen[a]:
			return fmt.Errorf("%v is stated twice", a)
		}
		seen[a] = true
	}
	return nil
}
