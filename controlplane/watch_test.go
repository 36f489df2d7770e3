package controlplane

import (
	"context"
	"testing"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

func TestWatch(t *testing.T) {
	whole := []*statev1.Delta{{Index: 7}}
	h := newHub(func() (uint64, []*statev1.Delta) { return 7, whole })
	w := h.watch()
	next := func() Update {
		t.Helper()
		u, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	nothing := func() {
		t.Helper()
		if u, ok := h.take(w); ok {
			t.Errorf("%v without a change", u)
		}
	}
	change := func(index uint64, deltas int) {
		h.change(func() (uint64, []*statev1.Delta) { return index, make([]*statev1.Delta, deltas) })
	}
	if u := next(); !u.Reset || u.Index != 7 || len(u.Deltas) != 1 {
		t.Errorf("the first update: %v", u)
	}
	nothing()
	change(7, 0)
	nothing()
	change(8, 1)
	change(9, 2)
	if u := next(); u.Reset || u.Index != 9 || len(u.Deltas) != 3 {
		t.Errorf("two changes: %v", u)
	}
	// What came and went between two looks leaves a higher index, for which somebody may wait.
	change(11, 0)
	if u := next(); u.Reset || u.Index != 11 || len(u.Deltas) != 0 {
		t.Errorf("a new index: %v", u)
	}
	nothing()
	// Who is slow is given the whole, and the memory for it is bounded.
	change(12, maxPending)
	change(13, 1)
	if len(w.deltas) != 0 {
		t.Errorf("%d deltas wait", len(w.deltas))
	}
	if u := next(); !u.Reset || u.Index != 7 {
		t.Errorf("too many changes: %v", u)
	}
	h.replace(func() {})
	if u := next(); !u.Reset {
		t.Errorf("a replacement: %v", u)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Next(ctx); err == nil {
		t.Error("no error after the end")
	}
	w.Close()
	change(14, 1)
	if len(w.deltas) != 0 || len(h.watchers) != 0 {
		t.Error("a watcher that was closed is still told")
	}
}
