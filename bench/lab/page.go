package lab

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// pageWidth is where text is wrapped, in characters.
const pageWidth = 100

// page writes text for people. The first error of the writer stays, and ends all further writing.
type page struct {
	w      io.Writer
	colour bool
	err    error
}

// newPage colours what goes to a terminal, unless the user does not want that (no-color.org).
func newPage(w io.Writer) *page {
	p := &page{w: w}
	if f, ok := w.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.colour = err == nil
	}
	return p
}

// ANSI styles.
const (
	bold  = "1"
	faint = "2"
	red   = "31"
	green = "32"
)

func (p *page) style(code, text string) string {
	if !p.colour || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (p *page) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// command shows one that is about to run, and how long that is after the start.
func (p *page) command(after time.Duration, host, line string) {
	p.printf("  %s  %-6s  %s\n", p.style(faint, fmt.Sprintf("%5.1f s", after.Seconds())), host, line)
}

// quote shows what a command has printed, below that command.
func (p *page) quote(text string) {
	for line := range strings.Lines(text) {
		p.printf("%19s%s\n", "", strings.TrimRight(line, " \n"))
	}
}

// section begins a part with a title and a sentence that explains it.
func (p *page) section(title, explanation string) {
	p.printf("\n%s\n", p.style(bold, title))
	if explanation != "" {
		p.printf("%s\n", p.style(faint, wrap(explanation, pageWidth)))
	}
}

// rows is a table: the first row holds the titles. A column whose title begins with a space is aligned to
// the right.
type rows [][]string

func (r *rows) add(cells ...string) { *r = append(*r, cells) }

func (p *page) table(r rows) {
	widths := make([]int, len(r[0]))
	right := make([]bool, len(r[0]))
	for i, title := range r[0] {
		if rest, ok := strings.CutPrefix(title, " "); ok {
			right[i], r[0][i] = true, rest
		}
	}
	for _, row := range r {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for n, row := range r {
		var line strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			switch {
			case right[i]:
				line.WriteString("  " + pad + c)
			default:
				line.WriteString("  " + c + pad)
			}
		}
		text := strings.TrimRight(line.String(), " ")
		if n == 0 {
			text = p.style(faint, text)
		}
		p.printf("%s\n", text)
	}
}

// wrap breaks text at spaces into lines of at most width.
func wrap(text string, width int) string {
	var out strings.Builder
	column := 0
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+n > width:
			out.WriteByte('\n')
			column = 0
		default:
			out.WriteByte(' ')
			column++
		}
		out.WriteString(word)
		column += n
	}
	return out.String()
}

// grouped writes a number with its thousands apart.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func millis(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1e3) }

func gigabits(bitsPerSecond float64) string { return fmt.Sprintf("%.2f Gb/s", bitsPerSecond/1e9) }

func percent(part float64) string { return fmt.Sprintf("%.2f %%", 100*part) }
