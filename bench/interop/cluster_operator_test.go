package interop

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
)

// TestClusterOperator does to a cluster what operators do, in the right way and in the wrong one. Everything is said at
// the most talkative level, and no secret may be in it.
func TestClusterOperator(t *testing.T) {
	all, _ := places(t, lab.IPv4, 4, nil)
	for _, m := range all {
		m.more = "log: debug\n"
		m.start()
	}
	secrets := &secrets{}
	t.Run("tokens", func(t *testing.T) { tokens(t, all, secrets) })
	t.Run("networks and endpoints", func(t *testing.T) { refusals(t, all) })
	t.Run("roles", func(t *testing.T) { roles(t, all) })
	t.Run("removed while away", func(t *testing.T) { removedWhileAway(t, all, secrets) })
	t.Run("the last manager", func(t *testing.T) { lastManager(t, all) })
	for _, m := range all {
		text := m.earlier + m.daemon.log()
		if !strings.Contains(text, "level=DEBUG") {
			t.Errorf("%s is not talkative", m.host.Name())
		}
		for _, s := range secrets.all() {
			if strings.Contains(text, s) {
				t.Errorf("the log of %s has a secret in it", m.host.Name())
			}
		}
	}
}

// secrets are the parts of tokens that nobody may see.
type secrets struct{ list atomic.Pointer[[]string] }

func (s *secrets) all() []string {
	if p := s.list.Load(); p != nil {
		return *p
	}
	return nil
}

// of notes the secret of a token, and returns the token. One goroutine calls it.
func (s *secrets) of(token string) string {
	token = strings.TrimSpace(token)
	next := append(slices.Clone(s.all()), token[strings.LastIndex(token, "-")+1:])
	s.list.Store(&next)
	return token
}

// watchProcesses looks at the arguments of all processes of the machine, over and over, until stop is called.
func (s *secrets) watchProcesses(t *testing.T) (stop func()) {
	t.Helper()
	end, done := make(chan struct{}), make(chan struct{})
	looks, clients := 0, 0
	go func() {
		defer close(done)
		for {
			files, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
			for _, f := range files {
				b, _ := os.ReadFile(f) // it may have ended
				if strings.Contains(string(b), "--token-file") {
					clients++
				}
				for _, secret := range s.all() {
					if strings.Contains(string(b), secret) {
						t.Errorf("%s has a token in its arguments", f)
					}
				}
			}
			looks++
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond): // the others need the processor, too
			}
		}
	}()
	return func() {
		close(end)
		<-done
		t.Logf("looked %d times at all processes, %d times at an overlayctl with a token", looks, clients)
		if clients == 0 {
			t.Error("no overlayctl was seen while it had a token")
		}
	}
}

// file writes a token where only root can read it.
func file(t *testing.T, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *member) control() string { return net.JoinHostPort(m.address(), "7789") }

// usage expects that overlayctl does not understand.
func (m *member) usage(words []string, args ...string) {
	m.t.Helper()
	_, errs, code := m.try(args...)
	if code != 2 {
		m.t.Errorf("overlayctl %s: %d, %q: want 2", strings.Join(args, " "), code, errs)
	}
	for _, w := range words {
		if !strings.Contains(errs, w) {
			m.t.Errorf("overlayctl %s: %q does not say %q", strings.Join(args, " "), errs, w)
		}
	}
}

// node is what a listing says of one.
type listed struct {
	Id, Name, Role, Availability, Status, ManagerStatus string
	Addresses                                           []string
	Self                                                bool
}

func (m *member) nodes() map[string]listed {
	m.t.Helper()
	var out struct{ Nodes []listed }
	if err := json.Unmarshal([]byte(m.ctl("node", "ls", "-o", "json")), &out); err != nil {
		m.t.Fatal(err)
	}
	by := map[string]listed{}
	for _, n := range out.Nodes {
		by[n.Name] = n
	}
	return by
}

// tokens makes a cluster of h1 as n1, h3 as the worker n3, h4 and h2 as the managers n4 and n2.
func tokens(t *testing.T, all []*member, s *secrets) {
	h1, h2, h3, h4 := all[0], all[1], all[2], all[3]
	for _, m := range all[2:] {
		m.refuses([]string{"in no cluster", "init", "join"}, "token", "show", "worker", "--quiet")
	}
	h1.ctl("init", "--name", "n1", "--advertise", h1.address())
	h2.ctl("init", "--name", "n1", "--advertise", h2.address())
	show := func(m *member, role string) string { return s.of(m.ctl("token", "show", role, "--quiet")) }
	worker, manager, foreign := show(h1, "worker"), show(h1, "manager"), show(h2, "worker")

	stop := s.watchProcesses(t)
	h3.usage([]string{"--token"}, "join", h1.control())
	h3.usage([]string{"192.0.2.1:7789"}, "join", "--token-file", "-")
	h3.refuses([]string{"token", "no such file"}, "join", "--token-file", "/nonexistent", h1.control())
	h3.refuses([]string{"empty", "token show"}, "join", "--token-file", file(t, ""), h1.control())
	h3.refuses([]string{"token: "}, "join", "--token-file", file(t, "OVLTKN-1-what-is-this"), h1.control())
	h3.refuses([]string{"another cluster"}, "join", "--token-file", file(t, foreign), "--advertise", h3.address(), h1.control())
	h3.refuses([]string{"refused", h4.control()}, "join", "--token-file", file(t, worker), "--advertise", h3.address(), h4.control())

	fresh := s.of(h1.ctl("token", "rotate", "worker", "--quiet"))
	if fresh == worker || show(h1, "worker") != fresh || show(h1, "manager") != manager {
		t.Error("to rotate one token has to replace that one alone")
	}
	h3.refuses([]string{"rotated", "token show"}, "join", "--token-file", file(t, worker), "--advertise", h3.address(), h1.control())
	h3.ctl("join", "--token-file", file(t, fresh), "--name", "n3", "--advertise", h3.address(), h1.control())
	h3.refuses([]string{"already", "leave"}, "join", "--token-file", file(t, fresh), "--advertise", h3.address(), h1.control())
	h3.refuses([]string{"already", "leave"}, "init")
	h3.refuses([]string{"manager"}, "token", "show", "worker", "--quiet")
	h3.refuses([]string{"manager"}, "token", "rotate", "worker")

	join := func(m *member, name string, args ...string) (errs string, code int) {
		t.Helper()
		_, errs, code = m.feed(manager+"\n", slices.Concat([]string{"join"}, args, []string{"--name", name, "--advertise", m.address(), h1.control()})...)
		return errs, code
	}
	if errs, code := join(h4, "n3", "--token-file", "-"); code != 1 || !strings.HasPrefix(errs, "overlayctl: name: ") || !strings.Contains(errs, "choose another") {
		t.Errorf("to join under the name of another: %d, %q", code, errs)
	}
	if errs, code := join(h4, "n4", "--token-file", "-"); code != 0 {
		t.Fatalf("join with a token on the standard input: %d, %q", code, errs)
	}
	h2.refuses([]string{"last manager", "--force"}, "leave")
	h2.ctl("leave", "--force")
	if errs, code := join(h2, "n2", "--token", "-"); code != 0 {
		t.Fatalf("join after leaving: %d, %q", code, errs)
	}
	stop()

	// Whoever is asked shows the token that is the newest.
	managers := []*member{h1, h2, h4}
	settled(t, "three votes", func() (bool, string) { return voting(h1) == 3, fmt.Sprint(h1.status()) })
	for i := range 6 {
		fresh = s.of(managers[i%3].ctl("token", "rotate", "worker", "--quiet"))
		for _, m := range managers {
			if got := show(m, "worker"); got != fresh {
				t.Errorf("%s shows an old token", m.host.Name())
			}
		}
	}
	nodes := h3.nodes()
	for name, role := range map[string]string{"n1": "manager", "n2": "manager", "n3": "worker", "n4": "manager"} {
		if nodes[name].Role != role {
			t.Errorf("%s is a %q, want %q", name, nodes[name].Role, role)
		}
	}
}

// voting counts the managers that have a vote.
func voting(m *member) int {
	n := 0
	for _, x := range m.status().Status.Managers {
		if x.Voter {
			n++
		}
	}
	return n
}

// refusals asks for what cannot be.
func refusals(t *testing.T, all []*member) {
	linktest.Lock(t)
	h1, h3 := all[0], all[2]
	h3.ctl("network", "create", network, "--subnet", "10.42.0.0/24")
	h1.ctl("network", "create", "tiny", "--subnet", "10.43.0.0/29")
	create := func(words []string, args ...string) {
		t.Helper()
		h3.refuses(words, append([]string{"network", "create"}, args...)...)
	}
	create([]string{"name: ", network, "choose another"}, network)
	create([]string{"subnets[0]: ", "overlaps", network, "choose another"}, "other", "--subnet", "10.42.0.128/25")
	create([]string{"subnets[0]: ", "route of this host", "choose another"}, "other", "--subnet", netip.PrefixFrom(h3.host.Underlay()[0].Addr(), 26).Masked().String())
	create([]string{"subnets[0]: ", "underlay address", "n1", "choose another"}, "other", "--subnet", "192.0.2.0/30")
	create([]string{"subnets[0]: ", "10.44.0.0/24"}, "other", "--subnet", "10.44.0.1/24")
	create([]string{"subnets[0]: "}, "other", "--subnet", "10.44.0.0/33")
	create([]string{"name: "}, "../../etc/passwd")
	create([]string{"name: "}, strings.Repeat("x", 5000))
	create([]string{"vni: "}, "other", "--vni", "16777216")
	create([]string{"gateways[0]: "}, "other", "--subnet", "10.44.0.0/24", "--gateway", "10.45.0.1")
	create([]string{"mtu: "}, "other", "--mtu", "10")
	h3.usage([]string{"name"}, "network", "create")

	ns := linktest.Named(t, "full")
	add := func(words []string, net string, args ...string) {
		t.Helper()
		h3.refuses(words, append([]string{"endpoint", "add", net, "--netns", ns}, args...)...)
	}
	h3.ctl("endpoint", "add", network, "--netns", ns, "--name", "web", "--ip", "10.42.0.10")
	add([]string{"name: ", "web", "choose another"}, network, "--name", "web")
	add([]string{"ips[0]: ", "10.42.0.10", "web", "choose another"}, network, "--ip", "10.42.0.10")
	add([]string{"ips[0]: ", "10.42.0.0/24"}, network, "--ip", "10.43.0.10")
	add([]string{"ips[0]: ", "choose another"}, network, "--ip", "10.42.0.255")
	add([]string{"mac: "}, network, "--mac", "01:00:5e:00:00:01")
	add([]string{"network: ", "network ls"}, "nonesuch")
	h3.refuses([]string{"netns: ", "nonesuch", "ip netns add"}, "endpoint", "add", network, "--netns", "nonesuch")
	h3.refuses([]string{"endpoint: ", "nonesuch", "endpoint ls"}, "endpoint", "rm", network, "nonesuch")
	h3.refuses([]string{"network: ", "web", "remove them first"}, "network", "rm", network)
	h3.refuses([]string{"endpoint"}, "leave")
	taken := 0
	for ; taken < 8; taken++ {
		if _, _, code := h3.try("endpoint", "add", "tiny", "--netns", ns); code != 0 {
			break
		}
	}
	if taken < 4 || taken > 6 {
		t.Errorf("a subnet of 8 addresses has room for %d", taken)
	}
	add([]string{"ips: ", "10.43.0.0/29", "remove endpoints", "larger subnet"}, "tiny")
	// What was refused has left nothing.
	if got := h3.fresh(); !slices.Equal(got, []string{network, "tiny"}) {
		t.Errorf("the networks are %q", got)
	}
	linktest.Delete(t, ns) // takes its endpoints with it
	settled(t, "the endpoints to go", func() (bool, string) {
		st := h1.status().Status
		return st.Endpoints == "0", st.Endpoints
	})
	h1.ctl("network", "rm", "tiny")
}

// roles changes what nodes are.
func roles(t *testing.T, all []*member) {
	linktest.Lock(t)
	h1, h2, h3, h4 := all[0], all[1], all[2], all[3]
	for _, verb := range []string{"promote", "demote", "drain", "activate", "rm", "inspect"} {
		h1.refuses([]string{"node: ", "nonesuch", "node ls"}, "node", verb, "nonesuch")
	}
	h3.ctl("node", "ls")
	h3.refuses([]string{"manager"}, "node", "promote", "n3") // by its own word
	h1.ctl("node", "promote", "n3")
	settled(t, "four votes", func() (bool, string) { return voting(h2) == 4, fmt.Sprint(h2.status()) })
	if n := h3.nodes()["n3"]; n.Role != "manager" || !n.Self {
		t.Errorf("n3 is %+v", n)
	}
	h3.ctl("node", "demote", "n3") // by a manager, though the same
	settled(t, "three votes", func() (bool, string) {
		return voting(h1) == 3 && len(h1.status().Status.Managers) == 3, fmt.Sprint(h1.status())
	})
	settled(t, "the worker to know its place", func() (bool, string) {
		_, errs, code := h3.try("token", "show", "worker", "--quiet")
		return code == 1, errs
	})

	ns := linktest.Named(t, "drained")
	h3.ctl("endpoint", "add", network, "--netns", ns, "--name", "stays")
	h1.ctl("node", "drain", "n3")
	h3.refuses([]string{"drained", "node activate n3"}, "endpoint", "add", network, "--netns", ns, "--name", "late")
	if got := h1.ctl("endpoint", "ls", network); !strings.Contains(got, "stays") {
		t.Errorf("a drained node lost its endpoints: %s", got)
	}
	if n := h2.nodes()["n3"]; n.Availability != "drain" {
		t.Errorf("n3 is %+v", n)
	}
	h1.ctl("node", "activate", "n3")
	h3.ctl("endpoint", "add", network, "--netns", ns, "--name", "late")
	h1.refuses([]string{"node: ", "is up", "leave"}, "node", "rm", "n3")
	h1.refuses([]string{"node: ", "this node", "leave"}, "node", "rm", "n1")
	for _, n := range []string{"stays", "late"} {
		h3.ctl("endpoint", "rm", network, n)
	}

	// Of three managers one is away: the others are needed.
	h4.kill()
	h4.earlier += h4.daemon.log()
	h1.refuses([]string{"have to work", "repair or remove", "n4"}, "node", "demote", "n2")
	h2.refuses([]string{"have to work", "repair or remove", "n4"}, "leave")
	if n := voting(h1); n != 3 {
		t.Errorf("%d managers vote", n)
	}
	h4.start()
	settled(t, "n4 to be back", func() (bool, string) {
		n := h1.nodes()["n4"]
		return n.Status == "ready" && h4.status().Status.Quorum, fmt.Sprintf("%+v", n)
	})
}

// removedWhileAway takes nodes off the list while their daemons are down. They are told when they come back.
func removedWhileAway(t *testing.T, all []*member, s *secrets) {
	linktest.Lock(t)
	h1, h3, h4 := all[0], all[2], all[3]
	for i, m := range []*member{h3, h4} { // a worker and a manager
		name := []string{"n3", "n4"}[i]
		c := linktest.Named(t, "left")
		m.ctl("endpoint", "add", network, "--netns", c, "--name", "of-"+name)
		m.kill()
		m.earlier += m.daemon.log()
		h1.ctl("node", "rm", "--force", name)
		m.start()
		settled(t, name+" to leave", func() (bool, string) {
			_, errs, code := m.try("node", "ls")
			return code == 1 && strings.Contains(errs, "in no cluster"), errs
		})
		if text := m.daemon.log(); !strings.Contains(text, "removed from the cluster") {
			t.Errorf("%s does not say why it left", name)
		}
		settled(t, "its sandboxes to go", func() (bool, string) {
			var left []string
			err := m.host.Do(func() error {
				id, err := link.NamespaceID()
				if err != nil {
					return err
				}
				vnis, err := link.Sandboxes(id)
				for _, v := range vnis {
					left = append(left, v.String())
				}
				return err
			})
			return err == nil && len(left) == 0, fmt.Sprint(left, err)
		})
		if files, err := filepath.Glob(filepath.Join(m.dir, "identity", "*")); err != nil || len(files) > 0 {
			t.Errorf("%s has kept %q, %v", name, files, err)
		}
		// It can come in again, under its name.
		worker := s.of(h1.ctl("token", "show", "worker", "--quiet"))
		m.ctl("join", "--token-file", file(t, worker), "--name", name, "--advertise", m.address(), h1.control())
		m.ctl("endpoint", "add", network, "--netns", c, "--name", "of-"+name)
		m.ctl("endpoint", "rm", network, "of-"+name)
	}
}

// lastManager takes managers away until one is left, which has to stay.
func lastManager(t *testing.T, all []*member) {
	h1, h2, h3 := all[0], all[1], all[2]
	settled(t, "two managers", func() (bool, string) {
		return voting(h1) == 2 && len(h1.status().Status.Managers) == 2, fmt.Sprint(h1.status())
	})
	h1.ctl("node", "demote", "n2")
	settled(t, "one manager", func() (bool, string) { return len(h1.status().Status.Managers) == 1, fmt.Sprint(h1.status()) })
	h1.refuses([]string{"n1", "last manager", "promote another"}, "node", "demote", "n1")
	h1.refuses([]string{"last manager", "promote another"}, "leave")
	h3.refuses([]string{"manager"}, "node", "rm", "--force", "n1")
	h2.ctl("leave")
	if _, there := h1.nodes()["n2"]; there {
		t.Error("a node that left is still listed")
	}
	h2.refuses([]string{"in no cluster"}, "leave")
}
