package gossip

import (
	"hash/maphash"
	"sync"
)

// remembered is how many messages a node knows again: those of half a minute at a rate that gossip can carry.
const remembered = 8192

// seen remembers the last messages by a hash with a secret seed, so that nobody can make one that looks known.
type seen struct {
	seed maphash.Seed

	mu    sync.Mutex
	known map[uint64]struct{}
	ring  [remembered]uint64
	next  int
}

func newSeen() *seen {
	return &seen{seed: maphash.MakeSeed(), known: map[uint64]struct{}{}}
}

// add reports whether the message was not known, and remembers it.
func (s *seen) add(message []byte) bool {
	h := maphash.Bytes(s.seed, message)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[h]; ok {
		return false
	}
	if len(s.known) == remembered {
		delete(s.known, s.ring[s.next])
	}
	s.known[h] = struct{}{}
	s.ring[s.next] = h
	s.next = (s.next + 1) % remembered
	return true
}
