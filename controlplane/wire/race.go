package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// attemptDelay is how long one of several addresses has before the next one is tried beside it, as RFC 8305, section 5,
// recommends.
const attemptDelay = 250 * time.Millisecond

// First calls dial for one address after the other, in their order, and returns what the first of them to succeed gives. The
// next one is not waited for: it is called after a quarter of a second without an answer, or at once after an error. Those
// calls that come too late are told so by their context, and what they give is closed. The error holds those of all addresses.
func First[C io.Closer](ctx context.Context, addresses []string, dial func(ctx context.Context, address string) (C, error)) (C, error) {
	type result struct {
		conn C
		err  error
	}
	var none C
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	var errs []error
	for begun, ended := 0, 0; ended < len(addresses); {
		var more <-chan time.Time
		if begun < len(addresses) {
			more = next.C
		}
		select {
		case <-more:
			address := addresses[begun]
			begun++
			go func() { // attempt
				c, err := dial(ctx, address)
				select {
				case results <- result{c, err}:
				case <-ctx.Done():
					if err == nil {
						_ = c.Close() // another one was first
					}
				}
			}()
			next.Reset(attemptDelay)
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			ended++
			errs = append(errs, r.err)
			next.Reset(0)
		case <-ctx.Done():
			return none, errors.Join(append(errs, ctx.Err())...)
		}
	}
	if len(errs) == 0 {
		return none, errors.New("there is no address to connect to")
	}
	return none, errors.Join(errs...)
}

// DialAny is Dial for a node that may be reached at several addresses, in order of preference: the first at which a
// handshake succeeds is taken.
func DialAny(ctx context.Context, addresses []string, cfg *tls.Config, protocol string) (*tls.Conn, error) {
	c, err := First(ctx, addresses, func(ctx context.Context, address string) (*tls.Conn, error) {
		return dial(ctx, address, cfg, protocol)
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s for %s: %w", strings.Join(addresses, ", "), protocol, err)
	}
	return c, nil
}
