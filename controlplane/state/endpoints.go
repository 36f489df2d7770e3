package state

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

const (
	// MaxLease is how long a lease may last. What is not confirmed for so long has been forgotten by whoever asked for it.
	MaxLease = 24 * time.Hour

	// MaxCollected is how many endpoints one CollectLeases removes at most, so that its batch stays of a size that
	// travels well. If Result.collected is as many, there may be more to collect.
	MaxCollected = 4096
)

func (c *command) addEndpoint(k *statev1.AddEndpoint) *refusal {
	seg, bad := c.knownNetwork("network", k.Network)
	if bad != nil {
		return bad
	}
	host, bad := c.activeNode("node", k.Node)
	if bad != nil {
		return bad
	}
	e := &endpoint{network: seg.net.id, node: host.id, name: k.Name, generation: 1, index: c.index}
	if e.name != "" {
		if bad := checkName("name", e.name); bad != nil {
			return bad
		}
	}
	if bad := c.checkLease(e, k.LeaseEnd); bad != nil {
		return bad
	}
	if bad := e.parseIPs(k.Ips); bad != nil {
		return bad
	}
	var ips []netip.Addr // in the order of the command, for its fields to be named right
	for _, s := range k.Ips {
		ips = append(ips, netip.MustParseAddr(s)) // parseIPs has read it
	}
	if bad := e.misfit(seg.net, ips); bad != nil {
		return bad
	}
	if len(k.Mac) > 0 {
		if bad := e.parseMAC(k.Mac); bad != nil {
			return bad
		}
	} else if bad := c.makeMAC(e); bad != nil {
		return bad
	}
	if bad := c.endpointConflict(e, ips); bad != nil {
		return bad
	}

	// Nothing is wrong with what was asked for. What was not asked for is chosen.
	found := map[*pool]netip.Addr{}
	for _, p := range c.alloc.pools[e.network] {
		if e.hasFamily(p.subnet.prefix.Addr()) {
			continue
		}
		a, ok := p.find(c.content, e.network, func(attempt int) uint64 { return c.derive("address", attempt) })
		if !ok {
			return refuse(statev1.Error_KIND_EXHAUSTED, "ips", "no address of %v of network %s is free: remove endpoints that are not needed, or make a network with a larger subnet", p.subnet.prefix, seg.net.msg.Name)
		}
		e.setIP(a)
		found[p] = a
	}
	e.id = c.newID("endpoint", func(id uint64) bool { return c.byID.find(&endpoint{id: id}) != nil })
	for p, a := range found {
		p.moveOn(a)
	}
	c.commitEndpoint(e)
	return nil
}

// checkLease reads when the lease is to end. An end that is past would be collected before anyone could confirm it.
func (c *command) checkLease(e *endpoint, end *timestamppb.Timestamp) *refusal {
	if end == nil {
		return nil
	}
	end, bad := checkTime("lease_end", end)
	if bad != nil {
		return bad
	}
	if !before(c.time, end) {
		return invalid("lease_end", "%v is not after the time of the command, %v: give a later one", end.AsTime(), c.time.AsTime())
	}
	if end.AsTime().Sub(c.time.AsTime()) > MaxLease {
		return invalid("lease_end", "%v is more than %v after the time of the command: give an earlier one", end.AsTime(), MaxLease)
	}
	e.setLease(end)
	return nil
}

// makeMAC gives e a locally administered unicast address (IEEE 802, 8.4) that is free on its network.
func (c *command) makeMAC(e *endpoint) *refusal {
	for attempt := range attempts {
		e.mac = addr.MACFromUint64(c.derive("mac", attempt))
		e.mac[0] = e.mac[0]&^1 | 2
		if c.byMAC.find(e) == nil {
			return nil
		}
	}
	return refuse(statev1.Error_KIND_EXHAUSTED, "mac", "no free MAC address was found: give one")
}

func (c *command) confirmEndpoint(k *statev1.ConfirmEndpoint) *refusal {
	old, bad := c.knownEndpoint("id", k.Id)
	if bad != nil {
		return bad
	}
	node, bad := parseID("node", k.Node)
	if bad != nil {
		return bad
	}
	if node != old.node {
		return refuse(statev1.Error_KIND_CONFLICT, "node", "endpoint %s is on node %s, not on %s: it was moved; detach it here", old.label(), formatID(old.node), k.Node)
	}
	if !old.leased {
		c.result.Endpoint = old.message()
		return nil
	}
	e := *old
	e.setLease(nil)
	e.index = c.index
	c.commitEndpoint(&e)
	return nil
}

func (c *command) moveEndpoint(k *statev1.MoveEndpoint) *refusal {
	old, bad := c.knownEndpoint("id", k.Id)
	if bad != nil {
		return bad
	}
	if k.Generation != 0 && k.Generation != old.generation {
		return refuse(statev1.Error_KIND_CONFLICT, "generation", "endpoint %s is of generation %d, not %d: it was moved meanwhile; look where it is now", old.label(), old.generation, k.Generation)
	}
	if node, ok := idOf(k.Node); ok && node == old.node {
		c.result.Endpoint = old.message()
		return nil
	}
	host, bad := c.activeNode("node", k.Node)
	if bad != nil {
		return bad
	}
	e := *old
	e.node = host.id
	e.generation++
	e.index = c.index
	c.commitEndpoint(&e)
	return nil
}

func (c *command) removeEndpoint(k *statev1.RemoveEndpoint) *refusal {
	id, bad := parseID("id", k.Id)
	if bad != nil {
		return bad
	}
	if e := c.byID.find(&endpoint{id: id}); e != nil {
		c.commitRemoval(e)
	}
	return nil
}

// collectLeases compares the time of the command with the ends of leases and with nothing else: if it is before that of
// an earlier command, less is collected, and nothing that is gone comes back.
func (c *command) collectLeases() *refusal {
	var due []*endpoint
	c.byLease.Ascend(func(e *endpoint) bool {
		if !before(&timestamppb.Timestamp{Seconds: e.leaseSeconds, Nanos: e.leaseNanos}, c.time) || len(due) == MaxCollected {
			return false
		}
		due = append(due, e)
		return true
	})
	for _, e := range due {
		c.commitRemoval(e)
	}
	c.result.Collected = uint32(len(due))
	return nil
}

func (c *command) commitEndpoint(e *endpoint) {
	c.putEndpoint(e)
	c.deltas = append(c.deltas, &statev1.Delta{Index: c.index, Endpoint: e.message()})
	c.result.Endpoint = e.message()
}

func (c *command) commitRemoval(e *endpoint) {
	c.dropEndpoint(e)
	c.deltas = append(c.deltas, &statev1.Delta{Index: c.index, RemovedEndpoint: formatID(e.id)})
}

func (c *command) knownEndpoint(field, id string) (*endpoint, *refusal) {
	n, bad := parseID(field, id)
	if bad != nil {
		return nil, bad
	}
	if e := c.byID.find(&endpoint{id: n}); e != nil {
		return e, nil
	}
	return nil, refuse(statev1.Error_KIND_NOT_FOUND, field, "there is no endpoint %s: it was removed, or its lease ended before it was confirmed; add it again", id)
}

// activeNode returns a node that may be given endpoints.
func (c *command) activeNode(field, id string) (*node, *refusal) {
	n, bad := c.knownNode(field, id)
	if bad != nil {
		return nil, bad
	}
	if n.msg.Availability == statev1.Availability_AVAILABILITY_DRAIN {
		return nil, refuse(statev1.Error_KIND_REFUSED, field, "node %s is drained and takes no new endpoints: choose another node, or activate it with `overlayctl node activate %s`", n.msg.Name, n.msg.Name)
	}
	return n, nil
}

// Leases returns the endpoints that nobody has confirmed yet, those whose lease ends first in front.
func (s *Store) Leases() []*statev1.Endpoint {
	var records []*endpoint
	s.mu.RLock()
	s.c.byLease.Ascend(func(e *endpoint) bool {
		records = append(records, e)
		return true
	})
	s.mu.RUnlock()
	out := make([]*statev1.Endpoint, len(records))
	for i, e := range records {
		out[i] = e.message()
	}
	return out
}
