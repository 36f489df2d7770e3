package gossip

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestParseLine(t *testing.T) {
	for line, want := range map[string]struct {
		level slog.Level
		text  string
	}{
		"[DEBUG] memberlist: a b\n": {slog.LevelDebug, "a b"},
		"[INFO] memberlist: a":      {slog.LevelInfo, "a"},
		"[WARN] memberlist: a":      {slog.LevelWarn, "a"},
		"[ERR] memberlist: a":       {slog.LevelError, "a"},
		"[ERROR] memberlist: a":     {slog.LevelError, "a"},
		"[ERR] Failed to":           {slog.LevelError, "Failed to"},
		"Err: Could not":            {slog.LevelError, "Err: Could not"},
		"[":                         {slog.LevelError, ""},
		"":                          {slog.LevelError, ""},
	} {
		if level, text := parseLine(line); level != want.level || text != want.text {
			t.Errorf("%q: %v %q, want %v %q", line, level, text, want.level, want.text)
		}
	}
}

func TestLogIsBounded(t *testing.T) {
	var out bytes.Buffer
	text := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})
	start := time.Now()
	b := &bridge{log: slog.New(text), tokens: linesBurst, at: start}
	write := func(line string) {
		if n, err := b.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}
	for i := range 1000 {
		write(fmt.Sprintf("[WARN] memberlist: line %d", i))
		write("[DEBUG] memberlist: not wanted")
		write("[WARN] memberlist: " + unencrypted + "!")
	}
	most := linesBurst + int(linesRate*(time.Since(start).Seconds()+1))
	if got := strings.Count(out.String(), "\n"); got < linesBurst || got > most {
		t.Errorf("%d of 1,000 lines came through, want %d to %d", got, linesBurst, most)
	}
	b.at = b.at.Add(-time.Second)
	write("[ERR] memberlist: later")
	if s := out.String(); !strings.Contains(s, "text=later suppressed=") || strings.Contains(s, "not wanted") || strings.Contains(s, "encryption") {
		t.Errorf("the log ends with %q", s[max(0, len(s)-200):])
	}
}
