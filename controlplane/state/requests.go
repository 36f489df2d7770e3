package state

import (
	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

const (
	// maxRequests is how many are remembered. Whoever repeats a request does so for some 15 s, in which a thousand others
	// a second may come.
	maxRequests  = 1 << 14
	maxRequestID = 128 // bytes
)

// requests remembers the results of the newest requests, so that one that is proposed again, because nobody heard that
// it was applied, is not applied again. The oldest is forgotten first.
type requests struct {
	queue []*statev1.AppliedRequest // a ring once it is full
	next  int                       // the place of the next one, and then of the oldest one
	byID  map[string]*statev1.Result
}

func newRequests() *requests { return &requests{byID: map[string]*statev1.Result{}} }

// add keeps the result of a request that is not there yet. The result is not to be changed afterwards.
func (r *requests) add(id string, result *statev1.Result) {
	applied := &statev1.AppliedRequest{RequestId: id, Result: result}
	if len(r.queue) < maxRequests {
		r.queue = append(r.queue, applied)
	} else {
		delete(r.byID, r.queue[r.next].RequestId)
		r.queue[r.next] = applied
	}
	r.next = (r.next + 1) % maxRequests
	r.byID[id] = result
}

// all returns the requests, oldest first.
func (r *requests) all() []*statev1.AppliedRequest {
	out := make([]*statev1.AppliedRequest, 0, len(r.queue))
	if len(r.queue) == maxRequests {
		out = append(out, r.queue[r.next:]...)
		return append(out, r.queue[:r.next]...)
	}
	return append(out, r.queue...)
}

// restore adds a request of a snapshot.
func (r *requests) restore(m *statev1.AppliedRequest) *refusal {
	if m.RequestId == "" || len(m.RequestId) > maxRequestID {
		return invalid("request_id", "%s is no ID of a request", show(m.RequestId))
	}
	if r.byID[m.RequestId] != nil {
		return invalid("request_id", "%s is there twice", show(m.RequestId))
	}
	if m.Result == nil {
		return invalid("result", "it is missing")
	}
	if len(r.queue) == maxRequests {
		return invalid("", "it is one more than the %d requests that are kept", maxRequests)
	}
	r.add(m.RequestId, proto.CloneOf(m.Result))
	return nil
}
