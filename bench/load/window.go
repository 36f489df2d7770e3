package load

import (
	"context"
	"net"
	"time"
)

// metered reports whether the result is that of a window.
func (c TCPConfig) metered() bool { return c.Bytes == 0 && (c.Warmup > 0 || c.OnWindow != nil) }

// sentEnough reports whether a sender may stop. With a meter it is for that to say, so that the flows run at
// full speed until its last look.
func (b *bulk) sentEnough(start time.Time) bool {
	if b.config.metered() {
		return b.enough.Load()
	}
	return time.Since(start) >= b.config.Duration
}

// meter lets the flows warm up and then measures what they move in the time that was asked for. When ctx ends
// it comes back early, and the result is of no use.
func (b *bulk) meter(ctx context.Context) TCPResult {
	if pause(ctx, b.config.Warmup) != nil {
		return TCPResult{}
	}
	// The calls lie outside of what they frame, so that what they do does not slow it down.
	if b.config.OnWindow != nil {
		b.config.OnWindow(true)
	}
	start, before := time.Now(), b.look()
	_ = pause(ctx, b.config.Duration) // its error is that of ctx, which the caller looks at
	elapsed, after := time.Since(start), b.look()
	if b.config.OnWindow != nil {
		b.config.OnWindow(false)
	}
	return TCPResult{
		Forward: after.Forward.since(before.Forward, elapsed),
		Reverse: after.Reverse.since(before.Reverse, elapsed),
	}
}

// look reads the state of the flows while they run.
func (b *bulk) look() TCPResult {
	res := TCPResult{Forward: Transfer{Bytes: b.forward.bytes.Load()}, Reverse: Transfer{Bytes: b.reverse.bytes.Load()}}
	if b.config.Direction != Reverse {
		res.Forward.ask(b.clients)
	}
	if b.config.Direction != Forward {
		res.Reverse.ask(b.servers)
	}
	return res
}

// ask adds what the kernel says about the sending ends.
func (t *Transfer) ask(senders []*net.TCPConn) {
	for _, conn := range senders {
		if retransmits, mss, err := tcpInfo(conn); err == nil {
			t.Retransmits += retransmits
			t.MSS = max(t.MSS, int(mss))
		}
	}
}

// since is what was moved after an earlier look.
func (t Transfer) since(before Transfer, elapsed time.Duration) Transfer {
	t.Bytes -= before.Bytes
	t.Retransmits -= min(t.Retransmits, before.Retransmits)
	if t.Bytes > 0 {
		t.Elapsed = elapsed
	}
	return t
}
