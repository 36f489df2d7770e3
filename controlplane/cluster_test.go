package controlplane

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/consensus"
)

func TestMain(m *testing.M) {
	// memberlist does not wait for a probe that is under way when it shuts down; it ends with its own timeout.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

const (
	worker = statev1.Role_ROLE_WORKER
	boss   = statev1.Role_ROLE_MANAGER
	// limit is how long tests wait for what takes a second or so on a machine with nothing else to do.
	limit = 60 * time.Second
)

// site is a loopback network of its own, on which each host has an address.
type site struct {
	t    *testing.T
	base [4]byte
	next byte
}

// sites are those of this process so far; others of the machine begin elsewhere.
var (
	sites     atomic.Uint32
	firstSite = rand.N(uint32(250 * 250))
)

func newSite(t *testing.T) *site {
	t.Parallel()
	n := (firstSite + sites.Add(1)) % (250 * 250)
	return &site{t: t, base: [4]byte{127, byte(1 + n/250), byte(n % 250), 0}}
}

// host is a Node that runs, or not.
type host struct {
	*Node
	t    *testing.T
	dir  string
	addr netip.Addr
	halt func()
}

// host makes one that runs.
func (s *site) host() *host {
	s.next++
	s.base[3] = s.next
	h := &host{t: s.t, dir: filepath.Join(s.t.TempDir(), "data"), addr: netip.AddrFrom4(s.base)}
	h.open()
	h.run()
	return h
}

// open reads what is on the disk.
func (h *host) open() {
	h.t.Helper()
	n, err := New(Config{
		Dir: h.dir, Listen: h.addr, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Timing: consensus.Timing{Heartbeat: 500 * time.Millisecond, Election: 500 * time.Millisecond},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Node = n
}

func (h *host) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.halt = func() {
		h.halt = func() {}
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	}
	h.t.Cleanup(func() { h.halt() })
}

func (h *host) options(name string) Options {
	return Options{Name: name, Addresses: []netip.Addr{h.addr}}
}

func (h *host) control() string { return netip.AddrPortFrom(h.addr, DefaultControlPort).String() }

func (h *host) id() string { id, _ := h.Self(); return id }

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) init(name string) Tokens {
	h.t.Helper()
	tokens, err := h.Init(h.ctx(), h.options(name))
	if err != nil {
		h.t.Fatal(err)
	}
	return tokens
}

func (h *host) join(name, token string, via ...*host) {
	h.t.Helper()
	var remotes []string
	for _, v := range via {
		remotes = append(remotes, v.control())
	}
	if _, err := h.Join(h.ctx(), token, remotes, h.options(name)); err != nil {
		h.t.Fatal(err)
	}
}

// propose has a command applied, and tries again while there is no leader.
func (h *host) propose(c *statev1.Command) *statev1.Result {
	h.t.Helper()
	var res *statev1.Result
	h.until("a command to be applied", func() (err error) {
		res, err = h.Propose(h.ctx(), c)
		return err
	})
	return res
}

// until waits for a condition.
func (h *host) until(what string, f func() error) {
	h.t.Helper()
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (h *host) voters(want ...*host) {
	h.t.Helper()
	h.until("the voters", func() error {
		s := h.member.Load().seat.Load()
		if s == nil {
			return fmt.Errorf("no manager")
		}
		var got, ids []string
		for _, x := range s.raft.Servers() {
			got = append(got, fmt.Sprint(x.ID, x.Voter))
		}
		for _, w := range want {
			ids = append(ids, fmt.Sprint(w.id(), true))
		}
		slices.Sort(got)
		slices.Sort(ids)
		if !slices.Equal(got, ids) {
			return fmt.Errorf("%v, want %v", got, ids)
		}
		return nil
	})
}

func (h *host) leads() bool {
	m := h.member.Load()
	if m == nil {
		return false
	}
	s := m.seat.Load()
	return s != nil && s.raft.IsLeader()
}

// leaderOf returns which one leads.
func leaderOf(hosts ...*host) *host {
	var found *host
	hosts[0].until("a leader", func() error {
		for _, h := range hosts {
			if h.leads() {
				found = h
				return nil
			}
		}
		return fmt.Errorf("none")
	})
	return found
}

func network(name string, third byte) *statev1.Command {
	return &statev1.Command{Kind: &statev1.Command_CreateNetwork{CreateNetwork: &statev1.CreateNetwork{
		Name: name, Subnets: []string{fmt.Sprintf("10.42.%d.0/24", third)},
	}}}
}

func endpoint(network, node, name string) *statev1.Command {
	return &statev1.Command{Kind: &statev1.Command_AddEndpoint{AddEndpoint: &statev1.AddEndpoint{Network: network, Node: node, Name: name}}}
}

func update(u *statev1.UpdateNode) *statev1.Command {
	return &statev1.Command{Kind: &statev1.Command_UpdateNode{UpdateNode: u}}
}

func remove(id string, force bool) *statev1.Command {
	return &statev1.Command{Kind: &statev1.Command_RemoveNode{RemoveNode: &statev1.RemoveNode{Id: id, Force: force}}}
}

// seen is what a watcher has been told, by ID.
type seen struct {
	w    *Watcher
	have map[string]uint64 // index
	at   uint64
}

func (h *host) follow() *seen {
	s := &seen{w: h.Watch(), have: map[string]uint64{}}
	h.t.Cleanup(s.w.Close)
	return s
}

// until follows until the state is at an index.
func (s *seen) until(ctx context.Context, index uint64) error {
	for s.at < index {
		u, err := s.w.Next(ctx)
		if err != nil {
			return fmt.Errorf("at %d of %d: %w", s.at, index, err)
		}
		if u.Reset {
			clear(s.have)
		}
		s.at = u.Index
		for _, d := range u.Deltas {
			switch {
			case d.Network != nil:
				s.have[d.Network.Id] = d.Network.Index
			case d.Node != nil:
				s.have[d.Node.Id] = d.Node.Index
			case d.Endpoint != nil:
				s.have[d.Endpoint.Id] = d.Endpoint.Index
			default:
				delete(s.have, d.RemovedNetwork+d.RemovedNode+d.RemovedEndpoint)
			}
		}
	}
	return nil
}
