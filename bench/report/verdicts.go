package report

import (
	"fmt"
	"slices"
	"strings"
)

// daemons is a table of what the daemons of each contender used.
func (p *printer) daemons(r *Report) {
	var of []*Contender
	title := row{""}
	for i := range r.Contenders {
		if c := &r.Contenders[i]; c.Daemon != nil && (c.Daemon.IdlePercent != nil || len(c.Daemon.PeakBytes) > 0) {
			of = append(of, c)
			title = append(title, c.Name)
		}
	}
	if len(of) == 0 {
		return
	}
	p.printf("\nDaemons: what the one used that used most, of each contender\n")
	idle := row{"% of a core, without any traffic"}
	for _, c := range of {
		idle = append(idle, optional(c.Daemon.IdlePercent, 1, 2))
	}
	rows := []row{title, idle}
	for _, w := range r.Workloads {
		line := row{"peak of memory in " + w.Name + ", MB"}
		for _, c := range of {
			cell := "-"
			if peak, ok := c.Daemon.PeakBytes[w.Name]; ok {
				cell = number(float64(peak)/1e6, 1)
			}
			line = append(line, cell)
		}
		if slices.ContainsFunc(line[1:], func(s string) bool { return s != "-" }) {
			rows = append(rows, line)
		}
	}
	p.table(rows)
}

// optional is a number that may not be there, in another unit.
func optional(v *float64, unit float64, digits int) string {
	if v == nil {
		return "-"
	}
	return number(*v/unit, digits)
}

// floors is a table of the floors and limits that something can be said about, and a line with the others.
func (p *printer) floors(r *Report) {
	if len(r.Floors)+len(r.Limits) == 0 {
		return
	}
	p.printf("\nFloors and limits\n")
	rows := []row{{"OF", "HERE", "KERNEL", "x KERNEL", "ASKED", "GOAL", ""}}
	var others unmeasured
	for _, f := range r.Floors {
		if f.Ratio == nil {
			others.add(f.Contender, f.Workload)
			continue
		}
		rows = append(rows, r.floor(&f))
	}
	for _, l := range r.Limits {
		if l.Value == nil {
			others.add(l.Contender, l.words().short)
			continue
		}
		rows = append(rows, l.row())
	}
	if len(rows) > 1 {
		p.table(rows)
	}
	if len(others.contenders) > 0 {
		p.text("  Not measured: ", others.String())
	}
}

// unmeasured is what there are floors and limits for and no numbers, by contender.
type unmeasured struct {
	contenders []string
	of         map[string][]string
}

func (u *unmeasured) add(contender, what string) {
	if u.of == nil {
		u.of = make(map[string][]string)
	}
	if len(u.of[contender]) == 0 {
		u.contenders = append(u.contenders, contender)
	}
	if !slices.Contains(u.of[contender], what) {
		u.of[contender] = append(u.of[contender], what)
	}
}

func (u *unmeasured) String() string {
	var parts []string
	for _, c := range u.contenders {
		parts = append(parts, strings.Join(u.of[c], ", ")+" of "+c)
	}
	return strings.Join(parts, "; ")
}

// floor is the line of one floor, with the numbers that it was decided by.
func (r *Report) floor(f *Floor) row {
	m, c := r.metric(f.Workload, f.Metric), r.contender(f.Contender)
	title, here, there, asked := f.Metric, "-", "-", "at least "
	if m != nil && c != nil {
		title = m.Title
		if m.Better == Less {
			asked = "at most "
		}
		if own := r.Result(c.Name, f.Workload, f.Metric); own != nil {
			here = number(own.Median, m.Digits)
		}
		if base := r.Result(c.Baseline, f.Workload, f.Metric); base != nil {
			there = number(base.Median, m.Digits)
		}
	}
	goal := ""
	if f.Goal != 0 {
		goal = number(f.Goal, 2)
	}
	return row{fmt.Sprintf("%s, %s, %s", f.Contender, f.Workload, title), here, there, optional(f.Ratio, 1, 3), asked + number(f.Limit, 2), goal, verdict(f.Met)}
}

// words say what a quantity is.
type words struct {
	long, short string
	unit        float64
	digits      int
}

func (l *Limit) words() words {
	if l.Quantity == Memory {
		return words{long: "memory of a daemon, MB", short: "memory", unit: 1e6, digits: 1}
	}
	return words{long: "daemon without traffic, % of a core", short: "idling", unit: 1, digits: 2}
}

func (l *Limit) row() row {
	w := l.words()
	of := l.Contender + ", " + w.long
	if l.Workload != "" {
		of += " (" + l.Workload + ")"
	}
	return row{of, optional(l.Value, w.unit, w.digits), "", "", "at most " + number(l.Most/w.unit, w.digits), "", verdict(l.Met)}
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "MISSED"
}
