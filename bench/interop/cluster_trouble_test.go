package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/lab"
)

// withoutQuorum is how long the cluster is without one; `make soak` has the five minutes that operators need.
func withoutQuorum() time.Duration {
	if os.Getenv("OVERLAYD_SOAK") != "" {
		return 5 * time.Minute
	}
	return 20 * time.Second
}

// TestClusterInService has three managers and two workers, and a container on one manager and on each worker. All that
// operators fear happens to the managers, one after the other, while a connection between the workers goes on.
func TestClusterInService(t *testing.T) {
	all, l := places(t, lab.IPv4, 6, nil)
	for _, m := range all[:5] {
		m.start()
	}
	join(t, all[:5], 3)
	all[4].ctl("network", "create", network, "--subnet", "10.42.0.0/24", "--subnet", "fd00:42::/64")
	containers := attach(t, all[2:5])
	meet(t, containers)
	at := map[string]*container{"h3": containers[0], "h4": containers[1], "h5": containers[2]}
	workers := all[3:5]

	t.Run("isolation", func(t *testing.T) { isolation(t, l, all, at) })
	t.Run("no question crosses the underlay", func(t *testing.T) { questions(t, l, all[:5], containers) })
	t.Run("moves", func(t *testing.T) { moves(t, all, containers) })
	t.Run("what is wiped heals", func(t *testing.T) { heals(t, all[3], containers[1], containers[2]) })
	t.Run("the leader stands still", func(t *testing.T) { stopped(t, all[:3], workers, at) })
	t.Run("no quorum, and no managers", func(t *testing.T) { abandoned(t, all[:3], workers, at) })
	t.Run("recovery", func(t *testing.T) { recovered(t, all[:3], workers, at) })
	t.Run("a new host from a backup", func(t *testing.T) { reborn(t, all[0], all[5], workers, at) })
}

// clusterStatus is what a node says of its cluster.
type clusterStatus struct {
	Status struct {
		ClusterId, Leader          string
		Quorum                     bool
		Nodes, Networks, Endpoints string // 64 bits are a string in JSON
		Managers                   []struct {
			Name   string
			Voter  bool
			Status string
		}
		Problems []string
	}
}

func (m *member) status() clusterStatus {
	m.t.Helper()
	var st clusterStatus
	if err := json.Unmarshal([]byte(m.ctl("cluster", "status", "-o", "json")), &st); err != nil {
		m.t.Fatal(err)
	}
	return st
}

// led waits until the cluster of a node has a leader, other than the node of that name, and returns its name.
func (m *member) led(not string) string {
	m.t.Helper()
	leader := ""
	settled(m.t, "a leader", func() (bool, string) {
		st := m.status().Status
		leader = st.Leader
		return st.Quorum && leader != "" && leader != not, fmt.Sprintf("%+v", st)
	})
	return leader
}

// named finds the member whose node has a name; join calls them n1, n2 and so on.
func named(t *testing.T, all []*member, name string) *member {
	t.Helper()
	for i, m := range all {
		if name == fmt.Sprintf("n%d", i+1) {
			return m
		}
	}
	t.Fatalf("no node is called %s", name)
	return nil
}

// signal sends a signal to the daemon.
func (m *member) signal(s unix.Signal) {
	m.t.Helper()
	if err := m.daemon.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

// knows returns the names of the networks that a node lists.
func (m *member) knows() []string {
	m.t.Helper()
	var out struct {
		Cluster struct {
			Networks []struct{ Name string }
		}
	}
	if err := json.Unmarshal([]byte(m.ctl("network", "ls", "-o", "json")), &out); err != nil {
		m.t.Fatal(err)
	}
	var names []string
	for _, n := range out.Cluster.Networks {
		names = append(names, n.Name)
	}
	return names
}

// fresh is knows, of a listing that the daemon does not say may be old: where managers take their time to answer, as on a
// busy machine, it says so and lists what it has.
func (m *member) fresh() (names []string) {
	m.t.Helper()
	said := func() int { return strings.Count(m.daemon.log(), "a listing comes from this node's own copy") }
	settled(m.t, m.host.Name()+" to list what is not old", func() (bool, string) {
		before := said()
		names = m.knows()
		m.knows() // meanwhile what was said of the first one arrives
		return said() == before, fmt.Sprintf("%q", names)
	})
	return names
}

// stopped stops the process of the leader for longer than an election takes, and lets it go on. It is to tell nobody what
// is no longer so, and nothing that was acknowledged may be gone.
func stopped(t *testing.T, managers, workers []*member, at map[string]*container) {
	talk, before := keepTalking(t, at["h4"], at["h5"]), tallies(t, workers)
	name := managers[0].led("")
	leader := named(t, managers, name)
	others := slices.DeleteFunc(slices.Clone(managers), func(m *member) bool { return m == leader })
	leader.ctl("network", "create", "before")

	leader.signal(unix.SIGSTOP)
	pending := make(chan int, 1)
	go func() { // asked of the one that stands still; it is to be done, or refused, and not half
		_, _, code := leader.try("network", "create", "pending")
		pending <- code
	}()
	others[0].led(name)
	for i := range 5 {
		others[i%2].ctl("network", "create", fmt.Sprintf("meanwhile-%d", i))
	}
	leader.signal(unix.SIGCONT)
	// It is asked before it can have heard of the others, if it is quick.
	for range 5 {
		if got := leader.fresh(); !slices.Contains(got, "meanwhile-4") {
			t.Errorf("the old leader lists %q, which is old", got)
		}
	}
	code := <-pending
	leader.ctl("network", "create", "after")
	want := []string{"after", "before", network, "meanwhile-0", "meanwhile-1", "meanwhile-2", "meanwhile-3", "meanwhile-4"}
	if code == 0 {
		want = append(want, "pending")
	}
	for _, m := range slices.Concat(managers, workers) {
		got := m.fresh()
		if code != 0 { // it may have taken effect all the same, as the documentation says
			got = slices.DeleteFunc(got, func(n string) bool { return n == "pending" })
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s lists %q, want %q", m.host.Name(), got, want)
		}
	}
	talk.end(t, "the leader stood still")
	quiet(t, workers, before, "the leader stood still")
	for _, n := range want {
		if n != network {
			leader.ctl("network", "rm", n)
		}
	}
}

// abandoned takes two managers away, then the third, and brings them back.
func abandoned(t *testing.T, managers, workers []*member, at map[string]*container) {
	talk, before := keepTalking(t, at["h4"], at["h5"]), tallies(t, workers)
	begin := time.Now()
	managers[0].kill()
	managers[1].kill()
	workers[0].refuses([]string{"leader", "overlayctl cluster status"}, "network", "create", "never")
	settled(t, "the quorum to be missed", func() (bool, string) {
		st := managers[2].status().Status
		return !st.Quorum && slices.ContainsFunc(st.Problems, func(p string) bool { return strings.Contains(p, "cluster recover") }), fmt.Sprintf("%+v", st)
	})
	if got := workers[1].knows(); !slices.Contains(got, network) { // listings come from the copy
		t.Errorf("without a quorum the networks are %q", got)
	}
	time.Sleep(withoutQuorum() - time.Since(begin)) // the subject is the time itself
	talk.end(t, fmt.Sprintf("no quorum for %v", time.Since(begin).Round(time.Second)))
	quiet(t, workers, before, "no quorum")

	talk, before = keepTalking(t, at["h4"], at["h5"]), tallies(t, workers)
	managers[2].kill()
	time.Sleep(3 * time.Second) // the subject again: nobody is there
	talk.end(t, "no manager")
	quiet(t, workers, before, "no manager")

	// A worker that starts now has nobody to ask.
	workers[1].kill()
	workers[1].start()
	meet(t, []*container{at["h4"], at["h5"]})

	talk, before = keepTalking(t, at["h4"], at["h5"]), tallies(t, workers)
	for _, m := range managers {
		m.start()
	}
	workers[0].led("")
	workers[0].ctl("network", "create", "again")
	for _, m := range slices.Concat(managers, workers) {
		if got, want := m.fresh(), []string{"again", network}; !slices.Equal(got, want) && !slices.Equal(got, append(want, "never")) {
			t.Errorf("%s lists %q, want %q", m.host.Name(), got, want)
		}
	}
	talk.end(t, "daemons of other hosts started")
	quiet(t, workers, before, "daemons of other hosts started")
	workers[0].ctl("network", "rm", "again")
	if slices.Contains(workers[0].fresh(), "never") { // the leader of then had it in its log, and has come back
		workers[0].ctl("network", "rm", "never")
	}
}

// essence is what a cluster must not lose: its ID, authority and tokens, networks and endpoints.
func essence(t *testing.T, m *member) string {
	t.Helper()
	var out []string
	out = append(out, m.status().Status.ClusterId)
	for _, role := range []string{"worker", "manager"} {
		out = append(out, m.ctl("token", "show", role, "--quiet"))
	}
	var nets struct {
		Cluster struct {
			Networks []struct {
				Id, Name string
				Vni      uint32
				Subnets  []string
			}
		}
	}
	var ends struct {
		Endpoints []struct {
			Id, Network, Name, Mac, NodeId string
			Ips                            []string
		}
	}
	for args, into := range map[string]any{"network ls": &nets, "endpoint ls": &ends} {
		if err := json.Unmarshal([]byte(m.ctl(append(strings.Fields(args), "-o", "json")...)), into); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%q\n%+v\n%+v", out, nets, ends)
}

// recovered loses two of three managers for ever, and makes the third the only one.
func recovered(t *testing.T, managers, workers []*member, at map[string]*container) {
	talk, before := keepTalking(t, at["h4"], at["h5"]), tallies(t, workers)
	last := managers[0]
	was := essence(t, last)
	managers[1].kill()
	managers[2].kill()
	refuse := func(words []string, args ...string) {
		t.Helper()
		last.refuses(words, append([]string{"cluster", "recover", "--data-dir"}, args...)...)
	}
	refuse([]string{"another overlayd", "stop it"}, last.dir) // under its own daemon
	if code := last.daemon.terminate(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	refuse([]string{"cluster"}, t.TempDir())
	refuse([]string{"manager"}, workers[0].dir)
	last.ctl("cluster", "recover", "--data-dir", last.dir)
	last.start()
	last.led("")
	if now := essence(t, last); now != was {
		t.Errorf("it is now\n%s\nand was\n%s", now, was)
	}
	// Those that are lost are still members, and one has an endpoint.
	last.refuses([]string{"n2", "--force"}, "node", "rm", "n2") // it may still pass for up
	for _, n := range []string{"n2", "n3"} {
		last.ctl("node", "rm", "--force", n)
	}
	for _, m := range slices.Concat(workers, []*member{last}) {
		settled(t, "a change to be made and known", func() (bool, string) {
			_, errs, code := m.try("network", "create", "by-"+m.host.Name())
			return code == 0 || strings.Contains(errs, "network of this name"), errs
		})
	}
	for _, m := range slices.Concat(workers, []*member{last}) {
		if got, want := m.fresh(), []string{network, "by-h1", "by-h4", "by-h5"}; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%s lists %q", m.host.Name(), got)
		}
	}
	talk.end(t, "two of three managers were lost")
	quiet(t, workers, before, "two of three managers were lost")
}

// reborn destroys the last manager, and makes the cluster anew on a host that has never been in it.
func reborn(t *testing.T, old, fresh *member, workers []*member, at map[string]*container) {
	backup := filepath.Join(t.TempDir(), "backup")
	old.ctl("backup", backup)
	was := essence(t, old)
	if st, err := os.Stat(backup); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v", st.Mode(), err)
	}
	workers[0].refuses([]string{"manager"}, "backup", backup+".worker")
	talk, before := keepTalking(t, at["h4"], at["h5"]), tallies(t, workers)
	old.kill()
	if err := os.RemoveAll(old.dir); err != nil {
		t.Fatal(err)
	}

	fresh.start()
	whole, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"cut":      func(b []byte) []byte { return b[:len(b)-1] },
		"empty":    func(b []byte) []byte { return nil },
		"longer":   func(b []byte) []byte { return append(b, 0) },
		"one bit":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"not one":  func(b []byte) []byte { return []byte("what is this?\n") },
		"its head": func(b []byte) []byte { b[0] ^= 1; return b },
	} {
		file := filepath.Join(t.TempDir(), "damaged")
		if err := os.WriteFile(file, damage(slices.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, errs, code := fresh.try("restore", file)
		if code != 1 || strings.Count(errs, "\n") != 1 {
			t.Errorf("a backup that is damaged, %s: %d, %q", name, code, errs)
		}
		t.Logf("%s: %s", name, strings.TrimSpace(errs))
		fresh.refuses([]string{"in no cluster"}, "node", "ls") // and nothing of it is left
	}
	fresh.ctl("restore", backup)
	if now := essence(t, fresh); now != was {
		t.Errorf("it is now\n%s\nand was\n%s", now, was)
	}
	fresh.refuses([]string{"already"}, "init")
	for _, m := range workers {
		settled(t, m.host.Name()+" to find the managers", func() (bool, string) {
			_, errs, code := m.try("network", "create", "found-by-"+m.host.Name())
			return code == 0 || strings.Contains(errs, "network of this name"), errs
		})
	}
	talk.end(t, "the cluster was made anew from a backup")
	quiet(t, workers, before, "the cluster was made anew from a backup")
	if left, err := filepath.Glob(filepath.Join(fresh.dir, "restore.*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
