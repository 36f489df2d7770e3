package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/peer/v1"
	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
	"github.com/overlayd/overlayd/controlplane/identity"
	"github.com/overlayd/overlayd/controlplane/state"
)

// Who has no valid token does not get in, and learns nothing; no error shows one.
func TestJoinRefused(t *testing.T) {
	s := newSite(t)
	a, other, x := s.host(), s.host(), s.host()
	tokens := a.init("a")
	foreign := other.init("b")
	rotated, err := a.RotateToken(a.ctx(), worker)
	if err != nil {
		t.Fatal(err)
	}
	if rotated.Manager != tokens.Manager || rotated.Worker == tokens.Worker {
		t.Error("not the one token was replaced")
	}
	if again, err := a.Tokens(a.ctx()); err != nil || again != rotated {
		t.Errorf("the tokens are others than those after the rotation: %v", err)
	}
	before := a.Tables().Index()
	for name, token := range map[string]string{
		"rotated": tokens.Worker, "another cluster's": foreign.Worker, "none": "", "cut off": tokens.Worker[:len(tokens.Worker)-1],
	} {
		_, err := x.Join(x.ctx(), token, []string{a.control()}, x.options("x"))
		if err == nil {
			t.Fatalf("%s: it joined", name)
		}
		for _, secret := range strings.Split(token, "-") {
			if len(secret) > 10 && strings.Contains(err.Error(), secret) && name != "another cluster's" {
				t.Errorf("%s: the error shows part of the token: %v", name, err)
			}
		}
		if id, _ := x.Self(); id != "" || a.Tables().Index() != before {
			t.Errorf("%s: it left something behind", name)
		}
	}
	if _, err := x.Join(x.ctx(), rotated.Worker, []string{a.control()}, x.options("a")); !isKind(err, statev1.Error_KIND_EXISTS) {
		t.Errorf("a name that is taken: %v", err)
	}
	if _, err := x.Join(x.ctx(), rotated.Worker, nil, x.options("x")); !isKind(err, statev1.Error_KIND_INVALID) {
		t.Errorf("no remotes: %v", err)
	}
	if _, err := x.Join(x.ctx(), rotated.Worker, []string{a.control()}, Options{Name: "x"}); !isKind(err, statev1.Error_KIND_INVALID) {
		t.Errorf("no address: %v", err)
	}
	if _, err := x.Join(x.ctx(), rotated.Worker, []string{x.control()}, x.options("x")); err == nil || isKind(err, statev1.Error_KIND_INVALID) {
		t.Errorf("a remote that does not answer: %v", err)
	}
	x.join("x", rotated.Worker, a)
}

// A joiner gets the role of its token, whatever it asks for, and cannot pass for a node that is there.
func TestJoinClaims(t *testing.T) {
	s := newSite(t)
	a := s.host()
	tokens := a.init("a")
	parse := func(text string) identity.Token {
		token, err := identity.ParseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := key.CSR()
	if err != nil {
		t.Fatal(err)
	}
	m := a.member.Load()
	join := func(change func(*peerv1.JoinRequest)) (*peerv1.JoinResponse, error) {
		node := &statev1.Node{
			Id: identity.NewID(), Name: "x", Role: boss, Addresses: []string{"192.0.2.7"}, ControlPort: 1, GossipPort: 2, VxlanPort: 3,
			PublicKey: m.creds.Load().PublicKey(), Availability: statev1.Availability_AVAILABILITY_DRAIN,
		}
		req := &peerv1.JoinRequest{TokenSecret: parse(tokens.Worker).Secret, CertificateRequest: csr, Node: node}
		change(req)
		return joinService{m}.Join(t.Context(), req)
	}
	for name, change := range map[string]func(*peerv1.JoinRequest){
		"the ID of a manager":      func(r *peerv1.JoinRequest) { r.Node.Id = a.id() },
		"the address of a manager": func(r *peerv1.JoinRequest) { r.Node.Addresses = []string{a.addr.String()} },
		"no node":                  func(r *peerv1.JoinRequest) { r.Node = nil },
		"no request":               func(r *peerv1.JoinRequest) { r.CertificateRequest = nil },
		"a broken request":         func(r *peerv1.JoinRequest) { r.CertificateRequest = bytes.Repeat([]byte{0x30}, 100) },
		"no token":                 func(r *peerv1.JoinRequest) { r.TokenSecret = "" },
	} {
		if _, err := join(change); err == nil {
			t.Errorf("%s: it joined", name)
		}
	}
	if n := a.Tables().Node(a.id()); n.Role != boss || len(a.Tables().Nodes()) != 1 {
		t.Error("a joiner changed a manager")
	}
	res, err := join(func(*peerv1.JoinRequest) {})
	if err != nil {
		t.Fatal(err)
	}
	if res.Node.Role != worker || bytes.Equal(res.Node.PublicKey, m.creds.Load().PublicKey()) || res.Node.Availability != statev1.Availability_AVAILABILITY_ACTIVE {
		t.Errorf("it got what it asked for: %v", res.Node)
	}
	creds, err := identity.NewCredentials(key, res.Certificate, res.CaCertificate)
	if err != nil || creds.Role() != worker || creds.NodeID() != res.Node.Id {
		t.Errorf("%v: a certificate for %v", err, creds.Role())
	}
}

// A worker may speak for itself, and for nobody else, whichever manager it asks.
func TestWorkerProposals(t *testing.T) {
	s := newSite(t)
	a, w := s.host(), s.host()
	w.join("w", a.init("a").Worker, a)
	blue := w.propose(network("blue", 1)).Network.Id
	web := a.propose(endpoint(blue, a.id(), "web")).Endpoint.Id
	own := w.propose(endpoint(blue, w.id(), "own")).Endpoint.Id
	ask := func(c *statev1.Command, forwarded bool) error {
		c = proto.CloneOf(c)
		if err := complete(c); err != nil {
			t.Fatal(err)
		}
		m := w.member.Load()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		res, err := m.peers.peer(m.managers()[0]).Propose(ctx, &peerv1.ProposeRequest{Command: c, Forwarded: forwarded, Origin: a.id()})
		if err == nil {
			err = refusal(res.Result)
		}
		return err
	}
	before := a.Tables().Index()
	for name, c := range map[string]*statev1.Command{
		"promote itself":          update(&statev1.UpdateNode{Id: w.id(), Role: boss}),
		"demote a manager":        update(&statev1.UpdateNode{Id: a.id(), Role: worker}),
		"change other addresses":  update(&statev1.UpdateNode{Id: a.id(), Addresses: []string{"192.0.2.1"}}),
		"take another's address":  update(&statev1.UpdateNode{Id: w.id(), Addresses: a.Tables().Node(a.id()).Addresses}),
		"rename itself as well":   update(&statev1.UpdateNode{Id: w.id(), Addresses: []string{"192.0.2.1"}, Name: "a2"}),
		"promote itself as well":  update(&statev1.UpdateNode{Id: w.id(), Addresses: []string{"192.0.2.1"}, Role: boss}),
		"add a node":              {Kind: &statev1.Command_AddNode{AddNode: &statev1.AddNode{Node: a.Tables().Node(w.id())}}},
		"remove another node":     remove(a.id(), true),
		"an endpoint elsewhere":   endpoint(blue, a.id(), "x"),
		"another's endpoint":      {Kind: &statev1.Command_RemoveEndpoint{RemoveEndpoint: &statev1.RemoveEndpoint{Id: web}}},
		"confirm another's":       {Kind: &statev1.Command_ConfirmEndpoint{ConfirmEndpoint: &statev1.ConfirmEndpoint{Id: web, Node: a.id()}}},
		"move another's here":     {Kind: &statev1.Command_MoveEndpoint{MoveEndpoint: &statev1.MoveEndpoint{Id: web, Node: w.id()}}},
		"move its own away":       {Kind: &statev1.Command_MoveEndpoint{MoveEndpoint: &statev1.MoveEndpoint{Id: own, Node: a.id()}}},
		"change the tokens":       {Kind: &statev1.Command_SetSecrets{SetSecrets: &statev1.SetSecrets{Secrets: &statev1.Secrets{WorkerToken: identity.NewSecret()}}}},
		"collect leases":          {Kind: &statev1.Command_CollectLeases{CollectLeases: &statev1.CollectLeases{}}},
		"a second cluster":        {Kind: &statev1.Command_Bootstrap{Bootstrap: &statev1.Bootstrap{}}},
		"nothing":                 {},
		"rules that nobody knows": {Version: state.RulesVersion + 1, Kind: network("x", 9).Kind},
		"a clock of its own":      {Time: completed(t).Time, Seed: []byte("short"), Kind: network("x", 9).Kind},
	} {
		if err := ask(c, false); err == nil {
			t.Errorf("a worker may: %s", name)
		}
	}
	if code := connect.CodeOf(ask(network("x", 9), true)); code != connect.CodeAborted {
		t.Errorf("a worker forwards: %v", code)
	}
	if got := a.Tables().Index(); got != before {
		t.Errorf("the state went from %d to %d", before, got)
	}
	if err := a.member.Load().seat.Load().raft.Err(); err != nil {
		t.Fatalf("the managers stopped: %v", err)
	}
	if err := ask(&statev1.Command{Kind: &statev1.Command_RemoveEndpoint{RemoveEndpoint: &statev1.RemoveEndpoint{Id: own}}}, false); err != nil {
		t.Error(err)
	}
	more := append(a.Tables().Node(w.id()).Addresses, "192.0.2.1")
	if err := ask(update(&statev1.UpdateNode{Id: w.id(), Addresses: more}), false); err != nil {
		t.Error(err)
	} else if got := a.Tables().Node(w.id()).Addresses; !slices.Equal(got, more) {
		t.Errorf("the addresses are %v, want %v", got, more)
	}
	if err := ask(remove(w.id(), true), false); err != nil {
		t.Error(err)
	}
	if err := ask(network("late", 3), false); err == nil {
		t.Error("a node that was removed changes the state")
	}
}

func completed(t *testing.T) *statev1.Command {
	c := new(statev1.Command)
	if err := complete(c); err != nil {
		t.Fatal(err)
	}
	return c
}

// A lease lasts as long as was asked for, also if the clock of its node is wrong by days.
func TestLeaseOfAnotherClock(t *testing.T) {
	s := newSite(t)
	a := s.host()
	a.init("a")
	blue := a.propose(network("blue", 1)).Network.Id
	for _, wrong := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		c := endpoint(blue, a.id(), "")
		now := time.Now().Add(wrong)
		c.Time = timestamppb.New(now)
		c.GetAddEndpoint().LeaseEnd = timestamppb.New(now.Add(time.Minute))
		e := a.propose(c).Endpoint
		if left := time.Until(e.LeaseEnd.AsTime()); left < 0 || left > time.Minute {
			t.Errorf("a clock that is wrong by %v: the lease has %v left", wrong, left)
		}
	}
}

// What is signed by no manager of this cluster changes nothing, and is not passed on.
func TestGossipIsNoAuthority(t *testing.T) {
	s := newSite(t)
	a, w := s.host(), s.host()
	w.join("w", a.init("a").Worker, a)
	a.propose(network("blue", 1))
	w.until("the copy", func() error { return w.Fresh(w.ctx()) })
	m, from := w.member.Load(), a.member.Load().creds.Load()
	next := func(change func(*statev1.Batch)) *statev1.Batch {
		at := w.Tables().Index()
		n := w.Tables().NetworkByName("blue")
		n.Mtu, n.Index = n.Mtu+1300, at+5
		b := &statev1.Batch{ClusterId: m.local.ClusterID, Previous: at, Index: at + 5, Deltas: []*statev1.Delta{{Index: at + 5, Network: n}}}
		change(b)
		return b
	}
	same := func(*statev1.Batch) {}
	sign := func(b *statev1.Batch, by *identity.Credentials, name string) []byte {
		data, err := proto.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := by.Sign(data)
		if err != nil {
			t.Fatal(err)
		}
		out, err := proto.Marshal(&statev1.SignedBatch{Batch: data, Signer: name, Signature: signature})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	good := sign(next(same), from, a.id())
	cut := bytes.Clone(good)
	cut[len(cut)-1] ^= 1
	for name, message := range map[string][]byte{
		"signed by a worker":                   sign(next(same), m.creds.Load(), w.id()),
		"by a worker in a manager's name":      sign(next(same), m.creds.Load(), a.id()),
		"by nobody that is known":              sign(next(same), from, identity.NewID()),
		"a signature that is damaged":          cut,
		"garbage":                              []byte("garbage"),
		"nothing":                              nil,
		"another cluster":                      sign(next(func(b *statev1.Batch) { b.ClusterId = identity.NewID() }), from, a.id()),
		"a gap":                                sign(next(func(b *statev1.Batch) { b.Previous++ }), from, a.id()),
		"old":                                  sign(next(func(b *statev1.Batch) { b.Previous, b.Index = 0, 1 }), from, a.id()),
		"another line":                         sign(next(func(b *statev1.Batch) { b.Previous-- }), from, a.id()),
		"deltas of another batch":              sign(next(func(b *statev1.Batch) { b.Deltas[0].Index-- }), from, a.id()),
		"that leads nowhere":                   sign(next(func(b *statev1.Batch) { b.Previous = b.Index }), from, a.id()),
		"of a network that cannot be (no VNI)": sign(next(func(b *statev1.Batch) { b.Deltas[0].Network.Vni = 0 }), from, a.id()),
	} {
		index, sum := w.Tables().Position()
		spread := m.deliver(message)
		if i, s := w.Tables().Position(); i != index || s != sum {
			t.Errorf("%s: the copy changed", name)
		}
		if spread && name != "a gap" && name != "another line" { // of a manager, and news: for others perhaps not a gap
			t.Errorf("%s: it is passed on", name)
		}
	}
	if !m.deliver(good) || w.Tables().NetworkByName("blue").Mtu == 0 {
		t.Error("what a manager signed changed nothing")
	}
	index := w.Tables().Index()
	if m.deliver(good) || w.Tables().Index() != index {
		t.Error("a message that comes again is news")
	}
}

// A manager that was down when others became managers learns so from a copy that is newer than its own log, and then
// lets the new leader in; whom the newest that it knows takes the role from is kept out.
func TestAdmit(t *testing.T) {
	s := newSite(t)
	a, b := s.host(), s.host()
	b.join("b", a.init("a").Worker, a)
	m := a.member.Load()
	id := identity.Identity{ClusterID: m.local.ClusterID, NodeID: b.id(), Role: boss}
	if err := m.admit(id, boss); err == nil {
		t.Error("a worker with the certificate of a manager speaks Raft")
	}
	if err := m.admit(id, statev1.Role_ROLE_UNSPECIFIED); err != nil {
		t.Error(err)
	}
	at := a.Tables().Index()
	n := a.Tables().Node(b.id())
	n.Role, n.Index = boss, at+100
	if err := m.apply(&statev1.Batch{ClusterId: m.local.ClusterID, Previous: at, Index: at + 100, Deltas: []*statev1.Delta{{Index: at + 100, Node: n}}}); err != nil {
		t.Fatal(err)
	}
	if err := m.admit(id, boss); err != nil {
		t.Errorf("a manager that only the copy knows: %v", err)
	}
	id.NodeID = identity.NewID()
	if err := m.admit(id, statev1.Role_ROLE_UNSPECIFIED); err == nil {
		t.Error("a node that was removed is let in")
	}
}

// A backup makes the state what it was, everywhere, and nobody loses the membership by it.
func TestRestoreInPlace(t *testing.T) {
	s := newSite(t)
	a, w := s.host(), s.host()
	tokens := a.init("a")
	kept := a.propose(network("kept", 1)).Network.Id
	var backup bytes.Buffer
	if err := a.Backup(a.ctx(), &backup); err != nil {
		t.Fatal(err)
	}
	w.join("w", tokens.Worker, a) // later than the backup
	lost := w.propose(network("lost", 2)).Network.Id
	other := s.host()
	other.init("o")
	if _, err := other.Restore(other.ctx(), bytes.NewReader(backup.Bytes()), Options{}); !isKind(err, statev1.Error_KIND_REFUSED) {
		t.Errorf("the backup of another cluster: %v", err)
	}
	if _, err := w.Restore(w.ctx(), bytes.NewReader(backup.Bytes()), Options{}); !isKind(err, statev1.Error_KIND_REFUSED) {
		t.Errorf("on a worker: %v", err)
	}
	damaged := bytes.Clone(backup.Bytes())
	damaged[len(damaged)/2] ^= 1
	if _, err := a.Restore(a.ctx(), bytes.NewReader(damaged), Options{}); err == nil || a.Tables().Network(lost) == nil {
		t.Errorf("a damaged backup: %v", err)
	}
	before := a.Tables().Index()
	if _, err := a.Restore(a.ctx(), &backup, Options{}); err != nil {
		t.Fatal(err)
	}
	if a.Tables().Index() <= before {
		t.Error("the index went back: copies that are ahead of it are never told")
	}
	for _, h := range []*host{a, w} {
		if err := h.Fresh(h.ctx()); err != nil {
			t.Fatal(err)
		}
		if h.Tables().Network(lost) != nil || h.Tables().Network(kept) == nil || h.Tables().Node(w.id()) == nil {
			t.Error("it is not the state of the backup, with the nodes of now")
		}
		if n := h.Tables().Node(a.id()); n.Availability != statev1.Availability_AVAILABILITY_ACTIVE {
			t.Error("the leader is drained")
		}
	}
}

// The same host, installed anew, makes the cluster again, as does another one.
func TestRestoreOnFreshNode(t *testing.T) {
	s := newSite(t)
	a, w := s.host(), s.host()
	w.join("w", a.init("a").Worker, a)
	kept := a.propose(network("kept", 1)).Network
	var backup bytes.Buffer
	if err := a.Backup(a.ctx(), &backup); err != nil {
		t.Fatal(err)
	}
	old, cluster := a.Self()
	a.halt()
	a.dir += "-new"
	a.open()
	a.run()
	if _, err := a.Restore(a.ctx(), bytes.NewReader(backup.Bytes()[:backup.Len()-1]), a.options("")); err == nil {
		t.Fatal("half a backup")
	}
	if _, err := a.Restore(a.ctx(), bytes.NewReader(backup.Bytes()), a.options("a")); !isKind(err, statev1.Error_KIND_EXISTS) {
		t.Errorf("a name of the backup: %v", err)
	}
	if _, err := a.Restore(a.ctx(), &backup, a.options("a2")); err != nil {
		t.Fatal(err)
	}
	id, now := a.Self()
	if now != cluster || id == old || a.Tables().Node(old) != nil || a.Tables().Network(kept.Id).GetVni() != kept.Vni {
		t.Error("it is not the cluster of the backup")
	}
	if n := a.Tables().Node(id); n.GetRole() != boss || n.Addresses[0] != a.addr.String() {
		t.Errorf("the manager is %v", n)
	}
	w.until("the worker to find the new manager", func() error { return w.reaches(id) })
	// The next start finds it all.
	a.halt()
	a.open()
	if again, _ := a.Self(); again != id {
		t.Error("it is forgotten")
	}
	a.run()
	a.propose(network("more", 3))
}

func (h *host) reaches(id string) error {
	m := h.member.Load()
	if m == nil {
		return errors.New("it left")
	}
	poke(m.behind) // or else within syncEvery
	for _, x := range m.managers() {
		if x.ID == id {
			return nil
		}
	}
	return fmt.Errorf("it knows %v", m.managers())
}
