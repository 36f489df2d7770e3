package cluster

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/consensus"
	"github.com/overlayd/overlayd/dataplane/addr"
)

const limit = 60 * time.Second

func newPlane(t *testing.T) (*controlplane.Node, func()) {
	a := netip.AddrFrom4([4]byte{127, byte(1 + rand.N(250)), byte(rand.N(250)), byte(1 + rand.N(250))})
	cp, err := controlplane.New(controlplane.Config{
		Dir: t.TempDir(), Listen: a, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Timing: consensus.Timing{Heartbeat: 300 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cp.Run(ctx) }()
	stop := func() { cancel(); <-done }
	bounded, end := context.WithTimeout(t.Context(), limit)
	defer end()
	if _, err := cp.Init(bounded, controlplane.Options{Name: "self", Addresses: []netip.Addr{a}}); err != nil {
		stop()
		t.Fatal(err)
	}
	return cp, stop
}

// hold makes the follower one that has an endpoint on a network.
func (w *world) hold(id, network string) {
	w.attached[id] = &attachment{ID: id, Network: network, NetNS: "/proc/self/ns/net", Confirmed: true, VNI: 42}
}

// What an operator fixes of a network's sizes gets to the VTEP.
func TestFixedSizes(t *testing.T) {
	w := newWorld(t)
	w.hold("e0", "n1")
	d := segment("n1", "blue", 42)
	d.Network.Mtu, d.Network.Mss = 1400, 1300
	w.tell(true, node(w.self, "192.0.2.1"), d, end("e0", "n1", w.self, 10))
	if n := w.v.networks["blue"]; n == nil || n.MTU != 1400 || n.MSS != 1300 {
		t.Errorf("the VTEP has %+v", n)
	}
}

// started has this host and two others, and an endpoint on each.
func started(t *testing.T) *world {
	w := newWorld(t)
	w.hold("e0", "n1")
	w.tell(true, node(w.self, "192.0.2.1"), node("h1", "192.0.2.2", "2001:db8::2"), node("h2", "2001:db8::3", "192.0.2.3"), segment("n1", "blue", 42),
		end("e0", "n1", w.self, 10), end("e1", "n1", "h1", 11), end("e2", "n1", "h2", 12))
	w.calls("open ", "add blue 42", "attach blue /proc/self/ns/net [10.42.0.10/24]", "unclaimed blue")
	n := w.v.networks["blue"]
	if got, want := n.peers, []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::3")}; !slices.Equal(got, want) {
		t.Errorf("peers %v, want %v", got, want)
	}
	if len(n.mappings) != 2 || n.mappings[addr.MAC{2, 0, 0, 0, 0, 12}].VTEP != netip.MustParseAddr("2001:db8::3") || !n.Isolate || !n.Sandbox {
		t.Errorf("%+v", n)
	}
	return w
}

// What changes becomes the calls that it takes, and no others, in an order in which nothing is sent astray.
func TestChanges(t *testing.T) {
	w := started(t)
	w.tell(false, end("e3", "n1", "h1", 13))
	w.calls("map blue 02:00:00:00:00:0d [10.42.0.13] 192.0.2.2")
	w.tell(false, end("e3", "n1", "h1", 13)) // confirmed, say
	w.calls()
	w.tell(false, end("e3", "n1", "h2", 13)) // moved
	w.calls("map blue 02:00:00:00:00:0d [10.42.0.13] 2001:db8::3")
	w.tell(false, node("h3", "192.0.2.4"))
	w.calls()
	w.tell(false, end("e4", "n1", "h3", 14))
	w.calls("peers blue [192.0.2.2 192.0.2.4 2001:db8::3]", "map blue 02:00:00:00:00:0e [10.42.0.14] 192.0.2.4")
	w.tell(false, node("h3", "192.0.2.5"))
	w.calls("peers blue [192.0.2.2 192.0.2.4 192.0.2.5 2001:db8::3]", "map blue 02:00:00:00:00:0e [10.42.0.14] 192.0.2.5", "peers blue [192.0.2.2 192.0.2.5 2001:db8::3]")
	w.tell(false, goneEnd("e4"))
	w.calls("unmap blue 02:00:00:00:00:0e", "peers blue [192.0.2.2 2001:db8::3]")
	// An address that passes from one to another.
	w.tell(false, goneEnd("e3"), end("e5", "n1", "h1", 13))
	w.calls("unmap blue 02:00:00:00:00:0d", "map blue 02:00:00:00:00:0d [10.42.0.13] 192.0.2.2")
	// Of a node that shares no address family with this host, nothing is there to be said.
	w.tell(false, node("h4", "2001:db8::9"), end("e6", "n1", "h4", 16))
	w.calls()
	// The own endpoint goes, and with the last one the network.
	w.tell(false, goneEnd("e0"))
	w.calls("detach blue e0", "remove blue")
	w.tell(false, end("e7", "n1", "h1", 17), goneEnd("e5"))
	w.calls()
	if n := w.networks["n1"]; len(n.unsettled) != 0 {
		t.Errorf("%d endpoints of a network that is not here wait", len(n.unsettled))
	}
	if got, err := os.ReadFile(w.file); err != nil || strings.Contains(string(got), "e0") {
		t.Errorf("the file still has it: %s, %v", got, err)
	}
}

// A reset leads from what was to what is, as if it had been told bit by bit.
func TestReset(t *testing.T) {
	w := started(t)
	whole := []*statev1.Delta{node(w.self, "192.0.2.1"), node("h1", "192.0.2.2"), segment("n1", "blue", 42), end("e0", "n1", w.self, 10), end("e1", "n1", "h1", 11)}
	w.tell(true, append(whole, node("h2", "2001:db8::3", "192.0.2.3"), end("e2", "n1", "h2", 12))...)
	w.calls()
	w.tell(true, whole...)
	w.calls("unmap blue 02:00:00:00:00:0c", "peers blue [192.0.2.2]")
	w.tell(true, node(w.self, "192.0.2.1"))
	w.calls("detach blue e0", "remove blue")
	if len(w.networks) != 0 || len(w.attached) != 0 || len(w.at) != 0 {
		t.Errorf("left: %v, %v, %v", w.networks, w.attached, w.at)
	}
}

// What cannot be done is tried again, is a problem that can be seen, and holds nothing else up.
func TestRetry(t *testing.T) {
	w := started(t)
	w.v.fail["unmap"] = errFake
	w.tell(false, goneEnd("e2"), end("e3", "n1", "h1", 12))
	w.calls("unmap blue 02:00:00:00:00:0c")
	if p := w.Problems(); len(p) != 1 || !strings.Contains(p[0], "blue") || !strings.Contains(p[0], errFake.Error()) {
		t.Errorf("problems: %q", p)
	}
	w.v.fail["unmap"] = nil
	w.tidy(t.Context())
	w.calls("unmap blue 02:00:00:00:00:0c", "map blue 02:00:00:00:00:0c [10.42.0.12] 192.0.2.2", "peers blue [192.0.2.2]")
	if p := w.Problems(); len(p) != 0 {
		t.Errorf("problems: %q", p)
	}
	w.tidy(t.Context())
	w.calls()
}

// A host that cannot have a VTEP says so, and does not try it with every update.
func TestNoVTEP(t *testing.T) {
	w := newWorld(t)
	w.v.fail["open"] = errFake
	w.tell(true, node(w.self, "192.0.2.1"))
	for range 5 {
		w.tell(false, node("h1", "192.0.2.2"))
	}
	w.calls("open ")
	if p := w.Problems(); len(p) != 1 || !strings.Contains(p[0], errFake.Error()) {
		t.Errorf("problems: %q", p)
	}
	w.v.fail["open"] = nil
	w.tidy(t.Context())
	w.calls("open ")
	if p := w.Problems(); len(p) != 0 {
		t.Errorf("problems: %q", p)
	}
}

// A network of the cluster that clashes with one of the configuration file is a problem of its own.
func TestConflict(t *testing.T) {
	w := newWorld(t)
	w.v.networks["stated"] = &fakeNetwork{}
	w.v.networks["stated"].VNI = 42
	w.hold("e0", "n1")
	w.hold("e1", "n2")
	w.tell(true, node(w.self, "192.0.2.1"), segment("n1", "blue", 42), segment("n2", "red", 43), end("e0", "n1", w.self, 10), end("e1", "n2", w.self, 11))
	if w.v.networks["red"] == nil || len(w.v.networks["red"].attached) != 1 {
		t.Error("the other network does not work")
	}
	if p := w.Problems(); len(p) != 1 || !strings.Contains(p[0], "network blue: ") || !strings.Contains(p[0], "stated") {
		t.Errorf("problems: %q", p)
	}
	delete(w.v.networks, "stated")
	w.tidy(t.Context())
	if w.v.networks["blue"] == nil || len(w.Problems()) != 0 {
		t.Errorf("after the conflict: %q", w.Problems())
	}
}

// A network that has the name and the VNI of one that went in the same update has them at once.
func TestNameAgain(t *testing.T) {
	w := started(t)
	for i := range 20 {
		old, next := "n"+string(rune('a'+i-1)), "n"+string(rune('a'+i))
		oldEnd, nextEnd := "e"+old, "e"+next
		if i == 0 {
			old, oldEnd = "n1", "e0"
		}
		w.hold(nextEnd, next)
		w.tell(false, goneEnd(oldEnd), goneEnd("e1"), goneEnd("e2"), &statev1.Delta{RemovedNetwork: old}, segment(next, "blue", 42), end(nextEnd, next, w.self, 10))
		if p := w.Problems(); len(p) != 0 {
			t.Fatalf("problems: %q", p)
		}
	}
}

// Another daemon begins with what this one attached, takes on what is there, and removes what nobody knows.
func TestRestart(t *testing.T) {
	w := started(t)
	if err := w.save(); err != nil {
		t.Fatal(err)
	}
	v := newFake()
	v.left["blue"] = []string{"e0", "stranger"}
	f := newFollower(t, w.cp, v, w.file)
	next := &world{Follower: f, t: t, v: v, self: w.self}
	next.take(controlplane.Update{Reset: true}) // nothing is known yet
	if len(f.attached) != 1 {
		t.Fatal("it forgot what is attached before it knew better")
	}
	next.index = w.index
	next.tell(true, node(w.self, "192.0.2.1"), segment("n1", "blue", 42), end("e0", "n1", w.self, 10))
	next.calls("open ", "add blue 42", "attach blue /proc/self/ns/net [10.42.0.10/24]", "unclaimed blue", "detach blue stranger")
	if !slices.Equal(v.orphans, []addr.VNI{42}) {
		t.Errorf("orphans are removed but for %v", v.orphans)
	}
	if !f.attached["e0"].Confirmed {
		t.Error("it forgot that the managers know")
	}
	// A copy that was saved before the last endpoint was attached does not know it, nor its network. Both come with what
	// the managers tell.
	v = newFake()
	old := &world{Follower: newFollower(t, w.cp, v, w.file), t: t, v: v, self: w.self}
	old.attached["e0"].Index = 3
	old.tell(true, node(w.self, "192.0.2.1"))
	old.tidy(t.Context())
	if len(old.attached) != 1 || !slices.Equal(v.orphans, []addr.VNI{42}) {
		t.Errorf("it forgot what is newer than its copy: %v, orphans removed but for %v", old.attached, v.orphans)
	}
	old.calls("open ")
	old.tell(false, segment("n1", "blue", 42))
	old.tell(false, end("e0", "n1", w.self, 10))
	old.calls("add blue 42", "unclaimed blue", "attach blue /proc/self/ns/net [10.42.0.10/24]")
	// If they do not know it either, it is gone.
	v = newFake()
	old = &world{Follower: newFollower(t, w.cp, v, w.file), t: t, v: v, self: w.self, index: 5}
	old.attached["e0"].Index = 8
	old.tell(true, node(w.self, "192.0.2.1"))
	old.tell(false, node("h1", "192.0.2.2"))
	old.tell(false, node("h3", "192.0.2.4"))
	if old.tidy(t.Context()); len(old.attached) != 0 {
		t.Errorf("left: %v", old.attached)
	}
	// What went while no daemon ran is gone with the first thing that is known.
	if err := w.save(); err != nil {
		t.Fatal(err)
	}
	v = newFake()
	gone := &world{Follower: newFollower(t, w.cp, v, w.file), t: t, v: v, self: w.self, index: w.index}
	gone.tell(true, node(w.self, "192.0.2.1"))
	if len(gone.attached) != 0 || len(gone.networks) != 0 {
		t.Errorf("left: %v, %v", gone.attached, gone.networks)
	}
	if err := os.WriteFile(w.file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFollower(w.cp, v, w.file, w.log); err == nil || !strings.Contains(err.Error(), w.file) {
		t.Errorf("a damaged file: %v", err)
	}
	if left, _ := filepath.Glob(w.file + ".*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// From an endpoint that is asked for to one whose namespace is gone, with the managers.
func TestAttach(t *testing.T) {
	cp, v := plane(t), newFake()
	f := newFollower(t, cp, v, filepath.Join(t.TempDir(), "attachments.json"))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- f.Run(run) }()
	defer func() { stop(); <-done }()
	self, _ := cp.Self()
	propose := func(c *statev1.Command) *statev1.Result {
		t.Helper()
		res, err := cp.Propose(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	n := propose(&statev1.Command{Kind: &statev1.Command_CreateNetwork{CreateNetwork: &statev1.CreateNetwork{Name: "blue", Subnets: []string{"10.42.0.0/24"}}}}).Network
	add := func() *statev1.Endpoint {
		return propose(&statev1.Command{Kind: &statev1.Command_AddEndpoint{AddEndpoint: &statev1.AddEndpoint{Network: n.Id, Node: self}}}).Endpoint
	}
	ns := filepath.Join(t.TempDir(), "ns")
	if err := os.Symlink("/proc/self/ns/net", ns); err != nil {
		t.Fatal(err)
	}
	bad := add()
	v.mu.Lock()
	v.fail["attach"] = errFake
	v.mu.Unlock()
	if _, err := f.Attach(ctx, bad, ns, ""); err == nil || !strings.Contains(err.Error(), errFake.Error()) {
		t.Errorf("%v", err)
	}
	if len(f.Attached()) != 0 {
		t.Error("something of what failed is left")
	}
	v.mu.Lock()
	delete(v.fail, "attach")
	v.mu.Unlock()
	good := add()
	got, err := f.Attach(ctx, good, ns, "")
	if err != nil || got.Interface != "eth0" {
		t.Fatalf("%v, %v", got, err)
	}
	if err := f.Confirm(ctx, good.Id); err != nil {
		t.Error(err)
	}
	if list, err := loadAttachments(f.file); err != nil || len(list) != 1 || !list[good.Id].Confirmed || list[good.Id].Interface != "eth0" {
		t.Errorf("the file has %v, %v", list, err)
	}
	if err := os.Remove(ns); err != nil {
		t.Fatal(err)
	}
	f.tidy(ctx)
	if cp.Tables().Endpoint(good.Id) != nil || len(f.Attached()) != 0 {
		t.Error("an endpoint outlives its namespace")
	}
	// Leaving takes all of it away, and who waits for what never comes is not left waiting.
	last := add()
	if err := os.Symlink("/proc/self/ns/net", ns); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Attach(ctx, last, ns, ""); err != nil {
		t.Fatal(err)
	}
	if err := cp.Leave(ctx, true); err != nil {
		t.Fatal(err)
	}
	if err := f.CatchUp(ctx); err != nil {
		t.Error(err)
	}
	if err := f.DetachAll(); err != nil {
		t.Error(err)
	}
	for ctx.Err() == nil {
		v.mu.Lock()
		closed := !v.open && len(v.networks) == 0
		v.mu.Unlock()
		if closed {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("the VTEP outlives the membership")
}

// One change among 100,000 endpoints costs one call, and time for one.
func TestManyEndpoints(t *testing.T) {
	w := started(t)
	deltas := []*statev1.Delta{node(w.self, "192.0.2.1"), node("h1", "192.0.2.2"), node("h2", "192.0.2.3"), segment("n1", "blue", 42), end("e0", "n1", w.self, 10)}
	const many = 100_000
	ends := make([]*statev1.Delta, many)
	for i := range ends {
		d := end("x"+string(rune(i)), "n1", "h1", 0)
		d.Endpoint.Id = "x" + netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()
		d.Endpoint.Mac = []byte{2, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		ends[i] = d
	}
	w.tell(true, append(deltas, ends...)...)
	w.v.took()
	moved := ends[many/2]
	allocs := testing.AllocsPerRun(20, func() {
		e := moved.Endpoint
		e = &statev1.Endpoint{Id: e.Id, Network: e.Network, Mac: e.Mac, Ips: e.Ips, Node: map[string]string{"h1": "h2", "h2": "h1"}[e.Node]}
		moved = &statev1.Delta{Endpoint: e}
		w.tell(false, moved)
	})
	if allocs > 1000 {
		t.Errorf("%v allocations for one change", allocs)
	}
	if n := len(w.v.took()); n > 3*21 {
		t.Errorf("%d calls for 21 moves", n)
	}
}
