package interop

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// bare starts the daemon with its flags alone: without a configuration file, and without a service manager. It is ended,
// in order, with the test.
func (m *member) bare() {
	m.t.Helper()
	overlayd := program(m.t)
	dir, err := os.MkdirTemp("", "ovl") // t.TempDir may be too long for a socket
	if err != nil {
		m.t.Fatal(err)
	}
	m.socket = filepath.Join(dir, "api.sock")
	var mu sync.Mutex
	var text bytes.Buffer
	cmd := exec.Command(overlayd, "--data-dir", m.dir, "--socket", m.socket)
	out := writer(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return text.Write(b)
	})
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	if err := m.host.Start(cmd); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // waiter
	m.t.Cleanup(func() {
		defer os.RemoveAll(dir)
		_ = cmd.Process.Signal(unix.SIGTERM) // fails when it has ended
		select {
		case err := <-ended:
			if err != nil {
				m.t.Errorf("overlayd on %s: %v", m.host.Name(), err)
			}
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			m.t.Errorf("overlayd on %s does not end: %v", m.host.Name(), <-ended)
		}
		mu.Lock()
		defer mu.Unlock()
		if m.t.Failed() {
			m.t.Logf("log of overlayd on %s:\n%s", m.host.Name(), text.String())
		}
	})
	settled(m.t, "overlayd on "+m.host.Name()+" to wait for init or join", func() (bool, string) {
		_, errs, code := m.try("node", "ls")
		return code == 1 && strings.Contains(errs, "in no cluster"), errs
	})
}

// writer is a function that is an io.Writer.
type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// TestClusterSession types what the first page of the documentation says, on fresh hosts, and nothing else.
func TestClusterSession(t *testing.T) {
	if _, err := os.Stat("/etc/overlayd/overlayd.yaml"); err == nil {
		t.Fatal("this machine has a configuration of overlayd, which the daemons would read")
	}
	linktest.Lock(t)
	all, _ := places(t, lab.IPv4, 3, nil)
	for _, m := range all {
		m.bare()
	}
	h1, h2, h3 := all[0], all[1], all[2]

	said := h1.ctl("init", "--advertise", h1.address())
	commands := regexp.MustCompile(`(?m)^    overlayctl (join --token OVLTKN-1-\S+ 192\.0\.2\.1:7789)$`).FindAllStringSubmatch(said, -1)
	if len(commands) != 2 {
		t.Fatalf("init has to print two commands, and prints:\n%s", said)
	}
	token := strings.TrimSuffix(h1.ctl("token", "show", "manager", "--quiet"), "\n")
	if !strings.HasPrefix(token, "OVLTKN-1-") || strings.ContainsAny(token, " \n") || !strings.Contains(commands[1][1], token) {
		t.Errorf("the token alone is %q", token)
	}
	h2.ctl("join", "--token", token, "--advertise", h2.address(), "192.0.2.1:7789")
	h3.ctl(strings.Fields(commands[0][1])...) // as it was printed
	h3.ctl("network", "create", "blue", "--subnet", "10.42.0.0/24")

	c1, c2 := linktest.Named(t, "c1"), linktest.Named(t, "c2")
	h1.ctl("endpoint", "add", "blue", "--netns", c1, "--name", "web", "--ip", "10.42.0.10")
	h3.ctl("endpoint", "add", "blue", "--netns", "/run/netns/"+c2, "--name", "client")
	from, err := link.OpenNamespace(c2)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	// It is there when the command is, and known everywhere within a second.
	began := time.Now()
	settled(t, "the endpoint to be reached", func() (bool, string) {
		r, err := load.Ping(within(t), load.PingConfig{From: from, To: netip.MustParseAddr("10.42.0.10"), Timeout: 200 * time.Millisecond})
		return err == nil && r.Received == 1, time.Since(began).String()
	})
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("an endpoint was reached after %v, and a second is promised", took)
	}

	for _, m := range all {
		var out struct{ Nodes []listed }
		if err := json.Unmarshal([]byte(m.ctl("node", "ls", "-o", "json")), &out); err != nil {
			t.Fatal(err)
		}
		roles := map[string]string{}
		for _, n := range out.Nodes {
			if len(n.Addresses) != 1 || len(n.Id) != 16 || n.Name == "" || n.Availability != "active" || n.Self != (n.Addresses[0] == m.address()) {
				t.Errorf("%s lists %+v", m.host.Name(), n)
				continue
			}
			roles[n.Addresses[0]] = n.Role
		}
		if len(out.Nodes) != 3 || roles[h1.address()] != "manager" || roles[h2.address()] != "manager" || roles[h3.address()] != "worker" {
			t.Errorf("%s lists %+v", m.host.Name(), out.Nodes)
		}
	}
	h1.ctl("endpoint", "rm", "blue", "web")
	h3.ctl("endpoint", "rm", "blue", "client")
	h2.ctl("network", "rm", "blue")
	h3.ctl("leave")
}
