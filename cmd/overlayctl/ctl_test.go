package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/apitest"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write what is printed to testdata instead of comparing")

// now is the moment of all tests.
var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// arp is a request of 10.42.0.1 for 10.42.0.2.
var arp = []byte{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0x42, 10, 42, 0, 1, 8, 6,
	0, 1, 8, 0, 6, 4, 0, 1, 2, 0x42, 10, 42, 0, 1, 10, 42, 0, 1, 0, 0, 0, 0, 0, 0, 10, 42, 0, 2,
}

func content() apitest.Content {
	before := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }
	paths := pathsAt(before)
	return apitest.Content{
		Status: &overlaydv1.NodeStatus{
			Node: "h1", Version: &overlaydv1.Version{Version: "v1.2.3", Revision: "abcdef", GoVersion: "go1.26"}, Pid: 77,
			StartTime: before(50 * time.Hour),
			Underlay: &overlaydv1.Underlay{
				Port: 4789, Addresses: []string{"192.0.2.1", "2001:db8::1"}, DatagramsIn: 1234567, DatagramsOut: 999, ReceiveOverflow: 12,
				DropsByReason: map[string]uint64{"vni_unknown": 3},
			},
			Features: []*overlaydv1.Feature{
				{Name: "tap-vnet", On: true}, {Name: "udp-gso", On: true}, {Name: "fast-path", On: true},
				{Name: "tap-uso", Reason: "the kernel does not know TUN_F_USO4 (6.2 or later does)"}, {Name: "udp-gro", Reason: "turned off by the operator"},
			},
		},
		Networks: []*overlaydv1.Network{
			{
				Name: "blue", Vni: 42, Device: "blue0", Addresses: []string{"10.42.0.1/24", "fd42::1/64"}, Mtu: 1350, MtuDerived: true,
				Peers: []string{"192.0.2.2", "192.0.2.3"}, FdbEntries: 2, TapOverflow: 5, Healed: 3, Problem: "the gateway is gone",
				Counters: &overlaydv1.Counters{
					TapIn: &overlaydv1.Traffic{Frames: 1000}, TapOut: &overlaydv1.Traffic{Frames: 1234567},
					UnderlayIn: &overlaydv1.Traffic{Frames: 1234600}, UnderlayOut: &overlaydv1.Traffic{Frames: 967}, FramesDropped: 66,
					MssClamped: 1024, IcmpSent: 7, IcmpLimited: 2, PacketsFragmented: 3, SuperframesResegmented: 44, SegmentsSplit: 5,
				},
				MtuLimits:     []string{"198.51.100.4"},
				FastPathPairs: 12, FastPathOut: &overlaydv1.Traffic{Frames: 960, Bytes: 96000}, FastPathIn: &overlaydv1.Traffic{Frames: 1233000, Bytes: 123300000},
			},
			{Name: "a-longer-name", Vni: 16777215, Device: "red0", Mtu: 1280, Mss: 1200, Peers: []string{"192.0.2.2"}},
		},
		Peers: []*overlaydv1.Peer{
			{
				Address: "192.0.2.2", RemoteAddress: "192.0.2.2", LocalAddress: "192.0.2.1", Device: "eth0", UnderlayMtu: 1500, PathMtu: 1500, Overhead: 50, OverlayMtu: 1450,
				Networks: []string{"blue", "red"}, LastHeard: before(3 * time.Second), Candidates: paths[0].Candidates,
			},
			{Address: "192.0.2.3", Networks: []string{"blue"}, Problem: "no route to 192.0.2.3", Candidates: paths[1].Candidates},
			{
				Address: "198.51.100.4", RemoteAddress: "203.0.113.4", LocalAddress: "192.0.2.1", Device: "eth0", UnderlayMtu: 1500, PathMtu: 1400, Overhead: 50, OverlayMtu: 1350,
				Networks: []string{"blue"}, LastHeard: before(300 * time.Millisecond), Candidates: paths[2].Candidates,
			},
		},
		Paths: paths,
		Probes: &overlaydv1.Probes{
			Sent: 120, Acknowledged: 117, Lost: 3, BytesSent: 98765, AcknowledgementsSent: 88,
			IgnoredByReason: map[string]uint64{"stale": 1}, HintsAccepted: 2, HintsIgnoredByReason: map[string]uint64{"no_quote": 6}, BlackHoles: 2, Moves: 1,
		},
		FDB: map[string][]*overlaydv1.FDBEntry{"blue": {
			{Mac: "02:42:0a:2a:00:02", Vtep: "192.0.2.2", Age: durationpb.New(75 * time.Second)},
			{Mac: "02:42:0a:2a:00:03", Vtep: "192.0.2.30", Static: true, Ips: []string{"10.42.0.3", "fd42::3"}},
		}},
		Drops: []*overlaydv1.Drop{
			{Network: "blue", Reason: "no_peers", Help: "Nowhere to send it: the network has no peers.", Count: 66, LastTime: before(90 * time.Second)},
			{Reason: "vni_unknown", Help: "No network on this host has this VNI.", Count: 1234567, LastTime: before(200 * time.Millisecond)},
			{Network: "blue", Reason: "tap_down", Help: "The TAP is not up.", Count: 1},
		},
		Samples: []*overlaydv1.DropSample{
			{Seq: 1, Time: before(90 * time.Second), Network: "blue", Reason: "no_peers", Egress: true, Length: 42, Data: arp},
			{Seq: 2, Time: before(200 * time.Millisecond), Reason: "vni_unknown", Peer: "198.51.100.7", Length: 50, Outer: true, Data: append([]byte{8, 0, 0, 0, 0, 0, 99, 0}, arp...)},
		},
	}
}

// pathsAt returns one path that is as it should be, one that is not there, and one that is narrow and the second choice.
func pathsAt(before func(time.Duration) *timestamppb.Timestamp) []*overlaydv1.Path {
	overhead := []*overlaydv1.OverheadTerm{{Name: "outer IPv4", Bytes: 20}, {Name: "UDP", Bytes: 8}, {Name: "VXLAN", Bytes: 8}, {Name: "inner Ethernet", Bytes: 14}}
	return []*overlaydv1.Path{
		{
			Peer: "192.0.2.2", Remote: "192.0.2.2", Local: "192.0.2.1", Device: "eth0", UnderlayMtu: 1500, PathMtu: 1500, Learned: "probe", LearnedTime: before(75 * time.Second),
			Settled: true, Overhead: overhead, OverlayMtu: 1450, MssIpv4: 1410, MssIpv6: 1390, Networks: []string{"blue", "a-longer-name"},
			Candidates: []*overlaydv1.Candidate{{Remote: "192.0.2.2", Local: "192.0.2.1", Origin: "stated", State: "reachable", Rtt: durationpb.New(412 * time.Microsecond), PathMtu: 1500, Chosen: true}},
		},
		{
			Peer: "192.0.2.3", Networks: []string{"blue"}, Problem: "no route to 192.0.2.3",
			Candidates: []*overlaydv1.Candidate{{Remote: "192.0.2.3", Origin: "stated", State: "no route", Chosen: true}},
		},
		{
			Peer: "198.51.100.4", Remote: "203.0.113.4", Local: "192.0.2.1", Device: "eth0", UnderlayMtu: 1500, PathMtu: 1400, Learned: "probe", LearnedTime: before(2 * time.Hour),
			Settled: true, Overhead: overhead, OverlayMtu: 1350, MssIpv4: 1310, MssIpv6: 1290, Networks: []string{"blue"}, BlackHoles: 2, Moves: 1, ChosenTime: before(40 * time.Minute),
			Candidates: []*overlaydv1.Candidate{
				{Remote: "198.51.100.4", Local: "192.0.2.1", Origin: "stated", State: "lost", Why: "no answer since 40s"},
				{Remote: "203.0.113.4", Local: "192.0.2.1", SeenAs: "203.0.113.1", Origin: "stated", State: "reachable", Rtt: durationpb.New(12345 * time.Microsecond), PathMtu: 1400, Chosen: true},
				{Remote: "2001:db8::4", Local: "2001:db8::1", Origin: "observed", State: "reachable", Rtt: durationpb.New(180 * time.Millisecond), PathMtu: 1500, Why: "slower"},
			},
		},
	}
}

// call runs the program once.
func call(ctx context.Context, getenv map[string]string, args ...string) (code int, stdout, stderr string) {
	return callWith(ctx, "", getenv, args...)
}

// callWith is call with a standard input.
func callWith(ctx context.Context, stdin string, getenv map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, environment{
		stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs,
		getenv:     func(k string) string { return getenv[k] },
		now:        func() time.Time { return now },
		namespaces: func() []string { return []string{"c1", "c2"} },
		recoverNode: func(dir string) (string, error) {
			if dir != "/var/lib/overlayd" {
				return "", fmt.Errorf("recover the cluster from %s: there is no data of a manager: name the data directory of the daemon", dir)
			}
			return "000000000000000a", nil
		},
	})
	return code, out.String(), errs.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (go test -update writes it)\n got:\n%s\nwant:\n%s", name, got, want)
	}
}

func TestListings(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	for name, args := range map[string][]string{
		"status":        {"status"},
		"network_ls":    {"network", "ls"},
		"fdb":           {"fdb", "blue"},
		"fdb_empty":     {"fdb", "a-longer-name"},
		"peers":         {"peers"},
		"mtu":           {"mtu"},
		"mtu_network":   {"mtu", "a-longer-name"},
		"drops":         {"drops"},
		"drops_network": {"drops", "--network", "blue"},
		"drops_none":    {"drops", "--network", "a-longer-name"},
	} {
		t.Run(name, func(t *testing.T) {
			args = append(args, "--socket", socket)
			code, out, errs := call(t.Context(), nil, args...)
			if code != exitOK || errs != "" {
				t.Errorf("exit code %d, %s", code, errs)
			}
			golden(t, name+".txt", out)

			code, out, errs = call(t.Context(), nil, append(args, "-o", "json")...)
			if code != exitOK || errs != "" || !json.Valid([]byte(out)) {
				t.Errorf("-o json: exit code %d, %s", code, errs)
			}
			golden(t, name+".json", out)
		})
	}
}

// TestQuietNode has nothing to tell.
func TestQuietNode(t *testing.T) {
	socket, _ := apitest.New(apitest.Content{Status: &overlaydv1.NodeStatus{Node: "h1", StartTime: timestamppb.New(now)}}).Serve(t)
	for _, name := range []string{"status", "peers", "mtu", "drops"} {
		code, out, errs := call(t.Context(), nil, name, "--socket", socket)
		if code != exitOK || errs != "" {
			t.Errorf("exit code %d, %s", code, errs)
		}
		golden(t, "quiet_"+name+".txt", out)
	}
}

func TestDescribeFastPath(t *testing.T) {
	on := []*overlaydv1.Feature{{Name: "fast-path", On: true}}
	network := func(pairs, fast, all uint64) *overlaydv1.Network {
		return &overlaydv1.Network{
			FastPathPairs: pairs, FastPathOut: &overlaydv1.Traffic{Frames: fast},
			Counters: &overlaydv1.Counters{UnderlayOut: &overlaydv1.Traffic{Frames: all}},
		}
	}
	for _, c := range []struct {
		features []*overlaydv1.Feature
		networks []*overlaydv1.Network
		want     string
	}{
		{nil, []*overlaydv1.Network{network(2, 1, 1)}, ""},
		{[]*overlaydv1.Feature{{Name: "fast-path", Reason: "turned off by the operator"}}, []*overlaydv1.Network{network(2, 1, 1)}, ""},
		{on, nil, "fast path  no pairs of stations\n"},
		{on, []*overlaydv1.Network{{}}, "fast path  no pairs of stations\n"},
		{on, []*overlaydv1.Network{network(1, 0, 9)}, "fast path  1 pair of stations, 0.0 % of frames forwarded in the kernel\n"},
		{on, []*overlaydv1.Network{network(1, 1999, 2000), network(1, 0, 0)}, "fast path  2 pairs of stations, 99.9 % of frames forwarded in the kernel\n"},
		{on, []*overlaydv1.Network{network(0, 7, 7)}, "fast path  no pairs of stations, 100.0 % of frames forwarded in the kernel\n"},
	} {
		p, out := &paragraph{}, &strings.Builder{}
		describeFastPath(p, c.features, c.networks)
		if err := p.print(out); err != nil || out.String() != c.want {
			t.Errorf("%v, %q, want %q", err, out, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	socket, stop := apitest.New(content()).Serve(t)
	env := map[string]string{"OVERLAYD_SOCKET": socket}
	code, out, errs := call(t.Context(), env, "version")
	if code != exitOK || errs != "" || !strings.HasPrefix(out, "overlayctl  ") || !strings.Contains(out, "\noverlayd    v1.2.3 revision abcdef go1.26\n") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	code, out, _ = call(t.Context(), env, "version", "-o", "json")
	var v struct{ Overlayctl, Overlayd *struct{ Version string } }
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != exitOK || v.Overlayctl == nil || v.Overlayd.Version != "v1.2.3" {
		t.Errorf("%d, %v\n%s", code, err, out)
	}
	stop()
	for _, args := range [][]string{{"version"}, {"version", "-o", "json"}} {
		code, out, errs := call(t.Context(), env, args...)
		if code != exitFailure || !strings.Contains(out, "overlayctl") || !strings.HasPrefix(errs, "overlayctl: overlayd is not running here") {
			t.Errorf("without a daemon: %d\n%s%s", code, out, errs)
		}
	}
}

func TestFaults(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"fdb green", exitFailure, `this node has no network "green": choose from blue, a-longer-name`},
		{"mtu green", exitFailure, `this node has no network "green": choose from blue, a-longer-name`},
		{"mtu a b", exitUsage, `mtu takes the name of one network, or nothing for all, not 2 arguments; see overlayctl --help`},
		{"drops --network green", exitFailure, `this node has no network "green": choose from blue, a-longer-name`},
		{"drops --follow --network green", exitFailure, `this node has no network "green": choose from blue, a-longer-name`},
		{"status --socket /nonexistent/s", exitFailure, `overlayd is not running here: there is no socket /nonexistent/s; start it, or name the socket of the one that runs`},
		{"drops --follow --socket /nonexistent/s", exitFailure, `overlayd is not running here: there is no socket /nonexistent/s; start it, or name the socket of the one that runs`},
		{"fdb", exitUsage, `fdb takes the name of one network, not 0 arguments; see overlayctl --help`},
		{"fdb a b", exitUsage, `fdb takes the name of one network, not 2 arguments; see overlayctl --help`},
		{"status -o xml", exitUsage, `invalid argument "xml" for "-o, --output" flag: choose table or json; see overlayctl --help`},
		{"status --lag", exitUsage, `unknown flag: --lag; see overlayctl --help`},
		{"status now", exitUsage, `unknown command "now" for "overlayctl status"; see overlayctl --help`},
		{"network", exitUsage, `overlayctl network needs one of the commands create, inspect, ls, rm; see overlayctl --help`},
		{"lab upp", exitUsage, `overlayctl lab has no command "upp": choose from down, exec, run, status, up; see overlayctl --help`},
		{"lab up", exitUsage, `accepts 1 arg(s), received 0; see overlayctl --help`},
		{"network remake", exitUsage, `overlayctl network has no command "remake": choose from create, inspect, ls, rm; see overlayctl --help`},
		{"", exitUsage, `overlayctl needs one of the commands backup, bench, cluster, completion, drops, endpoint, fdb, init, join, lab, leave, mtu, network, node, peers, restore, status, token, version; see overlayctl --help`},
		{"stat", exitUsage, `overlayctl has no command "stat": choose from backup, bench, cluster, completion, drops, endpoint, fdb, init, join, lab, leave, mtu, network, node, peers, restore, status, token, version; see overlayctl --help`},
	} {
		code, out, errs := call(t.Context(), map[string]string{"OVERLAYD_SOCKET": socket}, strings.Fields(c.args)...)
		if code != c.code || out != "" || errs != "overlayctl: "+c.want+"\n" {
			t.Errorf("overlayctl %s: exit code %d, want %d\n%s%s", c.args, code, c.code, out, errs)
		}
	}
}

func TestHelpAndCompletion(t *testing.T) {
	if code, out, _ := call(t.Context(), nil, "--help"); code != exitOK || !strings.Contains(out, "Exit code: 0") || !strings.Contains(out, "OVERLAYD_SOCKET") {
		t.Errorf("%d\n%s", code, out)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, errs := call(t.Context(), nil, "completion", shell); code != exitOK || len(out) < 1000 {
			t.Errorf("completion %s: %d %s", shell, code, errs)
		}
	}
	socket, _ := apitest.New(content()).Serve(t)
	for args, want := range map[string]string{
		"fdb ":             "blue\tVNI 42\na-longer-name\tVNI 16777215\n:4\n",
		"fdb blue ":        ":4\n",
		"mtu ":             "blue\tVNI 42\na-longer-name\tVNI 16777215\n:4\n",
		"mtu blue ":        ":4\n",
		"peers ":           ":4\n",
		"drops --network ": "blue\tVNI 42\na-longer-name\tVNI 16777215\n:4\n",
		"status --output ": "table\njson\n:4\n",
	} {
		_, out, _ := call(t.Context(), map[string]string{"OVERLAYD_SOCKET": socket}, append([]string{"__complete"}, strings.Split(args, " ")...)...)
		if out != want {
			t.Errorf("completion of %q: %q, want %q", args, out, want)
		}
	}
}

// writer hands what is written to it to the test.
type writer chan string

func (w writer) Write(b []byte) (int, error) { w <- string(b); return len(b), nil }

func TestFollow(t *testing.T) {
	for _, output := range []string{"table", "json"} {
		t.Run(output, func(t *testing.T) {
			node := apitest.New(content())
			socket, _ := node.Serve(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := make(writer)
			done := make(chan int, 1)
			var errs bytes.Buffer
			go func() {
				done <- run(ctx, []string{"drops", "--follow", "-o", output, "--socket", socket}, environment{
					stdout: out, stderr: &errs, getenv: func(string) string { return "" }, now: func() time.Time { return now },
				})
			}()
			got := <-out
			node.Change(func(c *apitest.Content) {
				c.Samples = []*overlaydv1.DropSample{{Seq: 9, Time: timestamppb.New(now), Network: "blue", Reason: "frame_runt", Peer: "192.0.2.2", Length: 3, Data: []byte{1, 2, 3}}}
			})
			got += <-out
			cancel()
			if code := <-done; code != exitOK || errs.Len() > 0 {
				t.Errorf("interrupted: exit code %d, %s", code, errs.String())
			}
			golden(t, "follow_"+output+".txt", got)
		})
	}
}

// TestFollowEnds loses its daemon.
func TestFollowEnds(t *testing.T) {
	socket, stop := apitest.New(content()).Serve(t)
	out := make(writer)
	var errs bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- run(t.Context(), []string{"drops", "-f", "--socket", socket}, environment{
			stdout: out, stderr: &errs, getenv: func(string) string { return "" }, now: time.Now,
		})
	}()
	<-out
	stop()
	if code := <-done; code != exitFailure || errs.String() != "overlayctl: the daemon is stopping\n" {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
}

// TestMTUAdvice tells what an operator has to know or to do, each in a case of its own.
func TestMTUAdvice(t *testing.T) {
	path := func(change func(*overlaydv1.Path)) []*overlaydv1.Path {
		p := &overlaydv1.Path{
			Peer: "192.0.2.2", Remote: "192.0.2.2", Device: "eth0", UnderlayMtu: 1500, PathMtu: 1500, Learned: "probe", Settled: true, OverlayMtu: 1450,
			Networks: []string{"blue"}, Candidates: []*overlaydv1.Candidate{{Remote: "192.0.2.2", State: "reachable", Chosen: true}},
		}
		change(p)
		return []*overlaydv1.Path{p}
	}
	derived := &overlaydv1.Network{Name: "blue", Mtu: 1450, MtuDerived: true}
	for name, c := range map[string]struct {
		network *overlaydv1.Network
		paths   []*overlaydv1.Path
		state   string
		advice  string // "" = none
	}{
		"well":      {derived, path(func(*overlaydv1.Path) {}), "proven", ""},
		"searching": {derived, path(func(p *overlaydv1.Path) { p.Settled, p.PathMtu = false, 1280 }), "searching for more", ""},
		"new":       {derived, path(func(p *overlaydv1.Path) { p.Settled, p.Learned = false, "route" }), "not proven yet", ""},
		"silent": {
			derived, path(func(p *overlaydv1.Path) { p.Learned, p.Candidates[0].State = "route", "unanswered" }), "answers no probes",
			"No answer to probes from 192.0.2.2: ",
		},
		"off": {
			derived, path(func(p *overlaydv1.Path) { p.Learned, p.Candidates[0].State = "route", "not probed" }), "not probed",
			"Paths are not probed, as the feature path-probes is off: ",
		},
		"narrow": {
			derived, path(func(p *overlaydv1.Path) { p.PathMtu = 1337 }), "proven",
			"Something on the way carries less than the route says, to 192.0.2.2 (1337 of 1500). ",
		},
		"no route": {derived, path(func(p *overlaydv1.Path) { p.Problem, p.PathMtu = "no route", 1400 }), "no route", ""},
		"fixed too high": {
			&overlaydv1.Network{Name: "blue", Mtu: 1450}, path(func(p *overlaydv1.Path) { p.PathMtu, p.UnderlayMtu, p.OverlayMtu = 1400, 1400, 1350 }), "proven",
			"blue: its MTU was fixed at 1450, and the path to 192.0.2.2 leaves 1350. ",
		},
		"fixed, of another network": {
			&overlaydv1.Network{Name: "red", Mtu: 1450}, path(func(p *overlaydv1.Path) { p.OverlayMtu = 1350 }), "proven", "",
		},
		"too small for IPv6": {
			&overlaydv1.Network{Name: "blue", Mtu: 1230, MtuDerived: true}, path(func(*overlaydv1.Path) {}), "proven",
			"blue: an MTU of 1230 is too small for IPv6 inside, which needs 1280.",
		},
	} {
		if got := pathState(c.paths[0]); got != c.state {
			t.Errorf("%s: state %q, want %q", name, got, c.state)
		}
		got := strings.Join(advise(&overlaydv1.ListPathsResponse{Networks: []*overlaydv1.Network{c.network}, Paths: c.paths}), "\n")
		if !strings.HasPrefix(got, c.advice) || c.advice == "" && got != "" || strings.Contains(got, "\n") {
			t.Errorf("%s: advice\n%s\nwant %s", name, got, c.advice)
		}
	}
	for want, n := range map[string]*overlaydv1.Network{
		"operator":                 {Mtu: 1400},
		"no path known":            {MtuDerived: true},
		"path to 192.0.2.2":        {MtuDerived: true, Peers: []string{"192.0.2.2"}, MtuLimits: []string{"192.0.2.2"}},
		"all paths alike":          {MtuDerived: true, Peers: []string{"a", "b", "c"}, MtuLimits: []string{"a", "b", "c"}},
		"paths to a, b":            {MtuDerived: true, Peers: []string{"a", "b", "c"}, MtuLimits: []string{"a", "b"}},
		"paths to a, b and 1 more": {MtuDerived: true, Peers: []string{"a", "b", "c", "d"}, MtuLimits: []string{"a", "b", "c"}},
	} {
		if got := setBy(n); got != want {
			t.Errorf("set by %q, want %q", got, want)
		}
	}
}

// TestTablePages prints a table in parts, whose columns stay where they are.
func TestTablePages(t *testing.T) {
	var out strings.Builder
	tab := newTable(&out, left("A"), right("B"), left("C"))
	tab.add("wide cell", "1", "")
	for range 2 {
		if err := tab.flush(); err != nil {
			t.Fatal(err)
		}
	}
	tab.add("x", "22", "ü")
	tab.note("note")
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	want := "A          B  C\nwide cell  1  -\nx          22  ü\n    note\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestWords(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", 100000: "100,000"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %s", n, got)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 999 * time.Millisecond: "0s", 59 * time.Second: "59s", time.Minute: "1m0s",
		59*time.Minute + 59*time.Second: "59m59s", 26 * time.Hour: "1d2h", 23*time.Hour + 5*time.Minute: "23h5m",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %s, want %s", d, got, want)
		}
	}
}

// TestConcurrentRuns shares nothing between runs of the program.
func TestConcurrentRuns(t *testing.T) {
	socket, _ := apitest.New(content()).Serve(t)
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for i := range cap(errs) {
		wg.Go(func() {
			format := []string{"json", "table"}[i%2]
			if code, out, _ := call(t.Context(), nil, "peers", "-o", format, "--socket", socket); code != exitOK || json.Valid([]byte(out)) != (format == "json") {
				errs <- fmt.Errorf("exit code %d: %s", code, out)
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}
