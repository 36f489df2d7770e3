package report

import (
	"fmt"
	"math"
	"slices"
)

// Add keeps what one round measured: a value for each metric of the workload, in their order. Rounds are
// counted from 1 and come in their order. Values that are no numbers make it a failure.
func (r *Report) Add(contender, workload string, round int, values []float64) {
	w := r.workload(workload)
	if w == nil || len(values) != len(w.Metrics) {
		r.Fail(contender, workload, round, fmt.Errorf("%d values for a workload that has others", len(values)))
		return
	}
	for i, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			r.Fail(contender, workload, round, fmt.Errorf("%s is not a number", w.Metrics[i].Name))
			return
		}
	}
	for i, v := range values {
		res := r.Result(contender, workload, w.Metrics[i].Name)
		if res == nil {
			r.Results = append(r.Results, Result{Contender: contender, Workload: workload, Metric: w.Metrics[i].Name})
			res = &r.Results[len(r.Results)-1]
		}
		res.Samples = append(res.Samples, Sample{Round: round, Value: v})
	}
}

// Fail keeps that a round could not be measured.
func (r *Report) Fail(contender, workload string, round int, err error) {
	r.Failures = append(r.Failures, Failure{Contender: contender, Workload: workload, Round: round, Error: err.Error()})
}

// Summarise computes medians, ratios and floors from the samples.
func (r *Report) Summarise() {
	for i := range r.Results {
		r.Results[i].summarise()
	}
	for i := range r.Results {
		res := &r.Results[i]
		res.Ratio = nil
		c, m := r.contender(res.Contender), r.metric(res.Workload, res.Metric)
		if c == nil || m == nil || !m.Compared {
			continue
		}
		if base := r.Result(c.Baseline, res.Workload, res.Metric); base != nil {
			res.Ratio = ratio(res, base)
		}
	}
	for i := range r.Floors {
		f := &r.Floors[i]
		f.Ratio, f.Met = nil, false
		res, m := r.Result(f.Contender, f.Workload, f.Metric), r.metric(f.Workload, f.Metric)
		if res == nil || res.Ratio == nil || m == nil {
			continue
		}
		f.Ratio = &res.Ratio.Value
		f.Met = *f.Ratio >= f.Limit
		if m.Better == Less {
			f.Met = *f.Ratio <= f.Limit
		}
	}
	for i := range r.Limits {
		l := &r.Limits[i]
		l.Value, l.Workload = r.used(l)
		l.Met = l.Value != nil && *l.Value <= l.Most
	}
}

// used is what a limit is of, nil when it was not measured; and in which workload that was.
func (r *Report) used(l *Limit) (value *float64, workload string) {
	c := r.contender(l.Contender)
	switch {
	case c == nil || c.Daemon == nil:
	case l.Quantity == Idle:
		value = c.Daemon.IdlePercent
	case l.Quantity == Memory:
		for _, w := range r.Workloads {
			peak, ok := c.Daemon.PeakBytes[w.Name]
			if v := float64(peak); ok && (value == nil || v > *value) {
				value, workload = &v, w.Name
			}
		}
	}
	return value, workload
}

// AddLosses adds what other daemons of the same contender have lost.
func (d *Daemon) AddLosses(o *Daemon) {
	for reason, n := range o.Drops {
		d.Drops[reason] += n
	}
	d.TAPOverflow += o.TAPOverflow
	d.ReceiveOverflow += o.ReceiveOverflow
}

func (res *Result) summarise() {
	values := make([]float64, len(res.Samples))
	for i, s := range res.Samples {
		values[i] = s.Value
	}
	res.Median, res.Min, res.Max = median(values), slices.Min(values), slices.Max(values)
}

// median is the middle one, or the mean of the two in the middle. There must be at least one value.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// ratio compares with the baseline; nil where that is zero.
func ratio(res, base *Result) *Ratio {
	if base.Median == 0 {
		return nil
	}
	r := &Ratio{Value: res.Median / base.Median}
	r.Min, r.Max = r.Value, r.Value // until the rounds say more
	first := true
	for _, s := range res.Samples {
		i := slices.IndexFunc(base.Samples, func(b Sample) bool { return b.Round == s.Round })
		if i < 0 || base.Samples[i].Value == 0 {
			continue
		}
		one := s.Value / base.Samples[i].Value
		if first {
			r.Min, r.Max, first = one, one, false
		}
		r.Min, r.Max = min(r.Min, one), max(r.Max, one)
	}
	return r
}

// Result returns what was measured of one metric; nil when nothing was.
func (r *Report) Result(contender, workload, metric string) *Result {
	for i := range r.Results {
		if res := &r.Results[i]; res.Contender == contender && res.Workload == workload && res.Metric == metric {
			return res
		}
	}
	return nil
}

// Missed counts the floors and limits that were not kept or not measured, and all that there are.
func (r *Report) Missed() (missed, all int) {
	for _, f := range r.Floors {
		if !f.Met {
			missed++
		}
	}
	for _, l := range r.Limits {
		if !l.Met {
			missed++
		}
	}
	return missed, len(r.Floors) + len(r.Limits)
}

func (r *Report) contender(name string) *Contender {
	for i := range r.Contenders {
		if r.Contenders[i].Name == name {
			return &r.Contenders[i]
		}
	}
	return nil
}

func (r *Report) workload(name string) *Workload {
	for i := range r.Workloads {
		if r.Workloads[i].Name == name {
			return &r.Workloads[i]
		}
	}
	return nil
}

func (r *Report) metric(workload, name string) *Metric {
	w := r.workload(workload)
	if w == nil {
		return nil
	}
	for i := range w.Metrics {
		if w.Metrics[i].Name == name {
			return &w.Metrics[i]
		}
	}
	return nil
}
