package controlplane

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A start removes what a crash has left of files that were being written, and nothing else.
func TestUnfinishedFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data[1") // no pattern
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"restore.123", "node.json.123", "copy.pb.123", "attachments.json", "restored", "notes"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"attachments.json", "notes", "restored"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left are %q, %v; want %q", left, err, want)
	}
}
