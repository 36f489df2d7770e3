package config

import (
	"log/slog"
	"time"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/vtep"
)

// VTEP is the part of the configuration from which the VTEP is made. The paths of its fields are the same:
// what vtep.New finds wrong with networks[0].device is wrong with that key of the file.
func (c *Config) VTEP(log *slog.Logger) vtep.Config {
	v := vtep.Config{
		Underlay: vtep.Underlay{
			Port:      uint16(c.Underlay.Port),
			Addresses: c.Underlay.Addresses,
			TTL:       c.Underlay.TTL,
			Checksum:  checksumPolicy(c.Underlay.Checksum),
		},
		Disable:  c.Disable,
		Queues:   c.Queues,
		BusyPoll: time.Duration(c.BusyPoll) * time.Microsecond,
		Log:      log,
	}
	for _, n := range c.Networks {
		net := vtep.Network{
			Name:        n.Name,
			VNI:         n.VNI,
			Device:      n.Device,
			Addresses:   n.Addresses,
			Peers:       n.Peers,
			Learning:    n.Learning,
			AllowNested: n.AllowNested,
			MTU:         n.MTU,
			MSS:         n.MSS,
		}
		for _, e := range n.Endpoints {
			net.Mappings = append(net.Mappings, addr.Mapping{VNI: n.VNI, MAC: e.MAC, IPs: e.IPs, VTEP: e.VTEP})
		}
		v.Networks = append(v.Networks, net)
	}
	return v
}

func checksumPolicy(s string) vtep.ChecksumPolicy {
	switch s {
	case "on":
		return vtep.ChecksumOn
	case "off":
		return vtep.ChecksumOff
	default:
		return vtep.ChecksumAuto
	}
}
