package apitest

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// ClusterContent is what a Cluster holds. A node of it is the one that is asked if its Self is set.
type ClusterContent struct {
	ID        string // empty: the node is in no cluster
	Nodes     []*overlaydv1.Node
	Networks  []*overlaydv1.ClusterNetwork
	Endpoints []*overlaydv1.Endpoint // sorted by ID
	Worker    string                 // tokens
	Manager   string
	NoQuorum  bool
	Problems  []string
	Warnings  []string // about each new network
	Index     uint64   // of the last change
}

// Cluster is an api.Cluster that keeps all in memory. It allocates in the simplest way there is, and refuses
// what the tests of its users need to see refused. IDs and tokens are the same in every run.
type Cluster struct {
	mu      sync.Mutex
	c       ClusterContent
	now     time.Time
	fail    error
	last    uint64 // number of the ID given out last
	changes int
}

var _ api.Cluster = (*Cluster)(nil)

// NewCluster returns a Cluster with content c, at the time now.
func NewCluster(now time.Time, c ClusterContent) *Cluster { return &Cluster{now: now, c: c} }

// Change lets f change the content.
func (c *Cluster) Change(f func(*ClusterContent)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.c)
}

// Fail lets every call from now on fail with err, or none if that is nil.
func (c *Cluster) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

// Calls returns how many calls came that could change something.
func (c *Cluster) Calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes
}

// enter begins a call, which ends with the returned function. A member's call needs a cluster.
func (c *Cluster) enter(member, change bool) (func(), error) {
	c.mu.Lock()
	if change {
		c.changes++
	}
	err := c.fail
	if err == nil && member && c.c.ID == "" {
		err = api.ErrNotMember()
	}
	if err == nil && member && change && c.c.NoQuorum {
		err = api.Errorf(api.Unavailable, "", "most managers cannot be reached, so nothing can be changed; see `overlayctl cluster status`")
	}
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	return c.mu.Unlock, nil
}

// id gives out an ID.
func (c *Cluster) id() string {
	c.last++
	return fmt.Sprintf("%016x", 0xa000+c.last)
}

func token(role string, n uint64) string {
	return fmt.Sprintf("OVLTKN-1-%s-%s", strings.Repeat("d", 16), hex.EncodeToString(fmt.Appendf(nil, "%s %03d", role, n)))
}

func (c *Cluster) self() *overlaydv1.Node {
	for _, n := range c.c.Nodes {
		if n.Self {
			return n
		}
	}
	return nil
}

func (c *Cluster) addSelf(name, role string, addresses []string) *overlaydv1.Node {
	if name == "" {
		name = "h1"
	}
	n := &overlaydv1.Node{
		Id: c.id(), Name: name, Role: role, Availability: api.AvailabilityActive, Status: api.NodeReady, Addresses: addresses,
		ControlPort: 7789, GossipPort: 7790, VxlanPort: 4789, Joined: timestamppb.New(c.now), Self: true,
	}
	c.c.Nodes = append(c.c.Nodes, n)
	return n
}

// Init implements api.Membership.
func (c *Cluster) Init(_ context.Context, req *overlaydv1.InitRequest) (*overlaydv1.InitResponse, error) {
	leave, err := c.enter(false, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	if c.c.ID != "" {
		return nil, api.Errorf(api.Refused, "", "this node is in the cluster %s already; run `overlayctl leave` first", c.c.ID)
	}
	c.c.ID = c.id()
	n := c.addSelf(req.Name, api.RoleManager, req.Advertise)
	n.ManagerStatus = api.ManagerLeader
	c.c.Worker, c.c.Manager = token(api.RoleWorker, 1), token(api.RoleManager, 1)
	return &overlaydv1.InitResponse{ClusterId: c.c.ID, Node: proto.CloneOf(n), Tokens: c.tokens("")}, nil
}

// Join implements api.Membership. Every token is taken, for the role that it names.
func (c *Cluster) Join(_ context.Context, req *overlaydv1.JoinRequest) (*overlaydv1.JoinResponse, error) {
	leave, err := c.enter(false, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	if c.c.ID != "" {
		return nil, api.Errorf(api.Refused, "", "this node is in the cluster %s already; run `overlayctl leave` first", c.c.ID)
	}
	c.c.ID = c.id()
	role := api.RoleWorker
	if req.Token == token(api.RoleManager, 1) {
		role = api.RoleManager
	}
	n := c.addSelf(req.Name, role, req.Advertise)
	return &overlaydv1.JoinResponse{ClusterId: c.c.ID, Node: proto.CloneOf(n)}, nil
}

// Leave implements api.Membership.
func (c *Cluster) Leave(_ context.Context, req *overlaydv1.LeaveRequest) (*overlaydv1.LeaveResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	if n := c.self(); n != nil && n.Role == api.RoleManager && c.managers() == 1 && !req.Force {
		return nil, api.Errorf(api.Refused, "force", "this is the last manager, and the cluster ends with it; set force if that is meant")
	}
	c.c = ClusterContent{}
	return &overlaydv1.LeaveResponse{}, nil
}

func (c *Cluster) managers() int {
	count := 0
	for _, n := range c.c.Nodes {
		if n.Role == api.RoleManager {
			count++
		}
	}
	return count
}

func (c *Cluster) tokens(role string) *overlaydv1.JoinTokens {
	t := &overlaydv1.JoinTokens{}
	if role != api.RoleManager {
		t.Worker = c.c.Worker
	}
	if role != api.RoleWorker {
		t.Manager = c.c.Manager
	}
	for _, n := range c.c.Nodes {
		if n.Role == api.RoleManager && len(n.Addresses) > 0 {
			a, err := netip.ParseAddr(n.Addresses[0])
			if err == nil {
				t.Remotes = append(t.Remotes, netip.AddrPortFrom(a, uint16(n.ControlPort)).String())
			}
		}
	}
	return t
}

// GetTokens implements api.Tokens.
func (c *Cluster) GetTokens(_ context.Context, req *overlaydv1.GetTokensRequest) (*overlaydv1.GetTokensResponse, error) {
	leave, err := c.enter(true, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	return &overlaydv1.GetTokensResponse{Tokens: c.tokens(req.Role)}, nil
}

// RotateToken implements api.Tokens.
func (c *Cluster) RotateToken(_ context.Context, req *overlaydv1.RotateTokenRequest) (*overlaydv1.RotateTokenResponse, error) {
	leave, err := c.enter(true, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	c.last++
	if req.Role == api.RoleWorker {
		c.c.Worker = token(req.Role, c.last)
	} else {
		c.c.Manager = token(req.Role, c.last)
	}
	return &overlaydv1.RotateTokenResponse{Tokens: c.tokens(req.Role)}, nil
}

// Backup implements api.Archive: it writes the nodes, a line each, more than one chunk of them.
func (c *Cluster) Backup(_ context.Context, w io.Writer) error {
	leave, err := c.enter(true, false)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := fmt.Fprintf(w, "%s\n", c.c.ID); err != nil {
		return err
	}
	for range 3000 {
		for _, n := range c.c.Nodes {
			if _, err := fmt.Fprintf(w, "%s %s %s\n", n.Id, n.Name, n.Role); err != nil {
				return err
			}
		}
	}
	_, err = io.WriteString(w, "end\n")
	return err
}

// Restore implements api.Archive: it takes what Backup gave.
func (c *Cluster) Restore(_ context.Context, r io.Reader) (*overlaydv1.RestoreResponse, error) {
	data, err := io.ReadAll(r) // the caller decides how long this takes: no lock
	if err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	leave, err := c.enter(false, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	if !strings.HasSuffix(string(data), "end\n") {
		return nil, api.Errorf(api.Invalid, "chunk", "the backup is damaged: its checksum is wrong; take another copy of it")
	}
	c.c.ID, _, _ = strings.Cut(string(data), "\n")
	if c.self() == nil {
		c.addSelf("", api.RoleManager, nil)
	}
	return &overlaydv1.RestoreResponse{ClusterId: c.c.ID, Index: uint64(len(data))}, nil
}

// GetClusterStatus implements api.Members.
func (c *Cluster) GetClusterStatus(context.Context, *overlaydv1.GetClusterStatusRequest) (*overlaydv1.GetClusterStatusResponse, error) {
	leave, err := c.enter(true, false)
	if err != nil {
		return nil, err
	}
	defer leave()
	st := &overlaydv1.ClusterStatus{
		ClusterId: c.c.ID, Node: proto.CloneOf(c.self()), Quorum: !c.c.NoQuorum, RaftIndex: c.c.Index, ReplicaIndex: c.c.Index,
		Nodes: uint64(len(c.c.Nodes)), Networks: uint64(len(c.c.Networks)), Endpoints: uint64(len(c.c.Endpoints)), Problems: slices.Clone(c.c.Problems),
	}
	for _, n := range c.c.Nodes {
		if n.Role != api.RoleManager {
			continue
		}
		m := &overlaydv1.Manager{Id: n.Id, Name: n.Name, Voter: n.ManagerStatus != "", Status: n.ManagerStatus}
		if len(n.Addresses) > 0 {
			m.Address = fmt.Sprintf("%s:%d", n.Addresses[0], n.ControlPort)
		}
		if n.ManagerStatus == api.ManagerLeader && !c.c.NoQuorum {
			st.Leader, st.LeaderId = n.Name, n.Id
		}
		st.Managers = append(st.Managers, m)
	}
	return &overlaydv1.GetClusterStatusResponse{Status: st}, nil
}
