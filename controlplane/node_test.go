package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// Whatever a node proposes, all nodes have; and they go on when the leader goes, also those that were away meanwhile.
func TestCluster(t *testing.T) {
	s := newSite(t)
	a, b, c, d := s.host(), s.host(), s.host(), s.host()
	all := []*host{a, b, c, d}
	tokens := a.init("a")
	watch := d.follow() // goes on over joining
	b.join("b", tokens.Manager, a)
	c.join("c", tokens.Manager, b)
	d.join("d", tokens.Worker, c, a)
	a.voters(a, b, c)
	var blue string
	for i, h := range all {
		n := h.propose(network(fmt.Sprintf("net%d", i), byte(i))).Network
		if h.Tables().Network(n.Id) == nil {
			t.Errorf("%d: what was proposed does not show in the proposer's copy", i)
		}
		blue = n.Id
		// What was acknowledged anywhere is in every copy that is fresh.
		for j, other := range all {
			if err := other.Fresh(other.ctx()); err != nil {
				t.Fatal(err)
			}
			if other.Tables().Network(n.Id) == nil {
				t.Errorf("%d proposed, and %d is fresh without it", i, j)
			}
		}
	}
	if _, err := d.Tokens(d.ctx()); !isKind(err, statev1.Error_KIND_REFUSED) {
		t.Errorf("a worker has tokens: %v", err)
	}
	if _, err := d.RotateToken(d.ctx(), worker); !isKind(err, statev1.Error_KIND_REFUSED) {
		t.Errorf("a worker rotates tokens: %v", err)
	}

	old := leaderOf(a, b, c)
	oldID := old.id()
	old.halt()
	old.open()
	if old.id() != oldID || old.Tables().Network(blue) == nil {
		t.Error("a node that has not run yet does not show what it knew")
	}
	web := d.propose(endpoint(blue, d.id(), "web")).Endpoint
	if leaderOf(all[:3]...) == old {
		t.Error("a node leads that does not run")
	}
	old.run()
	old.until("a restarted manager to catch up", func() error { return old.Fresh(old.ctx()) })
	if old.Tables().Endpoint(web.Id) == nil {
		t.Error("a restarted manager is fresh without what happened meanwhile")
	}
	index := d.Tables().Index()
	if err := watch.until(d.ctx(), index); err != nil {
		t.Fatal(err)
	}
	if n := len(watch.have); n != 4+4+1 || watch.have[web.Id] == 0 {
		t.Errorf("the watcher has %d things: %v", n, watch.have)
	}
	for _, h := range all {
		h.until("the copies to be the same", func() error {
			if got, want := h.member.Load().digest(), d.member.Load().digest(); got.Sum != want.Sum {
				return fmt.Errorf("%x, want %x", got, want)
			}
			return nil
		})
	}

	// Without a majority a listing does not wait long, and all that was known still is.
	a.halt()
	b.halt()
	began := time.Now()
	ctx := d.ctx()
	if err := d.Fresh(ctx); err == nil {
		t.Error("fresh without a majority")
	}
	if ctx.Err() != nil || time.Since(began) > limit/2 {
		t.Error("it took as long as it was allowed to")
	}
	if d.Tables().Endpoint(web.Id) == nil {
		t.Error("what was known is not any more")
	}
}

func isKind(err error, k statev1.Error_Kind) bool {
	r, ok := errors.AsType[Refusal](err)
	return ok && r.Kind == k
}

// Managers that are demoted, leave or are removed take no majority with them, not even as one of two.
func TestManagersComeAndGo(t *testing.T) {
	s := newSite(t)
	a, b := s.host(), s.host()
	tokens := a.init("a")
	b.join("b", tokens.Worker, a)
	role := func(h *host, r statev1.Role) { a.propose(update(&statev1.UpdateNode{Id: h.id(), Role: r})) }
	role(b, boss)
	a.voters(a, b)
	if _, err := b.Tokens(b.ctx()); err != nil {
		t.Errorf("a promoted manager: %v", err)
	}
	counted, end := context.WithTimeout(b.ctx(), 5*dismissAsk) // it asks the other one meanwhile
	defer end()
	if b.member.Load().dismissed(counted); counted.Err() == nil {
		t.Error("a manager on which Raft counts takes itself for dismissed")
	}
	role(b, worker)
	b.until("the seat to be empty", func() error {
		if m := b.member.Load(); m.seat.Load() != nil || m.creds.Load().Role() != worker {
			return errors.New("it is not")
		}
		return nil
	})
	a.voters(a)
	if _, err := a.Propose(a.ctx(), network("one", 1)); err != nil {
		t.Fatalf("the one that stays: %v", err)
	}
	role(b, boss)
	b.voters(a, b)

	leader, other := a, b
	if b.leads() {
		leader, other = b, a
	}
	gone := leader.id()
	watch := leader.follow()
	if err := leader.Leave(leader.ctx(), false); err != nil {
		t.Fatal(err)
	}
	if id, cluster := leader.Self(); id != "" || cluster != "" || leader.Tables().Index() != 0 {
		t.Error("what left is still a member")
	}
	if u, err := watch.w.Next(leader.ctx()); err != nil || !u.Reset || len(u.Deltas) != 0 {
		t.Errorf("the watcher of what left: %v, %v", u, err)
	}
	other.voters(other)
	other.propose(network("two", 2))
	if other.Tables().Node(gone) != nil {
		t.Error("what left is still listed")
	}
	if err := other.Leave(other.ctx(), false); !isKind(err, statev1.Error_KIND_REFUSED) {
		t.Errorf("the last manager leaves: %v", err)
	}

	// At once: nothing of the old membership may hit the new one.
	fresh, err := other.Tokens(other.ctx())
	if err != nil {
		t.Fatal(err)
	}
	leader.join("again", fresh.Worker, other)
	other.propose(remove(leader.id(), true))
	leader.until("a removed node to forget", func() error {
		if id, _ := leader.Self(); id != "" {
			return errors.New("it is a member")
		}
		return nil
	})
	if l, err := loadLocal(leader.cfg.localFile()); l != nil || err != nil {
		t.Errorf("%v, %v is left on the disk", l, err)
	}
}

// By force, a manager that is lost is taken out, but not one that the others need.
func TestForceLeavesAMajority(t *testing.T) {
	s := newSite(t)
	a, b, c := s.host(), s.host(), s.host()
	tokens := a.init("a")
	b.join("b", tokens.Manager, a)
	c.join("c", tokens.Manager, a)
	a.voters(a, b, c)
	lost := c.id()
	c.halt()
	lead, other := leaderOf(a, b), a
	if lead == a {
		other = b
	}
	if _, err := lead.Propose(lead.ctx(), remove(other.id(), true)); !isKind(err, statev1.Error_KIND_REFUSED) {
		t.Errorf("a manager that is needed: %v", err)
	}
	lead.voters(a, b, &host{Node: c.Node})
	lead.propose(remove(lost, true))
	lead.voters(a, b)
	lead.propose(remove(other.id(), true))
	lead.voters(lead)
}

// What a crash left behind of an Init that was never acknowledged is no membership, and not in the way of the next one.
func TestInitAfterCrash(t *testing.T) {
	s := newSite(t)
	h := s.host()
	// What says that there is a membership comes when there is a cluster, and not before.
	early := make(chan bool, 1)
	go func() {
		for range time.Tick(time.Millisecond) {
			if _, err := os.Stat(h.cfg.localFile()); err == nil {
				early <- h.Tables().Index() == 0
				return
			}
		}
	}()
	h.init("a")
	if <-early {
		t.Error("a crash would have left a member of no cluster")
	}
	h.halt()
	// As if it had stopped before node.json was written.
	if err := os.Remove(h.cfg.localFile()); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.run()
	if id, _ := h.Self(); id != "" {
		t.Error("a member of a cluster that nobody was told of")
	}
	if _, err := h.Init(h.ctx(), h.options("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Init(h.ctx(), h.options("c")); !errors.Is(err, ErrMember) {
		t.Errorf("the second cluster: %v", err)
	}
}

// An Init that fails leaves no goroutine, no file and no membership.
func TestInitFails(t *testing.T) {
	s := newSite(t)
	h := s.host()
	for range 2 {
		began := time.Now()
		_, err := h.Init(h.ctx(), Options{Name: "no name", Addresses: h.options("").Addresses})
		if !isKind(err, statev1.Error_KIND_INVALID) {
			t.Fatal(err)
		}
		if time.Since(began) > firstLeader {
			t.Error("what is refused was tried again and again")
		}
		if id, _ := h.Self(); id != "" {
			t.Error("it is a member")
		}
	}
	h.init("a")
}

func TestNextKeys(t *testing.T) {
	k1, k2, k3 := newGossipKey(), newGossipKey(), newGossipKey()
	type keys = [][]byte
	for name, x := range map[string]struct {
		keys, before keys
		age          time.Duration
		want         keys // nil = none is due
	}{
		"young":              {keys{k1}, nil, keyAge - 1, nil},
		"new, too early":     {keys{k1, k2}, keys{k1}, keyStep - 1, nil},
		"new":                {keys{k1, k2}, keys{k1}, keyStep, keys{k2, k1}},
		"old":                {keys{k2, k1}, keys{k1, k2}, keyStep, keys{k2}},
		"of another leader":  {keys{k1, k2}, nil, keyStep, keys{k1}},
		"of an earlier life": {keys{k3, k1}, keys{k1}, keyStep, keys{k3}},
	} {
		if got := nextKeys(x.keys, x.before, x.age); fmt.Sprint(got) != fmt.Sprint(x.want) {
			t.Errorf("%s: %x, want %x", name, got, x.want)
		}
	}
	got := nextKeys(keys{k1}, nil, keyAge)
	if len(got) != 2 || string(got[0]) != string(k1) || string(got[1]) == string(k1) || len(got[1]) != secretLen {
		t.Errorf("a new key: %x", got)
	}
}
