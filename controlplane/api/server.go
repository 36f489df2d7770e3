package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1/overlaydv1connect"
)

const (
	maxRequest    = 1 << 20          // bytes of one request; every request there is has a few hundred
	maxHeader     = 16 << 10         // bytes of one request's HTTP header
	headerTimeout = 5 * time.Second  // from the start of a request to the end of its header
	bodyTimeout   = 10 * time.Second // from there to the end of its body
	writeTimeout  = 60 * time.Second // from the header to the end of the answer; a stream has none
	idleTimeout   = 2 * time.Minute  // between two requests of a connection
	endTimeout    = 2 * time.Second  // for the requests under way when the server ends
)

// Server answers the API for one node.
type Server struct {
	node Node
	log  *slog.Logger
	stop chan struct{} // closed when Serve ends, so that streams do
}

// NewServer returns a server for the node. A nil log is slog.Default().
func NewServer(node Node, log *slog.Logger) (*Server, error) {
	if node == nil {
		return nil, errors.New("make the API server: no node to serve")
	}
	if log == nil {
		log = slog.Default()
	}
	return &Server{node: node, log: log, stop: make(chan struct{})}, nil
}

// handler serves every service of the API.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(overlaydv1connect.NewNodeServiceHandler(nodeService{node: s.node, stop: s.stop},
		connect.WithReadMaxBytes(maxRequest),
		connect.WithCompression("gzip", nil, nil), // nothing to win on a unix socket
		connect.WithCodec(jsonCodec{name: "json"}),
		connect.WithCodec(jsonCodec{name: "json; charset=utf-8"}),
	))
	return deadlines(mux)
}

// deadlines bounds how long one request may occupy the server.
func deadlines(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc, now := http.NewResponseController(w), time.Now()
		var err error
		if r.URL.Path == overlaydv1connect.NodeServiceWatchDropsProcedure {
			// No read deadline either: net/http takes its passing for the end of the caller. The write
			// deadline of the request before on this connection has to go.
			err = rc.SetWriteDeadline(time.Time{})
		} else {
			err = errors.Join(rc.SetReadDeadline(now.Add(bodyTimeout)), rc.SetWriteDeadline(now.Add(writeTimeout)))
		}
		if err != nil {
			http.Error(w, "cannot bound the time of this request: "+err.Error(), http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Serve answers on the socket until ctx ends, and closes the socket. Requests under way then have two
// seconds; streams end at once. A Server serves once.
func (s *Server) Serve(ctx context.Context, sock *Socket) error {
	defer sock.Close()
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

	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(sock.ln) }() // api accept

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
