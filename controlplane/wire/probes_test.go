package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

var errDeadline = os.ErrDeadlineExceeded

// membership is what a node may ask about the others.
type membership struct {
	mu      sync.Mutex
	removed map[string]bool
}

func (m *membership) remove(id string) { m.mu.Lock(); defer m.mu.Unlock(); m.removed[id] = true }

// check lets strangers speak h2 only, workers all but Raft, and removed nodes nothing.
func (m *membership) check(cs tls.ConnectionState) error {
	peer, err := identity.Peer(cs)
	if errors.Is(err, identity.ErrNoCertificate) && cs.NegotiatedProtocol == "h2" {
		return nil
	}
	if err != nil {
		return err
	}
	if cs.NegotiatedProtocol == "raft" && peer.Role != manager {
		return fmt.Errorf("%v is no manager", peer)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.removed[peer.NodeID] {
		return fmt.Errorf("%v was removed", peer)
	}
	return nil
}

// Whoever has no business on the Raft protocol does not get there.
func TestProbes(t *testing.T) {
	c, other := newCluster(), newCluster()
	members := &membership{removed: map[string]bool{}}
	server := c.node(manager)
	p := open(t, Config{TLS: identity.NewCurrent(server).ServerTLS(), Check: members.check}, nil)
	p.greet(t, "h2")
	p.greet(t, "raft")
	removed := c.node(manager)
	members.remove(removed.NodeID())
	// shows is a client that takes any server, so that it is the server that has to refuse.
	shows := func(creds *identity.Credentials) *tls.Config {
		cfg := creds.ClientTLS(identity.Expect{})
		cfg.VerifyConnection = nil
		return cfg
	}
	wrongKey := shows(c.node(manager))
	wrongKey.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert := c.node(manager).ServerTLS().Certificates[0]
		cert.PrivateKey = c.node(manager).ServerTLS().Certificates[0].PrivateKey
		return &cert, nil
	}
	long := time.Now().Add(-91 * 24 * time.Hour)
	old := must(identity.NewAuthority(identity.NewID(), long.Add(-time.Hour)))
	for name, x := range map[string]struct {
		cfg   *tls.Config
		proto string
		ok    bool
	}{
		"a manager":                {shows(c.node(manager)), "raft", true},
		"a worker that joins":      {anonymous(), "h2", true},
		"a worker on the API":      {shows(c.node(worker)), "h2", true},
		"keyless":                  {anonymous(), "raft", false},
		"a worker":                 {shows(c.node(worker)), "raft", false},
		"another cluster's":        {shows(other.node(manager)), "raft", false},
		"another cluster's, API":   {shows(other.node(manager)), "h2", false},
		"another key":              {wrongKey, "raft", false},
		"not valid yet":            {shows(c.issue(identity.NewID(), manager, time.Now().Add(48*time.Hour))), "raft", false},
		"expired":                  {shows(cluster{old}.issue(identity.NewID(), manager, long)), "raft", false},
		"a removed manager":        {shows(removed), "raft", false},
		"a removed manager, API":   {shows(removed), "h2", false},
		"a protocol that is none":  {shows(c.node(manager)), "gopher", false},
		"an older HTTP":            {shows(c.node(manager)), "http/1.1", false},
		"a prefix of the protocol": {shows(c.node(manager)), "raf", false},
	} {
		before := p.Stats()
		conn, err := call(t, p, x.cfg, x.proto)
		if (err == nil) != x.ok {
			t.Errorf("%s: %v, want it let in: %v", name, err, x.ok)
		}
		if errors.Is(err, errDeadline) {
			t.Errorf("%s: left hanging", name)
		}
		if conn != nil {
			_ = conn.NetConn().Close()
		}
		p.await(t, name, func(s Stats) bool {
			refused := s.Failed + s.Refused - before.Failed - before.Refused
			return s.Connections == 0 && (x.ok && refused == 0 || !x.ok && refused == 1)
		})
	}
	for name, cfg := range map[string]*tls.Config{
		"no protocol": shows(c.node(manager)),
		"TLS 1.2":     {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}},
	} {
		before := p.Stats()
		conn := tls.Client(raw(t, p), cfg)
		_ = conn.SetDeadline(time.Now().Add(patience))
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil || errors.Is(err, errDeadline) {
			t.Errorf("%s: %v", name, err)
		}
		p.await(t, name, func(s Stats) bool { return s.Failed+s.Refused == before.Failed+before.Refused+1 })
	}
	for name, bytes := range map[string]string{
		"HTTP":    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"noise":   strings.Repeat("\x00\xff", 600),
		"a giant": "\x16\x03\x01\xff\xff" + strings.Repeat("x", 1000),
	} {
		before := p.Stats()
		conn := raw(t, p)
		_, _ = io.WriteString(conn, bytes)
		isClosed(t, conn)
		p.await(t, name, func(s Stats) bool { return s.Failed == before.Failed+1 })
	}
	// Of all that, the log says something, but not one line each.
	if n := strings.Count(p.log.String(), "level=WARN"); n == 0 || n > 15 {
		t.Errorf("%d warnings", n)
	}
}

// What Listen promises holds also where the configuration that it is given asks for less.
func TestWeakConfigurationIsHardened(t *testing.T) {
	weak := &tls.Config{Certificates: newCluster().node(manager).ServerTLS().Certificates, MinVersion: tls.VersionTLS12, NextProtos: []string{"gopher"}}
	chosen := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return weak, nil }}
	for name, cfg := range map[string]*tls.Config{"itself": weak, "chosen": chosen} {
		p := open(t, Config{TLS: cfg}, nil)
		p.greet(t, "h2")
		must(call(t, p, anonymous(), "h2"))
		sessions := anonymous()
		sessions.ClientSessionCache, sessions.ServerName = tls.NewLRUClientSessionCache(1), "x"
		for range 2 {
			if c := must(call(t, p, sessions, "h2")); c.ConnectionState().DidResume {
				t.Errorf("%s: a session was resumed", name)
			}
		}
		for what, client := range map[string]*tls.Config{
			"TLS 1.2":          {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}},
			"another protocol": {InsecureSkipVerify: true, NextProtos: []string{"gopher"}},
		} {
			conn := tls.Client(raw(t, p), client)
			_ = conn.SetDeadline(time.Now().Add(patience))
			if err := conn.Handshake(); err == nil || errors.Is(err, errDeadline) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
	}
}

// A node that is removed loses also what it has open; the others do not.
func TestRecheckClosesWhatIsRefusedNow(t *testing.T) {
	c := newCluster()
	members := &membership{removed: map[string]bool{}}
	p := open(t, Config{TLS: c.node(manager).ServerTLS(), Check: members.check}, nil)
	p.greet(t, "h2")
	gone, stays := c.node(worker), c.node(worker)
	a1, a2 := must(call(t, p, gone.ClientTLS(identity.Expect{}), "h2")), must(call(t, p, gone.ClientTLS(identity.Expect{}), "h2"))
	b := must(call(t, p, stays.ClientTLS(identity.Expect{}), "h2"))
	if n := p.Recheck(); n != 0 {
		t.Errorf("%d connections of members were closed", n)
	}
	members.remove(gone.NodeID())
	if n := p.Recheck(); n != 2 {
		t.Errorf("%d connections were closed, want 2", n)
	}
	isClosed(t, a1)
	isClosed(t, a2)
	if !isOpen(b) {
		t.Error("a member lost its connection")
	}
	if s := p.Stats(); s.Connections != 1 || s.Refused != 2 {
		t.Errorf("%+v", s)
	}
}

// A removal between the two looks at a connection, during its handshake and after, is not missed by both.
func TestRemovalDuringTheHandshake(t *testing.T) {
	c := newCluster()
	asked := 0
	p := open(t, Config{TLS: c.node(manager).ServerTLS(), Check: func(tls.ConnectionState) error {
		if asked++; asked > 1 {
			return errors.New("removed meanwhile")
		}
		return nil
	}}, nil)
	p.greet(t, "h2")
	if _, err := call(t, p, c.node(worker).ClientTLS(identity.Expect{}), "h2"); err == nil {
		t.Error("let in")
	}
	p.await(t, "refused", func(s Stats) bool { return s.Refused == 1 && s.Connections == 0 })
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

// Renewal needs no new listener: who is connected stays, who comes sees the new certificate.
func TestRenewalKeepsTheListener(t *testing.T) {
	c := newCluster()
	cur := identity.NewCurrent(c.issue("00112233445566ff", worker, time.Now().Add(-time.Minute).Add(2*time.Minute)))
	p := open(t, Config{TLS: cur.ServerTLS()}, nil)
	p.greet(t, "h2")
	client := c.node(worker).ClientTLS(identity.Expect{NodeID: "00112233445566ff"})
	first := must(call(t, p, client, "h2"))
	for _, role := range []statev1.Role{manager, worker} {
		cur.Store(c.issue("00112233445566ff", role, time.Now()))
		conn := must(call(t, p, client, "h2"))
		if peer := must(identity.Peer(conn.ConnectionState())); peer.Role != role {
			t.Errorf("the server shows %v", peer)
		}
		if !isOpen(first) || !isOpen(conn) {
			t.Error("a connection was dropped")
		}
	}
}

// The connections are what net/http needs for HTTP/2 in both directions.
func TestHTTP2(t *testing.T) {
	c := newCluster()
	p := open(t, Config{TLS: c.node(manager).ServerTLS()}, nil)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := identity.Peer(*r.TLS)
		fmt.Fprintf(w, "%s %v %v", r.Proto, peer.Role, err)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(p.Protocol("h2")) }()
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	tr := &http.Transport{Protocols: protocols, DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return Dial(ctx, address, c.node(worker).ClientTLS(identity.Expect{Role: manager}), "h2")
	}}
	res, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://" + p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body := must(io.ReadAll(res.Body))
	res.Body.Close()
	if string(body) != "HTTP/2.0 ROLE_WORKER <nil>" {
		t.Errorf("%s", body)
	}
	tr.CloseIdleConnections()
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	// That closed the protocol and nothing else.
	p.greet(t, "raft")
	must(call(t, p, c.node(manager).ClientTLS(identity.Expect{}), "raft"))
	if _, err := call(t, p, c.node(manager).ClientTLS(identity.Expect{}), "h2"); err == nil {
		t.Error("the protocol is served although it was closed")
	}
}

func TestDialRefuses(t *testing.T) {
	c := newCluster()
	server := c.node(manager)
	// A server that knows no protocols at all agrees to none.
	ln := must(tls.Listen("tcp", "127.0.0.1:0", server.ServerTLS()))
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(io.Discard, conn); _ = conn.Close() })
		}
	})
	defer ln.Close()
	address := ln.Addr().String()
	if _, err := Dial(t.Context(), address, c.node(worker).ClientTLS(identity.Expect{}), "raft"); !contains(err, `agreed to the protocol "" only`) {
		t.Errorf("no ALPN: %v", err)
	}
	if _, err := Dial(t.Context(), address, newCluster().node(worker).ClientTLS(identity.Expect{}), "raft"); !contains(err, "another cluster") || !contains(err, address) {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := Dial(t.Context(), address, nil, "raft"); err == nil {
		t.Error("no TLS")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, address, anonymous(), "raft"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	// One that accepts and says nothing.
	mute := must(net.Listen("tcp", "127.0.0.1:0"))
	defer mute.Close()
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, mute.Addr().String(), anonymous(), "raft"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that says nothing: %v", err)
	}
}
