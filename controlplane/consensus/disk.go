package consensus

import (
	"context"
	"sync"
	"time"
)

// diskWatch judges the disk by how long writes take.
type diskWatch struct {
	limit, window time.Duration
	began         chan struct{} // capacity 1: a write began since the last look

	mu        sync.Mutex
	slowSince time.Time // begin of the first of the slow writes that no fast one followed; zero = the last one was fast
	last      time.Time // end of the last write
}

// wrote takes note of a write.
func (d *diskWatch) wrote(begin, end time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = end
	switch {
	case end.Sub(begin) < d.limit:
		d.slowSince = time.Time{}
	case d.slowSince.IsZero():
		d.slowSince = begin
	}
}

// judge returns whether the disk is too slow, and whether it hangs, given since when a write is under way and none
// has ended (zero = none is under way).
func (d *diskWatch) judge(started, now time.Time) (slow, hangs bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	since := d.slowSince
	if !started.IsZero() && now.Sub(started) >= d.limit && (since.IsZero() || started.Before(since)) {
		since = started
	}
	hangs = !started.IsZero() && now.Sub(started) >= d.window
	if since.IsZero() {
		return false, hangs
	}
	if started.IsZero() && now.Sub(d.last) > d.window {
		return false, hangs // nothing was written for long: the slow writes say nothing about now
	}
	return now.Sub(since) >= d.window, hangs
}

// calm returns whether nothing can come of what is known until the next write begins.
func (d *diskWatch) calm(started, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return started.IsZero() && (d.slowSince.IsZero() || now.Sub(d.last) > d.window)
}

// underWay returns since when a write is under way and none has ended, or zero.
func (s *store) underWay() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing == 0 {
		return time.Time{}
	}
	return s.started
}

// watchDisk hands leadership over while the disk is slow, and silences this node while it hangs: then the main loop of
// Raft is stuck in a write, but its heartbeats would go on and keep the others from electing another leader. It looks while
// something is written, and for as long as the disk is not known to be well again.
func (s *session) watchDisk(ctx context.Context) {
	var again <-chan time.Time
	log := s.r.cfg.Log
	for {
		began := s.store.watch.began
		if again != nil {
			began = nil // it is looked at anyway
		}
		select {
		case <-began:
			again = time.After(max(s.r.cfg.Disk.Window/20, time.Millisecond))
			continue
		case <-again:
		case <-ctx.Done():
			return
		}
		started, now := s.store.underWay(), time.Now()
		slow, hangs := s.store.watch.judge(started, now)
		if again = nil; !s.store.watch.calm(started, now) {
			again = time.After(max(s.r.cfg.Disk.Window/20, time.Millisecond))
		}
		if s.trans.muted.Swap(hangs) != hangs {
			if hangs {
				log.Error("a write to the disk does not end: this manager is silent until it does, so that the others can go on", "file", s.store.path, "after", s.r.cfg.Disk.Window)
			} else {
				log.Info("the disk goes on", "file", s.store.path)
			}
		}
		if !slow || hangs || !s.isLeader() || !s.hasOtherVoters() {
			continue
		}
		log.Warn("writes to the disk take too long for a leader: handing leadership over", "file", s.store.path, "limit", s.r.cfg.Disk.Limit, "for", s.r.cfg.Disk.Window)
		bounded, cancel := context.WithTimeout(ctx, 2*s.r.cfg.Timing.Election)
		if err := s.transfer(bounded); err != nil {
			log.Warn("cannot hand leadership over", "error", err)
		}
		cancel()
	}
}
