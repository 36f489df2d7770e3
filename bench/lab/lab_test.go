package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/vtep/link/netname"
)

// actAsEnv makes the test binary play another part: see TestMain.
const actAsEnv = "OVERLAYD_LAB_TEST_ACT_AS"

func TestMain(m *testing.M) {
	switch os.Getenv(actAsEnv) {
	case "":
		goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
			os.RemoveAll(buildDir)
			os.Exit(code)
		}))
	case "overlayd": // says that it is ready and waits for the end
		actAsOverlayd()
	case "broken":
		fmt.Fprintln(os.Stderr, "config: networks[0].vni is wrong")
		os.Exit(2)
	case "silent": // never gets ready, and has to be killed
		actSilent()
	case "lab": // is the command line
		cmd := Command()
		top := &cobra.Command{Use: "ctl"}
		top.AddCommand(cmd)
		top.SetArgs(append([]string{"lab"}, os.Args[1:]...))
		if err := top.Execute(); err != nil {
			os.Exit(1)
		}
	}
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

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// kernelScenario is two hosts with the kernel's vxlan; change, if any, alters it.
func kernelScenario(t *testing.T, change func(*Scenario)) Scenario {
	t.Helper()
	sc, err := Load("kernel-only")
	if err != nil {
		t.Fatal(err)
	}
	sc.Name = "test-" + newID()
	if change != nil {
		change(&sc)
	}
	return sc
}

func up(t *testing.T, sc Scenario, o Options) *Lab {
	t.Helper()
	root(t)
	l, err := Up(within(t), sc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, l.state)
	})
	return l
}

// nothingLeft looks for everything that a lab may leave behind.
func nothingLeft(t *testing.T, s *state) {
	t.Helper()
	for _, ns := range s.Namespaces {
		if _, err := os.Lstat(filepath.Join(netname.Dir, ns.NetNS)); err == nil {
			t.Errorf("the namespace %s is still there", ns.NetNS)
		}
	}
	for _, p := range s.Processes {
		if p.alive() {
			t.Errorf("process %d of %s still runs", p.PID, p.Host)
		}
	}
	entries, _ := os.ReadDir(Root)
	for _, e := range entries {
		if e.Name() == s.Scenario.Name || strings.HasPrefix(e.Name(), s.Scenario.Name+privateMark) {
			t.Errorf("the directory %s is still there", e.Name())
		}
	}
	for _, pid := range children(t) {
		t.Errorf("process %s, started by this test, still runs", pid)
	}
}

// children lists the processes whose parent is this one.
func children(t *testing.T) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range tasks {
		text, _ := os.ReadFile(f) // the thread may be gone
		out = append(out, strings.Fields(string(text))...)
	}
	return out
}

func TestKernelOverlay(t *testing.T) {
	six := func(sc *Scenario) {
		sc.Networks[0].Underlay = IPv6
		sc.Hosts[0].Underlay = []netip.Prefix{netip.MustParsePrefix("2001:db8:1::1/64")}
		sc.Hosts[1].Underlay = []netip.Prefix{netip.MustParsePrefix("2001:db8:2::1/64")}
	}
	bridged := func(sc *Scenario) {
		sc.Topology = Bridged
		sc.Hosts[0].Underlay = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}
		sc.Hosts[1].Underlay = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}
	}
	direct := func(sc *Scenario) {
		bridged(sc)
		sc.Topology = Direct
	}
	for name, c := range map[string]struct {
		change func(*Scenario)
		mtu    int
	}{"v4": {nil, 1450}, "v6": {six, 1430}, "bridged": {bridged, 1450}, "direct": {direct, 1450}} {
		t.Run(name, func(t *testing.T) {
			before := links(t)
			l := up(t, kernelScenario(t, c.change), Options{})
			h1, h2 := l.Host("h1"), l.Host("h2")
			if got, err := h1.MTU(h1.Device("blue")); err != nil || got != c.mtu {
				t.Errorf("MTU of the vxlan device: %d, %v; want %d", got, err, c.mtu)
			}
			if got := h1.Overlay("blue"); got != netip.MustParseAddr("10.42.0.1") {
				t.Errorf("h1 has the overlay address %v", got)
			}
			for _, to := range h2.Overlays("blue") {
				// The largest payload that one packet takes, unfragmented.
				size := c.mtu - 20 - 8
				if to.Is6() {
					size -= 20
				}
				r, err := load.Ping(within(t), load.PingConfig{From: h1, To: to, Count: 5, Size: size, DontFragment: true})
				if err != nil || r.Received != 5 || r.Corrupt != 0 {
					t.Errorf("ping %v: %+v, %v", to, r, err)
				}
				b, err := load.TCP(within(t), load.TCPConfig{From: h1, To: h2, Address: to, Direction: load.Both, Bytes: 10 << 20, Verify: true})
				if err != nil || b.Forward.Bytes != 10<<20 || b.Reverse.Bytes != 10<<20 {
					t.Errorf("TCP to %v: %+v, %v", to, b, err)
				}
			}
			if after := links(t); after != before {
				t.Errorf("links of this namespace changed: %s, before %s", after, before)
			}
		})
	}
}

// links lists the interfaces of the namespace of the test.
func links(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return strings.Join(names, " ")
}

func TestLoss(t *testing.T) {
	for _, topology := range []Topology{Routed, Bridged} {
		t.Run(string(topology), func(t *testing.T) {
			l := up(t, kernelScenario(t, func(sc *Scenario) {
				sc.Topology = topology
				if topology == Bridged {
					sc.Hosts[1].Underlay = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}
				}
				sc.Networks = nil
				sc.Hosts[1].Loss = 200_000
			}), Options{})
			h1, h2 := l.Host("h1"), l.Host("h2")
			// On a bridge, address resolution is subject to loss, too.
			for answered := 0; answered == 0; {
				r, err := load.Ping(within(t), load.PingConfig{From: h1, To: h2.Underlay()[0].Addr(), Timeout: 100 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				answered = r.Received
			}
			const n = 5000
			r, err := load.UDP(within(t), load.UDPConfig{From: h1, To: h2, Address: h2.Underlay()[0].Addr(), Size: 200, Count: n, Rate: 50000})
			if err != nil || r.Sent != n {
				t.Fatalf("%+v, %v", r, err)
			}
			if r.Loss() < 0.15 || r.Loss() > 0.25 { // 20 %; 5 points are nine standard deviations
				t.Errorf("lost %.1f %%, want about 20 %%", 100*r.Loss())
			}
			filtered, err := l.Filtered()
			if err != nil || filtered["h2"] < r.Lost {
				t.Errorf("the router says that it dropped %v of %d lost, %v", filtered, r.Lost, err)
			}
			if _, ok := filtered["h1"]; ok {
				t.Errorf("the router drops on a link without loss: %v", filtered)
			}
		})
	}
}

func TestDropICMP(t *testing.T) {
	for filter, wantError := range map[ICMPFilter]bool{DropNone: true, DropTooBig: false, DropAll: false} {
		t.Run(string(filter), func(t *testing.T) {
			l := up(t, kernelScenario(t, func(sc *Scenario) {
				sc.Router.DropICMP = filter
				sc.Hosts[1].MTU = 1400
				sc.Hosts[0].Underlay = append(sc.Hosts[0].Underlay, netip.MustParsePrefix("2001:db8:1::1/64"))
				sc.Hosts[1].Underlay = append(sc.Hosts[1].Underlay, netip.MustParsePrefix("2001:db8:2::1/64"))
			}), Options{})
			h1, h2 := l.Host("h1"), l.Host("h2")
			for _, p := range h2.Underlay() {
				to := p.Addr()
				// Neighbour discovery goes on whatever is held back, and so do hosts' own echoes.
				if r, err := load.Ping(within(t), load.PingConfig{From: h1, To: to, Count: 2}); err != nil || r.Received != 2 {
					t.Errorf("small ping to %v: %+v, %v", to, r, err)
				}
				size := 1500 - 28 // fits the first link, not the second
				if to.Is6() {
					size = 1500 - 48
				}
				r, err := load.Ping(within(t), load.PingConfig{From: h1, To: to, Size: size, DontFragment: true, Timeout: 200 * time.Millisecond})
				if err != nil || r.Received != 0 {
					t.Errorf("a ping too big for the second link: %+v, %v", r, err)
				}
			}
			filtered, err := l.Filtered()
			if err != nil || (filtered[routerName] == 0) != wantError {
				t.Errorf("ICMP held back: %v, %v", filtered, err)
			}
		})
	}
}

func TestLinkSettings(t *testing.T) {
	l := up(t, kernelScenario(t, func(sc *Scenario) {
		sc.Networks = nil
		sc.Hosts[0].MTU = 1400
		sc.Hosts[0].Offloads = map[string]bool{"tunnel": false, "checksum": false, "gro": true}
	}), Options{})
	h1 := l.Host("h1")
	state := func(ns *Namespace, link string) map[string]bool {
		var got map[string]bool
		if err := ns.Do(func() error {
			tool, err := ethtool.NewEthtool()
			if err != nil {
				return err
			}
			defer tool.Close()
			got, err = tool.Features(link)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	for where, f := range map[string]map[string]bool{"host": state(&h1.Namespace, hostLink), "router": state(l.Router(), "h1")} {
		if f["tx-udp_tnl-segmentation"] || f["tx-udp_tnl-csum-segmentation"] || f["tx-checksum-ip-generic"] || !f["rx-gro"] {
			t.Errorf("offloads at the end of the %s: %v", where, f)
		}
	}
	if err := l.SetOffloads("h1", map[string]bool{"tunnel": true, "checksum": true, "tx-udp-segmentation": false}); err != nil {
		t.Fatal(err)
	}
	if f := state(&h1.Namespace, hostLink); !f["tx-udp_tnl-segmentation"] || !f["tx-checksum-ip-generic"] || f["tx-udp-segmentation"] {
		t.Errorf("offloads after SetOffloads: %v", f)
	}
	if err := l.SetOffloads("h1", map[string]bool{"no-such-thing": true}); err == nil || !strings.Contains(err.Error(), "no-such-thing") {
		t.Errorf("an unknown offload: %v", err)
	}
	for _, want := range []int{1400, 1280} {
		a, err1 := h1.MTU(hostLink)
		b, err2 := l.Router().MTU("h1")
		if a != want || b != want || err1 != nil || err2 != nil {
			t.Errorf("MTU of the link: %d and %d, want %d (%v, %v)", a, b, want, err1, err2)
		}
		if err := l.SetLinkMTU("h1", 1280); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.SetLinkMTU("h9", 1280); err == nil || !strings.Contains(err.Error(), "h1, h2") {
		t.Errorf("an unknown host: %v", err)
	}
}

// TestDirect looks at what a direct lab has in place of a router: nothing.
func TestDirect(t *testing.T) {
	l := up(t, kernelScenario(t, func(sc *Scenario) {
		sc.Topology = Direct
		sc.Networks = nil
		for i := range sc.Hosts {
			sc.Hosts[i].Underlay = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", i+1))}
			sc.Hosts[i].Offloads = map[string]bool{"tunnel": false}
		}
	}), Options{})
	if l.Router() != nil || len(l.state.Namespaces) != 2 {
		t.Errorf("namespaces %+v", l.state.Namespaces)
	}
	if filtered, err := l.Filtered(); err != nil || len(filtered) != 0 {
		t.Errorf("dropped on purpose: %v, %v", filtered, err)
	}
	if err := l.SetLinkMTU("h2", 1400); err != nil {
		t.Error(err)
	}
	both := func(feature string, on bool) {
		t.Helper()
		for _, h := range l.Hosts() {
			size, err := h.MTU(hostLink)
			if err != nil || size != 1400 {
				t.Errorf("MTU of %s: %d, %v", h.Name(), size, err)
			}
			if err := h.Do(func() error {
				tool, err := ethtool.NewEthtool()
				if err != nil {
					return err
				}
				defer tool.Close()
				got, err := tool.Features(hostLink)
				if got[feature] != on {
					t.Errorf("%s of %s is %v", feature, h.Name(), got[feature])
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		}
	}
	both("tx-udp_tnl-segmentation", false)
	if err := l.SetOffloads("h1", map[string]bool{"tunnel": true}); err != nil {
		t.Error(err)
	}
	both("tx-udp_tnl-segmentation", true)
}

func TestDoReturnsHome(t *testing.T) {
	l := up(t, kernelScenario(t, nil), Options{})
	self := func() string {
		s, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		return s
	}
	home := self()
	for range 50 {
		var there string
		if err := l.Host("h1").Do(func() error { there = self(); return nil }); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("net:[%d]", l.Host("h1").inode); there != want {
			t.Fatalf("Do ran in %s, want %s", there, want)
		}
	}
	if now := self(); now != home {
		t.Errorf("this thread is in %s, was in %s", now, home)
	}
	if err := l.Host("h1").Do(func() error { return os.ErrClosed }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the error of the function became %v", err)
	}
}

// TestHostName runs commands under the name of a host, and keeps that of this machine.
func TestHostName(t *testing.T) {
	l := up(t, kernelScenario(t, nil), Options{})
	home, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // that many threads
		cmd := exec.Command("cat", "/proc/sys/kernel/hostname", "/proc/net/dev")
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := l.Host("h2").Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || !strings.HasPrefix(out.String(), "h2\n") || !strings.Contains(out.String(), "blue0") {
			t.Fatalf("%v: %s", err, out.String())
		}
		if now, err := os.Hostname(); err != nil || now != home {
			t.Fatalf("this machine is called %q, %v; it was %q", now, err, home)
		}
	}
	if err := l.Host("h1").Start(exec.Command("/nonexistent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a command that is not there: %v", err)
	}
}

// TestInterrupted ends the context after every step there is, and looks for what is left.
func TestInterrupted(t *testing.T) {
	root(t)
	host := "t" + newID()
	sc := kernelScenario(t, func(sc *Scenario) {
		sc.Hosts[0].Name = host
		sc.Networks[0].Members = map[string]Kind{host: Kernel, "h2": Kernel}
	})
	for after := 0; ; after++ {
		ctx := &countdown{Context: within(t), left: after}
		l, err := Up(ctx, sc, Options{})
		if err == nil {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if after < 5 {
				t.Errorf("the context was asked only %d times", after)
			}
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		nothingLeft(t, &state{Scenario: sc})
		if left := namespaces(t, host); len(left) > 0 {
			t.Fatalf("after %d steps: %v is still there", after, left)
		}
	}
}

// countdown is a context that ends when its error was asked for often enough.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return c.Context.Err()
}

// namespaces lists those of hosts of this name, whatever the run.
func namespaces(t *testing.T, host string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(netname.Dir, "ovl-*-"+host))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
