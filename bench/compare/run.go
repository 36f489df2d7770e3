package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/report"
)

// Options say what to measure and how.
type Options struct {
	Contenders []string      // names, "default" or "all"; what they are compared with comes along
	Workloads  []string      // names; empty = all
	Rounds     int           // at least 1
	Duration   time.Duration // of each measurement
	Warmup     time.Duration // of traffic before each that is not measured; may be 0
	Congestion string        // congestion control of TCP, as the kernel names it; empty = what the machine has as its default
	Overlayd   string        // path of the daemon's binary; needed when a contender runs it
	Overlayctl string        // path of the operator's command line; needed when a contender has a cluster
	Progress   io.Writer     // a line for each step; nil = nobody watches
}

// The shortest measurement that the clocks of the kernel, of 10 ms, have something to say about.
const leastDuration = 100 * time.Millisecond

// quietDuration is long enough for a daemon's own timers, of which the slowest go every few seconds.
const quietDuration = 5 * time.Second

// plan is what Options ask for.
type plan struct {
	Options
	timing
	contenders []contender
	workloads  []workload
}

func (o Options) plan() (*plan, error) {
	p := &plan{Options: o, timing: timing{warmup: o.Warmup, duration: o.Duration}}
	switch {
	case o.Rounds < 1:
		return nil, fmt.Errorf("%d rounds are not enough for anything: give at least 1", o.Rounds)
	case o.Duration < leastDuration:
		return nil, fmt.Errorf("a duration of %v is too short to measure: give at least %v", o.Duration, leastDuration)
	case o.Warmup < 0:
		return nil, fmt.Errorf("the warm-up of %v is negative", o.Warmup)
	}
	if p.Progress == nil {
		p.Progress = io.Discard
	}
	err := checkCongestion(o.Congestion)
	if err != nil {
		return nil, err
	}
	if p.contenders, err = chooseContenders(o.Contenders); err != nil {
		return nil, err
	}
	if p.workloads, err = chooseWorkloads(o.Workloads); err != nil {
		return nil, err
	}
	return p, p.fit()
}

// fit leaves out the workloads that no contender can be measured with. It is an error if one of them was named.
func (p *plan) fit() error {
	var fitting []workload
	for _, w := range p.workloads {
		switch {
		case slices.ContainsFunc(p.contenders, func(c contender) bool { return w.suits(&c) }):
			fitting = append(fitting, w)
		case slices.Contains(p.Workloads, w.Name):
			return fmt.Errorf("the workload %s is of hosts on the wire with tunnel offload, and no contender that is named has them: add %s", w.Name, overlaydName)
		}
	}
	p.workloads = fitting
	return nil
}

// programs are the binaries that labs need.
func (p *plan) programs() lab.Options {
	return lab.Options{Overlayd: p.Overlayd, Overlayctl: p.Overlayctl}
}

// Run measures. A measurement that fails is told in the report and the others go on; what makes it pointless
// to go on is the error. Nothing is left behind. The report may come together with an error: that not
// everything could be removed.
func Run(ctx context.Context, o Options) (*report.Report, error) {
	p, err := o.plan()
	if err != nil {
		return nil, err
	}
	r := &report.Report{Schema: report.Schema, Start: time.Now().UTC().Truncate(time.Second), Method: p.method(), Floors: floors(), Limits: limits()}
	for _, w := range p.workloads {
		r.Workloads = append(r.Workloads, w.Workload)
	}
	a, err := p.bringUp(ctx)
	if err != nil {
		return nil, interrupted(ctx, err)
	}
	start := time.Now()
	err = p.measure(ctx, a, r)
	r.Seconds = time.Since(start).Round(100 * time.Millisecond).Seconds()
	cerr := a.closeAll()
	if err != nil {
		return nil, errors.Join(interrupted(ctx, err), cerr)
	}
	r.Summarise()
	return r, cerr
}

// interrupted puts the end of the context into words.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted; everything is removed again")
	}
	return err
}

// measure goes through all rounds and fills the report.
func (p *plan) measure(ctx context.Context, a *arena, r *report.Report) error {
	var err error
	if r.Environment, err = a.describe(); err != nil {
		return err
	}
	e := &r.Environment
	if e.BusyBefore, err = a.settle(ctx, p.quiet()); err != nil {
		return err
	}
	start := time.Now()
	before, err := readCPU()
	if err != nil {
		return err
	}
	b := bystanders{arena: a}
	for round := 1; round <= p.Rounds; round++ {
		for _, w := range p.workloads {
			for _, s := range a.stands {
				if !w.suits(&s.contender) {
					continue
				}
				if err := p.turn(ctx, &b, r, round, &w, s); err != nil {
					return err
				}
			}
		}
	}
	after, err := readCPU()
	if err != nil {
		return err
	}
	e.Steal = after.since(before).steal.Seconds() / time.Since(start).Seconds()
	e.Bystanders = b.cores()
	r.Warnings = p.warnings(e)
	for _, s := range a.stands {
		entry, err := s.entry(ctx)
		if err != nil { // the numbers stand without it
			r.Warnings = append(r.Warnings, err.Error())
		}
		if entry.Daemon != nil {
			e.Overlayd = entry.Daemon.Version
		}
		r.Contenders = append(r.Contenders, entry)
	}
	return ctx.Err()
}

// turn is one measurement. Its error is one of the whole run.
func (p *plan) turn(ctx context.Context, b *bystanders, r *report.Report, round int, w *workload, s *stand) error {
	say := fmt.Sprintf("round %d of %d  %-*s  %-*s ", round, p.Rounds, p.workloadWidth(), w.Name, p.nameWidth(), s.name)
	values, err := p.take(ctx, b, w, s)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.Fail(s.name, w.Name, round, err)
		say += "failed: " + err.Error()
	} else {
		r.Add(s.name, w.Name, round, values)
		say += fmt.Sprintf("%8.*f %s", w.Metrics[0].Digits, values[0], w.Metrics[0].Unit)
	}
	if _, err := fmt.Fprintln(p.Progress, say); err != nil {
		return fmt.Errorf("say what was measured: %w", err)
	}
	return nil
}

// take measures once with a contender: in its lab, or in the scene of the workload.
func (p *plan) take(ctx context.Context, b *bystanders, w *workload, s *stand) (values []float64, err error) {
	at := s
	if w.scene != nil {
		if at, err = p.raise(ctx, s.contender, w.scene(&s.contender)); err != nil {
			return nil, err
		}
		defer func() {
			if err == nil {
				err = s.notes.noteLosses(ctx, at)
			}
			err = errors.Join(err, at.close())
		}()
	}
	if err := errors.Join(at.alive(), at.watchPeaks()); err != nil {
		return nil, err
	}
	// What the turn before left behind is not to be collected at the cost of this one.
	runtime.GC()
	b.begin(s)
	values, err = w.run(ctx, at, p.timing)
	b.end(s)
	if err != nil {
		if dead := at.alive(); dead != nil {
			err = dead
		}
		return nil, err
	}
	return values, s.notes.notePeaks(w.Name, at)
}

func (p *plan) workloadWidth() int {
	width := 0
	for _, w := range p.workloads {
		width = max(width, len(w.Name))
	}
	return width
}

func (p *plan) nameWidth() int {
	width := 0
	for _, c := range p.contenders {
		width = max(width, len(c.name))
	}
	return width
}

// quiet is how long is looked at what there is while nothing is measured.
func (p *plan) quiet() time.Duration { return min(quietDuration, 5*p.duration) }

// busyNow is how many cores are busy while nothing is measured.
func busyNow(ctx context.Context, d time.Duration) (float64, error) {
	start := time.Now()
	before, err := readCPU()
	if err != nil {
		return 0, err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-t.C:
	}
	after, err := readCPU()
	return after.since(before).busy.Seconds() / time.Since(start).Seconds(), err
}

// bystanders adds up what the contenders cost that are not in turn.
type bystanders struct {
	arena *arena
	used  time.Duration
	time  time.Duration
	start time.Time
	then  time.Duration
}

func (b *bystanders) sum(inTurn *stand) time.Duration {
	var d time.Duration
	for _, s := range b.arena.stands {
		if s != inTurn {
			d += s.used()
		}
	}
	return d
}

func (b *bystanders) begin(inTurn *stand) {
	b.then = b.sum(inTurn)
	b.start = time.Now()
}

func (b *bystanders) end(inTurn *stand) {
	b.time += time.Since(b.start)
	b.used += max(0, b.sum(inTurn)-b.then) // less, when one of them has died
}

func (b *bystanders) cores() float64 {
	if b.time <= 0 {
		return 0
	}
	return b.used.Seconds() / b.time.Seconds()
}
