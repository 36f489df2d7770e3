package load

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// chunk is how much TCP writes and reads at a time.
const chunk = 256 << 10

// stampEvery is the distance at which verified data carry their position, so that no two parts are alike.
const stampEvery = 4 << 10

// Direction of a transfer, as seen from the side that connects.
type Direction uint8

// The directions; Both is at the same time, on the same connections.
const (
	Forward Direction = iota // From sends
	Reverse                  // To sends
	Both
)

// TCPConfig says what to move.
type TCPConfig struct {
	From, To  Namespace
	Address   netip.Addr // of To
	Others    []Receiver // further hosts that as many connections go to
	Direction Direction
	Flows     int             // connections to each host; 0 = 1
	Bytes     int64           // for each flow and direction; 0 = as many as Duration allows
	Duration  time.Duration   // of sending, when Bytes is 0; 0 = 1 s
	Warmup    time.Duration   // of sending before Duration, outside of the result; only when Bytes is 0
	OnWindow  func(open bool) // if set, called when what is measured begins and when it ends; only when Bytes is 0
	Verify    bool            // send data that never repeat and compare SHA-256 of what was sent and received
	Stall     time.Duration   // give up when no byte arrives for so long; 0 = 10 s
}

// Receiver is a host that is connected to.
type Receiver struct {
	To      Namespace
	Address netip.Addr // of To
}

// Transfer is what one direction moved, over all flows. With Warmup or OnWindow it is what was moved between
// two looks at the running flows, Duration apart.
type Transfer struct {
	Bytes       int64         // received
	Elapsed     time.Duration // from the start of sending to the last byte
	Retransmits uint64        // segments that the senders sent again
	MSS         int           // largest segment that a sender used, without options
}

// BitsPerSecond is the goodput.
func (t Transfer) BitsPerSecond() float64 {
	if t.Elapsed <= 0 {
		return 0
	}
	return float64(t.Bytes) * 8 / t.Elapsed.Seconds()
}

// TCPResult holds a zero Transfer for a direction that was not asked for.
type TCPResult struct {
	Forward, Reverse Transfer
}

// ErrMismatch says that what was received is not what was sent.
var ErrMismatch = errors.New("the received data are not those that were sent")

// ErrStalled says that a transfer stood still.
var ErrStalled = errors.New("no byte arrived any more")

// TCP opens the connections, moves the data and closes them. On an error the result holds what had arrived.
func TCP(ctx context.Context, c TCPConfig) (TCPResult, error) {
	c.Flows, c.Stall = defaulted(c.Flows, 1), defaulted(c.Stall, 10*time.Second)
	c.Duration = defaulted(c.Duration, time.Second)
	b := &bulk{config: c}
	ctx, b.cancel = context.WithCancelCause(ctx)
	defer b.cancel(nil)
	if err := b.connect(ctx); err != nil {
		b.close()
		return TCPResult{}, fmt.Errorf("TCP to %v: %w", c.Address, err)
	}
	defer b.close()
	metered := c.metered()

	// Deadlines in the past end every read and write at once.
	stop := context.AfterFunc(ctx, func() {
		for _, conn := range b.all() {
			_ = conn.SetDeadline(time.Unix(1, 0)) // fails only on a closed one
		}
	})
	defer stop()

	start := time.Now()
	var pumps sync.WaitGroup
	for i := range b.clients {
		if c.Direction != Reverse {
			b.pump(&pumps, start, b.clients[i], b.servers[i], &b.forward, uint64(2*i))
		}
		if c.Direction != Forward {
			b.pump(&pumps, start, b.servers[i], b.clients[i], &b.reverse, uint64(2*i+1))
		}
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		b.watch(ctx)
	}()
	var window TCPResult
	if metered {
		window = b.meter(ctx)
		b.enough.Store(true)
	}
	pumps.Wait()
	b.done.Store(true)
	res := TCPResult{Forward: b.forward.transfer(), Reverse: b.reverse.transfer()}
	err := context.Cause(ctx)
	if metered && err == nil {
		res = window
	}
	b.cancel(nil)
	<-watched
	if err != nil {
		return res, fmt.Errorf("TCP to %v, after %d and %d bytes: %w", c.Address, res.Forward.Bytes, res.Reverse.Bytes, err)
	}
	return res, nil
}

// bulk is one run of TCP.
type bulk struct {
	config           TCPConfig
	cancel           context.CancelCauseFunc // with the first error
	clients, servers []*net.TCPConn          // clients[i] is connected to servers[i]
	forward, reverse tally
	enough           atomic.Bool // the meter has seen what it wanted: senders stop
	done             atomic.Bool
}

// tally adds up one direction.
type tally struct {
	bytes       atomic.Int64
	elapsed     atomic.Int64 // of the flow that took longest
	retransmits atomic.Uint64
	mss         atomic.Int64
}

func (t *tally) transfer() Transfer {
	return Transfer{Bytes: t.bytes.Load(), Elapsed: time.Duration(t.elapsed.Load()), Retransmits: t.retransmits.Load(), MSS: int(t.mss.Load())}
}

func atLeast(a *atomic.Int64, v int64) {
	for old := a.Load(); old < v && !a.CompareAndSwap(old, v); old = a.Load() {
	}
}

func (b *bulk) all() []*net.TCPConn {
	return append(append([]*net.TCPConn(nil), b.clients...), b.servers...)
}

func (b *bulk) close() {
	for _, conn := range b.all() {
		_ = conn.Close() // the transfer is over, or its error is told already
	}
}

// connect opens all flows.
func (b *bulk) connect(ctx context.Context) error {
	for _, r := range append([]Receiver{{b.config.To, b.config.Address}}, b.config.Others...) {
		if err := b.connectTo(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// connectTo opens the flows to one host. The net package makes the socket of a literal address on the calling goroutine,
// which is what puts it into the namespace.
func (b *bulk) connectTo(ctx context.Context, r Receiver) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var ln net.Listener
	if err := r.To.Do(func() (err error) {
		ln, err = lc.Listen(ctx, "tcp", netip.AddrPortFrom(r.Address, 0).String())
		return err
	}); err != nil {
		return err
	}
	defer ln.Close()
	dialer := net.Dialer{Timeout: b.config.Stall}
	dialer.SetMultipathTCP(false)
	for range b.config.Flows {
		var conn net.Conn
		if err := b.config.From.Do(func() (err error) {
			conn, err = dialer.DialContext(ctx, "tcp", ln.Addr().String())
			return err
		}); err != nil {
			return err
		}
		b.clients = append(b.clients, conn.(*net.TCPConn))
		if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(b.config.Stall)); err != nil {
			return err
		}
		peer, err := ln.Accept()
		if err != nil {
			return err
		}
		b.servers = append(b.servers, peer.(*net.TCPConn))
		if peer.RemoteAddr().String() != conn.LocalAddr().String() {
			return fmt.Errorf("a connection from %v came in place of the one from %v", peer.RemoteAddr(), conn.LocalAddr())
		}
	}
	return nil
}

// pump starts the sender and the receiver of one flow in one direction.
func (b *bulk) pump(pumps *sync.WaitGroup, start time.Time, from, to *net.TCPConn, t *tally, seed uint64) {
	var sent, received hash.Hash
	if b.config.Verify {
		sent, received = sha256.New(), sha256.New()
	}
	finished := make(chan struct{}) // the sender's hash is complete
	pumps.Go(func() {
		defer close(finished)
		if err := b.send(start, from, sent, seed); err != nil {
			b.cancel(fmt.Errorf("send: %w", err))
		}
	})
	pumps.Go(func() {
		err := receive(start, to, received, t)
		if err != nil {
			b.cancel(fmt.Errorf("receive: %w", err)) // ends the sender, too
		}
		<-finished
		if retransmits, mss, err := tcpInfo(from); err == nil {
			t.retransmits.Add(retransmits)
			atLeast(&t.mss, mss)
		}
		if err == nil && b.config.Verify && !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
			b.cancel(ErrMismatch)
		}
	})
}

func (b *bulk) send(start time.Time, conn *net.TCPConn, h hash.Hash, seed uint64) error {
	buf := make([]byte, chunk)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = src.Read(buf) // never fails
	for n := int64(0); b.config.Bytes == 0 || n < b.config.Bytes; {
		if b.config.Bytes == 0 && b.sentEnough(start) {
			break
		}
		part := buf
		if b.config.Bytes > 0 {
			part = buf[:min(chunk, b.config.Bytes-n)]
		}
		if h != nil {
			for i := 0; i+8 <= len(part); i += stampEvery {
				binary.BigEndian.PutUint64(part[i:], uint64(n)+uint64(i))
			}
			h.Write(part)
		}
		w, err := conn.Write(part)
		n += int64(w)
		if err != nil {
			return err
		}
	}
	return conn.CloseWrite()
}

func receive(start time.Time, conn *net.TCPConn, h hash.Hash, t *tally) error {
	buf := make([]byte, chunk)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if h != nil {
				h.Write(buf[:n])
			}
			t.bytes.Add(int64(n))
			atLeast(&t.elapsed, int64(time.Since(start)))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// watch ends the run when nothing arrives any more.
func (b *bulk) watch(ctx context.Context) {
	tick := time.NewTicker(wake)
	defer tick.Stop()
	var last int64
	moved := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch now := b.forward.bytes.Load() + b.reverse.bytes.Load(); {
		case now != last:
			last, moved = now, time.Now()
		case b.done.Load():
			return
		case time.Since(moved) > b.config.Stall:
			b.cancel(fmt.Errorf("%w for %v", ErrStalled, b.config.Stall))
			return
		}
	}
}

// tcpInfo asks the kernel about a connection.
func tcpInfo(conn syscall.Conn) (retransmits uint64, mss int64, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); cerr != nil {
		return 0, 0, cerr
	}
	if err != nil {
		return 0, 0, err
	}
	return uint64(info.Total_retrans), int64(info.Snd_mss), nil
}
