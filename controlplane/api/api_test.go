package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/apitest"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1/overlaydv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func content() apitest.Content {
	return apitest.Content{
		Status: &overlaydv1.NodeStatus{
			Node:     "h1",
			Version:  &overlaydv1.Version{Version: "v1.2.3"},
			Underlay: &overlaydv1.Underlay{Port: 4789, Addresses: []string{"192.0.2.1"}, DatagramsIn: 1 << 60},
		},
		Networks: []*overlaydv1.Network{{Name: "blue", Vni: 42}, {Name: "red", Vni: 43}},
		Peers:    []*overlaydv1.Peer{{Address: "192.0.2.2"}},
		Paths: []*overlaydv1.Path{
			{Peer: "192.0.2.2", PathMtu: 1400, Networks: []string{"blue", "red"}},
			{Peer: "192.0.2.3", PathMtu: 1500, Networks: []string{"blue"}},
			{Peer: "192.0.2.4", PathMtu: 1500},
		},
		Probes: &overlaydv1.Probes{Sent: 7},
		FDB: map[string][]*overlaydv1.FDBEntry{"blue": {
			{Mac: "02:00:00:00:00:01", Vtep: "192.0.2.2"},
			{Mac: "02:00:00:00:00:02", Vtep: "192.0.2.2"},
			{Mac: "02:00:00:00:00:03", Vtep: "192.0.2.3"},
		}},
		Drops: []*overlaydv1.Drop{
			{Network: "blue", Reason: "frame_runt", Count: 3},
			{Network: "", Reason: "vni_unknown", Count: 1},
		},
		Samples: []*overlaydv1.DropSample{
			{Seq: 4, Network: "blue", Reason: "frame_runt", Length: 9},
			{Seq: 5, Network: "blue", Reason: "frame_runt", Length: 10},
			{Seq: 6, Network: "", Reason: "vni_unknown", Length: 60},
		},
	}
}

func client(t *testing.T, socket string) *api.Client {
	c := api.NewClient(socket)
	t.Cleanup(c.Close)
	return c
}

func TestCalls(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	c, ctx := client(t, socket), t.Context()

	if res, err := c.GetVersion(ctx, &overlaydv1.GetVersionRequest{}); err != nil || res.Version.Version != "v1.2.3" {
		t.Errorf("GetVersion = %v, %v", res, err)
	}
	if res, err := c.GetStatus(ctx, &overlaydv1.GetStatusRequest{}); err != nil || res.Status.Underlay.DatagramsIn != 1<<60 {
		t.Errorf("GetStatus = %v, %v", res, err)
	}
	if res, err := c.ListNetworks(ctx, &overlaydv1.ListNetworksRequest{}); err != nil || len(res.Networks) != 2 {
		t.Errorf("ListNetworks = %v, %v", res, err)
	}
	if res, err := c.ListPeers(ctx, &overlaydv1.ListPeersRequest{}); err != nil || len(res.Peers) != 1 {
		t.Errorf("ListPeers = %v, %v", res, err)
	}
	for network, want := range map[string]string{
		"":     "blue red 192.0.2.2 192.0.2.3 192.0.2.4",
		"blue": "blue 192.0.2.2 192.0.2.3",
		"red":  "red 192.0.2.2",
	} {
		res, err := c.ListPaths(ctx, &overlaydv1.ListPathsRequest{Network: network})
		if err != nil || res.Probes.Sent != 7 {
			t.Errorf("ListPaths of %q = %v, %v", network, res, err)
		}
		var got []string
		for _, n := range res.GetNetworks() {
			got = append(got, n.Name)
		}
		for _, p := range res.GetPaths() {
			got = append(got, p.Peer)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("ListPaths of %q: %v, want %s", network, got, want)
		}
	}
	res, err := c.ListDrops(ctx, &overlaydv1.ListDropsRequest{})
	if err != nil || len(res.Drops) != 2 {
		t.Fatalf("ListDrops = %v, %v", res, err)
	}
	if a, b := res.Drops[0].LastSample.GetSeq(), res.Drops[1].LastSample.GetSeq(); a != 5 || b != 6 {
		t.Errorf("the last samples are %d and %d, want 5 and 6", a, b)
	}
	if res, err := c.ListDrops(ctx, &overlaydv1.ListDropsRequest{Network: "blue"}); err != nil || len(res.Drops) != 1 {
		t.Errorf("ListDrops of blue = %v, %v", res, err)
	}
}

func TestFDBPages(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	c := client(t, socket)
	var got []string
	req := &overlaydv1.ListFDBRequest{Network: "blue", PageSize: 2}
	for pages := 1; ; pages++ {
		res, err := c.ListFDB(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range res.Entries {
			got = append(got, e.Mac[15:])
		}
		if req.PageToken = res.NextPageToken; req.PageToken == "" {
			if pages != 2 {
				t.Errorf("%d pages, want 2", pages)
			}
			break
		}
	}
	if strings.Join(got, " ") != "01 02 03" {
		t.Errorf("entries %v", got)
	}
	// A page that is full by chance has none behind it.
	if res, err := c.ListFDB(t.Context(), &overlaydv1.ListFDBRequest{Network: "blue", PageSize: 3}); err != nil || res.NextPageToken != "" || len(res.Entries) != 3 {
		t.Errorf("page of 3 = %v, %v", res, err)
	}
	if res, err := c.ListFDB(t.Context(), &overlaydv1.ListFDBRequest{Network: "red"}); err != nil || len(res.Entries) != 0 {
		t.Errorf("red = %v, %v", res, err)
	}
}

// TestFDBWalk walks a table of more than one full page.
func TestFDBWalk(t *testing.T) {
	const stations = 65536 + 10
	var entries []*overlaydv1.FDBEntry
	for i := range stations {
		entries = append(entries, &overlaydv1.FDBEntry{Mac: fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16, i>>8&0xff, i&0xff)})
	}
	c := content()
	c.FDB["blue"] = entries
	socket, _ := apitest.New(c).Serve(t)
	n := 0
	for e, err := range client(t, socket).FDB(t.Context(), "blue") {
		if err != nil {
			t.Fatal(err)
		}
		if e.Mac != entries[n].Mac {
			t.Fatalf("entry %d is %s, want %s", n, e.Mac, entries[n].Mac)
		}
		n++
	}
	if n != stations {
		t.Errorf("%d entries, want %d", n, stations)
	}
}

func TestTypedErrors(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	c, ctx := client(t, socket), t.Context()
	const unknown = `this node has no network "green": choose from blue, red`

	_, fdb := c.ListFDB(ctx, &overlaydv1.ListFDBRequest{Network: "green"})
	_, drops := c.ListDrops(ctx, &overlaydv1.ListDropsRequest{Network: "green"})
	stream, watch := c.WatchDrops(ctx, &overlaydv1.WatchDropsRequest{Network: "green"})
	if watch == nil {
		stream.Receive()
		watch = stream.Err()
		stream.Close()
	}
	for name, err := range map[string]error{"ListFDB": fdb, "ListDrops": drops, "WatchDrops": watch} {
		if connect.CodeOf(err) != connect.CodeNotFound || api.Message(err) != unknown {
			t.Errorf("%s: %v %q", name, connect.CodeOf(err), api.Message(err))
		}
	}
	_, err := c.ListFDB(ctx, &overlaydv1.ListFDBRequest{Network: "blue", PageToken: "x"})
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a page token that is none: %v", err)
	}
	_, err = c.ListFDB(ctx, &overlaydv1.ListFDBRequest{Network: strings.Repeat("x", 2<<20)})
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a request of 2 MiB: %v", err)
	}
}

func TestWatchDrops(t *testing.T) {
	node := apitest.New(content())
	socket, stop := node.Serve(t)
	stream, err := client(t, socket).WatchDrops(t.Context(), &overlaydv1.WatchDropsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() || len(stream.Msg().Samples) != 3 || stream.Msg().Missed != 0 {
		t.Fatalf("first message %v, %v; want the three samples that are held", stream.Msg(), stream.Err())
	}
	// Samples 7 to 9 are overwritten before anyone looks.
	node.Change(func(c *apitest.Content) {
		c.Samples = []*overlaydv1.DropSample{{Seq: 10, Network: "red"}}
	})
	if !stream.Receive() || len(stream.Msg().Samples) != 1 || stream.Msg().Missed != 3 {
		t.Fatalf("second message %v, %v; want sample 10 with 3 missed", stream.Msg(), stream.Err())
	}
	// A server that ends does not wait for its streams.
	stop()
	if stream.Receive() {
		t.Errorf("a message after the end: %v", stream.Msg())
	}
	if err := stream.Err(); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("the stream ended with %v, want unavailable", err)
	}
}

func TestWatchDropsOfOneNetwork(t *testing.T) {
	c := content()
	c.Samples = nil
	for i := range uint64(600) {
		c.Samples = append(c.Samples, &overlaydv1.DropSample{Seq: i + 1, Network: []string{"blue", "red"}[i%2]})
	}
	socket, _ := apitest.New(c).Serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client(t, socket).WatchDrops(ctx, &overlaydv1.WatchDropsRequest{Network: "red", After: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	next := uint64(102)
	for next <= 600 {
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		for _, s := range stream.Msg().Samples {
			if s.Network != "red" || s.Seq != next {
				t.Fatalf("sample %v, want %d of red", s, next)
			}
			next += 2
		}
	}
}

// TestPlainHTTP speaks as curl does.
func TestPlainHTTP(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer hc.CloseIdleConnections()
	post := func(method, body string) (int, string) {
		res, err := hc.Post("http://overlayd/overlayd.v1.NodeService/"+method, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(data)
	}
	code, body := post("GetStatus", "{}")
	var status struct {
		Status struct {
			Node     string
			Underlay struct{ DatagramsIn, DatagramsOut string }
		}
	}
	if err := json.Unmarshal([]byte(body), &status); code != 200 || err != nil || status.Status.Node != "h1" ||
		status.Status.Underlay.DatagramsIn != "1152921504606846976" || status.Status.Underlay.DatagramsOut != "0" {
		t.Errorf("GetStatus: %d %s %v", code, body, err)
	}
	for _, c := range []struct {
		method, body string
		code         int
		want         string
	}{
		{"ListFDB", `{"network":"green"}`, 404, `{"code":"not_found","message":"this node has no network \"green\": choose from blue, red"}`},
		{"ListFDB", `{"network":"red"}`, 200, `{"entries":[],"nextPageToken":""}`},
		{"ListNetworks", `{"some_later_field":1}`, 200, `{"networks":[{"name":"blue"`},
		{"ListNetworks", `{`, 400, `{"code":"invalid_argument"`},
		{"ListNetworks", ``, 400, `send at least {}`},
		{"NoSuchMethod", `{}`, 404, `404`},
	} {
		if code, body := post(c.method, c.body); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.body, code, body)
		}
	}
}

// TestGRPC speaks gRPC, which needs HTTP/2.
func TestGRPC(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	c := overlaydv1connect.NewNodeServiceClient(&http.Client{Transport: tr}, "http://overlayd", connect.WithGRPC())
	if res, err := c.ListNetworks(t.Context(), &overlaydv1.ListNetworksRequest{}); err != nil || len(res.Networks) != 2 {
		t.Errorf("ListNetworks = %v, %v", res, err)
	}
}

func TestNewServerWithoutNode(t *testing.T) {
	if _, err := api.NewServer(nil, nil, nil); err == nil {
		t.Error("no error for no node")
	}
}

func TestMessage(t *testing.T) {
	for want, err := range map[string]error{
		"plain": errors.New("plain"),
		"inner": connect.NewError(connect.CodeInternal, errors.New("inner")),
		"overlayd is not running here: there is no socket /nonexistent/s; start it, or name the socket of the one that runs": fmt.Errorf("call: %w",
			&api.DialError{Socket: "/nonexistent/s", Err: net.UnknownNetworkError("x")}),
	} {
		if strings.HasPrefix(want, "overlayd is") {
			_, err = api.NewClient("/nonexistent/s").GetVersion(t.Context(), &overlaydv1.GetVersionRequest{})
		}
		if got := api.Message(err); got != want {
			t.Errorf("Message(%v) = %q, want %q", err, got, want)
		}
	}
}
