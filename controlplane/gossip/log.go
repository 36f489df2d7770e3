package gossip

import (
	"context"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// memberlist logs text lines such as "[WARN] memberlist: Refuting a suspect message", some of them once per
// packet when a member misbehaves. At most linesBurst are passed on at once, and linesRate per second after that.
const (
	linesBurst = 50
	linesRate  = 5.0
)

// bridge turns memberlist's lines into records.
type bridge struct {
	log *slog.Logger

	mu         sync.Mutex
	tokens     float64
	at         time.Time
	suppressed int
}

func logger(l *slog.Logger) *log.Logger {
	return log.New(&bridge{log: l, tokens: linesBurst, at: time.Now()}, "", 0)
}

// unencrypted is memberlist's warning about encryption of its own, which is not used.
const unencrypted = "Binding to public address without encryption"

// Write takes one line.
func (b *bridge) Write(line []byte) (int, error) {
	level, text := parseLine(string(line))
	ctx := context.Background()
	if !b.log.Enabled(ctx, level) || strings.Contains(text, unencrypted) {
		return len(line), nil
	}
	ok, suppressed := b.allow()
	if !ok {
		return len(line), nil
	}
	attrs := []slog.Attr{slog.String("text", text)}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	b.log.LogAttrs(ctx, level, "gossip: memberlist", attrs...)
	return len(line), nil
}

// allow reports whether a line may pass, and how many did not since the last one that did.
func (b *bridge) allow() (bool, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(linesBurst, b.tokens+linesRate*now.Sub(b.at).Seconds())
	b.at = now
	if b.tokens < 1 {
		b.suppressed++
		return false, 0
	}
	b.tokens--
	n := b.suppressed
	b.suppressed = 0
	return true, n
}

// parseLine splits off the level. A line without one is an error of memberlist that has no prefix.
func parseLine(line string) (slog.Level, string) {
	line = strings.TrimSpace(line)
	level := slog.LevelError
	if rest, ok := strings.CutPrefix(line, "["); ok {
		name, text, _ := strings.Cut(rest, "]")
		switch name {
		case "DEBUG":
			level = slog.LevelDebug
		case "INFO":
			level = slog.LevelInfo
		case "WARN":
			level = slog.LevelWarn
		}
		line = strings.TrimSpace(text)
	}
	return level, strings.TrimPrefix(line, "memberlist: ")
}
