package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// lineWidth is where running text is broken.
const lineWidth = 110

// Print writes the report as tables for people.
func (r *Report) Print(w io.Writer) error {
	p := &printer{w: w}
	p.head(r)
	// What is read once comes first, so that what is looked for stands at the end, where a terminal stops.
	p.contenders(r)
	p.wires(r)
	p.method(r)
	for i := range r.Workloads {
		p.workload(r, &r.Workloads[i])
	}
	p.daemons(r)
	p.failures(r)
	p.floors(r)
	p.warnings(r)
	if p.err != nil {
		return fmt.Errorf("print the report: %w", p.err)
	}
	return nil
}

// printer keeps the first error of its writer, which ends all further writing.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// text prints a paragraph: first before its first line, and as much space before the others.
func (p *printer) text(first, text string) {
	indent := strings.Repeat(" ", utf8.RuneCountInString(first))
	line := first
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > lineWidth:
			p.printf("%s\n", line)
			line = indent
		default:
			line += " "
		}
		line += word
	}
	p.printf("%s\n", line)
}

// row is a line of a table; a row with one cell stands by itself and widens no column.
type row []string

// table aligns the first column to the left and the others to the right.
func (p *printer) table(rows []row) {
	var widths []int
	for _, cells := range rows {
		for i, c := range cells {
			if len(cells) == 1 {
				break
			}
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, cells := range rows {
		var line strings.Builder
		for i, c := range cells {
			pad := ""
			if len(cells) > 1 {
				pad = strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			}
			if i == 0 {
				line.WriteString("  " + c + pad)
			} else {
				line.WriteString("  " + pad + c)
			}
		}
		p.printf("%s\n", strings.TrimRight(line.String(), " "))
	}
}

func (p *printer) head(r *Report) {
	e := &r.Environment
	took := (time.Duration(r.Seconds) * time.Second).String()
	p.printf("overlayd beside the kernel's VXLAN, in one run of %s on %s\n", took, r.Start.UTC().Format("2006-01-02 15:04 UTC"))
	about := []string{
		fmt.Sprintf("Linux %s on %s, %d cores of %s, %.1f GB of memory", e.Kernel, e.Architecture, e.Cores, e.CPU, float64(e.MemoryBytes)/1e9),
	}
	if e.Governor != "" {
		about = append(about, "governor "+e.Governor)
	}
	if e.Overlayd != "" {
		about = append(about, "overlayd "+e.Overlayd)
	}
	if !strings.Contains(e.Overlayd, e.Go) {
		about = append(about, e.Go)
	}
	p.text("  ", strings.Join(about, "; "))
	p.text("  ", fmt.Sprintf("Cores in use by others: %.2f before the start, %.2f by contenders not in turn, %.2f by other guests of the hypervisor.",
		e.BusyBefore, e.Bystanders, e.Steal))
}

func (p *printer) warnings(r *Report) {
	if len(r.Warnings) == 0 {
		return
	}
	p.printf("\n")
	for _, warning := range r.Warnings {
		p.text("WARNING: ", warning)
	}
}

func (p *printer) workload(r *Report, w *Workload) {
	p.printf("\n")
	p.text("", w.About)
	spread := r.Method.Rounds > 1
	title := row{"CONTENDER"}
	for _, m := range w.Metrics {
		title = append(title, m.Title)
		if spread {
			title = append(title, "MIN..MAX")
		}
		if m.Compared {
			title = append(title, "x KERNEL")
		}
	}
	rows := []row{title}
	wire := ""
	for _, c := range r.Contenders {
		if !r.tried(c.Name, w.Name) {
			continue
		}
		if c.Wire != wire && len(r.Environment.Wires) > 1 {
			rows = append(rows, row{"- " + r.wireAbout(c.Wire)})
		}
		wire = c.Wire
		rows = append(rows, r.cells(&c, w, spread))
	}
	p.table(rows)
}

// tried reports whether the contender had a turn in the workload.
func (r *Report) tried(contender, workload string) bool {
	return slices.ContainsFunc(r.Results, func(x Result) bool { return x.Contender == contender && x.Workload == workload }) ||
		slices.ContainsFunc(r.Failures, func(x Failure) bool { return x.Contender == contender && x.Workload == workload })
}

// cells are the line of one contender.
func (r *Report) cells(c *Contender, w *Workload, spread bool) row {
	cells := row{c.Name}
	for _, m := range w.Metrics {
		value, between, times := "-", "", "-"
		if res := r.Result(c.Name, w.Name, m.Name); res != nil {
			value = number(res.Median, m.Digits)
			between = number(res.Min, m.Digits) + ".." + number(res.Max, m.Digits)
			if res.Ratio != nil {
				times = number(res.Ratio.Value, 2)
			}
		}
		cells = append(cells, value)
		if spread {
			cells = append(cells, between)
		}
		if m.Compared {
			cells = append(cells, times)
		}
	}
	return cells
}

func (r *Report) wireAbout(name string) string {
	for _, w := range r.Environment.Wires {
		if w.Name == name {
			return w.About
		}
	}
	return name
}

func number(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }

func (p *printer) failures(r *Report) {
	if len(r.Failures) == 0 {
		return
	}
	p.printf("\nNot measured\n")
	for _, f := range r.Failures {
		p.text(fmt.Sprintf("  %s, %s, round %d: ", f.Contender, f.Workload, f.Round), f.Error)
	}
}

func (p *printer) contenders(r *Report) {
	p.printf("\nContenders\n")
	width := 0
	for _, c := range r.Contenders {
		width = max(width, len(c.Name))
	}
	for _, c := range r.Contenders {
		p.text(fmt.Sprintf("  %-*s  ", width, c.Name), c.About)
		if c.Daemon != nil {
			p.text(fmt.Sprintf("  %*s  ", width, ""), c.Daemon.describe())
		}
	}
}

// describe is what a daemon ran with and what it lost.
func (d *Daemon) describe() string {
	parts := []string{fmt.Sprintf("%s backend, MTU %d, queues: %d", d.Backend, d.MTU, d.Queues)}
	for _, f := range d.Features {
		if !f.On {
			parts = append(parts, fmt.Sprintf("without %s (%s)", f.Name, f.Reason))
		}
	}
	var lost []string
	for _, reason := range slices.Sorted(maps.Keys(d.Drops)) {
		lost = append(lost, fmt.Sprintf("%d %s", d.Drops[reason], reason))
	}
	if d.TAPOverflow > 0 {
		lost = append(lost, fmt.Sprintf("%d in the kernel's queue in front of the TAP", d.TAPOverflow))
	}
	if d.ReceiveOverflow > 0 {
		lost = append(lost, fmt.Sprintf("%d in the socket's receive buffer", d.ReceiveOverflow))
	}
	if len(lost) > 0 {
		parts = append(parts, "lost in the whole run: "+strings.Join(lost, ", "))
	}
	return strings.Join(parts, "; ")
}

func (p *printer) wires(r *Report) {
	p.printf("\nWires\n")
	width := 0
	for _, w := range r.Environment.Wires {
		width = max(width, len(w.Name))
	}
	for _, w := range r.Environment.Wires {
		on := make(map[bool][]string)
		for _, name := range slices.Sorted(maps.Keys(w.Offloads)) {
			on[w.Offloads[name]] = append(on[w.Offloads[name]], name)
		}
		text := fmt.Sprintf("%s; MTU %d", w.About, w.MTU)
		if len(on[true]) > 0 {
			text += "; on: " + strings.Join(on[true], ", ")
		}
		if len(on[false]) > 0 {
			text += "; off: " + strings.Join(on[false], ", ")
		}
		p.text(fmt.Sprintf("  %-*s  ", width, w.Name), text)
	}
}

func (p *printer) method(r *Report) {
	p.printf("\nHow it was measured\n")
	for _, note := range r.Method.Notes {
		p.text("  - ", note)
	}
	var settings []string
	for _, name := range slices.Sorted(maps.Keys(r.Environment.Settings)) {
		settings = append(settings, name+" = "+r.Environment.Settings[name])
	}
	if len(settings) > 0 {
		p.text("  - ", "Settings of the kernel: "+strings.Join(settings, "; ")+".")
	}
}
