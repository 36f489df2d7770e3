package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Key is the private key of a node. It keeps it for as long as it is a member.
type Key struct{ private *ecdsa.PrivateKey }

// NewKey makes the key of a new node.
func NewKey() (*Key, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &Key{private: k}, nil
}

// CSR returns a certificate request for the key (RFC 2986), in DER. It says nothing else: who the node is, the
// manager that issues knows better.
func (k *Key) CSR() ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), k.private)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return csr, nil
}

// Credentials are what a node shows to others: its key, the certificate for it, and the authority's certificate. They
// do not change; renewal makes new ones.
type Credentials struct {
	id   Identity
	key  *Key
	leaf *x509.Certificate
	ca   *x509.Certificate
	pool *x509.CertPool // holds ca
}

// NewCredentials joins a key with the certificate that was issued for it and with that of the authority which did.
// Credentials that have expired are no error here: their node still knows who it is, though nobody else believes it.
func NewCredentials(key *Key, certDER, caDER []byte) (*Credentials, error) {
	c, err := newCredentials(key, certDER, caDER)
	if err != nil {
		return nil, fmt.Errorf("check the credentials of the node: %w", err)
	}
	return c, nil
}

func newCredentials(key *Key, certDER, caDER []byte) (*Credentials, error) {
	ca, cluster, err := parseAuthorityCertificate(caDER)
	if err != nil {
		return nil, err
	}
	if len(certDER) > maxDER {
		return nil, fmt.Errorf("the certificate has %d bytes, at most %d are read", len(certDER), maxDER)
	}
	leaf, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("the certificate cannot be read: %w", err)
	}
	c := &Credentials{key: key, leaf: leaf, ca: ca, pool: x509.NewCertPool()}
	c.pool.AddCert(ca)
	// At the one moment at which both are valid if they are ever.
	if c.id, err = verify(leaf, c.pool, cluster, x509.ExtKeyUsageAny, latest(leaf.NotBefore, ca.NotBefore)); err != nil {
		return nil, err
	}
	if key == nil || !key.private.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("key and certificate do not belong together")
	}
	return c, nil
}

// Renewed returns the credentials with a new certificate for the same key. The node, the cluster and the authority
// must be the same; the role may be another one.
func (c *Credentials) Renewed(certDER, caDER []byte) (*Credentials, error) {
	n, err := NewCredentials(c.key, certDER, caDER)
	if err != nil {
		return nil, err
	}
	switch {
	case !n.ca.Equal(c.ca):
		return nil, fmt.Errorf("renew the certificate of node %s: the new one is of another authority", c.id.NodeID)
	case n.id.NodeID != c.id.NodeID:
		return nil, fmt.Errorf("renew the certificate of node %s: the new one is that of node %s", c.id.NodeID, n.id.NodeID)
	}
	return n, nil
}

// CSR returns a request for the next certificate of the same key, in DER.
func (c *Credentials) CSR() ([]byte, error) { return c.key.CSR() }

// NodeID returns the ID of the node.
func (c *Credentials) NodeID() string { return c.id.NodeID }

// ClusterID returns the ID of the cluster.
func (c *Credentials) ClusterID() string { return c.id.ClusterID }

// Role returns the role that the certificate gives.
func (c *Credentials) Role() statev1.Role { return c.id.Role }

// NotAfter returns when the certificate expires.
func (c *Credentials) NotAfter() time.Time { return c.leaf.NotAfter }

// RenewAt returns when the certificate is to be renewed: at 50 to 80 % of its life. Where between them is a property of
// the certificate, so that a restart does not put it off, and nodes that joined together do not renew together.
func (c *Credentials) RenewAt() time.Time {
	sum := sha256.Sum256(c.leaf.Raw)
	spread := float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32) // [0, 1)
	life := c.leaf.NotAfter.Sub(c.leaf.NotBefore)
	return c.leaf.NotBefore.Add(time.Duration(float64(life) * (0.5 + 0.3*spread)))
}

// PublicKey returns the public key of the node, PKIX in DER, as VerifySignature takes it.
func (c *Credentials) PublicKey() []byte { return slices.Clone(c.leaf.RawSubjectPublicKeyInfo) }

// CertificateDER returns the certificate of the node, X.509 in DER.
func (c *Credentials) CertificateDER() []byte { return slices.Clone(c.leaf.Raw) }

// AuthorityDER returns the certificate of the cluster's authority, X.509 in DER.
func (c *Credentials) AuthorityDER() []byte { return slices.Clone(c.ca.Raw) }

// certificate is what TLS shows: the authority's certificate goes along for those that know only its digest.
func (c *Credentials) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{c.leaf.Raw, c.ca.Raw}, PrivateKey: c.key.private, Leaf: c.leaf}
}
