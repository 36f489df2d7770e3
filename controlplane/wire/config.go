package wire

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// Config says where and how to listen.
type Config struct {
	// Address is where to listen. Without an IP address it is all addresses, and so it is with ::, of both
	// families; 0.0.0.0 is all IPv4 addresses. Port 0 lets the kernel choose.
	Address netip.AddrPort
	// TLS is how to answer. Its GetConfigForClient is asked at each handshake, so that certificates can be renewed.
	// NextProtos, MinVersion and session tickets are set by Listen.
	TLS *tls.Config
	// Protocols are those that are spoken here, as in ALPN. Of several that a client offers, the first one here is taken.
	Protocols []string
	// Check may refuse a connection whose handshake succeeds; its error is logged here, the other end learns only
	// that its certificate was refused. It is called during the handshake, when the other end has not proven yet
	// that the certificate is its own, once more after it, and by Recheck. So it must be quick, may be called by
	// several goroutines, and must not act. Nil refuses none.
	Check func(tls.ConnectionState) error
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// limits are what strangers can occupy.
type limits struct {
	handshakeTime  time.Duration // from accept to the end of the handshake
	handshakeBytes int           // that a client may send until then
	handshakes     int           // at once
	anonymous      int           // connections without a client's certificate after the handshake
	perSource      int           // connections of one source that have not, or not yet, shown a certificate
	backlog        int           // connections of one protocol that nobody has accepted yet
}

// defaultLimits is generous to nodes, whose handshakes take milliseconds: also to many behind one address translator.
func defaultLimits() limits {
	return limits{
		handshakeTime:  10 * time.Second,
		handshakeBytes: 32 << 10, // one with a certificate of ours has some 3,000
		handshakes:     128,
		anonymous:      256,
		perSource:      32,
		backlog:        64,
	}
}

// check says what is wrong with a configuration.
func (c Config) check() error {
	if c.TLS == nil {
		return errors.New("no TLS configuration is given")
	}
	if len(c.Protocols) == 0 {
		return errors.New("no protocol is given")
	}
	for i, p := range c.Protocols {
		if len(p) == 0 || len(p) > 255 || slices.Contains(c.Protocols[:i], p) {
			return fmt.Errorf("the protocol %.40q is empty, twice there, or longer than 255 bytes", p)
		}
	}
	return nil
}
