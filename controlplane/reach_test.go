package controlplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/state"
)

// behind returns how a host appears whose preferred address nobody here can use, such as one of a network inside of which
// this one has no part.
func (h *host) behind(name string) Options {
	last := h.addr.As4()[3]
	return Options{Name: name, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, last}), h.addr}}
}

// A cluster works whose nodes are reached at their second addresses alone: by joining, by Raft, by the API and by gossip, after
// a restart as well.
func TestSecondAddresses(t *testing.T) {
	s := newSite(t)
	a, b, c := s.host(), s.host(), s.host()
	tokens, err := a.Init(a.ctx(), a.behind("a"))
	if err != nil {
		t.Fatal(err)
	}
	for h, token := range map[*host]string{b: tokens.Manager, c: tokens.Worker} {
		if _, err := h.Join(h.ctx(), token, []string{a.control()}, h.behind(fmt.Sprintf("h%d", h.addr.As4()[3]))); err != nil {
			t.Fatal(err)
		}
	}
	a.voters(a, b)
	all := []*host{a, b, c}
	alive := func(h *host) error {
		for _, other := range all {
			if m := h.Alive(); other != h && !m[other.id()] {
				return fmt.Errorf("it hears nothing from %v: %v", other.addr, m)
			}
		}
		return nil
	}
	for _, h := range all {
		h.until("the gossip to reach everybody", func() error { return alive(h) })
	}
	// Longer than it takes to be taken for dead.
	for end := time.Now().Add(13 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, h := range all {
			if err := alive(h); err != nil {
				t.Fatalf("%v: %v", h.addr, err)
			}
		}
	}
	n := c.propose(network("blue", 1)).Network
	for _, h := range all {
		h.until("a change to arrive", func() error {
			if h.Tables().Network(n.Id) == nil {
				return errors.New("it has not")
			}
			return nil
		})
	}
	c.halt()
	b.halt()
	b.open()
	c.open()
	b.run()
	c.run()
	a.voters(a, b)
	for _, h := range []*host{b, c} {
		h.until("a restarted node to be fresh", func() error { return h.Fresh(h.ctx()) })
		h.until("the gossip to reach everybody again", func() error { return alive(h) })
	}
}

// All addresses of a control port are found by each of them: of nodes that are known, and before any is of the managers that
// were named by joining.
func TestReachedAt(t *testing.T) {
	s := newSite(t)
	a := s.host()
	if _, err := a.Init(a.ctx(), a.behind("a")); err != nil {
		t.Fatal(err)
	}
	m := a.member.Load()
	want := []string{netip.AddrPortFrom(a.behind("").Addresses[0], DefaultControlPort).String(), a.control()}
	for _, at := range want {
		if got := m.reachedAt(at); !slices.Equal(got, want) {
			t.Errorf("%s is reached at %q, want %q", at, got, want)
		}
	}
	if got := m.reachedAt("192.0.2.9:7789"); !slices.Equal(got, []string{"192.0.2.9:7789"}) {
		t.Errorf("one that nobody knows is reached at %q", got)
	}
	fresh := &member{node: &Node{replica: a.replica}, local: &local{Managers: []manager{{"x", "192.0.2.9:7789"}, {"y", "192.0.2.8:7789"}, {"x", "203.0.113.9:7789"}}}}
	if got := strings.Join(fresh.reachedAt("203.0.113.9:7789"), " "); got != "192.0.2.9:7789 203.0.113.9:7789" {
		t.Errorf("a manager that was named by joining is reached at %s", got)
	}
	gossips := []netip.AddrPort{netip.AddrPortFrom(a.behind("").Addresses[0], DefaultGossipPort), netip.AddrPortFrom(a.addr, DefaultGossipPort)}
	for _, to := range gossips {
		if got := m.gossipsAt("", to); !slices.Equal(got, gossips) {
			t.Errorf("the gossip of %v is at %v", to, got)
		}
	}
	if got := m.gossipsAt(a.id(), netip.AddrPort{}); !slices.Equal(got, gossips) {
		t.Errorf("by its ID the gossip is at %v", got)
	}
	if got := m.gossipsAt("0000000000000000", gossips[0]); got != nil {
		t.Errorf("that of somebody else is at %v", got)
	}
}

// A host with addresses of both families listens for the gossip in both.
func TestGossipBind(t *testing.T) {
	for list, want := range map[string]string{
		"192.0.2.1":             "0.0.0.0:7790",
		"192.0.2.1 2001:db8::1": "[::]:7790 0.0.0.0:7790",
		"2001:db8::1":           "[::]:7790 0.0.0.0:7790",
	} {
		m := &member{node: &Node{replica: state.NewReplica()}, local: &local{GossipPort: 7790}}
		for _, s := range strings.Fields(list) {
			m.local.Addresses = append(m.local.Addresses, netip.MustParseAddr(s))
		}
		var got []string
		for _, a := range m.gossipBind() {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", list, got, want)
		}
	}
	m := &member{node: &Node{cfg: Config{Listen: netip.MustParseAddr("192.0.2.7")}}, local: &local{GossipPort: 7790}}
	if got := m.gossipBind(); len(got) != 1 || got[0].String() != "192.0.2.7:7790" {
		t.Errorf("with an address stated: %v", got)
	}
}
