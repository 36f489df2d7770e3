package interop

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/capture"
	"github.com/overlayd/overlayd/bench/lab"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/dataplane/header"
	"github.com/overlayd/overlayd/dataplane/probe"
)

// probes counts the path probes on a wire, with the acknowledgements, in bytes of the IP packets.
type probes struct {
	*capture.Capture
	mu   sync.Mutex
	seen seen
}

type seen struct {
	packets, bytes, largest int
	took                    time.Duration
}

func (s seen) String() string {
	return fmt.Sprintf("%d packets in %.1f s, %d bytes, %d at most, %.0f bytes a second for each watcher", s.packets, s.took.Seconds(), s.bytes, s.largest, s.rate())
}

// watchers is how many daemons watch the path between two hosts: each does so by itself.
const watchers = 2

// fullSize is that of the packets that show whether the path still carries them.
const fullSize = 1500

// exceeds reports whether that is more than so many bytes a second. Where there is one packet of full size in so and so long,
// there may be one more in the time in which they are counted, with a small one and the acknowledgements of both.
func (s seen) exceeds(limit int) bool {
	const once = fullSize + 3*(header.IPv4MinLen+header.UDPLen+probe.Len)
	return float64(s.bytes) > watchers*(float64(limit)*s.took.Seconds()+once)
}

// rate is how many bytes a second each of the two costs.
func (s seen) rate() float64 { return float64(s.bytes) / watchers / s.took.Seconds() }

// countProbes watches what a host sends and receives. What is no frame on the port of VXLAN, where the hosts of a test send
// nothing but frames and probes, is a probe.
func countProbes(t *testing.T, h *lab.Host) *probes {
	t.Helper()
	p := &probes{}
	var err error
	p.Capture, err = capture.Open(h, "eth0", capture.Both, func(packet *capture.Packet) {
		b := packet.Data
		const udp, vxlan = header.EthernetLen + header.IPv4MinLen, header.EthernetLen + header.IPv4MinLen + header.UDPLen
		if len(b) < vxlan+header.VXLANLen || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP || b[header.EthernetLen+9] != unix.IPPROTO_UDP ||
			binary.BigEndian.Uint16(b[udp+2:]) != header.VXLANPort || b[vxlan] != 0 {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		size := len(b) - header.EthernetLen
		p.seen.packets++
		p.seen.bytes += size
		p.seen.largest = max(p.seen.largest, size)
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// during returns what there was meanwhile.
func (p *probes) during(f func()) seen {
	p.mu.Lock()
	p.seen = seen{}
	p.mu.Unlock()
	start := time.Now()
	f()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.took = time.Since(start)
	return p.seen
}

// TestProbingCost counts on the wire what two daemons send to watch the path between them.
func TestProbingCost(t *testing.T) {
	const busyLimit, idleLimit = 2000, 100
	sc := scenario(lab.IPv4, lab.Overlayd, lab.Overlayd)
	sc.Networks[0].Subnets = sc.Networks[0].Subnets[:1]
	l := up(t, sc)
	h1, h2 := l.Host("h1"), l.Host("h2")
	for _, h := range l.Hosts() {
		// IPv6 has a word to say every now and then, which is traffic.
		setting(t, h, "ipv6/conf/"+h.Device(network)+"/disable_ipv6", "1")
		eventually(t, "a proven path", func() (bool, string) {
			p := pathsOf(t, h).Paths
			return len(p) == 1 && p[0].Settled && p[0].PathMtu == fullSize, fmt.Sprint(p)
		})
	}
	busy, idle := 3*time.Second, 8*time.Second
	if os.Getenv(soakEnv) != "" {
		busy, idle = time.Minute, 5*time.Minute
	}
	p := countProbes(t, h1)
	settled(t, "the path to count as idle", func() (bool, string) {
		s := p.during(func() { time.Sleep(1500 * time.Millisecond) })
		return s.largest < fullSize, s.String()
	})
	quiet := p.during(func() { time.Sleep(idle) })
	t.Logf("idle: %v", quiet)
	if quiet.exceeds(idleLimit) {
		t.Errorf("idle: %v; the most is %d", quiet, idleLimit)
	}

	// What a busy machine answers late is asked again, and says nothing of what it costs to watch.
	for try, lost := 1, true; lost; try++ {
		before := lostProbes(t, l)
		loaded := p.during(func() { chatter(t, h1, h2, busy) })
		t.Logf("with traffic: %v", loaded)
		if lost = lostProbes(t, l) > before; lost && try < 5 {
			continue
		}
		if !lost && (loaded.exceeds(busyLimit) || loaded.largest != fullSize) {
			t.Errorf("with traffic: %v; the most is %d, with packets of %d among them", loaded, busyLimit, fullSize)
		}
		if lost {
			t.Log("the machine is too busy to tell")
			break
		}
	}
	if stats := p.Stats(); stats.Missed > 0 {
		t.Errorf("%d packets were not seen", stats.Missed)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

// chatter has two hosts send a little to each other.
func chatter(t *testing.T, a, b *lab.Host, d time.Duration) {
	t.Helper()
	var ways sync.WaitGroup
	for _, way := range [][2]*lab.Host{{a, b}, {b, a}} {
		ways.Go(func() {
			const rate = 20 // a second
			if _, err := load.UDP(within(t), load.UDPConfig{From: way[0], To: way[1], Address: way[1].Overlay(network), Size: 100, Rate: rate, Duration: d}); err != nil {
				t.Error(err)
			}
		})
	}
	ways.Wait()
}

// lostProbes is how many were not acknowledged in time.
func lostProbes(t *testing.T, l *lab.Lab) uint64 {
	t.Helper()
	var sum uint64
	for _, h := range l.Hosts() {
		sum += pathsOf(t, h).GetProbes().GetLost()
	}
	return sum
}
