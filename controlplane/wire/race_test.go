//go:build !race

package wire

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// book has what happened, in its order.
type book struct {
	mu    sync.Mutex
	lines []string
}

func (b *book) add(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.lines, " ")
}

// line is a connection that notes down that it was closed.
type line struct {
	to     string
	closed *book
}

func (l line) Close() error {
	l.closed.add(l.to)
	return nil
}

// TestFirst dials in virtual time. Each address says after how many milliseconds it answers, with ! before those that refuse.
func TestFirst(t *testing.T) {
	for name, c := range map[string]struct {
		addresses string
		want      string // what is got, or the error with ! before it
		after     time.Duration
		dialled   string
		closed    string
	}{
		"one":                         {"10ms", "10ms", 10 * time.Millisecond, "10ms", ""},
		"the preferred answers":       {"200ms 1ms", "200ms", 200 * time.Millisecond, "200ms", ""},
		"the preferred is silent":     {"1h 20ms", "20ms", 270 * time.Millisecond, "1h 20ms", ""},
		"the preferred refuses":       {"!5ms 20ms", "20ms", 25 * time.Millisecond, "!5ms 20ms", ""},
		"two are silent":              {"1h 2h 3ms", "3ms", 503 * time.Millisecond, "1h 2h 3ms", ""},
		"slow, but before the second": {"300ms 100ms", "300ms", 300 * time.Millisecond, "300ms 100ms", ""},
		"none":                        {"!5ms !7ms", "!refused 5ms\nrefused 7ms", 12 * time.Millisecond, "!5ms !7ms", ""},
		"nobody is named":             {"", "!there is no address to connect to", 0, "", ""},
		"too late for all":            {"1h 2h", "!context deadline exceeded", 10 * time.Second, "1h 2h", ""},
		"ignores its end":             {"stubborn-300ms 10ms", "10ms", 260 * time.Millisecond, "stubborn-300ms 10ms", "stubborn-300ms"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var dialled, closed book
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				begin := time.Now()
				got, err := First(ctx, strings.Fields(c.addresses), func(ctx context.Context, address string) (line, error) {
					dialled.add(address)
					text, stubborn := strings.CutPrefix(address, "stubborn-")
					text, refuses := strings.CutPrefix(text, "!")
					wait, err := time.ParseDuration(text)
					if err != nil {
						t.Error(err)
					}
					end := ctx.Done()
					if stubborn {
						end = nil
					}
					select {
					case <-time.After(wait):
					case <-end:
						return line{}, ctx.Err()
					}
					if refuses {
						return line{}, errors.New("refused " + text)
					}
					return line{address, &closed}, nil
				})
				took := time.Since(begin)
				time.Sleep(time.Second) // virtual: what is late comes to its end
				synctest.Wait()
				if want, fails := strings.CutPrefix(c.want, "!"); fails {
					if err == nil || err.Error() != want {
						t.Errorf("%v, want %s", err, want)
					}
				} else if err != nil || got.to != c.want {
					t.Errorf("%v, %v; want %s", got.to, err, c.want)
				}
				if took != c.after || dialled.String() != c.dialled || closed.String() != c.closed {
					t.Errorf("after %v (want %v) dialled %q, closed %q", took, c.after, dialled.String(), closed.String())
				}
			})
		})
	}
}
