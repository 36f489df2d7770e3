package main

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/overlayd/overlayd/vtep"
)

// A tunnel that is closed before, while or after it is taken up ends, and the next one is another.
func TestLateOpensAndCloses(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	l := &late{
		open:       func(vtep.Config) (tunnel, error) { return &fakeTunnel{}, nil },
		hasAddress: func(b netip.Addr) (string, bool) { return "eth0", a == b },
		came:       make(chan struct{}, 1),
	}
	if _, err := l.Open([]netip.Addr{netip.MustParseAddr("192.0.2.9")}); err == nil {
		t.Error("a tunnel at an address that this host does not have")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	for range 500 {
		v, err := l.Open([]netip.Addr{a})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := l.Open([]netip.Addr{a}); err != nil || again != v {
			t.Fatalf("the second Open: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if !v.(*fakeTunnel).closed || l.now() != nil || l.Networks() != nil {
			t.Fatal("it is still there")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What only leads to this host, such as a floating address, is nothing to end a tunnel at; all that the host has is.
func TestLateOpensAtLocalAddresses(t *testing.T) {
	var list []netip.Addr
	for _, s := range []string{"203.0.113.1", "192.0.2.1", "198.51.100.1", "2001:db8::1"} {
		list = append(list, netip.MustParseAddr(s))
	}
	var got vtep.Config
	l := &late{
		open:       func(cfg vtep.Config) (tunnel, error) { got = cfg; return &fakeTunnel{}, nil },
		hasAddress: func(a netip.Addr) (string, bool) { return "eth0", a != list[0] },
		came:       make(chan struct{}, 1),
	}
	if _, err := l.Open(list); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Underlay.Addresses, list[1:]) {
		t.Errorf("it ends at %v, want %v", got.Underlay.Addresses, list[1:])
	}
	at := func() []netip.Addr { return l.now().(*fakeTunnel).at }
	if err := l.Move([]netip.Addr{list[2], list[0], list[3]}); err != nil || !slices.Equal(at(), list[2:]) {
		t.Errorf("moved to %v, %v, want %v", at(), err, list[2:])
	}
	// What the configuration file says stays.
	l.cfg.Underlay.Addresses = list[1:2]
	if err := l.Move(list[3:]); err != nil || !slices.Equal(at(), list[2:]) {
		t.Errorf("moved to %v, %v", at(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Move(list[3:]); err != nil {
		t.Errorf("without a tunnel: %v", err)
	}
}
