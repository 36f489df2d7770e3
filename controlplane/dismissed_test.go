package controlplane

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/api/overlayd/state/v1"
)

// detour is another address of a host's control port, to which Raft can be cut off.
type detour struct {
	ln   net.Listener
	to   string
	work sync.WaitGroup

	mu     sync.Mutex
	cut    bool
	closed bool
	raft   []net.Conn
	all    []net.Conn
}

func newDetour(t *testing.T, at netip.Addr, h *host) *detour {
	t.Helper()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(at, DefaultControlPort).String())
	if err != nil {
		t.Fatal(err)
	}
	d := &detour{ln: ln, to: h.control()}
	d.work.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.work.Go(func() { d.pass(c) })
		}
	})
	t.Cleanup(func() {
		d.ln.Close()
		d.mu.Lock()
		d.closed = true
		for _, c := range d.all {
			c.Close()
		}
		d.mu.Unlock()
		d.work.Wait()
	})
	return d
}

// pass carries one connection on. What it is for stands in its first message (RFC 8446, 4.1.2).
func (d *detour) pass(c net.Conn) {
	defer c.Close()
	hello := make([]byte, 4096)
	n, err := c.Read(hello)
	if err != nil {
		return
	}
	on, err := net.Dial("tcp", d.to)
	if err != nil {
		return
	}
	defer on.Close()
	forRaft := bytes.Contains(hello[:n], []byte(protocolRaft))
	d.mu.Lock()
	refused := d.closed || d.cut && forRaft
	d.all = append(d.all, c, on)
	if forRaft {
		d.raft = append(d.raft, c)
	}
	d.mu.Unlock()
	if refused {
		return
	}
	if _, err := on.Write(hello[:n]); err != nil {
		return
	}
	d.work.Go(func() {
		_, _ = io.Copy(c, on) // until either end is closed
		c.Close()
	})
	_, _ = io.Copy(on, c)
}

// cutRaft ends the connections of Raft, and lets no more through.
func (d *detour) cutRaft() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = true
	for _, c := range d.raft {
		c.Close()
	}
}

// A manager that is dismissed while Raft does not reach it finds that out, works as the worker that it is then, and does not wait
// for what it will not hear when it leaves.
func TestDismissedUnheard(t *testing.T) {
	s := newSite(t)
	a, b := s.host(), s.host()
	tokens := a.init("a")
	b.join("b", tokens.Manager, a)
	a.voters(a, b)
	// Three more are reached by way of detours.
	var hosts [3]*host
	var to [3]*detour
	for i := range hosts {
		h := s.host()
		s.next++
		s.base[3] = s.next
		at := netip.AddrFrom4(s.base)
		hosts[i], to[i] = h, newDetour(t, at, h)
		if _, err := h.Join(h.ctx(), tokens.Manager, []string{a.control()}, Options{Name: string('c' + rune(i)), Addresses: []netip.Addr{at}}); err != nil {
			t.Fatal(err)
		}
	}
	a.voters(append(hosts[:], a, b)...)
	one := a.propose(network("one", 1)).Network
	demote := func(i int) *host {
		to[i].cutRaft()
		a.propose(update(&statev1.UpdateNode{Id: hosts[i].id(), Role: worker}))
		return hosts[i]
	}

	began := time.Now()
	c := demote(0)
	c.until("the seat to be empty", func() error {
		if c.member.Load().seat.Load() != nil {
			poke(c.member.Load().behind) // or else it hears of it by the gossip, which goes no detour, or much later
			return errors.New("it is not")
		}
		return nil
	})
	if took := time.Since(began); took >= dismissTime {
		t.Errorf("the former manager found out after %v that the others go on without it", took)
	}

	d := demote(1)
	if _, err := d.Propose(d.ctx(), endpoint(one.Id, d.id(), "web")); err != nil {
		t.Errorf("an endpoint on the former manager: %v", err)
	}
	if err := d.Fresh(d.ctx()); err != nil {
		t.Errorf("what is new on the former manager: %v", err)
	}
	d.until("the seat to be empty", func() error {
		if m := d.member.Load(); m.seat.Load() != nil || m.creds.Load().Role() != worker {
			return errors.New("it is not")
		}
		return nil
	})
	if _, err := d.Tokens(d.ctx()); !isKind(err, statev1.Error_KIND_REFUSED) {
		t.Errorf("the tokens on the former manager: %v", err)
	}

	to[2].cutRaft()
	began = time.Now()
	if err := hosts[2].Leave(hosts[2].ctx(), false); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took >= dismissTime {
		t.Errorf("it left after %v, when it had waited long enough to hear of its removal", took)
	}
	a.voters(a, b)
}
