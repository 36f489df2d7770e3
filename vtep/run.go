package vtep

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/underlay"
)

const (
	// ageLimit is how long a learned MAC is kept without a frame from it, as in IEEE 802.1D, table 7-5.
	ageLimit = 300 * time.Second
	ageEvery = 10 * time.Second
)

// Run forwards until ctx ends, and then returns nil, or until something happens after which it cannot go
// on: a TAP was deleted, say. It is called once.
func (v *VTEP) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	changes, err := link.Watch(ctx, v.log)
	if err != nil {
		return fmt.Errorf("watching the underlay: %w", err)
	}
	defer func() {
		cancel()
		for range changes { // until the goroutine of Watch has ended
		}
	}()
	workers, err := v.startWorkers(g)
	defer func() { err = errors.Join(err, v.endWorkers(workers)) }()
	if err != nil {
		return err
	}
	g.Go(func() error { v.watch(ctx, changes); return nil })
	g.Go(func() error { v.age(ctx); return nil })
	if v.prober != nil {
		g.Go(func() error { return v.prober.Run(ctx) })
		g.Go(func() error { v.followPaths(ctx); return nil })
	}
	if v.pairs != nil {
		g.Go(func() error { v.followPairs(ctx); return nil })
	}
	g.Go(func() error { v.reconcile(ctx); return nil })
	g.Go(func() error { v.announcer(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		for _, w := range workers {
			w.halt()
		}
		return nil
	})
	return g.Wait()
}

// startWorkers makes the workers, deals the descriptors out to them and sets them going: of n workers, queue i of every TAP and
// receiver i of every endpoint go to worker i modulo n. On error it returns those that were made and does not start any.
func (v *VTEP) startWorkers(g *errgroup.Group) ([]*worker, error) {
	v.change.Lock()
	defer v.change.Unlock()
	var workers []*worker
	for i := range v.cfg.Queues {
		w, err := newWorker(v, i)
		if err != nil {
			return workers, err
		}
		workers = append(workers, w)
		for _, n := range v.networks {
			if err := w.serve(n); err != nil {
				return workers, err
			}
		}
		for _, e := range v.endpoints {
			if err := w.listen(e); err != nil {
				return workers, err
			}
		}
	}
	for _, w := range workers {
		g.Go(w.run)
	}
	v.workers = workers
	return workers, nil
}

// endWorkers frees the workers, which have ended.
func (v *VTEP) endWorkers(workers []*worker) error {
	v.change.Lock()
	defer v.change.Unlock()
	v.workers = nil
	var errs []error
	for _, w := range workers {
		errs = append(errs, w.set.Close())
	}
	return errors.Join(errs...)
}

// onWorkers has every worker that runs call f between turns, and waits until all have or have ended. v.change is
// held. Afterwards no worker is in a turn that it began before.
func (v *VTEP) onWorkers(f func(w *worker) error) error {
	results := make([]chan error, len(v.workers))
	for i, w := range v.workers {
		result := make(chan error, 1)
		results[i] = result
		w.do(func() error {
			result <- f(w)
			return nil
		})
	}
	var errs []error
	for i, w := range v.workers {
		select {
		case err := <-results[i]:
			errs = append(errs, err)
		case <-w.done:
		}
	}
	return errors.Join(errs...)
}

// watch follows changes of links, addresses and routes, beginning with those since New.
func (v *VTEP) watch(ctx context.Context, changes <-chan struct{}) {
	for {
		v.follow()
		select {
		case <-ctx.Done():
			return
		case _, ok := <-changes:
			if !ok {
				return
			}
		}
	}
}

func (v *VTEP) follow() {
	v.change.Lock()
	defer v.change.Unlock()
	for name := range v.nodes {
		v.lookForSources(name)
	}
	v.followAddresses()
	v.readRoutes()
	v.followTAPs()
	v.hookUnderlay() // a new device may have the index of an old one
	if v.prober != nil {
		v.prober.RoutesChanged()
	}
}

// followTAPs notes which TAPs of the host are up: what the kernel gave to others by itself would be lost without a word. v.change
// is held.
func (v *VTEP) followTAPs() {
	for _, n := range v.networks {
		if n.sandbox != nil || v.pairs == nil {
			continue
		}
		i, err := net.InterfaceByName(n.cfg.Device)
		if down := err != nil || i.Flags&net.FlagUp == 0; n.down.Swap(down) != down {
			v.pairs.change()
		}
	}
}

// followAddresses takes new underlay addresses into use, if they are ours to choose and have changed. v.change is
// held.
func (v *VTEP) followAddresses() {
	opened, closed, err := v.moveEndpoints()
	if err != nil {
		v.log.Warn("this host's addresses changed, and no new underlay address could be taken; staying with the old one", "error", err)
		return
	}
	for _, e := range opened {
		if err := v.onWorkers(func(w *worker) error { return w.listen(e) }); err != nil {
			v.log.Error("the new underlay address cannot be received from", "address", e.Local, "error", err)
			continue
		}
		v.log.Info("the underlay address has changed", "address", e.Local)
	}
	for _, e := range closed {
		if err := v.retire(e); err != nil {
			v.log.Warn("closing the sockets of an old underlay address", "address", e.Local, "error", err)
		}
	}
}

// retire closes e once no worker reads from it any more. Nobody sends through it: see moveEndpoints.
func (v *VTEP) retire(e *underlay.Endpoint) error {
	err := v.onWorkers(func(w *worker) error { return w.deafen(e) })
	v.retired.Add(e.Overflow())
	return errors.Join(err, e.Close())
}

// age forgets learned addresses.
func (v *VTEP) age(ctx context.Context) {
	t := time.NewTicker(ageEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := uint32(v.now() / 1e9)
		for _, n := range v.all() {
			n.fwd.FDB.Expire(now, uint32(ageLimit/time.Second))
		}
	}
}
