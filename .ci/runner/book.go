package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is a line of `go test -json`, as `go doc test2json` describes it.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// skip is a test that did not run.
type skip struct {
	pkg, name, reason string // name holds pkg too
}

// book turns the events of go test into the text that go test prints without -json and -v, and
// remembers which tests ran. It is the io.Writer of one go test after another, with flush between.
type book struct {
	out     io.Writer
	partial []byte              // an event of which the end has not come yet
	output  map[string][]string // output of tests (pkg + " " + test) not known to be good
	done    map[string]bool     // tests that ran, well or not
	skipped map[string]skip     // tests that skipped themselves, by the same key
	ran     int                 // tests ended so far, skipped ones too
}

func newBook(out io.Writer) *book {
	return &book{out: out, output: map[string][]string{}, done: map[string]bool{}, skipped: map[string]skip{}}
}

// Write takes events as they come. It never fails.
func (b *book) Write(p []byte) (int, error) {
	b.partial = append(b.partial, p...)
	for {
		line, rest, ok := bytes.Cut(b.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		b.line(line)
		b.partial = append([]byte(nil), rest...)
	}
}

// flush ends a pass: whatever has been kept back belongs to tests that never ended.
func (b *book) flush() {
	if len(b.partial) > 0 {
		b.line(b.partial)
		b.partial = nil
	}
	for _, key := range slices.Sorted(maps.Keys(b.output)) {
		b.print(key)
	}
}

// line takes one event. A line that is none is the go command's own and is passed on.
func (b *book) line(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
		fmt.Fprintf(b.out, "%s\n", line)
		return
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		io.WriteString(b.out, e.Output)
	case "output":
		if e.Test != "" {
			b.output[key] = append(b.output[key], e.Output)
		} else {
			b.packageOutput(e)
		}
	case "pass", "fail", "skip":
		if e.Test != "" {
			b.endTest(key, e)
		}
	}
}

// endTest takes the last event of a test.
func (b *book) endTest(key string, e event) {
	b.ran++
	switch e.Action {
	case "skip":
		b.skipped[key] = skip{e.Package, key, reason(b.output[key])}
		delete(b.output, key)
	case "pass":
		b.done[key] = true
		delete(b.output, key)
	case "fail":
		b.done[key] = true
		b.print(key)
	}
}

// packageOutput takes what is said of a package as a whole. Tests that have not ended when it is said to
// have failed were cut short by a panic or a time limit, and their output says where.
func (b *book) packageOutput(e event) {
	if e.Output == "PASS\n" {
		return // go test says it with -v only
	}
	if strings.HasPrefix(e.Output, "FAIL") {
		for _, key := range slices.Sorted(maps.Keys(b.output)) {
			if strings.HasPrefix(key, e.Package+" ") {
				b.print(key)
			}
		}
	}
	io.WriteString(b.out, e.Output)
}

// chatter are the lines that tell of a test's progress, which go test prints with -v only.
var chatter = regexp.MustCompile(`^\s*=== (RUN|PAUSE|CONT|NAME|ATTR) `)

// print writes out and forgets what a test has said.
func (b *book) print(key string) {
	for _, text := range b.output[key] {
		if !chatter.MatchString(text) {
			io.WriteString(b.out, text)
		}
	}
	delete(b.output, key)
}

// reason finds what a skipped test gave as its reason: the last thing that it said before the
// verdict.
func reason(output []string) string {
	last := "no reason given"
	for _, text := range output {
		text = strings.TrimSpace(text)
		if text != "" && !chatter.MatchString(text) && !strings.HasPrefix(text, "--- ") {
			last = text
		}
	}
	return last
}

// leftOut lists the tests that ran in no pass, by package and name.
func (b *book) leftOut() []skip {
	var left []skip
	for key, s := range b.skipped {
		if !b.done[key] {
			left = append(left, s)
		}
	}
	slices.SortFunc(left, func(x, y skip) int {
		return cmp.Or(strings.Compare(x.pkg, y.pkg), strings.Compare(x.name, y.name))
	})
	return left
}
