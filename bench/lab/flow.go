package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	flowChunk = 256 << 10 // bytes that are written or compared at once
	flowStamp = 4 << 10   // how far apart the data have their position in them, so that no two parts are alike
	// flowPause is between two chunks where a flow is not to take all that there is: 100 Mb/s are left of it.
	flowPause = 20 * time.Millisecond
	// flowIdle is when a connection counts as dead: longer than the kernel waits before it sends a lost segment for the
	// eighth time.
	flowIdle = time.Minute
)

// flow is one TCP connection between two stations on which both send, until each has sent so much or it is to end. What
// arrives is compared with what was sent, and it is known for how long nothing did.
type flow struct {
	conns [2]*net.TCPConn
	ways  [2]way // ways[0] is what conns[0] sends
	rest  time.Duration
	pumps sync.WaitGroup
	stop  chan struct{}
	halt  func() bool // no longer ends the connections with the context

	mu  sync.Mutex
	err error // the first
}

// way is one direction of a flow.
type way struct {
	mu      sync.Mutex
	bytes   int64     // that arrived
	since   time.Time // the last arrival, or the last mark if that was later
	longest time.Duration
	done    time.Time // when the last byte was there; zero before
}

// startFlow connects and has both sides send: so many bytes each, or without end where that is 0, and with such a rest after
// each chunk.
func startFlow(ctx context.Context, from, to station, at netip.Addr, limit int64, rest time.Duration) (*flow, error) {
	f := &flow{stop: make(chan struct{}), rest: rest}
	if err := f.connect(ctx, from, to, at); err != nil {
		f.close()
		return nil, fmt.Errorf("TCP from %s to %s: %w", from.name, to.name, err)
	}
	f.halt = context.AfterFunc(ctx, func() {
		f.fail(ctx.Err())
		f.close()
	})
	f.mark()
	for i := range f.conns {
		f.pumps.Go(func() {
			if err := f.send(f.conns[i], limit, byte(i)); err != nil {
				f.fail(fmt.Errorf("send: %w", err))
			}
		})
		f.pumps.Go(func() {
			if err := f.ways[i].receive(f.conns[1-i], byte(i)); err != nil {
				f.fail(fmt.Errorf("receive: %w", err))
				f.close()
			}
		})
	}
	return f, nil
}

// connect opens the connection. A socket lies in the namespace of the goroutine that makes it.
func (f *flow) connect(ctx context.Context, from, to station, at netip.Addr) error {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	var ln net.Listener
	if err := to.Do(func() (err error) {
		ln, err = config.Listen(ctx, "tcp", netip.AddrPortFrom(at, 0).String())
		return err
	}); err != nil {
		return err
	}
	defer ln.Close()
	dialer := net.Dialer{Timeout: clusterPatience}
	dialer.SetMultipathTCP(false)
	if err := from.Do(func() error {
		conn, err := dialer.DialContext(ctx, "tcp", ln.Addr().String())
		if err == nil {
			f.conns[0] = conn.(*net.TCPConn)
		}
		return err
	}); err != nil {
		return err
	}
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(clusterPatience)); err != nil {
		return err
	}
	conn, err := ln.Accept()
	if err == nil {
		f.conns[1] = conn.(*net.TCPConn)
	}
	return err
}

func (f *flow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

func (f *flow) close() {
	for _, c := range f.conns {
		if c != nil {
			_ = c.Close() // what matters is known
		}
	}
}

// pattern is what one side sends, over and over, with another position in each stamp.
func pattern(seed byte) []byte {
	buf := make([]byte, flowChunk)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(buf) // never fails
	return buf
}

// stamp puts into a chunk where it begins.
func stamp(chunk []byte, at int64) {
	for i := 0; i+8 <= len(chunk); i += flowStamp {
		binary.BigEndian.PutUint64(chunk[i:], uint64(at)+uint64(i))
	}
}

func (f *flow) send(conn *net.TCPConn, limit int64, seed byte) error {
	buf := pattern(seed)
	for n := int64(0); limit == 0 || n < limit; n += flowChunk {
		select {
		case <-f.stop:
			return conn.CloseWrite()
		default:
		}
		stamp(buf, n)
		part := buf
		if limit > 0 {
			part = buf[:min(flowChunk, limit-n)]
		}
		if err := conn.SetWriteDeadline(time.Now().Add(flowIdle)); err != nil {
			return err
		}
		if _, err := conn.Write(part); err != nil {
			return err
		}
		if f.rest > 0 {
			time.Sleep(f.rest)
		}
	}
	return conn.CloseWrite()
}

func (w *way) receive(conn net.Conn, seed byte) error {
	want, got := pattern(seed), make([]byte, flowChunk)
	stamp(want, 0)
	for at := 0; ; {
		if err := conn.SetReadDeadline(time.Now().Add(flowIdle)); err != nil {
			return err
		}
		n, err := conn.Read(got[:flowChunk-at])
		if !bytes.Equal(got[:n], want[at:at+n]) {
			return fmt.Errorf("after %d bytes come others than were sent", w.arrived(0))
		}
		total := w.arrived(n)
		if at += n; at == flowChunk {
			at = 0
			stamp(want, total)
		}
		if errors.Is(err, io.EOF) {
			w.mu.Lock()
			w.done = time.Now()
			w.mu.Unlock()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// arrived notes that so many bytes did, and returns how many there are in all.
func (w *way) arrived(n int) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > 0 {
		now := time.Now()
		w.longest = max(w.longest, now.Sub(w.since))
		w.bytes, w.since = w.bytes+int64(n), now
	}
	return w.bytes
}

// mark makes pause look at what comes from now on.
func (f *flow) mark() {
	for i := range f.ways {
		w := &f.ways[i]
		w.mu.Lock()
		w.since, w.longest = time.Now(), 0
		w.mu.Unlock()
	}
}

// pause is for how long, since the last mark, nothing arrived in one of the directions, at the longest. If that is so now, it
// counts.
func (f *flow) pause() time.Duration {
	var longest time.Duration
	for i := range f.ways {
		w := &f.ways[i]
		w.mu.Lock()
		longest = max(longest, w.longest)
		if w.done.IsZero() {
			longest = max(longest, time.Since(w.since))
		}
		w.mu.Unlock()
	}
	return longest
}

// arrived is how many bytes each direction has carried.
func (f *flow) arrived() (bytes [2]int64) {
	for i := range f.ways {
		bytes[i] = f.ways[i].arrived(0)
	}
	return bytes
}

// wait returns when all has arrived, with how many bytes each direction carried. It has to be called, or end.
func (f *flow) wait() (bytes [2]int64, err error) {
	f.pumps.Wait()
	f.halt()
	f.close()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.arrived(), f.err
}

// end has both sides stop to send, and waits.
func (f *flow) end() (bytes [2]int64, err error) {
	close(f.stop)
	return f.wait()
}
