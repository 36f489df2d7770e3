package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/cmd/overlayd/config"
	"github.com/overlayd/overlayd/controlplane/api"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/mtu"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeTunnel stands in for a VTEP: it forwards nothing.
type fakeTunnel struct {
	fail   chan error // what Run is to return
	closed bool
	at     []netip.Addr // as SetAddresses has put it
}

func (f *fakeTunnel) SetAddresses(addresses []netip.Addr) error {
	f.at = addresses
	return nil
}

func (f *fakeTunnel) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-f.fail:
		return err
	}
}

func (f *fakeTunnel) Close() error { f.closed = true; return nil }

func (f *fakeTunnel) AddNetwork(vtep.Network) error                          { return nil }
func (f *fakeTunnel) RemoveNetwork(string) error                             { return nil }
func (f *fakeTunnel) SetPeers(string, []netip.Addr) error                    { return nil }
func (f *fakeTunnel) SetMapping(string, addr.Mapping) error                  { return nil }
func (f *fakeTunnel) RemoveMapping(string, addr.MAC) error                   { return nil }
func (f *fakeTunnel) Detach(string, string) error                            { return nil }
func (f *fakeTunnel) Attachments(string) []vtep.Attached                     { return nil }
func (f *fakeTunnel) Unclaimed(string) ([]string, error)                     { return nil, nil }
func (f *fakeTunnel) RemoveOrphans([]addr.VNI) (removed []addr.VNI, _ error) { return nil, nil }
func (f *fakeTunnel) SetNode(vtep.Node) error                                { return nil }
func (f *fakeTunnel) RemoveNode(netip.Addr)                                  {}
func (f *fakeTunnel) SetProbeKeys([][]byte, netip.Addr) error                { return nil }
func (f *fakeTunnel) Attach(string, vtep.Attachment) (vtep.Attached, error) {
	return vtep.Attached{}, nil
}

func (f *fakeTunnel) Status() vtep.Status {
	st := vtep.Status{
		Port: 4789, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Features:    []vtep.Feature{{Name: "udp-gso", On: true}, {Name: "tap-uso", Reason: "kernel 6.2 or later"}},
		DatagramsIn: 3, DatagramsOut: 4, ReceiveOverflow: 5,
	}
	st.Unattributed[forward.VNIUnknown] = 6
	return st
}

func (f *fakeTunnel) Networks() []vtep.NetworkStatus {
	n := vtep.NetworkStatus{
		Name: "blue", VNI: 42, Device: "blue0", MTU: 1450, MTUDerived: true, Backend: "vnet", Queues: 2,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.42.0.1/24")},
		Peers:     []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Learning: true, FDBEntries: 3, TAPOverflow: 9, Healed: 7, Problem: "the gateway",
		Pairs: 2, FastOut: vtep.Traffic{Frames: 4, Bytes: 400}, FastIn: vtep.Traffic{Frames: 8, Bytes: 800},
		Counters: vtep.Counters{TAPIn: vtep.Traffic{Frames: 10, Bytes: 1000}, UnderlayOut: vtep.Traffic{Frames: 5, Bytes: 500}},
	}
	n.Counters.Drops[forward.FrameRunt] = 2
	n.Counters.Drops[forward.NoPeers] = 3
	return []vtep.NetworkStatus{n}
}

func (f *fakeTunnel) FDB(network string) ([]vtep.FDBEntry, error) {
	if network != "blue" {
		return nil, fmt.Errorf("%w: %s", vtep.ErrNoNetwork, network)
	}
	peer := netip.MustParseAddr("192.0.2.2")
	return []vtep.FDBEntry{
		{MAC: addr.MAC{2, 0, 0, 0, 0, 1}, VTEP: peer, Age: 5 * time.Second},
		{MAC: addr.MAC{2, 0, 0, 0, 0, 2}, VTEP: peer, Static: true, IPs: []netip.Addr{netip.MustParseAddr("10.42.0.2")}},
		{MAC: addr.MAC{2, 0, 0, 0, 1, 0}, VTEP: peer},
	}, nil
}

func (f *fakeTunnel) Peers() []vtep.PeerStatus {
	return []vtep.PeerStatus{{Address: netip.MustParseAddr("192.0.2.2"), Problem: "no route", Networks: []string{"blue"}}}
}

func (f *fakeTunnel) Paths() []vtep.PathStatus {
	a := netip.MustParseAddr("192.0.2.2")
	return []vtep.PathStatus{
		{
			Peer: a, Remote: netip.MustParseAddr("203.0.113.2"), Local: netip.MustParseAddr("192.0.2.1"), Device: "eth0", UnderlayMTU: 1500, PathMTU: 1500,
			Learned: vtep.LearnedProbe, LearnedAt: time.Unix(100, 0), Since: time.Unix(90, 0), Settled: true,
			Overhead: mtu.Terms(mtu.IPv4, 0), OverlayMTU: 1450, MSSv4: 1410, MSSv6: 1390, BlackHoles: 2, Moves: 1, Networks: []string{"blue"},
			Candidates: []vtep.CandidateStatus{
				{Remote: a, Origin: "stated", State: "lost", Why: "no answer"},
				{Remote: netip.MustParseAddr("203.0.113.2"), Local: netip.MustParseAddr("192.0.2.1"), Origin: "observed", State: "reachable", RTT: time.Millisecond, PathMTU: 1500, SeenAs: netip.MustParseAddr("203.0.113.1"), Chosen: true},
			},
		},
		{Peer: netip.MustParseAddr("192.0.2.3"), OverlayMTU: 1450, Networks: []string{"red"}},
	}
}

func (f *fakeTunnel) ProbeCounters() pathmtu.Counters {
	k := pathmtu.Counters{ProbesSent: 9, ProbesAcked: 7, ProbesLost: 1, AcksSent: 6, AcksLimited: 5, BytesSent: 4, SendErrors: 3, BlackHoles: 2, Moves: 1, HintsAccepted: 8, QueueLosses: 10}
	k.Ignored[pathmtu.IgnoreWrongSource] = 11
	k.HintsIgnored[pathmtu.HintNoQuote] = 12
	return k
}

func (f *fakeTunnel) Drops() []vtep.DropCount {
	return []vtep.DropCount{
		{Network: "blue", Reason: forward.FrameRunt, Count: 2, Last: time.Unix(100, 0)},
		{Network: "blue", Reason: forward.NoPeers},
		{Reason: forward.VNIUnknown, Count: 6},
	}
}

func (f *fakeTunnel) Samples(after uint64) []vtep.DropSample {
	s := vtep.DropSample{Seq: 7, Time: time.Unix(100, 0), Network: "blue", Reason: forward.FrameRunt, Egress: true, Length: 9, Data: []byte{1, 2}}
	if after >= s.Seq {
		return nil
	}
	return []vtep.DropSample{s}
}

// instance is one run of the program in a folder of the test.
type instance struct {
	t      *testing.T
	tun    *fakeTunnel
	dir    string
	socket string

	mu     sync.Mutex
	stderr bytes.Buffer
	told   []string
	ready  chan struct{}
}

func (d *instance) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stderr.Write(b)
}

func (d *instance) log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stderr.String()
}

func newInstance(t *testing.T) *instance {
	dir := t.TempDir()
	d := &instance{
		t: t, dir: dir, socket: filepath.Join(dir, "run", "overlayd.sock"),
		tun: &fakeTunnel{fail: make(chan error, 1)}, ready: make(chan struct{}),
	}
	d.file("node: h1\nsocket: " + d.socket + "\nmetrics: 127.0.0.1:0\nnetworks:\n  - {name: blue, vni: 42, device: blue0, peers: [192.0.2.2]}\n")
	return d
}

func (d *instance) file(text string) {
	if err := os.WriteFile(filepath.Join(d.dir, "f.yaml"), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// run runs the program to its end. open replaces the making of the VTEP if it is not nil.
func (d *instance) run(ctx context.Context, open func(vtep.Config) (tunnel, error), args ...string) (code int, stdout string) {
	if open == nil {
		open = func(vtep.Config) (tunnel, error) { return d.tun, nil }
	}
	var out bytes.Buffer
	code = run(ctx, append([]string{"--config", filepath.Join(d.dir, "f.yaml")}, args...), &out, d, system{
		open: open,
		facts: func() (config.Facts, error) {
			return config.Facts{Hostname: "h0", Features: []string{"udp-gso"}, HasAddress: func(netip.Addr) (string, bool) { return "", false }}, nil
		},
		notify: func(state string) error {
			d.told = append(d.told, state)
			if strings.HasPrefix(state, "READY=1") {
				close(d.ready)
			}
			return nil
		},
		relax: func() error { return errors.New("not permitted") }, // which keeps nothing from working
	})
	return code, out.String()
}

// oneLine checks that nothing but the error was printed.
func (d *instance) oneLine(want string) {
	d.t.Helper()
	if got := strings.ReplaceAll(d.log(), d.dir+"/", ""); got != "overlayd: "+want+"\n" {
		d.t.Errorf("stderr\n%s\nwant\noverlayd: %s", got, want)
	}
}

func (d *instance) nothingLeft() {
	d.t.Helper()
	entries, err := os.ReadDir(d.dir)
	if err != nil || len(entries) != 1 {
		d.t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestLife runs the daemon from its start to a SIGTERM.
func TestLife(t *testing.T) {
	d := newInstance(t)
	done := make(chan int, 1)
	go func() {
		code, _ := d.run(context.Background(), nil)
		done <- code
	}()
	<-d.ready
	c := api.NewClient(d.socket)
	defer c.Close()
	res, err := c.GetStatus(t.Context(), &overlaydv1.GetStatusRequest{})
	if err != nil || res.Status.Node != "h1" || res.Status.Pid != uint32(os.Getpid()) {
		t.Errorf("GetStatus = %v, %v", res, err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d: %s", code, d.log())
	}
	if !d.tun.closed {
		t.Error("the VTEP is not closed")
	}
	if want := []string{"READY=1\nSTATUS=1 networks", "STOPPING=1"}; !slices.Equal(d.told, want) {
		t.Errorf("told the service manager %q, want %q", d.told, want)
	}
	ready := regexp.MustCompile(`(?m)^time=\S+ level=INFO msg=ready node=h1 version=\S+ ` +
		`underlay=192\.0\.2\.1:4789,\[2001:db8::1\]:4789 networks="blue\(vni 42, device blue0, mtu 1450, peers 1\)" ` +
		`socket=\S+/run/overlayd\.sock metrics=127\.0\.0\.1:\d+ off="tap-uso\(kernel 6\.2 or later\)"$`)
	if !ready.MatchString(d.log()) || !strings.Contains(d.log(), "not permitted") || strings.Count(d.log(), "\n") != 3 {
		t.Errorf("log\n%s", d.log())
	}
	d.nothingLeft()
}

func TestRunFails(t *testing.T) {
	for want, err := range map[string]error{
		"overlayd: read from blue0: file descriptor in bad state\n": errors.New("read from blue0: file descriptor in bad state"),
		"overlayd: vtep ended by itself\n":                          nil,
	} {
		d := newInstance(t)
		d.tun.fail <- err
		if code, _ := d.run(t.Context(), nil); code != exitFailure || !strings.HasSuffix(d.log(), want) {
			t.Errorf("%d, %s", code, d.log())
		}
		if !d.tun.closed {
			t.Error("the VTEP is not closed")
		}
		d.nothingLeft()
	}
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		args []string
		open error
		code int
		want string
	}{
		"config file": {
			file: "networks:\n  - name: blue\n    vnii: 42\n",
			code: exitConfig, want: "f.yaml:3: networks[0].vnii: unknown key: did you mean vni?",
		},
		"flag value":   {args: []string{"--log", "loud"}, code: exitConfig, want: `--log: "loud" is not a log level: choose from debug, info, warn, error`},
		"feature":      {args: []string{"--disable", "udp-gsp"}, code: exitConfig, want: `--disable: unknown feature "udp-gsp": did you mean udp-gso?`},
		"unknown flag": {args: []string{"--lag"}, code: exitConfig, want: "unknown flag: --lag; see overlayd --help"},
		"argument":     {args: []string{"up"}, code: exitConfig, want: `unexpected argument "up"; see overlayd --help`},
		"found by the VTEP": {
			open: &vtep.ConfigError{Field: "networks[0].device", Err: errors.New("is taken")},
			code: exitConfig, want: "f.yaml:5: networks[0].device: is taken",
		},
		"no permission": {
			open: errors.Join(errors.New("no CAP_NET_ADMIN"), errors.New("run as root")),
			code: exitFailure, want: "no CAP_NET_ADMIN; run as root",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newInstance(t)
			if c.file != "" {
				d.file(c.file)
			}
			code, _ := d.run(t.Context(), func(vtep.Config) (tunnel, error) {
				if c.open == nil {
					t.Error("a VTEP was made")
				}
				return nil, c.open
			}, c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			d.oneLine(c.want)
			d.nothingLeft()
		})
	}
}

// TestSocketTaken starts while another daemon is there. That is no fault of the file, although its line is
// named.
func TestSocketTaken(t *testing.T) {
	d := newInstance(t)
	other, err := api.Listen(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if code, _ := d.run(t.Context(), nil); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
	d.oneLine(fmt.Sprintf("f.yaml:2: socket: listen on the API socket run/overlayd.sock: process %d (overlayd.test) listens on it already: stop that process, or choose another socket", os.Getpid()))
}

func TestNoFile(t *testing.T) {
	d := newInstance(t)
	if err := os.Remove(filepath.Join(d.dir, "f.yaml")); err != nil {
		t.Fatal(err)
	}
	if code, _ := d.run(t.Context(), nil); code != exitConfig {
		t.Errorf("exit code %d", code)
	}
	d.oneLine("f.yaml: read the configuration: no such file or directory; name the file with --config")
}

func TestVersionAndHelp(t *testing.T) {
	d := newInstance(t)
	if code, out := d.run(t.Context(), nil, "--version"); code != exitOK || !strings.HasPrefix(out, "overlayd ") || strings.Count(out, "\n") != 1 {
		t.Errorf("%d %q", code, out)
	}
	if code, out := d.run(t.Context(), nil, "--help"); code != exitOK || !strings.Contains(out, "Exit code: 0") || !strings.Contains(out, "udp-gso") {
		t.Errorf("%d %q", code, out)
	}
}

// TestJournal leaves the time to the journal.
func TestJournal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "9:12345")
	var out bytes.Buffer
	newLogger(&out, 0).Info("ready", "node", "h1")
	if out.String() != "level=INFO msg=ready node=h1\n" {
		t.Errorf("%q", out.String())
	}
}

func TestGarbageIsLimited(t *testing.T) {
	const other = 100
	defer debug.SetGCPercent(debug.SetGCPercent(other))
	for stated, want := range map[string]int{"": gcPercent, "80": other} {
		t.Setenv("GOGC", stated)
		limitGarbage()
		if got := debug.SetGCPercent(other); got != want {
			t.Errorf("with GOGC=%q: %d percent, want %d", stated, got, want)
		}
	}
}
