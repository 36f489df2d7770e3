package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/overlayd/overlayd/controlplane/api"
)

// printJSON prints a message as the API sends it, indented.
func printJSON(w io.Writer, m proto.Message) error {
	line, err := api.MarshalJSON(m)
	if err != nil {
		return err
	}
	return indent(w, line)
}

// printWith prints a message as JSON, with one more field that holds a second message.
func printWith(w io.Writer, m proto.Message, name string, second proto.Message) error {
	line, err := api.MarshalJSON(m)
	if err != nil {
		return err
	}
	below, err := api.MarshalJSON(second)
	if err != nil {
		return err
	}
	// The API writes every field, so the first one has at least one.
	return indent(w, fmt.Appendf(nil, "%s,%q:%s}", bytes.TrimSuffix(line, []byte("}")), name, below))
}

// printValue prints as JSON what is no message of the API.
func printValue(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// indent prints JSON for people.
func indent(w io.Writer, line []byte) error {
	var out bytes.Buffer
	if err := json.Indent(&out, line, "", "  "); err != nil {
		return fmt.Errorf("indent JSON: %w", err)
	}
	out.WriteByte('\n')
	_, err := w.Write(out.Bytes())
	return err
}

// column is one column of a table.
type column struct {
	title string
	right bool // numbers line up at their last digit
}

// table prints rows in aligned columns. Rows wait for flush, which sets the widths by what there is so far;
// rows that come after it are printed with those widths at least.
type table struct {
	w       io.Writer
	columns []column
	rows    [][]string
	notes   map[int][]string // lines below a row, by its index
	widths  []int
}

func newTable(w io.Writer, columns ...column) *table {
	t := &table{w: w, columns: columns, notes: make(map[int][]string)}
	var titles []string
	for _, c := range columns {
		titles = append(titles, c.title)
	}
	t.widths = make([]int, len(columns))
	t.add(titles...)
	return t
}

func left(title string) column  { return column{title: title} }
func right(title string) column { return column{title: title, right: true} }

// add puts one row into the table. An empty cell is shown as a dash.
func (t *table) add(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

// note puts a line below the row added last.
func (t *table) note(line string) {
	last := len(t.rows) - 1
	t.notes[last] = append(t.notes[last], line)
}

// flush prints the rows that wait.
func (t *table) flush() error {
	const gap = "  "
	for _, row := range t.rows {
		for i, c := range row {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c))
		}
	}
	var out strings.Builder
	for n, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c))
			if i > 0 {
				line.WriteString(gap)
			}
			if t.columns[i].right {
				line.WriteString(pad + c)
			} else {
				line.WriteString(c + pad)
			}
		}
		out.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		for _, note := range t.notes[n] {
			out.WriteString("    " + note + "\n")
		}
	}
	t.rows, t.notes = nil, make(map[int][]string)
	_, err := io.WriteString(t.w, out.String())
	return err
}

// count writes a number with its thousands apart.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plural writes a number of things, in English.
func plural(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return count(n) + " " + thing + "s"
}

// span writes a duration in its one or two largest units: what matters about an age is its size.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}

// ago writes how long a moment is past.
func ago(now, then time.Time) string {
	if now.Sub(then) < time.Second {
		return "just now"
	}
	return span(now.Sub(then)) + " ago"
}
