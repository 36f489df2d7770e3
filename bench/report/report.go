package report

import "time"

// Schema is the number of the form of the JSON that this package writes and reads.
const Schema = 1

// Report is one run of a benchmark.
type Report struct {
	Schema      int         `json:"schema"`
	Start       time.Time   `json:"start"`
	Seconds     float64     `json:"seconds"` // of the whole run
	Warnings    []string    `json:"warnings,omitempty"`
	Environment Environment `json:"environment"`
	Method      Method      `json:"method"`
	Contenders  []Contender `json:"contenders"`
	Workloads   []Workload  `json:"workloads"`
	Results     []Result    `json:"results"`
	Failures    []Failure   `json:"failures,omitempty"`
	Floors      []Floor     `json:"floors,omitempty"`
	Limits      []Limit     `json:"limits,omitempty"`
}

// Environment is what the numbers depend on and a reader cannot see.
type Environment struct {
	Kernel       string            `json:"kernel"`
	Architecture string            `json:"architecture"`
	CPU          string            `json:"cpu"`
	Cores        int               `json:"cores"`
	MemoryBytes  uint64            `json:"memory_bytes"`
	Governor     string            `json:"cpu_governor,omitempty"` // of frequency scaling, where there is one
	Go           string            `json:"go"`
	Overlayctl   string            `json:"overlayctl"` // version of the program that measures
	Overlayd     string            `json:"overlayd,omitempty"`
	Settings     map[string]string `json:"settings"` // of the kernel, by their names under /proc/sys
	Wires        []Wire            `json:"wires"`

	BusyBefore float64 `json:"busy_before_cores"` // cores that others kept busy just before the start
	Steal      float64 `json:"steal_cores"`       // cores that the hypervisor gave to others during the run
	Bystanders float64 `json:"bystanders_cores"`  // cores that the contenders used that were not in turn
}

// Wire is a kind of underlay link that contenders run on.
type Wire struct {
	Name     string          `json:"name"`
	About    string          `json:"about"`
	MTU      int             `json:"mtu"`
	Offloads map[string]bool `json:"offloads"` // by the names that ethtool -k shows
}

// Method says how it was measured.
type Method struct {
	Rounds   int      `json:"rounds"`
	Duration float64  `json:"duration_seconds"` // of each measurement
	Warmup   float64  `json:"warmup_seconds"`   // of traffic before each, not measured
	Quiet    float64  `json:"quiet_seconds"`    // without any traffic, before the first
	Notes    []string `json:"notes"`            // what was done, and what is in the numbers and what is not
}

// Contender is one way to join two hosts.
type Contender struct {
	Name     string  `json:"name"`
	About    string  `json:"about"`
	Wire     string  `json:"wire"`
	Baseline string  `json:"baseline"` // the contender that its ratios are to
	Daemon   *Daemon `json:"daemon,omitempty"`
}

// Daemon is what the overlayds of a contender say about themselves after the run.
type Daemon struct {
	Version  string    `json:"version"`
	Backend  string    `json:"backend"`
	Queues   int       `json:"queues"`
	MTU      int       `json:"mtu"`
	Features []Feature `json:"features"`
	// Of the daemon that used most: percent of a core while there was no traffic at all, and the most memory that was
	// resident during each workload.
	IdlePercent *float64          `json:"idle_cpu_percent,omitempty"`
	PeakBytes   map[string]uint64 `json:"peak_resident_bytes,omitempty"`
	// What all of them lost in the whole run, by reason. Below those: frames and datagrams that the kernel dropped
	// in front of them.
	Drops           map[string]uint64 `json:"drops,omitempty"`
	TAPOverflow     uint64            `json:"tap_overflow"`
	ReceiveOverflow uint64            `json:"receive_overflow"`
}

// Feature is one thing that overlayd found the kernel to be able to do, or not.
type Feature struct {
	Name   string `json:"name"`
	On     bool   `json:"on"`
	Reason string `json:"reason,omitempty"` // why it is off
}

// Workload is one kind of traffic and what is measured of it.
type Workload struct {
	Name    string   `json:"name"`
	About   string   `json:"about"`
	Metrics []Metric `json:"metrics"`
}

// Metric is one quantity of a workload.
type Metric struct {
	Name     string `json:"name"`
	Title    string `json:"title"` // of its column, with the unit
	Unit     string `json:"unit"`
	Better   Better `json:"better"`
	Compared bool   `json:"compared"` // its ratio to the baseline says something
	Digits   int    `json:"digits"`   // behind the point, in tables
}

// Better says which way a metric is good.
type Better string

// The two ways.
const (
	More Better = "more"
	Less Better = "less"
)

// Result is one metric of one workload for one contender, over all rounds.
type Result struct {
	Contender string   `json:"contender"`
	Workload  string   `json:"workload"`
	Metric    string   `json:"metric"`
	Median    float64  `json:"median"`
	Min       float64  `json:"min"`
	Max       float64  `json:"max"`
	Ratio     *Ratio   `json:"ratio,omitempty"` // none without a baseline, or when that is zero
	Samples   []Sample `json:"samples"`         // in the order of the rounds
}

// Sample is what one round measured. A round that failed has none.
type Sample struct {
	Round int     `json:"round"` // from 1
	Value float64 `json:"value"`
}

// Ratio is that of the medians. Min and Max are those of the ratios of single rounds.
type Ratio struct {
	Value float64 `json:"value"`
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
}

// Failure is a measurement that could not be made.
type Failure struct {
	Contender string `json:"contender"`
	Workload  string `json:"workload"`
	Round     int    `json:"round"`
	Error     string `json:"error"`
}

// Floor is a ratio to the baseline that is asked for: at least Limit where more is better, at most where less is.
type Floor struct {
	Contender string   `json:"contender"`
	Workload  string   `json:"workload"`
	Metric    string   `json:"metric"`
	Limit     float64  `json:"limit"`
	Goal      float64  `json:"goal,omitempty"` // what is aimed at beyond that; 0 = nothing
	Ratio     *float64 `json:"ratio"`          // null: not measured
	Met       bool     `json:"met"`
}

// Limit is the most that each daemon of a contender may use.
type Limit struct {
	Contender string   `json:"contender"`
	Quantity  Quantity `json:"quantity"`
	Most      float64  `json:"most"`
	Value     *float64 `json:"value"`              // null: not measured
	Workload  string   `json:"workload,omitempty"` // in which it was, if it was in one
	Met       bool     `json:"met"`
}

// Quantity is something that a daemon uses. The words are those of the fields of Daemon.
type Quantity string

// The quantities.
const (
	Idle   Quantity = "idle_cpu_percent"
	Memory Quantity = "peak_resident_bytes" // in any workload
)
