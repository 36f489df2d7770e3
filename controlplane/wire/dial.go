package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// dialTime bounds how long Dial takes, whatever its context allows.
const dialTime = 10 * time.Second

// Dial connects to the port of another node, host:port, shakes hands as cfg says, and agrees on the protocol. The
// server looks at the client's certificate after that: its refusal is the error of the first Read.
func Dial(ctx context.Context, address string, cfg *tls.Config, protocol string) (*tls.Conn, error) {
	c, err := dial(ctx, address, cfg, protocol)
	if err != nil {
		return nil, fmt.Errorf("connect to %s for %s: %w", address, protocol, err)
	}
	return c, nil
}

func dial(ctx context.Context, address string, cfg *tls.Config, protocol string) (*tls.Conn, error) {
	if cfg == nil {
		return nil, errors.New("no TLS configuration is given")
	}
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = []string{protocol}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	raw, err := (&net.Dialer{Control: small}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	t := tls.Client(raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	if got := t.ConnectionState().NegotiatedProtocol; got != protocol {
		_ = t.Close()
		return nil, fmt.Errorf("the other end agreed to the protocol %q only: it is no node, or of a release that this one does not know", got)
	}
	return t, nil
}
