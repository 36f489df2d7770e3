package vtep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/dataplane/addr"
	"github.com/overlayd/overlayd/dataplane/fdb"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/link/linktest"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

// A VTEP that runs has goroutines on several threads, and each asks netlink in the network namespace of the
// thread that it happens to be on. So a VTEP under test is a process of its own, as in life: this test binary,
// started by a thread that is in the namespace, which then is that of all threads of the child. The child does
// what it is told on its standard input, one JSON value a request.

// hostVariable makes this binary such a child.
const hostVariable = "OVERLAYD_VTEP_TEST_HOST"

func TestMain(m *testing.M) {
	if os.Getenv(hostVariable) != "" {
		serveHost(os.Stdin, os.Stdout)
		return
	}
	goleak.VerifyTestMain(m)
}

// request says what the child is to do.
type request struct {
	Op      string
	Config  *Config
	Name    string // of a network
	After   uint64
	Network *Network
	Peers   []netip.Addr
	Mapping *addr.Mapping
	Attach  *Attachment
	ID      string
	VNIs    []addr.VNI
	Node    *Node
	Keys    [][]byte
}

// response is what came of it; what is filled in depends on the request.
type response struct {
	Err      string
	Kind     string // of the error
	Field    string
	Status   Status
	Networks []NetworkStatus
	FDB      []FDBEntry
	Peers    []PeerStatus
	Drops    []DropCount
	Samples  []DropSample
	Text     string
	Attached []Attached
	IDs      []string
	VNIs     []addr.VNI
	Number   int
	Paths    []PathStatus
	Probes   pathmtu.Counters
}

// served is the VTEP of a child.
type served struct {
	v      *VTEP
	log    strings.Builder
	logMu  sync.Mutex
	cancel context.CancelFunc
	done   chan error
}

func (s *served) Write(b []byte) (int, error) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.log.Write(b)
}

// serveHost is the child.
func serveHost(in io.Reader, out io.Writer) {
	s := new(served)
	requests, responses := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q request
		if requests.Decode(&q) != nil {
			return // the test is over
		}
		var a response
		if err := s.do(&q, &a); err != nil {
			a.Err = err.Error()
			var config *ConfigError
			var host *HostError
			switch {
			case errors.As(err, &config):
				a.Kind, a.Field = "config", config.Field
			case errors.As(err, &host):
				a.Kind, a.Field = "host", host.Field
			case errors.Is(err, ErrNoNetwork):
				a.Kind = "no network"
			}
			if errors.Is(err, link.ErrNoNamespace) {
				a.Kind = "no namespace"
			}
		}
		if responses.Encode(&a) != nil {
			return
		}
	}
}

func (s *served) do(q *request, a *response) (err error) {
	switch q.Op {
	case "new":
		q.Config.Log = slog.New(slog.NewTextHandler(s, nil))
		s.v, err = New(*q.Config)
	case "run":
		var ctx context.Context
		ctx, s.cancel = context.WithCancel(context.Background())
		s.done = make(chan error, 1)
		go func() { s.done <- s.v.Run(ctx) }()
	case "wait":
		// The context goes on, so that what Run leaves behind is seen.
		err = <-s.done
	case "stop":
		s.cancel()
		err = <-s.done
	case "close":
		err = s.v.Close()
	case "status":
		a.Status = s.v.Status()
	case "networks":
		a.Networks = s.v.Networks()
	case "fdb":
		a.FDB, err = s.v.FDB(q.Name)
	case "peers":
		a.Peers = s.v.Peers()
	case "drops":
		a.Drops = s.v.Drops()
	case "samples":
		a.Samples = s.v.Samples(q.After)
	case "add":
		err = s.v.AddNetwork(*q.Network)
	case "remove":
		err = s.v.RemoveNetwork(q.Name)
	case "set addresses":
		err = s.v.SetAddresses(q.Peers)
	case "set peers":
		err = s.v.SetPeers(q.Name, q.Peers)
	case "map":
		err = s.v.SetMapping(q.Name, *q.Mapping)
	case "unmap":
		err = s.v.RemoveMapping(q.Name, q.Mapping.MAC)
	case "attach":
		a.Attached = make([]Attached, 1)
		a.Attached[0], err = s.v.Attach(q.Name, *q.Attach)
	case "detach":
		err = s.v.Detach(q.Name, q.ID)
	case "attachments":
		a.Attached = s.v.Attachments(q.Name)
	case "unclaimed":
		a.IDs, err = s.v.Unclaimed(q.Name)
	case "orphans":
		a.VNIs, err = s.v.Orphans()
	case "remove orphans":
		a.VNIs, err = s.v.RemoveOrphans(q.VNIs)
	case "paths":
		a.Paths, a.Probes = s.v.Paths(), s.v.ProbeCounters()
	case "set node":
		err = s.v.SetNode(*q.Node)
	case "remove node":
		s.v.RemoveNode(q.Node.Address)
	case "set keys":
		err = s.v.SetProbeKeys(q.Keys, q.Node.Address)
	case "reconcile":
		a.Number, err = s.v.Reconcile()
	case "next look":
		a.Number, err = s.timeOf(q, func(n *network) int64 { return n.attention.due.UnixMilli() })
	case "hook wait":
		a.Number, err = s.timeOf(q, func(n *network) int64 { return n.port.Load().again.wait.Milliseconds() })
	case "spoil":
		err = s.spoil(q)
	case "churn":
		err = s.churn(q)
	case "count goroutines":
		a.Number = runtime.NumGoroutine()
	case "log":
		s.logMu.Lock()
		a.Text = s.log.String()
		s.logMu.Unlock()
	case "goroutines":
		err = goleak.Find(goleak.IgnoreTopFunction("github.com/overlayd/overlayd/vtep.serveHost"))
	case "descriptors":
		a.Text, err = descriptors()
	default:
		err = fmt.Errorf("unknown request %q", q.Op)
	}
	return err
}

// spoil does to the tables what nobody should be able to.
func (s *served) spoil(q *request) error {
	n, err := s.v.named(q.Name)
	if err != nil {
		return err
	}
	for _, ip := range q.Mapping.IPs {
		n.fwd.Neighbors.Delete(ip)
	}
	n.fwd.FDB.Delete(q.Mapping.MAC)
	if q.ID == "stray" {
		n.fwd.FDB.SetStatic(addr.MAC{2, 0xba}, fdb.Local)
		n.fwd.Neighbors.Set(netip.MustParseAddr("10.42.0.99"), addr.MAC{2, 0xba})
	}
	return nil
}

// timeOf returns a time, in milliseconds, that a network keeps to: when its sandbox will be looked into though nothing changes
// there, or how long it waits until it tries again to attach programs.
func (s *served) timeOf(q *request, what func(n *network) int64) (int, error) {
	n, err := s.v.named(q.Name)
	if err != nil {
		return 0, err
	}
	s.v.change.Lock()
	defer s.v.change.Unlock()
	return int(what(n)), nil
}

// churn changes everything about networks of its own from several goroutines at once.
func (s *served) churn(q *request) error {
	errs := make(chan error)
	const workers, rounds = 3, 3
	for w := range workers {
		go func() {
			errs <- s.churnOne(w, rounds, q.Peers)
		}()
	}
	var all []error
	for range workers {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

func (s *served) churnOne(w, rounds int, peers []netip.Addr) error {
	for i := range rounds {
		name := fmt.Sprintf("churn%d", w)
		n := Network{Name: name, VNI: addr.VNI(5000 + w), Sandbox: true, Isolate: true, Peers: peers}
		mac := addr.MAC{2, 0xcc, byte(w), byte(i)}
		m := addr.Mapping{MAC: mac, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 50, byte(w), byte(i)})}, VTEP: peers[0]}
		blue := m
		blue.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(1 + w), byte(i)})}
		err := errors.Join(s.v.AddNetwork(n), s.v.SetMapping(name, m), s.v.SetMapping("blue", blue), s.v.SetPeers(name, nil), s.v.SetPeers(name, peers))
		s.v.Networks()
		s.v.Status()
		s.v.Peers()
		s.v.Drops()
		_, err2 := s.v.FDB("blue")
		_, err3 := s.v.Reconcile()
		if err := errors.Join(err, err2, err3, s.v.RemoveMapping(name, mac), s.v.RemoveMapping("blue", mac), s.v.RemoveNetwork(name)); err != nil {
			return err
		}
	}
	return nil
}

// descriptors counts what this process has open of the kinds that a VTEP opens.
func descriptors() (string, error) {
	fds, err := os.ReadDir("/proc/self/fd")
	kinds := map[string]int{}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil {
			continue // that of the folder itself
		}
		for _, kind := range []string{"socket:", "/dev/net/tun", "net:", "/run/netns", "anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:bpf"} {
			if strings.HasPrefix(to, kind) {
				kinds[kind]++
			}
		}
	}
	return fmt.Sprint(kinds), err
}

// descriptors is what the child usually has open: for a moment it may have more, such as to ask the kernel something.
func (h *host) descriptors() string {
	seen := map[string]int{}
	usual := ""
	for range 20 {
		text := h.tell("descriptors").Text
		if seen[text]++; seen[text] > seen[usual] {
			usual = text
		}
		time.Sleep(2 * time.Millisecond) // so that a moment is not all that is looked at
	}
	return usual
}

// host is a child as the test sees it.
type host struct {
	t      *testing.T
	in     *json.Encoder
	out    *json.Decoder
	kill   func() // as kill -9 does
	killed *atomic.Bool
	signal func(os.Signal) error
}

// startHost starts a child in the namespace that the test is in.
func startHost(t *testing.T) *host {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hostVariable+"=1",
		"GORACE=atexit_sleep_ms=0") // the race detector would keep each child for a second
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	linktest.Must(t, err)
	out, err := cmd.StdoutPipe()
	linktest.Must(t, err)
	killed := new(atomic.Bool)
	linktest.Must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil && !t.Failed() && !killed.Load() {
			t.Errorf("the child: %v", err)
		}
	})
	return &host{t: t, in: json.NewEncoder(in), out: json.NewDecoder(out), kill: func() { killed.Store(true); cmd.Process.Kill() }, killed: killed, signal: cmd.Process.Signal}
}

// ask has the child do something and returns what came of it.
func (h *host) ask(q request) response {
	h.t.Helper()
	var a response
	late := time.AfterFunc(linktest.Patience, h.kill)
	defer late.Stop()
	if err := errors.Join(h.in.Encode(q), h.out.Decode(&a)); err != nil {
		h.t.Fatalf("%s: the child ended or was too slow: %v", q.Op, err)
	}
	return a
}

// tell is ask for what must not fail.
func (h *host) tell(op string) response {
	h.t.Helper()
	a := h.ask(request{Op: op})
	if a.Err != "" {
		h.t.Fatalf("%s: %s", op, a.Err)
	}
	return a
}

// must is ask for what must not fail.
func (h *host) must(q request) response {
	h.t.Helper()
	a := h.ask(q)
	if a.Err != "" {
		h.t.Fatalf("%s: %s", q.Op, a.Err)
	}
	return a
}

// start makes a VTEP and runs it.
func (h *host) start(c Config) {
	h.t.Helper()
	if a := h.ask(request{Op: "new", Config: &c}); a.Err != "" {
		h.t.Fatalf("New: %s", a.Err)
	}
	h.tell("run")
}

// startAt starts a child with a VTEP in one of the namespaces.
func (p *pair) startAt(t *testing.T, i int, c Config) *host {
	t.Helper()
	p.enter(t, i)
	h := startHost(t)
	h.start(c)
	return h
}

// network returns the status of the only network.
func (h *host) network() NetworkStatus {
	h.t.Helper()
	all := h.tell("networks").Networks
	if len(all) != 1 {
		h.t.Fatalf("%d networks", len(all))
	}
	return all[0]
}
