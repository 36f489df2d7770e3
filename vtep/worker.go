package vtep

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/vtep/poll"
	"github.com/overlayd/overlayd/vtep/tap"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// batchSize is how many frames or buffers a worker takes at once.
const batchSize = underlay.MaxSegments

// source is one descriptor that a worker reads: the queue of a TAP, or a receiving socket.
type source interface {
	FD() int
	// turn handles one batch. The descriptor can be read from, or has an error to report.
	turn() error
}

// worker reads its share of all descriptors, one batch of each that is ready in turn, so that none starves
// another, and writes and sends what comes of it. Why both directions share one worker:
// docs/adr/0002-workers-wait-in-epoll.md.
type worker struct {
	v       *VTEP
	index   int
	set     *poll.Set
	sources map[int]source // by descriptor
	frames  []frame.Frame
	buffers []forward.Received
	sender  *underlay.Sender

	mu      sync.Mutex
	pending []func() error // to be done by the worker between turns
	stop    bool
}

func newWorker(v *VTEP, index int) (*worker, error) {
	set, err := poll.NewSet()
	if err != nil {
		return nil, err
	}
	return &worker{
		v: v, index: index, set: set,
		sources: map[int]source{},
		frames:  make([]frame.Frame, batchSize),
		buffers: make([]forward.Received, batchSize),
		sender:  underlay.NewSender(),
	}, nil
}

func (w *worker) add(s source) error {
	w.sources[s.FD()] = s
	return w.set.Add(s.FD())
}

func (w *worker) remove(fd int) error {
	delete(w.sources, fd)
	return w.set.Remove(fd)
}

// do has the worker call f between turns.
func (w *worker) do(f func() error) {
	w.mu.Lock()
	w.pending = append(w.pending, f)
	w.mu.Unlock()
	w.set.Wake()
}

// halt makes run return.
func (w *worker) halt() {
	w.mu.Lock()
	w.stop = true
	w.mu.Unlock()
	w.set.Wake()
}

// run works until halt, and then returns nil, or until something happens after which it cannot go on.
func (w *worker) run() error {
	for {
		ready, woken, err := w.set.Wait()
		if err != nil {
			return err
		}
		if woken {
			w.mu.Lock()
			stop, pending := w.stop, w.pending
			w.pending = nil
			w.mu.Unlock()
			for _, f := range pending {
				if err := f(); err != nil {
					return err
				}
			}
			if stop {
				return nil
			}
		}
		for _, fd := range ready {
			// What was pending may have removed it.
			if s := w.sources[fd]; s != nil {
				if err := s.turn(); err != nil {
					return err
				}
			}
		}
	}
}

// outlet is the egress half: it reads one queue of a TAP and sends to the underlay.
type outlet struct {
	w      *worker
	n      *network
	q      int
	queue  tap.Queue
	egress *forward.Egress
}

func (w *worker) newOutlet(n *network, q int) *outlet {
	return &outlet{
		w: w, n: n, q: q, queue: n.dev.Queues[q],
		egress: forward.NewEgress(w.v.tables, n.fwd, w.v.samples, forward.Options{
			Port: w.v.cfg.Underlay.Port, Buckets: w.v.buckets(), MaxSegments: underlay.MaxSegments,
		}),
	}
}

func (o *outlet) FD() int { return o.queue.FD() }

func (o *outlet) turn() error {
	v, e := o.w.v, o.egress
	k, err := o.queue.Read(o.w.frames)
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network %s: reading from TAP %s, which may have been deleted: %w", o.n.cfg.Name, o.n.cfg.Device, err)
	}
	e.Process(o.w.frames[:k], v.now())
	if len(e.Sends) > 0 {
		v.sendMu.RLock()
		o.w.sender.Send(e.Sends, e.Pieces, v.dests, e)
		v.sendMu.RUnlock()
	}
	for i := range e.Answers {
		outcome := v.write(o.n, o.q, &gro.Item{Pieces: e.Answers[i : i+1]})
		e.ReportAnswer(e.Answers[i], outcome)
	}
	return nil
}

// inlet is the ingress half: it receives from one socket and writes to the TAPs.
type inlet struct {
	w        *worker
	receiver *underlay.Receiver
	ingress  *forward.Ingress
	networks map[*forward.Network]*network
}

func (w *worker) newInlet(r *underlay.Receiver) *inlet {
	in := &inlet{
		w: w, receiver: r,
		ingress:  forward.NewIngress(w.v.tables, &w.v.drops, w.v.samples, forward.Options{Port: w.v.cfg.Underlay.Port}),
		networks: make(map[*forward.Network]*network, len(w.v.networks)),
	}
	for _, n := range w.v.networks {
		in.networks[n.fwd] = n
	}
	return in
}

func (in *inlet) FD() int { return in.receiver.FD() }

func (in *inlet) turn() error {
	v := in.w.v
	k, err := in.receiver.Receive(in.w.buffers)
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		// An error that arrived for the socket, such as an ICMP message, is no reason to stop.
		v.log.Debug("receiving from the underlay", "error", err)
		return nil
	}
	in.ingress.Process(in.w.buffers[:k], v.now())
	v.received.Add(uint64(in.ingress.Datagrams))
	for i := range in.ingress.Deliveries {
		d := &in.ingress.Deliveries[i]
		n := in.networks[d.Net]
		for j := range d.Items {
			in.ingress.Report(d.Net, &d.Items[j], v.write(n, in.w.index, &d.Items[j]))
		}
	}
	return nil
}

// write gives item to the TAP of n, to a queue that is always the same for a worker, so that a flow keeps its
// order.
func (v *VTEP) write(n *network, worker int, item *gro.Item) forward.DropReason {
	q := worker % len(n.dev.Queues)
	n.writing[q].Lock()
	err := n.dev.Queues[q].Write(&item.Offload, item.Pieces)
	n.writing[q].Unlock()
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
