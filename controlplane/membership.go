package controlplane

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

const (
	// firstLeader bounds the wait of Init for the only manager to lead.
	firstLeader = 30 * time.Second
	// nameField is the field of a refusal that is about the name of a node that joins.
	nameField = "add_node.node.name"
	// secretLen is the length of a key of the gossip, in bytes: AES-256.
	secretLen = 32
)

// Options say how this node is to appear in a cluster.
type Options struct {
	Name      string       // unique among the nodes
	Addresses []netip.Addr // candidate underlay addresses, the preferred one first
	Choice    Choice       // how Addresses came about
}

// Choice says how a node came to its addresses, so that it can be made again when those of the host change. The node remembers
// it, and uses it for nothing else.
type Choice struct {
	Stated  []netip.Addr `json:"stated,omitempty"` // by the operator
	Derived bool         `json:"derived"`          // those on its interfaces were not stated but follow its routes
	Toward  netip.Addr   `json:"toward"`           // the one whose route comes first; invalid = the default route
}

// Tokens let hosts join. Keep them secret.
type Tokens struct {
	Worker, Manager string
}

// Init makes a cluster with this node as its first manager.
func (n *Node) Init(ctx context.Context, o Options) (Tokens, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.newLocal(o)
	if err != nil {
		return Tokens{}, err
	}
	l.ClusterID = identity.NewID()
	authority, err := identity.NewAuthority(l.ClusterID, time.Now())
	if err != nil {
		return Tokens{}, err
	}
	secrets := &statev1.Secrets{
		CaCertificate: authority.CertificateDER(), CaKey: authority.KeyDER(),
		WorkerToken: identity.NewSecret(), ManagerToken: identity.NewSecret(),
		GossipKeys: [][]byte{newGossipKey()},
	}
	m, err := n.firstManager(l, authority, secrets)
	if err != nil {
		return Tokens{}, err
	}
	boot := &statev1.Bootstrap{ClusterId: l.ClusterID, Node: l.wire(n.cfg.VXLANPort, m.creds.Load(), statev1.Role_ROLE_MANAGER), Secrets: secrets}
	m.found = func(ctx context.Context, s *seat) error {
		return s.begin(ctx, func(ctx context.Context) error {
			_, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_Bootstrap{Bootstrap: boot}})
			return err
		})
	}
	if err := n.start(ctx, m); err != nil {
		return Tokens{}, fmt.Errorf("make a cluster: %w", err)
	}
	return tokensOf(secrets)
}

// firstManager gives this node an identity as the first manager of a cluster.
func (n *Node) firstManager(l *local, authority *identity.Authority, secrets *statev1.Secrets) (*member, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := key.CSR()
	if err != nil {
		return nil, err
	}
	cert, err := authority.Issue(csr, l.NodeID, statev1.Role_ROLE_MANAGER, time.Now())
	if err != nil {
		return nil, err
	}
	creds, err := identity.NewCredentials(key, cert, authority.CertificateDER())
	if err != nil {
		return nil, err
	}
	l.GossipKeys = secrets.GossipKeys
	if err := creds.Save(n.cfg.identityDir()); err != nil {
		return nil, errors.Join(fmt.Errorf("save the identity of this node: %w", err), n.forget())
	}
	return newMember(n, l, creds), nil
}

// begin makes Raft begin with this node as its only server, and does what is first to be done as the leader.
func (s *seat) begin(ctx context.Context, first func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, firstLeader)
	defer cancel()
	if err := s.raft.Bootstrap(); err != nil {
		return err
	}
	for !s.raft.IsLeader() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for the only manager to lead: %w", ctx.Err())
		}
	}
	return retry(ctx, func() error {
		err := first(ctx)
		if _, isRefusal := errors.AsType[Refusal](err); err == nil || isRefusal {
			return err
		}
		return unavailable(err)
	})
}

// Join enters the cluster that a token is of, through the first of its managers at remotes, each host:port, that
// answers. The role comes from the token.
func (n *Node) Join(ctx context.Context, token string, remotes []string, o Options) (*statev1.Node, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.newLocal(o)
	if err != nil {
		return nil, err
	}
	t, err := identity.ParseToken(token)
	if err != nil {
		return nil, Refusal{Kind: statev1.Error_KIND_INVALID, Field: "options.token", Message: err.Error()}
	}
	if len(remotes) == 0 {
		return nil, Refusal{Kind: statev1.Error_KIND_INVALID, Field: "options.remotes", Message: "no manager is named: state the host:port of the control port of one or more"}
	}
	key, err := identity.NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := key.CSR()
	if err != nil {
		return nil, err
	}
	req := &peerv1.JoinRequest{TokenSecret: t.Secret, CertificateRequest: csr, Node: l.wire(n.cfg.VXLANPort, nil, statev1.Role_ROLE_UNSPECIFIED)}
	res, err := joinAny(ctx, t, remotes, req)
	if r, refused := errors.AsType[Refusal](err); refused && r.Kind == statev1.Error_KIND_EXISTS && r.Field == nameField && o.Name == "" {
		// Hosts made from one image may share their name, and nobody asked for this one.
		l.Name = fmt.Sprintf("%.56s-%.6s", l.Name, l.NodeID)
		req.Node.Name = l.Name
		res, err = joinAny(ctx, t, remotes, req)
	}
	if err != nil {
		return nil, err
	}
	if err := t.VerifyCA(res.CaCertificate); err != nil {
		return nil, err
	}
	creds, err := identity.NewCredentials(key, res.Certificate, res.CaCertificate)
	if err != nil {
		return nil, fmt.Errorf("the certificate that the manager issued: %w", err)
	}
	if creds.NodeID() != l.NodeID {
		return nil, fmt.Errorf("the manager issued a certificate for node %s to node %s", creds.NodeID(), l.NodeID)
	}
	l.ClusterID, l.GossipKeys, l.Managers = creds.ClusterID(), res.GossipKeys, managersFromWire(res.Managers)
	l.Joined = res.Node.GetIndex()
	if err := creds.Save(n.cfg.identityDir()); err != nil {
		return nil, errors.Join(fmt.Errorf("save the identity of this node: %w", err), n.forget())
	}
	m := newMember(n, l, creds)
	if err := n.start(ctx, m); err != nil {
		// The cluster knows this node already, and would wait for it.
		m.withdraw(res)
		return nil, fmt.Errorf("join the cluster: %w", err)
	}
	if !m.await(ctx, l.Joined) { // so that what follows on this node sees the cluster
		return nil, fmt.Errorf("this node has joined, but has not received the state of the cluster yet: %w; see `overlayctl cluster status`", cmp.Or(ctx.Err(), errGone))
	}
	return res.Node, nil
}

// joinAny asks one manager after the other, and all again as long as one answers that it cannot at the moment, such as
// without a leader.
func joinAny(ctx context.Context, t identity.Token, remotes []string, req *peerv1.JoinRequest) (res *peerv1.JoinResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var final error
	err = retry(ctx, func() error {
		if res, err = joinOnce(ctx, t, remotes, req); connect.IsWireError(err) {
			return err
		}
		final = err // nobody answers: to wait would only keep the reason back
		return nil
	})
	return res, cmp.Or(err, final)
}

func joinOnce(ctx context.Context, t identity.Token, remotes []string, req *peerv1.JoinRequest) (*peerv1.JoinResponse, error) {
	var errs []error
	for i, remote := range remotes {
		if _, _, err := net.SplitHostPort(remote); err != nil {
			remote = net.JoinHostPort(remote, strconv.Itoa(DefaultControlPort))
		}
		tr := transport(func() *tls.Config { return identity.JoinTLS(t) }, only)
		ctx, cancel := context.WithTimeout(ctx, share(ctx, patience, len(remotes)-i))
		res, err := peerv1connect.NewJoinServiceClient(&http.Client{Transport: tr}, "https://"+remote, connect.WithReadMaxBytes(maxMessage)).Join(ctx, proto.CloneOf(req))
		cancel()
		tr.CloseIdleConnections()
		if err == nil {
			return res, nil
		}
		if r, refused := errors.AsType[Refusal](fromWire(err)); refused {
			return nil, r
		}
		err = fmt.Errorf("join through %s: %w", remote, err)
		if !isTransient(err) {
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// withdraw takes this node out of the cluster again, as far as that is possible.
func (m *member) withdraw(res *peerv1.JoinResponse) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	req := &peerv1.ProposeRequest{Command: &statev1.Command{Kind: &statev1.Command_RemoveNode{RemoveNode: &statev1.RemoveNode{Id: res.Node.GetId(), Force: true}}}}
	if err := complete(req.Command); err != nil {
		return
	}
	if err := m.askManagers(ctx, callTimeout, func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
		_, err := p.Propose(ctx, req)
		return err
	}); err != nil {
		m.log.Warn("this node did not join, and could not take itself out of the cluster's list: run `overlayctl node rm --force` on a manager", "error", err)
	}
}

// Leave takes this node out of its cluster and forgets its keys. It is refused while endpoints are on the node, and
// for a manager that the others cannot do without. With force it happens all the same, also when nobody answers.
func (n *Node) Leave(ctx context.Context, force bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	m, err := n.current()
	if err != nil {
		return err
	}
	if err := m.resign(ctx, force); err == nil {
		m.dismissed(ctx)
	} else if !force {
		return err
	} else {
		m.log.Warn("left without the consent of the managers: run `overlayctl node rm --force` on one of them", "error", err)
	}
	if g := m.gossip.Load(); g != nil {
		if err := g.Leave(time.Second); err != nil {
			m.log.Debug("the others were not told that this node goes", "error", err)
		}
	}
	m.leave()
	for n.member.Load() == m { // Run notices
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (m *member) resign(ctx context.Context, force bool) error {
	if !force {
		var managers []string
		for _, n := range m.node.replica.Nodes() {
			if n.Role == statev1.Role_ROLE_MANAGER {
				managers = append(managers, n.Id)
			}
		}
		if slices.Equal(managers, []string{m.local.NodeID}) {
			return Refusal{Kind: statev1.Error_KIND_REFUSED, Message: "this is the last manager, and with it the cluster's state is lost: promote another node first, or use --force"}
		}
	}
	if s := m.seat.Load(); s != nil && s.raft.IsLeader() {
		// The others refuse what a node says that is no member any more, and could not be told who is to lead.
		if err := s.raft.TransferLeadership(ctx); err != nil {
			m.log.Debug("leadership was not handed over before leaving", "error", err)
		}
	}
	_, err := m.propose(ctx, &statev1.Command{Kind: &statev1.Command_RemoveNode{RemoveNode: &statev1.RemoveNode{Id: m.local.NodeID, Force: force}}})
	select {
	case <-m.gone:
		return nil // it has heard of its removal, if not as the answer
	default:
		return err
	}
}

func (n *Node) newLocal(o Options) (*local, error) {
	if n.member.Load() != nil {
		return nil, ErrMember
	}
	if err := checkAddresses(o.Addresses); err != nil {
		return nil, Refusal{Kind: statev1.Error_KIND_INVALID, Field: "options.advertise", Message: err.Error()}
	}
	if err := n.forget(); err != nil { // what a crash left of an earlier attempt
		return nil, err
	}
	name := o.Name
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("read the host name: %w", err)
		}
		name = plainName(name)
	}
	return &local{
		NodeID: identity.NewID(), Name: name, Addresses: o.Addresses, Choice: o.Choice,
		ControlPort: n.cfg.ControlPort, GossipPort: n.cfg.GossipPort,
	}, nil
}

// plainName makes a node's name of a host name: its first label, in the letters that names may have.
func plainName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	host = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, host), "-")
	if host == "" || looksLikeID(host) {
		return "node" + host
	}
	return strings.TrimRight(fmt.Sprintf("%.63s", host), "-")
}

// looksLikeID reports whether a name could be taken for the ID of a node.
func looksLikeID(s string) bool {
	return len(s) == 16 && strings.Trim(s, "0123456789abcdef") == ""
}

// wire is this node as the state has it.
func (l *local) wire(vxlan uint16, creds *identity.Credentials, role statev1.Role) *statev1.Node {
	n := &statev1.Node{
		Id: l.NodeID, Name: l.Name, Role: role, Availability: statev1.Availability_AVAILABILITY_ACTIVE,
		ControlPort: uint32(l.ControlPort), GossipPort: uint32(l.GossipPort), VxlanPort: uint32(vxlan),
	}
	for _, a := range l.Addresses {
		n.Addresses = append(n.Addresses, a.String())
	}
	if creds != nil {
		n.PublicKey = creds.PublicKey()
	}
	return n
}
