package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"

	"connectrpc.com/connect"
	"golang.org/x/net/netutil"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1/overlaydv1connect"
)

// Server answers the API for one node.
type Server struct {
	node    Node
	cluster Cluster
	log     *slog.Logger
	stop    chan struct{} // closed when Serve ends, so that streams do
}

// NewServer returns a server for the node, and for the cluster unless that is nil. A nil log is slog.Default().
func NewServer(node Node, cluster Cluster, log *slog.Logger) (*Server, error) {
	if node == nil {
		return nil, errors.New("make the API server: no node to serve")
	}
	if log == nil {
		log = slog.Default()
	}
	return &Server{node: node, cluster: cluster, log: log, stop: make(chan struct{})}, nil
}

// handler serves every service of the API.
func (s *Server) handler() http.Handler {
	common := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxRequest),
		connect.WithCompression("gzip", nil, nil), // nothing to win on a unix socket
		connect.WithRecover(recovered(s.log)),
	}
	mux := http.NewServeMux()
	mux.Handle(overlaydv1connect.NewNodeServiceHandler(nodeService{node: s.node, stop: s.stop},
		slices.Concat(common, jsonCodecs(false))...))
	// What changes something must not pass over what it does not know.
	strict := slices.Concat(common, jsonCodecs(true))
	if s.cluster != nil {
		mux.Handle(overlaydv1connect.NewClusterServiceHandler(clusterService{cluster: s.cluster, log: s.log}, strict...))
	} else {
		mux.Handle(overlaydv1connect.NewClusterServiceHandler(overlaydv1connect.UnimplementedClusterServiceHandler{}, strict...))
	}
	return newLimiter(mux)
}

// httpServer is the server below one call of Serve.
func (s *Server) httpServer() *http.Server {
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true) // gRPC needs HTTP/2
	return srv
}

// Serve answers on the socket until ctx ends, and closes the socket. Requests under way then have two
// seconds; streams end at once. A Server serves once.
func (s *Server) Serve(ctx context.Context, sock *Socket) error {
	defer sock.Close()
	srv := s.httpServer()
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(netutil.LimitListener(sock.ln, maxConnections)) }() // api accept

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	close(s.stop)
	_ = sock.Close() // the name goes first
	end, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if srv.Shutdown(end) != nil {
		_ = srv.Close()
	}
	if err == nil {
		err = <-failed
	}
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve the API on %s: %w", sock.path, err)
}
