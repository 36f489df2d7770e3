//go:build linux

package link

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/vtep/link/linktest"
)

const patience = 10 * time.Second

// awaitWake waits for one wake-up.
func awaitWake(t *testing.T, wake <-chan struct{}, why string) {
	t.Helper()
	select {
	case _, ok := <-wake:
		if !ok {
			t.Fatalf("%s: the watch ended", why)
		}
	case <-time.After(patience):
		t.Fatalf("%s: no wake-up", why)
	}
}

// quiet takes wake-ups until none has come for a while: the kernel speaks of one change in several messages.
func quiet(wake <-chan struct{}) {
	for {
		select {
		case _, ok := <-wake:
			if !ok {
				return
			}
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

// all and poke are what Watch gives to watch.
func all([]byte) bool { return true }

func poke(wake chan<- struct{}) func() {
	return func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func awaitEnd(t *testing.T, wake <-chan struct{}) {
	t.Helper()
	end := time.After(patience)
	for {
		select {
		case _, ok := <-wake:
			if !ok {
				return
			}
		case <-end:
			t.Fatal("the watch did not end")
		}
	}
}

func TestWatch(t *testing.T) {
	linktest.Enter(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wake, err := Watch(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	quiet(wake) // what the loopback device had to say
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"device added", func() { addVeth(t, "eth0", "far0") }},
		{"IPv4 address", func() {
			if err := AddAddress("eth0", netip.MustParsePrefix("192.0.2.1/24")); err != nil {
				t.Fatal(err)
			}
		}},
		{"IPv6 address", func() {
			if err := AddAddress("eth0", netip.MustParsePrefix("2001:db8::1/64")); err != nil {
				t.Fatal(err)
			}
		}},
		{"MTU", func() {
			if err := SetMTU("eth0", 1400); err != nil {
				t.Fatal(err)
			}
		}},
		{"IPv4 route", func() { addRoute(t, "eth0", "203.0.113.0/24", "192.0.2.254", 0) }},
		{"IPv6 route", func() { addRoute(t, "eth0", "2001:db8:9::/64", "2001:db8::fe", 0) }},
		{"rule", func() {
			r := netlink.NewRule()
			r.Table, r.Priority, r.Family = 100, 1000, netlink.FAMILY_V4
			r.Dst = ipNet("203.0.113.0/24")
			if err := netlink.RuleAdd(r); err != nil {
				t.Fatal(err)
			}
		}},
		{"device removed", func() {
			l, err := linkByName("eth0")
			if err == nil {
				err = netlink.LinkDel(l)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
	} {
		step.do()
		awaitWake(t, wake, step.name)
		quiet(wake)
	}
	cancel()
	awaitEnd(t, wake)
}

// When more happens than the socket holds, the reader is woken, and again by the next change.
func TestWatchOverrun(t *testing.T) {
	linktest.Enter(t)
	f, err := subscribe(unix.NETLINK_ROUTE, groups)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	addVeth(t, "eth0", "far0", "192.0.2.1/24")
	for i := range 50 {
		if err := SetMTU("eth0", 1400+i); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wake := make(chan struct{}, 1)
	go func() {
		defer close(wake)
		watch(ctx, f, all, poke(wake), time.Hour, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	awaitWake(t, wake, "overrun")
	quiet(wake)
	if err := SetMTU("eth0", 1399); err != nil {
		t.Fatal(err)
	}
	awaitWake(t, wake, "change after the overrun")
	cancel()
	f.Close()
	awaitEnd(t, wake)
	if s := log.String(); !strings.Contains(s, "were lost") || strings.Contains(s, "cannot watch") {
		t.Errorf("log: %s", s)
	}
}

// failing is a socket that gives the errors, one a read, and then a last one for ever.
type failing struct {
	errs []error
	last error
}

func (f *failing) Read([]byte) (int, error) {
	if len(f.errs) == 0 {
		return 0, f.last
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return 0, err
}

func TestWatchFallsBackToPolling(t *testing.T) {
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	wake := make(chan struct{}, 1)
	go func() {
		defer close(wake)
		r := &failing{errs: []error{unix.EINTR, unix.ENOBUFS}, last: io.ErrUnexpectedEOF}
		watch(ctx, r, all, poke(wake), time.Millisecond, slog.New(slog.NewTextHandler(&log, nil)))
	}()
	for range 5 {
		awaitWake(t, wake, "polling")
	}
	cancel()
	awaitEnd(t, wake)
	if n := strings.Count(log.String(), "cannot watch"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
}

func TestWatchEndsWithoutAReader(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	wake, err := Watch(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	awaitEnd(t, wake)
}
