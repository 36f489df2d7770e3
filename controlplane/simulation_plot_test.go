//go:build !race

package controlplane

import (
	"bytes"
	"fmt"
	"math"
)

// Sizes of the plot, in pixels.
const (
	plotWidth, plotHeight          = 430.0, 240.0 // of what is inside the axes
	plotLeft, plotTop, plotBetween = 60.0, 50.0, 70.0
)

// line is one curve of a panel.
type line struct {
	label, colour string
	points        [][2]float64
}

// panel is one of the two coordinate systems: shares from 0 to 1 over x from 0 on.
type panel struct {
	title, unit string
	lines       []line
}

// plot draws the curves as SVG.
func (r *simResults) plot() []byte {
	const by = "share of nodes that have a change, by ms"
	panels := []panel{
		{"Nodes that have a change", "ms after the change", []line{
			{"one change a second", "#1f6fb4", r.curve("change", by)},
			{"20 changes a second", "#d9741a", r.curve("busy", by)},
			{"one a second, 10 % of packets lost", "#2a8f3c", r.curve("loss", by)},
			{"one a second, 10 % of nodes dead", "#a03c9c", r.curve("die", by)},
		}},
		{"After two halves meet again", "s after the partition ends", []line{
			{"nodes that have all changes", "#1f6fb4", r.curve("heal", "share of nodes that have all changes, by s")},
			{"members that are known", "#d9741a", r.curve("heal", "share of members that are known, by s")},
		}},
	}
	var b bytes.Buffer
	width := plotLeft + float64(len(panels))*(plotWidth+plotBetween)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", width, plotTop+plotHeight+60)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="%.0f" y="18" font-size="14">%d nodes, %d endpoints, simulated in virtual time</text>`+"\n", plotLeft, r.nodes, r.endpoints)
	for i, p := range panels {
		p.draw(&b, plotLeft+float64(i)*(plotWidth+plotBetween))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// draw draws a panel whose left axis is at x = left.
func (p panel) draw(b *bytes.Buffer, left float64) {
	widest := 0.0
	for _, l := range p.lines {
		for _, at := range l.points {
			widest = max(widest, at[0])
		}
	}
	step := tick(widest)
	widest = step * math.Ceil(max(widest, step)/step)
	x := func(v float64) float64 { return left + plotWidth*v/widest }
	y := func(v float64) float64 { return plotTop + plotHeight*(1-v) }
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" font-weight="bold">%s</text>`+"\n", left, plotTop-12, p.title)
	for i := range 5 {
		v := float64(i) / 4
		fmt.Fprintf(b, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%.0f %%</text>`+"\n",
			left, y(v), left+plotWidth, left-6, y(v)+4, 100*v)
	}
	for i := range int(math.Round(widest/step)) + 1 {
		v := float64(i) * step
		fmt.Fprintf(b, `<path d="M%.1f %.1fV%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="middle">%.4g</text>`+"\n",
			x(v), y(0), y(1), x(v), y(0)+18, v)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", left+plotWidth/2, y(0)+38, p.unit)
	for i, l := range p.lines {
		fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="1.8" points="`, l.colour)
		for _, at := range l.points {
			fmt.Fprintf(b, "%.1f,%.1f ", x(at[0]), y(at[1]))
		}
		at := y(0) - 14 - 16*float64(len(p.lines)-1-i)
		fmt.Fprintf(b, `"/><path d="M%.1f %.1fh18" stroke="%s" stroke-width="3"/><text x="%.1f" y="%.1f">%s</text>`+"\n",
			left+plotWidth-230, at-4, l.colour, left+plotWidth-206, at, l.label)
	}
}

// tick returns a round distance between four to ten marks up to a value.
func tick(most float64) float64 {
	if most <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(most)))
	for _, part := range []float64{0.1, 0.2, 0.25, 0.5} {
		if most/(unit*part) <= 10 {
			return unit * part
		}
	}
	return unit
}
