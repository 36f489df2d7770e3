package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1/overlaydv1connect"
)

// callTimeout bounds one call of a Cluster that is not a stream. It is shorter than writeTimeout, so that the
// caller learns what happened.
const callTimeout = 50 * time.Second

// clusterService implements overlayd.v1.ClusterService: it checks what comes in, and puts what goes out into
// the form that the API promises.
type clusterService struct {
	cluster Cluster
	log     *slog.Logger
}

var _ overlaydv1connect.ClusterServiceHandler = clusterService{}

// call is one unary call of the Cluster.
func call[Req, Res any](ctx context.Context, s clusterService, name string, req *Req, check func(*Req) error, do func(context.Context, *Req) (*Res, error)) (*Res, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := do(ctx, req)
	if err != nil {
		return nil, s.outward(ctx, name, err)
	}
	if res == nil {
		return nil, s.outward(ctx, name, errors.New("the daemon gave no answer: this is a fault of overlayd, please report it"))
	}
	return res, nil
}

// outward makes of an error of the Cluster what the caller is told.
func (s clusterService) outward(ctx context.Context, name string, err error) error {
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		// One that came from a manager over the wire has that connection's headers with it.
		out := connect.NewError(ce.Code(), errors.New(text(err, ce)))
		for _, d := range ce.Details() {
			out.AddDetail(d)
		}
		return out
	}
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return connect.NewError(connect.CodeCanceled, err)
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(Unavailable, "", "no answer in time: %w; look at `overlayctl cluster status` whether it took effect before you try again", err)
	}
	s.log.Error("a request to the cluster failed", "request", name, "error", err)
	return connect.NewError(connect.CodeInternal, err)
}

// text is the message of err, in which ce stands somewhere, without the name of ce's code.
func text(err error, ce *connect.Error) string {
	return strings.Replace(err.Error(), ce.Error(), ce.Message(), 1)
}

// recovered reports a panic as an internal error.
func recovered(log *slog.Logger) func(context.Context, connect.Spec, http.Header, any) error {
	return func(_ context.Context, spec connect.Spec, _ http.Header, cause any) error {
		log.Error("a request made the API panic", "request", spec.Procedure, "panic", cause, "stack", string(debug.Stack()))
		return connect.NewError(connect.CodeInternal, errors.New("a fault of overlayd, please report it; the log has the details"))
	}
}

// unchecked is the check of a request without fields that could be wrong.
func unchecked[Req any](*Req) error { return nil }

func (s clusterService) Init(ctx context.Context, req *overlaydv1.InitRequest) (*overlaydv1.InitResponse, error) {
	return call(ctx, s, "Init", req, checkInit, s.cluster.Init)
}

func (s clusterService) Join(ctx context.Context, req *overlaydv1.JoinRequest) (*overlaydv1.JoinResponse, error) {
	return call(ctx, s, "Join", req, checkJoin, s.cluster.Join)
}

func (s clusterService) Leave(ctx context.Context, req *overlaydv1.LeaveRequest) (*overlaydv1.LeaveResponse, error) {
	return call(ctx, s, "Leave", req, unchecked, s.cluster.Leave)
}

func (s clusterService) GetTokens(ctx context.Context, req *overlaydv1.GetTokensRequest) (*overlaydv1.GetTokensResponse, error) {
	return call(ctx, s, "GetTokens", req, checkGetTokens, s.cluster.GetTokens)
}

func (s clusterService) RotateToken(ctx context.Context, req *overlaydv1.RotateTokenRequest) (*overlaydv1.RotateTokenResponse, error) {
	return call(ctx, s, "RotateToken", req, checkRotateToken, s.cluster.RotateToken)
}

func (s clusterService) ListNodes(ctx context.Context, req *overlaydv1.ListNodesRequest) (*overlaydv1.ListNodesResponse, error) {
	return call(ctx, s, "ListNodes", req, unchecked, s.cluster.ListNodes)
}

func (s clusterService) GetNode(ctx context.Context, req *overlaydv1.GetNodeRequest) (*overlaydv1.GetNodeResponse, error) {
	return call(ctx, s, "GetNode", req, checkGetNode, s.cluster.GetNode)
}

func (s clusterService) UpdateNode(ctx context.Context, req *overlaydv1.UpdateNodeRequest) (*overlaydv1.UpdateNodeResponse, error) {
	return call(ctx, s, "UpdateNode", req, checkUpdateNode, s.cluster.UpdateNode)
}

func (s clusterService) RemoveNode(ctx context.Context, req *overlaydv1.RemoveNodeRequest) (*overlaydv1.RemoveNodeResponse, error) {
	return call(ctx, s, "RemoveNode", req, checkRemoveNode, s.cluster.RemoveNode)
}

func (s clusterService) CreateNetwork(ctx context.Context, req *overlaydv1.CreateNetworkRequest) (*overlaydv1.CreateNetworkResponse, error) {
	return call(ctx, s, "CreateNetwork", req, checkCreateNetwork, s.cluster.CreateNetwork)
}

func (s clusterService) ListClusterNetworks(ctx context.Context, req *overlaydv1.ListClusterNetworksRequest) (*overlaydv1.ListClusterNetworksResponse, error) {
	return call(ctx, s, "ListClusterNetworks", req, unchecked, s.cluster.ListClusterNetworks)
}

func (s clusterService) GetNetwork(ctx context.Context, req *overlaydv1.GetNetworkRequest) (*overlaydv1.GetNetworkResponse, error) {
	return call(ctx, s, "GetNetwork", req, checkGetNetwork, s.cluster.GetNetwork)
}

func (s clusterService) RemoveNetwork(ctx context.Context, req *overlaydv1.RemoveNetworkRequest) (*overlaydv1.RemoveNetworkResponse, error) {
	return call(ctx, s, "RemoveNetwork", req, checkRemoveNetwork, s.cluster.RemoveNetwork)
}

func (s clusterService) AddEndpoint(ctx context.Context, req *overlaydv1.AddEndpointRequest) (*overlaydv1.AddEndpointResponse, error) {
	return call(ctx, s, "AddEndpoint", req, checkAddEndpoint, s.cluster.AddEndpoint)
}

func (s clusterService) ListEndpoints(ctx context.Context, req *overlaydv1.ListEndpointsRequest) (*overlaydv1.ListEndpointsResponse, error) {
	return call(ctx, s, "ListEndpoints", req, checkListEndpoints, s.cluster.ListEndpoints)
}

func (s clusterService) RemoveEndpoint(ctx context.Context, req *overlaydv1.RemoveEndpointRequest) (*overlaydv1.RemoveEndpointResponse, error) {
	return call(ctx, s, "RemoveEndpoint", req, checkRemoveEndpoint, s.cluster.RemoveEndpoint)
}

func (s clusterService) GetClusterStatus(ctx context.Context, req *overlaydv1.GetClusterStatusRequest) (*overlaydv1.GetClusterStatusResponse, error) {
	return call(ctx, s, "GetClusterStatus", req, unchecked, s.cluster.GetClusterStatus)
}

func (s clusterService) Backup(ctx context.Context, _ *overlaydv1.BackupRequest, stream *connect.ServerStream[overlaydv1.BackupResponse]) error {
	w := &chunkWriter{ctx: ctx, stream: stream}
	err := s.cluster.Backup(ctx, w)
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return s.outward(ctx, "Backup", err)
	}
	return nil
}

func (s clusterService) Restore(ctx context.Context, stream *connect.ClientStream[overlaydv1.RestoreRequest]) (*overlaydv1.RestoreResponse, error) {
	r := &chunkReader{stream: stream}
	res, err := s.cluster.Restore(ctx, r)
	if r.fault != nil {
		// That of the stream says more than what the Cluster made of it.
		return nil, r.fault
	}
	if err == nil && res == nil {
		err = errors.New("the daemon gave no answer: this is a fault of overlayd, please report it")
	}
	if err != nil {
		return nil, s.outward(ctx, "Restore", err)
	}
	return res, nil
}

// chunkWriter sends what is written to it in chunks of MaxChunk.
type chunkWriter struct {
	ctx    context.Context // of the request
	stream *connect.ServerStream[overlaydv1.BackupResponse]
	buf    []byte
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(MaxChunk-len(w.buf), len(p))
		w.buf, p = append(w.buf, p[:k]...), p[k:]
		if len(w.buf) == MaxChunk {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush sends what waits.
func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := bounded(w.ctx, func() error { return w.stream.Send(&overlaydv1.BackupResponse{Chunk: w.buf}) })
	w.buf = w.buf[:0]
	return err
}

// chunkReader reads what comes in chunks.
type chunkReader struct {
	stream *connect.ClientStream[overlaydv1.RestoreRequest]
	rest   []byte
	any    bool  // something came
	last   bool  // nothing more will
	fault  error // of the request
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.rest) == 0 {
		if r.fault == nil {
			r.fault = r.next()
		}
		if r.fault != nil {
			return 0, r.fault
		}
		if r.last && len(r.rest) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next takes the next chunk, if there is one.
func (r *chunkReader) next() error {
	if r.last {
		return nil
	}
	if !r.stream.Receive() {
		if err := r.stream.Err(); err != nil {
			return err
		}
		return Errorf(Invalid, "last", "the stream ended before the backup; send all of it, with last set in the end")
	}
	msg := r.stream.Msg()
	r.rest, r.last = msg.Chunk, msg.Last
	r.any = r.any || len(r.rest) > 0
	switch {
	case len(r.rest) > MaxChunk:
		return Errorf(Invalid, "chunk", "%d bytes are too many; send at most %d at once", len(r.rest), MaxChunk)
	case r.last && !r.any:
		return Errorf(Invalid, "chunk", "the backup is empty; send what Backup gave")
	}
	return nil
}
