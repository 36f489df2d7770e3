package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// quietFor is how long a message of hashicorp/raft is not repeated: it complains several times a second, without end,
// about a server that is down.
const quietFor = 30 * time.Second

// newLogger returns a logger for hashicorp/raft that writes to log. What that calls information is of interest to
// those who debug Raft, so everything goes down one level.
func newLogger(log *slog.Logger, id string) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off})
	l.RegisterSink(&sink{log: log.With("raft", id), last: map[string]*said{}})
	return l
}

// sink is where the messages of hashicorp/raft go.
type sink struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]*said // by message; these are constants in the library, so there are few
}

type said struct {
	at     time.Time
	unsaid int // how often it would have been said since
}

// Accept implements hclog.SinkAdapter.
func (s *sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	l := slog.LevelDebug
	switch level {
	case hclog.Warn:
		l = slog.LevelInfo
	case hclog.Error:
		l = slog.LevelWarn
	}
	ctx := context.Background()
	if !s.log.Enabled(ctx, l) {
		return
	}
	if l > slog.LevelDebug {
		unsaid, say := s.due(msg)
		if !say {
			return
		}
		if unsaid > 0 {
			args = append(args, "unsaid", unsaid)
		}
	}
	for i, a := range args {
		// Lazily formatted values of hclog are slices that start with a format; slog would print them as they are.
		if f, ok := a.(hclog.Format); ok {
			args[i] = lazy(f)
		}
	}
	s.log.Log(ctx, l, msg, args...)
}

// due says whether a message is to be said now, and how often it was not.
func (s *sink) due(msg string) (unsaid int, say bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	e := s.last[msg]
	if e == nil {
		s.last[msg] = &said{at: now}
		return 0, true
	}
	if now.Sub(e.at) < quietFor {
		e.unsaid++
		return 0, false
	}
	unsaid = e.unsaid
	*e = said{at: now}
	return unsaid, true
}

// lazy formats a value of hclog when it is printed.
type lazy hclog.Format

func (l lazy) LogValue() slog.Value {
	if len(l) == 0 {
		return slog.StringValue("")
	}
	f, _ := l[0].(string)
	return slog.StringValue(fmt.Sprintf(f, l[1:]...))
}
