package compare

import (
	"context"
	"errors"
	"os"
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
		if base == nil || base.kind != lab.Kernel || base.wire.name != c.wire.name || base.containers != c.containers {
			t.Errorf("%s is compared with %s, which is not the kernel on the same wire, attached in the same way", c.name, c.baseline)
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
			continue
		}
		if less := known[i].Metrics[slices.IndexFunc(known[i].Metrics, func(m report.Metric) bool { return m.Name == f.Metric })].Better == report.Less; f.Goal == f.Limit || less != (f.Goal < f.Limit) {
			t.Errorf("the goal of the floor %+v is not beyond it", f)
		}
	}
	for _, l := range limits() {
		if c := named[l.Contender]; c == nil || !c.byDefault || c.kind != lab.Overlayd {
			t.Errorf("the limit %+v is of something that has no daemon", l)
		}
	}
}

// TestScenes looks at the labs that workloads make of contenders, without making them.
func TestScenes(t *testing.T) {
	for _, w := range workloads() {
		if w.scene == nil {
			continue
		}
		suited := 0
		for _, c := range contenders() {
			if !w.suits(&c) {
				continue
			}
			suited++
			if sc := w.scene(&c); len(sc.Name) > 40 || len(sc.Hosts) < 3 || sc.Networks[0].Name != network || sc.Networks[0].Members["h1"] != c.kind || sc.Networks[0].Members["h2"] != c.kind {
				t.Errorf("%s of %s: %+v", w.Name, c.name, sc)
			}
		}
		if suited < 3 {
			t.Errorf("%s is for %d contenders", w.Name, suited)
		}
	}
	b := bigTable{stations: 1_000_000}
	if n := b.networks(); n != 16 || b.stations/n > 65536 {
		t.Errorf("%d networks", n)
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct{ names, want string }{
		{"default", "veth kernel overlayd overlayd-water overlayd-busy-poll kernel-containers overlayd-containers kernel-bare overlayd-bare"},
		{"overlayd-bare", "kernel-bare overlayd-bare"},
		{"overlayd-no-udp-gro,veth", "veth kernel overlayd-no-udp-gro"},
		{"overlayd-containers", "kernel-containers overlayd-containers"},
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
	inside := good
	inside.Contenders = []string{overlaydContainers}
	if p, err := inside.plan(); err != nil || len(p.workloads) != len(workloads())-2 {
		t.Errorf("between containers: %+v, %v", p, err)
	}
	for want, change := range map[string]func(*Options){
		"0 rounds":              func(o *Options) { o.Rounds = 0 },
		"duration of 1ms":       func(o *Options) { o.Duration = time.Millisecond },
		"warm-up of -1s":        func(o *Options) { o.Warmup = -time.Second },
		`no contender "geneve"`: func(o *Options) { o.Contenders = []string{"kernel", "geneve"} },
		"no contender is named": func(o *Options) { o.Contenders = nil },
		`control "tahoe"`:       func(o *Options) { o.Congestion = "tahoe" },
		`no workload "sctp"`:    func(o *Options) { o.Workloads = []string{"sctp"} },
		"add overlayd": func(o *Options) {
			o.Contenders, o.Workloads = []string{"kernel-bare", "overlayd-containers"}, []string{"tcp-1", "peers-16"}
		},
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

func TestProcess(t *testing.T) {
	self := os.Getpid()
	before, err := processCPU(self)
	if err != nil || before <= 0 {
		t.Fatalf("%v, %v", before, err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		now, err := processCPU(self)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%v of CPU time, then %v, %v", before, now, err)
		}
		if now > before+time.Millisecond {
			break
		}
	}
	if d, err := processCPU(1<<22 + 1); err == nil {
		t.Errorf("a process that is not there has used %v", d)
	}
	const status = "Name:\tx VmHWM\nVmPeak:\t  900 kB\nVmHWM:\t   41240 kB\nVmRSS:\t 100 kB\n"
	if got, err := parsePeak([]byte(status)); err != nil || got != 41240<<10 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := parsePeak([]byte("Name:\tzombie\n")); !gone(err) {
		t.Errorf("a zombie: %v", err)
	}
	for _, bad := range []string{"VmHWM:\n", "VmHWM: 1 MB\n", "VmHWM: x kB\n", "VmHWM: 99999999999999999999 kB\n"} {
		if got, err := parsePeak([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %d", bad, got)
		}
	}
	if got, err := peakMemory(self); err != nil || got < 1<<20 {
		t.Errorf("this process: %d, %v", got, err)
	}
	if _, err := peakMemory(1<<22 + 1); !gone(err) {
		t.Errorf("one that is not there: %v", err)
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
