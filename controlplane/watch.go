package controlplane

import (
	"context"
	"sync"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// maxPending is how many deltas wait for a watcher before it is given the whole state instead.
const maxPending = 65536

// Update is what changed in the state that every node knows. Its messages are shared: they must not be changed.
type Update struct {
	Index uint64 // of the state after it; it may be all that changed
	// Reset says that Deltas are the whole state: what is not among them is gone.
	Reset  bool
	Deltas []*statev1.Delta
}

// Watcher follows the state. It is for one goroutine.
type Watcher struct {
	hub    *hub
	wake   chan struct{} // capacity 1
	reset  bool          // guarded by hub.mu, as what follows
	index  uint64        // of the last update
	deltas []*statev1.Delta
}

// Next waits for the next update. The first one is a Reset.
func (w *Watcher) Next(ctx context.Context) (Update, error) {
	for {
		if u, ok := w.hub.take(w); ok {
			return u, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Update{}, ctx.Err()
		}
	}
}

// Close ends the watch.
func (w *Watcher) Close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	delete(w.hub.watchers, w)
}

// hub hands changes to watchers. Nobody waits for a slow one.
type hub struct {
	mu       sync.Mutex
	whole    func() (uint64, []*statev1.Delta)
	index    uint64
	watchers map[*Watcher]struct{}
}

// newHub returns a hub; whole returns all of the state, as deltas, and is called with no change under way.
func newHub(whole func() (uint64, []*statev1.Delta)) *hub {
	return &hub{whole: whole, watchers: map[*Watcher]struct{}{}}
}

func (h *hub) watch() *Watcher {
	w := &Watcher{hub: h, wake: make(chan struct{}, 1), reset: true}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[w] = struct{}{}
	return w
}

// change runs f, which changes the state and returns how, and tells the watchers.
func (h *hub) change(f func() (uint64, []*statev1.Delta)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var deltas []*statev1.Delta
	before := h.index
	h.index, deltas = f()
	if len(deltas) == 0 && h.index == before {
		return
	}
	for w := range h.watchers {
		if w.reset || len(w.deltas)+len(deltas) > maxPending {
			w.reset, w.deltas = true, nil
		} else {
			w.deltas = append(w.deltas, deltas...)
		}
		w.poke()
	}
}

// replace runs f, which replaces the state, and has all watchers begin anew.
func (h *hub) replace(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	for w := range h.watchers {
		w.reset, w.deltas = true, nil
		w.poke()
	}
}

func (w *Watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (h *hub) take(w *Watcher) (Update, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case w.reset:
		index, deltas := h.whole()
		w.reset, w.index, h.index = false, index, index
		return Update{Index: index, Reset: true, Deltas: deltas}, true
	case len(w.deltas) > 0 || w.index != h.index: // a change and its opposite leave nothing but a new index
		u := Update{Index: h.index, Deltas: w.deltas}
		w.index, w.deltas = h.index, nil
		return u, true
	}
	return Update{}, false
}
