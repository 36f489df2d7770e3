//go:build !race

package gossip

import (
	"testing"
	"testing/synctest"
	"time"
)

// A round that has nothing to say goes on for a while after the last sign, then waits for the next one.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const after = 5 * time.Second
		c := newCalm(after)
		rounds, ended := 0, make(chan struct{})
		go func() {
			defer close(ended)
			for range 300 {
				time.Sleep(100 * time.Millisecond)
				c.wait()
				rounds++
			}
		}()
		look := func(what string, want int) {
			t.Helper()
			synctest.Wait()
			if rounds != want {
				t.Errorf("%s: %d rounds, want %d", what, rounds, want)
			}
			rounds = 0
		}
		time.Sleep(after + 10*time.Millisecond)
		look("at the start", 49)
		time.Sleep(time.Hour)
		look("when nothing happens", 0) // although stir left its token in the channel
		c.stir()
		look("at a sign", 1)
		time.Sleep(after - 50*time.Millisecond)
		c.stir()
		look("until the next sign", 49)
		time.Sleep(time.Hour)
		look("after that", 50)
		c.end()
		<-ended // which it does only if it waits no more
		if rounds < 100 {
			t.Errorf("%d rounds after the end, want all that were left", rounds)
		}
	})
}

func TestTellsOfMembers(t *testing.T) {
	want := map[byte]bool{partSuspect: true, partAlive: true, partDead: true, partIndirectPing: true}
	for part := range byte(20) {
		if got := tellsOfMembers([]byte{part, 0x80}); got != want[part] {
			t.Errorf("part %d: %v", part, got)
		}
	}
	if tellsOfMembers(nil) {
		t.Error("an empty part tells something")
	}
}
