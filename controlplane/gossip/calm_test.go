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

// Probes that are answered while all is quiet are made when the clock shows a whole second, none of them is left out, and
// whenever there is a sign they are made by memberlist's ticks.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			after = 5 * time.Second
			every = time.Second
			phase = 370 * time.Millisecond
		)
		c := newCalm(after)
		var probes []time.Time
		lost := 0 // how many of the next probes are not answered
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			time.Sleep(phase)
			tick := time.NewTicker(every)
			defer tick.Stop()
			for range 1000 {
				<-tick.C
				probes = append(probes, time.Now())
				time.Sleep(30 * time.Millisecond) // until the answer is there
				if lost > 0 {
					lost--
					continue
				}
				c.rest(every, 30*time.Millisecond)
			}
		}()
		time.Sleep(100 * time.Millisecond) // so that nothing else happens when look begins or ends
		// look lets some time pass, and compares where in a second probes were made then, and how many.
		look := func(what string, d, want time.Duration, least int) {
			t.Helper()
			probes = nil
			time.Sleep(d)
			synctest.Wait()
			for _, p := range probes {
				if got := p.Sub(p.Truncate(every)); got != want {
					t.Errorf("%s: a probe at %v of a second, want %v", what, got, want)
				}
			}
			if len(probes) < least || len(probes) > least+1 {
				t.Errorf("%s: %d probes, want %d or one more", what, len(probes), least)
			}
		}
		look("at the start", after, phase, 4)
		time.Sleep(2 * every)
		look("when nothing happens", time.Hour/10, 0, 359)
		c.stir()
		time.Sleep(every + every/10)
		look("at a sign", after-2*every, phase, 2)
		time.Sleep(3 * every)
		look("when it is quiet again", 10*every, 0, 9)
		lost = 1
		time.Sleep(3 * every)
		look("after one without an answer", 10*every, 0, 9)
		c.end()
		<-ended // which it does only if it rests no more
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
