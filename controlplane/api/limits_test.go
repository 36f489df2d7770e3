//go:build !race

package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1/overlaydv1connect"
)

// These tests run in virtual time, over connections in memory.

// pipes is a listener whose connections are made by dial.
type pipes struct {
	conns chan net.Conn
	end   chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.end) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	p.conns <- far
	return near, nil
}

// idle is a Node of which nothing is asked.
type idle struct{ Node }

// slow is a Cluster that takes its time.
type slow struct {
	Cluster
	get     time.Duration // that GetNode takes
	backup  int           // chunks
	blocked chan struct{} // GetNode waits for it, if it is there
}

func (s slow) GetNode(ctx context.Context, _ *overlaydv1.GetNodeRequest) (*overlaydv1.GetNodeResponse, error) {
	timer := time.NewTimer(s.get)
	defer timer.Stop()
	if s.blocked != nil {
		<-s.blocked
	}
	select {
	case <-timer.C:
		return &overlaydv1.GetNodeResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s slow) Backup(_ context.Context, w io.Writer) error {
	for range s.backup {
		if _, err := w.Write(make([]byte, MaxChunk)); err != nil {
			return err
		}
	}
	return nil
}

func (s slow) Restore(_ context.Context, r io.Reader) (*overlaydv1.RestoreResponse, error) {
	n, err := io.Copy(io.Discard, r)
	return &overlaydv1.RestoreResponse{Index: uint64(n)}, err
}

// virtually runs f against a server for c.
func virtually(t *testing.T, c func() Cluster, f func(*testing.T, *pipes, overlaydv1connect.ClusterServiceClient)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, err := NewServer(idle{}, c(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ln := &pipes{conns: make(chan net.Conn), end: make(chan struct{})}
		srv := s.httpServer()
		done := make(chan error, 1)
		go func() { done <- srv.Serve(ln) }()
		tr := &http.Transport{DialContext: ln.dial, DisableCompression: true}
		f(t, ln, overlaydv1connect.NewClusterServiceClient(&http.Client{Transport: tr}, "http://overlayd", connect.WithAcceptCompression("gzip", nil, nil)))
		tr.CloseIdleConnections()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		synctest.Wait()
	})
}

// drip sends text, and then rest a second until the server hangs up. It returns how long that took.
func drip(t *testing.T, ln *pipes, text, rest string) time.Duration {
	t.Helper()
	conn, err := ln.dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	gone := make(chan struct{})
	go func() { // what the server has to say
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	start := time.Now()
	if text != "" {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	for {
		select {
		case <-gone:
			return time.Since(start)
		case <-time.After(time.Second):
		}
		if time.Since(start) > time.Hour {
			t.Error("the server waited for an hour")
			return time.Hour
		}
		if rest == "" {
			continue // a pipe hands on an empty write too
		}
		if _, err := io.WriteString(conn, rest); err != nil {
			return time.Since(start)
		}
	}
}

// TestSlowRequests gives the server requests that never end.
func TestSlowRequests(t *testing.T) {
	const post = "POST /overlayd.v1.ClusterService/%s HTTP/1.1\r\nHost: overlayd\r\nContent-Type: application/%s\r\nContent-Length: 100000\r\n\r\n"
	for name, c := range map[string]struct {
		text string
		rest string
		most time.Duration
	}{
		"header":    {"POST / HTTP/1.1\r\nHost: ", "a", headerTimeout + time.Second},
		"nothing":   {"", "", headerTimeout + time.Second},
		"body":      {fmt.Sprintf(post, "GetNode", "json"), "a", bodyTimeout + 3*time.Second},
		"no body":   {fmt.Sprintf(post, "GetNode", "json"), "", bodyTimeout + 3*time.Second},
		"stream":    {fmt.Sprintf(post, "Restore", "connect+json") + "\x00\x00\x00\x10\x00", "a", bodyTimeout + 3*time.Second},
		"no stream": {fmt.Sprintf(post, "Restore", "connect+json"), "", bodyTimeout + 3*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func() Cluster { return slow{} }, func(t *testing.T, ln *pipes, _ overlaydv1connect.ClusterServiceClient) {
				if took := drip(t, ln, c.text, c.rest); took > c.most {
					t.Errorf("the server hung up after %v, want at most %v", took, c.most)
				}
			})
		})
	}
}

// TestPacedRestore sends a backup faster and slower than it has to come.
func TestPacedRestore(t *testing.T) {
	for rate, fine := range map[int]bool{minRate: true, minRate / 2: false} {
		virtually(t, func() Cluster { return slow{} }, func(t *testing.T, _ *pipes, c overlaydv1connect.ClusterServiceClient) {
			const seconds = 120
			stream, err := c.Restore(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			for i := range seconds {
				time.Sleep(time.Second)
				if stream.Send(&overlaydv1.RestoreRequest{Chunk: make([]byte, rate), Last: i == seconds-1}) != nil {
					break
				}
			}
			took := time.Since(start)
			res, err := stream.CloseAndReceive()
			if fine && (err != nil || res.Index != uint64(rate*seconds)) {
				t.Errorf("at %d bytes a second: %v, %v", rate, res, err)
			}
			if !fine && (err == nil || took > 3*bodyTimeout+writeTimeout) {
				t.Errorf("at %d bytes a second: %v after %v", rate, err, took)
			}
		})
	}
}

// TestSlowAnswers shows that an answer may take longer than a body, and not as long as it likes.
func TestSlowAnswers(t *testing.T) {
	for get, want := range map[time.Duration]connect.Code{callTimeout - time.Second: 0, callTimeout + time.Second: connect.CodeUnavailable} {
		virtually(t, func() Cluster { return slow{get: get} }, func(t *testing.T, ln *pipes, posting overlaydv1connect.ClusterServiceClient) {
			tr := &http.Transport{DialContext: ln.dial}
			defer tr.CloseIdleConnections()
			getting := overlaydv1connect.NewClusterServiceClient(&http.Client{Transport: tr}, "http://overlayd", connect.WithHTTPGet())
			for _, c := range []overlaydv1connect.ClusterServiceClient{posting, getting} {
				for range 2 { // the second one on the connection of the first
					_, err := c.GetNode(t.Context(), &overlaydv1.GetNodeRequest{Node: "h1"})
					if err == nil != (want == 0) || err != nil && connect.CodeOf(err) != want {
						t.Errorf("an answer that takes %v: %v", get, err)
					}
				}
			}
		})
	}
}

// TestSlowReader takes a backup slowly, and then not at all.
func TestSlowReader(t *testing.T) {
	virtually(t, func() Cluster { return slow{backup: 20} }, func(t *testing.T, _ *pipes, c overlaydv1connect.ClusterServiceClient) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := c.Backup(ctx, &overlaydv1.BackupRequest{})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for stream.Receive() {
			n += len(stream.Msg().Chunk)
			time.Sleep(writeTimeout - time.Second)
		}
		if stream.Err() != nil || n != 20*MaxChunk {
			t.Errorf("%d bytes came, want %d: %v", n, 20*MaxChunk, stream.Err())
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}

		if stream, err = c.Backup(ctx, &overlaydv1.BackupRequest{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(writeTimeout + time.Second)
		for n = 0; stream.Receive(); n++ {
		}
		if stream.Err() == nil {
			t.Errorf("all %d chunks came to one who did not take them", n)
		}
		cancel()
		_ = stream.Close() // with the error of the stream
	})
}

// TestTooManyRequests fills the server.
func TestTooManyRequests(t *testing.T) {
	var blocked chan struct{}
	setUp := func() Cluster {
		blocked = make(chan struct{}) // of the virtual time
		return slow{blocked: blocked}
	}
	virtually(t, setUp, func(t *testing.T, _ *pipes, c overlaydv1connect.ClusterServiceClient) {
		get := func() error {
			_, err := c.GetNode(t.Context(), &overlaydv1.GetNodeRequest{Node: "h1"})
			return err
		}
		errs := make(chan error, maxUnder)
		for range maxUnder {
			go func() { errs <- get() }()
		}
		synctest.Wait()
		err := get()
		if kind, _ := Info(err); kind != Exhausted || connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("one too many: %v", err)
		}
		close(blocked)
		for range maxUnder {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if err := get(); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}
