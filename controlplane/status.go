package controlplane

import (
	"context"
	"io"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/consensus"
	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/state"
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
	err = m.askManagers(ctx, func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
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

// Backup writes the whole state, with the secrets, and a checksum. Only a manager has it.
func (n *Node) Backup(ctx context.Context, w io.Writer) error {
	s, err := n.managing()
	if err != nil {
		return err
	}
	return s.raft.Backup(ctx, w)
}

// Restore replaces the whole state by what Backup wrote. Only the manager that leads can do it.
func (n *Node) Restore(ctx context.Context, r io.Reader) (uint64, error) {
	s, err := n.managing()
	if err != nil {
		return 0, err
	}
	if err := s.raft.Restore(ctx, r); err != nil {
		return 0, err
	}
	return s.store.Index(), s.member.mirror(s.store)
}

func (n *Node) managing() (*seat, error) {
	m, err := n.current()
	if err != nil {
		return nil, err
	}
	if s := m.seat.Load(); s != nil {
		return s, nil
	}
	return nil, Refusal{Kind: statev1.Error_KIND_REFUSED, Message: "only managers have the whole state: run this on a manager"}
}

// Recover makes the manager whose data lies in dir the only one of its cluster, for when so many managers are lost for
// good that no leader can be elected. Networks, endpoints, addresses, VNIs and the CA stay. Its daemon must not
// run. It returns the ID of the node.
func Recover(dir string) (string, error) {
	cfg := Config{Dir: dir}
	if err := cfg.complete(); err != nil {
		return "", err
	}
	l, err := loadLocal(cfg.localFile())
	if err != nil {
		return "", err
	}
	if l == nil {
		return "", ErrNotMember
	}
	return l.NodeID, consensus.Recover(cfg.raftDir(), consensus.Server{ID: l.NodeID, Address: l.control(), Voter: true}, recovering{state.NewStore()})
}

// recovering is the state while Raft is made anew: nobody watches it.
type recovering struct{ store *state.Store }

func (r recovering) Apply(index uint64, command []byte) any {
	result, _, err := r.store.Apply(index, command)
	if err != nil {
		return err
	}
	return result
}

func (r recovering) Snapshot() (consensus.Snapshot, error) { return r.store.Snapshot(), nil }
func (r recovering) Restore(in io.Reader) error            { return r.store.Restore(in) }
