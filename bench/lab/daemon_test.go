package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"
)

// actAsOverlayd is a stand-in for the daemon, run as a process of its own: it reads the configuration, makes
// a device for each network, says that it is ready and waits for SIGTERM.
func actAsOverlayd() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	if err := func() error {
		text, err := os.ReadFile(os.Args[2])
		if err != nil {
			return err
		}
		var c daemonConfig
		d := yaml.NewDecoder(bytes.NewReader(text))
		d.KnownFields(true)
		if err := d.Decode(&c); err != nil {
			return err
		}
		for _, n := range c.Networks {
			dev := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: n.Device}, PeerName: n.Device + "p"}
			if err := netlink.LinkAdd(dev); err != nil {
				return err
			}
			other, err := netlink.LinkByName(dev.PeerName)
			if err != nil {
				return err
			}
			if err := errors.Join(netlink.LinkSetUp(dev), netlink.LinkSetUp(other)); err != nil {
				return err
			}
		}
		conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte("STATUS=well\nREADY=1"))
		return err
	}(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-stop
}

// actSilent never gets ready and does not heed SIGTERM.
func actSilent() {
	signal.Ignore(unix.SIGTERM)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGUSR1)
	<-stop
}

func standIn(t *testing.T, part string) Options {
	t.Helper()
	root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(actAsEnv, part)
	return Options{Overlayd: self}
}

func load3(t *testing.T) Scenario {
	t.Helper()
	sc, err := Load("three-hosts")
	if err != nil {
		t.Fatal(err)
	}
	sc.Name = "test-" + newID()
	return sc
}

func TestDaemons(t *testing.T) {
	l := up(t, load3(t), standIn(t, "overlayd"))
	for _, h := range l.Hosts() {
		inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", h.PID()))
		if want := fmt.Sprintf("net:[%d]", h.inode); err != nil || inside != want {
			t.Errorf("overlayd of %s is in %s, %v; want %s", h.name, inside, err, want)
		}
	}
	text, err := os.ReadFile(l.Host("h1").ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	const want = `node: h1
socket: %s
metrics: 127.0.0.1:9789
underlay:
    port: 4789
    addresses: [192.0.2.1]
networks:
    - name: blue
      vni: 42
      device: blue0
      address: [10.42.0.1/24, 'fd00:42::1/64']
      peers: [198.51.100.1, 203.0.113.1]
      learning: true
`
	if got := string(text); got != fmt.Sprintf(want, l.Host("h1").Socket()) {
		t.Errorf("the configuration of h1 is\n%s", got)
	}
	other, err := readState(l.Dir())
	if err != nil || len(other.Processes) != 3 || !other.Built {
		t.Errorf("state %+v, %v", other, err)
	}
}

// TestRestart ends a daemon and starts it again.
func TestRestart(t *testing.T) {
	l := up(t, load3(t), standIn(t, "overlayd"))
	h := l.Host("h2")
	before := h.PID()
	if err := h.StartOverlayd(within(t)); err == nil || !strings.Contains(err.Error(), "it runs") {
		t.Errorf("a second start: %v", err)
	}
	if err := h.KillOverlayd(); err != nil || h.PID() != 0 {
		t.Fatalf("kill: %v, process %d", err, h.PID())
	}
	if err := h.KillOverlayd(); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("a second kill: %v", err)
	}
	// The stand-in's devices outlive it, unlike those of the daemon.
	if err := h.Do(func() error {
		dev, err := netlink.LinkByName(h.Device("blue"))
		if err != nil {
			return err
		}
		return netlink.LinkDel(dev)
	}); err != nil {
		t.Fatal(err)
	}
	if err := h.StartOverlayd(within(t)); err != nil || h.PID() == 0 || h.PID() == before {
		t.Errorf("start: %v, process %d after %d", err, h.PID(), before)
	}
	kept, err := readState(l.Dir())
	if err != nil || len(kept.Processes) != 3 {
		t.Errorf("state %+v, %v", kept, err)
	}
}

func TestDaemonBroken(t *testing.T) {
	sc := load3(t)
	_, err := Up(within(t), sc, standIn(t, "broken"))
	if err == nil || !strings.Contains(err.Error(), "exit status 2") || !strings.Contains(err.Error(), "networks[0].vni is wrong") {
		t.Errorf("got %v, want the exit status and the end of the log", err)
	}
	nothingLeft(t, &state{Scenario: sc})
}

// TestDaemonSilent ends a lab whose daemons neither get ready nor end by themselves.
func TestDaemonSilent(t *testing.T) {
	sc := load3(t)
	o := standIn(t, "silent")
	ctx, cancel := context.WithTimeout(within(t), 300*time.Millisecond)
	defer cancel()
	_, err := Up(ctx, sc, o)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that the time was over", err)
	}
	nothingLeft(t, &state{Scenario: sc})
}

func TestNoBinary(t *testing.T) {
	for _, path := range []string{"", "/nonexistent/overlayd"} {
		if _, err := Up(t.Context(), load3(t), Options{Overlayd: path}); err == nil || !strings.Contains(err.Error(), "make build") {
			t.Errorf("binary %q: %v", path, err)
		}
	}
}

// labCommand runs "lab" as a process of its own, with the stand-in for a daemon.
func labCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	o := standIn(t, "lab")
	cmd := exec.Command(o.Overlayd, args...)
	return cmd
}

// scenarioFile writes a scenario that no one else uses, and takes it down at the end of the test.
func scenarioFile(t *testing.T, name string) (path string, sc Scenario) {
	t.Helper()
	sc = kernelScenario(t, func(sc *Scenario) { sc.Name = name })
	text, err := yaml.Marshal(sc)
	if err != nil {
		t.Fatal(err)
	}
	path = t.TempDir() + "/scenario.yaml"
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Down(name) }) // ErrNoLab when the test did it
	return path, sc
}

func TestCommandLine(t *testing.T) {
	root(t)
	path, sc := scenarioFile(t, "test-"+newID())
	for _, step := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"status", path}, 1, "is not up"},
		{[]string{"down", path}, 0, "nothing to do"},
		{[]string{"up", path}, 0, "is up"},
		{[]string{"up", path}, 1, "ctl lab down " + sc.Name},
		{[]string{"status", path}, 0, "10.42.0.2"},
		{[]string{"status"}, 0, sc.Name},
		{[]string{"exec", path, "h1", "--", "cat", "/proc/net/dev"}, 0, "blue0"},
		{[]string{"exec", path, "router", "cat", "/proc/net/dev"}, 0, "h2:"},
		{[]string{"exec", path, "h1", "--", "sh", "-c", "read line; echo heard $line; exit 7"}, 7, "heard you"},
		{[]string{"exec", path, "h1", "--", "sh", "-c", "echo socket $OVERLAYD_SOCKET"}, 0, sc.Name + "/h1/overlayd.sock"},
		{[]string{"exec", path, "h1", "lab.test", "status", path}, 0, "10.42.0.2"}, // found beside itself
		{[]string{"exec", path, "h1", "no-such-command"}, 1, "no-such-command"},
		{[]string{"exec", path, "h9", "--", "true"}, 1, "h1, h2"},
		{[]string{"down", path}, 0, "is down"},
		{[]string{"down", path}, 0, "nothing to do"},
		{[]string{"up", "no-such-scenario"}, 1, "three-hosts"},
	} {
		cmd := labCommand(t, step.args...)
		cmd.Stdin = strings.NewReader("you\n")
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != step.code || !strings.Contains(string(out), step.want) {
			t.Errorf("lab %v: exit code %d, %v; want %d and %q in\n%s", step.args, code, err, step.code, step.want, out)
		}
	}
	nothingLeft(t, &state{Scenario: sc})
}

// TestSignals interrupts "lab run" and "lab up" at many moments, and looks for what is left.
func TestSignals(t *testing.T) {
	root(t)
	for i, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGINT} {
		for _, command := range []string{"run", "up"} {
			path, sc := scenarioFile(t, "test-"+newID())
			cmd := labCommand(t, command, path)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// From before the first namespace to the middle of the traffic.
			delay := time.AfterFunc(time.Duration(i*i)*20*time.Millisecond, func() { _ = cmd.Process.Signal(sig) })
			err := cmd.Wait()
			delay.Stop()
			if command == "up" && strings.Contains(out.String(), "Look around") { // it was quicker than the signal
				if err := Down(sc.Name); err != nil {
					t.Error(err)
				}
			}
			if command == "run" && err == nil {
				t.Errorf("%v did not interrupt:\n%s", sig, out.String())
			}
			nothingLeft(t, &state{Scenario: sc})
		}
	}
}
