//go:build !race

// Before Go 1.27 testing/synctest does not go together with the race detector.

package vtep

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frametest"
)

// Stations that are silent for five minutes are forgotten, and no other.
func TestSilentStationsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := fdb.NewTable(10)
		v := &VTEP{start: time.Now(), networks: []*network{{fwd: &forward.Network{FDB: table}}}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			v.age(ctx)
		}()
		silent, talker, stated := frametest.MAC(1), frametest.MAC(2), frametest.MAC(3)
		table.SetStatic(stated, 1)
		table.Learn(silent, 1, uint32(v.now()/1e9))
		for v.now() < int64(ageLimit-time.Second) {
			table.Learn(talker, 1, uint32(v.now()/1e9))
			time.Sleep(time.Second)
		}
		if n := table.Len(); n != 3 {
			t.Errorf("%d of 3 are left after %v", n, time.Duration(v.now()))
		}
		time.Sleep(2*ageEvery + time.Second)
		for mac, want := range map[string]bool{"silent": false, "talker": true, "stated": true} {
			station := map[string][6]byte{"silent": silent, "talker": talker, "stated": stated}[mac]
			if _, ok := table.Lookup(station); ok != want {
				t.Errorf("after %v the %s station is known: %v", time.Duration(v.now()), mac, ok)
			}
		}
		time.Sleep(ageLimit + ageEvery)
		if _, ok := table.Lookup(talker); ok {
			t.Error("the talker is known, long after its last word")
		}
		cancel()
		<-done
	})
}
