//go:build !race

package controlplane

import (
	"encoding/csv"
	"errors"
	"os"
	"path/filepath"
	"strconv"
)

// simTraffic is what one node sends on average, and what it asks of managers.
type simTraffic struct{ packets, bytes, streams, streamBytes, questions, questionBytes, answerBytes float64 }

func (s *simulation) traffic() (t simTraffic) {
	for _, n := range s.nodes {
		c := n.tr.Counts()
		t.packets += float64(c.PacketsSent)
		t.bytes += float64(c.BytesSent)
		t.streams += float64(c.StreamsDialled)
		t.streamBytes += float64(c.StreamBytesSent)
		t.questions += float64(n.asked.questions.Load())
		t.questionBytes += float64(n.asked.bytesOut.Load())
		t.answerBytes += float64(n.asked.bytesIn.Load())
	}
	return t.times(1 / float64(len(s.nodes)))
}

// less returns t without part of o.
func (t simTraffic) less(o simTraffic, part float64) simTraffic {
	o = o.times(part)
	return simTraffic{t.packets - o.packets, t.bytes - o.bytes, t.streams - o.streams, t.streamBytes - o.streamBytes,
		t.questions - o.questions, t.questionBytes - o.questionBytes, t.answerBytes - o.answerBytes}
}

func (t simTraffic) times(x float64) simTraffic {
	return simTraffic{t.packets * x, t.bytes * x, t.streams * x, t.streamBytes * x, t.questions * x, t.questionBytes * x, t.answerBytes * x}
}

// cost reports what something cost. What is a little less than nothing, after what an idle cluster costs was taken off, is
// nothing.
func (s *simulation) cost(scenario, per string, t simTraffic, units float64) {
	t = t.times(1 / units)
	for _, m := range []struct {
		name  string
		value float64
	}{
		{"packets", t.packets}, {"packet bytes", t.bytes}, {"streams", t.streams}, {"stream bytes", t.streamBytes},
		{"questions to managers", t.questions}, {"bytes of questions", t.questionBytes}, {"bytes of answers", t.answerBytes},
	} {
		s.results.add(scenario, m.name+" per node and "+per, 0, max(0, m.value))
	}
	s.t.Logf("%-7s per node and %s: %.2f packets, %.0f B; %.3f streams, %.0f B; %.3f questions, %.0f B, answered by %.0f B",
		scenario, per, t.packets, t.bytes, t.streams, t.streamBytes, t.questions, t.questionBytes, t.answerBytes)
}

// simResults are numbers and curves.
type simResults struct {
	nodes, endpoints int
	rows             []simResult
}

type simResult struct {
	scenario, measure string
	x, value          float64 // x only in curves
}

func (r *simResults) add(scenario, measure string, x, value float64) {
	r.rows = append(r.rows, simResult{scenario, measure, x, value})
}

// curve returns the points of a measure.
func (r *simResults) curve(scenario, measure string) (points [][2]float64) {
	for _, x := range r.rows {
		if x.scenario == scenario && x.measure == measure {
			points = append(points, [2]float64{x.x, x.value})
		}
	}
	return points
}

// save writes the table and the plot to a folder.
func (r *simResults) save(dir string) (err error) {
	f, err := os.Create(filepath.Join(dir, "cluster-simulation.csv"))
	if err != nil {
		return err
	}
	w := csv.NewWriter(f)
	rows := [][]string{{"scenario", "nodes", "endpoints", "measure", "x", "value"}}
	for _, x := range r.rows {
		rows = append(rows, []string{x.scenario, strconv.Itoa(r.nodes), strconv.Itoa(r.endpoints), x.measure,
			strconv.FormatFloat(x.x, 'f', 3, 64), strconv.FormatFloat(x.value, 'f', 4, 64)})
	}
	if err := errors.Join(w.WriteAll(rows), f.Close()); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cluster-simulation.svg"), r.plot(), 0o644)
}
