package state

import (
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

func (c *command) createNetwork(k *statev1.CreateNetwork) *refusal {
	m := &statev1.Network{
		Name: k.Name, Vni: k.Vni, Subnets: k.Subnets, Gateways: k.Gateways, Mtu: k.Mtu, Mss: k.Mss, Index: c.index, Created: c.time,
		Id: formatID(c.newID("network", func(id uint64) bool { return c.segments[id] != nil })),
	}
	// What was asked for is checked before anything is allocated, so that a full pool hides no mistake.
	if bad := checkName("name", m.Name); bad != nil {
		return bad
	}
	nextVNI, nextSubnet := c.alloc.nextVNI, c.alloc.nextSubnet
	if len(m.Subnets) == 0 {
		if len(m.Gateways) > 0 {
			return invalid("gateways", "there is no subnet that they could be in: give subnets too")
		}
		if bad := checkMTU(m.Mtu, nil); bad != nil {
			return bad
		}
		if bad := checkMSS(m.Mss, m.Mtu); bad != nil {
			return bad
		}
		n, p, ok := c.alloc.findSubnet()
		if !ok {
			return refuse(statev1.Error_KIND_EXHAUSTED, "subnets", "no /24 of 10.0.0.0/8 is free: give a subnet, or remove networks that are not needed")
		}
		m.Subnets, nextSubnet = []string{p.String()}, n+1
	}
	if m.Vni == 0 {
		vni, ok := c.alloc.findVNI()
		if !ok {
			return refuse(statev1.Error_KIND_EXHAUSTED, "vni", "no VNI from %d on is free: give one below, or remove networks that are not needed", firstVNI)
		}
		m.Vni, nextVNI = vni, vni+1
	}
	n, bad := parseNetwork(m)
	if bad != nil {
		return bad
	}
	if bad := c.networkConflict(n); bad != nil {
		return bad
	}
	c.alloc.nextVNI, c.alloc.nextSubnet = nextVNI, nextSubnet
	c.putNetwork(n)
	c.deltas = append(c.deltas, &statev1.Delta{Index: c.index, Network: proto.CloneOf(n.msg)})
	c.result.Network = proto.CloneOf(n.msg)
	return nil
}

func (c *command) removeNetwork(k *statev1.RemoveNetwork) *refusal {
	seg, bad := c.knownNetwork("id", k.Id)
	if bad != nil {
		return bad
	}
	if seg.endpoints > 0 {
		example := ""
		c.byNetwork.AscendGreaterOrEqual(&endpoint{network: seg.net.id}, func(e *endpoint) bool {
			example = e.label()
			return false
		})
		return refuse(statev1.Error_KIND_IN_USE, "id", "network %s has %d endpoints, such as %s: remove them first", seg.net.msg.Name, seg.endpoints, example)
	}
	c.dropNetwork(seg.net)
	c.deltas = append(c.deltas, &statev1.Delta{Index: c.index, RemovedNetwork: seg.net.msg.Id})
	return nil
}

func (c *command) knownNetwork(field, id string) (*segment, *refusal) {
	n, bad := parseID(field, id)
	if bad != nil {
		return nil, bad
	}
	if seg := c.segments[n]; seg != nil {
		return seg, nil
	}
	return nil, refuse(statev1.Error_KIND_NOT_FOUND, field, "there is no network %s: see `overlayctl network ls`", id)
}
