package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write what is printed to testdata instead of comparing")

// sample is a report with everything in it: two wires, a round that failed, floors of all verdicts.
func sample() *Report {
	idle := 0.25
	r := &Report{
		Schema:   Schema,
		Start:    time.Date(2026, 11, 21, 10, 20, 30, 0, time.UTC),
		Seconds:  312.4,
		Warnings: []string{"others kept 0.40 of 2 cores busy before the start: repeat it on a quiet machine"},
		Environment: Environment{
			Kernel: "6.18.44", Architecture: "x86_64", CPU: "AMD EPYC", Cores: 2, MemoryBytes: 8e9, Governor: "performance",
			Go: "go1.26.8", Overlayctl: "v0.1.0", Overlayd: "v0.1.0",
			Settings:   map[string]string{"net.ipv4.tcp_congestion_control": "cubic"},
			BusyBefore: 0.4, Steal: 0.01, Bystanders: 0.002,
			Wires: []Wire{
				{Name: "offload", About: "wire with tunnel offload", MTU: 1500, Offloads: map[string]bool{"tx-udp_tnl-segmentation": true, "rx-gro": false}},
				{Name: "bare", About: "wire without tunnel offload", MTU: 1500, Offloads: map[string]bool{"tx-udp_tnl-segmentation": false, "rx-gro": false}},
			},
		},
		Method: Method{Rounds: 3, Duration: 4, Warmup: 0.5, Quiet: 5, Notes: []string{
			"Three rounds, and a note that is long enough to be broken into two lines by the printer, as long as these lines are narrower than that.",
		}},
		Contenders: []Contender{
			{Name: "veth", About: "no overlay", Wire: "offload", Baseline: "kernel"},
			{Name: "kernel", About: "the kernel's VXLAN", Wire: "offload", Baseline: "kernel"},
			{Name: "overlayd", About: "overlayd as it is", Wire: "offload", Baseline: "kernel", Daemon: &Daemon{
				Version: "v0.1.0", Backend: "vnet", Queues: 2, MTU: 1450,
				Features:    []Feature{{Name: "udp-gso", On: true}, {Name: "tap-uso", Reason: "the kernel says: invalid argument"}},
				IdlePercent: &idle, PeakBytes: map[string]uint64{"tcp-1": 90_500_000, "rtt": 30e6},
				Drops: map[string]uint64{"send_no_buffer": 12, "fdb_miss": 1}, TAPOverflow: 7, ReceiveOverflow: 9,
			}},
			{Name: "kernel-bare", About: "the kernel's VXLAN", Wire: "bare", Baseline: "kernel-bare"},
			{Name: "overlayd-bare", About: "overlayd as it is", Wire: "bare", Baseline: "kernel-bare"},
		},
		Workloads: []Workload{
			{Name: "tcp-1", About: "TCP, 1 flow", Metrics: []Metric{
				{Name: "throughput", Title: "Gb/s", Unit: "Gb/s", Better: More, Compared: true, Digits: 2},
				{Name: "resent", Title: "RESENT", Unit: "segments", Better: Less},
			}},
			{Name: "rtt", About: "Round trips", Metrics: []Metric{
				{Name: "p50", Title: "p50 us", Unit: "us", Better: Less, Compared: true, Digits: 1},
			}},
		},
		Floors: []Floor{
			{Contender: "overlayd", Workload: "tcp-1", Metric: "throughput", Limit: 0.6, Goal: 1},
			{Contender: "overlayd-bare", Workload: "tcp-1", Metric: "throughput", Limit: 1.2},
			{Contender: "overlayd", Workload: "rtt", Metric: "p50", Limit: 1.6},
			{Contender: "overlayd-water", Workload: "tcp-1", Metric: "throughput", Limit: 0.1},
			{Contender: "overlayd-water", Workload: "tcp-1", Metric: "resent", Limit: 0.1},
			{Contender: "overlayd-water", Workload: "tcp-9", Metric: "throughput", Limit: 0.1},
		},
		Limits: []Limit{
			{Contender: "overlayd", Quantity: Memory, Most: 80e6},
			{Contender: "overlayd", Quantity: Idle, Most: 0.5},
			{Contender: "overlayd-water", Quantity: Memory, Most: 80e6},
			{Contender: "overlayd-bare", Quantity: Idle, Most: 0.5},
		},
	}
	for round, values := range [][]float64{{18, 13.5, 9.5, 6, 7}, {18.5, 14, 9.0, 6.2, 7.2}, {17, 13.7, 9.6, 5.8, 7.1}} {
		for i, v := range values {
			r.Add(r.Contenders[i].Name, "tcp-1", round+1, []float64{v, float64(i * round)})
		}
	}
	for i, c := range r.Contenders {
		for round := 1; round <= 3; round++ {
			if c.Name == "overlayd-bare" && round == 2 {
				r.Fail(c.Name, "rtt", round, errors.New("no byte arrived any more for 5s"))
				continue
			}
			r.Add(c.Name, "rtt", round, []float64{60 + 10*float64(i) + float64(round)})
		}
	}
	r.Summarise()
	return r
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{5}, 5},
		{[]float64{4, 2}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 3, 2, 100}, 3.5},
	} {
		before := append([]float64(nil), c.values...)
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.values, got, c.want)
		}
		if !reflect.DeepEqual(before, c.values) {
			t.Errorf("the samples were reordered: %v", c.values)
		}
	}
}

func TestSummary(t *testing.T) {
	r := sample()
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	o := r.Result("overlayd", "tcp-1", "throughput")
	near("median", o.Median, 9.5)
	near("min", o.Min, 9.0)
	near("max", o.Max, 9.6)
	near("ratio", o.Ratio.Value, 9.5/13.7)
	near("least ratio", o.Ratio.Min, 9.0/14)
	near("greatest ratio", o.Ratio.Max, 9.5/13.5)
	near("ratio on the other wire", r.Result("overlayd-bare", "tcp-1", "throughput").Ratio.Value, 7.1/6)
	near("ratio of the baseline", r.Result("kernel", "tcp-1", "throughput").Ratio.Value, 1)
	if r.Result("overlayd", "tcp-1", "resent").Ratio != nil {
		t.Error("a metric that is not compared has a ratio")
	}
	bare := r.Result("overlayd-bare", "rtt", "p50")
	if len(bare.Samples) != 2 || bare.Samples[1].Round != 3 {
		t.Errorf("samples beside a failed round: %+v", bare.Samples)
	}
	near("ratio of rounds that both have", bare.Ratio.Min, 103.0/93)
	for i, want := range []string{"met", "MISSED", "met", "-"} {
		f := r.Floors[i]
		got := "-"
		if f.Ratio != nil {
			got = verdict(f.Met)
		}
		if got != want {
			t.Errorf("floor %d is %s, want %s", i, got, want)
		}
	}
	if l := r.Limits[0]; l.Value == nil || *l.Value != 90.5e6 || l.Workload != "tcp-1" || l.Met {
		t.Errorf("limit of memory: %+v", l)
	}
	if l := r.Limits[1]; l.Value == nil || *l.Value != 0.25 || l.Workload != "" || !l.Met {
		t.Errorf("limit of idling: %+v", l)
	}
	for _, l := range r.Limits[2:] {
		if l.Value != nil || l.Met {
			t.Errorf("limit of what was not measured: %+v", l)
		}
	}
	if missed, all := r.Missed(); missed != 7 || all != 10 {
		t.Errorf("%d of %d missed", missed, all)
	}
	before, _ := json.Marshal(r)
	r.Summarise()
	if again, _ := json.Marshal(r); !bytes.Equal(before, again) {
		t.Error("a second summary differs")
	}
}

func TestLosses(t *testing.T) {
	d := &Daemon{Drops: map[string]uint64{"a": 1}, TAPOverflow: 1}
	d.AddLosses(&Daemon{Drops: map[string]uint64{"a": 2, "b": 3}, TAPOverflow: 4, ReceiveOverflow: 5})
	if want := (&Daemon{Drops: map[string]uint64{"a": 3, "b": 3}, TAPOverflow: 5, ReceiveOverflow: 5}); !reflect.DeepEqual(d, want) {
		t.Errorf("%+v", d)
	}
}

func TestOddValues(t *testing.T) {
	r := sample()
	r.Results = nil
	r.Failures = nil
	r.Add("kernel", "rtt", 1, []float64{math.NaN()})
	r.Add("kernel", "rtt", 2, []float64{1, 2})
	r.Add("kernel", "udp", 3, []float64{1})
	if len(r.Results) != 0 || len(r.Failures) != 3 {
		t.Errorf("%+v, %+v", r.Results, r.Failures)
	}
	r.Add("kernel", "rtt", 1, []float64{0})
	r.Add("overlayd", "rtt", 1, []float64{5})
	r.Summarise()
	if got := r.Result("overlayd", "rtt", "p50"); got.Ratio != nil {
		t.Errorf("ratio to zero: %v", got.Ratio)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s (go test -update writes it)\n got:\n%s\nwant:\n%s", name, got, want)
	}
}

func TestPrint(t *testing.T) {
	var out bytes.Buffer
	r := sample()
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "three_rounds.txt", out.Bytes())

	// One round has no spread; one wire needs no headings.
	out.Reset()
	r.Method.Rounds = 1
	r.Environment.Wires = r.Environment.Wires[:1]
	r.Contenders = r.Contenders[:3]
	r.Failures, r.Floors, r.Limits, r.Warnings = nil, nil, nil, nil
	// Who had no turn in a workload has no line there.
	r.Results = slices.DeleteFunc(r.Results, func(x Result) bool { return x.Contender == "veth" && x.Workload == "rtt" })
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "one_round.txt", out.Bytes())

	if err := r.Print(full{}); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("a full disk: %v", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestJSON(t *testing.T) {
	r := sample()
	var out bytes.Buffer
	if err := r.Encode(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", out.Bytes())
	back, err := Decode(&out)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, back) {
		t.Errorf("came back as\n%+v\nwas\n%+v", back, r)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for want, change := range map[string]func(*Report){
		"schema is number 2":  func(r *Report) { r.Schema = 2 },
		"no contenders":       func(r *Report) { r.Contenders = nil },
		"which is not there":  func(r *Report) { r.Contenders[0].Baseline = "nobody" },
		"there is no speed":   func(r *Report) { r.Results[0].Metric = "speed" },
		"results[1]: no samp": func(r *Report) { r.Results[1].Samples = nil },
		"floors[0]: there is": func(r *Report) { r.Floors[0].Metric = "speed" },
	} {
		r := sample()
		change(r)
		var out bytes.Buffer
		if err := r.Encode(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(&out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := Decode(strings.NewReader("{")); err == nil {
		t.Error("half an object was read")
	}
}
