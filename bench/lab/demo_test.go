package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/v1"
)

// TestDemo shows three hosts without a cluster, which run the daemon as it is now.
func TestDemo(t *testing.T) {
	root(t)
	sc, o := load3(t), programsOf(t) // built before the time runs
	var out bytes.Buffer
	if err := Demo(within(t), sc, o, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"Ping on blue", "saw them in 6", "50 MB and 50 MB", "UDP on blue", "1450", "Forwarding database", "nothing missing", "All 7 checks passed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("there is colour in what does not go to a terminal")
	}
	nothingLeft(t, &state{Scenario: sc})
}

// TestDemoFails runs the demo on a link that carries nothing.
func TestDemoFails(t *testing.T) {
	root(t)
	sc := kernelScenario(t, func(sc *Scenario) { sc.Hosts[1].Loss = 1e6 })
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	// See the first failure, and do not wait for the others.
	err := Demo(ctx, sc, Options{}, writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), "FAILED") {
			cancel()
		}
		return out.Write(b)
	}))
	if err == nil || !strings.Contains(err.Error(), "interrupted") || !strings.Contains(out.String(), "FAILED") {
		t.Errorf("%v\n%s", err, out.String())
	}
	nothingLeft(t, &state{Scenario: sc})
}

// TestDemoNoReader ends the demo when nobody reads what it says.
func TestDemoNoReader(t *testing.T) {
	root(t)
	sc := kernelScenario(t, func(sc *Scenario) { sc.Networks = nil })
	if err := Demo(within(t), sc, Options{}, writerFunc(func([]byte) (int, error) { return 0, io.ErrClosedPipe })); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	nothingLeft(t, &state{Scenario: sc})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestUnbalanced(t *testing.T) {
	var out bytes.Buffer
	d := &demo{page: newPage(&out)}
	traffic := func(n uint64) *overlaydv1.Traffic { return &overlaydv1.Traffic{Frames: n} }
	h := &Host{Namespace: Namespace{name: "h1"}}
	good := &overlaydv1.Counters{TapIn: traffic(1000), UnderlayIn: traffic(5), FramesCreated: 2, TapOut: traffic(4), UnderlayOut: traffic(1001), FramesDropped: 2}
	bad := &overlaydv1.Counters{TapIn: traffic(10), UnderlayOut: traffic(7)}
	views := []*view{{
		host:     h,
		status:   &overlaydv1.NodeStatus{Features: []*overlaydv1.Feature{{Name: "tap-uso"}}},
		networks: []*overlaydv1.Network{{Name: "blue", Counters: good}, {Name: "red", Counters: bad, TapOverflow: 1}},
		drops:    []*overlaydv1.Drop{{Network: "blue", Reason: "no_peers", Count: 2, Help: "Nobody to send it to."}},
	}}
	d.showCounters(views)
	d.showDrops(views)
	if len(d.failed) != 1 || !strings.Contains(d.failed[0], "3 missing of red on h1") {
		t.Errorf("failed: %q", d.failed)
	}
	for _, want := range []string{"1,000", "FAILED", "no_peers: Nobody", "without tap-uso", "dropped 1 frames of"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

func TestPage(t *testing.T) {
	var out bytes.Buffer
	p := newPage(&out)
	p.table(rows{{"A", " B"}, {"long", "1"}, {"é", "1,234"}})
	if want := "  A         B\n  long      1\n  é     1,234\n"; out.String() != want {
		t.Errorf("got\n%q, want\n%q", out.String(), want)
	}
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("grouped(%d) = %s", n, got)
		}
	}
	if got := wrap("one two  three four", 8); got != "one two\nthree\nfour" {
		t.Errorf("wrap: %q", got)
	}
}
