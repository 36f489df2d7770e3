package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1/overlaydv1connect"
)

// What one caller, and all of them together, may take of the daemon. The memory for requests is bounded by
// maxRequest times maxUnder + maxStreams.
const (
	maxRequest     = 256 << 10        // bytes of one request, or of one message of a stream; they have a few hundred
	maxHeader      = 16 << 10         // bytes of one request's HTTP header
	maxConnections = 512              // those above wait to be accepted
	maxUnder       = 64               // requests under way, besides streams
	maxStreams     = 32               // streams under way
	minRate        = 64 << 10         // bytes a second in which the body of a request has to come, after bodyTimeout
	headerTimeout  = 5 * time.Second  // from the start of a request to the end of its header
	bodyTimeout    = 10 * time.Second // from there to the end of its body
	writeTimeout   = 60 * time.Second // from the header to the end of the answer; for each message of Backup
	idleTimeout    = 2 * time.Minute  // between two requests of a connection
	endTimeout     = 2 * time.Second  // for the requests under way when the server ends
)

// limiter bounds how many requests are served at once, and how long one may occupy the server.
type limiter struct {
	next    http.Handler
	under   chan struct{}
	streams chan struct{}
	errors  *connect.ErrorWriter
}

func newLimiter(next http.Handler) *limiter {
	return &limiter{
		next:    next,
		under:   make(chan struct{}, maxUnder),
		streams: make(chan struct{}, maxStreams),
		errors:  connect.NewErrorWriter(),
	}
}

func (l *limiter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	slots := l.under
	timeout := writeTimeout
	switch r.URL.Path {
	case overlaydv1connect.NodeServiceWatchDropsProcedure:
		slots, timeout = l.streams, 0
	case overlaydv1connect.ClusterServiceBackupProcedure, overlaydv1connect.ClusterServiceRestoreProcedure:
		// How long they take depends on how much there is.
		slots, timeout = l.streams, 0
	}
	rc := http.NewResponseController(w)
	if err := l.bound(w, rc, r, timeout); err != nil {
		http.Error(w, "cannot bound the time of this request: "+err.Error(), http.StatusInternalServerError)
		return
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	default:
		// The error is that of a caller that has gone away.
		_ = l.errors.Write(w, r, Errorf(Exhausted, "", "%d requests are under way already; try again when one has ended", cap(slots)))
		return
	}
	l.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), controllerKey{}, rc)))
	if timeout == 0 {
		// What waits in the buffers of a stream goes out after this. If it cannot be bounded, the connection is gone.
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
}

// bound sets the deadlines of one request. A timeout of 0 is none, for the answer.
func (l *limiter) bound(w http.ResponseWriter, rc *http.ResponseController, r *http.Request, timeout time.Duration) error {
	now := time.Now()
	// The deadline of the request before on this connection has to go in any case.
	var until time.Time
	if timeout > 0 {
		until = now.Add(timeout)
	}
	if err := rc.SetWriteDeadline(until); err != nil {
		return err
	}
	if r.Body == nil || r.Body == http.NoBody {
		// net/http watches the connection already, and would take a deadline that passes for the end of the caller.
		return nil
	}
	body := &pacedBody{ReadCloser: r.Body, header: w.Header(), controller: rc, start: now}
	r.Body = body
	return body.extend()
}

// pacedBody is the body of a request that must come at minRate at least. Behind its end net/http takes the deadline
// away: the request may take longer than its body.
type pacedBody struct {
	io.ReadCloser
	header     http.Header // of the answer
	controller *http.ResponseController
	start      time.Time
	read       int64
}

func (b *pacedBody) extend() error {
	return b.controller.SetReadDeadline(b.start.Add(bodyTimeout + time.Duration(b.read)*time.Second/minRate))
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	if errors.Is(err, io.EOF) {
		return n, err
	}
	if err == nil {
		err = b.extend()
	}
	if err != nil {
		// net/http would take the rest of the body, should it come yet, for the next request.
		b.header.Set("Connection", "close")
	}
	return n, err
}

// bounded runs send, which has the time of writeTimeout. While a stream has nothing to send there is no deadline:
// over HTTP/2 its passing would end the stream.
func bounded(ctx context.Context, send func() error) error {
	rc, ok := ctx.Value(controllerKey{}).(*http.ResponseController)
	if !ok {
		return errors.New("bound the time to send: the request did not come through the server")
	}
	if err := rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("bound the time to send: %w", err)
	}
	if err := send(); err != nil {
		return err
	}
	if err := rc.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("unbound the time to send: %w", err)
	}
	return nil
}

// controllerKey is the key of a request's *http.ResponseController in its context.
type controllerKey struct{}
