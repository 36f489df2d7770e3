package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

const (
	headerTimeout = 5 * time.Second  // from the start of a request to the end of its header
	readTimeout   = 10 * time.Second // to the end of the request
	writeTimeout  = 30 * time.Second // to the end of the answer
	idleTimeout   = 2 * time.Minute  // between two scrapes on one connection
	maxHeader     = 16 << 10         // bytes of a request's header
	maxScrapes    = 4                // at once; more are told to come back
	endTimeout    = 2 * time.Second  // for scrapes under way when the server ends
)

// Server answers scrapes on one TCP address.
type Server struct {
	ln net.Listener
}

// Listen takes the address, host:port, for scrapes. The error of one that is taken names the process that
// has it, as far as that can be seen.
func Listen(address string) (*Server, error) {
	ln, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return &Server{ln: ln}, nil
	case errors.Is(err, unix.EADDRINUSE):
		owner := "another process"
		if _, port, perr := net.SplitHostPort(address); perr == nil {
			if found := listenerOf(port); found != "" {
				owner = found
			}
		}
		return nil, fmt.Errorf("listen for metrics on %s: %s listens there already: set metrics to another address, or to nothing", address, owner)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen for metrics on %s: no interface of this host has that address: set metrics to one that `ip address` shows", address)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // without the address a second time
	}
	return nil, fmt.Errorf("listen for metrics on %s: %w", address, err)
}

// Addr is the address that the server listens on; its port is the one chosen if 0 was asked for.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Close gives the address up. It is for a Server on which Serve is never called.
func (s *Server) Close() error { return s.ln.Close() }

// Serve answers scrapes from the registry until ctx ends. A Server serves once.
func (s *Server) Serve(ctx context.Context, reg *prometheus.Registry, log *slog.Logger) error {
	errLog := slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: errLog, MaxRequestsInFlight: maxScrapes, EnableOpenMetrics: true,
	}))
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(s.ln) }() // metrics accept
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.Background(), endTimeout)
		defer cancel()
		if srv.Shutdown(end) != nil {
			_ = srv.Close()
		}
		err = <-failed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve metrics on %s: %w", s.Addr(), err)
}
