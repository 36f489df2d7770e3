package compare

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
)

// scenes measures with a plan of workloads that are no part of the program.
func scenes(t *testing.T, o Options, all ...workload) (*report.Report, error) {
	t.Helper()
	p, err := o.plan()
	if err != nil {
		t.Fatal(err)
	}
	p.workloads = all
	a, err := p.bringUp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.closeAll(); err != nil {
			t.Error(err)
		}
	}()
	r := &report.Report{Schema: report.Schema}
	for _, w := range all {
		r.Workloads = append(r.Workloads, w.Workload)
	}
	err = p.measure(t.Context(), a, r)
	r.Summarise()
	return r, err
}

// TestSmallScenes measures with small relatives of the workloads that have labs of their own. It has two rounds for the reason that
// TestWorkloads has.
func TestSmallScenes(t *testing.T) {
	root(t)
	o := Options{Contenders: []string{overlaydName}, Rounds: 2, Duration: 200 * time.Millisecond, Overlayd: binary}
	r, err := scenes(t, o, peers("peers-3", 3), table("table-2k", 2000, 10_000))
	if err != nil {
		t.Fatal(err)
	}
	checkAll(t, r, o.Rounds)
	d := r.Contenders[1].Daemon
	if d == nil || d.PeakBytes["peers-3"] == 0 || d.PeakBytes["table-2k"] == 0 {
		t.Errorf("the daemons are noted as %+v", d)
	}
}

// TestSceneEnds looks at whether a scene is taken down when its measurement fails.
func TestSceneEnds(t *testing.T) {
	root(t)
	var seen *stand
	w := peers("peers-2", 2)
	w.run = func(_ context.Context, s *stand, _ timing) ([]float64, error) {
		seen = s
		return nil, errors.New("it is as it is")
	}
	r, err := scenes(t, Options{Contenders: []string{kernelName}, Rounds: 1, Duration: 100 * time.Millisecond}, w)
	if err != nil || len(r.Failures) != 1 || r.Failures[0].Error != "it is as it is" {
		t.Errorf("%v, %+v", err, r.Failures)
	}
	if _, err := os.Stat(seen.lab.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab of the scene is still there: %v", err)
	}
}

// TestCongestionControl looks at what both ends of every kind of path begin their connections with.
func TestCongestionControl(t *testing.T) {
	root(t)
	w := peers("peers-2", 2)
	checked := 0
	look := func(_ context.Context, s *stand, _ timing) ([]float64, error) {
		ends := []load.Namespace{s.path.from, s.path.to}
		for _, h := range s.lab.Hosts()[2:] {
			ends = append(ends, h)
		}
		for _, n := range ends {
			if err := n.Do(func() error {
				if got := readWord(congestionPath); got != "reno" {
					t.Errorf("%s begins with %q", s.name, got)
				}
				checked++
				return nil
			}); err != nil {
				return nil, err
			}
		}
		return []float64{1, 1, 1}, nil
	}
	w.run = look
	inside := workload{Workload: report.Workload{Name: "look", Metrics: bulkMetrics()}, run: look}
	for contender, ends := range map[string]int{kernelName: 3 + 2, kernelContainers: 2} {
		o := Options{Contenders: []string{contender}, Rounds: 1, Duration: 100 * time.Millisecond, Congestion: "reno"}
		checked = 0
		r, err := scenes(t, o, w, inside)
		if err != nil || len(r.Failures) != 0 {
			t.Fatalf("%s: %v, %+v", contender, err, r.Failures)
		}
		if got := r.Environment.Settings["net.ipv4.tcp_congestion_control"]; got != "reno" || checked != ends {
			t.Errorf("%s: %q is recorded, and %d ends were looked at", contender, got, checked)
		}
	}
}

// TestCabins looks at how the containers of kernel-containers are attached.
func TestCabins(t *testing.T) {
	root(t)
	cs, err := chooseContenders([]string{kernelContainers})
	if err != nil {
		t.Fatal(err)
	}
	s, err := new(plan).raise(t.Context(), cs[0], cs[0].scenario())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	for i, c := range s.cabins {
		h := s.lab.Hosts()[i]
		if got := devices(t, h); strings.Contains(got, "vxlan") || strings.Contains(got, "bridge") {
			t.Errorf("%s has %s", h.Name(), got)
		}
		if got := devices(t, c.sandbox); got != "lo:device:65536 br0:bridge:1450 veth0:veth:1450 vxlan0:vxlan:1450" {
			t.Errorf("the sandbox on %s has %s", h.Name(), got)
		}
		if got := devices(t, c.container); got != "lo:device:65536 eth0:veth:1450" {
			t.Errorf("the container on %s has %s", h.Name(), got)
		}
		if !listens(t, h) || listens(t, c.sandbox) {
			t.Errorf("%s: the socket of the vxlan device is not on the host", h.Name())
		}
	}
	if s.path.from != load.Namespace(s.cabins[0].container) || s.path.to != load.Namespace(s.cabins[1].container) {
		t.Error("the traffic is not between the containers")
	}
}

// devices are those of a namespace: name, type and MTU, the loopback first, the others in alphabetical order.
func devices(t *testing.T, ns load.Namespace) string {
	t.Helper()
	var out []string
	err := ns.Do(func() error {
		all, err := netlink.LinkList()
		for errors.Is(err, netlink.ErrDumpInterrupted) { // something came or went meanwhile
			all, err = netlink.LinkList()
		}
		for _, l := range all {
			out = append(out, l.Attrs().Name+":"+l.Type()+":"+strconv.Itoa(l.Attrs().MTU))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out[1:])
	return strings.Join(out, " ")
}

// listens reports whether the port of VXLAN is open in a namespace.
func listens(t *testing.T, ns load.Namespace) bool {
	t.Helper()
	var text []byte
	if err := ns.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/udp")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), ":12B5 ") // 4789
}
