package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/identity"
)

// impostor answers every question whether a node is a member, at the address of a host that is halted. It ends with stop.
func impostor(t *testing.T, at *host, creds *identity.Credentials, index uint64) (asked func() bool, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", at.control())
	if err != nil {
		t.Fatal(err)
	}
	was := make(chan struct{}, 100)
	srv := &http.Server{ErrorLog: log.New(io.Discard, "", 0), TLSConfig: creds.ServerTLS(protocolAPI), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != membershipPath { // of a node that runs and takes it for the manager that it knows
			http.NotFound(w, r)
			return
		}
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			t.Error("the certificate of the node is shown to whoever asks")
		}
		was <- struct{}{}
		answer(w, membership{Member: false, Index: index})
	})}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(ln, "", "") }()
	return func() bool { return len(was) > 0 }, func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}
}

// A node leaves on the word of a manager of its own cluster that has a newer state, and of nobody else.
func TestMissing(t *testing.T) {
	s := newSite(t)
	a, w, v, stranger := s.host(), s.host(), s.host(), s.host()
	tokens := a.init("a")
	stranger.init("a")
	w.join("w", tokens.Worker, a)
	v.join("v", tokens.Worker, a)
	m := w.member.Load()
	if m.missing(w.ctx()) {
		t.Fatal("a member is said to be missing")
	}
	w.halt()
	credsOf := func(h *host) *identity.Credentials { return h.member.Load().creds.Load() }
	at := w.Tables().Index()
	boss, other, foreign := credsOf(a), credsOf(v), credsOf(stranger)
	a.halt()
	for name, c := range map[string]struct {
		creds *identity.Credentials
		index uint64
		want  bool
		heard bool
	}{
		"a manager":                        {boss, at + 1, true, true},
		"a manager with an older state":    {boss, at - 1, false, true},
		"a manager without a state":        {boss, 0, false, true},
		"a worker":                         {other, at + 1, false, false},
		"a manager of another cluster":     {foreign, at + 1, false, false},
		"a manager that has seen it leave": {boss, at + 1000, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			asked, stop := impostor(t, a, c.creds, c.index)
			defer stop()
			if got := m.missing(context.Background()); got != c.want {
				t.Errorf("missing: %v, want %v", got, c.want)
			}
			if asked() != c.heard {
				t.Errorf("it was asked: %v, want %v", asked(), c.heard)
			}
		})
	}
}

// Nodes that are removed while they are away leave when they come back, a manager too, and can join again.
func TestRemovedWhileAway(t *testing.T) {
	s := newSite(t)
	a, b, c, w := s.host(), s.host(), s.host(), s.host()
	tokens := a.init("a")
	b.join("b", tokens.Manager, a)
	c.join("c", tokens.Manager, a)
	w.join("w", tokens.Worker, a)
	a.voters(a, b, c)
	for _, h := range []*host{c, w} {
		id := h.id()
		h.halt()
		a.propose(remove(id, true))
		a.voters(a, b)
		h.open()
		h.run()
		h.until("it to leave", func() error {
			if h.member.Load() != nil {
				return fmt.Errorf("it is node %s still", h.id())
			}
			return nil
		})
		h.join("again-"+id, tokens.Worker, b)
	}
}

// A token that was replaced lets nobody in, whoever is asked, from the moment at which that is acknowledged.
func TestRotatedToken(t *testing.T) {
	s := newSite(t)
	a, b, c, w := s.host(), s.host(), s.host(), s.host()
	tokens := a.init("a")
	b.join("b", tokens.Manager, a)
	c.join("c", tokens.Manager, a)
	a.voters(a, b, c)
	old := tokens.Worker
	managers := []*host{a, b, c}
	for i := range 30 {
		now, err := managers[i%3].RotateToken(a.ctx(), worker)
		if err != nil {
			t.Fatal(err)
		}
		asked := managers[(i+1)%3]
		if got, err := asked.Tokens(a.ctx()); err != nil || got != now {
			t.Errorf("rotation %d: an old token is shown, %v", i, err)
		}
		if _, err := w.Join(a.ctx(), old, []string{asked.control()}, w.options("w")); err == nil {
			t.Fatalf("rotation %d: the old token lets a node in", i)
		}
		old = now.Worker
	}
	w.join("w", old, c)
}

// A node whose managers do not answer ends at once all the same.
func TestStopWhileMeeting(t *testing.T) {
	s := newSite(t)
	a, w := s.host(), s.host()
	w.join("w", a.init("a").Worker, a)
	w.halt()
	a.halt()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(a.addr, DefaultGossipPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // takes connections, and says nothing
	w.open()
	w.run()
	w.until("the first exchange", func() error {
		if m := w.member.Load(); m == nil || m.gossip.Load() == nil {
			return errors.New("it has no gossip yet")
		}
		return nil
	})
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	w.halt()
	if took := time.Since(began); took > 4500*time.Millisecond { // the exchange itself gives up after 5 s
		t.Errorf("it took %v to end", took)
	}
}
