package controlplane

import (
	"maps"
	"sync"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

const (
	// turnTime is how long what comes out of turn waits for what is missing, before a manager is asked for that. It is
	// what gossip takes in a large cluster: what comes later is likely to be lost.
	turnTime = 200 * time.Millisecond
	// maxEarly bounds the batches that wait. Each fits into a packet.
	maxEarly = 1024
)

// early holds batches that came before those that they build on. When changes come faster than they spread, most do.
type early struct {
	mu         sync.Mutex
	byPrevious map[uint64]*statev1.Batch
	wanted     uint64 // the highest index that this node has heard of, since the timer last found it behind
	waiting    bool   // the timer is on
}

// add keeps a batch, if there is room for it: otherwise those that are there will not find their turn before a manager
// is asked anyway.
func (e *early) add(b *statev1.Batch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byPrevious == nil {
		e.byPrevious = map[uint64]*statev1.Batch{}
	}
	if len(e.byPrevious) < maxEarly {
		e.byPrevious[b.Previous] = b
	}
}

// next takes out the batch that continues a copy at index, nil if there is none, and drops those that such a copy has.
func (e *early) next(index uint64) *statev1.Batch {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.byPrevious[index]
	delete(e.byPrevious, index)
	if b == nil {
		maps.DeleteFunc(e.byPrevious, func(previous uint64, _ *statev1.Batch) bool { return previous < index })
	}
	return b
}

// forget drops all that waits.
func (e *early) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.byPrevious)
}

// lacks has a manager asked for what leads up to index, unless gossip brings it within turnTime.
func (m *member) lacks(index uint64) {
	m.early.mu.Lock()
	defer m.early.mu.Unlock()
	m.early.wanted = max(m.early.wanted, index)
	m.startTurn()
}

// startTurn starts the timer, if it is off. The lock must be held.
func (m *member) startTurn() {
	if m.early.waiting {
		return
	}
	m.early.waiting = true
	index := m.early.wanted
	time.AfterFunc(turnTime, func() { m.endTurn(index) })
}

// endTurn looks whether the copy has come to index meanwhile.
func (m *member) endTurn(index uint64) {
	have := m.node.replica.Index()
	m.early.mu.Lock()
	defer m.early.mu.Unlock()
	m.early.waiting = false
	switch {
	case have < index:
		// Once each time somebody says so: an index that is a lie does not keep this node busy.
		m.early.wanted = 0
		poke(m.behind)
	case have < m.early.wanted:
		m.startTurn()
	}
}
