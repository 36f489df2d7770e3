package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/overlayd/overlayd/cmd/overlayd/cluster"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/pathmtu"
)

// late is a tunnel that is there from the start, if there are networks stated by hand, or else as long as the node is in
// a cluster: only then it is known at which addresses it is to end. Without one it shows nothing.
type late struct {
	open       func(vtep.Config) (tunnel, error)
	hasAddress func(netip.Addr) (string, bool)
	cfg        vtep.Config

	mu   sync.RWMutex
	cur  tunnel          // nil while there is none
	run  context.Context // ends its Run
	end  func()          // ends run
	done chan struct{}   // closed when its Run has ended
	came chan struct{}   // capacity 1: there is a tunnel to run
}

// newLate opens the tunnel at once if cfg has networks.
func newLate(cfg vtep.Config, sys system, hasAddress func(netip.Addr) (string, bool)) (*late, error) {
	l := &late{open: sys.open, hasAddress: hasAddress, cfg: cfg, came: make(chan struct{}, 1)}
	if len(cfg.Networks) == 0 {
		return l, nil
	}
	return l, l.start(cfg)
}

func (l *late) start(cfg vtep.Config) error {
	t, err := l.open(cfg)
	if err != nil {
		return err
	}
	l.run, l.end = context.WithCancel(context.Background())
	l.cur, l.done = t, make(chan struct{})
	l.came <- struct{}{}
	return nil
}

// Open returns the tunnel, and opens it first if there is none: at those of the addresses that this host has. The others
// only lead to it, as floating ones do.
func (l *late) Open(addresses []netip.Addr) (cluster.VTEP, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur != nil {
		have := l.cur.Status().Addresses
		if !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return slices.Contains(have, a) }) {
			return nil, fmt.Errorf("the networks of the configuration file use the underlay addresses %v, and the cluster knows this node by %v: add one of these to underlay.addresses", have, addresses)
		}
		return l.cur, nil
	}
	cfg := l.cfg
	if len(cfg.Underlay.Addresses) == 0 {
		cfg.Underlay.Addresses = l.own(addresses)
	}
	if len(cfg.Underlay.Addresses) == 0 {
		return nil, fmt.Errorf("none of the addresses %v under which the cluster knows this node is on one of its interfaces: bring one up", addresses)
	}
	if err := l.start(cfg); err != nil {
		return nil, err
	}
	return l.cur, nil
}

// own returns those of the addresses that this host has.
func (l *late) own(addresses []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addresses {
		if _, ok := l.hasAddress(a); ok {
			out = append(out, a)
		}
	}
	return out
}

// Move puts the end of the tunnel at those of the addresses that this host has, unless the configuration file says where it
// is, or has networks whose peers say so.
func (l *late) Move(addresses []netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur == nil || len(l.cfg.Underlay.Addresses)+len(l.cfg.Networks) > 0 {
		return nil
	}
	return l.cur.SetAddresses(l.own(addresses))
}

// Close ends the tunnel, unless it serves networks stated by hand.
func (l *late) Close() error {
	if len(l.cfg.Networks) > 0 {
		return nil
	}
	return l.shut()
}

// shut ends the tunnel.
func (l *late) shut() error {
	l.mu.Lock()
	t, done := l.cur, l.done
	if t == nil {
		l.mu.Unlock()
		return nil
	}
	select {
	case <-l.came: // nobody runs it yet
		close(done)
	default:
	}
	l.end()
	l.mu.Unlock()
	<-done
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur = nil
	return t.Close()
}

// Run forwards while there is a tunnel, until ctx ends or one fails.
func (l *late) Run(ctx context.Context) error {
	for {
		select {
		case <-l.came:
		case <-ctx.Done():
			return nil
		}
		l.mu.Lock()
		t, run, end, done := l.cur, l.run, l.end, l.done
		l.mu.Unlock()
		stop := context.AfterFunc(ctx, end)
		err := t.Run(run)
		ended := run.Err() != nil
		stop()
		end()
		close(done)
		if !ended || err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
}

// now returns the tunnel, or nil.
func (l *late) now() tunnel {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.cur
}

func (l *late) Status() vtep.Status {
	if t := l.now(); t != nil {
		return t.Status()
	}
	return vtep.Status{Port: l.cfg.Underlay.Port}
}

func (l *late) Networks() []vtep.NetworkStatus {
	if t := l.now(); t != nil {
		return t.Networks()
	}
	return nil
}

func (l *late) Peers() []vtep.PeerStatus {
	if t := l.now(); t != nil {
		return t.Peers()
	}
	return nil
}

func (l *late) Paths() []vtep.PathStatus {
	if t := l.now(); t != nil {
		return t.Paths()
	}
	return nil
}

func (l *late) ProbeCounters() pathmtu.Counters {
	if t := l.now(); t != nil {
		return t.ProbeCounters()
	}
	return pathmtu.Counters{}
}

func (l *late) FDB(network string) ([]vtep.FDBEntry, error) {
	if t := l.now(); t != nil {
		return t.FDB(network)
	}
	return nil, vtep.ErrNoNetwork
}

func (l *late) Drops() []vtep.DropCount {
	if t := l.now(); t != nil {
		return t.Drops()
	}
	return nil
}

func (l *late) Samples(after uint64) []vtep.DropSample {
	if t := l.now(); t != nil {
		return t.Samples(after)
	}
	return nil
}
