package controlplane

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1/peerv1connect"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/wire"
)

const (
	// callTimeout bounds one question to one manager.
	callTimeout = 5 * time.Second
	// leastShare is what such a question gets of less time than that for several managers.
	leastShare = 500 * time.Millisecond
	// pingAfter and pingTimeout find out that a connection is dead, such as after a partition.
	pingAfter   = 5 * time.Second
	pingTimeout = 5 * time.Second
	// maxMessage bounds what a peer may answer in one message, in bytes.
	maxMessage = 4 << 20
)

// tlsConn is a connection that knows who is at its other end.
type tlsConn interface {
	net.Conn
	ConnectionState() tls.ConnectionState
}

// clients holds one HTTP client for each manager that was asked.
type clients struct {
	creds *identity.Current
	all   func(address string) []string // see member.reachedAt
	mu    sync.Mutex
	byKey map[manager]*http.Transport
}

func newClients(creds *identity.Current, all func(address string) []string) *clients {
	return &clients{creds: creds, all: all, byKey: map[manager]*http.Transport{}}
}

// peer returns a client for a manager: what answers at its address has to prove that it is one, though not which. After a
// restore on the same host it is another one.
func (c *clients) peer(m manager) peerv1connect.PeerServiceClient {
	return peerv1connect.NewPeerServiceClient(c.http(m), "https://"+m.Address, connect.WithReadMaxBytes(maxMessage))
}

func (c *clients) http(m manager) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.byKey[m]
	if t == nil {
		t = transport(func() *tls.Config {
			return c.creds.ClientTLS(identity.Expect{Role: statev1.Role_ROLE_MANAGER})
		}, c.all)
		c.byKey[m] = t
	}
	return &http.Client{Transport: t}
}

// close has what is asked from now on asked over new connections. Those that are in use end with what they are used for.
func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.byKey {
		t.CloseIdleConnections()
	}
	clear(c.byKey)
}

// transport speaks HTTP/2 over connections that are made with what config returns at that moment, to the first address to
// answer of those that all returns for the one that is asked for.
func transport(config func() *tls.Config, all func(address string) []string) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Transport{
		Protocols: protocols,
		HTTP2:     &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return wire.DialAny(ctx, all(address), config(), protocolAPI)
		},
		IdleConnTimeout: time.Minute,
	}
}

// managers returns where managers are to be asked, in random order, but last those that the gossip takes for dead: those of the state or, as long as there is none,
// those that were named when this node joined. This node is not among them.
func (m *member) managers() []manager {
	var out []manager
	for _, n := range m.node.replica.Nodes() {
		if n.Role == statev1.Role_ROLE_MANAGER && n.Id != m.local.NodeID {
			out = append(out, manager{ID: n.Id, Address: hostPort(n, n.ControlPort)})
		}
	}
	if len(out) == 0 {
		m.localMu.Lock()
		for _, x := range m.local.Managers {
			// The first of its addresses stands for all: see reachedAt.
			if x.ID != m.local.NodeID && !slices.ContainsFunc(out, func(o manager) bool { return o.ID == x.ID }) {
				out = append(out, x)
			}
		}
		m.localMu.Unlock()
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	alive := m.node.Alive()
	silent := func(x manager) int {
		if up, heard := alive[x.ID]; heard && !up {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(out, func(a, b manager) int { return cmp.Compare(silent(a), silent(b)) })
	return out
}

// askManagers asks one manager after the other until one answers. Only that a manager cannot be reached or cannot
// answer at the moment is a reason to ask the next one. None gets more than limit, nor more than its share of the time that
// ctx leaves: one that stands still must not keep the others from being asked.
func (m *member) askManagers(ctx context.Context, limit time.Duration, ask func(context.Context, peerv1connect.PeerServiceClient) error) error {
	var errs []error
	all := m.managers()
	for i, x := range all {
		err := m.askOne(ctx, x, share(ctx, limit, len(all)-i), ask)
		if err == nil || !isTransient(err) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return connect.NewError(connect.CodeUnavailable, errors.New("no other manager is known"))
	}
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("no manager answers: %w", errors.Join(errs...)))
}

// share returns how long one of n attempts may take that have to end with ctx, and limit at most. Rather fewer are made than
// such as are too short for one that is far away.
func share(ctx context.Context, limit time.Duration, n int) time.Duration {
	if end, bounded := ctx.Deadline(); bounded {
		limit = min(limit, max(time.Until(end)/time.Duration(n), leastShare))
	}
	return limit
}

func (m *member) askOne(ctx context.Context, x manager, limit time.Duration, ask func(context.Context, peerv1connect.PeerServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := ask(ctx, m.peers.peer(x)); err != nil {
		return fmt.Errorf("manager %s: %w", x.Address, err)
	}
	return nil
}

// isTransient reports whether another manager, or the same one later, may give another answer.
func isTransient(err error) bool {
	if _, isRefusal := errors.AsType[Refusal](err); isRefusal {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeUnknown, connect.CodeCanceled, connect.CodeAborted:
		return true
	}
	return false
}
