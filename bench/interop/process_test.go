package interop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
)

// actAsEnv makes the test binary play another part: it takes something away from itself and then becomes the
// program that its arguments name.
const actAsEnv = "OVERLAYD_INTEROP_TEST_ACT_AS"

// The parts.
const (
	withoutTun   = "without-tun"       // /dev/net is empty
	withoutAdmin = "without-net-admin" // CAP_NET_ADMIN is gone for good
	steering     = "steering"          // all that comes in by any device is handled by one CPU; starts no program
)

// actAs does not return.
func actAs(part string) {
	err := func() error {
		switch part {
		case withoutTun:
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err != nil {
				return err
			}
		case withoutAdmin:
			// What is not in the bounding set, root does not get with the next program (capabilities(7)).
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_ADMIN, 0, 0, 0); err != nil {
				return err
			}
		case steering:
			if err := steer(); err != nil {
				return err
			}
			os.Exit(0)
		default:
			return fmt.Errorf("unknown part %q", part)
		}
		if err := os.Unsetenv(actAsEnv); err != nil {
			return err
		}
		return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
	}()
	fmt.Fprintf(os.Stderr, "acting as %s: %v\n", part, err)
	os.Exit(99)
}

// steer lets the first CPU handle everything that any device of this process's namespace receives. Otherwise the
// CPU of the sender does it, and when that changes in the middle of a flow, what waits at the old one is
// overtaken.
func steer() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// A sysfs shows the devices of the namespace in which it was mounted.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	err := steerAll()
	// The kernel takes the entries of a device away for a moment now and then, as when its name or namespace changes.
	for end := time.Now().Add(5 * time.Second); errors.Is(err, fs.ErrNotExist) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		err = steerAll()
	}
	return err
}

func steerAll() error {
	queues, err := filepath.Glob("/sys/class/net/*/queues/rx-*/rps_cpus")
	if err != nil || len(queues) == 0 {
		return fmt.Errorf("look for receive queues: %d, %w", len(queues), err)
	}
	for _, q := range queues {
		if err := os.WriteFile(q, []byte("1"), 0); err != nil {
			return err
		}
	}
	return nil
}

// running is a daemon that a test started itself, because the lab would have written another configuration or
// because it is to fail.
type running struct {
	cmd    *exec.Cmd
	dir    string // of its configuration and socket, made for it
	socket string
	ready  chan struct{} // closed with READY=1
	ended  chan struct{} // closed when it has ended

	mu     sync.Mutex
	stderr bytes.Buffer
	told   []string // what it told the service manager
}

// Write takes the standard error of the daemon.
func (r *running) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stderr.Write(b)
}

func (r *running) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stderr.String()
}

// state lists what the daemon has told the service manager.
func (r *running) state() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.told...)
}

// config completes a configuration with a socket of its own and without metrics.
const configHead = "socket: %s\nmetrics: \"\"\n"

// launch starts a daemon on a host. part is empty or one of the parts of actAs. It is killed with the test if
// it has not ended before.
func launch(t *testing.T, h *lab.Host, config, part string, args ...string) *running {
	t.Helper()
	overlayd := program(t)
	// Not t.TempDir, whose path may be too long for a socket.
	dir, err := os.MkdirTemp("", "ovl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// The socket lies one folder down: that the daemon makes, and has to remove.
	r := &running{dir: dir, socket: filepath.Join(dir, "run", "api.sock"), ready: make(chan struct{}), ended: make(chan struct{})}
	file := filepath.Join(dir, "overlayd.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, configHead+"%s", r.socket, config), 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{overlayd, "--config", file}, args...)
	manager := filepath.Join(dir, "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: manager})
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "NOTIFY_SOCKET="+manager)
	if part != "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		args = append([]string{self}, args...)
		env = append(env, actAsEnv+"="+part)
	}
	r.cmd = exec.Command(args[0], args[1:]...)
	r.cmd.Env, r.cmd.Stderr, r.cmd.Stdout, r.cmd.Dir = env, r, r, "/"
	listening := make(chan struct{})
	go func() { // listener: ends with the socket
		defer close(listening)
		r.listen(notify)
	}()
	if err := h.Start(r.cmd); err != nil {
		notify.Close()
		<-listening
		t.Fatal(err)
	}
	go func() { // waiter
		_ = r.cmd.Wait() // how it ended is in ProcessState
		notify.Close()
		<-listening
		os.Remove(manager)
		close(r.ended)
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // fails when it has ended
		<-r.ended
		if t.Failed() {
			t.Logf("log of overlayd on %s:\n%s", h.Name(), r.log())
		}
	})
	return r
}

// listen keeps what the daemon tells the service manager.
func (r *running) listen(notify *net.UnixConn) {
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		for _, line := range lines(string(buf[:n])) {
			if line == "READY=1" {
				close(r.ready)
			}
			r.told = append(r.told, line)
		}
		r.mu.Unlock()
	}
}

// start launches a daemon and waits until it says that it is ready.
func start(t *testing.T, h *lab.Host, config string, args ...string) *running {
	t.Helper()
	r := launch(t, h, config, "", args...)
	select {
	case <-r.ready:
	case <-r.ended:
		t.Fatalf("overlayd ended with code %d before it was ready", r.code())
	case <-within(t).Done():
		t.Fatal("overlayd did not get ready")
	}
	return r
}

// wait waits for the end and returns the exit code.
func (r *running) wait(t *testing.T) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	select {
	case <-r.ended:
	case <-ctx.Done():
		t.Fatalf("overlayd, process %d, does not end", r.cmd.Process.Pid)
	}
	return r.code()
}

// code is the exit code, -1 after a signal; the daemon must have ended.
func (r *running) code() int { return r.cmd.ProcessState.ExitCode() }

// terminate asks the daemon to end and waits.
func (r *running) terminate(t *testing.T) int {
	t.Helper()
	if err := r.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	return r.wait(t)
}

// fails expects that the daemon ends by itself, with this exit code and one line that has all of the words.
func (r *running) fails(t *testing.T, code int, words ...string) {
	t.Helper()
	if got := r.wait(t); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	text := r.log()
	if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "overlayd: ") {
		t.Errorf("want one line, and got:\n%s", text)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in the message:\n%s", w, text)
		}
	}
	if len(r.state()) > 0 {
		t.Errorf("it told the service manager %q", r.state())
	}
}
