//go:build !race

package consensus

import (
	"testing"
	"testing/synctest"
	"time"
)

// Clusters are tested in virtual time, except under the race detector, with which testing/synctest does not go before
// Go 1.27: then the same tests run in real time, in a shorter form.

const virtualTime = true

// tempo is what clusters in tests run with. In virtual time the machine is never too slow for it.
var tempo = Timing{Heartbeat: 200 * time.Millisecond, Election: 200 * time.Millisecond}

func inTime(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
