package vtep

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/dataplane/forward"
	"github.com/overlayd/overlayd/dataplane/frame"
	"github.com/overlayd/overlayd/dataplane/gro"
	"github.com/overlayd/overlayd/dataplane/gso"
	"github.com/overlayd/overlayd/vtep/fastpath"
	"github.com/overlayd/overlayd/vtep/poll"
	"github.com/overlayd/overlayd/vtep/tap"
	"github.com/overlayd/overlayd/vtep/underlay"
)

// bulk is from how many bytes read in a round on a worker does not sleep before the next: less than one superframe of a fast
// flow, and more than small frames come to.
const bulk = 16 << 10

// batchSize is how many frames or buffers a worker takes at once.
const batchSize = underlay.MaxSegments

// source is one descriptor that a worker reads: the queue of a TAP, or a receiving socket.
type source interface {
	FD() int
	// turn handles one batch. The descriptor can be read from, or has an error to report.
	turn() error
}

// worker reads its part of all descriptors, one batch of each that is ready in turn, so that none starves
// another, and writes and sends what comes of it. Why both directions share one worker:
// docs/adr/0002-workers-wait-in-epoll.md.
type worker struct {
	v        *VTEP
	index    int
	set      *poll.Set
	sources  map[int]source // by descriptor
	networks map[*forward.Network]*network
	shares   []*share // of the networks that had frames in this round
	frames   []frame.Frame
	buffers  []forward.Received
	sender   *underlay.Sender
	arena    *gso.Arena // for the headers of the batch in hand, and the payload of its trains
	moved    int        // bytes read in this round
	read     int        // and frames, or buffers that several came in
	bulk     int        // from how many bytes on the next round is not slept for
	pace     pace
	done     chan struct{} // closed when run returns

	mu      sync.Mutex
	pending []func() error // to be done by the worker between turns
	stop    bool
}

func newWorker(v *VTEP, index int) (*worker, error) {
	set, err := poll.NewSet(v.cfg.BusyPoll)
	if err != nil {
		return nil, err
	}
	limit := bulk
	if !v.features.on(FeatureBulkPoll) {
		limit = math.MaxInt
	}
	return &worker{
		v: v, index: index, set: set, bulk: limit,
		sources:  map[int]source{},
		networks: map[*forward.Network]*network{},
		frames:   make([]frame.Frame, batchSize),
		buffers:  make([]forward.Received, batchSize),
		sender:   underlay.NewSender(),
		arena:    forward.NewArena(),
		done:     make(chan struct{}),
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
	defer close(w.done)
	preferred := w.prefer()
	for {
		ready, woken, err := w.set.Wait(w.moved >= w.bulk)
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
		if err := w.round(ready); err != nil {
			return err
		}
		if preferred && w.pace.note(w.v.now(), w.read, w.moved) {
			_ = setPatient(w.pace.patient) // it could before, and does not depend on it
		}
	}
}

// prefer gives the worker precedence, if it is to have it, and reports whether it has. The thread is the worker's own then, and
// ends with it.
func (w *worker) prefer() bool {
	if !w.v.features.on(FeaturePrecedence) {
		return false
	}
	runtime.LockOSThread()
	if err := preferThread(); err != nil {
		runtime.UnlockOSThread()
		w.v.features.missing(FeaturePrecedence, err)
		return false
	}
	return true
}

// round gives all that is ready a turn, and then the networks of which fewer queues had frames than of another as many turns as
// that one: what a network gets is not to depend on over how many queues its flows are spread.
func (w *worker) round(ready []int) error {
	w.shares, w.moved, w.read = w.shares[:0], 0, 0
	most := 0
	for _, fd := range ready {
		s := w.sources[fd]
		if s == nil { // what was pending has removed it
			continue
		}
		if err := s.turn(); err != nil {
			return err
		}
		if o, ok := s.(*outlet); ok && w.sources[fd] == s { // and not lost
			most = max(most, w.note(o))
		}
	}
	for _, s := range w.shares {
		if err := s.makeUp(most); err != nil {
			return err
		}
	}
	return nil
}

// note takes o down as one that had frames, and returns how many queues of its network had.
func (w *worker) note(o *outlet) int {
	s := o.share
	if len(s.busy) == 0 {
		w.shares = append(w.shares, s)
	}
	s.busy = append(s.busy, o)
	return len(s.busy)
}

// share is what a worker reads of one network. It belongs to the worker.
type share struct {
	busy []*outlet // those that had frames in this round
}

// makeUp gives the network turns until it has had most in this round, or has no more frames.
func (s *share) makeUp(most int) error {
	for owed := most - len(s.busy); owed > 0 && len(s.busy) > 0; {
		i := owed % len(s.busy)
		if o := s.busy[i]; o.w.sources[o.FD()] != o || !o.waiting() {
			s.busy = slices.Delete(s.busy, i, i+1)
			continue
		}
		if err := s.busy[i].turn(); err != nil {
			return err
		}
		owed--
	}
	s.busy = s.busy[:0]
	return nil
}

// serve begins with n: to write to its TAP, and to read the worker's queues of it, if there are any.
func (w *worker) serve(n *network) error {
	w.networks[n.fwd] = n
	p := n.port.Load()
	if p == nil {
		return nil
	}
	s := new(share)
	for i := w.index; i < len(p.Queues); i += w.v.cfg.Queues {
		if err := w.add(w.newOutlet(n, p, p.Queues[i], s)); err != nil {
			return err
		}
	}
	return nil
}

// listen begins to receive at e.
func (w *worker) listen(e *underlay.Endpoint) error {
	for i := w.index; i < len(e.Receivers); i += w.v.cfg.Queues {
		if err := w.add(w.newInlet(e, i)); err != nil {
			return err
		}
	}
	if w.index == 0 && w.v.pairs != nil {
		for _, s := range e.SourceSockets() {
			if err := w.add(complaints{s}); err != nil {
				return err
			}
		}
	}
	return nil
}

// deafen ends receiving at e.
func (w *worker) deafen(e *underlay.Endpoint) error {
	var errs []error
	if w.index == 0 && w.v.pairs != nil {
		for _, s := range e.SourceSockets() {
			errs = append(errs, w.remove(s.FD()))
		}
	}
	for i := w.index; i < len(e.Receivers); i += w.v.cfg.Queues {
		errs = append(errs, w.remove(e.Receivers[i].FD()))
	}
	return errors.Join(errs...)
}

// leave ends with n. What its TAP still holds is dealt with before: the interface is down, so that it comes to an
// end.
func (w *worker) leave(n *network) error {
	defer delete(w.networks, n.fwd)
	return w.unplug(n)
}

// unplug stops reading the TAP of n, after what it still holds.
func (w *worker) unplug(n *network) error {
	clear(w.shares[:cap(w.shares)]) // which would keep the network in memory
	var errs []error
	for fd, s := range w.sources {
		if o, ok := s.(*outlet); ok && o.n == n {
			o.drain()
			errs = append(errs, w.remove(fd))
		}
	}
	return errors.Join(errs...)
}

// outlet is the egress half: it reads one queue of a TAP and sends to the underlay.
type outlet struct {
	w      *worker
	n      *network
	queue  tap.Queue
	egress *forward.Egress
	hook   uint32 // number of the TAP for package fastpath; 0 = none
	named  nominations[fastpath.LeaveKey]
	share  *share // that of the network
}

func (w *worker) newOutlet(n *network, p *port, q tap.Queue, s *share) *outlet {
	return &outlet{
		w: w, n: n, queue: q, hook: p.outlet, share: s,
		egress: forward.NewEgress(w.v.tables, n.fwd, w.v.samples, forward.Options{
			Port: w.v.cfg.Underlay.Port, Buckets: w.v.buckets(), MaxSegments: underlay.MaxSegments, Arena: w.arena,
		}),
	}
}

func (o *outlet) FD() int { return o.queue.FD() }

func (o *outlet) turn() error {
	_, err := o.batch()
	if err == nil || o.n.sandbox == nil {
		return err
	}
	// Nobody but us has any business in a sandbox. The TAP is made anew, by reconcile.
	o.n.lost.Store(true)
	o.w.v.log.Warn("a TAP is lost and will be made anew", "network", o.n.cfg.Name, "error", err)
	return o.w.remove(o.FD())
}

// waiting reports whether the queue has a frame. Not every queue says so when it is read: see the water backend.
func (o *outlet) waiting() bool {
	ready := [1]unix.PollFd{{Fd: int32(o.FD()), Events: unix.POLLIN}}
	n, err := unix.Poll(ready[:], 0)
	return err == nil && n > 0 && ready[0].Revents&unix.POLLIN != 0
}

// drain handles what the queue holds, as far as nobody goes on filling it.
func (o *outlet) drain() {
	for range 2 * queueLength / batchSize {
		if !o.waiting() {
			return
		}
		if k, err := o.batch(); err != nil || k == 0 {
			return
		}
	}
}

// batch handles one batch of frames and returns how many there were.
func (o *outlet) batch() (int, error) {
	v, e := o.w.v, o.egress
	k, err := o.queue.Read(o.w.frames)
	if err == unix.EAGAIN {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("network %s: reading from TAP %s, which may have been deleted: %w", o.n.cfg.Name, o.n.cfg.Device, err)
	}
	o.w.read += k
	for i := range o.w.frames[:k] {
		o.w.moved += len(o.w.frames[i].Buf)
	}
	v.sendMu.RLock() // what Process knows of the destinations still holds in Send
	e.Whole = v.takesWhole()
	e.Process(o.w.frames[:k], v.now())
	if len(e.Sends) > 0 {
		o.w.sender.Send(e.Sends, e.Pieces, v.dests, e)
	}
	v.sendMu.RUnlock()
	for i := range e.Answers {
		outcome := v.write(o.n, o.w.index, &gro.Item{Pieces: e.Answers[i : i+1]})
		e.ReportAnswer(e.Answers[i], outcome)
	}
	o.left(k)
	return k, nil
}

// inlet is the ingress half: it receives from one socket and writes to the TAPs.
type inlet struct {
	w        *worker
	local    netip.Addr
	receiver *underlay.Receiver
	ingress  *forward.Ingress
	named    nominations[fastpath.ArriveKey]
}

func (w *worker) newInlet(e *underlay.Endpoint, i int) *inlet {
	return &inlet{
		w: w, local: e.Local, receiver: e.Receivers[i],
		ingress: forward.NewIngress(w.v.tables, &w.v.drops, w.v.samples, forward.Options{Port: w.v.cfg.Underlay.Port, Arena: w.arena}),
	}
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
	in.w.read += k
	for i := range in.w.buffers[:k] {
		in.w.moved += len(in.w.buffers[i].Data)
	}
	in.ingress.Process(in.w.buffers[:k], v.now())
	v.received.Add(uint64(in.ingress.Datagrams))
	for _, s := range in.ingress.Moved {
		v.pairs.moved(s) // before it is answered
	}
	for i := range in.ingress.Probes {
		v.receivedProbe(in.local, in.ingress.Probes[i].Remote, in.ingress.Probes[i].Payload)
	}
	for i := range in.ingress.Deliveries {
		d := &in.ingress.Deliveries[i]
		n := in.w.networks[d.Net]
		for j := range d.Items {
			in.ingress.Report(d.Net, &d.Items[j], v.write(n, in.w.index, &d.Items[j]))
		}
	}
	in.arrived(k)
	return nil
}

// complaints hears the ICMP errors for what the kernel has sent by itself from the port of a socket.
type complaints struct{ underlay.Source }

func (c complaints) turn() error {
	c.Hear()
	return nil
}

// write gives item to the TAP of n, to a queue that is always the same for a worker, so that a flow keeps its
// order.
func (v *VTEP) write(n *network, worker int, item *gro.Item) forward.DropReason {
	p := n.port.Load()
	if p == nil {
		return forward.TAPDown
	}
	q := worker % len(p.Queues)
	p.writing[q].Lock()
	err := p.Queues[q].Write(&item.Offload, item.Pieces)
	p.writing[q].Unlock()
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
