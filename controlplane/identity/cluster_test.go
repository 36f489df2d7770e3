package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

const (
	worker  = statev1.Role_ROLE_WORKER
	manager = statev1.Role_ROLE_MANAGER
)

// must returns the value of a call that cannot fail here.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// cluster is an authority with what can be made of it, good and bad.
type cluster struct {
	authority *identity.Authority
	secret    []byte
}

func newCluster() *cluster {
	return &cluster{must(identity.NewAuthority(identity.NewID(), time.Now())), identity.NewSecret()}
}

// issue makes credentials as of a time.
func (c *cluster) issue(node string, role statev1.Role, now time.Time) *identity.Credentials {
	key := must(identity.NewKey())
	cert := must(c.authority.Issue(must(key.CSR()), node, role, now))
	return must(identity.NewCredentials(key, cert, c.authority.CertificateDER()))
}

func (c *cluster) node(role statev1.Role) *identity.Credentials {
	return c.issue(identity.NewID(), role, time.Now())
}

func (c *cluster) token() identity.Token {
	return must(identity.ParseToken(identity.FormatToken(c.authority.Digest(), c.secret)))
}

// forge signs whatever the authority itself would not, after change has had its way with a good template.
func (c *cluster) forge(change func(*x509.Certificate)) tls.Certificate {
	ca := must(x509.ParseCertificate(c.authority.CertificateDER()))
	caKey := must(x509.ParsePKCS8PrivateKey(c.authority.KeyDER()))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		URIs:      []*url.URL{c.uri("manager")},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	change(template)
	return tls.Certificate{Certificate: [][]byte{must(x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)), ca.Raw}, PrivateKey: key}
}

func (c *cluster) uri(role string) *url.URL {
	return must(url.Parse("overlayd://" + c.authority.ClusterID() + "/" + role + "/" + identity.NewID()))
}

// ends are what a handshake came to.
type ends struct {
	server, client       error
	atServer, atClient   tls.ConnectionState
	heard                bool // the client has got the byte that the server sends to those it has let in
	sentToServer, reason string
}

// shake lets a client meet a server. A client that has no complaint says hello once its handshake is over.
func shake(t *testing.T, server, client *tls.Config) ends {
	t.Helper()
	// Not net.Pipe: the ends of TLS may both write at once.
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	defer ln.Close()
	b := must(net.Dial("tcp", ln.Addr().String()))
	a := must(ln.Accept())
	deadline := time.Now().Add(20 * time.Second)
	_ = a.SetDeadline(deadline)
	_ = b.SetDeadline(deadline)
	var e ends
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer a.Close()
		s := tls.Server(a, server)
		if e.server = s.Handshake(); e.server != nil {
			return
		}
		e.atServer = s.ConnectionState()
		buf := make([]byte, 64)
		n, _ := s.Read(buf)
		e.sentToServer = string(buf[:n])
		_, _ = s.Write([]byte{'+'})
	}()
	c := tls.Client(b, client)
	if e.client = c.Handshake(); e.client == nil {
		e.atClient = c.ConnectionState()
		if _, e.client = c.Write([]byte("secret")); e.client == nil {
			var n int
			n, e.client = c.Read(make([]byte, 1))
			e.heard = n == 1
		}
	}
	_ = b.Close()
	<-done
	for _, err := range []error{e.server, e.client} {
		if err != nil {
			e.reason += err.Error() + "\n"
		}
	}
	return e
}

// contains is for errors.
func contains(err error, want string) bool { return err != nil && strings.Contains(err.Error(), want) }
