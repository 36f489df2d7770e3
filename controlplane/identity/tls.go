package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Expect says who has to be at the other end. The cluster always has to be the own one.
type Expect struct {
	NodeID string       // "" = any node
	Role   statev1.Role // unspecified = any role
}

// ServerTLS returns how a node answers others. A client may come without a certificate, since one that joins has
// none; one that shows a certificate must have a good one. What may be said without is for the protocol to enforce, by
// Peer.
func (c *Credentials) ServerTLS(alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             slices.Clone(alpn),
		Certificates:           []tls.Certificate{*c.certificate()},
		ClientAuth:             tls.VerifyClientCertIfGiven,
		ClientCAs:              c.pool,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return c.verifyPeer(cs, Expect{}, x509.ExtKeyUsageClientAuth)
		},
	}
}

// ClientTLS returns how a node calls another one that it expects. In TLS 1.3 a client is done before the server has
// looked at its certificate: a refusal shows at the first read.
func (c *Credentials) ClientTLS(expect Expect) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Shown whatever authorities the server names: of another cluster's, it shall say no, and not take
		// this node for one without a certificate.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate(), nil },
		// Host names are not in the certificates. All the rest is verified below.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return c.verifyPeer(cs, expect, x509.ExtKeyUsageServerAuth)
		},
	}
}

// JoinTLS returns how a host that has only a token calls a manager. The handshake fails unless the other end is a
// manager of the cluster whose authority the token names, so that nobody else is sent the secret.
func JoinTLS(t Token) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// There are no roots to verify by but what the other end brings along and the token confirms.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) != 2 {
				return fmt.Errorf("verify the cluster: the other end shows %d certificates, and a manager its own and the authority's", len(cs.PeerCertificates))
			}
			leaf, ca := cs.PeerCertificates[0], cs.PeerCertificates[1]
			if err := t.VerifyCA(ca.Raw); err != nil {
				return err
			}
			pool := x509.NewCertPool()
			pool.AddCert(ca)
			id, err := verify(leaf, pool, ca.Subject.CommonName, x509.ExtKeyUsageServerAuth, time.Now())
			if err != nil {
				return fmt.Errorf("verify the manager: %w", err)
			}
			return expectRole(id, statev1.Role_ROLE_MANAGER)
		},
	}
}

// verifyPeer holds the other end of a connection to the own cluster and to what is expected.
func (c *Credentials) verifyPeer(cs tls.ConnectionState, expect Expect, usage x509.ExtKeyUsage) error {
	if len(cs.PeerCertificates) == 0 {
		return ErrNoCertificate
	}
	id, err := verify(cs.PeerCertificates[0], c.pool, c.id.ClusterID, usage, time.Now())
	if err != nil {
		return fmt.Errorf("verify the other end: %w", err)
	}
	if expect.NodeID != "" && id.NodeID != expect.NodeID {
		return fmt.Errorf("verify the other end: it is %v, and node %s was expected: its address may have passed to another host", id, expect.NodeID)
	}
	if expect.Role != statev1.Role_ROLE_UNSPECIFIED {
		return expectRole(id, expect.Role)
	}
	return nil
}

func expectRole(id Identity, role statev1.Role) error {
	if id.Role != role {
		return fmt.Errorf("verify the other end: it is %v, and a %s was expected", id, roleName(role))
	}
	return nil
}

// verify returns who a certificate is of, if the authority in the pool issued it, directly, and it is valid now.
func verify(leaf *x509.Certificate, ca *x509.CertPool, cluster string, usage x509.ExtKeyUsage, now time.Time) (Identity, error) {
	_, err := leaf.Verify(x509.VerifyOptions{Roots: ca, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: now})
	if err != nil {
		return Identity{}, explain(err)
	}
	if leaf.IsCA {
		return Identity{}, errors.New("the certificate is one of an authority and not of a node")
	}
	id, err := identityOf(leaf)
	if err != nil {
		return Identity{}, err
	}
	if id.ClusterID != cluster {
		return Identity{}, fmt.Errorf("it is %v, and this is cluster %s", id, cluster)
	}
	return id, nil
}

// explain adds what an operator can do.
func explain(err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Errorf("%w; compare the clocks of both hosts, and let a node whose certificate has run out join again", err)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("%w; its node is of another cluster", err)
	}
	return err
}
