package gossip_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/controlplane/gossip"
)

// logBuffer is a log that several goroutines may write to.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// freePort returns an address that had no socket a moment ago.
func freePort(t *testing.T, ip string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Skipf("no sockets on %s: %v", ip, err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

var fast = gossip.Timing{
	Probe: 200 * time.Millisecond, ProbeTimeout: 100 * time.Millisecond, Suspicion: 2 * time.Second,
	Gossip: 20 * time.Millisecond, PushPull: 500 * time.Millisecond,
}

// onSockets makes n nodes on real sockets.
func onSockets(t *testing.T, n int, ip string, log *slog.Logger) *cluster {
	c := &cluster{t: t}
	t.Cleanup(c.close)
	for i := range n {
		addr := freePort(t, ip)
		nd := &node{id: idOf(i), addr: addr, got: map[string]int{}, behind: map[string]gossip.Digest{}}
		cfg := nd.config()
		cfg.Bind, cfg.Timing, cfg.Log = []netip.AddrPort{addr}, fast, log
		nd.open(t, cfg)
		c.nodes = append(c.nodes, nd)
	}
	return c
}

// All at once on real sockets, which the race detector sees: joins, messages, keys that are replaced, members
// that leave, Close.
func TestSockets(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			var log logBuffer
			c := onSockets(t, 4, ip, log.logger())
			defer c.close()
			c.join()
			within(t, 20*time.Second, "all know each other", func() bool { return full(c.nodes) })
			var wg sync.WaitGroup
			for i, n := range c.nodes {
				wg.Go(func() {
					for k := range 30 {
						if err := n.Broadcast(message(100*i+k, 200)); err != nil {
							t.Error(err)
						}
						_, _ = n.Stats(), n.Members()
						time.Sleep(2 * time.Millisecond)
					}
				})
			}
			wg.Wait()
			within(t, 20*time.Second, "nearly all messages are everywhere", func() bool {
				for _, n := range c.nodes {
					if n.received() < 85 {
						return false
					}
				}
				return true
			})
			for _, step := range [][][]byte{{testKey(1), testKey(2)}, {testKey(2), testKey(1)}, {testKey(2)}} {
				for _, n := range c.nodes {
					if err := n.SetKeys(step); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(100 * time.Millisecond) // traffic under each set of keys
			}
			c.nodes[0].know(gossip.Digest{Index: 1})
			within(t, 20*time.Second, "the others are behind", func() bool {
				for _, n := range c.nodes[1:] {
					if len(n.behindWhom()) == 0 {
						return false
					}
				}
				return true
			})
			if err := c.nodes[3].Leave(5 * time.Second); err != nil {
				t.Fatal(err)
			}
			within(t, 20*time.Second, "a node has left", func() bool { return c.nodes[0].in(gossip.Left) == 1 })
			for _, secret := range []string{string(testKey(1)), string(testKey(2)), "\\x01\\x01", "without encryption"} {
				if strings.Contains(log.String(), secret) {
					t.Errorf("the log contains %q", secret)
				}
			}
		})
	}
}

// A node that has been quiet, and whose memberlist rests until the next probe, is closed without another one: it could only
// fail, and have a member suspected that is there.
func TestCloseWhileItRests(t *testing.T) {
	const probe = time.Second // as it is without Timing
	var logs [3]logBuffer
	c := &cluster{t: t}
	t.Cleanup(c.close)
	for i := range logs {
		addr := freePort(t, "127.0.0.1")
		nd := &node{id: idOf(i), addr: addr, got: map[string]int{}, behind: map[string]gossip.Digest{}}
		cfg := nd.config()
		cfg.Bind = []netip.AddrPort{addr}
		cfg.Log = logs[i].logger()
		nd.open(t, cfg)
		c.nodes = append(c.nodes, nd)
	}
	c.join()
	within(t, 20*time.Second, "all know each other", func() bool { return full(c.nodes) })
	time.Sleep(10 * probe) // it is quiet after 9 without a sign: this is its first rest
	for i, closing := range c.nodes {
		log := &logs[i]
		// Long after a probe, so that memberlist's tick for the next has come, and not so near to it that it may be under way.
		within(t, 20*time.Second, "it is the time between two probes", func() bool {
			now := time.Now()
			into := now.Sub(now.Truncate(probe))
			return into > 85*probe/100 && into < 95*probe/100
		})
		next := time.Now().Truncate(probe).Add(probe)
		before, sent := log.String(), closing.Stats().PacketsSent
		closing.stop()
		if time.Now().After(next) {
			time.Sleep(20 * probe) // the machine stood still meanwhile, and the probe was made; there are more nodes
			continue
		}
		time.Sleep(2 * probe)
		if n := closing.Stats().PacketsSent - sent; n != 0 || log.String() != before {
			t.Errorf("%d packets were sent, and it said\n%s", n, strings.TrimPrefix(log.String(), before))
		}
		return
	}
	t.Error("the machine stood still whenever one was closed")
}

func TestPortIsTaken(t *testing.T) {
	c := onSockets(t, 1, "127.0.0.1", nil)
	n := &node{id: idOf(5), addr: c.nodes[0].addr}
	cfg := n.config()
	cfg.Bind = []netip.AddrPort{n.addr}
	_, err := gossip.New(cfg)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "choose another gossip port") {
		t.Errorf("opening a taken port: %v, want EADDRINUSE and what to do", err)
	}
}
