package forward

import "sync/atomic"

// Traffic counts wire frames and the bytes of the frames, without their check sequence.
type Traffic struct {
	Frames atomic.Uint64
	Bytes  atomic.Uint64
}

// Add counts frames of bytes together.
func (t *Traffic) Add(frames, bytes int) {
	t.Frames.Add(uint64(frames))
	t.Bytes.Add(uint64(bytes))
}

// Drops counts wire frames by reason.
type Drops struct {
	count [NumReasons]atomic.Uint64
	last  [NumReasons]atomic.Int64
}

// Add counts frames dropped for reason at the time now, in nanoseconds of the caller's clock.
func (d *Drops) Add(reason DropReason, frames int, now int64) {
	d.count[reason].Add(uint64(frames))
	d.last[reason].Store(now)
}

// Get returns the count of reason and the time of its last drop, 0 if there was none.
func (d *Drops) Get(reason DropReason) (count uint64, last int64) {
	return d.count[reason].Load(), d.last[reason].Load()
}

// Sum returns the sum over all reasons.
func (d *Drops) Sum() uint64 {
	var n uint64
	for i := range d.count {
		n += d.count[i].Load()
	}
	return n
}

// Counters are those of one network; see the package comment for what always holds. All methods may be
// called from any goroutine; workers add once a batch, not once a frame, to those that many frames count in.
type Counters struct {
	TAPIn, TAPOut           Traffic
	UnderlayIn, UnderlayOut Traffic
	Created                 atomic.Uint64
	Suppressed              atomic.Uint64
	Drops                   Drops

	// What was done for paths that carry less than their stations believe.
	MSSClamped  atomic.Uint64 // SYNs whose MSS option was lowered
	ICMPSent    atomic.Uint64 // errors that told a station what the path carries
	ICMPLimited atomic.Uint64 // errors that were not sent, for the rate
	Fragmented  atomic.Uint64 // IPv4 packets that were cut into fragments
	Resegmented atomic.Uint64 // TCP superframes that were cut smaller than asked
	Split       atomic.Uint64 // single TCP segments that were cut
}
