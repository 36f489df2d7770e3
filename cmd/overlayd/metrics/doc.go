// Package metrics shows the counters of a VTEP to Prometheus.
//
// Nothing is counted here: at each scrape the Collector reads the snapshots of the VTEP and turns them into
// metrics, so that a metric and a listing of overlayctl never disagree. Every drop reason is always present,
// also at zero, because an alert on a series that does not exist yet never fires.
//
// Concurrency: a Collector may be scraped by several callers at once, as its Source allows. Server.Serve runs
// net/http's accept loop in one goroutine ("metrics accept") and joins it before it returns.
//
// The package must not import controlplane, and counts nothing on the path of a frame.
package metrics
