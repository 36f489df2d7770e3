package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

const proto = "test"

// showing is a client that asks for the protocol and shows a certificate, or none, without looking at the server's.
func showing(certs ...tls.Certificate) *tls.Config {
	c := &tls.Config{NextProtos: []string{proto}, InsecureSkipVerify: true}
	if len(certs) > 0 {
		// The callback shows it whatever the server asks for.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	return c
}

// answering is a server that shows any certificate.
func answering(cert tls.Certificate) *tls.Config {
	return &tls.Config{NextProtos: []string{proto}, Certificates: []tls.Certificate{cert}}
}

// asTLS is the certificate that credentials show.
func asTLS(c *identity.Credentials) tls.Certificate { return c.ServerTLS().Certificates[0] }

func day(n int) time.Time { return time.Now().Add(time.Duration(n) * 24 * time.Hour) }

func TestServerKnowsItsClients(t *testing.T) {
	c := newCluster()
	server, client := c.node(manager), c.node(worker)
	for name, configs := range map[string][2]*tls.Config{
		"credentials": {server.ServerTLS(proto), client.ClientTLS(identity.Expect{NodeID: server.NodeID(), Role: manager})},
		"current":     {identity.NewCurrent(server).ServerTLS(proto), identity.NewCurrent(client).ClientTLS(identity.Expect{NodeID: server.NodeID(), Role: manager})},
	} {
		e := shake(t, configs[0], configs[1])
		if !e.heard {
			t.Fatalf("%s: %s", name, e.reason)
		}
		got, err := identity.Peer(e.atServer)
		if want := (identity.Identity{ClusterID: c.authority.ClusterID(), NodeID: client.NodeID(), Role: worker}); err != nil || got != want {
			t.Errorf("%s: the server takes the client for %v, %v", name, got, err)
		}
		got, err = identity.Peer(e.atClient)
		if want := (identity.Identity{ClusterID: c.authority.ClusterID(), NodeID: server.NodeID(), Role: manager}); err != nil || got != want {
			t.Errorf("%s: the client takes the server for %v, %v", name, got, err)
		}
		if e.atServer.Version != tls.VersionTLS13 {
			t.Errorf("%s: TLS %x", name, e.atServer.Version)
		}
	}
}

// What is shown to a server, and what it says to it. Nobody of these is let in.
func TestServerRefusesClients(t *testing.T) {
	c, other := newCluster(), newCluster()
	server := c.node(manager)
	wrongKey := asTLS(c.node(manager))
	wrongKey.PrivateKey = asTLS(c.node(manager)).PrivateKey
	chain := asTLS(c.node(worker))
	old := showing(asTLS(c.node(worker)))
	old.MaxVersion = tls.VersionTLS12
	strange := showing(asTLS(c.node(worker)))
	strange.NextProtos = []string{"gopher"}
	for name, x := range map[string]struct {
		client *tls.Config
		want   string
	}{
		"another cluster's":               {showing(asTLS(other.node(manager))), "unknown authority"},
		"the key of another":              {showing(wrongKey), "invalid signature by the client"},
		"issued by a clock that is ahead": {showing(asTLS(c.issue(identity.NewID(), manager, day(0).Add(30*time.Minute)))), ""},
		"expired":                         {showing(expired(c)), "expired"},
		"not valid yet":                   {showing(asTLS(c.issue(identity.NewID(), manager, day(2)))), "not yet valid"},
		"no URI":                          {showing(c.forge(func(x *x509.Certificate) { x.URIs = nil })), "has 0 URIs"},
		"two URIs":                        {showing(c.forge(func(x *x509.Certificate) { x.URIs = append(x.URIs, c.uri("worker")) })), "has 2 URIs"},
		"another scheme":                  {showing(c.forge(func(x *x509.Certificate) { x.URIs[0].Scheme = "https" })), "should be overlayd://"},
		"a role that is none":             {showing(c.forge(func(x *x509.Certificate) { x.URIs[0] = c.uri("admin") })), "should be overlayd://"},
		"a query":                         {showing(c.forge(func(x *x509.Certificate) { x.URIs[0].RawQuery = "a" })), "should be overlayd://"},
		"another way of writing it":       {showing(c.forge(func(x *x509.Certificate) { x.URIs[0].RawPath = "/%6danager" + x.URIs[0].Path[8:] })), "should be overlayd://"},
		"another cluster in it":           {showing(c.forge(func(x *x509.Certificate) { x.URIs[0] = other.uri("manager") })), "this is cluster " + c.authority.ClusterID()},
		"for servers only": {showing(c.forge(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })),
			"incompatible key usage"},
		"an authority": {showing(c.forge(func(x *x509.Certificate) { x.IsCA, x.BasicConstraintsValid = true, true })), "authority"},
		"TLS 1.2":      {old, "unsupported versions"},
		"unknown ALPN": {strange, "unsupported application protocols"},
		"from below a node": {showing(below(c, chain)),
			"unknown authority"},
	} {
		e := shake(t, server.ServerTLS(proto), x.client)
		if x.want == "" { // within what clocks may differ
			if !e.heard {
				t.Errorf("%s: %s", name, e.reason)
			}
			continue
		}
		if e.heard || e.sentToServer != "" || !contains(e.server, x.want) {
			t.Errorf("%s: let in %v, the server says %v, want %q", name, e.heard, e.server, x.want)
		}
	}
}

// expired makes a certificate that is valid no more, from an authority that is.
func expired(c *cluster) tls.Certificate {
	return c.forge(func(x *x509.Certificate) { x.NotBefore, x.NotAfter = day(-100), day(-10) })
}

// below signs with a node's key, as if a node were an authority.
func below(c *cluster, parent tls.Certificate) tls.Certificate {
	good := c.forge(func(*x509.Certificate) {})
	template := must(x509.ParseCertificate(good.Certificate[0]))
	der := must(x509.CreateCertificate(nil, template, parent.Leaf, template.PublicKey, parent.PrivateKey))
	return tls.Certificate{Certificate: [][]byte{der, parent.Certificate[0]}, PrivateKey: good.PrivateKey}
}

// A host that joins has no certificate. It is let in, and known to be nobody.
func TestClientWithoutCertificateIsNobody(t *testing.T) {
	c := newCluster()
	e := shake(t, c.node(manager).ServerTLS(proto), showing())
	if !e.heard {
		t.Fatal(e.reason)
	}
	if id, err := identity.Peer(e.atServer); !errors.Is(err, identity.ErrNoCertificate) || id != (identity.Identity{}) {
		t.Errorf("it is taken for %v, %v", id, err)
	}
}

func TestClientRefusesServers(t *testing.T) {
	c, other := newCluster(), newCluster()
	client, server := c.node(worker), c.node(manager)
	wrongKey := asTLS(server)
	wrongKey.PrivateKey = asTLS(c.node(manager)).PrivateKey
	old := answering(asTLS(server))
	old.MaxVersion = tls.VersionTLS12
	anyManager := identity.Expect{Role: manager}
	for name, x := range map[string]struct {
		server *tls.Config
		expect identity.Expect
		want   string
	}{
		"another node's ID":           {c.node(manager).ServerTLS(proto), identity.Expect{NodeID: server.NodeID()}, "was expected"},
		"a worker":                    {c.node(worker).ServerTLS(proto), anyManager, "a manager was expected"},
		"the ID, but not the role":    {server.ServerTLS(proto), identity.Expect{NodeID: server.NodeID(), Role: worker}, "a worker was expected"},
		"another cluster's":           {answering(asTLS(other.node(manager))), identity.Expect{}, "unknown authority"},
		"the key of another":          {answering(wrongKey), identity.Expect{}, "invalid signature by the server"},
		"expired":                     {answering(expired(c)), anyManager, "let a node whose certificate has run out join again"},
		"not valid yet":               {answering(asTLS(c.issue(identity.NewID(), manager, day(2)))), anyManager, "compare the clocks"},
		"for clients only":            {answering(c.forge(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })), anyManager, "key usage"},
		"two URIs":                    {answering(c.forge(func(x *x509.Certificate) { x.URIs = []*url.URL{c.uri("manager"), c.uri("manager")} })), anyManager, "has 2 URIs"},
		"no URI":                      {answering(c.forge(func(x *x509.Certificate) { x.URIs, x.DNSNames = nil, []string{"example.org"} })), anyManager, "has 0 URIs"},
		"another cluster in the name": {answering(c.forge(func(x *x509.Certificate) { x.URIs[0] = other.uri("manager") })), anyManager, "this is cluster"},
		"TLS 1.2":                     {old, anyManager, "protocol version"},
	} {
		for kind, cfg := range map[string]*tls.Config{"credentials": client.ClientTLS(x.expect), "current": identity.NewCurrent(client).ClientTLS(x.expect)} {
			cfg.NextProtos = []string{proto}
			if e := shake(t, x.server, cfg); e.sentToServer != "" || !contains(e.client, x.want) {
				t.Errorf("%s, %s: sent %q, the client says %v, want %q", name, kind, e.sentToServer, e.client, x.want)
			}
		}
	}
}

// The secret is sent to a manager of the cluster that the token names, and to nobody else.
func TestJoinSendsItsSecretToManagersOnly(t *testing.T) {
	c, other := newCluster(), newCluster()
	leafOnly := asTLS(c.node(manager))
	leafOnly.Certificate = leafOnly.Certificate[:1]
	// Who has seen the authority's certificate can show it, but has no certificate of it.
	claims := asTLS(other.node(manager))
	claims.Certificate = [][]byte{claims.Certificate[0], c.authority.CertificateDER()}
	itself := tls.Certificate{Certificate: [][]byte{c.authority.CertificateDER(), c.authority.CertificateDER()},
		PrivateKey: must(x509.ParsePKCS8PrivateKey(c.authority.KeyDER()))}
	more := asTLS(c.node(manager))
	more.Certificate = append(more.Certificate[:2:2], other.authority.CertificateDER())
	for name, x := range map[string]struct {
		server *tls.Config
		want   string
	}{
		"a manager":                     {c.node(manager).ServerTLS(proto), ""},
		"a worker":                      {c.node(worker).ServerTLS(proto), "a manager was expected"},
		"another cluster":               {other.node(manager).ServerTLS(proto), "not the one that the token names"},
		"another with the authority":    {answering(claims), "unknown authority"},
		"no authority":                  {answering(leafOnly), "shows 1 certificates"},
		"one too many":                  {answering(more), "shows 3 certificates"},
		"the authority itself":          {answering(itself), ""},
		"expired":                       {answering(expired(c)), "run out"},
		"not valid yet":                 {answering(asTLS(c.issue(identity.NewID(), manager, day(2)))), "clocks"},
		"two URIs":                      {answering(c.forge(func(x *x509.Certificate) { x.URIs = append(x.URIs, c.uri("worker")) })), "2 URIs"},
		"another cluster in its name":   {answering(c.forge(func(x *x509.Certificate) { x.URIs[0] = other.uri("manager") })), "this is cluster"},
		"client's certificate as above": {answering(c.forge(func(x *x509.Certificate) { x.ExtKeyUsage = x.ExtKeyUsage[1:] })), "key usage"},
	} {
		cfg := identity.JoinTLS(c.token())
		cfg.NextProtos = []string{proto}
		e := shake(t, x.server, cfg)
		switch {
		case name == "a manager":
			if !e.heard || e.sentToServer != "secret" {
				t.Errorf("%s: %s", name, e.reason)
			}
		case e.sentToServer != "" || e.client == nil || !contains(e.client, x.want):
			t.Errorf("%s: sent %q, the client says %v, want %q", name, e.sentToServer, e.client, x.want)
		}
	}
	// Of every character of the digest.
	for i := range c.authority.Digest() {
		tok := c.token()
		tok.Digest = string(flip([]byte(tok.Digest), i))
		if e := shake(t, c.node(manager).ServerTLS(proto), identity.JoinTLS(tok)); e.sentToServer != "" || e.client == nil {
			t.Errorf("sent the secret with character %d of the digest changed", i)
		}
	}
}

// A renewed certificate is shown at the next handshake, and who had none is refused until there is one.
func TestCurrentIsLookedUpAtEachHandshake(t *testing.T) {
	c := newCluster()
	srv, cli := new(identity.Current), new(identity.Current)
	server, client := srv.ServerTLS(proto), cli.ClientTLS(identity.Expect{})
	client.NextProtos = []string{proto}
	if e := shake(t, server, client); !errors.Is(e.server, identity.ErrNone) || e.heard {
		t.Errorf("a server without credentials: %s", e.reason)
	}
	for _, role := range []statev1.Role{worker, manager, worker} {
		srv.Store(c.node(role))
		cli.Store(nil)
		if e := shake(t, server, client); !errors.Is(e.client, identity.ErrNone) || e.heard {
			t.Errorf("a client without credentials: %s", e.reason)
		}
		cli.Store(c.node(role))
		e := shake(t, server, client)
		if !e.heard {
			t.Fatal(e.reason)
		}
		atServer, atClient := must(identity.Peer(e.atServer)), must(identity.Peer(e.atClient))
		if atServer.NodeID != cli.Load().NodeID() || atClient.NodeID != srv.Load().NodeID() {
			t.Errorf("old certificates are shown: %v, %v", atServer, atClient)
		}
	}
}

// No session is kept by which a client could come back unchecked.
func TestSessionsAreNotResumed(t *testing.T) {
	c := newCluster()
	client := c.node(worker).ClientTLS(identity.Expect{})
	client.NextProtos, client.ClientSessionCache, client.ServerName = []string{proto}, tls.NewLRUClientSessionCache(4), "x"
	for _, server := range []*tls.Config{c.node(manager).ServerTLS(proto), identity.NewCurrent(c.node(manager)).ServerTLS(proto)} {
		for range 3 {
			if e := shake(t, server, client); !e.heard || e.atClient.DidResume {
				t.Errorf("resumed %v; %s", e.atClient.DidResume, e.reason)
			}
		}
	}
}
