package pathmtu

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/dataplane/probe"
	"go.uber.org/goleak"
)

// Two probers that run, and others who use them all the while.
func TestRun(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var probers [2]*Prober
	settled := make(chan Choice, 1000)
	addresses := [2]netip.Addr{addrA, addrB}
	for i := range probers {
		p, err := New(Config{
			Send: func(local, remote netip.Addr, payload []byte) error {
				size := len(payload) + 28
				if size <= 1400 {
					probers[1-i].Receive(remote, local, payload, size)
				}
				return nil
			},
			Route:   func(netip.Addr) (Route, error) { return Route{addresses[i], "eth0", 1500}, nil },
			Traffic: func(netip.Addr) uint64 { return uint64(time.Now().UnixNano()) },
			Changed: func(c Choice) {
				probers[i].Status() // no lock is held while the surroundings are called
				if c.Settled && c.Learned == LearnedProbe {
					settled <- c
				}
			},
			Log: discard,
		})
		if err != nil {
			t.Fatal(err)
		}
		probers[i] = p
	}
	for i, p := range probers {
		running.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		p.SetPeers([]Peer{peerAt(addresses[1-i])})
	}
	for range 4 {
		running.Go(func() {
			for ctx.Err() == nil {
				for i, p := range probers {
					p.RoutesChanged()
					p.SetKeys(probe.Keys{}, addresses[i])
					p.Hint(addresses[1-i], 1300, []byte{8, 0, 0, 0, 0, 0, 1, 0})
					p.SetPeers([]Peer{peerAt(addresses[1-i])})
					p.Status()
					p.Counters()
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for range 2 {
		select {
		case c := <-settled:
			if c.Path != 1400 {
				t.Errorf("settled on %+v", c)
			}
		case <-time.After(30 * time.Second):
			t.Error("not settled after 30 s")
		}
	}
	cancel()
	running.Wait()
}

func TestConfig(t *testing.T) {
	send := func(netip.Addr, netip.Addr, []byte) error { return nil }
	route := func(netip.Addr) (Route, error) { return Route{}, errors.New("none") }
	traffic := func(netip.Addr) uint64 { return 0 }
	changed := func(Choice) {}
	for _, c := range []Config{
		{},
		{Route: route, Traffic: traffic, Changed: changed},
		{Send: send, Traffic: traffic, Changed: changed},
		{Send: send, Route: route, Changed: changed},
		{Send: send, Route: route, Traffic: traffic},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if _, err := New(Config{Send: send, Route: route, Traffic: traffic, Changed: changed}); err != nil {
		t.Error(err)
	}
}
