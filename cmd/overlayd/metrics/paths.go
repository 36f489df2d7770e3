package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

// paths are the metrics of what paths carry, how that is found out, and what is done about packets that do not fit.
type paths struct {
	clamped, icmpSent, icmpLimited, fragmented, resegmented, split *prometheus.Desc

	mtu, proven, blackHoles, moves             *prometheus.Desc
	candidateReachable, candidateUsed, rtt     *prometheus.Desc
	sent, probes, bytes, acks, ignored         *prometheus.Desc
	hintsAccepted, hintsIgnored, queue, errors *prometheus.Desc
}

func newPaths(desc func(name, help string, labels ...string) *prometheus.Desc) paths {
	return paths{
		clamped:     desc("mss_clamped_total", "TCP SYNs whose MSS was lowered to what fits.", "network"),
		icmpSent:    desc("icmp_errors_sent_total", "ICMP errors to senders of packets that do not fit.", "network"),
		icmpLimited: desc("icmp_errors_limited_total", "ICMP errors that were not sent because there were too many.", "network"),
		fragmented:  desc("packets_fragmented_total", "Inner IPv4 packets that did not fit and were cut, as they may be.", "network"),
		resegmented: desc("superframes_resegmented_total", "TCP superframes that were cut into smaller segments than their sender asked for.", "network"),
		split:       desc("segments_split_total", "Single TCP segments that did not fit and became several.", "network"),

		mtu:        desc("peer_path_mtu_bytes", "Largest outer IP packet that reaches the peer, as far as is known.", "peer"),
		proven:     desc("peer_path_proven", "Whether the path MTU of the peer is settled by acknowledged probes; otherwise it is what the route says, or still searched for.", "peer"),
		blackHoles: desc("peer_path_black_holes_total", "Times that the path to the peer turned out to carry less than before, without notice.", "peer"),
		moves:      desc("peer_path_moves_total", "Times that another address of the peer was chosen.", "peer"),

		candidateReachable: desc("peer_candidate_reachable", "Whether this address of the peer answers probes.", "peer", "remote"),
		candidateUsed:      desc("peer_candidate_used", "Whether datagrams to the peer go to this address.", "peer", "remote"),
		rtt:                desc("peer_candidate_rtt_seconds", "Least of the last few round-trip times of probes to this address of the peer.", "peer", "remote"),

		sent:          desc("path_probes_sent_total", "Path probes sent."),
		probes:        desc("path_probes_total", "Path probes, by what came of them; those under way are not in it.", "result"),
		bytes:         desc("path_probe_bytes_total", "Bytes of path probes and acknowledgements sent, with their IP headers."),
		acks:          desc("path_probe_acknowledgements_total", "Path probes of others, by whether they were acknowledged.", "result"),
		ignored:       desc("path_probe_ignored_total", "Path probes and acknowledgements that came in and count for nothing, by reason.", "reason"),
		hintsAccepted: desc("path_hints_accepted_total", "ICMP errors from the underlay that made the node probe at once."),
		hintsIgnored:  desc("path_hints_ignored_total", "ICMP errors from the underlay that were not heeded, by reason.", "reason"),
		queue:         desc("path_probe_overflow_total", "Path probes and ICMP errors that came in faster than they could be looked at."),
		errors:        desc("path_probe_send_errors_total", "Path probes that the host did not send, for another reason than their size."),
	}
}

func (p *paths) describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		p.clamped, p.icmpSent, p.icmpLimited, p.fragmented, p.resegmented, p.split,
		p.mtu, p.proven, p.blackHoles, p.moves, p.candidateReachable, p.candidateUsed, p.rtt,
		p.sent, p.probes, p.bytes, p.acks, p.ignored, p.hintsAccepted, p.hintsIgnored, p.queue, p.errors,
	} {
		ch <- d
	}
}

func (p *paths) collect(src Source, networks []vtep.NetworkStatus, counter func(*prometheus.Desc, uint64, ...string), gauge func(*prometheus.Desc, float64, ...string)) {
	for _, n := range networks {
		k := &n.Counters
		counter(p.clamped, k.MSSClamped, n.Name)
		counter(p.icmpSent, k.ICMPSent, n.Name)
		counter(p.icmpLimited, k.ICMPLimited, n.Name)
		counter(p.fragmented, k.Fragmented, n.Name)
		counter(p.resegmented, k.Resegmented, n.Name)
		counter(p.split, k.Split, n.Name)
	}
	for _, s := range src.Paths() {
		peer := s.Peer.String()
		if s.PathMTU > 0 { // else nothing is known
			gauge(p.mtu, float64(s.PathMTU), peer)
			gauge(p.proven, flag(s.Settled && s.Learned == vtep.LearnedProbe), peer)
		}
		counter(p.blackHoles, s.BlackHoles, peer)
		counter(p.moves, s.Moves, peer)
		for _, c := range s.Candidates {
			remote := c.Remote.String()
			gauge(p.candidateReachable, flag(c.State == pathmtu.StateReachable.String()), peer, remote)
			gauge(p.candidateUsed, flag(c.Chosen), peer, remote)
			if c.RTT > 0 {
				gauge(p.rtt, c.RTT.Seconds(), peer, remote)
			}
		}
	}
	p.collectProbes(src.ProbeCounters(), counter)
}

func (p *paths) collectProbes(k pathmtu.Counters, counter func(*prometheus.Desc, uint64, ...string)) {
	counter(p.sent, k.ProbesSent)
	counter(p.probes, k.ProbesAcked, "acknowledged")
	counter(p.probes, k.ProbesLost, "lost")
	counter(p.bytes, k.BytesSent)
	counter(p.acks, k.AcksSent, "sent")
	counter(p.acks, k.AcksLimited, "limited")
	for r := range pathmtu.NumIgnores {
		counter(p.ignored, k.Ignored[r], Label(r))
	}
	counter(p.hintsAccepted, k.HintsAccepted)
	for r := range pathmtu.NumHintIgnores {
		counter(p.hintsIgnored, k.HintsIgnored[r], Label(r))
	}
	counter(p.queue, k.QueueLosses)
	counter(p.errors, k.SendErrors)
}

// Label makes one word of the name of a reason, as those of drops are.
func Label(reason interface{ String() string }) string {
	return strings.ReplaceAll(reason.String(), " ", "_")
}
