package load

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Transport is what a round trip goes over.
type Transport uint8

// The transports.
const (
	OverTCP Transport = iota
	OverUDP
)

// RoundTripConfig says what to measure.
type RoundTripConfig struct {
	From, To  Namespace
	Address   netip.Addr // of To
	Transport Transport
	Size      int // bytes of request and of response, over UDP at least 8; 0 = 64
	Warmup    int // round trips before the measurement; 0 = 100
	Count     int // round trips measured; 0 = as many as fit in Duration
	Duration  time.Duration
}

// Latency describes the times of whole round trips: request there, response back.
type Latency struct {
	Count          int
	Lost           int // requests over UDP that were never answered; they are in none of the times
	Min, Mean, Max time.Duration
	P50, P99, P999 time.Duration
}

// roundTripPatience is how long a response may take: over TCP the connection is given up then, over UDP the
// request counts as lost.
const roundTripPatience = 5 * time.Second

// udpPatience is shorter: a lost datagram must not take long to be noticed.
const udpPatience = 500 * time.Millisecond

// RoundTrip sends a request, waits for the response, and so on, one at a time.
func RoundTrip(ctx context.Context, c RoundTripConfig) (Latency, error) {
	c.Size, c.Warmup = defaulted(c.Size, 64), defaulted(c.Warmup, 100)
	if c.Transport == OverUDP {
		c.Size = max(c.Size, 8) // a late answer must not pass for that of the next request
	}
	c.Duration = defaulted(c.Duration, time.Second)
	open := openTCPPair
	if c.Transport == OverUDP {
		open = openUDPPair
	}
	client, server, err := open(ctx, c)
	if err != nil {
		return Latency{}, fmt.Errorf("round trips to %v: %w", c.Address, err)
	}
	defer unix.Close(client)
	defer unix.Close(server)
	answering, stop := context.WithCancel(ctx)
	answered := make(chan error, 1)
	go func() {
		if c.Transport == OverUDP {
			answered <- echo(answering, server)
		} else {
			answered <- answer(answering, server, c.Size)
		}
	}()
	l, err := measure(ctx, c, client)
	stop()
	if aerr := <-answered; aerr != nil && err == nil {
		err = aerr
	}
	if err != nil {
		return l, fmt.Errorf("round trips to %v: %w", c.Address, err)
	}
	return l, nil
}

func measure(ctx context.Context, c RoundTripConfig, fd int) (Latency, error) {
	expected := c.Count
	if expected == 0 {
		expected = int(c.Duration / (10 * time.Microsecond)) // more than any path here can do
	}
	times := make([]time.Duration, 0, expected)
	out, in := make([]byte, c.Size), make([]byte, c.Size)
	var l Latency
	var begin time.Time
	for i := 0; ; i++ {
		if i == c.Warmup {
			begin = time.Now()
			l.Lost = 0
		}
		if i >= c.Warmup {
			if c.Count > 0 && i-c.Warmup >= c.Count || c.Count == 0 && time.Since(begin) >= c.Duration {
				break
			}
		}
		for j := range min(8, len(out)) {
			out[j] = byte(i >> (8 * j))
		}
		start := time.Now()
		ok, err := exchange(ctx, c.Transport, fd, out, in)
		took := time.Since(start)
		switch {
		case err != nil:
			return l, err
		case !ok:
			l.Lost++
		case i >= c.Warmup:
			times = append(times, took)
		}
	}
	l.summarise(times)
	return l, nil
}

// exchange does one round trip; not ok when it was lost, over UDP.
func exchange(ctx context.Context, over Transport, fd int, out, in []byte) (bool, error) {
	if over == OverTCP {
		if err := writeAll(ctx, fd, out); err != nil {
			return false, err
		}
		if err := readAll(ctx, fd, in, roundTripPatience); err != nil {
			return false, err
		}
		if string(in) != string(out) {
			return false, ErrMismatch
		}
		return true, nil
	}
	if err := unix.Send(fd, out, 0); err != nil && !again(err) && !unreachable(err) {
		return false, fmt.Errorf("send: %w", err)
	}
	for deadline := time.Now().Add(udpPatience); ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		over := time.Now().After(deadline) // before the look: see stream.receive
		n, _, err := unix.Recvfrom(fd, in, 0)
		switch {
		case again(err), unreachable(err):
			if over {
				return false, nil
			}
		case err != nil:
			return false, fmt.Errorf("receive: %w", err)
		case string(in[:n]) == string(out): // anything else answers a request that was given up
			return true, nil
		}
	}
}

// answer returns every message of size bytes on a TCP connection.
func answer(ctx context.Context, fd, size int) error {
	buf := make([]byte, size)
	for ctx.Err() == nil {
		// Idle is no error here: it is for the side that asks to say when it has waited too long.
		if err := readAll(ctx, fd, buf, 0); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if err := writeAll(ctx, fd, buf); err != nil {
			return err
		}
	}
	return nil
}

// readAll fills b; patience 0 waits for as long as ctx lives.
func readAll(ctx context.Context, fd int, b []byte, patience time.Duration) error {
	var deadline time.Time
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		switch {
		case err == nil && n == 0:
			return fmt.Errorf("receive: the connection was closed")
		case err == nil:
			b = b[n:]
		case !again(err):
			return fmt.Errorf("receive: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case patience > 0 && deadline.IsZero():
			deadline = time.Now().Add(patience)
		case patience > 0 && time.Now().After(deadline):
			return fmt.Errorf("%w for %v", ErrStalled, patience)
		}
	}
	return nil
}

func writeAll(ctx context.Context, fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case err == nil:
			b = b[n:]
		case !again(err):
			return fmt.Errorf("send: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
	return nil
}

// openTCPPair opens a connection with blocking sockets at both ends, without Nagle's delay.
func openTCPPair(ctx context.Context, c RoundTripConfig) (client, server int, err error) {
	var at netip.AddrPort
	ln, err := openSocket(c.To, c.Address, unix.SOCK_STREAM, 0, func(fd int) (err error) {
		if at, err = bindTo(fd, c.Address); err != nil {
			return err
		}
		return unix.Listen(fd, 1)
	})
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(ln)
	client, err = openSocket(c.From, c.Address, unix.SOCK_STREAM, 0, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		return connect(ctx, fd, at)
	})
	if err != nil {
		return -1, -1, err
	}
	for {
		server, _, err = unix.Accept4(ln, unix.SOCK_CLOEXEC)
		if err == nil {
			break
		}
		if !again(err) || ctx.Err() != nil {
			unix.Close(client)
			return -1, -1, fmt.Errorf("accept: %w", err)
		}
	}
	tv := unix.NsecToTimeval(int64(wake))
	_ = unix.SetsockoptTimeval(server, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv) // inherited from the listener, as Linux does it
	_ = unix.SetsockoptInt(server, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)      // cannot fail on a TCP socket
	return client, server, nil
}

// connect waits for a TCP connection for as long as roundTripPatience.
func connect(ctx context.Context, fd int, at netip.AddrPort) error {
	deadline := time.Now().Add(roundTripPatience)
	for {
		switch err := unix.Connect(fd, sockaddr(at)); err {
		case nil, unix.EISCONN:
			return nil
		case unix.EINPROGRESS, unix.EALREADY, unix.EINTR, unix.EAGAIN: // SO_SNDTIMEO is over, the handshake goes on
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("connect to %v: %w", at, unix.ETIMEDOUT)
			}
		default:
			return fmt.Errorf("connect to %v: %w", at, err)
		}
	}
}

func openUDPPair(_ context.Context, c RoundTripConfig) (client, server int, err error) {
	var at netip.AddrPort
	server, err = openSocket(c.To, c.Address, unix.SOCK_DGRAM, 0, func(fd int) (err error) {
		at, err = bindTo(fd, c.Address)
		return err
	})
	if err != nil {
		return -1, -1, err
	}
	client, err = openSocket(c.From, c.Address, unix.SOCK_DGRAM, 0, func(fd int) error {
		return unix.Connect(fd, sockaddr(at))
	})
	if err != nil {
		unix.Close(server)
		return -1, -1, err
	}
	return client, server, nil
}

// summarise sorts the times and reads the quantiles off.
func (l *Latency) summarise(times []time.Duration) {
	if l.Count = len(times); l.Count == 0 {
		return
	}
	slices.Sort(times)
	var sum time.Duration
	for _, t := range times {
		sum += t
	}
	at := func(q float64) time.Duration { return times[min(len(times)-1, int(q*float64(len(times))))] }
	l.Min, l.Max, l.Mean = times[0], times[len(times)-1], sum/time.Duration(len(times))
	l.P50, l.P99, l.P999 = at(0.50), at(0.99), at(0.999)
}
