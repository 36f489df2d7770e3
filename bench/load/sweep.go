package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// SweepConfig says which sizes to try.
type SweepConfig struct {
	From, To     Namespace
	Address      netip.Addr // of To
	First, Last  int        // payload in bytes, from 0 to 65507
	Window       int        // datagrams that may be on their way at once; 0 = 16
	Attempts     int        // for each size; 0 = 3
	DontFragment bool       // sizes that do not fit the device are refused rather than fragmented
}

// SweepResult is what became of the sizes.
type SweepResult struct {
	Sizes   int   // how many came back intact
	Missing []int // did not come back in any attempt
	Corrupt []int // came back with other bytes
	Refused []int // the kernel did not send them: too big
	Retried int   // attempts beyond the first
}

// echoPatience is how long an echo may take before the rest of the window counts as lost.
const echoPatience = 500 * time.Millisecond

// Sweep sends a datagram of every size from First to Last to an echoer in To and compares what comes back.
func Sweep(ctx context.Context, c SweepConfig) (SweepResult, error) {
	c.Window, c.Attempts = defaulted(c.Window, 16), defaulted(c.Attempts, 3)
	if c.First < 0 || c.Last > 65507 || c.First > c.Last {
		return SweepResult{}, fmt.Errorf("UDP sweep to %v: sizes from %d to %d are not within 0 to 65507", c.Address, c.First, c.Last)
	}
	var at netip.AddrPort
	server, err := openSocket(c.To, c.Address, unix.SOCK_DGRAM, 0, func(fd int) (err error) {
		bigBuffers(fd)
		at, err = bindTo(fd, c.Address)
		return err
	})
	if err != nil {
		return SweepResult{}, fmt.Errorf("UDP sweep to %v: %w", c.Address, err)
	}
	defer unix.Close(server)
	client, err := openSocket(c.From, c.Address, unix.SOCK_DGRAM, 0, func(fd int) error {
		bigBuffers(fd)
		if c.DontFragment {
			if err := dontFragment(fd, c.Address.Is4()); err != nil {
				return err
			}
		}
		return unix.Connect(fd, sockaddr(at))
	})
	if err != nil {
		return SweepResult{}, fmt.Errorf("UDP sweep to %v: %w", c.Address, err)
	}
	defer unix.Close(client)
	echoing, stop := context.WithCancel(ctx)
	echoed := make(chan error, 1)
	go func() { echoed <- echo(echoing, server) }()

	s := &sweeper{config: c, fd: client, buf: make([]byte, 1<<16)}
	err = s.run(ctx)
	stop()
	if eerr := <-echoed; eerr != nil && err == nil {
		err = eerr
	}
	slices.Sort(s.result.Refused)
	slices.Sort(s.result.Corrupt)
	if err != nil {
		return s.result, fmt.Errorf("UDP sweep to %v: %w", c.Address, err)
	}
	return s.result, nil
}

// echo sends every datagram back to where it came from, until ctx ends.
func echo(ctx context.Context, fd int) error {
	buf := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if again(err) || unreachable(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		// What cannot be sent is missing at the other end, where it is counted.
		_ = unix.Sendto(fd, buf[:n], 0, from)
	}
	return nil
}

type sweeper struct {
	config SweepConfig
	fd     int
	buf    []byte
	result SweepResult
}

func (s *sweeper) run(ctx context.Context) error {
	missing := make([]int, 0, s.config.Last-s.config.First+1)
	for size := s.config.First; size <= s.config.Last; size++ {
		missing = append(missing, size)
	}
	for attempt := range s.config.Attempts {
		if attempt > 0 {
			s.result.Retried += len(missing)
		}
		var err error
		if missing, err = s.round(ctx, missing); err != nil || len(missing) == 0 {
			return err
		}
	}
	s.result.Missing = missing
	return nil
}

// round sends each of the sizes once and returns those that did not come back.
func (s *sweeper) round(ctx context.Context, sizes []int) (missing []int, err error) {
	waiting := make(map[int]bool)
	fill := rand.NewChaCha8([32]byte{2})
	body := make([]byte, s.config.Last)
	_, _ = fill.Read(body) // never fails
	for len(sizes) > 0 || len(waiting) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for len(sizes) > 0 && len(waiting) < s.config.Window {
			size := sizes[0]
			switch err := unix.Send(s.fd, pattern(body, size), 0); {
			case err == nil:
				waiting[size] = true
			case errors.Is(err, unix.EMSGSIZE):
				s.result.Refused = append(s.result.Refused, size)
			case again(err), unreachable(err):
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				continue
			default:
				return nil, fmt.Errorf("send %d bytes: %w", size, err)
			}
			sizes = sizes[1:]
		}
		if len(waiting) == 0 {
			continue
		}
		size, ok, err := s.reply(ctx, body, waiting, time.Now().Add(echoPatience))
		switch {
		case err != nil:
			return nil, err
		case !ok: // the whole window has had its time
			for size := range waiting {
				missing = append(missing, size)
			}
			clear(waiting)
		default:
			delete(waiting, size)
		}
	}
	slices.Sort(missing)
	return missing, nil
}

// reply waits for the echo of one of the sizes. An echo that comes too late, for an attempt that was given
// up, is passed over.
func (s *sweeper) reply(ctx context.Context, body []byte, waiting map[int]bool, deadline time.Time) (size int, ok bool, err error) {
	for ctx.Err() == nil {
		over := time.Now().After(deadline) // before the look: see stream.receive
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		switch {
		case again(err) && over:
			return 0, false, nil
		case again(err), unreachable(err):
			continue
		case err != nil:
			return 0, false, fmt.Errorf("receive: %w", err)
		}
		if !waiting[n] {
			continue
		}
		if bytes.Equal(s.buf[:n], pattern(body, n)) {
			s.result.Sizes++
		} else {
			s.result.Corrupt = append(s.result.Corrupt, n)
		}
		return n, true, nil
	}
	return 0, false, nil
}

// pattern is the payload of a size; it borrows body until the next call. It begins with its size, so that
// the payloads of two sizes differ.
func pattern(body []byte, size int) []byte {
	b := body[:size]
	for i := range min(size, 4) {
		b[i] = byte(size >> (8 * i))
	}
	return b
}
