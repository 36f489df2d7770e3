package metrics

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

// Source is where the numbers come from. What it returns is a snapshot that belongs to the caller.
type Source interface {
	Status() vtep.Status
	Networks() []vtep.NetworkStatus
	Peers() []vtep.PeerStatus
	Paths() []vtep.PathStatus
	ProbeCounters() pathmtu.Counters
}

// Build says which build runs.
type Build struct {
	Version  string
	Revision string
}

// NewRegistry returns a registry of its own, with the collector of a VTEP, the build, and those of the Go
// runtime and the process.
func NewRegistry(src Source, build Build) (*prometheus.Registry, error) {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "overlayd_build_info",
		Help: "Always 1; the labels say which build runs.",
		ConstLabels: prometheus.Labels{
			"version": build.Version, "revision": build.Revision, "goversion": runtime.Version(),
		},
	})
	info.Set(1)
	reg := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		NewCollector(src), info,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return reg, nil
}

// Collector turns snapshots of a VTEP into metrics.
type Collector struct {
	src Source

	frames, bytes, created, suppressed, drops      *prometheus.Desc
	networkInfo, networkMTU, fdb                   *prometheus.Desc
	healed, tapOverflow                            *prometheus.Desc
	fastPairs, fastFrames, fastBytes               *prometheus.Desc
	datagrams, receiveOverflow, feature            *prometheus.Desc
	peerReachable, peerUnderlayMTU, peerOverlayMTU *prometheus.Desc

	paths paths
}

// NewCollector returns a collector for one VTEP.
func NewCollector(src Source) *Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("overlayd_"+name, help, labels, nil)
	}
	return &Collector{
		src: src,

		frames:     desc("frames_total", "Inner frames as they are on a wire: a superframe counts as the segments that it stands for.", "network", "direction"),
		bytes:      desc("bytes_total", "Bytes of the inner frames, without frame check sequence.", "network", "direction"),
		created:    desc("frames_created_total", "Extra copies of replicated frames and extra segments of re-segmented ones.", "network"),
		suppressed: desc("frames_suppressed_total", "ARP and neighbour discovery requests that were answered from the table.", "network"),
		drops:      desc("drops_total", "Frames dropped, by reason; without a network, datagrams that belong to none. `overlayctl drops` says what the reasons mean.", "network", "reason"),

		networkInfo: desc("network_info", "Always 1; the labels say what the network is.", "network", "vni", "device", "backend"),
		networkMTU:  desc("network_mtu_bytes", "Largest inner IP packet that the network carries.", "network"),
		fdb:         desc("fdb_entries", "Entries of the forwarding database.", "network"),
		healed:      desc("healed_total", "Entries of the tables and settings in the kernel that were found other than stated, and put right.", "network"),
		tapOverflow: desc("tap_overflow_total", "Frames that the kernel dropped before the daemon saw them, because the queue of the TAP was full.", "network"),

		fastPairs:  desc("network_fast_path_pairs", "Pairs of stations whose packets the kernel forwards by itself, each direction for itself.", "network"),
		fastFrames: desc("network_fast_path_frames_total", "Frames that the kernel forwarded by itself; they are among those of the other counters.", "network", "direction"),
		fastBytes:  desc("network_fast_path_bytes_total", "Bytes of the frames that the kernel forwarded by itself; they are among those of the other counters.", "network", "direction"),

		datagrams:       desc("datagrams_total", "UDP datagrams on the underlay.", "direction"),
		receiveOverflow: desc("receive_overflow_total", "Datagrams that the kernel dropped before the daemon saw them, because the receive buffer was full."),
		feature:         desc("feature_enabled", "Whether a feature of the kernel is in use.", "feature"),

		peerReachable:   desc("peer_reachable", "Whether nothing is known that keeps datagrams from the peer: no missing route, no recent ICMP error.", "peer"),
		peerUnderlayMTU: desc("peer_underlay_mtu_bytes", "MTU of the device or route towards the peer.", "peer"),
		peerOverlayMTU:  desc("peer_overlay_mtu_bytes", "Largest inner IP packet that fits towards the peer.", "peer"),

		paths: newPaths(desc),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.frames, c.bytes, c.created, c.suppressed, c.drops,
		c.networkInfo, c.networkMTU, c.fdb, c.healed, c.tapOverflow,
		c.fastPairs, c.fastFrames, c.fastBytes,
		c.datagrams, c.receiveOverflow, c.feature,
		c.peerReachable, c.peerUnderlayMTU, c.peerOverlayMTU,
	} {
		ch <- d
	}
	c.paths.describe(ch)
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	networks := c.src.Networks()
	for _, n := range networks {
		k := &n.Counters
		for _, t := range []struct {
			direction string
			traffic   vtep.Traffic
		}{
			{"tap_in", k.TAPIn}, {"tap_out", k.TAPOut}, {"underlay_in", k.UnderlayIn}, {"underlay_out", k.UnderlayOut},
		} {
			counter(c.frames, t.traffic.Frames, n.Name, t.direction)
			counter(c.bytes, t.traffic.Bytes, n.Name, t.direction)
		}
		counter(c.created, k.Created, n.Name)
		counter(c.suppressed, k.Suppressed, n.Name)
		for r := forward.NotDropped + 1; r < forward.NumReasons; r++ {
			counter(c.drops, k.Drops[r], n.Name, r.String())
		}
		gauge(c.networkInfo, 1, n.Name, n.VNI.String(), n.Device, n.Backend)
		gauge(c.networkMTU, float64(n.MTU), n.Name)
		gauge(c.fdb, float64(n.FDBEntries), n.Name)
		counter(c.healed, n.Healed, n.Name)
		counter(c.tapOverflow, n.TAPOverflow, n.Name)
		gauge(c.fastPairs, float64(n.Pairs), n.Name)
		counter(c.fastFrames, n.FastIn.Frames, n.Name, "in")
		counter(c.fastFrames, n.FastOut.Frames, n.Name, "out")
		counter(c.fastBytes, n.FastIn.Bytes, n.Name, "in")
		counter(c.fastBytes, n.FastOut.Bytes, n.Name, "out")
	}
	st := c.src.Status()
	for r := forward.NotDropped + 1; r < forward.NumReasons; r++ {
		counter(c.drops, st.Unattributed[r], "", r.String())
	}
	counter(c.datagrams, st.DatagramsIn, "in")
	counter(c.datagrams, st.DatagramsOut, "out")
	counter(c.receiveOverflow, st.ReceiveOverflow)
	for _, f := range st.Features {
		gauge(c.feature, flag(f.On), f.Name)
	}
	for _, p := range c.src.Peers() {
		peer := p.Address.String()
		gauge(c.peerReachable, flag(p.Problem == ""), peer)
		if p.UnderlayMTU > 0 { // else there is no route, and nothing is known
			gauge(c.peerUnderlayMTU, float64(p.UnderlayMTU), peer)
			gauge(c.peerOverlayMTU, float64(p.OverlayMTU), peer)
		}
	}
	c.paths.collect(c.src, networks, counter, gauge)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
