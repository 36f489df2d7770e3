package identity

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync/atomic"
)

// Current holds the credentials that are in use. Its TLS configurations look them up at each handshake, so that a
// renewed certificate needs no new listener. The zero value holds none.
type Current struct{ now atomic.Pointer[Credentials] }

// NewCurrent returns a holder of c, which may be nil.
func NewCurrent(c *Credentials) *Current {
	h := new(Current)
	h.Store(c)
	return h
}

// Load returns the credentials in use, nil if there are none.
func (c *Current) Load() *Credentials { return c.now.Load() }

// Store puts other credentials into use, or none. Connections that are up stay.
func (c *Current) Store(creds *Credentials) { c.now.Store(creds) }

// ServerTLS is Credentials.ServerTLS of what is in use at each handshake. Without credentials every handshake fails,
// with ErrNone.
func (c *Current) ServerTLS(alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             slices.Clone(alpn),
		SessionTicketsDisabled: true,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			now := c.Load()
			if now == nil {
				return nil, ErrNone
			}
			return now.ServerTLS(alpn...), nil
		},
	}
}

// ClientTLS is Credentials.ClientTLS of what is in use at each handshake. Without credentials every handshake fails,
// with ErrNone.
func (c *Current) ClientTLS(expect Expect) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // as in Credentials.ClientTLS
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			now := c.Load()
			if now == nil {
				return nil, ErrNone
			}
			return now.certificate(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			now := c.Load()
			if now == nil {
				return ErrNone
			}
			return now.verifyPeer(cs, expect, x509.ExtKeyUsageServerAuth)
		},
	}
}
