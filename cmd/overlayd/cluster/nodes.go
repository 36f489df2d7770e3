package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

const (
	// freshTime is how long a listing waits for the managers.
	freshTime = 1500 * time.Millisecond
	// raftTime is how long it waits for one of them to say how Raft is.
	raftTime = time.Second
)

// agreed brings the node's copy up to date before a change that goes by it. What such a copy does not hold does not exist.
func (s *Service) agreed(ctx context.Context) error { return known(s.cp.Fresh(ctx)) }

// fresh brings the node's copy up to date before a listing. Without a leader the copy has to do: an operator who
// looks for the reason needs the listing most of all.
func (s *Service) fresh(ctx context.Context) error {
	if self, _ := s.cp.Self(); self == "" {
		return api.ErrNotMember()
	}
	soon, cancel := context.WithTimeout(ctx, freshTime)
	defer cancel()
	if err := s.cp.Fresh(soon); err != nil {
		s.log.Warn("a listing comes from this node's own copy, which may be old", "error", err)
	}
	return ctx.Err()
}

// node finds a node by its name or ID.
func (s *Service) node(field, name string) (*statev1.Node, error) {
	t := s.cp.Tables()
	if n := t.Node(name); n != nil {
		return n, nil
	}
	if n := t.NodeByName(name); n != nil {
		return n, nil
	}
	return nil, api.Errorf(api.NotFound, field, "there is no node %q: see `overlayctl node ls`", name)
}

// self is this node, as the API shows it.
func (s *Service) self() (*overlaydv1.Node, error) {
	id, _ := s.cp.Self()
	n := s.cp.Tables().Node(id)
	if n == nil {
		return nil, api.Errorf(api.Unavailable, "", "this node has not learned of itself from the managers yet: see `overlayctl cluster status`")
	}
	return s.show(n, controlplane.RaftStatus{}), nil
}

func controlOf(n *statev1.Node) string {
	return net.JoinHostPort(n.Addresses[0], strconv.Itoa(int(n.ControlPort)))
}

func roleOf(s string) statev1.Role {
	switch s {
	case api.RoleManager:
		return statev1.Role_ROLE_MANAGER
	case api.RoleWorker:
		return statev1.Role_ROLE_WORKER
	}
	return statev1.Role_ROLE_UNSPECIFIED
}

// show is a node as the API has it.
func (s *Service) show(n *statev1.Node, raft controlplane.RaftStatus) *overlaydv1.Node {
	self, _ := s.cp.Self()
	out := &overlaydv1.Node{
		Id: n.Id, Name: n.Name, Role: api.RoleWorker, Availability: api.AvailabilityActive, Status: api.NodeUnknown,
		Addresses: n.Addresses, ControlPort: n.ControlPort, GossipPort: n.GossipPort, VxlanPort: n.VxlanPort,
		Endpoints: uint64(len(s.cp.Tables().Endpoints("", n.Id))), Joined: n.Joined, Self: n.Id == self,
	}
	if n.Role == statev1.Role_ROLE_MANAGER {
		out.Role = api.RoleManager
	}
	if n.Availability == statev1.Availability_AVAILABILITY_DRAIN {
		out.Availability = api.AvailabilityDrain
	}
	alive, heard := s.cp.Alive()[n.Id]
	switch {
	case n.Id == self || alive:
		out.Status = api.NodeReady
	case heard:
		out.Status = api.NodeDown
		out.Problem = "the gossip hears nothing from it; its endpoints stay until it is removed"
	}
	if n.Role == statev1.Role_ROLE_MANAGER {
		switch {
		case raft.Leader == n.Id:
			out.ManagerStatus = api.ManagerLeader
		case out.Status == api.NodeReady:
			out.ManagerStatus = api.ManagerReachable
		case out.Status == api.NodeDown:
			out.ManagerStatus = api.ManagerUnreachable
		}
	}
	return out
}

// raft returns what is known of Raft; that may be nothing.
func (s *Service) raft(ctx context.Context) controlplane.RaftStatus {
	ctx, cancel := context.WithTimeout(ctx, raftTime)
	defer cancel()
	st, err := s.cp.Raft(ctx)
	if err != nil {
		s.log.Debug("no manager says how Raft is", "error", err)
	}
	return st
}

// ListNodes returns the members.
func (s *Service) ListNodes(ctx context.Context, _ *overlaydv1.ListNodesRequest) (*overlaydv1.ListNodesResponse, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	raft := s.raft(ctx)
	res := &overlaydv1.ListNodesResponse{}
	for _, n := range s.cp.Tables().Nodes() {
		res.Nodes = append(res.Nodes, s.show(n, raft))
	}
	slices.SortFunc(res.Nodes, func(a, b *overlaydv1.Node) int { return cmp.Compare(a.Name, b.Name) })
	return res, nil
}

// GetNode returns one member.
func (s *Service) GetNode(ctx context.Context, req *overlaydv1.GetNodeRequest) (*overlaydv1.GetNodeResponse, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	n, err := s.node("node", req.Node)
	if err != nil {
		return nil, err
	}
	return &overlaydv1.GetNodeResponse{Node: s.show(n, s.raft(ctx))}, nil
}

// UpdateNode changes a member.
func (s *Service) UpdateNode(ctx context.Context, req *overlaydv1.UpdateNodeRequest) (*overlaydv1.UpdateNodeResponse, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	n, err := s.node("node", req.Node)
	if err != nil {
		return nil, err
	}
	u := &statev1.UpdateNode{Id: n.Id, Role: roleOf(req.Role)}
	switch req.Availability {
	case api.AvailabilityActive:
		u.Availability = statev1.Availability_AVAILABILITY_ACTIVE
	case api.AvailabilityDrain:
		u.Availability = statev1.Availability_AVAILABILITY_DRAIN
	}
	res, err := s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_UpdateNode{UpdateNode: u}})
	if err != nil {
		return nil, known(err)
	}
	return &overlaydv1.UpdateNodeResponse{Node: s.show(res.Node, s.raft(ctx))}, nil
}

// RemoveNode takes a member out of the cluster.
func (s *Service) RemoveNode(ctx context.Context, req *overlaydv1.RemoveNodeRequest) (*overlaydv1.RemoveNodeResponse, error) {
	if err := s.agreed(ctx); err != nil {
		return nil, err
	}
	n, err := s.node("node", req.Node)
	if err != nil {
		return nil, err
	}
	shown := s.show(n, controlplane.RaftStatus{})
	switch {
	case shown.Self:
		return nil, api.Errorf(api.Refused, "node", "%s is this node: use `overlayctl leave`", n.Name)
	case req.Force:
	case shown.Status == api.NodeReady:
		return nil, api.Errorf(api.InUse, "node", "%s is up: run `overlayctl leave` there, or use --force", n.Name)
	case n.Role == statev1.Role_ROLE_MANAGER:
		return nil, api.Errorf(api.InUse, "node", "%s is a manager: demote it first by `overlayctl node demote %s`, or use --force", n.Name, n.Name)
	}
	_, err = s.cp.Propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveNode{RemoveNode: &statev1.RemoveNode{Id: n.Id, Force: req.Force}}})
	if err != nil {
		return nil, known(err)
	}
	return &overlaydv1.RemoveNodeResponse{}, nil
}

// GetClusterStatus returns what this node knows of the cluster's health.
func (s *Service) GetClusterStatus(ctx context.Context, _ *overlaydv1.GetClusterStatusRequest) (*overlaydv1.GetClusterStatusResponse, error) {
	self, cluster := s.cp.Self()
	if self == "" {
		return nil, api.ErrNotMember()
	}
	t := s.cp.Tables()
	soon, cancel := context.WithTimeout(ctx, freshTime)
	defer cancel()
	raft, raftErr := s.cp.Raft(soon)
	st := &overlaydv1.ClusterStatus{
		ClusterId: cluster, RaftIndex: raft.Index, ReplicaIndex: t.Index(),
		Nodes: uint64(len(t.Nodes())), Networks: uint64(len(t.Networks())), Endpoints: uint64(len(t.Endpoints("", ""))),
		Problems: s.follow.Problems(),
	}
	if n := t.Node(self); n != nil {
		st.Node = s.show(n, raft)
	}
	if raftErr != nil {
		st.Problems = append(st.Problems, "no manager answers, so nothing can be changed: "+raftErr.Error())
	}
	alive := s.cp.Alive()
	voters, reached, unheard := 0, 0, ""
	for _, x := range raft.Servers {
		m := &overlaydv1.Manager{Id: x.ID, Address: x.Address, Voter: x.Voter, Status: api.ManagerUnreachable}
		if n := t.Node(x.ID); n != nil {
			m.Name = n.Name
		}
		up, heard := alive[x.ID]
		up = up || x.ID == self
		if up {
			m.Status = api.ManagerReachable
		}
		if x.ID == raft.Leader {
			m.Status = api.ManagerLeader
			st.LeaderId, st.Leader = x.ID, m.Name
		}
		if x.Voter {
			voters++
			if up {
				reached++
			} else if !heard {
				unheard = "if this host has just started, wait until it has heard of the others; "
			}
		}
		st.Managers = append(st.Managers, m)
	}
	// A leader steps down within seconds without a majority. That the gossip of this node has not heard of the others proves less:
	// it may have just started.
	st.Quorum = st.LeaderId != ""
	switch {
	case voters == 0:
	case !st.Quorum && reached <= voters/2:
		st.Problems = append(st.Problems, fmt.Sprintf("%d of %d managers are reachable, and %d are needed for changes: %sbring managers back, or, if they are lost for good, run `overlayctl cluster recover` on one that is left; forwarding goes on", reached, voters, voters/2+1, unheard))
	case !st.Quorum:
		st.Problems = append(st.Problems, "the managers have no leader at the moment")
	case voters == 2 && len(raft.Servers) == 2:
		st.Problems = append(st.Problems, "with two managers the loss of either stops all changes: promote a third node")
	}
	return &overlaydv1.GetClusterStatusResponse{Status: st}, nil
}
