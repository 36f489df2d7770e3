package identity

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// ErrNoCertificate says that the other end of a connection has shown no certificate. A host that is about to join
// has none.
var ErrNoCertificate = errors.New("the other end has shown no certificate")

const (
	idBytes = 8 // of an ID; twice as many digits
	scheme  = "overlayd"
)

// NewID returns a random ID for a cluster or a node: 16 lower-case hexadecimal digits.
func NewID() string {
	var b [idBytes]byte
	_, _ = rand.Read(b[:]) // does not fail: it ends the process where there is no randomness
	return hex.EncodeToString(b[:])
}

// Identity is what a certificate says of its node.
type Identity struct {
	ClusterID string // 16 hexadecimal digits
	NodeID    string // 16 hexadecimal digits
	Role      statev1.Role
}

// String is for people: `manager 0123456789abcdef of cluster fedcba9876543210`.
func (i Identity) String() string {
	return fmt.Sprintf("%s %s of cluster %s", roleName(i.Role), i.NodeID, i.ClusterID)
}

// Peer returns who is at the other end of a connection that was made with a TLS configuration of this package: these
// verify the certificate while they shake hands, Peer only reads it. The error is ErrNoCertificate if there is none.
func Peer(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, ErrNoCertificate
	}
	return identityOf(cs.PeerCertificates[0])
}

// uri is the form in which an identity stands in a certificate.
func (i Identity) uri() string {
	return scheme + "://" + i.ClusterID + "/" + roleName(i.Role) + "/" + i.NodeID
}

// check says what is wrong with an identity.
func (i Identity) check() error {
	if err := checkID("cluster", i.ClusterID); err != nil {
		return err
	}
	if err := checkID("node", i.NodeID); err != nil {
		return err
	}
	if i.Role != statev1.Role_ROLE_WORKER && i.Role != statev1.Role_ROLE_MANAGER {
		return fmt.Errorf("the role %v is neither worker nor manager", i.Role)
	}
	return nil
}

// identityOf reads the identity in a certificate. There must be exactly one, in exactly the form that Issue writes:
// of two, another reader might believe the other one.
func identityOf(c *x509.Certificate) (Identity, error) {
	if n := len(c.URIs); n != 1 {
		return Identity{}, fmt.Errorf("the certificate has %d URIs and must have 1, %s://CLUSTER/ROLE/NODE: it was not issued to a node", n, scheme)
	}
	return parseURI(c.URIs[0])
}

func parseURI(u *url.URL) (Identity, error) {
	role, node, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	i := Identity{ClusterID: u.Host, NodeID: node, Role: roleNamed(role)}
	if err := i.check(); err != nil || u.String() != i.uri() {
		return Identity{}, fmt.Errorf("the URI of the certificate is %.100q and should be %s://CLUSTER/ROLE/NODE: it was not issued to a node", u.String(), scheme)
	}
	return i, nil
}

// checkID says what is wrong with the ID of a cluster or node.
func checkID(what, id string) error {
	ok := len(id) == 2*idBytes
	for _, c := range []byte(id) {
		ok = ok && ('0' <= c && c <= '9' || 'a' <= c && c <= 'f')
	}
	if !ok {
		return fmt.Errorf("%.40q is no ID of a %s: one has %d lower-case hexadecimal digits", id, what, 2*idBytes)
	}
	return nil
}

// roleName is how a role is written in a certificate and for people.
func roleName(r statev1.Role) string {
	switch r {
	case statev1.Role_ROLE_WORKER:
		return "worker"
	case statev1.Role_ROLE_MANAGER:
		return "manager"
	}
	return "node of unknown role"
}

func roleNamed(s string) statev1.Role {
	for _, r := range []statev1.Role{statev1.Role_ROLE_WORKER, statev1.Role_ROLE_MANAGER} {
		if roleName(r) == s {
			return r
		}
	}
	return statev1.Role_ROLE_UNSPECIFIED
}
