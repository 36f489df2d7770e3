package metrics

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a VTEP with one network, one peer that is reachable and one that is not.
type source struct{}

func (source) Status() vtep.Status {
	st := vtep.Status{
		DatagramsIn: 7, DatagramsOut: 8, ReceiveOverflow: 9,
		Features: []vtep.Feature{{Name: "udp-gso", On: true}, {Name: "tap-uso", Reason: "too old"}},
	}
	st.Unattributed[forward.VNIUnknown] = 5
	return st
}

func (source) Networks() []vtep.NetworkStatus {
	n := vtep.NetworkStatus{Name: "blue", VNI: 42, Device: "blue0", Backend: "vnet", MTU: 1450, FDBEntries: 3, TAPOverflow: 4, Healed: 5}
	n.Pairs, n.FastOut, n.FastIn = 31, vtep.Traffic{Frames: 6, Bytes: 600}, vtep.Traffic{Frames: 7, Bytes: 700}
	n.Counters = vtep.Counters{
		TAPIn: vtep.Traffic{Frames: 10, Bytes: 1000}, TAPOut: vtep.Traffic{Frames: 9, Bytes: 900},
		UnderlayIn: vtep.Traffic{Frames: 11, Bytes: 1100}, UnderlayOut: vtep.Traffic{Frames: 12, Bytes: 1200},
		Created: 2, Suppressed: 1,
		MSSClamped: 21, ICMPSent: 22, ICMPLimited: 23, Fragmented: 24, Resegmented: 25, Split: 26,
	}
	n.Counters.Drops[forward.FrameRunt] = 2
	return []vtep.NetworkStatus{n}
}

func (source) Peers() []vtep.PeerStatus {
	return []vtep.PeerStatus{
		{Address: netip.MustParseAddr("192.0.2.2"), UnderlayMTU: 1500, OverlayMTU: 1450},
		{Address: netip.MustParseAddr("192.0.2.3"), Problem: "no route"},
	}
}

func (source) Paths() []vtep.PathStatus {
	near, far := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("203.0.113.2")
	return []vtep.PathStatus{
		{
			Peer: near, PathMTU: 1400, Learned: vtep.LearnedProbe, Settled: true, BlackHoles: 3, Moves: 4,
			Candidates: []vtep.CandidateStatus{{Remote: near, State: "lost"}, {Remote: far, State: "reachable", RTT: 1500 * time.Microsecond, Chosen: true}},
		},
		{Peer: netip.MustParseAddr("192.0.2.3"), Problem: "no route"},
		{Peer: netip.MustParseAddr("192.0.2.4"), PathMTU: 1500, Learned: vtep.LearnedRoute, Settled: true},
	}
}

func (source) ProbeCounters() pathmtu.Counters {
	k := pathmtu.Counters{
		ProbesSent: 10, ProbesAcked: 7, ProbesLost: 2, AcksSent: 5, AcksLimited: 1, BytesSent: 12345, SendErrors: 6, HintsAccepted: 8, QueueLosses: 9,
	}
	k.Ignored[pathmtu.IgnoreBadTag] = 11
	k.HintsIgnored[pathmtu.HintNoQuote] = 12
	return k
}

func TestConventions(t *testing.T) {
	reg, err := NewRegistry(source{}, Build{Version: "v1.2.3", Revision: "abc"})
	if err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestValues(t *testing.T) {
	want := `
# HELP overlayd_bytes_total Bytes of the inner frames, without frame check sequence.
# TYPE overlayd_bytes_total counter
overlayd_bytes_total{direction="tap_in",network="blue"} 1000
overlayd_bytes_total{direction="tap_out",network="blue"} 900
overlayd_bytes_total{direction="underlay_in",network="blue"} 1100
overlayd_bytes_total{direction="underlay_out",network="blue"} 1200
# HELP overlayd_datagrams_total UDP datagrams on the underlay.
# TYPE overlayd_datagrams_total counter
overlayd_datagrams_total{direction="in"} 7
overlayd_datagrams_total{direction="out"} 8
# HELP overlayd_fdb_entries Entries of the forwarding database.
# TYPE overlayd_fdb_entries gauge
overlayd_fdb_entries{network="blue"} 3
# HELP overlayd_feature_enabled Whether a feature of the kernel is in use.
# TYPE overlayd_feature_enabled gauge
overlayd_feature_enabled{feature="tap-uso"} 0
overlayd_feature_enabled{feature="udp-gso"} 1
# HELP overlayd_frames_created_total Extra copies of replicated frames and extra segments of re-segmented ones.
# TYPE overlayd_frames_created_total counter
overlayd_frames_created_total{network="blue"} 2
# HELP overlayd_frames_suppressed_total ARP and neighbour discovery requests that were answered from the table.
# TYPE overlayd_frames_suppressed_total counter
overlayd_frames_suppressed_total{network="blue"} 1
# HELP overlayd_frames_total Inner frames as they are on a wire: a superframe counts as the segments that it stands for.
# TYPE overlayd_frames_total counter
overlayd_frames_total{direction="tap_in",network="blue"} 10
overlayd_frames_total{direction="tap_out",network="blue"} 9
overlayd_frames_total{direction="underlay_in",network="blue"} 11
overlayd_frames_total{direction="underlay_out",network="blue"} 12
# HELP overlayd_healed_total Entries of the tables and settings in the kernel that were found other than stated, and put right.
# TYPE overlayd_healed_total counter
overlayd_healed_total{network="blue"} 5
# HELP overlayd_network_fast_path_bytes_total Bytes of the frames that the kernel forwarded by itself; they are among those of the other counters.
# TYPE overlayd_network_fast_path_bytes_total counter
overlayd_network_fast_path_bytes_total{direction="in",network="blue"} 700
overlayd_network_fast_path_bytes_total{direction="out",network="blue"} 600
# HELP overlayd_network_fast_path_frames_total Frames that the kernel forwarded by itself; they are among those of the other counters.
# TYPE overlayd_network_fast_path_frames_total counter
overlayd_network_fast_path_frames_total{direction="in",network="blue"} 7
overlayd_network_fast_path_frames_total{direction="out",network="blue"} 6
# HELP overlayd_network_fast_path_pairs Pairs of stations whose packets the kernel forwards by itself, each direction for itself.
# TYPE overlayd_network_fast_path_pairs gauge
overlayd_network_fast_path_pairs{network="blue"} 31
# HELP overlayd_network_info Always 1; the labels say what the network is.
# TYPE overlayd_network_info gauge
overlayd_network_info{backend="vnet",device="blue0",network="blue",vni="42"} 1
# HELP overlayd_network_mtu_bytes Largest inner IP packet that the network carries.
# TYPE overlayd_network_mtu_bytes gauge
overlayd_network_mtu_bytes{network="blue"} 1450
# HELP overlayd_peer_overlay_mtu_bytes Largest inner IP packet that fits towards the peer.
# TYPE overlayd_peer_overlay_mtu_bytes gauge
overlayd_peer_overlay_mtu_bytes{peer="192.0.2.2"} 1450
# HELP overlayd_peer_reachable Whether nothing is known that keeps datagrams from the peer: no missing route, no recent ICMP error.
# TYPE overlayd_peer_reachable gauge
overlayd_peer_reachable{peer="192.0.2.2"} 1
overlayd_peer_reachable{peer="192.0.2.3"} 0
# HELP overlayd_peer_underlay_mtu_bytes MTU of the device or route towards the peer.
# TYPE overlayd_peer_underlay_mtu_bytes gauge
overlayd_peer_underlay_mtu_bytes{peer="192.0.2.2"} 1500
# HELP overlayd_receive_overflow_total Datagrams that the kernel dropped before the daemon saw them, because the receive buffer was full.
# TYPE overlayd_receive_overflow_total counter
overlayd_receive_overflow_total 9
# HELP overlayd_tap_overflow_total Frames that the kernel dropped before the daemon saw them, because the queue of the TAP was full.
# TYPE overlayd_tap_overflow_total counter
overlayd_tap_overflow_total{network="blue"} 4
`
	want += pathMetrics
	want += counts("overlayd_path_probe_ignored_total", "Path probes and acknowledgements that came in and count for nothing, by reason.", pathmtu.NumIgnores, pathmtu.IgnoreBadTag, 11)
	want += counts("overlayd_path_hints_ignored_total", "ICMP errors from the underlay that were not heeded, by reason.", pathmtu.NumHintIgnores, pathmtu.HintNoQuote, 12)
	var drops strings.Builder
	for _, network := range []string{"", "blue"} {
		for r := forward.NotDropped + 1; r < forward.NumReasons; r++ {
			n := 0
			switch {
			case network == "" && r == forward.VNIUnknown:
				n = 5
			case network == "blue" && r == forward.FrameRunt:
				n = 2
			}
			fmt.Fprintf(&drops, "overlayd_drops_total{network=%q,reason=%q} %d\n", network, r, n)
		}
	}
	want += "# HELP overlayd_drops_total Frames dropped, by reason; without a network, datagrams that belong to none. `overlayctl drops` says what the reasons mean.\n" +
		"# TYPE overlayd_drops_total counter\n" + drops.String()
	if err := testutil.CollectAndCompare(NewCollector(source{}), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// counts are the metrics of one counter for each reason, of which one has counted.
func counts[R interface {
	~uint8
	String() string
}](name, help string, end, of R, n int) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s counter\n", name, help, name)
	for r := range end {
		v := 0
		if r == of {
			v = n
		}
		fmt.Fprintf(&out, "%s{reason=%q} %d\n", name, strings.ReplaceAll(r.String(), " ", "_"), v)
	}
	return out.String()
}

// pathMetrics are those of source, but for what is counted by reason.
const pathMetrics = `# HELP overlayd_icmp_errors_limited_total ICMP errors that were not sent because there were too many.
# TYPE overlayd_icmp_errors_limited_total counter
overlayd_icmp_errors_limited_total{network="blue"} 23
# HELP overlayd_icmp_errors_sent_total ICMP errors to senders of packets that do not fit.
# TYPE overlayd_icmp_errors_sent_total counter
overlayd_icmp_errors_sent_total{network="blue"} 22
# HELP overlayd_mss_clamped_total TCP SYNs whose MSS was lowered to what fits.
# TYPE overlayd_mss_clamped_total counter
overlayd_mss_clamped_total{network="blue"} 21
# HELP overlayd_packets_fragmented_total Inner IPv4 packets that did not fit and were cut, as they may be.
# TYPE overlayd_packets_fragmented_total counter
overlayd_packets_fragmented_total{network="blue"} 24
# HELP overlayd_path_hints_accepted_total ICMP errors from the underlay that made the node probe at once.
# TYPE overlayd_path_hints_accepted_total counter
overlayd_path_hints_accepted_total 8
# HELP overlayd_path_probe_acknowledgements_total Path probes of others, by whether they were acknowledged.
# TYPE overlayd_path_probe_acknowledgements_total counter
overlayd_path_probe_acknowledgements_total{result="limited"} 1
overlayd_path_probe_acknowledgements_total{result="sent"} 5
# HELP overlayd_path_probe_bytes_total Bytes of path probes and acknowledgements sent, with their IP headers.
# TYPE overlayd_path_probe_bytes_total counter
overlayd_path_probe_bytes_total 12345
# HELP overlayd_path_probe_overflow_total Path probes and ICMP errors that came in faster than they could be looked at.
# TYPE overlayd_path_probe_overflow_total counter
overlayd_path_probe_overflow_total 9
# HELP overlayd_path_probe_send_errors_total Path probes that the host did not send, for another reason than their size.
# TYPE overlayd_path_probe_send_errors_total counter
overlayd_path_probe_send_errors_total 6
# HELP overlayd_path_probes_sent_total Path probes sent.
# TYPE overlayd_path_probes_sent_total counter
overlayd_path_probes_sent_total 10
# HELP overlayd_path_probes_total Path probes, by what came of them; those under way are not in it.
# TYPE overlayd_path_probes_total counter
overlayd_path_probes_total{result="acknowledged"} 7
overlayd_path_probes_total{result="lost"} 2
# HELP overlayd_peer_candidate_reachable Whether this address of the peer answers probes.
# TYPE overlayd_peer_candidate_reachable gauge
overlayd_peer_candidate_reachable{peer="192.0.2.2",remote="192.0.2.2"} 0
overlayd_peer_candidate_reachable{peer="192.0.2.2",remote="203.0.113.2"} 1
# HELP overlayd_peer_candidate_rtt_seconds Least of the last few round-trip times of probes to this address of the peer.
# TYPE overlayd_peer_candidate_rtt_seconds gauge
overlayd_peer_candidate_rtt_seconds{peer="192.0.2.2",remote="203.0.113.2"} 0.0015
# HELP overlayd_peer_candidate_used Whether datagrams to the peer go to this address.
# TYPE overlayd_peer_candidate_used gauge
overlayd_peer_candidate_used{peer="192.0.2.2",remote="192.0.2.2"} 0
overlayd_peer_candidate_used{peer="192.0.2.2",remote="203.0.113.2"} 1
# HELP overlayd_peer_path_black_holes_total Times that the path to the peer turned out to carry less than before, without notice.
# TYPE overlayd_peer_path_black_holes_total counter
overlayd_peer_path_black_holes_total{peer="192.0.2.2"} 3
overlayd_peer_path_black_holes_total{peer="192.0.2.3"} 0
overlayd_peer_path_black_holes_total{peer="192.0.2.4"} 0
# HELP overlayd_peer_path_moves_total Times that another address of the peer was chosen.
# TYPE overlayd_peer_path_moves_total counter
overlayd_peer_path_moves_total{peer="192.0.2.2"} 4
overlayd_peer_path_moves_total{peer="192.0.2.3"} 0
overlayd_peer_path_moves_total{peer="192.0.2.4"} 0
# HELP overlayd_peer_path_mtu_bytes Largest outer IP packet that reaches the peer, as far as is known.
# TYPE overlayd_peer_path_mtu_bytes gauge
overlayd_peer_path_mtu_bytes{peer="192.0.2.2"} 1400
overlayd_peer_path_mtu_bytes{peer="192.0.2.4"} 1500
# HELP overlayd_peer_path_proven Whether the path MTU of the peer is settled by acknowledged probes; otherwise it is what the route says, or still searched for.
# TYPE overlayd_peer_path_proven gauge
overlayd_peer_path_proven{peer="192.0.2.2"} 1
overlayd_peer_path_proven{peer="192.0.2.4"} 0
# HELP overlayd_segments_split_total Single TCP segments that did not fit and became several.
# TYPE overlayd_segments_split_total counter
overlayd_segments_split_total{network="blue"} 26
# HELP overlayd_superframes_resegmented_total TCP superframes that were cut into smaller segments than their sender asked for.
# TYPE overlayd_superframes_resegmented_total counter
overlayd_superframes_resegmented_total{network="blue"} 25
`

func TestServe(t *testing.T) {
	reg, err := NewRegistry(source{}, Build{Version: "v1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, reg, slog.New(slog.DiscardHandler)) }()
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	for path, want := range map[string]int{"/metrics": 200, "/": 404} {
		res, err := hc.Get("http://" + s.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != want {
			t.Errorf("%s: %d, %v", path, res.StatusCode, err)
		}
		for _, part := range []string{`overlayd_build_info{goversion="go`, "\nprocess_resident_memory_bytes ", "\ngo_goroutines "} {
			if want == 200 && !strings.Contains(string(body), part) {
				t.Errorf("%q is not in the answer", part)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestTaken looks for the process that has the address: it is this one.
func TestTaken(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("no %s on this host: %v", address, err)
			continue
		}
		defer ln.Close()
		_, err = Listen(ln.Addr().String())
		want := fmt.Sprintf("listen for metrics on %v: process %d (metrics.test) listens there already: set metrics to another address, or to nothing", ln.Addr(), os.Getpid())
		if err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

func TestListenRefusals(t *testing.T) {
	_, err := Listen("198.51.100.77:9789")
	want := "listen for metrics on 198.51.100.77:9789: no interface of this host has that address: set metrics to one that `ip address` shows"
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	for _, port := range []string{"", "x", "65536"} {
		if owner := listenerOf(port); owner != "" {
			t.Errorf("listenerOf(%q) = %q", port, owner)
		}
	}
}
