//go:build linux

package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Watching is a watch of a sandbox that is under way.
type Watching struct {
	end     context.CancelFunc
	readers sync.WaitGroup
}

// Watch calls changed soon after a device, an address or a route of the sandbox, a station that its bridge knows or a rule
// of its nftables was added, changed or removed, and whenever something may have been missed. What Repair looks at is among
// that: a container that vanishes takes its end of the veth along, and so this one; a relay whose other end goes down loses
// its carrier. The name of the sandbox is not: see Named. Nor is the GSO size of a device, of which the kernel says nothing. changed is called by goroutines of the watch and must not block. There
// is no call for the state at the start.
//
// Should listening fail for good, this is logged once and changed is called every five seconds instead.
func (s *Sandbox) Watch(log *slog.Logger, changed func()) (*Watching, error) {
	var route, filter *os.File
	err := s.Do(func() (err error) {
		if route, err = subscribe(unix.NETLINK_ROUTE, insideGroups); err != nil {
			return err
		}
		filter, err = subscribe(unix.NETLINK_NETFILTER, 1<<(unix.NFNLGRP_NFTABLES-1))
		if errors.Is(err, unix.EPROTONOSUPPORT) { // a kernel without nftables has no rules either
			return nil
		}
		if err != nil {
			return errors.Join(err, route.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("watch sandbox %s: %w", s.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watching{end: cancel}
	w.follow(ctx, route, bridgeStations, changed, log)
	if filter != nil {
		w.follow(ctx, filter, func([]byte) bool { return true }, changed, log)
	}
	return w, nil
}

// follow starts a goroutine that watches what f says.
func (w *Watching) follow(ctx context.Context, f *os.File, matters func([]byte) bool, changed func(), log *slog.Logger) {
	stop := context.AfterFunc(ctx, func() { f.Close() }) // ends the read
	w.readers.Go(func() {
		defer f.Close()
		defer stop()
		watch(ctx, f, matters, changed, pollInterval, log)
	})
}

// Close ends the watch. Nothing is called any more when it returns, so that it must not be called by changed.
func (w *Watching) Close() {
	w.end()
	w.readers.Wait()
}

// insideGroups are those of groups that matter in a sandbox, where nothing is routed by rules, and what the bridge knows.
const insideGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

// bridgeStations reports false for news of neighbours other than those of the bridge: whom the gateway's addresses have
// spoken with, which comes and goes with the traffic.
func bridgeStations(message []byte) bool {
	const kind, family = 4, unix.SizeofNlMsghdr // offsets of nlmsg_type and ndm_family (rtnetlink(7))
	if len(message) <= family {
		return true
	}
	k := binary.NativeEndian.Uint16(message[kind:])
	return k != unix.RTM_NEWNEIGH && k != unix.RTM_DELNEIGH || message[family] == unix.AF_BRIDGE
}
