package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/gossip"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/wire"
)

// What is spoken on the control port, as TLS application protocols (RFC 7301).
const (
	protocolAPI  = "h2"
	protocolRaft = "overlayd-raft-1"
)

// recheckAfter is how long the connections of a node that was removed stay, so that one which asked for that hears that it is
// granted. Nothing new is answered on them.
const recheckAfter = time.Second

// errGone ends a membership because the node left or was removed.
var errGone = errors.New("this node is no member any more")

// member is this node's part in one cluster.
type member struct {
	node  *Node
	log   *slog.Logger
	creds *identity.Current
	peers *clients

	renewing sync.Mutex // one renewal at a time, so that the newest certificate stays

	localMu sync.Mutex // guards local, of which IDs, addresses and ports never change
	local   *local

	seat    atomic.Pointer[seat]               // nil on a worker
	role    chan struct{}                      // capacity 1: look at the role again
	nodesAt chan struct{}                      // capacity 1: look again for managers to meet
	differs atomic.Bool                        // another node has a different copy of the same index
	wholeAt time.Time                          // when the whole was fetched for that; of the sync loop
	behind  chan struct{}                      // capacity 1: ask the managers
	early   early                              // what came before its turn
	unsaved chan struct{}                      // capacity 1: the copy on disk is old
	found   func(context.Context, *seat) error // makes the cluster of which this is the first manager; nil = it exists
	gone    chan struct{}                      // closed when the node is no member any more
	once    sync.Once                          // closes gone
	gossip  atomic.Pointer[gossip.Gossip]
	meeting sync.WaitGroup              // for the first exchange of the gossip
	raftTo  atomic.Pointer[streamLayer] // takes the Raft connections that come in
}

func newMember(n *Node, l *local, creds *identity.Credentials) *member {
	m := &member{
		node: n, local: l,
		log:     n.log.With("cluster", l.ClusterID, "node", l.NodeID),
		creds:   identity.NewCurrent(creds),
		role:    make(chan struct{}, 1),
		nodesAt: make(chan struct{}, 1),
		behind:  make(chan struct{}, 1),
		unsaved: make(chan struct{}, 1),
		gone:    make(chan struct{}),
	}
	m.peers = newClients(m.creds, m.reachedAt)
	return m
}

// poke wakes the loop that waits for c.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// leave ends the membership.
func (m *member) leave() { m.once.Do(func() { close(m.gone) }) }

// run takes part in the cluster until ctx ends or something fails. It calls started once: with nil when the node
// is reachable and, on a manager, Raft runs.
func (m *member) run(ctx context.Context, started func(error)) (err error) {
	told := false
	tell := func(err error) {
		if !told {
			told = true
			started(err)
		}
	}
	defer func() { tell(err) }()

	group, ctx := errgroup.WithContext(ctx)
	defer m.peers.close()
	listener, err := wire.Listen(wire.Config{
		Address:   netip.AddrPortFrom(m.listen(), m.local.ControlPort),
		TLS:       m.creds.ServerTLS(protocolAPI, protocolRaft),
		Protocols: []string{protocolAPI, protocolRaft},
		Check:     m.check,
		Log:       m.log,
	})
	if err != nil {
		return err
	}
	group.Go(func() error { return ended("the control port", listener.Run(ctx), ctx) })
	server := &http.Server{
		Handler: m.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	group.Go(func() error {
		err := server.Serve(listener.Protocol(protocolAPI))
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("serve the control port: %w", err)
	})
	group.Go(func() error { <-ctx.Done(); return server.Close() })
	group.Go(func() error { return m.acceptRaft(ctx, listener.Protocol(protocolRaft)) })

	fail := func(err error) error {
		group.Go(func() error { return err })
		m.standUp()
		return group.Wait()
	}
	g, err := m.openGossip()
	if err != nil {
		return fail(err)
	}
	m.gossip.Store(g)
	defer func() {
		m.gossip.Store(nil)
		err = errors.Join(err, g.Close())
		m.meeting.Wait()
	}()
	group.Go(func() error { return ended("the gossip", g.Run(ctx), ctx) })

	if m.creds.Load().Role() == statev1.Role_ROLE_MANAGER {
		if err := m.takeSeat(ctx); err != nil {
			return fail(err)
		}
	}
	if m.found != nil {
		if err := m.found(ctx, m.seat.Load()); err != nil {
			return fail(errors.Join(err, ctx.Err()))
		}
		if err := m.save(); err != nil {
			return fail(err)
		}
		m.found = nil
	}
	m.node.member.Store(m)
	for name, loop := range map[string]func(context.Context) error{
		"role": func(ctx context.Context) error { return m.roleLoop(ctx, listener) }, "sync": m.syncLoop, "copy": m.copyLoop, "keys": m.keysLoop, "renewal": m.renewLoop, "meet": m.meet,
	} {
		group.Go(func() error { return ended("the "+name+" loop", loop(ctx), ctx) })
	}
	group.Go(func() error {
		select {
		case <-m.gone:
			return errGone
		case <-ctx.Done():
			return nil
		}
	})
	tell(nil)
	poke(m.behind)
	<-ctx.Done()
	m.standUp()
	err = group.Wait()
	if errors.Is(err, errGone) {
		return errors.Join(err, m.node.forget())
	}
	return err
}

// ended is what the end of a part means: nothing when all ends.
func ended(part string, err error, ctx context.Context) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%s ended by itself", part)
	}
	return err
}

// listen is the local address on which to listen: unless one is stated, all of the families of the candidates.
func (m *member) listen() netip.Addr {
	if a := m.node.cfg.Listen; a.IsValid() {
		return a
	}
	if slices.ContainsFunc(m.addresses(), netip.Addr.Is6) {
		return netip.IPv6Unspecified() // takes IPv4 as well
	}
	return netip.IPv4Unspecified()
}

// check says whether a connection is let in. Without a certificate it is, to join.
func (m *member) check(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		if cs.NegotiatedProtocol != protocolAPI {
			return errors.New("it has no certificate of the cluster")
		}
		return nil
	}
	peer, err := identity.Peer(cs)
	if err != nil {
		return err
	}
	if cs.NegotiatedProtocol == protocolRaft {
		return m.admit(peer, statev1.Role_ROLE_MANAGER)
	}
	return m.admit(peer, statev1.Role_ROLE_UNSPECIFIED)
}

// admit says whether a node whose certificate is good may speak to this one: not after it was removed, and as what
// only a role may speak not after it lost that, although its certificate may be good for months.
func (m *member) admit(peer identity.Identity, role statev1.Role) error {
	// Whichever is newer: a manager that was down may have to learn from the copy of another one, see syncLoop, that the
	// leader is a manager, before it can learn anything from the leader.
	known, lookup := m.node.replica.Index(), m.node.replica.Node
	if s := m.seat.Load(); s != nil && s.store.Index() > known {
		known, lookup = s.store.Index(), s.store.Node
	}
	if peer.NodeID == m.local.NodeID || known == 0 {
		return nil
	}
	n := lookup(peer.NodeID)
	if n == nil {
		return fmt.Errorf("node %s is no member of the cluster", peer.NodeID)
	}
	if role != statev1.Role_ROLE_UNSPECIFIED && n.Role != role {
		return fmt.Errorf("node %s is a %s", n.Name, roleName(n.Role))
	}
	return nil
}

// roleLoop takes and leaves the seat among the managers as the state says, and holds the others to their roles.
func (m *member) roleLoop(ctx context.Context, listener *wire.Listener) error {
	var recheck <-chan time.Time
	for {
		select {
		case <-m.role:
			if recheck == nil {
				recheck = time.After(recheckAfter)
			}
		case <-recheck:
			recheck = nil
			if dropped := listener.Recheck(); dropped > 0 {
				m.log.Info("closed connections of nodes that may not have them any more", "connections", dropped)
			}
			continue
		case <-ctx.Done():
			return nil
		}
		index := m.node.replica.Index() // before the look: what is found is of this index at least
		self := m.node.replica.Node(m.local.NodeID)
		switch {
		case index < max(m.joined(), 1): // from before this node was a member
		case self == nil:
			m.log.Warn("this node was removed from the cluster: it forgets its keys and stops forwarding for it")
			m.dismissed(ctx)
			m.leave()
		case self.Role != m.creds.Load().Role():
			if err := m.changeRole(ctx, self.Role); err != nil {
				m.log.Warn("cannot change the role of this node yet", "role", self.Role, "error", err)
				time.AfterFunc(2*time.Second, func() { poke(m.role) })
			}
		}
	}
}

// joined is the index of the state as of which this node is a member.
func (m *member) joined() uint64 {
	m.localMu.Lock()
	defer m.localMu.Unlock()
	return m.local.Joined
}

// setJoined changes joined, which is not saved yet.
func (m *member) setJoined(index uint64) {
	m.localMu.Lock()
	defer m.localMu.Unlock()
	m.local.Joined = index
}

// save notes the membership down.
func (m *member) save() error {
	m.localMu.Lock()
	defer m.localMu.Unlock()
	if err := m.local.save(m.node.cfg.localFile()); err != nil {
		return fmt.Errorf("note down the membership: %w", err)
	}
	return nil
}

// changeRole gets a certificate with the new role and takes or leaves the seat.
func (m *member) changeRole(ctx context.Context, role statev1.Role) error {
	if role != statev1.Role_ROLE_MANAGER {
		m.dismissed(ctx)
		m.standUp()
		if err := os.RemoveAll(m.node.cfg.raftDir()); err != nil {
			return err
		}
	}
	if err := m.renew(ctx); err != nil {
		return err
	}
	if got := m.creds.Load().Role(); got != role {
		return fmt.Errorf("the managers issued a certificate for the role %v, and %v is due", got, role)
	}
	if role == statev1.Role_ROLE_MANAGER {
		if err := m.takeSeat(ctx); err != nil {
			return err
		}
	}
	m.log.Info("the role of this node changed", "role", role)
	return nil
}
