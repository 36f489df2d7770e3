package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/consensus"
	"github.com/overlayd/overlayd/controlplane/identity"
)

const (
	// keysEvery is how often a node looks for new keys of the gossip.
	keysEvery = 20 * time.Second
	// keyAge is how long one key encrypts the gossip.
	keyAge = 12 * time.Hour
	// keyStep is the time between two steps of a rotation: enough for all nodes to have looked several times.
	keyStep = 5 * time.Minute
	// renewPause is the wait after a renewal that failed.
	renewPause = time.Minute
)

func newGossipKey() []byte {
	key := make([]byte, secretLen)
	_, _ = rand.Read(key) // never fails
	return key
}

// keysLoop follows the keys of the gossip and where the managers are.
func (m *member) keysLoop(ctx context.Context) error {
	for {
		if err := m.fetchKeys(ctx); err != nil && ctx.Err() == nil {
			m.log.Debug("cannot look for new keys of the gossip", "error", err)
		}
		select {
		case <-time.After(jitter(keysEvery)):
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *member) fetchKeys(ctx context.Context) error {
	var keys [][]byte
	var managers []manager
	if s := m.seat.Load(); s != nil {
		secrets := s.store.Secrets()
		if secrets == nil {
			return nil // Raft has not told yet
		}
		keys, managers = secrets.GossipKeys, s.managers()
	} else {
		if err := m.askManagers(ctx, callTimeout, func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
			res, err := p.GetKeys(ctx, &peerv1.GetKeysRequest{})
			keys, managers = res.GetGossipKeys(), managersFromWire(res.GetManagers())
			return err
		}); err != nil {
			return err
		}
	}
	if len(keys) == 0 {
		return errors.New("the manager has no keys")
	}
	m.localMu.Lock()
	defer m.localMu.Unlock()
	next := *m.local
	newKeys := !slices.EqualFunc(keys, m.local.GossipKeys, slices.Equal)
	if !newKeys && slices.Equal(managers, m.local.Managers) {
		return nil
	}
	if newKeys {
		if g := m.gossip.Load(); g != nil {
			if err := g.SetKeys(keys); err != nil {
				return fmt.Errorf("use the new keys of the gossip: %w", err)
			}
		}
	}
	next.GossipKeys, next.Managers = keys, managers
	if err := next.save(m.node.cfg.localFile()); err != nil {
		return fmt.Errorf("note down the keys of the gossip: %w", err) // and try again
	}
	m.local.GossipKeys, m.local.Managers = keys, managers
	return nil
}

// rotation is how far the leader is with a rotation of the keys of the gossip. A new leader begins to count anew,
// which makes a key live longer at worst.
type rotation struct {
	index uint64 // of the secrets when the step was seen first
	since time.Time
}

// rotateKeys replaces the key of the gossip from time to time, in steps so that at any moment every node can read every
// other: first all learn the new key, then all use it, then the old one goes.
func (s *seat) rotateKeys(ctx context.Context) error {
	secrets := s.store.Secrets()
	if secrets == nil || len(secrets.GossipKeys) == 0 {
		return nil
	}
	if s.rotation.since.IsZero() || s.rotation.index != secrets.Index {
		s.rotation = rotation{index: secrets.Index, since: time.Now()}
	}
	next := nextKeys(secrets.GossipKeys, s.lastKeys, time.Since(s.rotation.since))
	if next == nil {
		return nil
	}
	_, err := s.propose(ctx, &statev1.Command{Kind: &statev1.Command_SetSecrets{SetSecrets: &statev1.SetSecrets{Secrets: &statev1.Secrets{GossipKeys: next}}}})
	if err == nil {
		s.lastKeys = secrets.GossipKeys
	}
	return err
}

// nextKeys returns the keys of the next step, or nil when it is not due. before are the keys of the step before, if this
// manager made it: with two keys it tells a new second one from an old second one. Not knowing, the second one is
// taken for old, and goes.
func nextKeys(keys, before [][]byte, age time.Duration) [][]byte {
	switch {
	case len(keys) == 1 && age >= keyAge:
		return [][]byte{keys[0], newGossipKey()}
	case len(keys) == 2 && age >= keyStep && len(before) == 1 && slices.Equal(before[0], keys[0]):
		return [][]byte{keys[1], keys[0]}
	case len(keys) >= 2 && age >= keyStep:
		return keys[:1]
	}
	return nil
}

// renewLoop renews the certificate in the second half of its life.
func (m *member) renewLoop(ctx context.Context) error {
	for {
		at := m.creds.Load().RenewAt()
		select {
		case <-time.After(time.Until(at)):
		case <-ctx.Done():
			return nil
		}
		if err := m.renew(ctx); err != nil && ctx.Err() == nil {
			m.log.Warn("cannot renew the certificate of this node yet", "expires", m.creds.Load().NotAfter(), "error", err)
			select {
			case <-time.After(renewPause):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// renew gets a new certificate for the same key, with the role that this node has now.
func (m *member) renew(ctx context.Context) error {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	old := m.creds.Load()
	csr, err := old.CSR()
	if err != nil {
		return err
	}
	var cert, ca []byte
	if s := m.seat.Load(); s != nil {
		cert, ca, err = s.renew(m.local.NodeID, csr)
	} else {
		err = m.askManagers(ctx, callTimeout, func(ctx context.Context, p peerv1connect.PeerServiceClient) error {
			res, err := p.Renew(ctx, &peerv1.RenewRequest{CertificateRequest: csr})
			cert, ca = res.GetCertificate(), res.GetCaCertificate()
			return err
		})
	}
	if err != nil {
		return err
	}
	creds, err := old.Renewed(cert, ca)
	if err != nil {
		return err
	}
	if err := creds.Save(m.node.cfg.identityDir()); err != nil {
		return err
	}
	m.creds.Store(creds)
	m.peers.close() // what is asked from now on is asked with the new one, and in the new role
	m.log.Info("renewed the certificate of this node", "role", roleName(creds.Role()), "expires", creds.NotAfter())
	return nil
}

// Tokens returns the tokens with which hosts join. Only managers have them.
func (n *Node) Tokens(ctx context.Context) (Tokens, error) {
	m, err := n.current()
	if err != nil {
		return Tokens{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var secrets *statev1.Secrets
	if err := retry(ctx, func() error {
		s := m.seat.Load()
		if s == nil {
			return Refusal{Kind: statev1.Error_KIND_REFUSED, Message: "only managers know the tokens: run this on a manager"}
		}
		secrets, err = m.secretsNow(ctx, s)
		return err
	}); err != nil {
		return Tokens{}, err
	}
	return tokensOf(secrets)
}

// secretsNow returns the secrets as all that was acknowledged before the call has left them. To wait for the index of the state
// would not do: it counts what every node may know, which secrets are not.
func (m *member) secretsNow(ctx context.Context, s *seat) (*statev1.Secrets, error) {
	index, err := m.secretsIndex(ctx, s)
	for err == nil {
		if secrets := s.store.Secrets(); secrets != nil && secrets.Index >= index {
			return secrets, nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return nil, unavailable(err)
}

// secretsIndex returns the index of the last change of the secrets, as the leader has it.
func (m *member) secretsIndex(ctx context.Context, s *seat) (index uint64, err error) {
	err = s.raft.Read(ctx, func() { index = s.store.Secrets().GetIndex() })
	var elsewhere *consensus.NotLeaderError
	if !errors.As(err, &elsewhere) {
		return index, err
	}
	if elsewhere.LeaderID == "" || elsewhere.LeaderID == m.local.NodeID {
		return 0, errors.New("this manager does not lead, and knows of no leader")
	}
	// One that stands still, or stood, must not be waited for when there is another leader.
	ctx, cancel := context.WithTimeout(ctx, carryOnTime)
	defer cancel()
	var a secretsAnswer
	err = ask(ctx, m.peers.http(manager{ID: elsewhere.LeaderID, Address: elsewhere.LeaderAddress}), "https://"+elsewhere.LeaderAddress+secretsPath, &a)
	return a.Index, err
}

// secretsPath is where a manager asks the leader for the index of the secrets.
const secretsPath = "/overlayd/secrets-index"

type secretsAnswer struct {
	Index uint64 `json:"index"`
}

// serveSecretsIndex tells another manager the index of the last change of the secrets, if this one leads.
func (m *member) serveSecretsIndex(w http.ResponseWriter, r *http.Request) {
	peer, err := identity.Peer(*r.TLS)
	if err == nil {
		err = m.admit(peer, statev1.Role_ROLE_MANAGER)
	}
	if err == nil && peer.Role != statev1.Role_ROLE_MANAGER {
		err = fmt.Errorf("node %s came as a %s", peer.NodeID, roleName(peer.Role))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	s := m.seat.Load()
	if s == nil {
		http.Error(w, "this node is no manager", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	var a secretsAnswer
	if err := s.raft.Read(ctx, func() { a.Index = s.store.Secrets().GetIndex() }); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer(w, a)
}

// RotateToken replaces the token for a role: the old one lets nobody in any more. Nodes that joined by it stay.
func (n *Node) RotateToken(ctx context.Context, role statev1.Role) (Tokens, error) {
	s, err := n.managing()
	if err != nil {
		return Tokens{}, err
	}
	secrets := &statev1.Secrets{}
	switch role {
	case statev1.Role_ROLE_WORKER:
		secrets.WorkerToken = identity.NewSecret()
	case statev1.Role_ROLE_MANAGER:
		secrets.ManagerToken = identity.NewSecret()
	default:
		return Tokens{}, Refusal{Kind: statev1.Error_KIND_INVALID, Field: "options.role", Message: "choose worker or manager"}
	}
	if _, err := n.Propose(ctx, &statev1.Command{Kind: &statev1.Command_SetSecrets{SetSecrets: &statev1.SetSecrets{Secrets: secrets}}}); err != nil {
		return Tokens{}, err
	}
	// This manager may learn of it a moment later.
	all := s.store.Secrets()
	if all != nil && secrets.WorkerToken != nil {
		all.WorkerToken = secrets.WorkerToken
	} else if all != nil {
		all.ManagerToken = secrets.ManagerToken
	}
	return tokensOf(all)
}

func tokensOf(s *statev1.Secrets) (Tokens, error) {
	if s == nil {
		return Tokens{}, errors.New("this manager has no state yet")
	}
	authority, err := identity.ParseAuthority(s.CaCertificate, s.CaKey)
	if err != nil {
		return Tokens{}, err
	}
	digest := authority.Digest()
	return Tokens{
		Worker:  identity.FormatToken(digest, s.WorkerToken),
		Manager: identity.FormatToken(digest, s.ManagerToken),
	}, nil
}
