//go:build linux

package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pollInterval is how often Watch wakes its reader once it can no longer listen.
const pollInterval = 5 * time.Second

// Watch sends on the channel whenever a device, an address, a route or a routing rule was added, changed or
// removed, and whenever the kernel had more to say than the socket could hold, so that something may have been
// missed. Wake-ups that nobody has taken yet are one. The reader looks at everything anew; there is none for
// the state at the start.
//
// The channel is closed after ctx ends. Should listening fail for good, which it is not known to do, this is
// logged once and the channel wakes every five seconds instead.
func Watch(ctx context.Context, log *slog.Logger) (<-chan struct{}, error) {
	f, err := subscribe(unix.NETLINK_ROUTE, groups)
	if err != nil {
		return nil, fmt.Errorf("watch devices, addresses and routes: %w", err)
	}
	wake := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { f.Close() }) // ends the read below
	go func() {
		defer close(wake)
		defer stop()
		defer f.Close()
		watch(ctx, f, func([]byte) bool { return true }, func() {
			select {
			case wake <- struct{}{}:
			default: // the reader has one to take, and will look after it took it
			}
		}, pollInterval, log)
	}()
	return wake, nil
}

// watch calls tell for each message of r that matters, and when some may have been missed, until ctx ends and r is closed.
func watch(ctx context.Context, r io.Reader, matters func(message []byte) bool, tell func(), poll time.Duration, log *slog.Logger) {
	buf := make([]byte, 512) // the kernel cuts off what does not fit; of a message no more than its beginning is looked at
	for ctx.Err() == nil {
		n, err := r.Read(buf)
		switch {
		case err == nil:
			if matters(buf[:n]) {
				tell()
			}
		case errors.Is(err, unix.ENOBUFS):
			// The subscription outlives the overrun: the messages lost are those until the socket has room
			// again, and it has now.
			log.Debug("netlink messages about links were lost; looking at everything anew")
			tell()
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOMEM):
			tell()
		case ctx.Err() != nil:
			return
		default:
			log.Warn("cannot watch devices, addresses and routes any more; looking at them from time to time instead",
				"every", poll, "err", err)
			t := time.NewTicker(poll)
			defer t.Stop()
			for tell(); ; tell() {
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
			}
		}
	}
}

// groups has a bit for each rtnetlink multicast group to listen to (rtnetlink(7)).
const groups = 1<<(unix.RTNLGRP_LINK-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) |
	1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1)

// subscribe opens a netlink socket of a protocol that gets all messages of the groups, a bit for each. It is a file of the
// runtime's poller, so that closing it ends a read.
func subscribe(protocol int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket(AF_NETLINK)", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind(AF_NETLINK)", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}
