package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

// syncChunk is how much of a snapshot goes into one message, in bytes.
const syncChunk = 256 << 10

// maxRequest bounds one request of another node, in bytes.
const maxRequest = 64 << 10

// peerKey is the key of the caller's identity in the context of a request.
type peerKey struct{}

// handler serves the other nodes. Those without a certificate can only join, and ask whether a node is a member.
func (m *member) handler() http.Handler {
	limit := connect.WithReadMaxBytes(maxRequest)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+membershipPath, m.serveMembership)
	mux.HandleFunc("GET "+secretsPath, m.serveSecretsIndex)
	mux.Handle(peerv1connect.NewJoinServiceHandler(joinService{m}, limit))
	path, peers := peerv1connect.NewPeerServiceHandler(peerService{m}, limit)
	mux.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			http.Error(w, "TLS is needed", http.StatusForbidden)
			return
		}
		peer, err := identity.Peer(*r.TLS)
		if err == nil {
			err = m.admit(peer, statev1.Role_ROLE_UNSPECIFIED) // again: the connection may be older than the node's removal
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		peers.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
	}))
	return mux
}

// joinService implements overlayd.peer.v1.JoinService.
type joinService struct{ *member }

func (j joinService) Join(ctx context.Context, req *peerv1.JoinRequest) (*peerv1.JoinResponse, error) {
	s := j.seat.Load()
	if s == nil || s.store.Secrets() == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("this node is no manager: name the address of a manager"))
	}
	secrets, err := j.secretsNow(ctx, s) // or else a token that was rotated just now might let somebody in here
	if err != nil {
		return nil, err
	}
	token := identity.Token{Secret: req.TokenSecret}
	role := statev1.Role_ROLE_UNSPECIFIED
	// Both are compared always, so that the time tells nothing.
	worker, mgr := identity.Matches(secrets.WorkerToken, token), identity.Matches(secrets.ManagerToken, token)
	switch {
	case mgr:
		role = statev1.Role_ROLE_MANAGER
	case worker:
		role = statev1.Role_ROLE_WORKER
	default:
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("the token is not one of this cluster, or was rotated: get the current one by `overlayctl token show` on a manager"))
	}
	key, err := identity.RequestKey(req.CertificateRequest)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	node := req.GetNode()
	if node == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("node: is missing"))
	}
	node.Role, node.PublicKey, node.Availability, node.Joined = role, key, statev1.Availability_AVAILABILITY_ACTIVE, nil
	res, err := j.route(ctx, &peerv1.ProposeRequest{Command: &statev1.Command{
		Kind: &statev1.Command_AddNode{AddNode: &statev1.AddNode{Node: node}},
	}})
	if err != nil {
		return nil, err
	}
	if err := refusal(res.Result); err != nil {
		return nil, wireRefusal(err)
	}
	authority, err := identity.ParseAuthority(secrets.CaCertificate, secrets.CaKey)
	if err != nil {
		return nil, err
	}
	cert, err := authority.Issue(req.CertificateRequest, node.Id, role, time.Now())
	if err != nil {
		return nil, err
	}
	j.log.Info("a node joined", "name", node.Name, "id", node.Id, "role", roleName(role), "addresses", node.Addresses)
	return &peerv1.JoinResponse{
		Certificate: cert, CaCertificate: secrets.CaCertificate, Node: res.Result.Node,
		GossipKeys: secrets.GossipKeys, Managers: managersToWire(s.managers()),
	}, nil
}

// managers returns where the managers are asked: each at all of its addresses, the preferred one first.
func (s *seat) managers() []manager {
	var out []manager
	for _, n := range s.store.Nodes() {
		if n.Role == statev1.Role_ROLE_MANAGER {
			for _, a := range hostPorts(n, n.ControlPort) {
				out = append(out, manager{ID: n.Id, Address: a})
			}
		}
	}
	return out
}

// peerService implements overlayd.peer.v1.PeerService.
type peerService struct{ *member }

// caller is who asks, by its certificate.
func caller(ctx context.Context) identity.Identity {
	peer, _ := ctx.Value(peerKey{}).(identity.Identity) // the handler put it there
	return peer
}

func (p peerService) manager() (*seat, error) {
	if s := p.seat.Load(); s != nil {
		return s, nil
	}
	return nil, connect.NewError(connect.CodeUnavailable, errors.New("this node is no manager"))
}

func (p peerService) Propose(ctx context.Context, req *peerv1.ProposeRequest) (*peerv1.ProposeResponse, error) {
	s, err := p.manager()
	if err != nil {
		return nil, err
	}
	peer := caller(ctx)
	if req.Command == nil || req.Command.Kind == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("command: is missing"))
	}
	if req.Command.GetRemoveEndpoint() != nil && !s.raft.IsLeader() {
		// Whose it is, this manager may not have heard yet.
		if err := p.catchUp(ctx, s); err != nil {
			return nil, err
		}
	}
	// What another manager proposes was checked there, or is its own.
	if !s.wantsVoter(peer.NodeID) || peer.Role != statev1.Role_ROLE_MANAGER {
		if req.Forwarded {
			// One that was a manager asks for what is new then, and again for this.
			return nil, connect.NewError(connect.CodeAborted, errors.New("only managers forward"))
		}
		if err := s.allowed(peer.NodeID, req.Command); err != nil {
			return nil, connect.NewError(connect.CodePermissionDenied, err)
		}
	}
	return p.route(ctx, req)
}

// catchUp waits until this manager's state holds all that was acknowledged before the call.
func (m *member) catchUp(ctx context.Context, s *seat) error {
	index, err := m.readIndex(ctx, false)
	for err == nil && s.store.Index() < index {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// allowed says whether a worker may propose a command.
func (s *seat) allowed(id string, c *statev1.Command) error {
	own := func(node string) error {
		if node == id {
			return nil
		}
		return errors.New("a worker may only change what is its own: run this on that node, or on a manager")
	}
	switch k := c.Kind.(type) {
	case *statev1.Command_CreateNetwork, *statev1.Command_RemoveNetwork:
		return nil
	case *statev1.Command_AddEndpoint:
		return own(k.AddEndpoint.GetNode())
	case *statev1.Command_ConfirmEndpoint:
		return own(k.ConfirmEndpoint.GetNode())
	case *statev1.Command_RemoveEndpoint:
		if e := s.store.Endpoint(k.RemoveEndpoint.GetId()); e != nil {
			return own(e.Node)
		}
		return nil
	case *statev1.Command_RemoveNode:
		return own(k.RemoveNode.GetId())
	case *statev1.Command_UpdateNode:
		if u := k.UpdateNode; proto.Equal(u, &statev1.UpdateNode{Id: u.GetId(), Addresses: u.GetAddresses()}) {
			return own(u.GetId()) // where it is, each knows best
		}
	}
	return errors.New("only managers may do this: run it on a manager")
}

func (p peerService) ReadIndex(ctx context.Context, req *peerv1.ReadIndexRequest) (*peerv1.ReadIndexResponse, error) {
	if _, err := p.manager(); err != nil {
		return nil, err
	}
	index, err := p.readIndex(ctx, req.Forwarded)
	if err != nil {
		return nil, unavailable(err)
	}
	return &peerv1.ReadIndexResponse{Index: index}, nil
}

func (p peerService) Sync(_ context.Context, req *peerv1.SyncRequest, stream *connect.ServerStream[peerv1.SyncResponse]) error {
	s, err := p.manager()
	if err != nil {
		return err
	}
	// A manager that lags would take the caller back. That the managers themselves went back, as to a backup, only the
	// leader can tell.
	if s.store.Index() < req.Since && !s.raft.IsLeader() {
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("this manager is at index %d, and behind the caller's %d", s.store.Index(), req.Since))
	}
	if batches, ok := s.store.Since(req.Since); ok && !req.Whole {
		for _, b := range batches {
			if err := stream.Send(&peerv1.SyncResponse{Batch: b}); err != nil {
				return err
			}
		}
		return nil
	}
	w := bufio.NewWriterSize(chunks{stream}, syncChunk) // the parts of a snapshot are small
	if _, err := s.store.PublicSnapshot().WriteTo(w); err != nil {
		return err
	}
	return w.Flush()
}

// chunks sends what is written to it, in messages.
type chunks struct {
	stream *connect.ServerStream[peerv1.SyncResponse]
}

func (c chunks) Write(b []byte) (int, error) {
	n := 0
	for part := range slices.Chunk(b, syncChunk) {
		if err := c.stream.Send(&peerv1.SyncResponse{Snapshot: bytes.Clone(part)}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

func (p peerService) Renew(ctx context.Context, req *peerv1.RenewRequest) (*peerv1.RenewResponse, error) {
	s, err := p.manager()
	if err != nil {
		return nil, err
	}
	cert, ca, err := s.renew(caller(ctx).NodeID, req.CertificateRequest)
	if err != nil {
		return nil, err
	}
	return &peerv1.RenewResponse{Certificate: cert, CaCertificate: ca}, nil
}

// renew issues a certificate for a member, with the role that it has now and for the key that it came in with.
func (s *seat) renew(id string, csr []byte) (cert, ca []byte, err error) {
	n, secrets := s.store.Node(id), s.store.Secrets()
	if n == nil || secrets == nil {
		return nil, nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("node %s is no member of the cluster", id))
	}
	key, err := identity.RequestKey(csr)
	if err != nil {
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if !bytes.Equal(key, n.PublicKey) {
		return nil, nil, connect.NewError(connect.CodePermissionDenied, errors.New("the certificate request is for another key than the one that the node joined with"))
	}
	authority, err := identity.ParseAuthority(secrets.CaCertificate, secrets.CaKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err = authority.Issue(csr, id, n.Role, time.Now())
	return cert, secrets.CaCertificate, err
}

func (p peerService) GetKeys(context.Context, *peerv1.GetKeysRequest) (*peerv1.GetKeysResponse, error) {
	s, err := p.manager()
	if err != nil {
		return nil, err
	}
	secrets := s.store.Secrets()
	if secrets == nil {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("this manager has no state yet"))
	}
	return &peerv1.GetKeysResponse{GossipKeys: secrets.GossipKeys, Managers: managersToWire(s.managers())}, nil
}

// wireRefusal gives a refusal the code under which it travels.
func wireRefusal(err error) error {
	r, ok := errors.AsType[Refusal](err)
	if !ok {
		return err
	}
	code := connect.CodeFailedPrecondition
	switch r.Kind {
	case statev1.Error_KIND_INVALID:
		code = connect.CodeInvalidArgument
	case statev1.Error_KIND_NOT_FOUND:
		code = connect.CodeNotFound
	case statev1.Error_KIND_EXISTS:
		code = connect.CodeAlreadyExists
	case statev1.Error_KIND_EXHAUSTED:
		code = connect.CodeResourceExhausted
	}
	ce := connect.NewError(code, err)
	if detail, err := connect.NewErrorDetail(&statev1.Error{Kind: r.Kind, Field: r.Field, Message: r.Message}); err == nil { // fails for nothing that the state says
		ce.AddDetail(detail)
	}
	return ce
}

// fromWire returns the Refusal that an error of another node carries, or else the error as it is.
func fromWire(err error) error {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	for _, d := range ce.Details() {
		if m, derr := d.Value(); derr == nil {
			if r, ok := m.(*statev1.Error); ok {
				return refused(r)
			}
		}
	}
	return err
}

// roleName is how people write a role.
func roleName(r statev1.Role) string {
	switch r {
	case statev1.Role_ROLE_MANAGER:
		return "manager"
	case statev1.Role_ROLE_WORKER:
		return "worker"
	}
	return "unknown"
}

// control is the address of this node's control port, as the others reach it.
func (l *local) control() string {
	return netip.AddrPortFrom(l.Addresses[0], l.ControlPort).String()
}
