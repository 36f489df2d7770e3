package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// leaves returns a row of the table of docs/operations.md for each command below cmd that does something.
func leaves(cmd *cobra.Command) []string {
	if !cmd.HasSubCommands() {
		use := strings.TrimSuffix(strings.TrimPrefix(cmd.UseLine(), "overlayctl "), " [flags]")
		return []string{"| `" + strings.ReplaceAll(use, "|", `\|`) + "` | " + cmd.Short + " |"}
	}
	var rows []string
	for _, sub := range cmd.Commands() {
		rows = append(rows, leaves(sub)...)
	}
	return rows
}

// TestDocsCommands compares the table of the commands with the program.
func TestDocsCommands(t *testing.T) {
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(doc), "| command | what it does |\n|---|---|\n")
	if !found {
		t.Fatal("docs/operations.md has no table of the commands")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	have := strings.Split(table, "\n")
	a := &app{environment: environment{getenv: func(string) string { return "" }}}
	var want []string
	for _, cmd := range a.newRoot().Commands() {
		if name := cmd.Name(); name != "lab" && name != "bench" {
			want = append(want, leaves(cmd)...)
		}
	}
	for _, row := range want {
		if !slices.Contains(have, row) {
			t.Errorf("docs/operations.md lacks the row\n%s", row)
		}
	}
	for _, row := range have {
		if !slices.Contains(want, row) {
			t.Errorf("docs/operations.md has a row that the program does not know, or not so:\n%s", row)
		}
	}
}
