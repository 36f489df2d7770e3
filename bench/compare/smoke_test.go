package compare

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/report"
)

// binary and tool are overlayd and overlayctl, built from this tree; "" without root.
var binary, tool string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "overlayd-bench-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary, tool = filepath.Join(dir, "overlayd"), filepath.Join(dir, "overlayctl")
		if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "../../cmd/overlayd", "../../cmd/overlayctl").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build overlayd and overlayctl: %v\n%s", err, out)
			return 1
		}
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// root skips a test that makes namespaces, or fails it where CI=true.
func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Cleanup(func() { nothingRuns(t) })
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// nothingRuns looks for processes that were left behind.
func nothingRuns(t *testing.T) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		text, _ := os.ReadFile(f) // the thread may be gone
		if len(bytes.TrimSpace(text)) > 0 {
			t.Errorf("processes %s, started by this test, still run", text)
		}
	}
}

// bench runs the command.
func bench(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	top := &cobra.Command{Use: "ctl", SilenceErrors: true, SilenceUsage: true}
	top.AddCommand(Command())
	var out, errs bytes.Buffer
	top.SetOut(&out)
	top.SetErr(&errs)
	top.SetArgs(append([]string{"bench"}, args...))
	err = top.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// TestQuick is a whole run, short. It looks at whether the numbers make sense, never at how good they are.
func TestQuick(t *testing.T) {
	root(t)
	file := filepath.Join(t.TempDir(), "bench.json")
	if err := os.WriteFile(file, bytes.Repeat([]byte("old "), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	out, progress, err := bench(t, "--quick", "--rounds", "2", "--workloads", "tcp-1,tcp-4-back,udp-64-flows,rtt-tcp", "--duration", "150ms", "--warmup", "50ms", "--json", file, "--overlayd", binary, "--overlayctl", tool)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, progress, out)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := report.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(f); bytes.Contains(rest, []byte("old")) {
		t.Error("the old content of the file is still there")
	}
	checkEnvironment(t, r)
	checkContenders(t, r)
	checkAll(t, r, 2)
	for _, want := range []string{"CONTENDER", "x KERNEL", "MIN..MAX", "overlayd-bare", "Floors", "at least 1.70", "at most 80.0", "without any traffic", "a short run"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in the output:\n%s", want, out)
		}
	}
	if !strings.Contains(progress, "round 2 of 2  rtt-tcp       overlayd-containers") {
		t.Errorf("the progress is\n%s", progress)
	}
	drawing, _, err := bench(t, "show", "--chart", file)
	if err != nil {
		t.Fatal(err)
	}
	checkChart(t, drawing)
	again, _, err := bench(t, "show", file)
	if err != nil || again != out {
		t.Errorf("shown again: %v\n%s", err, again)
	}
}

func checkEnvironment(t *testing.T, r *report.Report) {
	t.Helper()
	e := &r.Environment
	if e.Kernel == "" || e.Architecture == "" || e.CPU == "" || e.Cores < 1 || e.MemoryBytes < 1<<20 || e.Go == "" || e.Overlayctl == "" ||
		e.Overlayd == "" || e.Settings["net.ipv4.tcp_congestion_control"] == "" {
		t.Errorf("environment %+v", e)
	}
	if e.BusyBefore < 0 || e.BusyBefore > float64(e.Cores)+0.5 || e.Steal < 0 || e.Bystanders < 0 || e.Bystanders > float64(e.Cores) {
		t.Errorf("busy %v, steal %v, bystanders %v", e.BusyBefore, e.Steal, e.Bystanders)
	}
	tunnel := make(map[string]bool)
	for _, w := range e.Wires {
		if w.MTU != 1500 {
			t.Errorf("the MTU of the wire %s is %d", w.Name, w.MTU)
		}
		tunnel[w.Name] = w.Offloads["tx-udp_tnl-segmentation"]
	}
	if len(tunnel) != 2 || !tunnel["offload"] || tunnel["bare"] {
		t.Errorf("wires %+v", e.Wires)
	}
	if r.Method.Rounds != 2 || r.Method.Duration != 0.15 || r.Method.Warmup != 0.05 || len(r.Method.Notes) == 0 || r.Seconds <= 0 {
		t.Errorf("method %+v, %v seconds", r.Method, r.Seconds)
	}
	if len(r.Failures) != 0 {
		t.Errorf("failures %+v", r.Failures)
	}
	for _, f := range r.Floors {
		if !slices.ContainsFunc(r.Workloads, func(w report.Workload) bool { return w.Name == f.Workload }) {
			continue
		}
		reached := f.Ratio != nil && *f.Ratio >= f.Limit
		if f.Metric == "p50" || f.Metric == "p99" || f.Metric == "cpu_per_gb" { // of which less is better
			reached = f.Ratio != nil && *f.Ratio <= f.Limit
		}
		if f.Met != reached || f.Metric != "cpu_per_gb" && (f.Ratio == nil || *f.Ratio <= 0) {
			t.Errorf("floor %+v", f)
		}
	}
}

func checkContenders(t *testing.T, r *report.Report) {
	t.Helper()
	if len(r.Contenders) != 9 || len(r.Workloads) != 4 {
		t.Errorf("%d contenders, %d workloads", len(r.Contenders), len(r.Workloads))
	}
	for _, c := range r.Contenders {
		if !strings.HasPrefix(c.Name, "overlayd") {
			if c.Daemon != nil {
				t.Errorf("%s has a daemon: %+v", c.Name, c.Daemon)
			}
			continue
		}
		if c.Daemon == nil || c.Daemon.MTU != 1450 || c.Daemon.Queues < 1 || len(c.Daemon.Features) == 0 {
			t.Errorf("the daemon of %s: %+v", c.Name, c.Daemon)
			continue
		}
		if idle := c.Daemon.IdlePercent; idle == nil || *idle < 0 || *idle > 100*float64(r.Environment.Cores) {
			t.Errorf("%s without traffic: %v", c.Name, idle)
		}
		for _, w := range r.Workloads {
			if peak := c.Daemon.PeakBytes[w.Name]; peak < 5e6 || peak > 1e9 {
				t.Errorf("%s has needed %d bytes in %s", c.Name, peak, w.Name)
			}
		}
		off := slices.ContainsFunc(c.Daemon.Features, func(f report.Feature) bool { return f.Name == "tap-vnet" && !f.On })
		if water := c.Name == "overlayd-water"; off != water || (c.Daemon.Backend == "water") != water {
			t.Errorf("%s has the backend %q and features %+v", c.Name, c.Daemon.Backend, c.Daemon.Features)
		}
	}
}

func checkResults(t *testing.T, r *report.Report, c *report.Contender, w *report.Workload, rounds int) {
	t.Helper()
	values := make(map[string]float64)
	for _, m := range w.Metrics {
		res := r.Result(c.Name, w.Name, m.Name)
		if res == nil || len(res.Samples) != rounds || res.Min > res.Median || res.Median > res.Max || res.Min < 0 {
			t.Errorf("%s of %s, %s: %+v", m.Name, w.Name, c.Name, res)
			return
		}
		values[m.Name] = res.Median
		// The CPU time of a short run may be no tick at all.
		if m.Compared && m.Name != "cpu_per_gb" && (res.Median <= 0 || res.Ratio == nil || res.Ratio.Value <= 0) {
			t.Errorf("%s of %s, %s is not compared: %+v", m.Name, w.Name, c.Name, res)
		}
		if m.Compared && c.Baseline == c.Name && res.Ratio != nil && res.Ratio.Value != 1 {
			t.Errorf("%s of %s, %s to itself: %v", m.Name, w.Name, c.Name, res.Ratio.Value)
		}
	}
	var sane bool
	switch w.Name {
	case "tcp-1", "tcp-4", "tcp-16", "tcp-1-back", "tcp-4-back", "tcp-16-back":
		sane = values["throughput"] < 1000
	case "udp-64", "udp-512", "udp-mtu", "udp-64-flows":
		sane = values["received"] < 1e5 && values["sent"] > 0 && values["loss"] <= 100 && values["overflow"] <= values["loss"]+0.01
	case "peers-3":
		sane = values["throughput"] < 1000
	case "table-2k":
		// Some may be lost, and those that are left in queues at the end of the time arrive after it.
		sane = values["alone"] < 1000 && values["stations"] >= 2000 && values["stations"] < 2100 && values["announced"] > 0.1 && values["announced"] < 15 && values["moves"] > 0.1 && values["moves"] < 30
	case "connect":
		sane = values["connections"] < 1000
	case "rtt-tcp", "rtt-tcp-busy":
		sane = values["p50"] <= values["p99"] && values["p99"] <= values["p999"] && values["p50"] > 1
	}
	if !sane {
		t.Errorf("%s, %s: %v", w.Name, c.Name, values)
	}
}

// TestCheck asks for floors that were not measured.
func TestCheck(t *testing.T) {
	root(t)
	args := []string{"--contenders", "veth", "--workloads", "rtt-tcp", "--rounds", "1", "--duration", "100ms", "--warmup", "0"}
	out, _, err := bench(t, args...)
	if err != nil || !strings.Contains(out, "Not measured: tcp-1, ") || !strings.Contains(out, "\n  kernel ") {
		t.Errorf("%v\n%s", err, out)
	}
	out, _, err = bench(t, append(args, "--check")...)
	if err == nil || !strings.Contains(err.Error(), "13 of 13 floors and limits") || !strings.Contains(out, "Floors") {
		t.Errorf("with --check: %v\n%s", err, out)
	}
}

func TestFaults(t *testing.T) {
	for want, args := range map[string][]string{
		"no contender":               {"--contenders", "geneve"},
		"unknown command":            {"now"},
		"no such file or directory":  {"show", "/nonexistent/bench.json"},
		"read the report":            {"show", "/dev/null"},
		"open the file for the resu": {"--json", "/nonexistent/bench.json"},
		"no binary at":               {"--contenders", "overlayd", "--overlayd", "/nonexistent/overlayd"},
	} {
		if os.Geteuid() != 0 && strings.HasPrefix(want, "no binary") {
			continue
		}
		if _, _, err := bench(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

// TestNothingToWrite looks at what a run that failed does to the file for its results.
func TestNothingToWrite(t *testing.T) {
	dir := t.TempDir()
	fresh, old := filepath.Join(dir, "fresh"), filepath.Join(dir, "old")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{fresh, old} {
		if _, _, err := bench(t, "--contenders", "overlayd", "--overlayd", "/nonexistent/overlayd", "--json", file); err == nil {
			t.Error("it ran without a binary")
		}
	}
	if _, err := os.Stat(fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty file was left: %v", err)
	}
	if text, err := os.ReadFile(old); err != nil || string(text) != "old" {
		t.Errorf("the old file is now %q, %v", text, err)
	}
}

// interrupter cancels a context when it is told of a certain step.
type interrupter struct {
	at     string
	cancel context.CancelFunc
}

func (i interrupter) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(i.at)) {
		i.cancel()
	}
	return len(b), nil
}

func TestInterrupt(t *testing.T) {
	root(t)
	for _, at := range []string{"bring up overlayd", "tcp-1         kernel"} {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := Run(ctx, Options{
			Contenders: []string{"kernel", "overlayd"}, Rounds: 1, Duration: 200 * time.Millisecond,
			Overlayd: binary, Progress: interrupter{at, cancel},
		})
		cancel()
		if r != nil || err == nil || !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("at %q: %v", at, err)
		}
		nothingRuns(t)
	}
}

// TestDeadDaemon kills an overlayd under way: the others are measured all the same.
func TestDeadDaemon(t *testing.T) {
	root(t)
	o := Options{Contenders: []string{"overlayd"}, Rounds: 2, Duration: 100 * time.Millisecond, Overlayd: binary}
	p, err := o.plan()
	if err != nil {
		t.Fatal(err)
	}
	a, err := p.bringUp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.closeAll(); err != nil {
			t.Error(err)
		}
	}()
	runs := 0
	p.workloads = []workload{{
		Workload: report.Workload{Name: "kill", Metrics: []report.Metric{{Name: "m"}}},
		run: func(_ context.Context, s *stand, _ timing) ([]float64, error) {
			runs++
			if s != a.stands[1] {
				return []float64{1}, nil
			}
			h := s.lab.Hosts()[1]
			pid := h.PID()
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				return nil, err
			}
			for deadline := time.Now().Add(10 * time.Second); h.PID() != 0; {
				if time.Now().After(deadline) {
					return nil, errors.New("it does not die")
				}
				time.Sleep(time.Millisecond)
			}
			return nil, errors.New("nobody answers")
		},
	}}
	r := &report.Report{Schema: report.Schema, Workloads: []report.Workload{p.workloads[0].Workload}}
	if err := p.measure(t.Context(), a, r); err != nil {
		t.Fatal(err)
	}
	if len(r.Failures) != 2 || !strings.Contains(r.Failures[0].Error, "the overlayd of h2 has ended") || r.Failures[1].Round != 2 {
		t.Errorf("failures %+v", r.Failures)
	}
	if res := r.Result("kernel", "kill", "m"); res == nil || len(res.Samples) != 2 || runs != 3 {
		t.Errorf("the kernel has %+v after %d runs", res, runs)
	}
	if len(r.Contenders) != 2 || len(r.Warnings) == 0 || !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, "ask the overlayd of h2") }) {
		t.Errorf("contenders %+v, warnings %q", r.Contenders, r.Warnings)
	}
}

// TestWorkloads measures with all workloads that have no scene, shortly; between hosts and between containers. In one round nothing
// may move, as it may be over before a busy machine comes back: so there are two.
func TestWorkloads(t *testing.T) {
	root(t)
	o := Options{Contenders: []string{overlaydName, overlaydContainers}, Rounds: 2, Duration: 100 * time.Millisecond, Overlayd: binary, Overlayctl: tool}
	for _, w := range workloads() {
		if w.scene == nil {
			o.Workloads = append(o.Workloads, w.Name)
		}
	}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, r, o.Rounds)
}

// checkAll wants a result of everything.
func checkAll(t *testing.T, r *report.Report, rounds int) {
	t.Helper()
	if len(r.Failures) > 0 {
		t.Errorf("failures %+v", r.Failures)
	}
	for _, c := range r.Contenders {
		for _, w := range r.Workloads {
			checkResults(t, r, &c, &w, rounds)
		}
	}
}

// checkChart looks for well-formed XML with a bar for each contender that has a rival.
func checkChart(t *testing.T, svg string) {
	t.Helper()
	bars := 0
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("the chart is no XML: %v\n%s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	// The background; and, of the nine contenders, the six that are not the kernel.
	if want := 1 + 6*4; bars != want {
		t.Errorf("%d rectangles, want %d", bars, want)
	}
}
