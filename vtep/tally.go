package vtep

import (
	"maps"
	"time"

	"github.com/overlayd/overlayd/dataplane/forward"
)

// count brings all counters up to date, before somebody looks at them.
func (p *pairs) count() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, e := range p.leave {
		p.countLeft(e, now)
	}
	for _, e := range p.arrive {
		p.countArrived(e, now)
	}
}

// news returns what an entry has counted since it was last asked.
func (p *pairs) news(e *entry, now time.Time) (frames, bytes, lost int) {
	f, b, l := p.table.Count(e.slot)
	frames, bytes, lost = int(f-e.frames), int(b-e.bytes), int(l-e.lost)
	e.frames, e.bytes, e.lost = f, b, l
	if frames > 0 {
		e.used = now
	}
	return frames, bytes, lost
}

func (p *pairs) countLeft(e *entry, now time.Time) {
	frames, bytes, lost := p.news(e, now)
	if frames > 0 {
		p.v.tables.CountLeft(&e.ruling.fate, frames, bytes)
		e.network.fastOut.Add(frames, bytes)
	}
	if c := e.network.fwd.Counters; lost > 0 {
		c.TAPIn.Add(lost, 0)
		c.Drops.Add(forward.SendFailed, lost, p.v.now())
	}
}

func (p *pairs) countArrived(e *entry, now time.Time) {
	frames, bytes, lost := p.news(e, now)
	if frames > 0 {
		p.v.tables.CountArrived(&e.ruling.fate, e.stations, frames, bytes, p.v.now())
		p.v.received.Add(uint64(frames))
		e.network.fastIn.Add(frames, bytes)
	}
	if c := e.network.fwd.Counters; lost > 0 {
		c.UnderlayIn.Add(lost, 0)
		c.Drops.Add(forward.TAPRejected, lost, p.v.now())
	}
}

// forwarded returns how many pairs of n the kernel forwards.
func (p *pairs) forwarded(n *network) (count int) {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := range maps.Values(p.leave) {
		if e.network == n {
			count++
		}
	}
	for e := range maps.Values(p.arrive) {
		if e.network == n {
			count++
		}
	}
	return count
}
