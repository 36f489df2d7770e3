package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1/overlaydv1connect"
)

// maxAnswer bounds one message from the daemon, in bytes. A full page of a forwarding database has about a
// tenth of it.
const maxAnswer = 64 << 20

// Client speaks to the daemon behind one unix socket.
type Client struct {
	overlaydv1connect.NodeServiceClient
	overlaydv1connect.ClusterServiceClient
	http *http.Client
}

// NewClient returns a client for the daemon that listens on the unix socket. It connects with the first
// call; if that fails, the error of the call holds a *DialError.
func NewClient(socket string) *Client {
	hc := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", socket)
			if err != nil && ctx.Err() == nil {
				err = &DialError{Socket: socket, Err: err}
			}
			return conn, err
		},
		DisableCompression: true, // nothing to win on a unix socket
	}}
	opts := []connect.ClientOption{connect.WithReadMaxBytes(maxAnswer), connect.WithAcceptCompression("gzip", nil, nil)}
	return &Client{
		NodeServiceClient:    overlaydv1connect.NewNodeServiceClient(hc, "http://overlayd", opts...),
		ClusterServiceClient: overlaydv1connect.NewClusterServiceClient(hc, "http://overlayd", opts...),
		http:                 hc,
	}
}

// Close ends the connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// FDB walks the whole forwarding database of a network, page by page. It ends with the first error.
func (c *Client) FDB(ctx context.Context, network string) iter.Seq2[*overlaydv1.FDBEntry, error] {
	return func(yield func(*overlaydv1.FDBEntry, error) bool) {
		req := &overlaydv1.ListFDBRequest{Network: network}
		for {
			res, err := c.ListFDB(ctx, req)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, e := range res.Entries {
				if !yield(e, nil) {
					return
				}
			}
			if res.NextPageToken == "" {
				return
			}
			req.PageToken = res.NextPageToken
		}
	}
}

// Endpoints walks the endpoints of a network and a node, page by page; an empty one of these is all of them. It
// ends with the first error.
func (c *Client) Endpoints(ctx context.Context, network, node string) iter.Seq2[*overlaydv1.Endpoint, error] {
	return func(yield func(*overlaydv1.Endpoint, error) bool) {
		req := &overlaydv1.ListEndpointsRequest{Network: network, Node: node}
		for {
			res, err := c.ListEndpoints(ctx, req)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, e := range res.Endpoints {
				if !yield(e, nil) {
					return
				}
			}
			if res.NextPageToken == "" {
				return
			}
			req.PageToken = res.NextPageToken
		}
	}
}

// BackupTo copies a backup of the cluster into w. What w has after an error is of no use.
func (c *Client) BackupTo(ctx context.Context, w io.Writer) error {
	stream, err := c.Backup(ctx, &overlaydv1.BackupRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if _, err := w.Write(stream.Msg().Chunk); err != nil {
			return err
		}
	}
	return stream.Err()
}

// RestoreFrom hands the daemon a backup that r holds.
func (c *Client) RestoreFrom(ctx context.Context, r io.Reader) (*overlaydv1.RestoreResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Restore(ctx)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, MaxChunk)
	for last := false; !last; {
		n, err := io.ReadFull(r, buf)
		last = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			cancel()
			_, _ = stream.CloseAndReceive() // frees what belongs to the stream; the error is that of cancel
			return nil, fmt.Errorf("read the backup: %w", err)
		}
		if stream.Send(&overlaydv1.RestoreRequest{Chunk: buf[:n], Last: last}) != nil {
			break // with io.EOF; the answer has the cause
		}
	}
	return stream.CloseAndReceive()
}

// DialError says that no daemon could be reached on a socket.
type DialError struct {
	Socket string
	Err    error
}

func (e *DialError) Unwrap() error { return e.Err }

func (e *DialError) Error() string {
	switch {
	case errors.Is(e.Err, fs.ErrNotExist):
		return fmt.Sprintf("overlayd is not running here: there is no socket %s; start it, or name the socket of the one that runs", e.Socket)
	case errors.Is(e.Err, unix.ECONNREFUSED):
		return fmt.Sprintf("overlayd is not running here: nobody listens on %s, which an earlier one left; start it, or name the socket of the one that runs", e.Socket)
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("not allowed to use the socket %s%s", e.Socket, whoMay(e.Socket))
	}
	return fmt.Sprintf("connect to overlayd on %s: %v", e.Socket, e.Err)
}

// whoMay says who may use a socket, as far as the caller can see that.
func whoMay(socket string) string {
	const root = ": become root"
	fi, err := os.Stat(socket)
	if err != nil {
		return root
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Gid == 0 {
		return root
	}
	group := strconv.Itoa(int(st.Gid))
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return root + ", or a member of the group " + group
}

// Message returns the part of an error of a Client's call that an operator should read, without the
// wrapping of the transport.
func Message(err error) string {
	if dial, ok := errors.AsType[*DialError](err); ok {
		return dial.Error()
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		return ce.Message()
	}
	return err.Error()
}
