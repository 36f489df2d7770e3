package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Encode writes the report as JSON.
func (r *Report) Encode(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false) // it is read by people, too
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write the report as JSON: %w", err)
	}
	return nil
}

// Decode reads what Encode wrote, and checks that it makes sense.
func Decode(rd io.Reader) (*Report, error) {
	r := new(Report)
	if err := json.NewDecoder(rd).Decode(r); err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	return r, nil
}

// check finds what the tables could not be made from.
func (r *Report) check() error {
	if r.Schema != Schema {
		return fmt.Errorf("its schema is number %d, and this program knows %d: use the program that wrote it", r.Schema, Schema)
	}
	if len(r.Contenders) == 0 || len(r.Workloads) == 0 {
		return errors.New("it has no contenders or no workloads")
	}
	for i, c := range r.Contenders {
		if c.Name == "" || r.contender(c.Baseline) == nil {
			return fmt.Errorf("contenders[%d]: %q is compared with %q, which is not there", i, c.Name, c.Baseline)
		}
	}
	for i, res := range r.Results {
		switch {
		case r.contender(res.Contender) == nil || r.metric(res.Workload, res.Metric) == nil:
			return fmt.Errorf("results[%d]: there is no %s of %s for %s", i, res.Metric, res.Workload, res.Contender)
		case len(res.Samples) == 0:
			return fmt.Errorf("results[%d]: no samples", i)
		}
	}
	for i, f := range r.Floors {
		if r.metric(f.Workload, f.Metric) == nil && f.Ratio != nil {
			return fmt.Errorf("floors[%d]: there is no %s of %s", i, f.Metric, f.Workload)
		}
	}
	return nil
}
