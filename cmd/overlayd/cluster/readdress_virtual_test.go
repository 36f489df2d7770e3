//go:build !race

package cluster

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A change that nobody tells of is found all the same. In virtual time, with which the race detector does not go.
func TestAddressesAreLookedAtAnyway(t *testing.T) {
	r := newReaddressed(t, "192.0.2.10", "", true) // with a control plane, which lives in real time
	synctest.Test(t, func(t *testing.T) {
		r.known = make(chan struct{}, 1)
		h, m := &slowHost{routed: r.h}, &telling{told: make(chan []string)}
		m.choice = r.m.choice
		a := NewAddresses(m, r.Follower, h, slog.New(slog.DiscardHandler))
		changes, ended := make(chan struct{}), make(chan struct{})
		go func() { defer close(ended); a.run(t.Context(), changes) }()
		time.Sleep(10 * lookAnyway)
		h.now("192.0.2.77")
		select {
		case got := <-m.told:
			if !slices.Equal(got, []string{"192.0.2.77"}) {
				t.Errorf("proposed %v", got)
			}
		case <-time.After(lookAnyway + 2*lookEvery):
			t.Error("the address that came without a word was not proposed")
		}
		close(changes)
		<-ended
	})
}
