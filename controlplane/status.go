package controlplane

import (
	"context"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/gossip"
)

// RaftStatus is what a manager knows of Raft.
type RaftStatus struct {
	Leader  string // ID of the node; "" = none is known
	Index   uint64 // of the last entry that was applied
	Servers []RaftServer
}

// RaftServer is one that Raft counts on.
type RaftServer struct {
	ID      string // of the node
	Address string // host:port
	Voter   bool   // false while it catches up
}

// Raft returns what this node, or else some manager that can be reached, knows of Raft.
func (n *Node) Raft(ctx context.Context) (RaftStatus, error) {
	m, err := n.current()
	if err != nil {
		return RaftStatus{}, err
	}
	if s := m.seat.Load(); s != nil {
		return s.status(), nil
	}
	var out RaftStatus
	err = m.askManagers(ctx, callTimeout, func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
		res, err := p.GetRaft(ctx, &peerv1.GetRaftRequest{})
		out = RaftStatus{Leader: res.GetLeader(), Index: res.GetIndex()}
		for _, x := range res.GetServers() {
			out.Servers = append(out.Servers, RaftServer{ID: x.Id, Address: x.Address, Voter: x.Voter})
		}
		return err
	})
	return out, err
}

func (s *seat) status() RaftStatus {
	var out RaftStatus
	out.Leader, _ = s.raft.Leader()
	out.Index = s.store.Index()
	for _, x := range s.raft.Servers() {
		out.Servers = append(out.Servers, RaftServer{ID: x.ID, Address: x.Address, Voter: x.Voter})
	}
	return out
}

func (p peerService) GetRaft(context.Context, *peerv1.GetRaftRequest) (*peerv1.GetRaftResponse, error) {
	s, err := p.manager()
	if err != nil {
		return nil, err
	}
	st := s.status()
	out := &peerv1.GetRaftResponse{Leader: st.Leader, Index: st.Index}
	for _, x := range st.Servers {
		out.Servers = append(out.Servers, &peerv1.Server{Id: x.ID, Address: x.Address, Voter: x.Voter})
	}
	return out, nil
}

// Alive returns, for each node that the gossip of this one knows of, whether it is alive. Others are not in it.
func (n *Node) Alive() map[string]bool {
	out := map[string]bool{}
	m := n.member.Load()
	if m == nil {
		return out
	}
	g := m.gossip.Load()
	if g == nil {
		return out
	}
	for _, x := range g.Members() {
		out[x.NodeID] = x.State == gossip.Alive || x.State == gossip.Suspect
	}
	return out
}
