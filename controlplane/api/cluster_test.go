package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/apitest"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// TestErrors sends each kind of error over the wire.
func TestErrors(t *testing.T) {
	cluster := apitest.NewCluster(time.Unix(0, 0), clusterContent())
	_, socket := serveCluster(t, cluster)
	c := client(t, socket)
	for kind, code := range map[api.Kind]connect.Code{
		api.Invalid: connect.CodeInvalidArgument, api.NotFound: connect.CodeNotFound, api.Exists: connect.CodeAlreadyExists,
		api.Conflict: connect.CodeAborted, api.Exhausted: connect.CodeResourceExhausted, api.InUse: connect.CodeFailedPrecondition,
		api.Refused: connect.CodeFailedPrecondition, api.Unavailable: connect.CodeUnavailable, api.NotMember: connect.CodeFailedPrecondition,
	} {
		for _, wrapped := range []bool{false, true} {
			err := api.Errorf(kind, "node", "what is %s; what to do", "wrong")
			want := "node: what is wrong; what to do"
			if wrapped {
				err, want = fmt.Errorf("ask a manager: %w", err), "ask a manager: "+want
			}
			cluster.Fail(err)
			_, err = c.GetNode(t.Context(), &overlaydv1.GetNodeRequest{Node: "h1"})
			gotKind, field := api.Info(err)
			if connect.CodeOf(err) != code || gotKind != kind || field != "node" || api.Message(err) != want {
				t.Errorf("%v: code %v, kind %v, field %q, %q, want %q", kind, connect.CodeOf(err), gotKind, field, api.Message(err), want)
			}
		}
	}
	for _, c2 := range []struct {
		err  error
		code connect.Code
		kind api.Kind
	}{
		{errors.New("the disk is on fire"), connect.CodeInternal, 0},
		{fmt.Errorf("ask: %w", context.DeadlineExceeded), connect.CodeUnavailable, api.Unavailable},
	} {
		cluster.Fail(c2.err)
		_, err := c.GetNode(t.Context(), &overlaydv1.GetNodeRequest{Node: "h1"})
		if kind, _ := api.Info(err); connect.CodeOf(err) != c2.code || kind != c2.kind || !strings.Contains(err.Error(), c2.err.Error()) {
			t.Errorf("%v became %v", c2.err, err)
		}
	}
	if kind, field := api.Info(errors.New("plain")); kind != overlaydv1.ErrorInfo_KIND_UNSPECIFIED || field != "" {
		t.Errorf("a plain error is of the kind %v, field %q", kind, field)
	}
	sentinel := errors.New("sentinel")
	if err := api.Errorf(api.Refused, "", "no: %w", sentinel); !errors.Is(err, sentinel) || api.Message(err) != "no: sentinel" {
		t.Errorf("Errorf lost what it wraps: %v", err)
	}
}

// TestKindsMatch compares the kinds of the API with those of the replicated state, which are cast to them.
func TestKindsMatch(t *testing.T) {
	for name, n := range overlaydv1.ErrorInfo_Kind_value {
		if want := statev1.Error_Kind_value[name]; n <= int32(api.Refused) && want != n {
			t.Errorf("%s is %d here and %d there", name, n, want)
		}
	}
}

// canonical is a Cluster that shows what came in.
type canonical struct {
	api.Cluster
	got chan proto.Message
}

func (c canonical) CreateNetwork(_ context.Context, req *overlaydv1.CreateNetworkRequest) (*overlaydv1.CreateNetworkResponse, error) {
	c.got <- req
	return &overlaydv1.CreateNetworkResponse{}, nil
}

func (c canonical) AddEndpoint(_ context.Context, req *overlaydv1.AddEndpointRequest) (*overlaydv1.AddEndpointResponse, error) {
	c.got <- req
	return &overlaydv1.AddEndpointResponse{}, nil
}

func (c canonical) Init(_ context.Context, req *overlaydv1.InitRequest) (*overlaydv1.InitResponse, error) {
	c.got <- req
	return &overlaydv1.InitResponse{}, nil
}

func (c canonical) ListEndpoints(_ context.Context, req *overlaydv1.ListEndpointsRequest) (*overlaydv1.ListEndpointsResponse, error) {
	c.got <- req
	return &overlaydv1.ListEndpointsResponse{}, nil
}

// TestCanonicalForm shows that a Cluster sees one form of everything.
func TestCanonicalForm(t *testing.T) {
	c := canonical{got: make(chan proto.Message, 1)}
	hc, _ := serveCluster(t, c)
	for _, x := range []struct {
		method, body string
		want         proto.Message
	}{
		{"CreateNetwork", `{"name":"red","subnets":["2001:DB8:0::/64","10.1.0.0/24"],"gateways":["10.1.0.1"]}`,
			&overlaydv1.CreateNetworkRequest{Name: "red", Subnets: []string{"2001:db8::/64", "10.1.0.0/24"}, Gateways: []string{"", "10.1.0.1"}}},
		{"CreateNetwork", `{"name":"red","subnets":["10.1.0.0/30"]}`, &overlaydv1.CreateNetworkRequest{Name: "red", Subnets: []string{"10.1.0.0/30"}}},
		{"AddEndpoint", `{"network":"blue","netns":"/proc/4711/ns/net","ips":["2001:DB8::0010"],"mac":"02-AB-00-00-00-01"}`,
			&overlaydv1.AddEndpointRequest{Network: "blue", Netns: "/proc/4711/ns/net", Ips: []string{"2001:db8::10"}, Mac: "02:ab:00:00:00:01"}},
		{"Init", `{"advertise":["2001:0DB8::1"]}`, &overlaydv1.InitRequest{Advertise: []string{"2001:db8::1"}}},
		{"ListEndpoints", `{}`, &overlaydv1.ListEndpointsRequest{PageSize: api.MaxEndpoints}},
		{"ListEndpoints", `{"pageSize":4294967295}`, &overlaydv1.ListEndpointsRequest{PageSize: api.MaxEndpoints}},
	} {
		code, body := post(t, hc, "ClusterService/"+x.method, x.body)
		if code != http.StatusOK {
			t.Errorf("%s %s: status %d %s", x.method, x.body, code, body)
			continue
		}
		if got := <-c.got; !proto.Equal(got, x.want) {
			t.Errorf("%s %s:\n got %v\nwant %v", x.method, x.body, got, x.want)
		}
	}
}

// TestNoCluster asks a daemon that offers none.
func TestNoCluster(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	_, err := client(t, socket).ListNodes(t.Context(), &overlaydv1.ListNodesRequest{})
	if connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("%v", err)
	}
	_, err = apitest.NewCluster(time.Unix(0, 0), apitest.ClusterContent{}).ListNodes(t.Context(), nil)
	if kind, _ := api.Info(err); kind != api.NotMember || !strings.Contains(api.Message(err), "overlayctl init") {
		t.Errorf("%v", err)
	}
}

// broken is a Cluster with faults of its own.
type broken struct{ api.Cluster }

func (broken) GetNode(context.Context, *overlaydv1.GetNodeRequest) (*overlaydv1.GetNodeResponse, error) {
	panic("a secret cause")
}

func (broken) ListNodes(context.Context, *overlaydv1.ListNodesRequest) (*overlaydv1.ListNodesResponse, error) {
	return nil, nil
}

func (broken) Backup(context.Context, io.Writer) error { panic("a secret cause") }

func (broken) Restore(context.Context, io.Reader) (*overlaydv1.RestoreResponse, error) {
	return nil, nil
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestPanics shows that no request takes the daemon down, and that the log has the reason.
func TestPanics(t *testing.T) {
	sock, err := api.Listen(filepath.Join(t.TempDir(), "overlayd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	srv, err := api.NewServer(apitest.New(content()), broken{}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, sock) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	c := client(t, sock.Path())
	for name, call := range map[string]func() error{
		"GetNode":   func() error { _, err := c.GetNode(ctx, &overlaydv1.GetNodeRequest{Node: "h1"}); return err },
		"ListNodes": func() error { _, err := c.ListNodes(ctx, &overlaydv1.ListNodesRequest{}); return err },
		"Backup":    func() error { return c.BackupTo(ctx, io.Discard) },
		"Restore":   func() error { _, err := c.RestoreFrom(ctx, strings.NewReader("x")); return err },
	} {
		err := call()
		if connect.CodeOf(err) != connect.CodeInternal || !strings.Contains(err.Error(), "please report it") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text := log.String(); strings.Count(text, "a secret cause") != 2 || !strings.Contains(text, "broken.GetNode") || !strings.Contains(text, "broken.Backup") {
		t.Errorf("the log does not say where it was:\n%s", text)
	}
}

// TestBackupAndRestore moves a cluster of several chunks.
func TestBackupAndRestore(t *testing.T) {
	_, from := serveCluster(t, apitest.NewCluster(time.Unix(0, 0), clusterContent()))
	var backup bytes.Buffer
	if err := client(t, from).BackupTo(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	if backup.Len() < 2*api.MaxChunk {
		t.Fatalf("a backup of %d bytes, which tests little", backup.Len())
	}
	to := apitest.NewCluster(time.Unix(0, 0), apitest.ClusterContent{})
	_, socket := serveCluster(t, to)
	c := client(t, socket)

	for name, in := range map[string]io.Reader{
		"nothing":             strings.NewReader(""),
		"cut":                 bytes.NewReader(backup.Bytes()[:backup.Len()-1]),
		"an error half way":   io.MultiReader(bytes.NewReader(backup.Bytes()[:3*api.MaxChunk/2]), iotest.ErrReader(errors.New("the tape tore"))),
		"an error at the end": io.MultiReader(bytes.NewReader(backup.Bytes()), iotest.ErrReader(errors.New("the tape tore"))),
	} {
		_, err := c.RestoreFrom(t.Context(), in)
		if err == nil || strings.Contains(name, "error") != strings.Contains(err.Error(), "the tape tore") {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(name, "error") {
			continue
		}
		if kind, field := api.Info(err); kind != api.Invalid || field != "chunk" {
			t.Errorf("%s: kind %v, field %q: %v", name, kind, field, err)
		}
	}
	res, err := c.RestoreFrom(t.Context(), iotest.OneByteReader(bytes.NewReader(backup.Bytes())))
	if err != nil || res.ClusterId != clusterContent().ID || res.Index != uint64(backup.Len()) {
		t.Errorf("Restore = %v, %v", res, err)
	}
}

// TestRestoreChunks sends chunks by hand that the client would not.
func TestRestoreChunks(t *testing.T) {
	for name, c := range map[string]struct {
		chunk []byte
		last  bool
		code  connect.Code
		want  string
	}{
		"too large":      {make([]byte, api.MaxChunk+1), true, connect.CodeInvalidArgument, "chunk: 65537 bytes are too many; send at most 65536 at once"},
		"far too large":  {make([]byte, 8<<20), true, connect.CodeResourceExhausted, "larger than configured max"},
		"empty":          {nil, true, connect.CodeInvalidArgument, "chunk: the backup is empty; send what Backup gave"},
		"without an end": {[]byte("c000000000000001\nend\n"), false, connect.CodeInvalidArgument, "last: the stream ended before the backup; send all of it, with last set in the end"},
	} {
		cluster := apitest.NewCluster(time.Unix(0, 0), apitest.ClusterContent{})
		_, socket := serveCluster(t, cluster)
		stream, err := client(t, socket).Restore(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(&overlaydv1.RestoreRequest{Chunk: c.chunk, Last: c.last}) // the answer has the cause
		if _, err := stream.CloseAndReceive(); connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if cluster.Calls() > 0 {
			t.Errorf("%s: something was restored", name)
		}
	}
}

// TestEndpointPages walks more endpoints than one page has.
func TestEndpointPages(t *testing.T) {
	content := clusterContent()
	for i := range api.MaxEndpoints + 3 {
		content.Endpoints = append(content.Endpoints, &overlaydv1.Endpoint{Id: fmt.Sprintf("%016x", i+1), Network: "blue", Node: []string{"h1", "h2"}[i%2]})
	}
	_, socket := serveCluster(t, apitest.NewCluster(time.Unix(0, 0), content))
	c := client(t, socket)
	var ids []string
	for e, err := range c.Endpoints(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.Id)
	}
	if len(ids) != len(content.Endpoints) || !slices.IsSorted(ids) {
		t.Errorf("%d endpoints, want %d", len(ids), len(content.Endpoints))
	}
	for _, err := range c.Endpoints(t.Context(), "green", "") {
		if kind, field := api.Info(err); kind != api.NotFound || field != "network" {
			t.Errorf("endpoints of a network that is not there: %v", err)
		}
	}
}
