//go:build race

package consensus

import (
	"testing"
	"time"
)

const virtualTime = false

var tempo = Timing{Heartbeat: 400 * time.Millisecond, Election: 400 * time.Millisecond}

func inTime(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel() // they mostly wait
	t.Run("in real time", f)
}
