package vtep

import (
	"testing"
	"time"
)

// The tables are compared at whole multiples of reconcileEvery, unless it takes long.
func TestUntilNext(t *testing.T) {
	whole := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct{ into, took, want time.Duration }{
		{0, 0, reconcileEvery},
		{time.Millisecond, time.Millisecond, reconcileEvery - time.Millisecond},
		{1900 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond},
		{1900 * time.Millisecond, 150 * time.Millisecond, 3 * time.Second},
		{1900 * time.Millisecond, time.Second, reconcileMost},
	} {
		now := whole.Add(c.into)
		if got := untilNext(now.Add(-c.took), now); got != c.want {
			t.Errorf("%v after a whole multiple, having taken %v, it waits for %v, want %v", c.into, c.took, got, c.want)
		}
	}
}
