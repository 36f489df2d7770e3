package vtep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/vtep/link"
	"github.com/overlayd/overlayd/vtep/underlay"
)

const (
	// ageLimit is how long a learned MAC is kept without a frame from it, as in IEEE 802.1D, table 7-5.
	ageLimit = 300 * time.Second
	ageEvery = 10 * time.Second
	// batchSize is how many frames or buffers a worker takes at once.
	batchSize = underlay.MaxSegments
)

// datagrams counts UDP datagrams.
type datagrams = atomic.Uint64

// Run forwards until ctx ends, and then returns nil, or until something happens after which it cannot go
// on: a TAP was deleted, say. It is called once.
func (v *VTEP) Run(ctx context.Context) error {
	changes, err := link.Watch(ctx, v.log)
	if err != nil {
		return fmt.Errorf("watching the underlay: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range v.networks {
		for q := range n.dev.Queues {
			g.Go(func() error { return v.egress(ctx, n, q) })
		}
	}
	receivers := v.newReceivers(ctx, g)
	for _, e := range v.endpoints {
		receivers.start(e)
	}
	g.Go(func() error { v.watch(ctx, changes, receivers); return nil })
	g.Go(func() error { v.age(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		for _, n := range v.networks {
			n.dev.Interrupt()
		}
		receivers.stop()
		return nil
	})
	return g.Wait()
}

// egress is the worker of queue q of n.
func (v *VTEP) egress(ctx context.Context, n *network, q int) error {
	e := forward.NewEgress(v.tables, n.fwd, v.samples, forward.Options{
		Port: v.cfg.Underlay.Port, Buckets: v.buckets(), MaxSegments: underlay.MaxSegments,
	})
	queue, sender := n.dev.Queues[q], underlay.NewSender()
	batch := make([]frame.Frame, batchSize)
	for {
		k, err := queue.Read(batch)
		if err != nil {
			if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("network %s: reading from TAP %s, which may have been deleted: %w", n.cfg.Name, n.cfg.Device, err)
		}
		e.Process(batch[:k], v.now())
		if len(e.Sends) > 0 {
			sent := 0
			for i := range e.Sends {
				sent += e.Sends[i].Frames
			}
			v.traffic.out.Add(uint64(sent))
			v.sendMu.RLock()
			sender.Send(e.Sends, e.Pieces, v.dests, e)
			v.sendMu.RUnlock()
		}
		for _, a := range e.Answers {
			item := gro.Item{Pieces: [][]byte{a}}
			n.writing[q].Lock()
			err := queue.Write(&item.Offload, item.Pieces)
			n.writing[q].Unlock()
			e.ReportAnswer(a, v.writeOutcome(n, err))
		}
	}
}

// ingress is the worker of one receiving socket. worker chooses the queue that it writes to, so that a flow
// stays on one queue.
func (v *VTEP) ingress(stopped func() bool, r *underlay.Receiver, worker int) error {
	in := forward.NewIngress(v.tables, &v.drops, v.samples, forward.Options{Port: v.cfg.Underlay.Port, Buckets: 1, MaxSegments: 1})
	byNet := make(map[*forward.Network]*network, len(v.networks))
	for _, n := range v.networks {
		byNet[n.fwd] = n
	}
	batch := make([]forward.Received, batchSize)
	for {
		k, err := r.Receive(batch)
		if err != nil {
			if stopped() && errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			var errno unix.Errno
			if errors.As(err, &errno) {
				// An error that arrived for the socket, such as an ICMP message, is no reason to stop.
				v.log.Debug("receiving from the underlay", "error", err)
				continue
			}
			return fmt.Errorf("receiving from the underlay: %w", err)
		}
		in.Process(batch[:k], v.now())
		v.traffic.in.Add(uint64(in.Datagrams))
		for i := range in.Deliveries {
			d := &in.Deliveries[i]
			n := byNet[d.Net]
			q := worker % len(n.dev.Queues)
			n.writing[q].Lock()
			for j := range d.Items {
				item := &d.Items[j]
				err := n.dev.Queues[q].Write(&item.Offload, item.Pieces)
				in.Report(d.Net, item, v.writeOutcome(n, err))
			}
			n.writing[q].Unlock()
		}
	}
}

// writeOutcome names the reason for an error of a write to the TAP of n.
func (v *VTEP) writeOutcome(n *network, err error) forward.DropReason {
	switch {
	case err == nil:
		return forward.NotDropped
	case errors.Is(err, unix.EIO):
		return forward.TAPDown
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN):
		return forward.TAPFull
	}
	n.refused.Do(func() {
		v.log.Warn("the kernel refused a frame at the TAP; further ones are only counted, as tap_rejected",
			"network", n.cfg.Name, "device", n.cfg.Device, "error", err)
	})
	return forward.TAPRejected
}

// receivers owns the ingress workers, whose sockets may be replaced while the others go on.
type receivers struct {
	v   *VTEP
	ctx context.Context
	g   *errgroup.Group

	mu      sync.Mutex
	running map[*underlay.Endpoint]*ingressGroup
}

// ingressGroup is the workers of one endpoint.
type ingressGroup struct {
	stopping atomic.Bool
	wg       sync.WaitGroup
}

func (v *VTEP) newReceivers(ctx context.Context, g *errgroup.Group) *receivers {
	return &receivers{v: v, ctx: ctx, g: g, running: map[*underlay.Endpoint]*ingressGroup{}}
}

func (r *receivers) start(e *underlay.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ig := new(ingressGroup)
	r.running[e] = ig
	stopped := func() bool { return r.ctx.Err() != nil || ig.stopping.Load() }
	for i, s := range e.Receivers {
		ig.wg.Add(1)
		r.g.Go(func() error {
			defer ig.wg.Done()
			return r.v.ingress(stopped, s, i)
		})
	}
	if r.ctx.Err() != nil {
		e.Interrupt()
	}
}

// retire ends the workers of e and closes it.
func (r *receivers) retire(e *underlay.Endpoint) error {
	r.mu.Lock()
	ig := r.running[e]
	delete(r.running, e)
	r.mu.Unlock()
	ig.stopping.Store(true)
	e.Interrupt()
	ig.wg.Wait()
	r.v.retired.Add(e.Overflow())
	return e.Close()
}

// stop wakes all workers; the context has ended.
func (r *receivers) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for e := range r.running {
		e.Interrupt()
	}
}

// watch follows changes of links, addresses and routes.
func (v *VTEP) watch(ctx context.Context, changes <-chan struct{}, r *receivers) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-changes:
			if !ok {
				return
			}
		}
		opened, closed, err := v.moveEndpoints()
		if err != nil {
			v.log.Warn("this host's addresses changed, and no new underlay address could be taken; staying with the old one", "error", err)
		}
		for _, e := range opened {
			r.start(e)
			v.log.Info("the underlay address has changed", "address", e.Local)
		}
		for _, e := range closed {
			if err := r.retire(e); err != nil {
				v.log.Warn("closing the sockets of an old underlay address", "address", e.Local, "error", err)
			}
		}
		v.readRoutes()
		for _, n := range v.networks {
			if err := v.applyMTU(n); err != nil {
				v.log.Warn("the MTU could not follow the underlay; large frames may be dropped", "network", n.cfg.Name, "error", err)
			}
		}
	}
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
