package report

import (
	"bufio"
	"fmt"
	"html"
	"io"
)

// The measures of a chart, in pixels.
const (
	chartWidth   = 860
	chartNames   = 210 // of the column with the contenders
	chartValues  = 130 // of the one with the numbers
	chartRow     = 16
	chartGap     = 30 // above each workload, with its title
	chartHead    = 54
	chartFoot    = 34
	chartMost    = 2.5 // times the kernel: longer bars are cut
	chartScale   = float64(chartWidth-chartNames-chartValues) / chartMost
	chartNoColor = "#9aa0a6"
)

// A bar is coloured by whether it is better than the kernel's.
const (
	chartBetter = "#2a7f62"
	chartWorse  = "#c0703a"
)

// Chart draws the report as an SVG image: for each workload the median of its first metric as a multiple of the
// kernel's, which is the line at 1. Contenders that are compared with nothing but themselves are left out.
func (r *Report) Chart(w io.Writer) error {
	out := bufio.NewWriter(w)
	c := chart{out: out, y: chartHead}
	body := func() {
		for i := range r.Workloads {
			c.workload(r, &r.Workloads[i])
		}
	}
	// The height is only known when all has been drawn.
	c.out = bufio.NewWriter(io.Discard)
	body()
	height := c.y + chartFoot
	c.out, c.y = out, chartHead
	c.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", chartWidth, height)
	c.printf(`<rect width="100%%" height="100%%" fill="white"/>` + "\n")
	c.text(10, 20, `font-size="15" font-weight="bold"`, "overlayd beside the kernel's VXLAN: multiples of the kernel, medians")
	c.text(10, 38, `fill="#5f6368"`, fmt.Sprintf("Linux %s, %d cores of %s, %s; %d rounds of %g s; overlayd %s",
		r.Environment.Kernel, r.Environment.Cores, r.Environment.CPU, r.Start.UTC().Format("2006-01-02"), r.Method.Rounds, r.Method.Duration, r.Environment.Overlayd))
	body()
	one := chartNames + chartScale
	c.printf(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#202124" stroke-dasharray="3 3"/>`+"\n", one, chartHead, one, c.y+4)
	c.text(int(one)-18, c.y+18, `fill="#202124"`, "kernel")
	c.printf("</svg>\n")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("draw the chart: %w", err)
	}
	return nil
}

// chart goes down the page. Errors are kept by out.
type chart struct {
	out *bufio.Writer
	y   int
}

func (c *chart) printf(format string, args ...any) { fmt.Fprintf(c.out, format, args...) }

func (c *chart) text(x, y int, attributes, text string) {
	c.printf(`<text x="%d" y="%d" %s>%s</text>`+"\n", x, y, attributes, html.EscapeString(text))
}

func (c *chart) workload(r *Report, w *Workload) {
	if len(w.Metrics) == 0 || !w.Metrics[0].Compared {
		return
	}
	m := &w.Metrics[0]
	drawn := false
	for i := range r.Contenders {
		e := &r.Contenders[i]
		res := r.Result(e.Name, w.Name, m.Name)
		if e.Name == e.Baseline || res == nil || res.Ratio == nil {
			continue
		}
		if !drawn {
			drawn = true
			c.y += chartGap
			better := ""
			if m.Better == Less {
				better = " (shorter is better)"
			}
			c.text(10, c.y-8, `font-weight="bold"`, fmt.Sprintf("%s, %s%s", w.Name, m.Title, better))
		}
		c.bar(e, m, res)
	}
}

func (c *chart) bar(e *Contender, m *Metric, res *Result) {
	ratio := res.Ratio.Value
	colour := chartBetter
	if (m.Better == Less) != (ratio < 1) {
		colour = chartWorse
	}
	if e.Daemon == nil { // the bare wire is no rival
		colour = chartNoColor
	}
	cut := ""
	length := ratio
	if length > chartMost {
		length, cut = chartMost, " >"
	}
	c.text(20, c.y+11, `fill="#202124"`, e.Name)
	c.printf(`<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", chartNames, c.y+1, length*chartScale, chartRow-4, colour)
	c.text(chartWidth-chartValues+6, c.y+11, `fill="#202124"`, fmt.Sprintf("%s x%s  %s %s", number(ratio, 2), cut, number(res.Median, m.Digits), m.Unit))
	c.y += chartRow
}
