package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
)

func TestNewIDIsWellFormedAndNew(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := identity.NewID()
		if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(id) || seen[id] {
			t.Fatalf("ID %q", id)
		}
		seen[id] = true
	}
}

func TestAuthoritySurvivesItsStorage(t *testing.T) {
	id, now := identity.NewID(), time.Now()
	a := must(identity.NewAuthority(id, now))
	b := must(identity.ParseAuthority(a.CertificateDER(), a.KeyDER()))
	if b.ClusterID() != id || b.Digest() != a.Digest() || !bytes.Equal(a.KeyDER(), b.KeyDER()) {
		t.Errorf("%v became %v", a, b)
	}
	cert := must(x509.ParseCertificate(b.CertificateDER()))
	if got, want := cert.NotAfter, now.AddDate(20, 0, 0); got.Sub(want).Abs() > time.Second {
		t.Errorf("valid until %v, want %v", got, want)
	}
	// What is handed out is the caller's to change.
	a.KeyDER()[20] ^= 1
	a.CertificateDER()[20] ^= 1
	if a.Digest() != b.Digest() || !bytes.Equal(a.KeyDER(), b.KeyDER()) {
		t.Error("a caller changed the authority")
	}
}

func TestAuthorityRefusesWhatDoesNotFit(t *testing.T) {
	a, b := newCluster(), newCluster()
	leaf := a.node(manager).CertificateDER()
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, c := range map[string]struct {
		cert, key []byte
		want      string
	}{
		"another's key":    {a.authority.CertificateDER(), b.authority.KeyDER(), "do not belong together"},
		"no key":           {a.authority.CertificateDER(), nil, "the key cannot be read"},
		"key cut short":    {a.authority.CertificateDER(), a.authority.KeyDER()[:60], "the key cannot be read"},
		"a long key":       {a.authority.CertificateDER(), make([]byte, 9000), "9000 bytes"},
		"Ed25519":          {a.authority.CertificateDER(), must(x509.MarshalPKCS8PrivateKey(ed)), "not ECDSA on P-256"},
		"no certificate":   {nil, a.authority.KeyDER(), "cannot be read"},
		"a long one":       {make([]byte, 9000), a.authority.KeyDER(), "9000 bytes"},
		"a node's":         {leaf, a.authority.KeyDER(), "not one of an authority"},
		"signature broken": {flip(a.authority.CertificateDER(), -3), a.authority.KeyDER(), "not signed by its own key"},
	} {
		if _, err := identity.ParseAuthority(c.cert, c.key); !contains(err, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, id := range []string{"", "0123", "0123456789ABCDEF", "0123456789abcdeg", "0123456789abcdef0", "../../../../../.."} {
		if _, err := identity.NewAuthority(id, time.Now()); !contains(err, "no ID of a cluster") {
			t.Errorf("cluster ID %q: %v", id, err)
		}
	}
}

// flip changes one byte of a copy; negative positions count from the end.
func flip(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[(at+len(b))%len(b)] ^= 1
	return b
}

func TestIssuedCertificate(t *testing.T) {
	c := newCluster()
	now := time.Now().Truncate(time.Second)
	for role, name := range map[statev1.Role]string{worker: "worker", manager: "manager"} {
		creds := c.issue("00112233445566ff", role, now)
		if creds.NodeID() != "00112233445566ff" || creds.Role() != role || creds.ClusterID() != c.authority.ClusterID() {
			t.Errorf("%v", creds)
		}
		cert := must(x509.ParseCertificate(creds.CertificateDER()))
		if got, want := cert.URIs[0].String(), "overlayd://"+c.authority.ClusterID()+"/"+name+"/00112233445566ff"; got != want || len(cert.URIs) != 1 {
			t.Errorf("URIs %v, want %s", cert.URIs, want)
		}
		if !cert.NotBefore.Equal(now.Add(-time.Hour)) && role == worker || !cert.NotAfter.Equal(now.Add(90*24*time.Hour)) || !creds.NotAfter().Equal(cert.NotAfter) {
			t.Errorf("valid from %v to %v, now is %v", cert.NotBefore, cert.NotAfter, now)
		}
		if cert.IsCA || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 {
			t.Error("it says more than it should")
		}
	}
}

// A request says what it likes; only its key is taken.
func TestIssueBelievesNothingButTheKey(t *testing.T) {
	c := newCluster()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ca := must(asn1.Marshal(struct{ IsCA bool }{true}))
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"example.org"}, URIs: []*url.URL{c.uri("manager")},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: ca}},
	}, key))
	cert := must(x509.ParseCertificate(must(c.authority.Issue(csr, identity.NewID(), worker, time.Now()))))
	if cert.IsCA || len(cert.DNSNames) != 0 || len(cert.URIs) != 1 || cert.Subject.CommonName == "root" || regexp.MustCompile("manager").MatchString(cert.URIs[0].Path) {
		t.Errorf("issued %v, URIs %v, names %v, authority %v", cert.Subject, cert.URIs, cert.DNSNames, cert.IsCA)
	}
}

func TestIssueRefuses(t *testing.T) {
	c := newCluster()
	good := must(must(identity.NewKey()).CSR())
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	other := must(x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), p384))
	id, now := identity.NewID(), time.Now()
	for name, x := range map[string]struct {
		csr  []byte
		id   string
		role statev1.Role
		now  time.Time
		want string
	}{
		"no request":     {nil, id, worker, now, "cannot be read"},
		"a huge request": {make([]byte, 1<<20), id, worker, now, "at most 8192 are read"},
		"another curve":  {other, id, worker, now, "not ECDSA on P-256"},
		"not its key":    {flip(good, -2), id, worker, now, "not signed by its own key"},
		"no ID":          {good, "", worker, now, "no ID of a node"},
		"ID of a path":   {good, "../manager/0000000", worker, now, "no ID of a node"},
		"no role":        {good, id, 0, now, "neither worker nor manager"},
		"a strange role": {good, id, 7, now, "neither worker nor manager"},
		"expired":        {good, id, worker, now.AddDate(21, 0, 0), "correct the clock"},
		"before its day": {good, id, worker, now.AddDate(-1, 0, 0), "correct the clock"},
	} {
		if _, err := c.authority.Issue(x.csr, x.id, x.role, x.now); !contains(err, x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
		if x.id == id && x.role == worker && x.now.Equal(now) {
			if _, err := identity.RequestKey(x.csr); !contains(err, x.want) {
				t.Errorf("%s: RequestKey says %v, want %q", name, err, x.want)
			}
		}
	}
	// At the end of its life the authority gives no more than it has.
	late := c.issue(id, worker, now.AddDate(20, 0, -1))
	if ca := must(x509.ParseCertificate(c.authority.CertificateDER())); late.NotAfter().After(ca.NotAfter) {
		t.Errorf("the certificate is valid until %v, its authority until %v", late.NotAfter(), ca.NotAfter)
	}
}

func TestRequestKeyIsTheNodes(t *testing.T) {
	creds := newCluster().node(worker)
	if key := must(identity.RequestKey(must(creds.CSR()))); !bytes.Equal(key, creds.PublicKey()) {
		t.Error("the key of the request is not the node's")
	}
}

func TestNewCredentialsRefuse(t *testing.T) {
	a, b := newCluster(), newCluster()
	key := must(identity.NewKey())
	cert := must(a.authority.Issue(must(key.CSR()), identity.NewID(), worker, time.Now()))
	ca := a.authority.CertificateDER()
	for name, c := range map[string]struct {
		key      *identity.Key
		cert, ca []byte
		want     string
	}{
		"no key":            {nil, cert, ca, "do not belong together"},
		"another key":       {must(identity.NewKey()), cert, ca, "do not belong together"},
		"another authority": {key, cert, b.authority.CertificateDER(), "unknown authority"},
		"node as authority": {key, cert, cert, "not one of an authority"},
		"authority as node": {key, ca, ca, "not of a node"},
		"no certificate":    {key, nil, ca, "cannot be read"},
		"damaged":           {key, flip(cert, -2), ca, "unknown authority"},
	} {
		if _, err := identity.NewCredentials(c.key, c.cert, c.ca); !contains(err, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestRenewed(t *testing.T) {
	a, b := newCluster(), newCluster()
	old := a.issue("00112233445566ff", worker, time.Now().Add(-60*24*time.Hour).Add(61*24*time.Hour))
	csr := must(old.CSR())
	// The role may change, the key stays.
	n := must(old.Renewed(must(a.authority.Issue(csr, "00112233445566ff", manager, time.Now())), a.authority.CertificateDER()))
	if n.Role() != manager || n.NodeID() != old.NodeID() || !bytes.Equal(n.PublicKey(), old.PublicKey()) {
		t.Errorf("%v was renewed as %v", old, n)
	}
	for want, cert := range map[string][]byte{
		"that of node ffffffffffffffff": must(a.authority.Issue(csr, "ffffffffffffffff", worker, time.Now())),
		"do not belong together":        a.node(worker).CertificateDER(),
		"unknown authority":             must(b.authority.Issue(csr, "00112233445566ff", worker, time.Now())),
	} {
		if _, err := old.Renewed(cert, a.authority.CertificateDER()); !contains(err, want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := old.Renewed(must(b.authority.Issue(csr, "00112233445566ff", worker, time.Now())), b.authority.CertificateDER()); !contains(err, "another authority") {
		t.Errorf("%v", err)
	}
}

func TestRenewAt(t *testing.T) {
	c := newCluster()
	now := time.Now()
	var least, most float64 = 1, 0
	for range 200 {
		creds := c.issue(identity.NewID(), worker, now.Add(24*time.Hour))
		cert := must(x509.ParseCertificate(creds.CertificateDER()))
		part := float64(creds.RenewAt().Sub(cert.NotBefore)) / float64(cert.NotAfter.Sub(cert.NotBefore))
		least, most = min(least, part), max(most, part)
		if !creds.RenewAt().Equal(creds.RenewAt()) {
			t.Fatal("it changes its mind")
		}
	}
	if least < 0.5 || most > 0.8 || least > 0.53 || most < 0.77 {
		t.Errorf("200 nodes renew between %.3f and %.3f of their certificates' lives, want 0.5 to 0.8", least, most)
	}
}

func TestSignatures(t *testing.T) {
	c := newCluster()
	a, b := c.node(manager), c.node(manager)
	data := []byte("a batch")
	sig := must(a.Sign(data))
	if err := identity.VerifySignature(a.PublicKey(), data, sig); err != nil {
		t.Error(err)
	}
	// As state.proto defines it, and not only the inverse of itself.
	sum := sha256.Sum256([]byte("overlayd batch 1\x00a batch"))
	if !ecdsa.VerifyASN1(must(x509.ParsePKIXPublicKey(a.PublicKey())).(*ecdsa.PublicKey), sum[:], sig) {
		t.Error("the signature is not one over SHA-256 of the context and the data")
	}
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	for name, x := range map[string]struct{ key, data, sig []byte }{
		"another's key":    {b.PublicKey(), data, sig},
		"other data":       {a.PublicKey(), flip(data, 0), sig},
		"more data":        {a.PublicKey(), append([]byte("overlayd batch 1\x00"), data...), sig},
		"damaged":          {a.PublicKey(), data, flip(sig, -1)},
		"none":             {a.PublicKey(), data, nil},
		"a huge one":       {a.PublicKey(), data, make([]byte, 1<<20)},
		"no key":           {nil, data, sig},
		"another curve":    {must(x509.MarshalPKIXPublicKey(&p384.PublicKey)), data, sig},
		"without context":  {a.PublicKey(), nil, sig},
		"a certificate as": {a.CertificateDER(), data, sig},
	} {
		if err := identity.VerifySignature(x.key, x.data, x.sig); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for i := range sig {
		if identity.VerifySignature(a.PublicKey(), data, flip(sig, i)) == nil {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
}
