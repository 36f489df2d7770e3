package controlplane

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

// A node that was removed while it was away is refused by everybody when it comes back, as is right, and so nobody tells
// it. It asks then, without its certificate, as a host that joins would.
//
// The answer is only taken from a manager that proves by its certificate that it is one of this cluster, and that has
// looked at the state as it is agreed on now. A state that is older than the node's own copy, such as that of a backup,
// proves nothing. And since a node may be missing for a moment, while a backup is restored, the answer has to be the same
// twice.
//
// A manager that was removed, or is none any more, asks the same to hear whether Raft goes on without it.

const (
	// membershipPath is where it is asked whether a node is a member.
	membershipPath = "/overlayd/membership"
	// membershipAgain is the time between two such questions.
	membershipAgain = 3 * time.Second
	// maxAnswer bounds what ask reads, in bytes.
	maxAnswer = 1024
)

// membership is the answer.
type membership struct {
	Member    bool   `json:"member"`
	Index     uint64 `json:"index"`     // of the state in which it was looked up
	Dismissed bool   `json:"dismissed"` // Raft does not count on it, or no longer
}

// serveMembership says whether the node whose ID is asked for is a member, and whether its vote counts.
func (m *member) serveMembership(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("node")
	if !looksLikeID(id) {
		http.Error(w, "node: give the ID of a node", http.StatusBadRequest)
		return
	}
	s := m.seat.Load()
	if s == nil {
		http.Error(w, "this node is no manager", http.StatusServiceUnavailable)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	if err := m.catchUp(ctx, s); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	index := s.store.Index() // before the look: what is found is of this index at least
	answer(w, membership{Member: s.store.Node(id) != nil, Index: index, Dismissed: !s.counts(id)})
}

// removed reports whether it is certain that this node is no member any more.
func (m *member) removed(ctx context.Context) bool {
	if !m.missing(ctx) {
		return false
	}
	select {
	case <-time.After(membershipAgain):
	case <-ctx.Done():
		return false
	}
	return m.missing(ctx)
}

// missing reports whether this node is missing from the state, as a manager sees it.
func (m *member) missing(ctx context.Context) bool {
	a, ok := m.hearMembership(ctx)
	return ok && !a.Member
}

// hearMembership asks the managers one after the other, until one answers for certain. What it says is good, which ok reports,
// if it is as of no older state than that of this node.
func (m *member) hearMembership(ctx context.Context) (a membership, ok bool) {
	all := m.managers()
	for i, x := range all {
		a, err := m.askMembership(ctx, x, share(ctx, callTimeout, len(all)-i))
		if err != nil {
			m.log.Debug("cannot ask whether this node is a member", "manager", x.Address, "error", err)
			continue
		}
		return a, a.Index >= max(m.node.replica.Index(), m.joined(), 1)
	}
	return a, false
}

func (m *member) askMembership(ctx context.Context, x manager, limit time.Duration) (membership, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t := transport(func() *tls.Config {
		cfg := m.creds.ClientTLS(identity.Expect{Role: statev1.Role_ROLE_MANAGER})
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil } // none
		return cfg
	}, m.reachedAt)
	defer t.CloseIdleConnections()
	var a membership
	err := ask(ctx, &http.Client{Transport: t}, "https://"+x.Address+membershipPath+"?node="+url.QueryEscape(m.local.NodeID), &a)
	return a, err
}

// answer writes an answer to ask.
func answer(w http.ResponseWriter, a any) {
	b, err := json.Marshal(a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // that it does not arrive, the other end sees
}

// ask reads one short answer. Any that is not OK may be another one later.
func ask(ctx context.Context, c *http.Client, from string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s: %.200s", res.Status, b)
	}
	return json.Unmarshal(b, into)
}
