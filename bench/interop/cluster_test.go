package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// buildCtl makes the operator's command line, once.
var buildCtl = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "overlayctl")
	cmd := exec.Command("go", "build", "-o", path, "github.com/overlayd/overlayd/cmd/overlayctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build overlayctl: %w\n%s", err, out)
	}
	return path, nil
})

// member is a host of a cluster: its daemon has a data directory and no networks stated by hand.
type member struct {
	t      *testing.T
	host   *lab.Host
	dir    string
	more   string // lines of its configuration file
	socket string // of the daemon that runs
	// earlier is what daemons that were ended have logged, for those tests that look at it.
	earlier string
	daemon  *running
}

// members starts the daemons of hosts h1, h2 and so on, in no cluster yet.
func members(t *testing.T, outer lab.Family, n int, edit func(*lab.Scenario)) ([]*member, *lab.Lab) {
	t.Helper()
	all, l := places(t, outer, n, edit)
	for _, m := range all {
		m.start()
	}
	return all, l
}

// places is members without the daemons.
func places(t *testing.T, outer lab.Family, n int, edit func(*lab.Scenario)) ([]*member, *lab.Lab) {
	t.Helper()
	sc := scenario(outer)
	for i := range n {
		underlay := fmt.Sprintf("2001:db8:%d::1/64", i+1)
		if outer == lab.IPv4 {
			underlay = fmt.Sprintf("%s.%d/26", []string{"192.0.2", "198.51.100", "203.0.113"}[i%3], i/3*64+1)
		}
		sc.Hosts = append(sc.Hosts, lab.HostSpec{Name: fmt.Sprintf("h%d", i+1), Underlay: []netip.Prefix{netip.MustParsePrefix(underlay)}})
	}
	if edit != nil {
		edit(&sc)
	}
	l := up(t, sc)
	var out []*member
	for _, h := range l.Hosts() {
		m := &member{t: t, host: h, dir: t.TempDir()}
		out = append(out, m)
		t.Cleanup(func() { m.clear() })
	}
	return out, l
}

func (m *member) start() {
	m.t.Helper()
	m.daemon = start(m.t, m.host, "data_dir: "+m.dir+"\n"+m.more)
	m.socket = m.daemon.socket
}

// kill ends the daemon as the kernel does when memory is short.
func (m *member) kill() {
	m.t.Helper()
	if err := m.daemon.cmd.Process.Signal(unix.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	<-m.daemon.ended
}

// clear removes the sandboxes that daemons of this host have left.
func (m *member) clear() {
	if err := m.host.Do(func() error {
		id, err := link.NamespaceID()
		if err != nil {
			return err
		}
		vnis, err := link.Sandboxes(id)
		for _, v := range vnis {
			if rerr := link.RemoveSandbox(v, id); rerr != nil {
				err = rerr
			}
		}
		return err
	}); err != nil {
		m.t.Errorf("clear %s: %v", m.host.Name(), err)
	}
}

// try runs overlayctl against the daemon of this host.
func (m *member) try(args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	return m.feed("", args...)
}

// feed is try with something on the standard input.
func (m *member) feed(stdin string, args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	ctl, err := buildCtl()
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, ctl, append([]string{"--socket", m.socket}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	_ = cmd.Run() // how it ended is in ProcessState
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// ctl is try for what has to succeed.
func (m *member) ctl(args ...string) string {
	m.t.Helper()
	out, errs, code := m.try(args...)
	if code != 0 {
		m.t.Fatalf("%s: overlayctl %s: %d, %s", m.host.Name(), strings.Join(args, " "), code, errs)
	}
	return out
}

// refuses expects that overlayctl fails with code 1 and a line that has all of the words.
func (m *member) refuses(words []string, args ...string) {
	m.t.Helper()
	_, errs, code := m.try(args...)
	if code != 1 || strings.Count(errs, "\n") != 1 {
		m.t.Errorf("overlayctl %s: %d, %q: want 1 and one line", strings.Join(args, " "), code, errs)
	}
	for _, w := range words {
		if !strings.Contains(errs, w) {
			m.t.Errorf("overlayctl %s: %q does not say %q", strings.Join(args, " "), errs, w)
		}
	}
}

func (m *member) address() string { return m.host.Underlay()[0].Addr().String() }

// join makes a cluster of all, with the first ones as managers.
func join(t *testing.T, all []*member, managers int) {
	t.Helper()
	first := all[0]
	first.ctl("init", "--name", "n1", "--advertise", first.address())
	for i, m := range all[1:] {
		role := "worker"
		if i+1 < managers {
			role = "manager"
		}
		token := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(token, []byte(first.ctl("token", "show", role, "--quiet")), 0o600); err != nil {
			t.Fatal(err)
		}
		remote := netip.AddrPortFrom(netip.MustParseAddr(first.address()), 7789).String()
		m.ctl("join", "--token-file", token, "--name", fmt.Sprintf("n%d", i+2), "--advertise", m.address(), remote)
	}
	settled(t, "all managers to vote", func() (bool, string) {
		var st struct {
			Status struct {
				Managers []struct{ Voter bool }
			}
		}
		text := first.ctl("cluster", "status", "-o", "json")
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatal(err)
		}
		voters := 0
		for _, x := range st.Status.Managers {
			if x.Voter {
				voters++
			}
		}
		return voters == managers, text
	})
}

// container is a network namespace with an interface on the network blue.
type container struct {
	*link.Namespace
	name string
	ip   netip.Addr
}

// attach makes a container on each host, with the addresses 10.42.0.11 and so on.
func attach(t *testing.T, all []*member) []*container {
	t.Helper()
	linktest.Lock(t)
	var out []*container
	for i, m := range all {
		c := &container{name: linktest.Named(t, fmt.Sprintf("c%d", i+1)), ip: netip.AddrFrom4([4]byte{10, 42, 0, byte(11 + i)})}
		m.ctl("endpoint", "add", network, "--netns", c.name, "--name", fmt.Sprintf("web%d", i+1), "--ip", c.ip.String())
		var err error
		if c.Namespace, err = link.OpenNamespace(c.name); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out = append(out, c)
	}
	return out
}

// settled waits until a condition holds, as eventually does, with the patience that elections ask for on a busy machine.
func settled(t *testing.T, what string, holds func() (ok bool, state string)) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		ok, state := holds()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s; it is still: %s", what, state)
		}
		time.Sleep(20 * time.Millisecond) // the condition asks a daemon
	}
}

// meet has all containers find all others.
func meet(t *testing.T, all []*container) {
	t.Helper()
	for _, a := range all {
		for _, b := range all {
			if a == b {
				continue
			}
			settled(t, a.name+" to reach "+b.name, func() (bool, string) {
				r, err := load.Ping(within(t), load.PingConfig{From: a, To: b.ip, Timeout: 500 * time.Millisecond})
				return err == nil && r.Received == 1, fmt.Sprint(r, err)
			})
		}
	}
}

// TestCluster goes the way of the first hour with a cluster: three hosts, a network, containers, a leader that dies under
// traffic, and all managers gone.
func TestCluster(t *testing.T) {
	all, _ := members(t, lab.IPv4, 3, nil)
	all[0].refuses([]string{"in no cluster", "init", "join"}, "node", "ls")
	join(t, all, 3)
	all[0].refuses([]string{"already"}, "init")
	all[2].ctl("network", "create", network, "--subnet", "10.42.0.0/24")
	containers := attach(t, all)
	meet(t, containers)
	for _, c := range containers {
		mtu := 0
		if err := c.Do(func() (err error) { mtu, err = link.MTU("eth0"); return err }); err != nil || mtu != 1450 {
			t.Errorf("%s has MTU %d, %v; want 1450", c.name, mtu, err)
		}
	}
	settled(t, "three managers, of which one leads", func() (bool, string) {
		var out struct {
			Nodes []struct{ Name, ManagerStatus, Status string }
		}
		err := json.Unmarshal([]byte(all[1].ctl("node", "ls", "-o", "json")), &out)
		roles := map[string]int{}
		for _, n := range out.Nodes {
			roles[n.ManagerStatus]++
		}
		return err == nil && len(out.Nodes) == 3 && roles["leader"] == 1 && roles["reachable"] == 2, fmt.Sprintf("%+v, %v", out, err)
	})

	t.Run("bulk", func(t *testing.T) {
		r, err := load.TCP(within(t), load.TCPConfig{From: containers[1], To: containers[2], Address: containers[2].ip, Direction: load.Both, Bytes: 50 * megabyte, Verify: true})
		if err != nil || r.Forward.Bytes != 50*megabyte || r.Reverse.Bytes != 50*megabyte {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("refusals", func(t *testing.T) {
		all[1].refuses([]string{"10.42.0.11", "web1"}, "endpoint", "add", network, "--netns", containers[1].name, "--ip", "10.42.0.11")
		all[1].refuses([]string{"netns", "nonesuch"}, "endpoint", "add", network, "--netns", "nonesuch")
		all[1].refuses([]string{"remove them first"}, "network", "rm", network)
		all[1].refuses([]string{"subnets[0]", "overlaps", "route of this host"}, "network", "create", "green", "--subnet", all[1].host.Underlay()[0].String()[:strings.LastIndex(all[1].address(), ".")]+".0/28")
		all[1].refuses([]string{"subnets[0]", "overlaps", network}, "network", "create", "green", "--subnet", "10.42.0.0/16")
		all[1].refuses([]string{"endpoints"}, "leave")
	})
	t.Run("the leader dies under traffic", func(t *testing.T) {
		done := make(chan load.PingResult, 1)
		go func() {
			r, err := load.Ping(within(t), load.PingConfig{From: containers[1], To: containers[2].ip, Count: 300, Interval: 20 * time.Millisecond})
			if err != nil {
				t.Error(err)
			}
			done <- r
		}()
		all[0].kill()
		all[1].ctl("network", "create", "red")
		if r := <-done; r.Received != r.Sent {
			t.Errorf("%d of %d pings came back", r.Received, r.Sent)
		}
		all[0].start()
		meet(t, containers)
		if got := all[2].ctl("network", "ls"); !strings.Contains(got, "red") {
			t.Errorf("networks: %s", got)
		}
	})
	t.Run("a vanished namespace takes its endpoint along", func(t *testing.T) {
		linktest.Lock(t)
		name := linktest.Named(t, "gone")
		all[0].ctl("endpoint", "add", network, "--netns", name, "--name", "gone")
		linktest.Delete(t, name)
		settled(t, "the endpoint to go", func() (bool, string) {
			text := all[1].ctl("endpoint", "ls", network)
			return !strings.Contains(text, "gone"), text
		})
	})
	t.Run("the majority dies and one of them comes back", func(t *testing.T) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			r, err := load.TCP(within(t), load.TCPConfig{From: containers[0], To: containers[2], Address: containers[2].ip, Duration: 3 * time.Second, Stall: 20 * time.Second, Verify: true})
			if err != nil {
				t.Errorf("the connection did not survive: %+v, %v", r, err)
			}
		}()
		all[1].kill() // one of three: there is a quorum
		all[0].kill() // now there is none, and the one that is started again forwards by its copy
		all[0].start()
		<-done
		meet(t, []*container{containers[0], containers[2]})
		all[1].start()
		meet(t, containers)
	})
	t.Run("a manager whose gossip hears nobody misses no quorum", func(t *testing.T) {
		m := all[2]
		m.kill()
		if err := m.host.Do(func() error {
			return filter(nftables.ChainHookInput, controlplane.DefaultGossipPort, sourcePort, destinationPort)
		}); err != nil {
			t.Fatal(err)
		}
		m.start()
		settled(t, "it to follow a leader", func() (bool, string) {
			st := m.status().Status
			return st.Quorum && st.Leader != "" && len(st.Problems) == 0, fmt.Sprintf("%+v", st)
		})
		reachable := 0
		for _, x := range m.status().Status.Managers {
			if x.Status != "unreachable" {
				reachable++
			}
		}
		if reachable == len(all) {
			t.Error("its gossip has heard the others")
		}
		if err := m.host.Do(filterGone); err != nil {
			t.Fatal(err)
		}
		m.ctl("network", "create", "after")
		m.ctl("network", "rm", "after")
	})
	t.Run("nothing is left behind", func(t *testing.T) {
		for i, m := range all {
			m.ctl("endpoint", "rm", network, fmt.Sprintf("web%d", i+1))
			if err := containers[i].Do(func() error {
				if _, err := link.MTU("eth0"); err == nil {
					t.Error("its interface is still there")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			settled(t, "the sandbox to go", func() (bool, string) {
				var left []string
				err := m.host.Do(func() error {
					id, err := link.NamespaceID()
					if err != nil {
						return err
					}
					vnis, err := link.Sandboxes(id)
					left = append(left, fmt.Sprint(vnis))
					return err
				})
				return err == nil && slices.Equal(left, []string{"[]"}), fmt.Sprint(left, err)
			})
		}
		all[0].ctl("network", "rm", network)
	})
}

// TestClusterOverNarrowPath has a hop of 1280 bytes between the hosts that says nothing of what it drops: the cluster has to
// form, and its state to reach everyone.
func TestClusterOverNarrowPath(t *testing.T) {
	all, l := members(t, lab.IPv4, 3, func(sc *lab.Scenario) { sc.Router.DropICMP = lab.DropTooBig })
	for _, m := range all {
		if err := l.Router().Do(func() error { return link.SetMTU(m.host.Name(), 1280) }); err != nil {
			t.Fatal(err)
		}
	}
	join(t, all, 3)
	all[1].ctl("network", "create", network, "--subnet", "10.42.0.0/24")
	containers := attach(t, all)
	meet(t, containers) // pings are small: the path MTU of the overlay is another matter
	// More than one segment of answer.
	for i := range 40 {
		all[2].ctl("network", "create", fmt.Sprintf("network-%d-with-a-name-that-is-long-enough-to-fill-packets", i))
	}
	for _, m := range all {
		settled(t, "all networks to be known", func() (bool, string) {
			text := m.ctl("network", "ls")
			return strings.Count(text, "network-") == 40, text
		})
	}
}
