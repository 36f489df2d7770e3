package vtep

import (
	"context"
	"errors"
	"fmt"
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
	workers, err := v.newWorkers()
	defer func() {
		for _, w := range workers {
			err = errors.Join(err, w.set.Close())
		}
	}()
	if err != nil {
		return err
	}
	for _, w := range workers {
		g.Go(w.run)
	}
	g.Go(func() error { v.watch(ctx, changes, workers); return nil })
	g.Go(func() error { v.age(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		for _, w := range workers {
			w.halt()
		}
		return nil
	})
	return g.Wait()
}

// newWorkers makes the workers and deals the descriptors out to them: queue i of every TAP and receiver i of
// every endpoint to worker i.
func (v *VTEP) newWorkers() ([]*worker, error) {
	var workers []*worker
	for i := range v.cfg.Queues {
		w, err := newWorker(v, i)
		if err != nil {
			return workers, err
		}
		workers = append(workers, w)
		for _, n := range v.networks {
			if i < len(n.dev.Queues) {
				if err := w.add(w.newOutlet(n, i)); err != nil {
					return workers, err
				}
			}
		}
		for _, e := range v.endpoints {
			if err := w.add(w.newInlet(e.Receivers[i])); err != nil {
				return workers, err
			}
		}
	}
	return workers, nil
}

// watch follows changes of links, addresses and routes, beginning with those since New.
func (v *VTEP) watch(ctx context.Context, changes <-chan struct{}, workers []*worker) {
	for {
		v.followAddresses(ctx, workers)
		v.readRoutes()
		for _, n := range v.networks {
			if err := v.applyMTU(n); err != nil {
				v.log.Warn("the MTU could not follow the underlay; large frames may be dropped", "network", n.cfg.Name, "error", err)
			}
		}
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

// followAddresses takes new underlay addresses into use, if they are ours to choose and have changed.
func (v *VTEP) followAddresses(ctx context.Context, workers []*worker) {
	opened, closed, err := v.moveEndpoints()
	if err != nil {
		v.log.Warn("this host's addresses changed, and no new underlay address could be taken; staying with the old one", "error", err)
		return
	}
	for _, e := range opened {
		for i, w := range workers {
			w.do(func() error { return w.add(w.newInlet(e.Receivers[i])) })
		}
		v.log.Info("the underlay address has changed", "address", e.Local)
	}
	for _, e := range closed {
		if err := v.retire(ctx, e, workers); err != nil {
			v.log.Warn("closing the sockets of an old underlay address", "address", e.Local, "error", err)
		}
	}
}

// retire closes e once no worker reads from it any more. Nobody sends through it: see moveEndpoints.
func (v *VTEP) retire(ctx context.Context, e *underlay.Endpoint, workers []*worker) error {
	removed := make(chan error, len(workers))
	for i, w := range workers {
		w.do(func() error {
			removed <- w.remove(e.Receivers[i].FD())
			return nil
		})
	}
	var errs []error
	for range workers {
		select {
		case err := <-removed:
			errs = append(errs, err)
		case <-ctx.Done():
			// The workers may have ended before they came to it.
			v.stale = append(v.stale, e)
			return nil
		}
	}
	v.retired.Add(e.Overflow())
	return errors.Join(append(errs, e.Close())...)
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
		for _, n := range v.networks {
			n.fwd.FDB.Expire(now, uint32(ageLimit/time.Second))
		}
	}
}
