package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// script answers passes by their arguments with recorded events.
type script map[string]string

func (s script) test(_ context.Context, args []string, events, _ io.Writer) error {
	text, ok := s[strings.Join(args, " ")]
	if !ok {
		return errors.New("no such pass in the script")
	}
	for chunk := range slices.Chunk([]byte(text), 7) { // events arrive in pieces
		if _, err := events.Write(chunk); err != nil {
			return err
		}
	}
	if strings.Contains(text, `"fail"`) {
		return errors.New("exit status 1")
	}
	return nil
}

const (
	passes = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	skips = `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:5: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	fails = `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:5: wrong\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- FAIL: TestA (0.00s)\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`
	unended = `{"Action":"output","Package":"p","Test":"TestA","Output":"panic: deep in it\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`
	unbuilt = `{"ImportPath":"p","Action":"build-output","Output":"a.go:2:1: syntax error\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p"}
`
	untested = `{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}
{"Action":"skip","Package":"q"}
`
)

func TestRun(t *testing.T) {
	s := script{"pass": passes, "skip": skips, "fail": fails, "panic": unended, "build": unbuilt, "none": untested, "text": "go: a plain line"}
	tests := []struct {
		name string
		argv string // arguments, by commas
		code int
		out  []string // must be in the output, in this order
		not  string   // must not be
	}{
		{"all well", "pass", 0, []string{"# go test pass", "ok  \tp"}, "chatter"},
		{"all well, strict", "-strict,pass", 0, []string{"ok  \tp"}, "left out"},
		{"a failure shows why", "fail", 1, []string{"a_test.go:5: wrong", "--- FAIL: TestA", "FAIL\tp"}, "left out"},
		{"a failure does not end the run", "fail,pass", 1, []string{"FAIL\tp", "# go test pass", "ok  \tp"}, ""},
		{"a panic shows why", "panic", 1, []string{"panic: deep in it", "FAIL\tp"}, ""},
		{"a build failure shows why", "build", 1, []string{"a.go:2:1: syntax error", "[build failed]"}, ""},
		{"go's own lines pass", "text", 0, []string{"go: a plain line"}, ""},
		{"go itself fails", "unknown", 1, []string{"no such pass"}, ""},
		{"a skip is said", "skip", 0, []string{"left out: 1 test(s) in p"}, "a_test.go"},
		{"a skip is a failure, strict", "-strict,skip", 1, []string{"left out: p TestA: a_test.go:5: needs root"}, ""},
		{"a skip made up for later", "-strict,skip,pass", 0, []string{"ok  \tp"}, "left out"},
		{"a skip made up for before", "-strict,pass,skip", 0, []string{"ok  \tp"}, "left out"},
		{"a package without tests", "-strict,pass,none", 1, []string{"# go test none", "no test ran"}, "left out"},
		{"a package without tests, lenient", "none", 0, []string{"[no test files]"}, "left out"},
		{"no pass", "-strict", 2, []string{"nothing to do"}, ""},
		{"unknown flag", "-wrong", 2, []string{"-wrong"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if code := run(t.Context(), strings.Split(tt.argv, ","), s.test, &out, &out); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			rest := out.String()
			for _, want := range tt.out {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("output lacks %q at its place:\n%s", want, out.String())
				}
				rest = after
			}
			if tt.not != "" && strings.Contains(out.String(), tt.not) {
				t.Errorf("output must not hold %q:\n%s", tt.not, out.String())
			}
		})
	}
}

func TestSummary(t *testing.T) {
	left := []skip{{"p", "p TestA", "x"}, {"p", "p TestB", "x"}, {"q", "q TestA", "x"}}
	if got, want := summary(left, 1000), "left out: 3 test(s) in p, q; those that make network namespaces need root: sudo make test"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := summary(left, 0), "left out: 3 test(s) in p, q; go test -v says why"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestRealGo holds the recorded events above to what the go command really writes.
func TestRealGo(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"go.mod":      "module example.org/m\n\ngo 1.26\n",
		"a/a_test.go": "package a\n\nimport \"testing\"\n\nfunc TestA(*testing.T) {}\n\nfunc TestB(t *testing.T) { t.Skip(\"not today\") }\n",
		"b/b_test.go": "package b\n\nimport \"testing\"\n\nfunc TestC(t *testing.T) { t.Run(\"part\", func(t *testing.T) { t.Error(\"wrong\") }) }\n",
		"c/c_test.go": "package c\n\nfunc f() int { return \"\" }\n",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if code := run(t.Context(), []string{"-strict", "--", "-count=1 ./..."}, goTest, &out, &out); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, want := range []string{"ok  \texample.org/m/a", "b_test.go:5: wrong", "--- FAIL: TestC/part", "FAIL\texample.org/m/b",
		"c/c_test.go:3:", "FAIL\texample.org/m/c [build failed]", "left out: example.org/m/a TestB: a_test.go:7: not today", "1 test(s) left out"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
}
