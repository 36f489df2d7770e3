package vtep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
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
	Op     string
	Config *Config
	Name   string
	After  uint64
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

// descriptors counts what this process has open of the kinds that a VTEP opens.
func descriptors() (string, error) {
	fds, err := os.ReadDir("/proc/self/fd")
	kinds := map[string]int{}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil {
			continue // that of the folder itself
		}
		for _, kind := range []string{"socket:", "/dev/net/tun", "anon_inode:[eventfd]", "anon_inode:[eventpoll]"} {
			if strings.HasPrefix(to, kind) {
				kinds[kind]++
			}
		}
	}
	return fmt.Sprint(kinds), err
}

// host is a child as the test sees it.
type host struct {
	t    *testing.T
	in   *json.Encoder
	out  *json.Decoder
	kill func()
}

// startHost starts a child in the namespace that the test is in.
func startHost(t *testing.T) *host {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hostVariable+"=1",
		"GORACE=atexit_sleep_ms=0") // the race detector would keep each child for a second
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil && !t.Failed() {
			t.Errorf("the child: %v", err)
		}
	})
	return &host{t: t, in: json.NewEncoder(in), out: json.NewDecoder(out), kill: func() { cmd.Process.Kill() }}
}

// ask has the child do something and returns what came of it.
func (h *host) ask(q request) response {
	h.t.Helper()
	var a response
	late := time.AfterFunc(patience, h.kill)
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
