package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

const (
	authorityYears = 20
	nodeLife       = 90 * 24 * time.Hour
	// backdate is by how much the clock of a host may be behind that of the manager which issued a certificate.
	backdate = time.Hour
	// maxDER bounds what is read of others, in bytes. A certificate or a request here has some 500.
	maxDER       = 8 << 10
	organization = "overlayd"
)

// Authority is a cluster's certificate authority. Whoever has it can make nodes of any role: only managers do.
type Authority struct {
	cert    *x509.Certificate
	cluster string
	key     *ecdsa.PrivateKey
}

// NewAuthority makes the authority of a new cluster. It is valid for 20 years from now; its certificate names the
// cluster.
func NewAuthority(clusterID string, now time.Time) (*Authority, error) {
	a, err := newAuthority(clusterID, now)
	if err != nil {
		return nil, fmt.Errorf("make the authority of the cluster: %w", err)
	}
	return a, nil
}

func newAuthority(clusterID string, now time.Time) (*Authority, error) {
	if err := checkID("cluster", clusterID); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: clusterID},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(authorityYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it issues to nodes, and to no other authority
	}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return ParseAuthority(certDER, keyDER)
}

// ParseAuthority returns the authority that CertificateDER and KeyDER were taken of. An authority that has expired is
// no error here, but issues nothing.
func ParseAuthority(certDER, keyDER []byte) (*Authority, error) {
	cert, cluster, err := parseAuthorityCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("read the authority of the cluster: %w", err)
	}
	key, err := parseKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("read the key of the authority of cluster %s: %w", cluster, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("read the authority of cluster %s: key and certificate do not belong together", cluster)
	}
	return &Authority{cert: cert, cluster: cluster, key: key}, nil
}

// CertificateDER returns the certificate, X.509 in DER. It is no secret.
func (a *Authority) CertificateDER() []byte { return slices.Clone(a.cert.Raw) }

// KeyDER returns the private key, PKCS 8 in DER. It is not kept in this form: bytes in a struct are what fmt shows of it
// where it cannot ask the type.
func (a *Authority) KeyDER() []byte {
	der, _ := x509.MarshalPKCS8PrivateKey(a.key) // fails for unknown curves only
	return der
}

// ClusterID returns the ID of the cluster.
func (a *Authority) ClusterID() string { return a.cluster }

// Digest returns what tokens name the authority by: SHA-256 of the certificate, 64 hexadecimal digits.
func (a *Authority) Digest() string { return digestOf(a.cert.Raw) }

// Issue returns a certificate for the key of a request (RFC 2986), of which nothing else is believed. It is valid for
// 90 days from now, or as long as the authority is, and for the hour before.
func (a *Authority) Issue(csrDER []byte, nodeID string, role statev1.Role, now time.Time) (certDER []byte, err error) {
	certDER, err = a.issue(csrDER, Identity{ClusterID: a.cluster, NodeID: nodeID, Role: role}, now)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for node %.40q: %w", nodeID, err)
	}
	return certDER, nil
}

func (a *Authority) issue(csrDER []byte, id Identity, now time.Time) ([]byte, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	key, err := requestKey(csrDER)
	if err != nil {
		return nil, err
	}
	if now.Before(a.cert.NotBefore) || !now.Before(a.cert.NotAfter) {
		return nil, fmt.Errorf("the authority of cluster %s is valid from %s to %s, and this host's clock says %s: correct the clock",
			a.cluster, day(a.cert.NotBefore), day(a.cert.NotAfter), day(now))
	}
	uri, err := url.Parse(id.uri())
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: id.NodeID},
		URIs:                  []*url.URL{uri},
		NotBefore:             latest(now.Add(-backdate), a.cert.NotBefore),
		NotAfter:              earliest(now.Add(nodeLife), a.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	return x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
}

// RequestKey checks a certificate request (RFC 2986) as Issue does, and returns the public key in it, PKIX in DER.
func RequestKey(csrDER []byte) (publicKey []byte, err error) {
	key, err := requestKey(csrDER)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key)
}

func requestKey(csrDER []byte) (*ecdsa.PublicKey, error) {
	if len(csrDER) > maxDER {
		return nil, fmt.Errorf("the certificate request has %d bytes, at most %d are read", len(csrDER), maxDER)
	}
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("the certificate request cannot be read: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key of the certificate request is not ECDSA on P-256, as those of nodes are")
	}
	// Only who has the private key can have signed: nobody gets a certificate for the key of another.
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the certificate request is not signed by its own key: %w", err)
	}
	return key, nil
}

// parseAuthorityCertificate reads the certificate of an authority and returns the ID of its cluster.
func parseAuthorityCertificate(der []byte) (cert *x509.Certificate, cluster string, err error) {
	if len(der) > maxDER {
		return nil, "", fmt.Errorf("the certificate of the authority has %d bytes, at most %d are read", len(der), maxDER)
	}
	cert, err = x509.ParseCertificate(der)
	if err != nil {
		return nil, "", fmt.Errorf("the certificate of the authority cannot be read: %w", err)
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage != x509.KeyUsageCertSign:
		return nil, "", errors.New("the certificate is not one of an authority")
	case !ok || key.Curve != elliptic.P256():
		return nil, "", errors.New("the key of the authority is not ECDSA on P-256")
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return nil, "", fmt.Errorf("the certificate of the authority is not signed by its own key: %w", err)
	}
	if err := checkID("cluster", cert.Subject.CommonName); err != nil {
		return nil, "", fmt.Errorf("the certificate of the authority names no cluster: %w", err)
	}
	return cert, cert.Subject.CommonName, nil
}

// digestOf is by what tokens name an authority.
func digestOf(certDER []byte) string {
	sum := sha256.Sum256(certDER)
	return hex.EncodeToString(sum[:])
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// day is how errors write a time.
func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }
