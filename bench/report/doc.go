// Package report is the result of a benchmark: what was measured, on what, how, and how each contender stands
// to the kernel's VXLAN of the same run, what its daemons used, and which floors and limits were kept. It
// computes medians and ratios from the samples, prints them as tables for people and reads and writes them as
// JSON.
//
// A Report knows nothing of networks: contenders, workloads and metrics are names with explanations, so that
// new ones need no change here. In the JSON every quantity has its unit in its name or in the metric that it
// belongs to. Names of contenders, workloads and metrics keep their meaning; the schema number rises when a
// field changes its own. Fields may be added without that.
//
// The package starts no goroutines, and a Report must not be used by two at once. It must import nothing of
// this module.
package report
