//go:build !race

package controlplane

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// simAsked is what a node asked managers. Bytes are those of messages, as they are compressed and framed for HTTP.
type simAsked struct{ questions, failed, bytesOut, bytesIn atomic.Int64 }

// way returns the way from a node to a manager, in memory.
func (s *simulation) way(from, to *simNode) *http.Transport {
	t := &http.Transport{Protocols: new(http.Protocols)} // none by itself
	leaf, err := x509.ParseCertificate(from.creds.Load().CertificateDER())
	if err != nil {
		s.t.Fatal(err)
	}
	t.RegisterProtocol("https", &simWay{s: s, from: from, to: to, shown: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}})
	return t
}

type simWay struct {
	s        *simulation
	from, to *simNode
	shown    *tls.ConnectionState // by the one that asks
}

// RoundTrip carries a request and its answer. It takes the time of the path for each, and none for their length.
func (w *simWay) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		if err = errors.Join(err, req.Body.Close()); err != nil {
			return nil, err
		}
	}
	count := &w.from.asked
	count.questions.Add(1)
	count.bytesOut.Add(int64(len(body)))
	if err := w.pass(req); err != nil {
		count.failed.Add(1)
		return nil, err
	}
	in := req.Clone(req.Context())
	in.Body, in.TLS = io.NopCloser(bytes.NewReader(body)), w.shown
	answer := httptest.NewRecorder()
	w.to.control.ServeHTTP(answer, in)
	count.bytesIn.Add(int64(answer.Body.Len()))
	if err := w.pass(req); err != nil {
		count.failed.Add(1)
		return nil, err
	}
	return answer.Result(), nil
}

// pass takes the time that something takes one way.
func (w *simWay) pass(req *http.Request) error {
	d, err := simLatency+time.Duration(w.s.draw(int64(simLatency))), error(nil)
	if w.s.isCut(w.from.addr) != w.s.isCut(w.to.addr) {
		d, err = simDead, errors.New("nothing answers")
	}
	select {
	case <-time.After(d):
		return err
	case <-req.Context().Done():
		return req.Context().Err()
	}
}

func (s *simulation) draw(n int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.Int64N(n)
}
