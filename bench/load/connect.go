package load

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ConnectConfig says what to open.
type ConnectConfig struct {
	From, To Namespace
	Address  netip.Addr    // of To
	Duration time.Duration // 0 = 1 s
}

// ConnectResult counts connections that were opened and accepted.
type ConnectResult struct {
	Count   int
	Elapsed time.Duration
}

// Rate is connections a second.
func (r ConnectResult) Rate() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Count) / r.Elapsed.Seconds()
}

// Connect opens TCP connections one after the other and resets each as soon as it is accepted, so that none lingers
// in TIME_WAIT and the ports last. One that takes longer than a retransmission shows in the rate; one that fails is
// an error.
func Connect(ctx context.Context, c ConnectConfig) (ConnectResult, error) {
	c.Duration = defaulted(c.Duration, time.Second)
	var at netip.AddrPort
	ln, err := openSocket(c.To, c.Address, unix.SOCK_STREAM, 0, func(fd int) (err error) {
		if at, err = bindTo(fd, c.Address); err != nil {
			return err
		}
		return unix.Listen(fd, 16)
	})
	if err != nil {
		return ConnectResult{}, fmt.Errorf("connections to %v: %w", c.Address, err)
	}
	defer unix.Close(ln)
	var r ConnectResult
	// All of it on one thread in the namespace: to enter it for each would cost more than a connection does.
	err = c.From.Do(func() error {
		for start := time.Now(); r.Elapsed < c.Duration; r.Elapsed = time.Since(start) {
			if err := connectOnce(ctx, ln, at); err != nil {
				return err
			}
			r.Count++
		}
		return nil
	})
	if err != nil {
		return r, fmt.Errorf("connections to %v, after %d: %w", c.Address, r.Count, err)
	}
	return r, nil
}

// connectOnce opens one connection from the namespace of the calling thread.
func connectOnce(ctx context.Context, ln int, at netip.AddrPort) error {
	client, err := openSocket(here{}, at.Addr(), unix.SOCK_STREAM, 0, func(fd int) error { return connect(ctx, fd, at) })
	if err != nil {
		return err
	}
	defer reset(client)
	for {
		server, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			reset(server)
			return nil
		case !again(err):
			return fmt.Errorf("accept: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// here is the namespace of the calling thread.
type here struct{}

func (here) Do(f func() error) error { return f() }

// reset closes a connection without a farewell.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // cannot fail on a TCP socket
	_ = unix.Close(fd)
}
