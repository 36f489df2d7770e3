package state

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

func (c *command) bootstrap(k *statev1.Bootstrap) *refusal {
	if c.clusterID != "" {
		return refuse(statev1.Error_KIND_REFUSED, "", "the cluster %s exists already: join it instead", c.clusterID)
	}
	if _, bad := parseID("cluster_id", k.ClusterId); bad != nil {
		return bad
	}
	n, bad := parseNode(c.newcomer(k.Node))
	if bad != nil {
		return bad.under("node")
	}
	if n.msg.Role != statev1.Role_ROLE_MANAGER {
		return invalid("node.role", "the first node of a cluster has to be a manager")
	}
	if bad := checkAllSecrets(k.Secrets); bad != nil {
		return bad.under("secrets")
	}
	c.clusterID = k.ClusterId
	c.store.secrets = mergeSecrets(nil, k.Secrets, c.index)
	c.commitNode(n)
	return nil
}

// newcomer returns the node as it is to be, with what the state decides about it. It is nil for nil.
func (c *command) newcomer(m *statev1.Node) *statev1.Node {
	if m == nil {
		return nil
	}
	m = proto.CloneOf(m)
	m.Index, m.Joined = c.index, c.time
	if m.Availability == statev1.Availability_AVAILABILITY_UNSPECIFIED {
		m.Availability = statev1.Availability_AVAILABILITY_ACTIVE
	}
	return m
}

func (c *command) addNode(k *statev1.AddNode) *refusal {
	m := c.newcomer(k.Node)
	var old *node
	if id, ok := idOf(m.GetId()); ok {
		old = c.node(id)
	}
	if old != nil {
		if !bytes.Equal(old.msg.PublicKey, m.PublicKey) {
			return refuse(statev1.Error_KIND_CONFLICT, "node.public_key", "node %s is a member with another key: join under a new ID, as with an empty data directory, or remove that node first", m.Id)
		}
		m.Joined = old.msg.Joined
		if k.Node.Availability == statev1.Availability_AVAILABILITY_UNSPECIFIED {
			m.Availability = old.msg.Availability
		}
	}
	n, bad := parseNode(m)
	if bad != nil {
		return bad.under("node")
	}
	return c.changeNode(old, n).under("node")
}

func (c *command) updateNode(k *statev1.UpdateNode) *refusal {
	old, bad := c.knownNode("id", k.Id)
	if bad != nil {
		return bad
	}
	m := proto.CloneOf(old.msg)
	m.Index = c.index
	if k.Role != statev1.Role_ROLE_UNSPECIFIED {
		m.Role = k.Role
	}
	if k.Availability != statev1.Availability_AVAILABILITY_UNSPECIFIED {
		m.Availability = k.Availability
	}
	if len(k.Addresses) > 0 {
		m.Addresses = k.Addresses
	}
	if k.Name != "" {
		m.Name = k.Name
	}
	n, bad := parseNode(m)
	if bad != nil {
		return bad
	}
	return c.changeNode(old, n)
}

// changeNode puts n in the place of old, or adds it if old is nil. If nothing is different, nothing changes.
func (c *command) changeNode(old, n *node) *refusal {
	if old != nil && sameNode(old.msg, n.msg) {
		c.result.Node = proto.CloneOf(old.msg)
		return nil
	}
	if bad := c.nodeConflict(n); bad != nil {
		return bad
	}
	was := old != nil && old.msg.Role == statev1.Role_ROLE_MANAGER
	is := n.msg.Role == statev1.Role_ROLE_MANAGER
	if is && !was && c.managers >= MaxManagers {
		return refuse(statev1.Error_KIND_REFUSED, "role", "there are %d managers, and every one more makes every change slower: let the node be a worker, or demote a manager first", c.managers)
	}
	if was && !is && c.managers == 1 {
		return refuse(statev1.Error_KIND_REFUSED, "role", "node %s is the last manager: promote another node first", old.msg.Name)
	}
	c.commitNode(n)
	return nil
}

// sameNode reports whether two nodes differ in nothing but the index of their last change.
func sameNode(a, b *statev1.Node) bool {
	return a.Name == b.Name && a.Role == b.Role && a.Availability == b.Availability && slices.Equal(a.Addresses, b.Addresses) &&
		a.ControlPort == b.ControlPort && a.GossipPort == b.GossipPort && a.VxlanPort == b.VxlanPort && bytes.Equal(a.PublicKey, b.PublicKey)
}

func (c *command) commitNode(n *node) {
	c.putNode(n)
	c.deltas = append(c.deltas, &statev1.Delta{Index: c.index, Node: proto.CloneOf(n.msg)})
	c.result.Node = proto.CloneOf(n.msg)
}

func (c *command) removeNode(k *statev1.RemoveNode) *refusal {
	n, bad := c.knownNode("id", k.Id)
	if bad != nil {
		return bad
	}
	if n.msg.Role == statev1.Role_ROLE_MANAGER && c.managers == 1 {
		return refuse(statev1.Error_KIND_REFUSED, "id", "node %s is the last manager, and the state of the cluster would go with it: promote another node first", n.msg.Name)
	}
	var endpoints []*endpoint
	c.onNode(n.id, func(e *endpoint) bool {
		endpoints = append(endpoints, e)
		return k.Force // one is enough to refuse
	})
	if len(endpoints) > 0 && !k.Force {
		return refuse(statev1.Error_KIND_IN_USE, "id", "node %s has endpoints, such as %s: drain it and remove them, or use force to remove them with it", n.msg.Name, endpoints[0].label())
	}
	for _, e := range endpoints {
		c.commitRemoval(e)
	}
	c.dropNode(n)
	c.deltas = append(c.deltas, &statev1.Delta{Index: c.index, RemovedNode: n.msg.Id})
	return nil
}

func (c *command) knownNode(field, id string) (*node, *refusal) {
	n, bad := parseID(field, id)
	if bad != nil {
		return nil, bad
	}
	if found := c.node(n); found != nil {
		return found, nil
	}
	return nil, refuse(statev1.Error_KIND_NOT_FOUND, field, "there is no node %s: see `overlayctl node ls`", id)
}
