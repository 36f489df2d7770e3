package lab

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/vtep/link"
)

// buildDir has the programs, once a test needs them.
var buildDir string

var build = sync.OnceValues(func() (Options, error) {
	var err error
	if buildDir, err = os.MkdirTemp("", "overlayd-lab-test-"); err != nil {
		return Options{}, err
	}
	cmd := exec.Command("go", "build", "-o", buildDir, "github.com/overlayd/overlayd/cmd/overlayd", "github.com/overlayd/overlayd/cmd/overlayctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Options{}, errors.New(string(out))
	}
	return Options{Overlayd: filepath.Join(buildDir, "overlayd"), Overlayctl: filepath.Join(buildDir, "overlayctl")}, nil
})

// programsOf are the daemon and the command line as they are now.
func programsOf(t *testing.T) Options {
	t.Helper()
	o, err := build()
	if err != nil {
		t.Fatalf("build overlayd and overlayctl: %v", err)
	}
	return o
}

// long bounds what takes elections, on a machine that has other things to do.
func long(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func clusterScenario(t *testing.T, change func(*Scenario)) Scenario {
	t.Helper()
	sc, err := Load("cluster")
	if err != nil {
		t.Fatal(err)
	}
	sc.Name = "test-" + newID()
	if change != nil {
		change(&sc)
	}
	return sc
}

// witness remembers what a lab consists of while it is up: nothing of it may be left.
type witness struct {
	state     *state
	processes []process // in any of the namespaces
	hosts     []uint64  // the IDs of the namespaces, as sandboxes have them
}

// witnessOf reads what the lab of a scenario has written down. Of a lab that is being made, some is not there yet.
func witnessOf(t *testing.T, sc Scenario) *witness {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(Root, sc.Name+"*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("the lab is in %v, %v", dirs, err)
	}
	s, err := readState(dirs[0])
	if err != nil || s == nil {
		t.Fatalf("the state of the lab: %+v, %v", s, err)
	}
	w := &witness{state: s}
	var inodes []uint64
	for _, ns := range s.Namespaces {
		if inode, err := namespaceInode(ns.NetNS); err == nil {
			inodes = append(inodes, inode)
		}
		if n, err := link.OpenNamespace(ns.NetNS); err == nil {
			w.hosts = append(w.hosts, n.ID())
			n.Close()
		}
	}
	w.processes = inside(inodes)
	return w
}

// sandboxes counts those of the hosts.
func (w *witness) sandboxes(t *testing.T) int {
	t.Helper()
	n := 0
	for _, host := range w.hosts {
		vnis, err := link.Sandboxes(host)
		if err != nil {
			t.Error(err)
		}
		n += len(vnis)
	}
	return n
}

func (w *witness) nothingLeft(t *testing.T) {
	t.Helper()
	nothingLeft(t, w.state)
	if n := w.sandboxes(t); n > 0 {
		t.Errorf("%d sandboxes are still there", n)
	}
	for _, p := range w.processes {
		if p.alive() {
			t.Errorf("process %d still runs in one of the namespaces", p.PID)
		}
	}
}

// TestClusterDemo is "make lab".
func TestClusterDemo(t *testing.T) {
	root(t)
	sc := clusterScenario(t, nil)
	var out bytes.Buffer
	var seen *witness
	err := Demo(long(t), sc, programsOf(t), writerFunc(func(b []byte) (int, error) {
		if seen == nil && bytes.Contains(b, []byte("kill -KILL")) {
			if seen = witnessOf(t, sc); seen.sandboxes(t) != 5 || len(seen.state.Processes) != 5 || len(seen.state.Namespaces) != 11 {
				t.Errorf("5 hosts have %d sandboxes, %d daemons, and there are namespaces %v", seen.sandboxes(t), len(seen.state.Processes), seen.state.Namespaces)
			}
		}
		return out.Write(b)
	}))
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{
		"h1      overlayd --data-dir DIR --socket SOCK\n",
		"h1      overlayctl --socket SOCK init --advertise 192.0.2.1\n",
		"h1      overlayctl --socket SOCK token show manager --quiet\n",
		"h2      overlayctl --socket SOCK join --token TOKEN --advertise 192.0.2.17 192.0.2.1:7789\n",
		"h5      overlayctl --socket SOCK network create blue --subnet 10.42.0.0/24\n",
		"--name c1 --ip 10.42.0.10\n",
		"saw them in 20", "50 MB and 50 MB", "another leader than h", "5 of 5 pings", "c1 to be reached again",
		"datagrams arrive, 0 damaged, 0 doubled", "All 12 checks passed",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in what is shown", want)
		}
	}
	if strings.Contains(out.String(), "OVLTKN") {
		t.Error("a token is shown")
	}
	if t.Failed() {
		t.Log(out.String())
	}
	if seen == nil {
		t.Fatal("nobody was killed")
	}
	seen.nothingLeft(t)
}

// TestClusterRefused makes something that the cluster does not take, in the middle of all.
func TestClusterRefused(t *testing.T) {
	root(t)
	sc := clusterScenario(t, func(sc *Scenario) {
		sc.Hosts[1].Cluster, sc.Hosts[2].Cluster = Worker, Worker
		sc.Networks[0].Endpoints[2].IP = []netip.Addr{netip.MustParseAddr("10.42.0.10")} // that of the first
	})
	var told []string
	var seen *witness
	sandboxes := 0
	o := programsOf(t)
	o.Tell = func(host, command string) {
		if told = append(told, host+" "+command); strings.Contains(command, "--name c3") {
			seen = witnessOf(t, sc)
			sandboxes = seen.sandboxes(t)
		}
	}
	_, err := Up(long(t), sc, o)
	if err == nil || !strings.Contains(err.Error(), "endpoint add blue") || !strings.Contains(err.Error(), "10.42.0.10") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want the command and why it was refused, in one line", err)
	}
	if seen == nil || sandboxes != 2 || len(seen.state.Endpoints) != 2 {
		t.Fatalf("before the third endpoint there were %d sandboxes, and %+v; told of %q", sandboxes, seen, told)
	}
	seen.nothingLeft(t)
	if slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, "token show manager") }) {
		t.Error("a token for managers was asked for, and there is one manager only")
	}
}

// clusterFile writes the scenario for the command line, and takes it down at the end of the test.
func clusterFile(t *testing.T) (path string, sc Scenario) {
	t.Helper()
	sc = clusterScenario(t, nil)
	text, err := yaml.Marshal(sc)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Down(sc.Name) }) // ErrNoLab when the test did it
	return path, sc
}

// TestClusterInterrupted ends "overlayctl lab run" at several points of the way.
func TestClusterInterrupted(t *testing.T) {
	root(t)
	for at, sig := range map[string]unix.Signal{
		"init --advertise":        unix.SIGINT,  // while overlayctl waits for the first leader
		"endpoint add blue":       unix.SIGTERM, // some hosts have sandboxes
		"--name c3":               unix.SIGKILL, // nothing can be cleaned up but by the next
		"sends to c5 from now on": unix.SIGINT,  // while two talk
	} {
		t.Run(sig.String()+" at "+at, func(t *testing.T) {
			path, sc := clusterFile(t)
			cmd := exec.CommandContext(long(t), programsOf(t).Overlayctl, "lab", "run", path)
			var seen *witness
			var out bytes.Buffer
			cmd.Stdout = writerFunc(func(b []byte) (int, error) {
				out.Write(b)
				if seen == nil && strings.Contains(out.String(), at) {
					seen = witnessOf(t, sc)
					if err := cmd.Process.Signal(sig); err != nil {
						t.Error(err)
					}
				}
				return len(b), nil
			})
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Run(); err == nil || seen == nil {
				t.Fatalf("%v did not interrupt:\n%s", sig, out.String())
			}
			if sig == unix.SIGKILL {
				// A child that was being forked has the lock until it is another program.
				if err := await(long(t), "the leftovers to be swept", func(context.Context) (bool, error) {
					sweep()
					left, err := filepath.Glob(filepath.Join(Root, sc.Name+"*"))
					return len(left) == 0, err
				}); err != nil {
					t.Error(err)
				}
			} else if !strings.Contains(errs.String(), "interrupted; everything is removed again") {
				t.Errorf("it ends with %q", errs.String())
			}
			seen.nothingLeft(t)
		})
	}
}

// TestClusterStays goes through the command line with a lab that stays up.
func TestClusterStays(t *testing.T) {
	root(t)
	path, sc := clusterFile(t)
	var seen *witness
	for _, step := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"up", path}, 0, "exec " + sc.Name + " c1 -- ping 10.42.0."},
		{[]string{"exec", path, "h4", "--", "overlayctl", "node", "ls"}, 0, "Leader"},
		{[]string{"exec", path, "h4", "--", "cat", "/proc/sys/kernel/hostname"}, 0, "h4\n"},
		{[]string{"exec", path, "c4", "--", "cat", "/proc/net/dev"}, 0, "eth0:"},
		{[]string{"exec", path, "c4", "--", "overlayctl", "endpoint", "ls"}, 0, "eth0 in "},
		{[]string{"exec", path, "c9", "--", "true"}, 1, "its hosts are h1, h2, h3, h4, h5, its containers c1, c2, c3, c4, c5"},
		{[]string{"status", path}, 0, "container c5"},
		{[]string{"down", path}, 0, "is down"},
		{[]string{"status", path}, 1, "is not up"},
	} {
		if step.args[0] == "down" {
			seen = witnessOf(t, sc)
			if n := seen.sandboxes(t); n != 5 {
				t.Errorf("5 hosts have %d sandboxes", n)
			}
			opened(t, sc.Name)
		}
		cmd := exec.CommandContext(long(t), programsOf(t).Overlayctl, append([]string{"lab"}, step.args...)...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != step.code || !strings.Contains(string(out), step.want) {
			t.Fatalf("overlayctl lab %v: exit code %d, %v; want %d and %q in\n%s", step.args, code, err, step.code, step.want, out)
		}
	}
	seen.nothingLeft(t)
}

// opened attaches to a lab of another process.
func opened(t *testing.T, name string) {
	t.Helper()
	l, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	c := l.Container("c2")
	to := l.Container("c5").Overlays("blue")
	if c == nil || c.Host().Name() != "h2" || len(l.Containers()) != 5 || len(to) != 1 || l.Container("c5").Overlays("green") != nil {
		t.Fatalf("containers %v, c5 has %v", l.Containers(), to)
	}
	if r, err := load.Ping(within(t), load.PingConfig{From: c, To: to[0], Count: 3}); err != nil || r.Received == 0 {
		t.Errorf("ping in an opened lab: %+v, %v", r, err)
	}
	if err := l.Host("h5").KillOverlayd(); err != nil {
		t.Error(err)
	}
	var out bytes.Buffer
	if err := l.status(newPage(&out)); err == nil || !strings.Contains(err.Error(), "h5") {
		t.Errorf("the status of a lab with a dead daemon: %v\n%s", err, out.String())
	}
	if _, err := l.Host("h5").Overlayctl(within(t), "node", "ls"); err == nil || !strings.Contains(err.Error(), "the end of its log") {
		t.Errorf("overlayctl without a daemon: %v", err)
	}
}

// TestTalk makes sure that a loss is seen, and that streams follow each other until they are to end.
func TestTalk(t *testing.T) {
	l := up(t, kernelScenario(t, func(sc *Scenario) { sc.Hosts[1].Loss = 5e4 }), Options{})
	a, b := l.Host("h1"), l.Host("h2")
	if r, err := load.Ping(within(t), load.PingConfig{From: a, To: b.Overlay("blue"), Count: 10}); err != nil || r.Received == 0 { // addresses are resolved
		t.Fatalf("%+v, %v", r, err)
	}
	end := talk(within(t), load.UDPConfig{From: a, To: b, Address: b.Overlay("blue"), Size: streamSize, Rate: streamRate, Duration: 200 * time.Millisecond})
	// A stream that has lost something waits for it for 300 ms and a bit.
	if err := pause(within(t), 2*time.Second); err != nil {
		t.Fatal(err)
	}
	r, err := end()
	if err != nil || r.Received == 0 || r.Received >= r.Sent || r.SendTime < 400*time.Millisecond {
		t.Errorf("%+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(within(t))
	end = talk(ctx, load.UDPConfig{From: a, To: b, Address: b.Overlay("blue"), Size: streamSize, Rate: streamRate, Duration: time.Hour})
	cancel()
	if _, err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("a stream that was cut short: %v", err)
	}
}

// TestOverlayctlEnds ends one that hangs with its context.
func TestOverlayctlEnds(t *testing.T) {
	o := standIn(t, "silent")
	l := up(t, kernelScenario(t, nil), Options{})
	l.state.Overlayctl = o.Overlayd
	ctx, cancel := context.WithTimeout(within(t), 200*time.Millisecond)
	defer cancel()
	if _, err := l.Host("h1").Overlayctl(ctx, "join", "--token", "secret"); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}
