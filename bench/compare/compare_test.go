package compare

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/vtep"
)

func TestContenders(t *testing.T) {
	all := contenders()
	named := make(map[string]*contender)
	for i := range all {
		c := &all[i]
		if named[c.name] != nil {
			t.Errorf("%s is there twice", c.name)
		}
		named[c.name] = c
		for _, feature := range c.disable {
			if !slices.Contains(vtep.FeatureNames(), feature) {
				t.Errorf("%s turns off %q, which is no feature", c.name, feature)
			}
		}
	}
	for _, c := range all {
		base := named[c.baseline]
		if base == nil || base.kind != lab.Kernel || base.wire.name != c.wire.name {
			t.Errorf("%s is compared with %s, which is not the kernel on the same wire", c.name, c.baseline)
		}
	}
	// Every feature can be measured without, and every floor is measured by default.
	for _, feature := range vtep.FeatureNames() {
		if !slices.ContainsFunc(all, func(c contender) bool { return slices.Equal(c.disable, []string{feature}) }) {
			t.Errorf("no contender is without %s", feature)
		}
	}
	known := workloads()
	for _, f := range floors() {
		c := named[f.Contender]
		i := slices.IndexFunc(known, func(w workload) bool { return w.Name == f.Workload })
		if c == nil || !c.byDefault || i < 0 || !slices.ContainsFunc(known[i].Metrics, func(m report.Metric) bool { return m.Name == f.Metric && m.Compared }) {
			t.Errorf("the floor %+v is of something that is not compared", f)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct{ names, want string }{
		{"default", "veth kernel overlayd overlayd-water kernel-bare overlayd-bare"},
		{"overlayd-bare", "kernel-bare overlayd-bare"},
		{"overlayd-no-udp-gro,veth", "veth kernel overlayd-no-udp-gro"},
		{"kernel", "kernel"},
		{"kernel,kernel", "kernel"},
	} {
		got, err := chooseContenders(strings.Split(c.names, ","))
		var names []string
		for _, g := range got {
			names = append(names, g.name)
		}
		if err != nil || strings.Join(names, " ") != c.want {
			t.Errorf("%s: %v, %v; want %s", c.names, names, err, c.want)
		}
	}
	if got, err := chooseContenders([]string{"all"}); err != nil || len(got) != len(contenders()) {
		t.Errorf("all: %v, %v", got, err)
	}
	if got, err := chooseWorkloads([]string{"rtt-tcp", "tcp-4"}); err != nil || len(got) != 2 || got[0].Name != "tcp-4" {
		t.Errorf("workloads: %v, %v", got, err)
	}
}

func TestPlanRefuses(t *testing.T) {
	good := Options{Contenders: []string{"default"}, Rounds: 1, Duration: time.Second}
	if _, err := good.plan(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Options){
		"0 rounds":               func(o *Options) { o.Rounds = 0 },
		"duration of 1ms":        func(o *Options) { o.Duration = time.Millisecond },
		"warm-up of -1s":         func(o *Options) { o.Warmup = -time.Second },
		`no contender "geneve"`:  func(o *Options) { o.Contenders = []string{"kernel", "geneve"} },
		"no contender is named":  func(o *Options) { o.Contenders = nil },
		`no workload "sctp"`:     func(o *Options) { o.Workloads = []string{"sctp"} },
		"choose from tcp-1, tcp": func(o *Options) { o.Workloads = []string{""} },
	} {
		o := good
		change(&o)
		if _, err := o.plan(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestParseCPU(t *testing.T) {
	got, err := parseCPU([]byte("cpu  100 20 300 4000 50 6 7 80 9 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"))
	if want := (cpuTimes{busy: 4330 * time.Millisecond, steal: 800 * time.Millisecond}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2 3\n", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2 3 4 5 6 7 x\n"} {
		if got, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %+v", bad, got)
		}
	}
	const stat = "42 (a (odd) name) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 1000 0 0\n"
	if got, err := parseProcessCPU([]byte(stat)); err != nil || got != 3*time.Second {
		t.Errorf("%v, %v; want 3s", got, err)
	}
	for _, bad := range []string{"", "42 (x) S 1 2", strings.Replace(stat, "250", "-250", 1)} {
		if got, err := parseProcessCPU([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
	if got, err := readCPU(); err != nil || got.busy <= 0 {
		t.Errorf("this machine: %+v, %v", got, err)
	}
	if got := parseCPUModel([]byte("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD  EPYC\nmodel name\t: other\n")); got != "AMD  EPYC" {
		t.Errorf("model %q", got)
	}
	if got := parseCPUModel([]byte("processor : 0\nBogoMIPS : 243.75\n")); got != "unknown model" {
		t.Errorf("model %q", got)
	}
}

func TestWarnings(t *testing.T) {
	p := &plan{Options: Options{Rounds: 3}, timing: timing{duration: 4 * time.Second}}
	quiet := report.Environment{Cores: 2}
	if got := p.warnings(&quiet); len(got) != 0 {
		t.Errorf("a quiet machine: %q", got)
	}
	for want, change := range map[string]func(*plan, *report.Environment){
		"short run":          func(p *plan, _ *report.Environment) { p.Rounds = 1 },
		"at least 3 rounds":  func(p *plan, _ *report.Environment) { p.duration = time.Second },
		"0.50 of 2 cores":    func(_ *plan, e *report.Environment) { e.BusyBefore = 0.5 },
		"hypervisor":         func(_ *plan, e *report.Environment) { e.Steal = 0.1 },
		"0.030 of a core":    func(_ *plan, e *report.Environment) { e.Bystanders = 0.03 },
		"meant for 2 cores,": func(_ *plan, e *report.Environment) { e.Cores = 8 },
	} {
		q, e := *p, quiet
		change(&q, &e)
		if got := q.warnings(&e); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	other := errors.New("other")
	if got := interrupted(ctx, other); got != other {
		t.Errorf("without an interrupt: %v", got)
	}
	cancel()
	if got := interrupted(ctx, ctx.Err()); !strings.Contains(got.Error(), "interrupted") {
		t.Errorf("with one: %v", got)
	}
}
