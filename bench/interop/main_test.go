package interop

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/bench/lab"
)

// network is the name of the overlay network in all labs, and vni its number.
const (
	network = "blue"
	vni     = 42
)

// megabyte is 2^20 bytes.
const megabyte = 1 << 20

var (
	// build makes the daemon's binary, once.
	build = sync.OnceValues(func() (string, error) {
		path := filepath.Join(buildDir, "overlayd")
		cmd := exec.Command("go", "build", "-o", path, "github.com/overlayd/overlayd/cmd/overlayd")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build overlayd: %w\n%s", err, out)
		}
		return path, nil
	})
	buildDir string
)

func TestMain(m *testing.M) {
	if part := os.Getenv(actAsEnv); part != "" {
		actAs(part) // does not return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	var err error
	if buildDir, err = os.MkdirTemp("", "overlayd-interop-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(buildDir)
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// root skips a test that makes namespaces, or fails it where CI=true.
func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// program returns the path of the daemon.
func program(t *testing.T) string {
	t.Helper()
	root(t)
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// within bounds what one step may take.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// deadline is when a socket gives up to wait for one datagram.
func deadline() time.Time { return time.Now().Add(5 * time.Second) }

// unique returns a name that no other run uses.
func unique(prefix string) string {
	var b [3]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + hex.EncodeToString(b[:])
}

// eventually waits until a condition holds, asking it over and over. what completes the message of the
// failure, and so does what the condition says when it does not hold.
func eventually(t *testing.T, what string, holds func() (ok bool, state string)) {
	t.Helper()
	const patience = 10 * time.Second
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, state := holds()
		if ok {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("waited %v for %s; it is still: %s", patience, what, state)
		case <-tick.C:
		}
	}
}

// scenario describes hosts h1, h2 and so on, one for each kind, all on one network with IPv4 and IPv6 inside.
// A host of the kind "" has an underlay and nothing on it.
func scenario(outer lab.Family, kinds ...lab.Kind) lab.Scenario {
	sc := lab.Scenario{
		Name:     unique("interop-"),
		About:    "Made by a test.",
		Topology: lab.Routed,
	}
	members := map[string]lab.Kind{}
	subnets4 := []string{"192.0.2.1/24", "198.51.100.1/24", "203.0.113.1/24"}
	for i, kind := range kinds {
		h := lab.HostSpec{Name: fmt.Sprintf("h%d", i+1)}
		if outer == lab.IPv4 {
			h.Underlay = []netip.Prefix{netip.MustParsePrefix(subnets4[i])}
		} else {
			h.Underlay = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::1/64", i+1))}
		}
		sc.Hosts = append(sc.Hosts, h)
		if kind != "" {
			members[h.Name] = kind
		}
	}
	if len(members) > 0 {
		sc.Networks = []lab.NetworkSpec{{
			Name: network, VNI: vni, Underlay: outer, Members: members,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24"), netip.MustParsePrefix("fd00:42::/64")},
		}}
	}
	return sc
}

// up brings a lab up and takes it down with the test. When the test fails, it shows the logs of the daemons.
func up(t *testing.T, sc lab.Scenario) *lab.Lab {
	t.Helper()
	o := lab.Options{Overlayd: program(t)} // before the time runs
	l, err := lab.Up(within(t), sc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range l.Hosts() {
			if t.Failed() && h.RunsOverlayd() {
				if text, err := os.ReadFile(h.LogPath()); err == nil {
					t.Logf("log of %s:\n%s", h.Name(), text)
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// underlay returns the address of a host on the underlay.
func underlay(h *lab.Host) netip.Addr { return h.Underlay()[0].Addr() }

// inside names an address family in the names of subtests.
func inside(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// lines cuts text into lines without the last line end.
func lines(text string) []string {
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}
