package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/consensus"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/state"
)

const (
	// patience is how long a request of an operator waits for a leader.
	patience = 15 * time.Second
	// retryAfter is the first wait before a command is proposed again; it doubles up to maxRetryAfter.
	retryAfter    = 50 * time.Millisecond
	maxRetryAfter = time.Second
	// carryOnTime bounds a question to another manager that has no answer if that one does not work.
	carryOnTime = 2 * time.Second
	// carryOnAgain is when the leader looks again whether the managers that would be left work, if they seem not to.
	carryOnAgain = 100 * time.Millisecond
)

// Refusal is why the managers refused a command. The state is as it was before.
type Refusal struct {
	Kind    statev1.Error_Kind
	Field   string // of the command, such as create_network.subnets[0]; "" = none in particular
	Message string // what was wrong and what to do
}

func (r Refusal) Error() string {
	if r.Field != "" {
		return r.Field + ": " + r.Message
	}
	return r.Message
}

func refused(e *statev1.Error) Refusal {
	return Refusal{Kind: e.Kind, Field: e.Field, Message: e.Message}
}

// refusal returns the error of a result, or nil.
func refusal(r *statev1.Result) error {
	if r.GetError() == nil {
		return nil
	}
	return refused(r.Error)
}

// complete fills in what every command carries.
func complete(c *statev1.Command) error {
	if c.Version == 0 {
		c.Version = state.RulesVersion
	}
	if c.Time == nil {
		c.Time = timestamppb.Now()
	}
	if len(c.Seed) == 0 {
		c.Seed = make([]byte, 16)
		_, _ = rand.Read(c.Seed) // never fails
	}
	if c.RequestId == "" {
		c.RequestId = identity.NewID()
	}
	return nil
}

// Propose has a command applied, wherever the leader is, and waits until this node's copy shows the result. The error
// is a Refusal if the managers refused it. While there is no leader it waits for one, up to a limit; then it is not
// known whether the command is applied yet.
func (n *Node) Propose(ctx context.Context, c *statev1.Command) (*statev1.Result, error) {
	m, err := n.current()
	if err != nil {
		return nil, err
	}
	return m.propose(ctx, c)
}

func (m *member) propose(ctx context.Context, c *statev1.Command) (*statev1.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := complete(c); err != nil {
		return nil, err
	}
	// All attempts carry the same request ID, so that one that was applied although nobody heard of it is not
	// applied again.
	var res *peerv1.ProposeResponse
	err := retry(ctx, func() error {
		var err error
		res, err = m.route(ctx, &peerv1.ProposeRequest{Command: proto.CloneOf(c)})
		return err
	})
	if err != nil {
		return nil, err
	}
	m.await(ctx, res.Index)
	return res.Result, refusal(res.Result)
}

// retry calls f until it succeeds, fails for good, or ctx ends.
func retry(ctx context.Context, f func() error) error {
	wait := retryAfter
	for {
		err := f()
		if err == nil || !isTransient(err) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return connect.NewError(connect.CodeUnavailable, fmt.Errorf("there was no leader of the managers for this: %w; see `overlayctl cluster status`", err))
		}
		wait = min(2*wait, maxRetryAfter)
	}
}

// errNoLeader is what a manager says that cannot tell where a command is to go.
var errNoLeader = errors.New("this manager does not lead, and knows of no leader")

// route has a command applied by this node, if it leads, or else takes it to where it can be.
func (m *member) route(ctx context.Context, req *peerv1.ProposeRequest) (*peerv1.ProposeResponse, error) {
	s := m.seat.Load()
	if s == nil {
		var res *peerv1.ProposeResponse
		err := m.askManagers(ctx, callTimeout, func(ctx context.Context, p peerv1connect.PeerServiceClient) (err error) {
			res, err = p.Propose(ctx, req)
			return err
		})
		return res, err
	}
	result, err := s.decide(ctx, req.Command)
	var elsewhere *consensus.NotLeaderError
	switch {
	case err == nil:
		return &peerv1.ProposeResponse{Result: result, Index: s.store.Index()}, nil
	case !errors.As(err, &elsewhere):
		return nil, unavailable(err)
	case req.Forwarded:
		return nil, unavailable(errNoLeader)
	}
	req.Forwarded = true
	var res *peerv1.ProposeResponse
	ask := func(ctx context.Context, p peerv1connect.PeerServiceClient) (err error) {
		res, err = p.Propose(ctx, req)
		if connect.CodeOf(err) == connect.CodeAborted {
			poke(m.behind) // this node is no manager any more, and has not heard of it
		}
		return err
	}
	if elsewhere.LeaderID == "" || elsewhere.LeaderID == m.local.NodeID {
		// The leader may be there and not reach this manager, whose address has changed, say: one of the others is it.
		err := m.askManagers(ctx, callTimeout, ask)
		if err != nil && isTransient(err) {
			err = unavailable(errNoLeader)
		}
		return res, err
	}
	err = m.askOne(ctx, manager{ID: elsewhere.LeaderID, Address: elsewhere.LeaderAddress}, callTimeout, ask)
	return res, err
}

// unavailable marks an error as one that may pass, unless it has a code already.
func unavailable(err error) error {
	var coded *connect.Error
	if errors.As(err, &coded) {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, err)
}

// decide proposes a command on the leader, after the checks that only the leader can make. A refusal is a result.
func (s *seat) decide(ctx context.Context, c *statev1.Command) (*statev1.Result, error) {
	// What is in the log has to be applied: a command that this version does not know would stop every manager.
	if err := state.Understood(c); err != nil {
		return nil, connect.NewError(connect.CodeUnimplemented, err)
	}
	if id := losesVoter(c); id != "" && s.raft.IsLeader() {
		if n := s.store.Node(id); n != nil && n.Role == statev1.Role_ROLE_MANAGER {
			if err := s.canLose(ctx, id); errors.As(err, new(*consensus.NotLeaderError)) {
				return nil, err
			} else if err != nil {
				return &statev1.Result{Error: &statev1.Error{Kind: statev1.Error_KIND_REFUSED, Message: err.Error()}}, nil
			}
		}
	}
	if a := c.GetAddEndpoint(); a.GetLeaseEnd() != nil && c.Time != nil {
		// The leader collects, so the lease ends by its clock, whatever that of the proposer says.
		now := time.Now()
		a.LeaseEnd = timestamppb.New(now.Add(a.LeaseEnd.AsTime().Sub(c.Time.AsTime())))
		c.Time = timestamppb.New(now)
	}
	result, err := s.propose(ctx, c)
	if _, isRefusal := errors.AsType[Refusal](err); isRefusal {
		return result, nil
	}
	return result, err
}

// canLose returns an error if the cluster could make no changes any more without a manager. That it is the last one, the
// state says better. It looks again for a while before it says so: a machine may stand still for a moment.
func (s *seat) canLose(ctx context.Context, id string) error {
	if len(s.managers()) == 1 {
		return nil
	}
	for began := time.Now(); ; {
		err := s.raft.CanLose(id)
		if err == nil {
			err = s.carryOn(ctx, id)
		}
		if err == nil || errors.As(err, new(*consensus.NotLeaderError)) {
			return err
		}
		select {
		case <-time.After(carryOnAgain):
		case <-ctx.Done():
		}
		if time.Since(began) >= carryOnTime || ctx.Err() != nil {
			text := err.Error() // Raft knows no names
			for _, n := range s.store.Nodes() {
				text = strings.ReplaceAll(text, n.Id, n.Name)
			}
			return errors.New(text)
		}
	}
}

// carryOn returns an error unless a majority of the managers that are left without one answers now. Raft itself goes by
// what it heard lately, and a manager that died a second ago would still count.
func (s *seat) carryOn(ctx context.Context, without string) error {
	left := slices.DeleteFunc(s.raft.Servers(), func(x consensus.Server) bool { return !x.Voter || x.ID == without })
	silent := make([]error, len(left))
	var asked sync.WaitGroup
	for i, x := range left {
		if x.ID == s.member.local.NodeID {
			continue
		}
		asked.Go(func() {
			err := s.member.askOne(ctx, manager{ID: x.ID, Address: x.Address}, carryOnTime, func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
				_, err := p.GetRaft(ctx, &peerv1.GetRaftRequest{})
				return err
			})
			if err != nil {
				silent[i] = fmt.Errorf("no answer from %s: %w", x.ID, err)
			}
		})
	}
	asked.Wait()
	answers := len(slices.DeleteFunc(slices.Clone(silent), func(err error) bool { return err != nil }))
	if need := len(left)/2 + 1; len(left) > 0 && answers < need {
		return fmt.Errorf("%d managers with a vote would be left, of which %d have to work, and only %d answer: repair or remove the others first (%w)", len(left), need, answers, errors.Join(silent...))
	}
	return nil
}

// losesVoter returns the ID of the manager that a command would take the vote from, or "".
func losesVoter(c *statev1.Command) string {
	switch k := c.Kind.(type) {
	case *statev1.Command_UpdateNode:
		if k.UpdateNode.Role == statev1.Role_ROLE_WORKER {
			return k.UpdateNode.Id
		}
	case *statev1.Command_RemoveNode:
		return k.RemoveNode.Id // by force as well: to take one out that is lost never loses the majority
	}
	return ""
}

// Fresh waits until this node's copy holds every change that was acknowledged before the call, so that a read that
// follows is linearizable. While there is no leader it waits for one, up to a limit; the copy can be read all the same.
func (n *Node) Fresh(ctx context.Context) error {
	m, err := n.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var index uint64
	if err := retry(ctx, func() error {
		index, err = m.readIndex(ctx, false)
		return err
	}); err != nil {
		return err
	}
	if !m.await(ctx, index) {
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("this node's copy of the state is at index %d and does not reach %d", n.replica.Index(), index))
	}
	return nil
}

func (m *member) readIndex(ctx context.Context, forwarded bool) (uint64, error) {
	var index uint64
	ask := func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
		res, err := p.ReadIndex(ctx, &peerv1.ReadIndexRequest{Forwarded: m.seat.Load() != nil})
		index = res.GetIndex()
		return err
	}
	s := m.seat.Load()
	if s == nil {
		err := m.askManagers(ctx, callTimeout, ask)
		return index, err
	}
	err := s.raft.Read(ctx, func() { index = s.store.Index() })
	var elsewhere *consensus.NotLeaderError
	if !errors.As(err, &elsewhere) {
		return index, err
	}
	if forwarded || elsewhere.LeaderID == "" || elsewhere.LeaderID == m.local.NodeID {
		return 0, unavailable(errors.New("this manager does not lead, and knows of no leader"))
	}
	err = m.askOne(ctx, manager{ID: elsewhere.LeaderID, Address: elsewhere.LeaderAddress}, callTimeout, ask)
	return index, err
}

// await waits until the copy is at index, and reports whether it is.
func (m *member) await(ctx context.Context, index uint64) bool {
	for m.node.replica.Index() < index {
		poke(m.behind)
		select {
		case <-time.After(2 * time.Millisecond):
		case <-m.gone:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}
