package cluster

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
)

// Host is what a Service asks of its host.
type Host interface {
	// HasAddress says which interface of this host has an address.
	HasAddress(netip.Addr) (device string, ok bool)
	// SourceTo returns the source address of the route to an address, or that of the default route of IPv4 or else
	// IPv6 if it is invalid.
	SourceTo(netip.Addr) (netip.Addr, error)
	// RouteWithin returns a route of this host that overlaps with a prefix, in words, or "".
	RouteWithin(netip.Prefix) string
}

// Service answers what operators ask of the cluster.
type Service struct {
	cp     *controlplane.Node
	follow *Follower
	host   Host
	name   string // of this node, unless a request says otherwise; "" = the control plane's choice
	log    *slog.Logger
}

var _ api.Cluster = (*Service)(nil)

// NewService returns the service of a node.
func NewService(cp *controlplane.Node, f *Follower, h Host, name string, log *slog.Logger) *Service {
	return &Service{cp: cp, follow: f, host: h, name: name, log: log}
}

// known gives an error that the control plane has returned the form in which the API reports it.
func known(err error) error {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[controlplane.Refusal](err); ok {
		return api.Errorf(api.Kind(r.Kind), fieldOf(r.Field), "%s", r.Message)
	}
	switch {
	case errors.Is(err, controlplane.ErrNotMember):
		return api.ErrNotMember()
	case errors.Is(err, controlplane.ErrMember):
		return api.Errorf(api.Refused, "", "%w", err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.Unavailable, "", "%s", textOf(err))
	}
	if kind, _ := api.Info(err); kind != overlaydv1.ErrorInfo_KIND_UNSPECIFIED {
		return err
	}
	if c, ok := errors.AsType[*connect.Error](err); ok {
		kind := api.Refused
		switch c.Code() {
		case connect.CodeInvalidArgument:
			kind = api.Invalid
		case connect.CodeNotFound:
			kind = api.NotFound
		case connect.CodeAlreadyExists:
			kind = api.Exists
		case connect.CodeAborted:
			kind = api.Conflict
		case connect.CodeResourceExhausted:
			kind = api.Exhausted
		case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled:
			kind = api.Unavailable
		case connect.CodeInternal, connect.CodeUnknown:
			return err
		}
		return api.Errorf(kind, "", "%s", textOf(err))
	}
	return err
}

// fieldOf turns the field of a command, or of controlplane.Options, into that of the request which it was made of. It is ""
// where the request has none: what this daemon filled in by itself, no operator can put right.
func fieldOf(field string) string {
	command, field, _ := strings.Cut(field, ".")
	switch command {
	case "bootstrap", "add_node":
		switch {
		case field == "node.name":
			return "name"
		case strings.HasPrefix(field, "node.addresses"):
			return "advertise" + strings.TrimPrefix(field, "node.addresses")
		}
		return ""
	case "update_node", "remove_node":
		if field == "id" {
			return "node"
		}
	case "remove_network":
		return "network"
	case "remove_endpoint":
		return "endpoint"
	case "confirm_endpoint", "restore":
		return ""
	case "add_endpoint":
		if field == "node" || field == "lease_end" {
			return ""
		}
	}
	return field
}

// textOf is an error without the codes of the protocol.
func textOf(err error) string {
	text := err.Error()
	if c, ok := errors.AsType[*connect.Error](err); ok {
		text = strings.ReplaceAll(text, c.Code().String()+": ", "")
	}
	return text
}

// Init makes a cluster.
func (s *Service) Init(ctx context.Context, req *overlaydv1.InitRequest) (*overlaydv1.InitResponse, error) {
	o, err := s.options(req.Advertise, req.Name, nil)
	if err != nil {
		return nil, err
	}
	tokens, err := s.cp.Init(ctx, o)
	if err != nil {
		return nil, known(err)
	}
	self, err := s.self()
	if err != nil {
		return nil, err
	}
	if err := s.follow.CatchUp(ctx); err != nil {
		return nil, known(err)
	}
	_, id := s.cp.Self()
	return &overlaydv1.InitResponse{ClusterId: id, Node: self, Tokens: s.tokens(tokens, "")}, nil
}

// Join enters a cluster.
func (s *Service) Join(ctx context.Context, req *overlaydv1.JoinRequest) (*overlaydv1.JoinResponse, error) {
	o, err := s.options(req.Advertise, req.Name, req.Remotes)
	if err != nil {
		return nil, err
	}
	if _, err := s.cp.Join(ctx, req.Token, req.Remotes, o); err != nil {
		return nil, known(err)
	}
	self, err := s.self()
	if err != nil {
		return nil, err
	}
	if err := s.follow.CatchUp(ctx); err != nil {
		return nil, known(err)
	}
	_, id := s.cp.Self()
	return &overlaydv1.JoinResponse{ClusterId: id, Node: self}, nil
}

// options finds out under which addresses this node appears.
func (s *Service) options(advertise []string, name string, remotes []string) (controlplane.Options, error) {
	o := controlplane.Options{Name: name}
	if o.Name == "" {
		o.Name = s.name
	}
	var err error
	o.Addresses, o.Choice, err = candidates(s.host, advertise, remotes)
	return o, err
}

// Leave takes this host out of its cluster.
func (s *Service) Leave(ctx context.Context, req *overlaydv1.LeaveRequest) (*overlaydv1.LeaveResponse, error) {
	self, _ := s.cp.Self()
	if self == "" {
		return nil, api.ErrNotMember()
	}
	if n := len(s.cp.Tables().Endpoints("", self)); n > 0 && !req.Force {
		return nil, api.Errorf(api.InUse, "", "this node has %d endpoints: remove them first, or use --force to have them removed", n)
	}
	if err := s.cp.Leave(ctx, req.Force); err != nil {
		return nil, known(err)
	}
	if err := s.follow.DetachAll(); err != nil {
		return nil, err
	}
	return &overlaydv1.LeaveResponse{}, nil
}

// GetTokens returns the join tokens.
func (s *Service) GetTokens(ctx context.Context, req *overlaydv1.GetTokensRequest) (*overlaydv1.GetTokensResponse, error) {
	t, err := s.cp.Tokens(ctx)
	if err != nil {
		return nil, known(err)
	}
	return &overlaydv1.GetTokensResponse{Tokens: s.tokens(t, req.Role)}, nil
}

// RotateToken replaces a join token.
func (s *Service) RotateToken(ctx context.Context, req *overlaydv1.RotateTokenRequest) (*overlaydv1.RotateTokenResponse, error) {
	t, err := s.cp.RotateToken(ctx, roleOf(req.Role))
	if err != nil {
		return nil, known(err)
	}
	return &overlaydv1.RotateTokenResponse{Tokens: s.tokens(t, req.Role)}, nil
}

func (s *Service) tokens(t controlplane.Tokens, role string) *overlaydv1.JoinTokens {
	out := &overlaydv1.JoinTokens{Worker: t.Worker, Manager: t.Manager}
	switch role {
	case api.RoleWorker:
		out.Manager = ""
	case api.RoleManager:
		out.Worker = ""
	}
	self, _ := s.cp.Self()
	for _, n := range s.cp.Tables().Nodes() {
		if n.Role != statev1.Role_ROLE_MANAGER || len(n.Addresses) == 0 {
			continue
		}
		if n.Id == self {
			out.Remotes = append([]string{controlOf(n)}, out.Remotes...)
		} else {
			out.Remotes = append(out.Remotes, controlOf(n))
		}
	}
	return out
}

// Backup writes the whole state.
func (s *Service) Backup(ctx context.Context, w io.Writer) error { return known(s.cp.Backup(ctx, w)) }

// Restore replaces the whole state, or makes the cluster of a backup anew.
func (s *Service) Restore(ctx context.Context, r io.Reader) (*overlaydv1.RestoreResponse, error) {
	var o controlplane.Options
	if self, _ := s.cp.Self(); self == "" {
		var err error
		if o, err = s.options(nil, "", nil); err != nil {
			return nil, err
		}
	}
	index, err := s.cp.Restore(ctx, r, o)
	if err != nil {
		return nil, known(err)
	}
	_, id := s.cp.Self()
	return &overlaydv1.RestoreResponse{ClusterId: id, Index: index}, nil
}

// macText is a MAC address for people.
func macText(b []byte) string {
	if len(b) != 6 {
		return ""
	}
	return addr.MAC(b).String()
}
